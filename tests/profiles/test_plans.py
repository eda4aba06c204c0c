"""Published plan files: what the samples hold, and one line for every way in which a file can be wrong."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copy

import pytest

from planner.errors import InputError
from planner.goal import Workload
from planner.published import EVERY_TOKEN, Published, PublishedFile, stored_density
from planner.space import FLOAT16, Full, KvChoice, Site
from planner.spec import LayerSpec, ModelSpec
from profiles.plans.duo import Duo
from profiles.plans.moa import Moa
from profiles.plans.prefixkv import PrefixKv

DATA = Path(__file__).parent / "data" / "plans"
MOA = DATA / "moa_llama-3.2-1b.json"
PREFIX = DATA / "prefixkv_llava-v1.5-7b_0.5.json"
DUO = DATA / "llama-3.1-8b" / "full_attention_heads.tsv"
LONG = Workload((16384,), new_tokens=1024)


def model(layers: int, q_heads: int, kv_heads: int) -> ModelSpec:
    return ModelSpec("llama", "toy", "", 64, 10, 2**20, (LayerSpec(q_heads, kv_heads, 64),) * layers, (), 0)


SHAPES = {
    "moa_llama-3.2-1b.json": model(16, 32, 8),
    "moa_llama-3.2-3b.json": model(28, 24, 8),
    "moa_llama-3-8b-262k.json": model(32, 32, 8),
    "moa_streamingllm_llama-3.2-1b.json": model(16, 32, 8),
}
LLAMA_1B, LLAMA_7B, LLAMA_8B = model(16, 32, 8), model(32, 32, 32), model(32, 32, 8)


def chosen(published: Published, spec: ModelSpec, contexts: tuple[int, ...]) -> Mapping[Site, KvChoice]:
    dense = KvChoice(Full(), FLOAT16, FLOAT16, 0, (("hbm", 1.0),))
    return {
        site: published.choice(rules, spec.layers[site.layer], contexts, dense)
        for site, rules in published.groups(spec)
    }


def folded(published: Published, spec: ModelSpec, context: int) -> float:
    return stored_density(chosen(published, spec, (context,)), spec, context)


# --- what the samples hold ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published", "costs", "mixed"),
    [
        ("moa_llama-3.2-1b.json", 0.4639892578125, 0.6328125, 80),
        ("moa_llama-3.2-3b.json", 0.4463355654761905, 0.5251116071428571, 77),
        ("moa_llama-3-8b-262k.json", 0.4945068359375, 0.672607421875, 136),
        ("moa_streamingllm_llama-3.2-1b.json", 0.5, 0.5, 0),
    ],
)
def test_moa_costs_this_much_more_on_kv_heads(name: str, published: float, costs: float, mixed: int) -> None:
    spec = SHAPES[name]
    found = Moa(DATA / name).read(spec, LONG)
    assert found.density(spec, 16384) == pytest.approx(published, abs=1e-12)
    assert folded(found, spec, 16384) == pytest.approx(costs, abs=1e-12)
    assert found.mixed(spec, 16384) == mixed


def test_moa_costs_what_was_published_where_heads_share_nothing() -> None:
    spec = model(16, 32, 32)
    found = Moa(MOA).read(spec, LONG)
    assert folded(found, spec, 16384) == found.density(spec, 16384) == pytest.approx(0.4639892578125, abs=1e-12)


def test_moa_has_two_rules_a_layer_before_and_after_folding() -> None:
    found = Moa(MOA).read(LLAMA_1B, LONG)
    assert all(len(set(rules)) <= 2 for rules in found.rules)
    spans = chosen(found, LLAMA_1B, (16384,))
    for layer in range(16):
        assert len({choice.span for site, choice in spans.items() if site.layer == layer}) <= 2


def test_moa_sizes_a_cache_in_blocks_and_from_128_tokens_on() -> None:
    found = Moa(MOA).read(LLAMA_1B, LONG)
    smallest = found.rules[3][8]  # 0.125 * N
    assert [smallest.tokens(n) for n in (64, 100, 1000, 2000, 16384)] == [64, 100, 128, 256, 2048]


def test_prefixkv_keeps_what_the_file_says_to_the_token() -> None:
    workload = Workload((626,), new_tokens=16)
    found = PrefixKv(PREFIX).read(LLAMA_7B, workload)
    shares = [1 - forgotten for forgotten in json.loads(PREFIX.read_text())]
    kept = [rules[0].tokens(626) for rules in found.rules]
    assert sum(kept) == 10036 and abs(sum(shares) * 626 - 10036) < 1
    assert all(abs(tokens - share * 626) < 1 for tokens, share in zip(kept, shares, strict=True))
    assert kept[:8] == [554, 476, 410, 266, 270, 187, 320, 346]
    assert folded(found, LLAMA_7B, 626) == found.density(LLAMA_7B, 626) == sum(kept) / (32 * 626)
    assert found.mixed(LLAMA_7B, 626) == 0


def test_prefixkv_keeps_a_protected_token_and_the_newest_in_every_layer(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text("[1, 0, 0.5]")
    spec = model(3, 4, 2)
    found = PrefixKv(tmp_path / "all.json").read(spec, Workload((100,), new_tokens=8))
    assert [rules[0].tokens(100) for rules in found.rules] == [2, 100, 50]
    spans = chosen(found, spec, (100,))
    assert isinstance(spans[spec.kv_sites[2]].span, Full)


@pytest.mark.parametrize(("sparsity", "streaming"), [(0.0, 0), (0.5, 128), (0.75, 192), (1.0, 256)])
def test_duo_streams_that_share_of_the_heads_with_the_lowest_gates(sparsity: float, streaming: int) -> None:
    found = Duo(DUO, sparsity).read(LLAMA_8B, LONG)
    full = [rules[head * 4] == EVERY_TOKEN for rules in found.rules for head in range(8)]
    gates = [min(max(float(gate), 0.0), 1.0) for line in DUO.read_text().splitlines() for gate in line.split("\t")]
    assert full.count(False) == streaming
    lowest = max((gate for gate, kept in zip(gates, full, strict=True) if not kept), default=0.0)
    assert all(gate >= lowest for gate, kept in zip(gates, full, strict=True) if kept)


def test_duo_keeps_what_its_config_says_unless_told_otherwise(tmp_path: Path) -> None:
    found = Duo(DUO).read(LLAMA_8B, LONG)
    assert found.sinks == 128 and found.options == ("sparsity=0.5", "sinks=128", "recent=256")
    assert folded(found, LLAMA_8B, 16384) == found.density(LLAMA_8B, 16384) == (1 + 384 / 16384) / 2
    assert Duo(DUO, sinks=64, recent=192).read(LLAMA_8B, LONG).density(LLAMA_8B, 16384) == (1 + 256 / 16384) / 2
    copy(DUO, tmp_path / "alone.tsv")
    assert Duo(tmp_path / "alone.tsv", sinks=64, recent=256).read(LLAMA_8B, LONG).sinks == 64
    assert "0.951" in found.notes[0] or "0.953" in found.notes[0]


def test_lserve_is_read_as_duo_and_gates_a_little_outside_are_clipped() -> None:
    path = DATA / "mixtral-8x7b" / "full_attention_heads.tsv"
    assert any(float(gate) < 0 for gate in path.read_text().split())
    found = Duo(path).read(LLAMA_8B, LONG)
    assert sum(rules[0] != EVERY_TOKEN for row in found.rules for rules in zip(*[iter(row)] * 4, strict=True)) == 128


# --- what can be wrong --------------------------------------------------------------------------

Make = Callable[[Path], PublishedFile]


def refused(make: Make, spec: ModelSpec, path: Path, *parts: str) -> None:
    """Reading ends in one line that begins with the file and says these parts."""
    with pytest.raises(InputError) as told:
        make(path).read(spec, LONG)
    message = str(told.value)
    assert message.startswith(str(path)) and "\n" not in message, message
    for part in parts:
        assert part in message, message


def changed(field: str, value: object) -> object:
    """The MoA sample with one value replaced, by a path such as alphas.3.7; None removes a field."""
    data = json.loads(MOA.read_text())
    *way, last = [int(step) if step.isdigit() else step for step in field.split(".")]
    there = data
    for step in way:
        there = there[step]
    if value is None:
        del there[last]
    else:
        there[last] = value
    return data


@pytest.mark.parametrize(
    ("field", "value", "parts"),
    [
        ("alphas.3.7", float("nan"), ("alphas[3][7]: found nan", "needs a number from")),
        ("alphas.3.7", float("inf"), ("alphas[3][7]: found inf",)),
        ("alphas.3.7", 1e300, ("alphas[3][7]: found 1e+300", "needs a number")),
        ("alphas.3.7", "64", ("alphas[3][7]: found '64'",)),
        ("alphas.3.7", True, ("alphas[3][7]: found true",)),
        ("alphas.3.7", [], ("alphas[3][7]: found a list",)),
        ("betas.0.0", 1.5, ("betas[0][0]: found 1.5; needs a number from 0 to 1",)),
        ("betas.0.0", -0.125, ("betas[0][0]: found -0.125",)),
        ("alphas.5", [0.0] * 31, ("alphas[5]: found 31 values; the model has 32 query heads",)),
        ("betas.5", [0.0] * 8, ("betas[5]: found 8 values, one for each KV head", "32 query heads")),
        ("alphas.5", 0.0, ("alphas[5]: found 0.0; needs a list",)),
        ("alphas", [], ("alphas: found 0 layers; the model has 16",)),
        ("betas", None, ("betas: is missing; needs alphas and betas",)),
        ("beta", [], ("beta: unknown field; did you mean 'betas'?",)),
    ],
)
def test_a_moa_file_that_is_wrong_is_told_where(
    field: str, value: object, parts: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(changed(field, value)))
    refused(Moa, LLAMA_1B, path, *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[0.5, 0.5]", ("found 2 layers; the model has 32",)),
        ("{}", ("found a mapping; needs a list",)),
        ("[" + "0.5, " * 31 + "NaN]", ("[31]: found nan; needs a number from 0 to 1",)),
        ("[" + "0.5, " * 31 + "1.01]", ("[31]: found 1.01",)),
        ("[" + "0.5, " * 31 + "-0.01]", ("[31]: found -0.01",)),
        ("[" + "0.5, " * 31 + "[0.5]]", ("[31]: found a list",)),
        ("[" * 100_000, ("is not JSON",)),
        ("[" + "9" * 10_000 + "]", ("is not JSON",)),
        ("", ("is not JSON", "fetch the file again")),
    ],
)
def test_a_prefixkv_file_that_is_wrong_is_told_where(text: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    refused(PrefixKv, LLAMA_7B, path, *parts)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("6.054687500000000000e-01", "nan", ("line 1, value 1: found nan; needs a number from -0.05 to 1.05",)),
        ("6.054687500000000000e-01", "2", ("line 1, value 1: found 2.0",)),
        ("6.054687500000000000e-01", "", ("line 1, value 1: found ''",)),
        ("6.054687500000000000e-01", "full", ("line 1, value 1: found 'full'",)),
        ("6.054687500000000000e-01\t", "", ("line 1: found 7 values; the model has 8 KV heads",)),
        ("\t", " ", ("line 1: found 1 values",)),
        ("6.054687500000000000e-01", "0\n0", ("found 33 layers; the model has 32",)),
    ],
)
def test_a_duo_file_that_is_wrong_is_told_where(old: str, new: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "plan.tsv"
    path.write_text(DUO.read_text().replace(old, new))
    refused(lambda file: Duo(file, sinks=1, recent=1), LLAMA_8B, path, *parts)


@pytest.mark.parametrize(
    ("make", "source", "spec"),
    [(Moa, MOA, LLAMA_1B), (PrefixKv, PREFIX, LLAMA_7B), (lambda p: Duo(p, sinks=1, recent=1), DUO, LLAMA_8B)],
)
def test_a_file_that_is_damaged_is_told(make: Make, source: Path, spec: ModelSpec, tmp_path: Path) -> None:
    content = source.read_bytes()
    path = tmp_path / "plan"
    for part in (content[: len(content) // 2], b"", b"\xff\xfe\x00", content[:-2]):
        path.write_bytes(part)
        if part == content[:-2] and source == DUO:
            continue  # a number with a digit less is a number
        refused(make, spec, path)
    refused(make, spec, tmp_path / "none", "cannot be read")
    refused(make, spec, tmp_path, "cannot be read")


@pytest.mark.parametrize(
    ("make", "source", "spec"),
    [(Moa, MOA, LLAMA_8B), (PrefixKv, PREFIX, LLAMA_1B), (Duo, DUO, LLAMA_7B), (Moa, MOA, model(16, 24, 8))],
)
def test_the_plan_of_another_model_is_told(make: Make, source: Path, spec: ModelSpec) -> None:
    refused(make, spec, source, "; the model has", "give the plan that was published for this model")


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ("", "is not JSON"),
        ("[]", "holds no object; give --sinks and --recent"),
        ("{}", "sink_size: found nothing"),
        ('{"sink_size": 64, "recent_size": 0}', "recent_size: found 0; needs a number from 1"),
        ('{"sink_size": 64.5, "recent_size": 256}', "sink_size: found 64.5; needs a whole number"),
        ('{"sink_size": NaN, "recent_size": 256}', "sink_size: found nan"),
    ],
)
def test_a_config_that_says_nothing_of_use_is_told(config: str, part: str, tmp_path: Path) -> None:
    copy(DUO, tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"config\.json: ") as told:
        Duo(tmp_path / DUO.name).read(LLAMA_8B, LONG)
    assert part in str(told.value)


def test_what_streaming_heads_keep_must_be_said_somewhere(tmp_path: Path) -> None:
    copy(DUO, tmp_path)
    for given in (Duo(tmp_path / DUO.name), Duo(tmp_path / DUO.name, sinks=4)):
        with pytest.raises(
            InputError, match="is not there to say what streaming heads keep; give --sinks and --recent"
        ):
            given.read(LLAMA_8B, LONG)


@pytest.mark.parametrize("wrong", [{"sparsity": 1.5}, {"sparsity": float("nan")}, {"sinks": -1}, {"recent": 0}])
def test_a_deployment_that_cannot_be_is_told(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(wrong))}: found "):
        Duo(DUO, **wrong)  # type: ignore[arg-type]
