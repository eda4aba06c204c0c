"""planner serve: answer OpenAI-style requests with an artefact."""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import click

from planner.cli.output import PATH
from planner.errors import InputError

RUNTIME = "onnxruntime"
LIBRARIES = ("starlette", "uvicorn")
MIB = 2**20


@click.command("serve", short_help="Answer OpenAI-style requests with an artefact.")
@click.argument("directory", type=PATH, metavar="OUT")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all of them.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0 is a free one."
)
@click.option(
    "--sessions", type=click.IntRange(min=1), default=8, show_default=True, help="Requests generated for at once."
)
@click.option(
    "--context",
    "context_tokens",
    type=click.IntRange(min=2),
    metavar="TOKENS",
    help="Prompt and reply together; the plan's longest context if left out.",
)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads of the runtime; 0, one a core.")
@click.option(
    "--chunk-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Tokens of prompts read between two decode steps; fewer hold up running replies less.",
)
@click.option(
    "--waiting", type=click.IntRange(min=0), default=64, show_default=True, help="Requests that may wait; then 429."
)
@click.option(
    "--prefix-mib",
    type=click.IntRange(min=0),
    default=512,
    show_default=True,
    help="MiB of caches put aside for prompts that begin as earlier ones did.",
)
def command(
    directory: Path,
    host: str,
    port: int,
    sessions: int,
    context_tokens: int | None,
    threads: int,
    chunk_tokens: int,
    waiting: int,
    prefix_mib: int,
) -> None:
    """Serve a compiled artefact at /v1/chat/completions and /v1/completions, for any OpenAI client.

    \b
    planner serve out --port 8000
    curl localhost:8000/v1/models

    There is no key and no encryption: put a proxy in front before listening beyond this machine. Ctrl-C ends it.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise InputError(f"{' and '.join(missing)} not installed: pip install 'llm-planner[serve]'")
    from backends.onnxruntime.engine import BatchEngine, Limits
    from planner.artefact import manifest, read_plan
    from planner.serving.server import listen, serve

    plan = read_plan(directory)
    found = manifest(directory).runtime
    if found != RUNTIME:
        raise InputError(
            f"{directory}: is for {found}, and planner serve runs {RUNTIME}; compile with --backend {RUNTIME}"
        )
    limits = Limits(sessions, context_tokens or plan.workload.longest_tokens, chunk_tokens, waiting, prefix_mib * MIB)
    listening = listen(host, port)
    with listening, BatchEngine.open(directory, plan.name, limits, threads) as engine:

        def ready(url: str) -> None:
            click.echo(
                f"{plan.name} at {url}/v1: {sessions} sessions of {limits.context_tokens} tokens in"
                f" {engine.cache_bytes / 1e6:.0f} MB of cache; Ctrl-C ends it"
            )

        # The server ends in good order and then raises the signal again.
        with suppress(KeyboardInterrupt):
            serve(engine, listening, ready)
    click.echo("stopped", err=True)
