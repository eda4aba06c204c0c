"""Open, run, time and emit plans with llama.cpp."""

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backends.artefacts import json_bytes, opening, refusals
from backends.llamacpp import architecture as arch
from backends.llamacpp import codes, gguf_file, layout, runner
from backends.llamacpp.gguf_file import FileBytes, Source
from backends.llamacpp.library import installed, library, missing
from backends.llamacpp.session import LlamaCppSession, Model, Run
from planner.errors import VerificationFailed
from planner.executor import Artifact, Capabilities, KvStatics, Weights
from planner.formats import GGML, GGML_KV, KV_BLOCK, ggml, ggml_kv
from planner.plan import Plan
from planner.space import FLOAT16, FLOAT32, KvFormat, KvSite, WeightFormat
from planner.spec import ModelSpec

CODES, RUNNER = Path(codes.__file__), Path(runner.__file__)

MODEL, SETTINGS, SCRIPT = runner.MODEL, runner.SETTINGS, "run.sh"

# Without the library files are written of the types that the gguf package rounds, and nothing is run.
CAPABILITIES = Capabilities(
    runtime="llamacpp",
    version="1",
    kv_formats=(FLOAT32, FLOAT16, *(ggml_kv(name) for name in GGML_KV)),
    weight_formats=(
        WeightFormat(32),
        WeightFormat(16),
        *(ggml(name) for name in (codes.BY_GGUF if missing() else GGML)),
    ),
    window_page_tokens=1,
    classes_per_layer=None,
    executes_here=not missing(),
    native="ggml",
    spans="model",
    elastic=False,
    sinks=False,
    kv_one="model",
)


@dataclass
class LlamaCppExecutor:
    """llama.cpp for one model.

    The file of the last opened weights and windows is kept, so plans that differ only in the types of their cache open
    at once, and emitting one that was opened writes nothing anew.
    """

    weights: Weights
    spec: ModelSpec
    _folder: Path | None = field(default=None, init=False)
    _files: int = field(default=0, init=False)
    _built: tuple[object, Path, Model, FileBytes] | None = field(default=None, init=False)
    _source: Source | None = field(default=None, init=False)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the runtime, but for blocks of the cache that do not divide this model's heads."""
        if all(layer.head_dim % KV_BLOCK == 0 for layer in self.spec.layers):
            return CAPABILITIES
        return replace(CAPABILITIES, kv_formats=(FLOAT32, FLOAT16))

    def use(self, statics: Mapping[KvSite, KvStatics]) -> None:
        """Nothing: no code here has static factors."""

    def identity(self) -> str:
        return hashlib.sha256(CODES.read_bytes() + installed().encode()).hexdigest()

    def open(self, plan: Plan) -> LlamaCppSession:
        cache = layout.cache(plan, self.spec, self.weights.config)
        _, model, size = self._written(plan, cache)
        run = Run(cache.k, cache.v, layout.CHUNK_TOKENS)
        return LlamaCppSession(model, run, self._kv_width, size.weights + size.vectors)

    def load(self, directory: Path) -> LlamaCppSession:
        return load(directory)

    def emit(self, plan: Plan, spec: ModelSpec) -> tuple[Artifact, ...]:
        cache = layout.cache(plan, spec, self.weights.config)
        path, _, size = self._written(plan, cache)
        told = layout.settings(plan, cache, self._kv_width, size)
        return (
            Artifact("config.json", self.weights.config.encode()),
            Artifact(MODEL, path),
            Artifact(SETTINGS, json_bytes(told)),
            Artifact(SCRIPT, layout.run_script(told).encode()),
            Artifact("runner.py", RUNNER.read_bytes()),
            *self.weights.companions(),
        )

    @property
    def _kv_width(self) -> int:
        layer = self.spec.layers[0]
        return layer.kv_heads * layer.head_dim

    def _written(self, plan: Plan, cache: layout.Cache) -> tuple[Path, Model, FileBytes]:
        """The plan's file and its weights in llama.cpp; VerificationFailed where it is longer than was counted."""
        key = (tuple((site, choice.format) for site, choice in plan.weights), cache.windows)
        if self._built is None or self._built[0] != key:
            self._built = None  # frees the old weights before the new ones are read
            source = self._of_layout(cache)
            table = gguf_file.tensors(plan, self.spec, source)
            head = gguf_file.head(gguf_file.metadata(self.spec, source), table)
            size = gguf_file.counted(head, table, self.spec)
            path = self._path()
            with path.open("wb") as file:
                gguf_file.write(file, head, table)
            if path.stat().st_size != size.total:
                raise VerificationFailed(f"{MODEL}: has {path.stat().st_size} bytes where {size.total} were counted")
            self._built = (key, path, Model(path), size)
        return self._built[1:]

    def _path(self) -> Path:
        """A place for a file; the one before is removed, and lives on in whoever has opened it."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="planner-gguf-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        (self._folder / f"{self._files}.gguf").unlink(missing_ok=True)
        self._files += 1
        return self._folder / f"{self._files}.gguf"

    def _of_layout(self, cache: layout.Cache) -> Source:
        found = arch.architecture(self.weights.config, cache.windows)
        if self._source is None or self._source.layout != found:
            self._source = gguf_file.source(self.weights, found)
        return self._source

    def recode_kv(
        self, part: Literal["k", "v"], form: KvFormat, values: NDArray[np.float32], statics: KvStatics
    ) -> NDArray[np.float32]:
        """Keys ('k') or values ('v') [tokens, head_dim] of one head as they read back from a format."""
        return codes.kv_recoded(part, values, form)

    def recode_input(self, form: WeightFormat, values: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Inputs of a product with a ggml type, rounded as the CPU's kernels round them; None beside a float matrix."""
        return codes.input_recoded(values, form)

    def recode_weight(self, name: str, form: WeightFormat) -> NDArray[np.float32]:
        """A matrix [rows, cols] as it reads back from a format; the source's own blocks are not rounded again."""
        windows = tuple(layer.window for layer in self.spec.layers)
        kept = self._of_layout(layout.Cache("f16", "f16", windows)).kept(name, form)
        return codes.recoded(self.weights.dense(name), form) if kept is None else self.weights.dense(name)


def load(directory: Path) -> LlamaCppSession:
    """An emitted artefact, checked against its manifest."""
    return _loaded(directory, window=True)


def uncompressed(directory: Path) -> LlamaCppSession:
    """An artefact's own weights under a float32 cache that keeps everything."""
    session = _loaded(directory, window=False)
    session.run = replace(session.run, k="f32", v="f32")
    return session


def _loaded(directory: Path, window: bool) -> LlamaCppSession:
    with opening(directory, runner.ArtefactError):
        runner.checked(directory)
        told: layout.Settings = json.loads((directory / SETTINGS).read_bytes())
        run = Run(told["cache_type_k"], told["cache_type_v"], told["chunk_tokens"])
        weight_bytes = told["file_bytes"]["weights"] + told["file_bytes"]["vectors"]
        return LlamaCppSession(Model(directory / MODEL, window), run, told["kv_width"], weight_bytes)


def reply(directory: Path, prompt: str, new_tokens: int, chunk_tokens: int) -> Iterator[str]:
    """An artefact's reply to a prompt, piece by piece; chunks are the artefact's own."""
    with opening(directory, runner.ArtefactError):
        runner.checked(directory)
    library()  # refuses where llama.cpp is not here
    with refusals(runner.ArtefactError):
        yield from runner.reply(directory, prompt, new_tokens)
