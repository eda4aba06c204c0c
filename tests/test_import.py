"""Published plans all the way: imported, explained, compared, carried out and proved; and what ends in one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from planner.artefact import PLAN
from planner.cli import main
from planner.plan import Plan
from planner.serde import dump_file, load_file
from planner.space import Full, KvChoice, KvSite, Window

DATA = Path(__file__).parent / "profiles" / "data" / "plans"
Tiny = Callable[[str], Path]

pytestmark = pytest.mark.usefixtures("planner_cache")


def planner(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def refused(told: Result, code: int, *parts: str) -> None:
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (code, "", 1), told.output
    for part in parts:
        assert part in told.stderr


def model_yaml(directory: Path, contexts: str = "[16384]", goal: str = "{minimise: loss_nats}") -> Path:
    path = directory / "model.yaml"
    path.write_text(
        "schema: planner/model@1\nsource: {config: config.json}\n"
        f"workload: {{context_tokens: {contexts}, new_tokens: 16}}\ngoal: {goal}\n"
    )
    return path


@pytest.fixture
def llama_1b(tmp_path: Path) -> Path:
    """A model.yaml of Llama-3.2-1B's shapes, but for a small vocabulary."""
    shapes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    config = {"model_type": "llama", "vocab_size": 320, "num_key_value_heads": 8, "max_position_embeddings": 131072}
    (tmp_path / "config.json").write_text(json.dumps({**config, **shapes}))
    return model_yaml(tmp_path)


