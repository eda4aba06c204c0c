"""planner backends: the runtimes that plans are emitted for, and what each can carry."""

import json
from typing import TYPE_CHECKING

import click

from planner.cli.output import json_option

if TYPE_CHECKING:
    from planner.executor import Capabilities


@click.command("backends", short_help="Runtimes that plans are emitted for.")
@json_option
def command(as_json: bool) -> None:
    """List the runtimes that plans are emitted for, what each can carry, and whether it runs here.

    \b
    planner backends --json

    Formats are bits per number. Spans say whose windows are their own: any head's, any layer's, one length for the
    model, or none. --backend NAME@VERSION names a version that is not the newest.
    """
    from planner import api
    from planner.serde import document

    known = api.backends()
    if as_json:
        click.echo(json.dumps({"backends": [document(capabilities) for capabilities in known]}, indent=1))
        return
    for can in known:
        click.echo(f"{can.runtime} {can.version}: {'runs here' if can.executes_here else 'written, not run here'}")
        for title, told in rows(can):
            click.echo(f"  {title:<9}{told}")


SPANS = {
    "head": "any window at any head",
    "layer": "a window for each layer",
    "model": "one length of window, each layer windowed or full",
    "full": "no windows",
}
ONE = {
    "head": "any format at any head",
    "model": "one format for the model",
    "model or float": "one format for the model, or floats in some layers",
}


def rows(can: "Capabilities") -> list[tuple[str, str]]:
    """What a runtime carries, in words."""
    spans = [SPANS[can.spans]]
    if can.spans != "full":
        spans += ["growing with the context"] if can.elastic else []
        spans += ["protected tokens beside it"] if can.sinks else ["no protected tokens"]
    cache = [", ".join(named(f.bits, f.scheme) for f in can.kv_formats), ONE[can.kv_one]]
    cache += ["keys and values alike"] if can.kv_alike else []
    if can.spans == "head" and can.classes_per_layer is not None:
        cache.append(f"{can.classes_per_layer} classes of heads a layer")
    weights = [", ".join(named(f.bits, f.scheme, f.group) for f in can.weight_formats)]
    kept = "" if can.native == "none" else "a source's own grid kept"
    if can.unrounded:
        kept += f", at {' or '.join(map(str, can.unrounded))} bits also beside inputs that are not rounded"
    weights += [kept]
    weights += ["one for " + ", for ".join("/".join(names) for names in can.weight_sets)] if can.weight_sets else []
    told = {"spans": spans, "cache": cache, "weights": [each for each in weights if each]}
    return [(title, "; ".join(parts)) for title, parts in told.items()]


def named(bits: float, scheme: str, group: int = 0) -> str:
    """A format in a few words.

    >>> named(16, "float"), named(4, "ct", 128), named(5, "q5_K", 256)
    ('16-bit float', '4-bit ct by 128', '5-bit q5_K by 256')
    """
    return f"{bits:g}-bit {scheme}" + (f" by {group}" if group > 1 else "")
