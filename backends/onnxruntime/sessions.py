"""Sessions of graphs whose constants are handed over instead of read from the file beside the graph."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from backends.onnxruntime import runner


def with_constants(
    model: onnx.ModelProto, constants: Mapping[str, NDArray[np.generic]]
) -> onnxruntime.InferenceSession:
    """A session of a graph whose outside constants are these arrays, which it shares."""
    options = runner.options()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) for value in constants.values()]
    options.add_external_initializers(list(constants), values)
    return _session(model, options)


def with_data(model: onnx.ModelProto, data: bytes) -> onnxruntime.InferenceSession:
    """A session of a graph that was changed after it was written, with its artefact's file of constants."""
    options = runner.options()
    options.add_external_initializers_from_files_in_memory([runner.GRAPH_DATA], [data], [len(data)])
    return _session(model, options)


def _session(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
