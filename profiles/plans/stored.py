"""What a file of weights that somebody else made has decided: a GGUF, or a compressed-tensors checkpoint, as a plan.

Both say how every matrix is stored. A GGUF leaves the types of the cache to the command line, whose default is float16;
a checkpoint may name an fp8 cache. Windows are those the model is configured with. What is in a format that no runtime
here reads is refused.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.errors import InputError
from planner.formats import FP8, GGML, integers
from planner.space import FLOAT16, KvFormat, WeightFormat
from planner.spec import ModelSpec, TensorSpec
from profiles.sources.config import parse_config, read_json
from profiles.sources.gguf import open_gguf
from profiles.sources.huggingface import CONFIG, INDEX, WEIGHTS, read_shapes

FLOATS = {"F32": 32, "F16": 16}
GGML_NAMES = {name.upper(): name for name in GGML}


@dataclass(frozen=True, slots=True)
class Stored:
    """A model as its files keep it: the format of every matrix by name, and of the cache."""

    spec: ModelSpec
    formats: Mapping[str, WeightFormat]
    cache: KvFormat
    runtime: str
    what: str
    file_bytes: int


def read_gguf(path: Path) -> Stored:
    """A GGUF file; the formats are ggml's types by name."""
    checkpoint = open_gguf(path, f"gguf:{path.name}")
    formats = {}
    for tensor in checkpoint.spec.tensors:
        kind = checkpoint.stored[tensor.name].ggml_type
        if kind in FLOATS:
            formats[tensor.name] = WeightFormat(FLOATS[kind])
        elif kind.upper() in GGML_NAMES:
            bits, group, _ = GGML[GGML_NAMES[kind.upper()]]
            formats[tensor.name] = WeightFormat(bits, GGML_NAMES[kind.upper()], group)
        else:
            raise InputError(f"{path}: {tensor.name} is {kind}; read are F32, F16, {', '.join(map(str.upper, GGML))}")
    return Stored(checkpoint.spec, formats, FLOAT16, "llamacpp", "a GGUF file", path.stat().st_size)


def read_compressed_tensors(directory: Path) -> Stored:
    """A Hugging Face directory whose config.json has the quantization_config of compressed-tensors."""
    from profiles.sources.family import model_spec

    where = directory / CONFIG
    data = dict(read_json(where))
    told = data.pop("quantization_config", None)
    if not isinstance(told, Mapping) or told.get("quant_method") != "compressed-tensors":
        raise InputError(f"{where}: quantization_config: found {_method(told)}; compressed-tensors can be read back")
    config = parse_config(data, str(where))
    spec = model_spec(config, str(where), f"huggingface:{directory.resolve().name}")
    plain = WeightFormat(32 if str(data.get("dtype", data.get("torch_dtype"))) == "float32" else 16)
    rules = _rules(told, str(where))
    ignored = _matcher(_words(told.get("ignore", []), f"{where}: ignore"))
    formats = {tensor.name: plain if ignored(tensor) else _format(tensor, rules, plain) for tensor in spec.tensors}
    cache = _cache(told.get("kv_cache_scheme"), str(where))
    return Stored(spec, formats, cache, "vllm", "a compressed-tensors checkpoint", _file_bytes(directory))


def _method(told: object) -> str:
    return repr(told.get("quant_method")) if isinstance(told, Mapping) else "none"


Rule = tuple[Callable[[TensorSpec], bool], WeightFormat]


def _rules(told: Mapping[str, object], where: str) -> list[Rule]:
    """For every group of config_groups which matrices are its, and their format."""
    groups = told.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise InputError(f"{where}: quantization_config.config_groups: found nothing; a scheme for each is needed")
    rules = []
    for name, group in groups.items():
        at = f"{where}: config_groups.{name}"
        if not isinstance(group, Mapping):
            raise InputError(f"{at}: found {group!r}; needs targets and weights")
        rules.append((_matcher(_words(group.get("targets"), f"{at}.targets")), _scheme(group.get("weights"), at)))
    return rules


def _words(value: object, where: str) -> Sequence[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InputError(f"{where}: found {value!r}; needs a list of names")
    return value


def _scheme(weights: object, where: str) -> WeightFormat:
    """The format that a group's weights are in."""
    if not isinstance(weights, Mapping):
        raise InputError(f"{where}.weights: found {weights!r}; needs num_bits, type and strategy")
    bits, kind, strategy = weights.get("num_bits"), weights.get("type"), weights.get("strategy")
    if kind == "float" and bits == 8 and strategy in ("channel", "tensor"):
        return WeightFormat(8, "fp8")
    if kind == "int" and bits in (4, 8) and weights.get("symmetric", True):
        if strategy in ("channel", "tensor"):
            return integers(bits, 0)
        group = weights.get("group_size")
        if strategy == "group" and isinstance(group, int) and group > 0:
            return integers(bits, group)
    raise InputError(
        f"{where}.weights: {bits} bits of type {kind} by {strategy}: read are symmetric integers of 4 and 8 bits in"
        " groups or rows, and 8-bit floats"
    )


def _matcher(targets: Sequence[str]) -> Callable[[TensorSpec], bool]:
    """Whether a matrix is one of these targets: a module's name, `re:` and a pattern, or the class Linear."""

    def matches(tensor: TensorSpec) -> bool:
        module = tensor.name.removesuffix(".weight")
        for target in targets:
            if target.startswith("re:") and re.match(target.removeprefix("re:"), module):
                return True
            if target == module or (target == "Linear" and not module.endswith("embed_tokens")):
                return True
        return False

    return matches


def _format(tensor: TensorSpec, rules: Sequence[Rule], plain: WeightFormat) -> WeightFormat:
    return next((form for matches, form in rules if matches(tensor)), plain)


def _cache(scheme: object, where: str) -> KvFormat:
    """The format of keys and values."""
    if scheme is None:
        return FLOAT16
    if isinstance(scheme, Mapping) and (scheme.get("num_bits"), scheme.get("type")) == (8, "float"):
        return FP8
    raise InputError(f"{where}: kv_cache_scheme: found {scheme!r}; an 8-bit float cache can be read back")


def _file_bytes(directory: Path) -> int:
    """Bytes of the safetensors files, each found whole."""
    names = [WEIGHTS]
    if not (directory / WEIGHTS).is_file():
        index = read_json(directory / INDEX) if (directory / INDEX).is_file() else {}
        shards = index.get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, Mapping) else []
    paths = [directory / Path(name).name for name in names]
    if not paths or not all(path.is_file() for path in paths):
        raise InputError(f"{directory}: its safetensors are not all there; fetch it again")
    for path in paths:
        read_shapes(path)
    return sum(path.stat().st_size for path in paths)
