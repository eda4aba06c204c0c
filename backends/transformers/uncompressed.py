"""An artefact's dense counterpart: its own weights under a cache that keeps everything."""

from pathlib import Path

from backends.transformers import runner
from backends.transformers.executor import TransformersSession, load


def uncompressed(directory: Path) -> TransformersSession:
    """The artefact's weights, as stored, under a cache that keeps every token in float32."""
    session = load(directory)
    dims = [layer[0][1].head_dim for layer in session.model.kinds]
    layers: list[list[runner.ClassEntry]] = [
        [
            {
                "heads": sorted(h for kind, _, _ in layer for h in kind.heads),
                "k_bits": 32,
                "v_bits": 32,
                "sinks": 0,
                "alpha": None,
                "beta": 0.0,
                "reach": layer[0][0].reach,
            }
        ]
        for layer in session.model.kinds
    ]
    return TransformersSession(runner.PlannedModel(session.model.model, {"head_dim": dims, "layers": layers}, {}))
