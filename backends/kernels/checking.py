"""Run kernels of this folder in Triton's interpreter against their references: `python -m kernels.checking`.

Needs torch and triton, no GPU. Without arguments every kernel is run over the shapes of its plan (layers.json) and over
its own hostile ones; the exit code is 4 if one is wrong. With --serve it answers requests, one JSON object a line.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TextIO

DTYPES = ("float16", "bfloat16")
LIMITS = {"float16": 1e-3, "bfloat16": 3e-3}
"""Norm-wise relative error that a kernel may have, by the type of its inputs; it accumulates in float32."""

HERE = Path(__file__).resolve().parent
WRONG = 4


def tuples(value: object) -> object:
    """Lists of JSON as the tuples that frozen shapes hold."""
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    return {name: tuples(item) for name, item in value.items()} if isinstance(value, dict) else value


def modules() -> list[str]:
    """The kernel modules of this folder: those that offer a check."""
    return [path.stem for path in sorted(HERE.glob("*.py")) if "\ndef hostile(" in path.read_text(encoding="utf-8")]


def cases(name: str) -> list[dict[str, object]]:
    """A module's hostile shapes, each with its first variant and every type."""
    from dataclasses import asdict

    module = _module(name)
    return [
        {"module": name, "shape": asdict(shape), "variant": asdict(module.variants(shape)[0]), "dtype": dtype}
        for shape in module.hostile()
        for dtype in DTYPES
    ]


def run(case: dict[str, object]) -> dict[str, object]:
    """One case: its largest error beside the limit, and what each of its launches moved."""
    import torch

    from .contract import Variant
    from .counting import counted

    began = time.perf_counter()
    module = _module(str(case["module"]))
    shape = module.Shape(**tuples(case["shape"]))
    variant = Variant(**tuples(case["variant"]))
    dtype = str(case["dtype"])
    with counted() as launches:
        found = module.check(shape, variant, getattr(torch, dtype), case.get("seed", 0))
    inexact = [error(check.got, check.wanted) for check in found if check.wanted.is_floating_point()]
    wrong_bits = sum(
        check.got.shape != check.wanted.shape or int((check.got != check.wanted).sum())
        for check in found
        if not check.wanted.is_floating_point()
    )
    return {
        "error": max(inexact, default=0.0),
        "limit": LIMITS[dtype],
        "wrong_bits": int(wrong_bits),
        "right": max(inexact, default=0.0) <= LIMITS[dtype] and not wrong_bits,
        "seconds": time.perf_counter() - began,
        "launches": [
            {
                "kernel": each.kernel,
                "programs": each.programs,
                "read": each.read.distinct,
                "read_by_program": sum(each.read.programs.values()),
                "read_requested": each.read.requested,
                "written": each.written.distinct,
                "balance": each.balance,
            }
            for each in launches
        ],
        "needed": [
            {"kernel": each.kernel.__name__, "bytes_read": each.bytes_read, "bytes_written": each.bytes_written}
            for each in module.launches(shape, variant)
        ],
    }


def error(got: object, wanted: object) -> float:
    """Norm of the difference over the norm of what is wanted; infinite where shapes differ or a number is not one."""
    if got.shape != wanted.shape:
        return float("inf")
    norm = float(wanted.double().norm())
    off = float((got.double() - wanted.double()).norm())
    if off != off:
        return float("inf")
    return off / norm if norm else (float("inf") if off else 0.0)


def planned() -> list[dict[str, object]]:
    """The plan's uses of these kernels, each with its best variant and its flop; none where there is no plan.

    A variant that is kept, but nowhere as the best, runs at the smallest shape that keeps it.
    """
    from dataclasses import asdict

    from .planned import uses

    found = []
    for name in modules():
        module = _module(name)
        left = {}
        kept = [use for use in uses(name, HERE) if use.variants]
        sized = sorted(((_flop(module, use), use) for use in kept), key=lambda pair: pair[0])
        for flop, use in sized:
            for variant in use.variants:
                left.setdefault(variant, (flop, use.shape))
        for flop, use in sized:
            left.pop(use.variants[0], None)
            found.append((name, use.shape, use.variants[0], flop))
        found += [(name, shape, variant, flop) for variant, (flop, shape) in left.items()]
    return [
        {"module": name, "shape": shape, "variant": asdict(variant), "dtype": DTYPES[0], "flop": flop}
        for name, shape, variant, flop in found
    ]


def _flop(module: object, use: object) -> int:
    launches = module.launches(module.Shape(**tuples(use.shape)), use.variants[0])
    return sum(launch.flop for launch in launches)


def serve(asked: TextIO, replies: TextIO) -> None:
    """Answer until the input ends: {"do": "hostile", "module": name} with its cases, "planned" with the plan's, and a
    case with its result."""
    for line in asked:
        request = json.loads(line)
        do = request.pop("do")
        if do == "modules":
            reply: list[object] = [*modules()]
        elif do == "hostile":
            reply = [*cases(request["module"])]
        else:
            reply = [*planned()] if do == "planned" else [run(request)]
        print(json.dumps(reply), file=replies, flush=True)


def check_all() -> int:
    """Run everything and print a line for each; the exit code."""
    every = planned() + [case for name in modules() for case in cases(name)]
    wrong = 0
    for case in every:
        result = run(case)
        wrong += not result["right"]
        verdict = "ok   " if result["right"] else "WRONG"
        print(f"{verdict} {case['module']} {case['dtype']} error {result['error']:.1e} {json.dumps(case['shape'])}")
    print(f"{len(every)} cases, {wrong} wrong")
    return WRONG if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="answer requests on standard input")
    options = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is imported
    if not options.serve:
        return check_all()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, replies)
    return 0


def _module(name: str) -> object:
    return importlib.import_module(f"{__package__}.{name}")


if __name__ == "__main__":
    sys.exit(main())