@pytest.fixture
def six_heads(tmp_path: Path) -> Path:
    """A model.yaml of one layer whose six heads share nothing."""
    shapes = {"hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 6}
    config = {"model_type": "llama", "vocab_size": 320, "num_key_value_heads": 6, "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps({**config, **shapes}))
    return model_yaml(tmp_path, "[1024]")


# --- shapes alone -------------------------------------------------------------------------------


def test_a_moa_plan_says_both_densities_and_what_it_takes(llama_1b: Path, tmp_path: Path) -> None:
    args = ("import", "moa", DATA / "moa_llama-3.2-1b.json", "--model", llama_1b, "--target", "a100")
    told = planner(*args, "-o", tmp_path / "plan.yaml")
    assert told.exit_code == 0
    assert told.stdout.splitlines()[:3] == [
        "moa_llama-3.2-1b.json: a plan of MoA for 16 layers, told for query heads; 512 query heads share 128 KV heads",
        "density at 16,384 tokens: 0.464 as published, each query head by itself; 0.633 as it costs on KV heads",
        "80 of 128 KV heads have query heads that disagree; each keeps what the largest asks for",
    ]
    report = json.loads(planner(*args, "-o", tmp_path / "again.yaml", "--json").stdout)
    assert report["density"] == [{"context_tokens": 16384, "published": 0.4639892578125, "folded": 0.6328125}]
    dense, plan = report["dense"]["predicted"], report["planned"]["predicted"]
    assert plan["kv_bytes"] == 0.6328125 * dense["kv_bytes"] and plan["decode_s"]["value"] < dense["decode_s"]["value"]
    assert plan["loss_nats"] is None
    assert (tmp_path / "plan.yaml").read_bytes() == (tmp_path / "again.yaml").read_bytes()


def test_an_imported_plan_is_explained_compared_and_compiled_like_any_other(llama_1b: Path, tmp_path: Path) -> None:
    one, two, out = tmp_path / "one.yaml", tmp_path / "two.yaml", tmp_path / "out"
    for path, name in ((one, "moa_llama-3.2-1b.json"), (two, "moa_streamingllm_llama-3.2-1b.json")):
        args = ("import", "moa", DATA / name, "--model", llama_1b, "--target", "a100", "-o", path)
        assert planner(*args).exit_code == 0
    told = planner("explain", one).stdout
    assert "passes import-moa{file=moa_llama-3.2-1b.json;sha256=c04ec9c6a13b" in told
    assert "30 heads: newest -64 + 0.875 of context, 64 sinks, k 16-bit float" in told
    assert "layer 1 kv head 1: newest -64 + 0.125 of context" in planner("diff", one, two).stdout
    assert planner("compile", llama_1b, "--plan", one, "--target", "a100", "-o", out).exit_code == 0
    compiled, imported = load_file(out / PLAN, Plan), load_file(one, Plan)
    assert compiled.kv == imported.kv and compiled.provenance.passes == imported.provenance.passes
    assert compiled.predicted == imported.predicted
    assert not list(out.glob("*.safetensors"))


def test_several_lengths_are_covered_by_one_window(llama_1b: Path, tmp_path: Path) -> None:
    path = model_yaml(tmp_path, "[2048, 8192, 32768]")
    args = ("import", "moa", DATA / "moa_llama-3.2-1b.json", "--model", path, "--target", "a100", "--json")
    report = json.loads(planner(*args, "-o", tmp_path / "plan.yaml").stdout)
    assert [d["context_tokens"] for d in report["density"]] == [2048, 8192, 32768]
    assert all(d["folded"] >= d["published"] for d in report["density"])


def test_duo_and_prefixkv_say_what_does_not_carry_over(llama_1b: Path, tmp_path: Path) -> None:
    gates, shares = tmp_path / "gates.tsv", tmp_path / "shares.json"
    gates.write_text("\n".join("\t".join(str((7 * i + 3 * j) % 10 / 10) for j in range(8)) for i in range(16)))
    shares.write_text(json.dumps([0.5] * 16))
    base = ("--model", llama_1b, "--target", "a100", "-o", tmp_path / "plan.yaml")
    told = planner("import", "duo", gates, "--sinks", 64, "--recent", 256, *base).stdout
    assert "64 of 128 KV heads stream" in told and "the first chunk of a prompt" in told
    assert "0.510 as published, each query head by itself; 0.510 as it costs on KV heads" in told
    told = planner("import", "prefixkv", shares, *base).stdout
    assert "0.500 as published" in told and "they are the newest" in told and "disagree" not in told


def test_a_runtime_of_two_kinds_of_heads_gets_the_nearest_plan_and_says_what_that_costs(
    six_heads: Path, tmp_path: Path
) -> None:
    rules = [(192, 0.0), (256, 0.0), (192, 0.0), (512, 0.0), (512, 0.0), (512, 0.0)]
    told = {"alphas": [[alpha for alpha, _ in rules]], "betas": [[beta for _, beta in rules]]}
    (tmp_path / "moa.json").write_text(json.dumps(told))
    plan = tmp_path / "plan.yaml"
    args = ("import", "moa", tmp_path / "moa.json", "--model", six_heads, "--target", "laptop-cpu", "-o", plan)
    assert planner(*args).exit_code == 0
    kept = {}
    for backend in ("onnxruntime", "transformers"):
        out = tmp_path / backend
        base = ("compile", six_heads, "--plan", plan, "--target", "laptop-cpu", "--backend", backend, "-o", out)
        result = planner(*base)
        assert result.exit_code == 0
        assert ("2 heads keep more than planned" in result.stdout) == (backend == "onnxruntime")
        kept[backend] = [choice.span for _, choice in load_file(out / PLAN, Plan).kv]
    assert kept["transformers"] == [Window(alpha - 64) for alpha, _ in rules]
    assert kept["onnxruntime"] == [*(Window(192),) * 3, *(Window(448),) * 3]


# --- weights ------------------------------------------------------------------------------------


def test_a_given_plan_is_run_and_proved(compiled: tuple[Path, Path, Result], tmp_path: Path) -> None:
    """On both runtimes: the bytes are as predicted, and the artefact verifies."""
    model, gates, plan = compiled[0], tmp_path / "gates.tsv", tmp_path / "plan.yaml"
    gates.write_text("0.9\t0.1\n0.2\t0.8\n0.3\t0.4\n")
    base = ("--model", model, "--target", "laptop-cpu", "-o", plan)
    assert planner("import", "duo", gates, "--sinks", 6, "--recent", 10, *base).exit_code == 0
    loose = tmp_path / "loose.yaml"
    loose.write_text(model.read_text().replace("kv_share: 0.5", "kv_share: 2"))
    args = ("compile", loose, "--plan", plan, "--target", "laptop-cpu", "-o", tmp_path / "out", "--json")
    report = json.loads(planner(*args).stdout)
    predicted, measured = report["planned"]["predicted"], report["planned"]["measured"]
    assert report["shipped"] == "planned" and report["uniform"] is None
    assert predicted["kv_bytes"] == measured["kv_bytes"] == (3 * 64 + 3 * 16) * 2 * 16 * 4
    assert predicted["loss_nats"]["value"] > 0 and measured["loss_nats"]["value"] > 0
    carried = load_file(tmp_path / "out" / PLAN, Plan)
    assert carried.chosen[KvSite(0, 1)] == load_file(plan, Plan).chosen[KvSite(0, 1)]
    assert carried.quality_verified
    assert planner("verify", tmp_path / "out", "--documents", 1).exit_code == 0
    assert planner("run", tmp_path / "out", "--prompt", "The river", "--max-new-tokens", 4).exit_code == 0

    tight = ("compile", model, "--plan", plan, "--target", "laptop-cpu", "-o", tmp_path / "none")
    refused(planner(*tight), 4, str(plan), "kv_share of 1.25 where at most 0.5 was asked", "loosen")
    assert not (tmp_path / "none").exists()


def test_a_plan_of_our_own_can_be_given_too(compiled: tuple[Path, Path, Result], tmp_path: Path) -> None:
    model, out, _ = compiled
    told = planner("compile", model, "--plan", out / PLAN, "--target", "laptop-cpu", "-o", tmp_path / "out")
    assert told.exit_code == 0 and "the plan was given" in told.stdout
    one, two = load_file(out / PLAN, Plan), load_file(tmp_path / "out" / PLAN, Plan)
    assert (one.kv, one.weights) == (two.kv, two.weights)
    assert one.predicted is not None and two.predicted is not None
    assert one.predicted.loss_nats == two.predicted.loss_nats


# --- what ends badly ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        (("moa", "none.json", "--model", "MODEL"), 1, ("none.json: cannot be read",)),
        (("moa", "MOA", "--model", "none.yaml"), 1, ("none.yaml: cannot be read",)),
        (("moa", "MOA", "--model", "MODEL", "--target", "a1000"), 1, ("did you mean 'a100'?",)),
        (("moa", "MOA", "--model", "MODEL", "-o", "none/plan.yaml"), 1, ("cannot be written",)),
        (("prefixkv", "MOA", "--model", "MODEL"), 1, ("found a mapping; needs a list",)),
        (("duo", "MOA", "--model", "MODEL"), 1, ("found 1 layers; the model has 16",)),
        (("duo", "MOA", "--model", "MODEL", "--sparsity", "2"), 1, ("sparsity: found 2.0",)),
        (("moa", "MOA"), 2, ("Usage: main import moa",)),
    ],
)
def test_an_import_that_cannot_be_is_one_line(
    args: tuple[str, ...], code: int, parts: tuple[str, ...], llama_1b: Path, tmp_path: Path
) -> None:
    names = {"MODEL": str(llama_1b), "MOA": str(DATA / "moa_llama-3.2-1b.json")}
    target = () if "--target" in args else ("--target", "a100")
    out = () if "-o" in args else ("-o", str(tmp_path / "plan.yaml"))
    told = planner("import", *(names.get(arg, arg) for arg in args), *target, *out)
    assert not (tmp_path / "plan.yaml").exists()
    if code == 2:
        assert (told.exit_code, told.stdout) == (2, "") and parts[0] in told.stderr
    else:
        refused(told, code, *parts)


