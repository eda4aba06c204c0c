"""llama.cpp's C interface, out of the shared library that the xllamacpp wheel carries.

xllamacpp wraps the server alone, which gives no log-probabilities of a prompt; its library exports every C function.
Structures differ from release to release, so they are laid down here by release and proved by the defaults that the
library fills them with; a release that is not in the table is refused.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_int64, c_size_t, c_uint32
from ctypes import c_void_p as pointer
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from planner.errors import InputError

PACKAGE = "xllamacpp"
RELEASES = ("2026.10.11549",)
"""Releases of the wheel whose structures are laid down here."""

INSTALL = f"pip install {PACKAGE}=={RELEASES[-1]}"

LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_int, c_char_p, pointer)


class ModelParams(Structure):
    """llama_model_params (include/llama.h)."""

    _fields_ = [
        ("devices", pointer),
        ("tensor_buft_overrides", pointer),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", pointer),
        ("progress_callback", pointer),
        ("progress_callback_user_data", pointer),
        ("kv_overrides", pointer),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(Structure):
    """llama_context_params (include/llama.h)."""

    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", pointer),
        ("cb_eval_user_data", pointer),
        ("type_k", c_int),
        ("type_v", c_int),
        ("moe_cache_size", c_size_t),
        ("abort_callback", pointer),
        ("abort_callback_data", pointer),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", pointer),
        ("n_samplers", c_size_t),
        ("ctx_other", pointer),
    ]


class Batch(Structure):
    """llama_batch: tokens with their positions, sequences, and whether their logits are wanted."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


class KvOverride(Structure):
    """llama_model_kv_override with an integer: a metadata key of the file, and what to read instead."""

    _fields_ = [("tag", c_int), ("key", ctypes.c_char * 128), ("value", c_int64), ("rest", ctypes.c_char * 120)]


FLASH_ATTENTION, NO_FLASH_ATTENTION = 1, 0

SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (LOG_CALLBACK, pointer)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (pointer, (c_char_p, ModelParams)),
    "llama_model_free": (None, (pointer,)),
    "llama_model_get_vocab": (pointer, (pointer,)),
    "llama_vocab_n_tokens": (c_int32, (pointer,)),
    "llama_tokenize": (c_int32, (pointer, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool)),
    "llama_init_from_model": (pointer, (pointer, ContextParams)),
    "llama_free": (None, (pointer,)),
    "llama_get_memory": (pointer, (pointer,)),
    "llama_memory_seq_rm": (c_bool, (pointer, c_int32, c_int32, c_int32)),
    "llama_memory_seq_cp": (None, (pointer, c_int32, c_int32, c_int32, c_int32)),
    "llama_batch_init": (Batch, (c_int32, c_int32, c_int32)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (c_int32, (pointer, Batch)),
    "llama_get_logits": (POINTER(c_float), (pointer,)),
    "ggml_quantize_chunk": (c_size_t, (c_int, POINTER(c_float), pointer, c_int64, c_int64, c_int64, POINTER(c_float))),
    "ggml_row_size": (c_size_t, (c_int, c_int64)),
}


class Library(ctypes.CDLL):
    """The functions of `SIGNATURES`, typed."""

    def __init__(self, path: Path) -> None:
        # RTLD_LOCAL and by its full path: its symbols serve nobody else.
        super().__init__(str(path))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(self, name)
            function.restype, function.argtypes = result, list(arguments)


def installed() -> str:
    """The release of the wheel that is installed, or nothing."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return ""


def missing() -> str:
    """Why llama.cpp cannot be run here, or nothing."""
    found = installed()
    if not found:
        return f"{PACKAGE} is not installed; {INSTALL}"
    if found not in RELEASES:
        return f"{PACKAGE} {found} is not among the releases known here, {', '.join(RELEASES)}; {INSTALL}"
    return ""


@cache
def library() -> Library:
    """llama.cpp, loaded once; InputError where it is not here or another release."""
    if why := missing():
        raise InputError(f"llama.cpp: {why}")
    spec = find_spec(PACKAGE)
    folder = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    found = sorted(folder.glob("xllamacpp*.so")) + sorted(folder.glob("xllamacpp*.pyd"))
    if not found:
        raise InputError(f"llama.cpp: {folder} holds no library of {PACKAGE}; {INSTALL}")
    loaded = Library(found[0])
    _proved(loaded)
    _log_of(loaded)
    loaded.llama_backend_init()
    return loaded


def _proved(loaded: Library) -> None:
    """InputError unless both structures read back the defaults of the headers they were taken from."""
    model, context = loaded.llama_model_default_params(), loaded.llama_context_default_params()
    found = (
        model.use_extra_bufts, model.check_tensors, model.main_gpu, context.n_ctx, context.n_batch, context.n_ubatch,
        context.n_seq_max, context.yarn_beta_fast, context.type_k, context.type_v, context.offload_kqv,
        context.n_samplers,
    )  # fmt: skip
    expected = (True, False, 0, 512, 2048, 512, 1, -1.0, 1, 1, True, 0)
    if found != expected:
        raise InputError(f"llama.cpp: {PACKAGE} {installed()} is laid out otherwise than known here; {INSTALL}")


# --- what it says -------------------------------------------------------------------------------

_lines: list[str] = []
MOST_LINES = 2000
"""Lines of the library's log that are kept for whoever asks why something failed."""


@cache
def _log_of(loaded: Library) -> object:
    """Take the library's log, which goes to stderr otherwise; the callback lives as long as the process."""

    def keep(level: int, text: bytes, user: object) -> None:
        _lines.append(text.decode(errors="replace").rstrip())
        del _lines[:-MOST_LINES]

    callback = LOG_CALLBACK(keep)
    loaded.llama_log_set(callback, None)
    return callback


@contextmanager
def told() -> Iterator[list[str]]:
    """The lines that the library logs meanwhile."""
    before = len(_lines)
    found: list[str] = []
    if before > MOST_LINES // 2:
        _lines.clear()
        before = 0
    yield found
    found += _lines[before:]


def reason(lines: list[str]) -> str:
    """The last line that tells of an error, for a message."""
    wrong = [line for line in lines if re.search(r"error|fail|invalid|unsupported|not (divisible|found)", line)]
    return wrong[-1] if wrong else "it gave no reason"


def threads() -> int:
    """Threads to compute with: OMP_NUM_THREADS where it is set, else every CPU that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
