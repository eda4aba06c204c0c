"""Presses are held to bytes at the end of a document, counted as they are stored, and told beside ours cell by cell."""

import json
from pathlib import Path

import pytest

from benchmarks.kv_report import compared, report
from benchmarks.presses import PRESSES, Asked, Budget, Press, counted, held, named, work
from planner.errors import InputError
from planner.goal import Workload
from planner.prices import dense_kv_bytes
from planner.quality import mean_interval, paired_interval
from planner.spec import LayerSpec, ModelSpec

CONTEXT, TAIL, LAYERS, KV_HEADS, HEAD_DIM = 2048, 32, 4, 3, 64
WORKLOAD = Workload((CONTEXT,), new_tokens=16)


def spec(*head_dims: int) -> ModelSpec:
    layers = tuple(LayerSpec(2 * KV_HEADS, KV_HEADS, dim) for dim in head_dims or (HEAD_DIM,) * LAYERS)
    return ModelSpec("toy", "toy", "ab" * 32, 128, 320, 4096, layers, (), 4096)


def slots(kept: int, masked: int = 0) -> dict[str, float]:
    """The worker's count where every head keeps as many of the prompt's tokens."""
    return {"stored_slots": LAYERS * KV_HEADS * (kept + TAIL), "masked_slots": masked}


@pytest.mark.parametrize("share", [1.0, 0.25, 0.125, 0.0625])
def test_what_is_kept_fills_the_share_once_the_rest_is_there(share: float) -> None:
    kept = Budget(CONTEXT, share).kept(TAIL)
    needed, stored = counted(slots(kept), spec())
    assert needed == stored == round(share * dense_kv_bytes(spec(), WORKLOAD))


def test_masked_slots_are_stored_and_not_needed() -> None:
    needed, stored = counted(slots(CONTEXT - TAIL, masked=1000), spec())
    assert stored == dense_kv_bytes(spec(), WORKLOAD)
    assert stored - needed == 1000 * 2 * HEAD_DIM * 2


def test_heads_of_several_sizes_are_not_counted() -> None:
    with pytest.raises(InputError, match=r"heads of sizes \[64, 128\]"):
        counted(slots(10), spec(64, 128))


@pytest.mark.parametrize("share", [0.5, 0.25, 0.125, 0.0625])
@pytest.mark.parametrize("press", [press for press in PRESSES if press.press == "duo"], ids=lambda press: press.name)
def test_as_few_heads_stream_as_will_do(press: Press, share: float) -> None:
    heads, prompt = 90, CONTEXT - TAIL
    window, kept = sum(size for _, size in press.options), Budget(CONTEXT, share).kept(TAIL)
    found = held(press, Budget(CONTEXT, share), TAIL, heads)

    def mean(streaming: int) -> float:
        return (streaming * window + (heads - streaming) * prompt) / heads

    if found is None:
        assert kept < window
        return
    streaming = int(str(found["streaming"]))
    assert mean(streaming) <= kept < mean(streaming - 1)


@pytest.mark.parametrize("press", PRESSES, ids=lambda press: press.name)
def test_a_press_that_has_nothing_to_choose_from_is_not_asked(press: Press) -> None:
    assert held(press, Budget(CONTEXT, 0.0625), 128, 90) is None


def test_all_shares_of_a_prompt_are_asked_at_once() -> None:
    ids = list(range(CONTEXT))
    prompt = ids[: CONTEXT - 8]
    asked = Asked({"d": (ids, TAIL)}, {"p": (prompt, 12)}, (0.25, 0.125), 90, 8, ("text",))
    told = asked.document(Path("model"))
    document, question = told["documents"]["d"], told["prompts"]["p"]  # type: ignore[index]
    names = [each["name"] for each in document["presses"]]
    assert len(set(names)) == len(names)
    assert {name.split()[0] for name in names} == {"0.25", "0.125"}
    kept = {each["name"]: each["kept"] for each in question["presses"]}
    assert kept["0.125 TOVA"] == CONTEXT // 8 - 12 - 8
    json.dumps(told)


def test_a_worker_that_fails_is_told(tmp_path: Path) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho no such press >&2\nexit 3\n")
    failing.chmod(0o755)
    with pytest.raises(InputError, match="ended with 3: no such press"):
        work(failing, Asked({}, {}, (), 1, 8, ()), tmp_path, tmp_path / "cells")


# --- the table ----------------------------------------------------------------------------------


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_the_table_tells_every_cell_and_what_is_not_there(tmp_path: Path) -> None:
    losses = {"planned": [0.01, 0.02], "head-windows": [0.11, 0.12]}
    for method, each in losses.items():
        write(tmp_path / "plans" / f"0.125-{method}.json", {"reached": True, "kv_bytes": 1000})
        for index, loss in enumerate(each):
            score = {"loss_nats": loss, "nll_nats": 1.0}
            write(tmp_path / f"prose-{index}" / f"0.125-{method}.json", {"half": score, "end": score})
    write(tmp_path / "plans" / "0.125-uniform-bits.json", {"reached": False})
    snap, tova = named(0.125, PRESSES[0]), named(0.125, PRESSES[-1])
    for index in range(2):
        cell = {snap: {"loss_nats": 0.5, **slots(224)}}
        write(tmp_path / "kvpress" / f"prose-{index}.json", cell)
    write(tmp_path / "kvpress" / "passkey-0-found.json", {snap: True, tova: False})
    lines = report(tmp_path, ["prose"], 2, [0.125], spec(), WORKLOAD).splitlines()
    rows = {
        name: line
        for line in lines
        for name in ("planned", "head-windows", "uniform-bits", "head-bits")
        if name in line
    }
    assert "0.0150 [0.0100, 0.0200]" in rows["planned"]
    assert "0.1000 [0.1000, 0.1000]" in rows["head-windows"]  # paired: the same above on both documents
    assert "cannot reach" in rows["uniform-bits"]
    assert "not measured" in rows["head-bits"]
    (snapkv,) = (line for line in lines if "SnapKV  " in line and "AdaKV" not in line)
    assert "12.50%" in snapkv and "1 of 1" in snapkv and "0.4850" in snapkv
    (absent,) = (line for line in lines if "TOVA" in line)
    assert "cannot reach" in absent


def test_only_documents_of_both_are_paired() -> None:
    value, above = compared({"a": 0.1, "b": 0.2}, {"b": 0.5, "c": 0.9}, ["a", "b", "c"])
    assert value.startswith("0.7000") and value.endswith("(2 of 3)")
    assert above == "0.3000 [0.3000, 0.3000]"


def test_the_paired_interval_is_narrower_than_either() -> None:
    ours = [0.01 * i for i in range(1, 9)]
    theirs = [loss + 0.05 + 0.001 * (i % 2) for i, loss in enumerate(ours)]
    paired, alone = paired_interval(ours, theirs), mean_interval(theirs)
    assert paired.low > 0.05 - 1e-9
    assert paired.high - paired.low < (alone.high - alone.low) / 10
    assert paired == paired_interval(ours, theirs)