def test_a_given_plan_that_does_not_fit_is_told(six_heads: Path, tmp_path: Path) -> None:
    (tmp_path / "moa.json").write_text(json.dumps({"alphas": [[192] * 6], "betas": [[0] * 6]}))
    given, out, lost = tmp_path / "plan.yaml", tmp_path / "out", tmp_path / "lost.yaml"
    imported = ("import", "moa", tmp_path / "moa.json", "--model", six_heads, "--target", "a100", "-o", given)
    assert planner(*imported).exit_code == 0
    plan = load_file(given, Plan)
    dump_file(replace(plan, kv=plan.kv[:-1]), lost)
    compile_it = ("compile", six_heads, "--target", "a100", "-o", out, "--plan")
    refused(planner(*compile_it, tmp_path / "none.yaml"), 1, "none.yaml", "cannot be read")
    refused(planner(*compile_it, lost), 1, "lost.yaml: kv: found 5 KV heads", "the model has 6")
    refused(planner(*compile_it, six_heads), 1, "$.schema: expected planner/plan@1")
    assert planner(*compile_it, given, "--passes", "assign").exit_code == 2
    tight = model_yaml(tmp_path, "[1024]", "{minimise: loss_nats, limits: {kv_share: 0.1}}")
    refused(planner("compile", tight, "--target", "a100", "-o", out, "--plan", given), 4, "kv_share of 0.1875")
    assert not out.exists()


def test_a_window_that_drops_nothing_and_another_length_are_told(six_heads: Path, tmp_path: Path) -> None:
    (tmp_path / "moa.json").write_text(json.dumps({"alphas": [[192, 512] * 3], "betas": [[0] * 6]}))
    given, out = tmp_path / "plan.yaml", tmp_path / "out"
    imported = ("import", "moa", tmp_path / "moa.json", "--model", six_heads, "--target", "a100", "-o", given)
    assert planner(*imported).exit_code == 0
    shorter = model_yaml(tmp_path, "[256]")
    told = planner("compile", shorter, "--target", "laptop-cpu", "-o", out, "--plan", given)
    assert "made for contexts of 1024 tokens, and this is for 256" in told.stdout
    assert "that the runtime does not store and take the dense one; KV cache" in told.stdout
    choices = [choice for _, choice in load_file(out / PLAN, Plan).kv]
    assert [isinstance(choice.span, Full) for choice in choices] == [False, True] * 3
    assert all(isinstance(choice, KvChoice) and choice.tier == (("dram", 1.0),) for choice in choices)
