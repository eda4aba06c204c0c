"""Talk to a planned model through llama.cpp: `python runner.py --prompt "..."`.

This file is copied as it is into an artefact directory and needs xllamacpp, nothing else; `run.sh` does the same with
llama.cpp's own programs.
"""

import argparse
import hashlib
import json
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

MODEL, SETTINGS = "model.gguf", "llama.json"


class ArtefactError(Exception):
    """The artefact cannot be used, or not for what was asked; the message says which part and why."""


def checked(directory: Path) -> None:
    """ArtefactError unless every file that the manifest lists is there and has the sha256 it lists."""
    path = directory / "manifest.json"
    if not path.is_file():
        raise ArtefactError(f"{path}: not found; give a directory that planner compile wrote")
    try:
        files: dict[str, str] = dict(json.loads(path.read_text())["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path}: is not a manifest ({error}); compile again") from error
    for name in (MODEL, SETTINGS):
        if name not in files:
            raise ArtefactError(f"{path}: does not list {name}; compile again")
    for name, wanted in files.items():
        file = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtefactError(f"{path}: lists {name}, which lies outside the artefact")
        if not file.is_file():
            raise ArtefactError(f"{file}: is missing; compile again")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != wanted:
                raise ArtefactError(f"{file}: differs from the sha256 in manifest.json; compile again")


def reply(directory: Path, prompt: str, new_tokens: int) -> Iterator[str]:
    """The model's greedy reply to a message, piece by piece as it comes."""
    import xllamacpp

    told = json.loads((directory / SETTINGS).read_text())
    params = xllamacpp.CommonParams()
    params.model.path = str(directory / MODEL)
    params.n_ctx, params.n_parallel, params.n_predict = told["context_tokens"], 1, new_tokens
    params.n_batch = params.n_ubatch = told["chunk_tokens"]
    types = xllamacpp.ggml_type
    params.cache_type_k = getattr(types, f"GGML_TYPE_{told['cache_type_k'].upper()}")
    params.cache_type_v = getattr(types, f"GGML_TYPE_{told['cache_type_v'].upper()}")
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.swa_full = params.fit_params = params.warmup = False
    params.verbosity = 0
    asked = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": new_tokens,
        "temperature": 0.0,
        "stream": True,
    }
    pieces: queue.Queue[object] = queue.Queue()
    server = xllamacpp.Server(params)

    def ask() -> None:
        try:
            server.handle_chat_completions(asked, pieces.put)
        finally:
            pieces.put(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    while (piece := pieces.get()) is not None:
        yield from _texts(piece)
    thread.join()


def _texts(piece: object) -> Iterator[str]:
    """What a part of the server's answer says; ArtefactError where it says that something failed."""
    for each in piece if isinstance(piece, list) else [piece]:
        if not isinstance(each, dict) or "choices" not in each:
            raise ArtefactError(f"llama.cpp: {each}")
        for choice in each["choices"]:
            text = choice.get("delta", {}).get("content")
            if text:
                yield str(text)


def main() -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description="Reply to a message with the model of this directory.")
    parser.add_argument("--prompt", required=True, help="what to say")
    parser.add_argument("--new-tokens", type=int, default=128, help="most tokens of the reply (default 128)")
    asked = parser.parse_args()
    directory = Path(__file__).resolve().parent
    try:
        checked(directory)
        for text in reply(directory, asked.prompt, asked.new_tokens):
            print(text, end="", flush=True)
    except ArtefactError as error:
        print(error, file=sys.stderr)
        return 1
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
