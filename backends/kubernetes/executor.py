"""A model planned for vLLM on Kubernetes: its artefact, and the objects that serve it by KServe or by Dynamo."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from backends.kubernetes import manifests
from backends.manifests import AroundVllm, Schema, as_yaml, note
from backends.vllm.capabilities import VERSIONS as VLLM
from backends.vllm.serve import arguments
from backends.vllm.windows import plugin, windows
from planner.executor import Artifact, Capabilities
from planner.plan import Plan
from planner.spec import ModelSpec

HERE = Path(__file__).parent
KSERVE = (replace(VLLM[-1], runtime="kserve", version="0.21"),)
DYNAMO = (replace(VLLM[-1], runtime="dynamo", version="1.3.1"),)


@dataclass
class KserveExecutor(AroundVllm):
    """KServe around vLLM for one model."""

    table: ClassVar[Capabilities] = KSERVE[-1]

    def document(self, name: str, arguments: Mapping[str, object], plugged: bool) -> dict[str, object]:
        """The object that serves the artefact."""
        return manifests.kserve(name, arguments, plugged)

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        files = super().emit(plan, spec)
        name, schema = manifests.label(plan.name), Schema.of(HERE, self.table.runtime)
        size = sum(len(f.content) if isinstance(f.content, bytes) else f.content.stat().st_size for f in files)
        told = arguments(plan, spec, self.weights.config)
        document = self.document(name, told, bool(plugin(windows(plan, spec))))
        manifest = as_yaml(f"{self.table.runtime}.yaml", schema, document, manifests.claim(name, size))
        return (*files, manifest, note(self.table.runtime, [schema]))


@dataclass
class DynamoExecutor(KserveExecutor):
    """Dynamo around vLLM for one model."""

    table: ClassVar[Capabilities] = DYNAMO[-1]

    def document(self, name: str, arguments: Mapping[str, object], plugged: bool) -> dict[str, object]:
        return manifests.dynamo(name, arguments, plugged)
