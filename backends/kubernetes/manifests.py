"""Kubernetes objects that serve vLLM's artefact from a volume: KServe's LLMInferenceService and Dynamo's graph.

The artefact lies in a PersistentVolumeClaim that goes with them, named as they are: it is to be copied there once.
"""

import re
from collections.abc import Mapping
from math import ceil

from backends.manifests import argument_list
from backends.vllm.capabilities import VERSIONS as VLLM
from backends.vllm.windows import PLUGIN_FOLDER

GIB = 2**30
LONGEST_NAME = 63

VLLM_IMAGE = f"vllm/vllm-openai:v{VLLM[-1].version}"
DYNAMO_IMAGE = "nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.1"
KSERVE_MODEL, DYNAMO_MODEL = "/mnt/models", "/model"
"""Where the model lies in a container: KServe puts it there itself."""


def label(name: str) -> str:
    """A plan's name as Kubernetes takes names.

    >>> label("SmolLM2 planned"), label("7B: a_plan")
    ('smollm2-planned', 'm-7b-a-plan')
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    named = plain if plain[:1].isalpha() else f"m-{plain}"
    return named[:LONGEST_NAME].rstrip("-")


def claim(name: str, size_bytes: int) -> dict[str, object]:
    """The volume of an artefact of so many bytes, with a tenth more."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{ceil(1.1 * size_bytes / GIB)}Gi"}},
        },
    }


def environment(plugged: bool, model: str) -> dict[str, object]:
    """What lets vLLM find the plugin that comes with an artefact."""
    return {"env": [{"name": "PYTHONPATH", "value": f"{model}/{PLUGIN_FOLDER}"}]} if plugged else {}


def kserve(name: str, arguments: Mapping[str, object], plugged: bool) -> dict[str, object]:
    """An LLMInferenceService whose container is told what serve.yaml says."""
    gpu = {"nvidia.com/gpu": "1"}
    probe = {"httpGet": {"path": "/health", "port": 8000, "scheme": "HTTP"}, "periodSeconds": 10}
    told = {key: value for key, value in arguments.items() if key != "model"}
    return {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": f"pvc://{name}/", "name": name},
            "replicas": 1,
            "router": {"route": {}, "gateway": {}, "scheduler": {}},
            "template": {
                "containers": [
                    {
                        "name": "main",
                        "image": VLLM_IMAGE,
                        "command": ["vllm", "serve", KSERVE_MODEL],
                        "args": argument_list({**told, "served-model-name": name, "port": 8000}),
                        **environment(plugged, KSERVE_MODEL),
                        "resources": {"limits": gpu, "requests": gpu},
                        "livenessProbe": {**probe, "initialDelaySeconds": 120, "failureThreshold": 6},
                        "readinessProbe": {**probe, "initialDelaySeconds": 30, "failureThreshold": 60},
                    }
                ]
            },
        },
    }


def dynamo(name: str, arguments: Mapping[str, object], plugged: bool) -> dict[str, object]:
    """A DynamoGraphDeployment of a frontend and one worker, which is told what serve.yaml says."""
    worker = {
        "name": "main",
        "image": DYNAMO_IMAGE,
        "command": ["python3", "-m", "dynamo.vllm"],
        "args": argument_list({**arguments, "model": DYNAMO_MODEL, "served-model-name": name}),
        **environment(plugged, DYNAMO_MODEL),
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
        "volumeMounts": [{"name": "model", "mountPath": DYNAMO_MODEL, "readOnly": True}],
    }
    volume = {"name": "model", "persistentVolumeClaim": {"claimName": name}}
    frontend = {"containers": [{"name": "main", "image": DYNAMO_IMAGE}]}
    return {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": name},
        "spec": {
            "components": [
                {"name": "Frontend", "type": "frontend", "replicas": 1, "podTemplate": {"spec": frontend}},
                {
                    "name": "VllmWorker",
                    "type": "worker",
                    "replicas": 1,
                    "podTemplate": {"spec": {"containers": [worker], "volumes": [volume]}},
                },
            ]
        },
    }
