"""planner passes: the methods that offer candidates, and their options."""

import dataclasses
import inspect
import json
import sys

import click

from planner.cli.output import json_option


@click.command("passes", short_help="Methods that offer candidates.")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the methods in the order they run, or show one with its paper and its options.

    \b
    planner passes
    planner passes prefix-kv

    An option is given as name{option=value,value}, to 'planner compile --passes'.
    """
    from planner import api
    from planner.errors import InputError
    from planner.mismatch import did_you_mean

    known = {kind.name: kind for kind in api.passes()}
    if name is not None and name not in known:
        raise InputError(f"unknown pass {name!r}{did_you_mean(name, known)}")
    told = [known[name]] if name is not None else list(known.values())
    if as_json:
        rows = [{"name": kind.name, "gives": first_line(kind), "options": options(kind)} for kind in told]
        click.echo(json.dumps({"passes": rows}, indent=1))
    elif name is not None:
        click.echo(inspect.cleandoc(sys.modules[known[name].__module__].__doc__ or ""))
        click.echo(
            "\n".join(["", "options:", *(f"  {option}={value}" for option, value in options(known[name]).items())])
        )
    else:
        width = max(map(len, known))
        click.echo("\n".join(f"{kind.name.ljust(width)}  {first_line(kind)}" for kind in told))


def first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def options(kind: type) -> dict[str, str]:
    """The options of a pass and their defaults, as they are written on a command line."""
    made: dict[str, str] = {}
    for own in dataclasses.fields(kind):
        value = own.default if own.default is not dataclasses.MISSING else ""
        made[own.name.replace("_", "-")] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return made
