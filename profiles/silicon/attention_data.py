"""The fitted attention models that come with the planner: which one predicts for a GPU, and how far off it was."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from planner.operators.attention import AttentionModel
from planner.operators.sheet import GpuSheet
from planner.serde import load_file
from profiles.silicon.regimes import Accuracy

_DEFAULT = "vllm"

DIRECTORY = Path(__file__).parent / "operators"

# By phase and regime: "decode, all".
Errors = Mapping[str, Accuracy]


@dataclass(frozen=True, slots=True)
class FrameworkAttention:
    """One framework's attention on one GPU, and its error on the shapes that were kept out of the fit."""

    version: str
    model: AttentionModel
    errors: Errors


@dataclass(frozen=True, slots=True)
class FittedAttention:
    """The attention models of one GPU, fitted to its measured tables."""

    gpu: str
    date: str
    source: str
    licence: str
    frameworks: Mapping[str, FrameworkAttention]


@dataclass(frozen=True, slots=True)
class AttentionTransfer:
    """What a GPU is given that has a data sheet and no measurements: another GPU's fit.

    `nearest` maps architectures to that GPU, `otherwise` is for all others. `errors` are of predicting a GPU left out,
    by "framework, fitted GPU to predicted GPU".
    """

    date: str
    nearest: Mapping[str, str]
    otherwise: str
    errors: Mapping[str, Errors]


@dataclass(frozen=True, slots=True)
class Prediction:
    """An attention model for a GPU, the GPU and framework it was fitted on, and its error.

    The error is that fit's own on shapes it did not see, or, of a GPU that was not fitted, what predicting a GPU left
    out has shown.
    """

    model: AttentionModel
    fitted_on: str
    framework: str
    errors: Errors


def attention_model(sheet: GpuSheet, framework: str) -> Prediction:
    """The model for a GPU and a framework; one that no fit knows is taken for vLLM.

    >>> from profiles.targets import gpu_sheet
    >>> attention_model(gpu_sheet("h100"), "vllm").fitted_on
    'h100'
    >>> attention_model(gpu_sheet("l40s"), "vllm").fitted_on
    'a100'
    """
    if _path(sheet.name).exists():
        document = fitted(sheet.name)
        known = framework if framework in document.frameworks else _DEFAULT
        own = document.frameworks[known]
        return Prediction(own.model, sheet.name, known, own.errors)
    rules = transfer()
    document = fitted(rules.nearest.get(sheet.architecture, rules.otherwise))
    known = framework if framework in document.frameworks else _DEFAULT
    return Prediction(document.frameworks[known].model, document.gpu, known, _worst(rules, known))


def _worst(rules: AttentionTransfer, framework: str) -> dict[str, Accuracy]:
    """The larger error in every regime of the GPUs that were left out."""
    worst: dict[str, Accuracy] = {}
    for key, errors in rules.errors.items():
        if key.startswith(f"{framework}, "):
            worst |= {name: one for name, one in errors.items() if name not in worst or one.mape > worst[name].mape}
    return worst


def fitted(gpu: str) -> FittedAttention:
    """The document of one GPU."""
    return load_file(_path(gpu), FittedAttention)


def transfer() -> AttentionTransfer:
    return load_file(_path("transfer"), AttentionTransfer)


def _path(gpu: str) -> Path:
    return DIRECTORY / f"attention-{gpu}.yaml"
