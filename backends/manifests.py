"""Files for runtimes that are not here: written of a plan, checked against what is known of their fields, never run.

Schemas are ours: the fields that are written and what they may hold, read off the source and version that each names.
A field that a schema does not know is an error, so that nothing is written which the runtime would not read.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import yaml

from backends.vllm.checkpoint import float_name
from backends.vllm.executor import VllmExecutor
from backends.vllm.families import family_of
from planner.errors import InputError
from planner.executor import Artifact, Capabilities

NOTE = "NOT-EXECUTED.txt"
WIDTH = 10**6
"""Lines of YAML are not folded: an argument stays on its line."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON schema, and where what it says was read."""

    path: Path
    source: str
    version: str

    @classmethod
    def of(cls, folder: Path, name: str = "schema") -> "Schema":
        """The schema in a backend's folder."""
        path = folder / f"{name}.json"
        told = json.loads(path.read_text())
        return cls(path, told["x-source"], told["x-version"])

    def check(self, document: Mapping[str, object]) -> None:
        """InputError, with the field, where a document is not what the schema says."""
        try:
            from jsonschema import Draft202012Validator
        except ModuleNotFoundError as error:
            raise InputError("jsonschema is not installed; pip install 'llm-planner[manifests]'") from error
        # As it is read back: tuples are lists, and keys strings.
        plain = json.loads(json.dumps(document))
        for wrong in Draft202012Validator(json.loads(self.path.read_text())).iter_errors(plain):
            where = ".".join(map(str, wrong.absolute_path)) or "the document"
            raise InputError(f"{self.source} {self.version}: {where}: {wrong.message}")


def as_yaml(name: str, schema: Schema, *documents: Mapping[str, object]) -> Artifact:
    """A YAML file, its first document checked; others that go with it are plain Kubernetes."""
    schema.check(documents[0])
    apart = [json.loads(json.dumps(document)) for document in documents]  # what stands twice is written twice
    text = yaml.safe_dump_all(apart, sort_keys=False, width=WIDTH, allow_unicode=True)
    return Artifact(name, text.encode())


def as_json(name: str, schema: Schema, document: Mapping[str, object]) -> Artifact:
    """A JSON file, checked."""
    schema.check(document)
    return Artifact(name, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def note(runtime: str, schemas: Iterable[Schema]) -> Artifact:
    """The file that says what was done with the others, and what was not."""
    known = "; ".join(dict.fromkeys(f"{schema.source}, version {schema.version}" for schema in schemas))
    text = f"Written for {runtime} and checked against the fields of {known}. Nothing here was executed by planner.\n"
    return Artifact(NOTE, text.encode())


def without(files: Iterable[Artifact], names: Iterable[str]) -> tuple[Artifact, ...]:
    """The files but some."""
    dropped = frozenset(names)
    return tuple(file for file in files if file.path not in dropped)


def argument_list(arguments: Mapping[str, object]) -> list[str]:
    """Options as a command line takes them.

    >>> argument_list({"max-model-len": 512, "enable-chunked-prefill": True, "kv-cache-dtype-skip-layers": ["0", "3"]})
    ['--max-model-len', '512', '--enable-chunked-prefill', '--kv-cache-dtype-skip-layers', '0', '3']
    """
    told: list[str] = []
    for name, value in arguments.items():
        told.append(f"--{name}")
        if isinstance(value, list):
            told += map(str, value)
        elif value is not True:
            told.append(str(value))
    return told


def plain_config(config: str) -> dict[str, object]:
    """The source's config.json in the type that floats are written in, without what it leaves open."""
    kept = {name: value for name, value in json.loads(config).items() if value is not None and name != "torch_dtype"}
    return {**kept, "architectures": [family_of(config).architecture], "dtype": float_name(config)}


@dataclass
class AroundVllm(VllmExecutor):
    """A runtime that is given vLLM's checkpoint: its numbers are vLLM's, and what it carries is in `table`."""

    table: ClassVar[Capabilities]

    @property
    def capabilities(self) -> Capabilities:
        """The runtime's own, without windows where vLLM has none for this model."""
        vllm = super().capabilities
        return replace(self.table, spans="full") if vllm.spans == "full" else self.table
