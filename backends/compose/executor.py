"""A model planned for vLLM in one container: compose.yaml beside the artefact, which it mounts.

`docker compose up` in the directory serves it on port 8000. There is no engine here that could run it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from backends.manifests import AroundVllm, Schema, argument_list, as_yaml, note
from backends.vllm.capabilities import VERSIONS as VLLM
from backends.vllm.serve import arguments
from backends.vllm.windows import PLUGIN_FOLDER, plugin, windows
from planner.executor import Artifact, Capabilities
from planner.plan import Plan
from planner.spec import ModelSpec

VERSIONS = (replace(VLLM[-1], runtime="compose", version="2.40"),)
SCHEMA = Schema.of(Path(__file__).parent)
MANIFEST = "compose.yaml"
MODEL = "/model"
IMAGE = f"vllm/vllm-openai:v{VLLM[-1].version}"


@dataclass
class ComposeExecutor(AroundVllm):
    """docker compose around vLLM for one model."""

    table: ClassVar[Capabilities] = VERSIONS[-1]

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        told = arguments(plan, spec, self.weights.config)
        plugged = bool(plugin(windows(plan, spec)))
        return (
            *super().emit(plan, spec),
            as_yaml(MANIFEST, SCHEMA, project(told, plugged)),
            note("docker compose", [SCHEMA]),
        )


def project(arguments: dict[str, object], plugged: bool) -> dict[str, object]:
    """compose.yaml: one service that serves the directory it lies in."""
    environment = {"environment": {"PYTHONPATH": f"{MODEL}/{PLUGIN_FOLDER}"}} if plugged else {}
    gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    return {
        "services": {
            "vllm": {
                "image": IMAGE,
                "command": argument_list({**arguments, "model": MODEL}),
                **environment,
                "volumes": [{"type": "bind", "source": ".", "target": MODEL, "read_only": True}],
                "ports": ["8000:8000"],
                "ipc": "host",
                "deploy": {"resources": {"reservations": {"devices": [gpu]}}},
                "healthcheck": {
                    "test": ["CMD", "curl", "-f", "http://localhost:8000/health"],
                    "interval": "10s",
                    "retries": 60,
                },
            }
        }
    }
