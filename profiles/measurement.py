"""What a model is measured with: its weights, the runtime whose formats are priced, the documents, and where pieces of
the work are kept."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from planner.executor import Executor, Progress
from planner.spec import ModelSpec
from profiles.calibration import Calibration
from profiles.parts import Parts
from profiles.weights import CheckpointWeights


@dataclass
class Measurement:
    """One model being measured under one runtime's formats."""

    weights: CheckpointWeights
    spec: ModelSpec
    executor: Executor
    calibration: Calibration
    parts: Parts
    progress: Progress

    @property
    def model(self) -> PreTrainedModel:
        return self.weights.model
