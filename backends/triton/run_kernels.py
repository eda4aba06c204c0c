"""Run a planned model with its kernels: `python run_kernels.py --prompt "..."`.

This file is copied as it is, but for the names of its imports, into an artefact directory for a GPU, beside runner.py,
integration.py and kernels/, none of which is imported before all files were found to be those that were written.
"""

import argparse
import sys
from pathlib import Path

import torch

from backends.transformers import runner


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--chunk-tokens", type=int, default=256)
    parser.add_argument("--dtype", choices=("float16", "float32"), help="of all that is not stored coded; GPU: float16")
    parser.add_argument("--raw", action="store_true", help="do not wrap the prompt in the chat template")
    options = parser.parse_args()
    here = Path(__file__).resolve().parent
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        runner.checked(here)
        from backends.triton.integration import kernels_run, on_device

        if not kernels_run(device):
            raise runner.ArtefactError(
                "no GPU was found, and these kernels need one: runner.py runs the same plan without them;"
                " TRITON_INTERPRET=1 runs them in Triton's interpreter, some minutes a token"
            )
        chosen = options.dtype or ("float16" if device.type == "cuda" else "float32")
        model = on_device(runner.load(here), device, getattr(torch, chosen))
        with device:
            pieces = (options.prompt, options.max_new_tokens, options.chunk_tokens, options.raw)
            for piece in runner.answer(model, here, *pieces):
                print(piece, end="", flush=True)
    except runner.ArtefactError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
