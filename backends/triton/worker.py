"""A process that answers for kernels: which launches each variant has, and one launch compiled and kept.

One JSON request a line on standard input, one reply a line on standard output; it ends with its input. Kernels are
imported and compiled here only: what the compiler breaks, a crash included, stays here.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from backends.triton import sources
from backends.triton.chips import chip
from backends.triton.store import Store, key

if TYPE_CHECKING:
    from backends.kernels.contract import Launch, Variant

Request = Mapping[str, object]


def tuples(value: object) -> object:
    """Lists of JSON as the tuples that frozen shapes hold.

    >>> tuples({"spans": [[1, 2], [3]]})
    {'spans': ((1, 2), (3,))}
    """
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    return {name: tuples(item) for name, item in value.items()} if isinstance(value, dict) else value


def launches(request: Request) -> "list[tuple[Variant, tuple[Launch, ...]]]":
    """Every variant of a use, with its launches."""
    return _launches(str(request["folder"]), str(request["module"]), json.dumps(request["shape"]))


@lru_cache(maxsize=64)
def _launches(folder: str, name: str, fields: str) -> "list[tuple[Variant, tuple[Launch, ...]]]":
    """Kept: the variants of one use are compiled one request at a time."""
    module = sources.module(Path(folder), name)
    shape = module.Shape(**cast(dict[str, object], tuples(json.loads(fields))))
    return [(variant, module.launches(shape, variant)) for variant in module.variants(shape)]


def spell(request: Request) -> list[object]:
    """The variants of a use, each launch with the key of its compilation and its work; why, where there is no kernel
    for such a shape."""
    from triton import __version__

    try:
        every = launches(request)
    except ValueError as error:
        return [{"refused": str(error)}]

    sha256 = sources.source_sha256(Path(str(request["folder"])), str(request["module"]))
    target = chip(str(request["chip"]))
    return [
        {
            "variant": {"tiles": variant.tiles, "num_warps": variant.num_warps, "num_stages": variant.num_stages},
            "launches": [
                {
                    "kernel": launch.kernel.__name__,  # type: ignore[attr-defined]
                    "key": key(sha256, launch, variant, target, __version__),
                    "signature": launch.signature,
                    "constexprs": {name: str(value) for name, value in launch.constexprs.items()},
                    "programs": launch.programs,
                    "bytes_read": launch.bytes_read,
                    "bytes_written": launch.bytes_written,
                    "flop": launch.flop,
                }
                for launch in each
            ],
        }
        for variant, each in every
    ]


def compile_one(request: Request) -> list[object]:
    """Compile one launch of one variant of a use, and keep what came of it under its key."""
    from backends.triton.binary import compiled

    variant, each = launches(request)[cast(int, request["variant"])]
    result = compiled(each[cast(int, request["launch"])], variant, chip(str(request["chip"])))
    Store(Path(str(request["store"]))).keep(str(request["key"]), result)
    return []


ANSWERS = {"spell": spell, "compile": compile_one}


def serve(asked: TextIO, replies: TextIO) -> None:
    """Answer until the input ends."""
    for line in asked:
        request = json.loads(line)
        print(json.dumps(ANSWERS[request["do"]](request)), file=replies, flush=True)


def main() -> None:
    # Compilers print to the standard output as they please; replies go where only they are.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="planner-triton-") as scratch:
        os.environ["TRITON_CACHE_DIR"] = scratch  # ours is the one that is kept
        try:
            serve(sys.stdin, replies)
        except KeyboardInterrupt:  # Ctrl-C reaches the whole group; the parent says so
            sys.exit(130)


if __name__ == "__main__":
    main()
