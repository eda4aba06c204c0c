"""What backends share in artefacts: files that stand alone there, and a runner's refusals as errors of this project.

Runners stand alone in their artefacts, so each has an error class of its own.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from planner.errors import InputError, TamperedArtifact


def json_bytes(value: object) -> bytes:
    """A JSON file's content."""
    return (json.dumps(value, indent=1) + "\n").encode()


def beside_runner(source: str) -> bytes:
    """A module's source for an artefact directory, where the files it imports lie beside it and this project does not.

    >>> beside_runner("from backends.transformers.runner import load\\nfrom backends.kernels.ragged import balance")
    b'from runner import load\\nfrom kernels.ragged import balance'
    >>> beside_runner("from backends.transformers import runner\\nfrom backends.kernels import ragged")
    b'import runner\\nfrom kernels import ragged'
    """
    source = re.sub(r"from backends\.(?:transformers|triton)\.(\w+) import", r"from \1 import", source)
    source = re.sub(r"from backends\.(?:transformers|triton) import", "import", source)
    return source.replace("from backends.kernels", "from kernels").encode()


@contextmanager
def refusals(kind: type[Exception]) -> Iterator[None]:
    """What a runner refuses with its own error is bad input."""
    try:
        yield
    except kind as error:
        raise InputError(str(error)) from error


@contextmanager
def opening(directory: Path, kind: type[Exception]) -> Iterator[None]:
    """What a runner refuses while it opens an artefact means that its files are not those that were written."""
    try:
        yield
    except kind as error:
        raise TamperedArtifact(str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory}: is not an artefact of this runtime ({error})") from error
