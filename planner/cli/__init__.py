"""The `planner` command: one subcommand per file, imported when it is called."""

import errno
from importlib import import_module
from typing import NoReturn

import click

from planner.errors import InputError, PlannerError

# In the order of a first day with the tool.
COMMANDS = (
    "init",
    "compile",
    "pareto",
    "verify",
    "check",
    "bench",
    "run",
    "serve",
    "explain",
    "diff",
    "import",
    "export",
    "inspect",
    "profile",
    "validate",
    "targets",
    "passes",
    "backends",
    "doctor",
)
INTERRUPTED = 130
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a machine says when a disk is full or not ours; any other failure of the system is a bug and keeps its trace."""


class Commands(click.Group):
    """Loads a subcommand when it is asked for, and ends every expected failure in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"planner.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> object:
        from planner.interrupt import remembered

        try:
            with remembered():
                return super().invoke(ctx)
        except PlannerError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("stopped; nothing was left half-written; run again to resume", INTERRUPTED)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{(error.strerror or str(error)).lower()}", InputError.exit_code)


def fail(message: str, exit_code: int) -> NoReturn:
    """End the command with one line."""
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    raise click.exceptions.Exit(exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="llm-planner", prog_name="planner")
def main() -> None:
    """Plan how a language model runs: which tokens each head keeps, at how many bits, in which memory.

    \b
    planner init model.yaml                         # write a commented request
    planner compile model.yaml --target local       # measure, solve, emit, run, prove
    planner run out --prompt "Once upon a time"

    Sizes are bytes (MB is 10^6, MiB is 2^20), times are seconds, losses are nats per token.
    Exit codes: 0 done, 1 bad input, 2 wrong usage, 3 no plan meets the limits, 4 verification failed, 5 regression.
    """
