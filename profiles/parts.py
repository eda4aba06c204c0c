"""Named pieces of a long measurement, each kept on disk once it is done: a killed run resumes at the next piece."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from planner.files import write_bytes

Arrays = Mapping[str, NDArray[np.float32] | NDArray[np.float64]]


@dataclass(frozen=True)
class Parts:
    """A directory of finished pieces. A file is there whole or not at all; an unreadable one is measured again."""

    directory: Path

    def get(self, name: str, measure: Callable[[], Arrays]) -> dict[str, NDArray[np.float64]]:
        """The piece of that name, from disk or measured now and kept."""
        path = self.directory / f"{name}.safetensors"
        if path.is_file():
            try:
                return dict(load_file(path))
            except SafetensorError:
                path.unlink()
        self.directory.mkdir(parents=True, exist_ok=True)
        arrays = {key: np.ascontiguousarray(value) for key, value in measure().items()}
        write_bytes(save(arrays), path)
        return arrays
