"""planner targets: the hardware that plans can be made for."""

import json

import click

from planner.cli.output import json_option


@click.command("targets", short_help="Hardware that plans can be made for.")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the hardware that plans can be made for, or show one with its figures and their sources.

    \b
    planner targets
    planner targets a100

    Sizes are bytes, rates bytes or operations per second. 'local' is this machine, measured when it is used.
    """
    from planner.explain import table
    from planner.serde import document, dump
    from profiles.targets import target, targets

    if name is not None:
        profile = target(name)
        click.echo(json.dumps(document(profile), indent=1) if as_json else dump(profile), nl=as_json)
        return
    profiles = [target(known) for known in targets()]
    if as_json:
        click.echo(json.dumps({"targets": [document(profile) for profile in profiles]}, indent=1))
        return
    rows = [["name", "kind", "memory", "GB", "GB/s", "figures", "error"]]
    for profile in profiles:
        memory = profile.fastest
        size, rate = f"{memory.capacity_bytes / 1e9:,.0f}", f"{memory.read_bytes_per_s / 1e9:,.0f}"
        rows.append([profile.name, profile.kind, memory.name, size, rate, profile.provenance, f"{profile.error:.0%}"])
    click.echo("\n".join([*table(rows), "local: this machine, measured when it is used"]))
