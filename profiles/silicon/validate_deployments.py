"""Predicts a table of measured deployments in every way the planner can, and reports how far each is off."""

from pathlib import Path

from planner.errors import InputError
from planner.operators.roofline import Roofline
from planner.operators.step import Operators
from profiles.silicon.deployment_report import DeploymentReport, compare
from profiles.silicon.deployments import Deployment, read_deployments
from profiles.silicon.engine_fit import Predicted, bare, leave_one_model_out
from profiles.silicon.fitted_operators import benchmarked, deployed
from profiles.silicon.measured_operators import MeasuredOperators, framework_tables
from profiles.targets import gpu_sheet


def validate_deployments(path: Path, target: str | None, silicon: Path | None) -> DeploymentReport:
    """Deployments of dense models on a GPU against predictions from its operators.

    `target` is a GPU target; left out, it is the one system that the table names. `silicon` is a directory of the GPU's
    measured tables: with it predictions by the formulae backed by these come first.

    InputError where a file is broken, the target unknown, or the table is of several systems and none is chosen.
    """
    deployments, notes = read_deployments(path)
    name = target or _only_system(deployments, path)
    sheet = gpu_sheet(name)
    ours = tuple(one for one in deployments if one.system in ("", name))
    if not ours:
        systems = ", ".join(sorted({one.system for one in deployments}))
        raise InputError(f"{path}: no deployment on {name}; its rows are of {systems}")
    if len(ours) < len(deployments):
        notes = (*notes, f"{len(deployments) - len(ours)} rows of other systems")
    frameworks = sorted({one.framework for one in ours})
    predictors: dict[str, Predicted] = {}
    if silicon is not None:
        tables = framework_tables(silicon)
        backed: dict[str, Operators] = {
            framework: MeasuredOperators(tables[framework], deployed(sheet, framework), benchmarked(sheet, framework))
            if framework in tables
            else deployed(sheet, framework)
            for framework in frameworks
        }
        predictors["with tables"] = leave_one_model_out(sheet, backed, ours)
    formulae: dict[str, Operators] = {framework: deployed(sheet, framework) for framework in frameworks}
    predictors["formula"] = leave_one_model_out(sheet, formulae, ours)
    rooflines: dict[str, Operators] = {framework: Roofline(sheet) for framework in frameworks}
    predictors["roofline"] = bare(sheet, rooflines, ours)
    return compare(name, ours, predictors, notes)


def _only_system(deployments: tuple[Deployment, ...], path: Path) -> str:
    systems = sorted({one.system for one in deployments})
    if len(systems) > 1 or not systems[0]:
        found = ", ".join(systems) if systems[0] else "none"
        raise InputError(f"{path}: column system names {found}; say which with --target")
    return systems[0]
