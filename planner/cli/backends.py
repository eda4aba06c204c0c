"""planner backends: the runtimes that plans are emitted for, and what each can carry."""

import json

import click

from planner.cli.output import json_option


@click.command("backends", short_help="Runtimes that plans are emitted for.")
@json_option
def command(as_json: bool) -> None:
    """List the runtimes that plans are emitted for, with the formats each can carry and whether it runs here.

    \b
    planner backends --json

    Formats are bits per number; classes are the different head settings one layer may hold.
    """
    from planner import api
    from planner.serde import document

    known = api.backends()
    if as_json:
        click.echo(json.dumps({"backends": [document(capabilities) for capabilities in known]}, indent=1))
        return
    for can in known:
        click.echo(f"{can.runtime} {can.version}: {'runs here' if can.executes_here else 'emits only'}")
        click.echo(f"  cache:   {', '.join(f'{f.bits:g}-bit {f.scheme}' for f in can.kv_formats)}")
        click.echo(f"  weights: {', '.join(f'{f.bits:g}-bit {f.scheme}' for f in can.weight_formats)}")
        click.echo(f"  classes of heads per layer: {can.classes_per_layer or 'any number'}")
