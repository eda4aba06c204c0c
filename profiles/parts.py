"""Named pieces of a long measurement, each kept on disk once it is done: a killed run resumes at the next piece."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from planner.files import write_bytes

Array = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class Parts:
    """A directory of finished pieces. A file is there whole or not at all; an unreadable one is measured again."""

    directory: Path

    def get(self, name: str, measure: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
        """The piece of that name, from disk or measured now and kept."""
        path = self.directory / f"{name}.safetensors"
        if path.is_file():
            try:
                return cast(dict[str, Array], load_file(path))
            except SafetensorError:
                path.unlink()
        self.directory.mkdir(parents=True, exist_ok=True)
        arrays = dict(measure())
        write_bytes(save({key: np.ascontiguousarray(value) for key, value in arrays.items()}), path)
        return arrays
