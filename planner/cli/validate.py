"""planner validate: how far predictions are from measurements that somebody has."""

from importlib.util import find_spec
from pathlib import Path

import click

from planner.cli.output import PATH, json_option, show
from planner.errors import InputError

EXTRA = ("pyarrow", "scipy")


@click.group("validate", short_help="How far predictions are from measurements.")
def command() -> None:
    """Compare predictions with measurements of GPU operators, or of whole deployments.

    \b
    planner validate silicon h100_sxm --target h100
    planner validate deployments end_to_end.csv --silicon h100_sxm

    The tables are laid out as NVIDIA aiconfigurator's.
    """


@command.command("silicon")
@click.argument("directory", type=PATH, metavar="DIR")
@click.option("--target", required=True, metavar="NAME", help="The GPU measured; one of 'planner targets', or a file.")
@click.option("--framework", metavar="NAME", help="Only the tables of this framework, such as vllm.")
@json_option
def silicon_command(directory: Path, target: str, framework: str | None, as_json: bool) -> None:
    """Errors of predicted matrix products and attention on measured shapes that no fit saw, by regime.

    \b
    planner validate silicon h100_sxm --target h100 --framework vllm

    Beside the formula: the formula backed by the rest of the table, a pure roofline, and a roofline with three
    constants fitted to the same rows.
    """
    _installed()
    from profiles.silicon.validate import validate_silicon

    show(validate_silicon(directory, target, framework), as_json)


@command.command("deployments")
@click.argument("table", type=PATH, metavar="CSV")
@click.option("--target", metavar="NAME", help="The GPU deployed on; the table's only system if left out.")
@click.option(
    "--silicon", type=PATH, metavar="DIR", help="Measured operators of the GPU, to back the formulae with as well."
)
@json_option
def deployments_command(table: Path, target: str | None, silicon: Path | None, as_json: bool) -> None:
    """Errors of predicted time to first token and per token of served models: dense, aggregated, tensor parallel.

    \b
    planner validate deployments end_to_end.csv --target h100 --silicon h100_sxm

    The two constants of every framework's engine are fitted on the table's other models, never on the one predicted.
    """
    _installed()
    from profiles.silicon.validate_deployments import validate_deployments

    show(validate_deployments(table, target, silicon), as_json)


def _installed() -> None:
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise InputError(f"validating needs {' and '.join(missing)}; pip install llm-planner[silicon]")
