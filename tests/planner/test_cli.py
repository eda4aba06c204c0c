"""The command line: help without heavy imports, one line and one exit code for each kind of failure, JSON alone."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from planner.cli import COMMANDS, Commands, main
from planner.errors import Infeasible, InputError, PlannerError, VerificationFailed
from planner.plan import Plan
from planner.progress import ProgressLine
from planner.serde import dump_file, load_file
from planner.space import KvSite

PLAN = str(Path(__file__).parent / "plans" / "v1.yaml")
HEAVY = ("torch", "numpy", "ortools", "transformers", "networkx", "yaml")


def planner(*args: str) -> click.testing.Result:
    return CliRunner().invoke(main, args)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, planner.cli\n"
        "from click.testing import CliRunner\n"
        f"for args in ([], *([name] for name in {COMMANDS})):\n"
        "    assert CliRunner().invoke(planner.cli.main, [*args, '--help']).exit_code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert found.stdout.strip() == "[]"


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        yield (*path, name)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_help_shows_an_example_of_its_command(path: tuple[str, ...]) -> None:
    told = planner(*path, "--help")
    assert told.exit_code == 0
    assert f"  planner {' '.join(path)}" in told.output


def test_the_example_of_every_help_is_a_command_that_parses() -> None:
    for path in commands():
        command: click.Command = main
        for name in path:
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), name)
            assert found is not None
            command = found
        for line in (command.help or "").splitlines():
            words = line.split("#")[0].split()
            if words[: 1 + len(path)] == ["planner", *path] and not isinstance(command, click.Group):
                rest = " ".join(words[1 + len(path) :]).replace('"', " ").split()
                options = {word for word in rest if word.startswith("-")}
                assert options <= {name for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("compile", "none.yaml"), 1, "Error: none.yaml: cannot be read: no such file or directory\n"),
        (("profile", "model", "none.yaml"), 1, "Error: none.yaml: cannot be read: no such file or directory\n"),
        (("explain", "none.yaml"), 1, "Error: none.yaml: cannot be read: no such file or directory\n"),
        (("diff", PLAN, "none.yaml"), 1, "Error: none.yaml: cannot be read: no such file or directory\n"),
        (("explain", PLAN, "--site", "layer 9"), 1, "Error: --site 'layer 9': no such site in plan smollm2"),
        (("targets", "h1000"), 1, "Error: unknown target 'h1000'; did you mean 'h100'?"),
        (("explain",), 2, "Usage: main explain"),
        (("compil",), 2, "Usage: main"),
        (("run", "out"), 2, "Usage: main run"),
        (("verify", "out", "--documents", "0"), 2, "Usage: main verify"),
        (("profile", "model", "model.yaml", "--seed", "-1"), 2, "Usage: main profile model"),
        (("profile", "model", "model.yaml", "--target", "a100"), 2, "Usage: main profile model"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_its_exit_code_and_nothing_on_stdout(args: tuple[str, ...], code: int, message: str) -> None:
    told = planner(*args)
    assert (told.exit_code, told.stdout) == (code, "")
    assert told.stderr.startswith(message)
    assert code == 2 or told.stderr.count("\n") == 1


class Raises(Commands):
    """The real group with one command, which fails as told."""

    error: BaseException

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        def fail() -> None:
            raise self.error

        return click.Command("fail", callback=fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError, 1), (Infeasible, 3), (VerificationFailed, 4), (KeyboardInterrupt, 130)],
)
def test_each_kind_of_failure_has_its_exit_code(error: type[PlannerError], code: int) -> None:
    group = Raises()
    group.error = error("one\ntwo")
    told = CliRunner().invoke(group, ["fail"])
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (code, "", 1)
    assert told.stderr.startswith("Error: one two" if code != 130 else "Error: stopped; nothing was left half-written")


def test_a_bug_keeps_its_traceback() -> None:
    group = Raises()
    group.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(group, ["fail"], catch_exceptions=False)


@pytest.mark.parametrize(
    "args", [("explain", PLAN), ("diff", PLAN, PLAN), ("explain", PLAN, "--against", PLAN), ("targets",),
             ("targets", "a100"), ("doctor",)]
)  # fmt: skip
def test_json_is_one_document_alone(args: tuple[str, ...]) -> None:
    told = planner(*args, "--json")
    assert told.stderr == ""
    assert isinstance(json.loads(told.stdout), dict)


def test_explain_says_what_was_asked_what_it_costs_and_what_more_would_buy() -> None:
    told = planner("explain", PLAN).stdout
    for part in (
        "smollm2: minimise loss_nats within memory_bytes <= 200,000,000, kv_share <= 0.125",
        "5,898,240",
        "0.0212 [0.015, 0.031]",
        "newest 64 + 0.03125 of context, 4 sinks, k 4-bit rotated, v 3-bit rotated, dram",
        "one more MB of kv_bytes would change loss_nats by -0.0125",
    ):
        assert part in told
    one = planner("explain", PLAN, "--site", "kv head 1").stdout
    assert one.startswith("layer 0 kv head 1: newest 64")
    assert "bound by AtMostDistinct kernel to layer 0 kv head 0: every token" in one


def test_diff_names_what_differs_and_only_that(tmp_path: Path) -> None:
    assert planner("diff", PLAN, PLAN).stdout == "the plans are the same\n"
    plan = load_file(Path(PLAN), Plan)
    first = plan.kv[0][1]
    other = replace(plan, name="other", kv=((KvSite(0, 0), first), (KvSite(0, 1), first)))
    dump_file(other, tmp_path / "other.yaml")
    told = planner("diff", PLAN, str(tmp_path / "other.yaml")).stdout
    assert told.splitlines()[0] == "name: smollm2 -> other"
    assert told.splitlines()[1].startswith("layer 0 kv head 1: newest 64")
    assert len(told.splitlines()) == 2


def steps(stream: io.StringIO, at_s: list[float], calls: list[tuple[str, int, int]]) -> str:
    clock: Callable[[], float] = iter(at_s).__next__
    with ProgressLine(stream, clock) as progress:
        for call in calls:
            progress(*call)
    return stream.getvalue()


def test_a_log_gets_a_line_at_most_every_ten_seconds() -> None:
    calls = [("anchors", done, 10) for done in range(11)]
    told = steps(io.StringIO(), [100.0 + 3 * done for done in range(11)], calls).splitlines()
    assert told == [
        "anchors  1/10  10%  27 s left",
        "anchors  5/10  50%  15 s left",
        "anchors  9/10  90%  3 s left",
        "anchors  10/10  100%  took 30 s",
    ]


def test_short_stages_say_nothing() -> None:
    calls = [("a", 0, 2), ("a", 1, 2), ("a", 2, 2), ("b", 0, 1), ("b", 1, 1)]
    assert steps(io.StringIO(), [0, 1, 1.9, 2.1, 3.9], calls) == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_line_is_rewritten_and_gone_at_the_end() -> None:
    told = steps(Terminal(), [0, 5, 5.1, 8], [("a", 0, 4), ("a", 1, 4), ("a", 2, 4), ("a", 3, 4)])
    assert told.startswith("\ra  1/4  25%  15 s left\ra  3/4  75%  3 s left")
    assert "2/4" not in told
    assert told.endswith("\r") and "\n" not in told
