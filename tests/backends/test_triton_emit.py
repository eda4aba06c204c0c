"""Kernels beside a plan: the folder runs by itself with torch and triton, and the check finds what is wrong in it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backends.triton.chips import chip, occupancy
from backends.triton.emit import kernel_files, summary
from backends.triton.predicted import Gpu, Work
from backends.triton.report import Resources
from backends.triton.search import DroppedVariant, FoundKernel, KeptLaunch, KeptVariant, Search, Use, Variant, use
from backends.triton.sources import KERNELS
from backends.triton.uses import PlannedUse, planned_uses
from planner import artefact
from planner.cli import main
from planner.executor import Artifact
from planner.formats import grouped, rotated
from planner.goal import Workload
from planner.plan import trial
from planner.space import FLOAT16, Full, KvChoice, KvSite, Site, WeightChoice, WeightFormat, WeightSite, Window
from planner.spec import LayerSpec, ModelSpec, TensorSpec

HERE = Path(__file__).parent
HEADER = artefact.Header("none", "1", "0" * 64, "test")
SHAPE = use("product", {"rows": 33, "inner": 32, "cols": 20})
TILES = (("BLOCK_M", 32), ("BLOCK_N", 32), ("BLOCK_K", 32))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact that is one kernel and a plan for it; its binary is four bytes, for nothing here loads it."""
    folder = tmp_path_factory.mktemp("kernels") / "kernels"
    shutil.copytree(HERE / "kernels", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("contract", "checking", "counting", "numerics", "planned"):
        shutil.copy(KERNELS / f"{name}.py", folder)
    search = Search(Gpu("a100", "sm_80", 108, 1e12, 1e14, 0.0), tmp_path_factory.mktemp("store"), folder)
    found = {SHAPE: found_by_hand(search, SHAPE)}
    directory = tmp_path_factory.mktemp("artefact") / "out"
    artefact.write(directory, kernel_files(search, [PlannedUse(SHAPE, "decode", ("layer 0",))], found), HEADER)
    return directory


def found_by_hand(search: Search, of: Use) -> FoundKernel:
    from backends.triton.binary import Binary

    resources = Resources(4, 56, 0, 4096, occupancy(chip("sm_80"), 4, 56, 4096))
    search.store.keep("0" * 64, Binary("product_kernel", resources, b"\x7fELF", ".target sm_80"))
    launch = KeptLaunch("product_kernel", "0" * 64, {}, {}, "product_kernel", Work(2, 1, 1, 1), resources, 1, 1e-6)
    kept = KeptVariant(Variant(TILES, 4, 2), 1e-6, (launch,))
    dropped = DroppedVariant(Variant(TILES, 1, 2), "product_kernel", "spills 8 bytes of a thread's registers")
    return FoundKernel(of.module, of.shape, "sm_80", (kept,), 1, (dropped,))


def test_the_folder_holds_modules_binaries_and_numbers(out: Path) -> None:
    kernels = out / "kernels"
    for path in KERNELS.glob("co*.py"):
        assert (kernels / path.name).read_bytes() == path.read_bytes()
    (use_of,) = json.loads((kernels / "layers.json").read_text(encoding="utf-8"))["uses"]
    assert use_of["shape"] == json.loads(SHAPE.shape) and use_of["serves"] == ["layer 0"]
    assert use_of["variants"] == [{"tiles": [list(tile) for tile in TILES], "num_warps": 4, "num_stages": 2}]
    (told,) = json.loads((kernels / "resources.json").read_text(encoding="utf-8"))["kernels"]
    (launch,) = told["kept"][0]["launches"]
    assert (launch["resources"]["registers"], launch["resources"]["spilled_bytes"]) == (56, 0)
    assert (kernels / launch["binary"]).read_bytes() == b"\x7fELF"
    assert told["dropped"][0]["reason"].startswith("spills")


ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("planner", "passes", "backends", "profiles", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv.pop(1))
from kernels import checking
sys.exit(checking.main())
"""


def test_the_folder_runs_by_itself_with_torch_and_triton(out: Path) -> None:
    ran = subprocess.run([sys.executable, "-I", "-B", "-c", ALONE, str(out)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told = ran.stdout.splitlines()
    assert told[-1] == "5 cases, 0 wrong" and '"rows": 33' in told[0]  # the plan's, and two hostile ones of two types


# --- planner check --------------------------------------------------------------------------------


def check(*args: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, args)], catch_exceptions=False)


def test_check_compares_and_counts(out: Path) -> None:
    told = check(out, "--json")
    assert told.exit_code == 0, told.output
    document = json.loads(told.stdout)
    assert (document["wrong"], len(document["cases"])) == (0, 5)
    case = next(each for each in document["cases"] if each["planned"])
    (launch,) = case["launches"]
    # 33 x 32 and 32 x 20 float16: both rows of programs load all of the second, 20 columns of which end in no sector.
    assert launch["read_bytes"] == 33 * 32 * 2 + 32 * 20 * 2
    assert launch["read_by_program_bytes"] == 33 * 32 * 2 + 2 * 32 * 20 * 2 == launch["needed_read_bytes"]
    assert launch["written_bytes"] == 83 * 32  # 33 x 20 float32 end half way in a sector
    assert launch["programs"] == 2 and 1 < launch["balance"] < 2


def test_check_ends_with_4_where_a_kernel_is_wrong_or_raises(out: Path, tmp_path: Path) -> None:
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != artefact.MANIFEST]
    damaged = []
    for path in files:
        content = path.read_bytes()
        if path.name == "product.py":
            content = content.replace(b"for start in range(0, inner, BLOCK_K)", b"for start in range(0, 32, BLOCK_K)")
            content = content.replace(b"random = torch", b"(_,) = range(shape.rows // 33)\n    random = torch")
        damaged.append(Artifact(str(path.relative_to(out)), content))
    artefact.write(tmp_path / "out", damaged, HEADER)
    told = check(tmp_path / "out", "--quick")
    assert told.exit_code == 4
    # Of the plan's 32 inputs none is missed; the 48 of a hostile shape are cut short, and the one row raises.
    assert "wrong: product of float16 at rows=33 inner=48 cols=31: error" in told.stdout
    assert "wrong: product of float16 at rows=1 inner=16 cols=1: ValueError: not enough values" in told.stdout
    assert "2 of 3 kernel cases are wrong" in told.stderr


def test_check_runs_only_what_was_written(out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    (copy / "kernels" / "torch.py").write_text("", encoding="utf-8")
    assert (told := check(copy)).exit_code == 1 and "is no part of the artefact" in told.stderr
    (copy / "kernels" / "torch.py").unlink()
    with (copy / "kernels" / "product.py").open("a", encoding="utf-8") as file:
        file.write("# more\n")
    assert (told := check(copy)).exit_code == 1 and "product.py: differs from the sha256" in told.stderr
    artefact.write(tmp_path / "none", [Artifact("notes", b"")], HEADER)
    assert (told := check(tmp_path / "none")).exit_code == 1 and "holds no kernels" in told.stderr
    assert check(tmp_path).exit_code == 1


# --- which kernels a plan uses --------------------------------------------------------------------

HOME = (("hbm", 1.0),)
FAST = KvChoice(Full(), FLOAT16, FLOAT16, 4, HOME)
SPEC = ModelSpec(
    family="llama",
    source="",
    weights_sha256="",
    hidden_size=64,
    vocab_size=96,
    max_positions=4096,
    layers=(LayerSpec(6, 2, 64), LayerSpec(6, 2, 64, window=100)),
    tensors=(
        TensorSpec("head", -1, 96, 64, native=WeightFormat(8, "native", 32), native_bytes=96 * 64 + 192 * 4),
        TensorSpec("looked_up", -1, 96, 64, active=0.0),
        TensorSpec("up", 0, 128, 64),
        TensorSpec("other", 1, 128, 64),
        TensorSpec("float", 1, 64, 64),
    ),
    other_bytes=0,
)


def uses_of(kv: dict[KvSite, KvChoice], batch: int = 1) -> dict[str, list[PlannedUse]]:
    """The uses of a plan with 3-bit matrices, by module."""
    weights: dict[Site, WeightChoice] = {
        site: WeightChoice(grouped(3), HOME) for site in SPEC.weight_sites if site.tensor not in ("head", "float")
    }
    weights[WeightSite(-1, "head")] = WeightChoice(WeightFormat(8, "native", 32), HOME)
    weights[WeightSite(1, "float")] = WeightChoice(WeightFormat(16), HOME)
    work = Workload((512,), new_tokens=112, batch=batch, prefill_chunk_tokens=128)
    found: dict[str, list[PlannedUse]] = {}
    for each in planned_uses(trial("plan", work, {**kv, **weights}), SPEC, 108):
        found.setdefault(each.use.module, []).append(each)
    return found


def test_heads_stored_alike_share_a_launch_and_equal_layers_a_kernel() -> None:
    narrow = KvChoice(Window(32), rotated(4), rotated(3), 4, HOME)
    found = uses_of({site: narrow if site.kv_head else FAST for site in SPEC.kv_sites}, batch=2)
    shapes = {each.serves: json.loads(each.use.shape) for each in found["decode_attention"]}
    full = shapes[("layer 0 kv heads 0",)]
    assert (full["sinks"], full["slots"], full["k_bits"], full["group"]) == ([4, 4], [508, 508], 16, 3)
    ring = shapes[("layer 0 kv heads 1",)]
    assert (ring["slots"], ring["k_bits"], ring["v_bits"]) == ([32, 32], 4, 3)
    assert shapes[("layer 1 kv heads 0",)]["slots"] == [100, 100]  # the layer's own window, which has no sinks
    prefill = json.loads(found["prefill_attention"][0].use.shape)
    assert (prefill["past"], prefill["lengths"]) == ([272, 272], [128, 128])


def test_packed_matrices_have_products_for_both_phases_and_others_none() -> None:
    found = uses_of(dict.fromkeys(SPEC.kv_sites, FAST))["dequant_matmul"]
    assert sorted((each.serves, each.phase, json.loads(each.use.shape)["m"]) for each in found) == [
        (("head",), "decode", 1),
        (("up", "other"), "decode", 1),
        (("up", "other"), "prefill", 128),
    ]
    head = next(each for each in found if each.serves == ("head",))
    assert json.loads(head.use.shape)["offset"] is None  # it keeps minimums


def test_what_has_no_kernel_is_told_and_why() -> None:
    refused = FoundKernel("product", "{}", "sm_80", (), 0, (), refused="rows: found 0")
    assert summary({SHAPE: refused}) == ("kernels: none of product for {}: rows: found 0",)
