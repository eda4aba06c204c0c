"""`planner serve` answers a standard client, streams, refuses in one line, and outlives clients that hang up."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from openai import APIError, BadRequestError, NotFoundError, OpenAI, RateLimitError

from backends.onnxruntime.engine import BatchEngine
from planner.cli import main
from planner.serving.app import LARGEST_BODY_BYTES
from planner.serving.server import Server, listen
from tests.backends.served import CONTEXT, LEAD, NAME, PATIENCE_S, alone, engine, reply, write_artefact

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = {"model": NAME, "messages": [{"role": "user", "content": "the mill"}], "max_tokens": 8, "temperature": 0}


@dataclass
class Served:
    """A server in a thread of this process."""

    engine: BatchEngine
    port: int

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)

    def send(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
        """A request by hand: status and JSON body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, raw)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        connection.close()
        return answer.status, told

    def until(self, what: Callable[[], bool]) -> None:
        """Wait for something to become true."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(scope="module")
def out(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artefact(tiny_llama, tmp_path_factory.mktemp("served") / "out")


@pytest.fixture(scope="module")
def served(out: Path) -> Iterator[Served]:
    with engine(out, waiting=4) as opened, listen("127.0.0.1", 0) as listening:
        server = Server(opened)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        port = listening.getsockname()[1]
        thread.start()
        yield Served(opened, port)
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


# --- answers ------------------------------------------------------------------------------------


def test_a_standard_client_gets_what_the_engine_says(served: Served) -> None:
    client, engine = served.client, served.engine
    assert [model.id for model in client.models.list()] == [NAME] == [client.models.retrieve(NAME).id]
    prompt = engine.chat(HELLO["messages"])  # type: ignore[arg-type]
    wanted = reply(engine, prompt, 8)
    told = client.chat.completions.create(**HELLO)  # type: ignore[call-overload]
    assert told.choices[0].message.content == engine._chat.tokenizer.decode(wanted.tokens)
    assert (told.choices[0].finish_reason, told.object, told.model) == ("length", "chat.completion", NAME)
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (len(prompt), 8)
    assert told.usage.prompt_tokens_details.cached_tokens >= len(prompt) - 1
    by_text = client.completions.create(model=NAME, prompt="user: the mill\n", max_tokens=8, temperature=0)
    by_token = client.completions.create(model=NAME, prompt=prompt, max_tokens=8, temperature=0)
    assert by_text.choices[0].text == by_token.choices[0].text == told.choices[0].message.content


@pytest.mark.parametrize("stop", [None, "e", ["q", "th"]])
def test_pieces_joined_are_the_whole(served: Served, stop: object) -> None:
    asked = {**HELLO, "max_tokens": 60, "stop": stop}
    whole = served.client.chat.completions.create(**asked)  # type: ignore[call-overload]
    options = {"include_usage": True}
    chunks = list(served.client.chat.completions.create(**asked, stream=True, stream_options=options))  # type: ignore[call-overload]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks[:-1]]
    assert reasons == [None] * (len(chunks) - 2) + [whole.choices[0].finish_reason]
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], whole.usage.total_tokens)
    texts = served.client.completions.create(
        model=NAME, prompt="user: the mill\n", max_tokens=60, temperature=0, stop=stop, stream=True
    )
    assert "".join(c.choices[0].text for c in texts) == whole.choices[0].message.content


def test_a_stream_is_server_sent_events(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)
    connection.request("POST", CHAT, json.dumps({**HELLO, "stream": True}))
    answer = connection.getresponse()
    assert answer.getheader("content-type", "").startswith("text/event-stream")
    events = answer.read().decode().split("\n\n")
    connection.close()
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") and json.loads(event[6:])["choices"] for event in events[:-2])


def test_eight_at_once_get_what_each_gets_alone(served: Served, out: Path) -> None:
    asked = [{**HELLO, "messages": _said("the river " * (3 * i + 1)), "max_tokens": 20 + 9 * i} for i in range(8)]

    def content(body: dict[str, object]) -> str:
        told = served.client.chat.completions.create(**body)  # type: ignore[call-overload]
        return str(told.choices[0].message.content)

    # What is likeliest must be so by more than the last bits, in which a batch differs from one row.
    for each in asked:
        prompt = served.engine.chat(each["messages"])  # type: ignore[arg-type]
        assert alone(out, prompt, int(str(each["max_tokens"])))[1] > LEAD
    by_themselves = [content(each) for each in asked]
    with ThreadPoolExecutor(8) as crowd:
        assert list(crowd.map(content, asked)) == by_themselves


def test_parts_of_text_and_roles_are_read(served: Served) -> None:
    plain = _said("the mill")
    parts = [{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "mill"}]}]
    told = [served.send("POST", CHAT, {**HELLO, "messages": messages})[1] for messages in (plain, parts)]
    assert told[0]["choices"] == told[1]["choices"]


def test_what_changes_nothing_is_accepted(served: Served) -> None:
    neutral = {"n": 1, "logprobs": False, "tools": None, "response_format": {"type": "text"}, "user": "me"}
    status, _ = served.send("POST", CHAT, {**HELLO, **neutral, "presence_penalty": 0, "seed": -1, "top_p": 1})
    assert status == 200


def test_without_a_limit_a_conversation_may_fill_the_context(served: Served) -> None:
    told = served.client.chat.completions.create(model=NAME, messages=_said("the mill"), temperature=0)  # type: ignore[arg-type]
    assert told.usage is not None
    assert told.usage.total_tokens == CONTEXT or told.choices[0].finish_reason == "stop"


# --- refusals -----------------------------------------------------------------------------------


def _said(text: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("change", "status", "parts"),
    [
        ({"messages": []}, 422, ("messages", "at least one")),
        ({"messages": None}, 422, ("messages",)),
        ({"messages": "hi"}, 422, ("messages",)),
        ({"messages": ["hi"]}, 422, ("messages[0]", "role and content")),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, 400, ("role", "'wizard'", "user")),
        ({"messages": [{"role": 3, "content": "hi"}]}, 422, ("messages[0].role",)),
        ({"messages": _said(None)}, 422, ("messages[0].content",)),
        ({"messages": _said([{"type": "image_url", "image_url": {"url": "x"}}])}, 400, ("type text",)),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, 400, ("messages[0].tool_calls",)),
        ({"messages": _said("word " * 3000)}, 400, (f"context is {CONTEXT} tokens", "8 new")),
        ({"messages": _said("\ud800")}, 400, ("UTF-8",)),
        ({"max_tokens": CONTEXT}, 400, (f"{CONTEXT} new ones", f"context is {CONTEXT} tokens")),
        ({"max_tokens": -1}, 422, ("max_tokens", "-1", "at least 1")),
        ({"max_tokens": 0}, 422, ("max_tokens",)),
        ({"max_tokens": 1.5}, 422, ("max_tokens",)),
        ({"max_tokens": True}, 422, ("max_tokens",)),
        ({"max_completion_tokens": -3}, 422, ("max_completion_tokens",)),
        ({"temperature": 2.5}, 422, ("temperature", "from 0 to 2")),
        ({"temperature": -0.1}, 422, ("temperature",)),
        ({"temperature": float("nan")}, 422, ("temperature",)),
        ({"temperature": "hot"}, 422, ("temperature", "'hot'")),
        ({"top_p": 1.01}, 422, ("top_p",)),
        ({"seed": "x"}, 422, ("seed",)),
        ({"seed": 2**70}, 422, ("seed",)),
        ({"stop": [""]}, 422, ("stop",)),
        ({"stop": ["a"] * 5}, 422, ("stop", "up to 4")),
        ({"stream": "yes"}, 422, ("stream", "true or false")),
        ({"stream_options": {"include_usage": True}}, 400, ("stream_options",)),
        ({"model": "gpt-4"}, 404, ("'gpt-4'", NAME)),
        ({"model": None}, 422, ("model",)),
        ({"n": 2}, 400, ("n:", "leave it out")),
        ({"n": True}, 400, ("n:",)),
        ({"logprobs": True}, 400, ("logprobs",)),
        ({"tools": [{"type": "function"}]}, 400, ("tools",)),
        ({"response_format": {"type": "json_object"}}, 400, ("response_format",)),
        ({"frequency_penalty": 0.5}, 400, ("frequency_penalty",)),
        ({"logit_bias": {"5": 100}}, 400, ("logit_bias",)),
        ({"tempreature": 1}, 400, ("tempreature", "did you mean 'temperature'?")),
        ({"prompt": "hi"}, 400, ("prompt",)),
    ],
)
def test_bad_conversations_are_refused_in_one_line(
    served: Served, change: dict[str, object], status: int, parts: tuple[str, ...]
) -> None:
    found, told = served.send("POST", CHAT, {**HELLO, **change})
    refused(found, told, status, *parts)


@pytest.mark.parametrize(
    ("prompt", "status", "parts"),
    [
        ("", 422, ("prompt",)),
        ([], 422, ("prompt",)),
        (None, 422, ("prompt",)),
        (["one", "two"], 400, ("2 prompts",)),
        ([5, 320], 422, ("320", "0 to 319")),
        ([-1], 422, ("-1",)),
        ([True], 422, ("True",)),
        ([1.5], 422, ("prompt",)),
    ],
)
def test_bad_prompts_are_refused(served: Served, prompt: object, status: int, parts: tuple[str, ...]) -> None:
    found, told = served.send("POST", COMPLETIONS, {"model": NAME, "prompt": prompt})
    refused(found, told, status, *parts)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"model": tiny}', 400),
        (b"\xff\xfe{", 400),
        (b"[" * 100_000, 400),
        (b"[1, 2]", 422),
        (b'"text"', 422),
        (b"null", 422),
        (b'{"model": "' + b"x" * LARGEST_BODY_BYTES + b'"}', 413),
    ],
)
def test_bodies_that_are_no_requests_are_refused(served: Served, body: bytes, status: int) -> None:
    found, told = served.send("POST", CHAT, body)
    refused(found, told, status, "body")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", CHAT, 405), ("POST", "/v1/models", 405), ("GET", "/v1/nothing", 404), ("GET", "/v1/models/gpt-4", 404)],
)
def test_paths_that_are_not_there(served: Served, method: str, path: str, status: int) -> None:
    found, told = served.send(method, path)
    refused(found, told, status)


def refused(found: int, told: dict[str, object], status: int, *parts: str) -> None:
    """OpenAI's shape, the status, and one line with these parts."""
    error = told["error"]
    assert isinstance(error, dict)
    assert error.keys() == {"message", "type", "param", "code"}
    message = error["message"]
    assert found == status, message
    assert message
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_standard_client_sees_its_own_errors(served: Served) -> None:
    with pytest.raises(NotFoundError, match="no model is named"):
        served.client.chat.completions.create(**{**HELLO, "model": "gpt-4"})  # type: ignore[call-overload]
    with pytest.raises(BadRequestError, match="context is"):
        served.client.chat.completions.create(**{**HELLO, "max_tokens": 999})  # type: ignore[call-overload]


# --- hanging up, crowds, the end ----------------------------------------------------------------


def running(served: Served) -> tuple[object, object]:
    told = served.send("GET", "/health")[1]
    return told["running"], told["waiting"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_row(served: Served, stream: bool) -> None:
    body = json.dumps({"model": NAME, "prompt": [5] * 20, "max_tokens": 230, "stream": stream, "seed": 3}).encode()
    for _ in range(12):
        with socket.create_connection(("127.0.0.1", served.port), PATIENCE_S) as raw:
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body)
            if stream:
                assert raw.recv(16).startswith(b"HTTP/1.1 200")
    served.until(lambda: running(served) == (0, 0))
    assert served.send("POST", CHAT, HELLO)[0] == 200


def test_a_crowd_beyond_the_queue_is_told_to_come_back(served: Served) -> None:
    """Eight rows and four places to wait: of twenty, some are turned away, and all others get their replies."""

    def status(seed: int) -> str:
        try:
            told = served.client.completions.create(
                model=NAME, prompt="the", max_tokens=200, temperature=2, seed=seed, logit_bias={}
            )
        except RateLimitError as error:
            assert "try again later" in str(error)
            assert error.response.headers["retry-after"] == "1"
            return "turned away"
        return told.choices[0].finish_reason

    with ThreadPoolExecutor(40) as crowd:
        told = list(crowd.map(status, range(40)))
    assert set(told) >= {"turned away"}
    assert len([each for each in told if each != "turned away"]) >= 12
    assert running(served) == (0, 0)


def test_an_engine_that_ended_says_so(out: Path) -> None:
    with engine(out, context_tokens=2000) as opened, listen("127.0.0.1", 0) as listening:
        server = Server(opened)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        here = Served(opened, listening.getsockname()[1])
        thread.start()
        stream = here.client.completions.create(model=NAME, prompt="the", max_tokens=1900, temperature=0, stream=True)
        next(iter(stream))
        opened.stop()
        with pytest.raises(APIError, match="shutting down"):
            list(stream)
        assert here.send("GET", "/health")[0] == here.send("POST", CHAT, HELLO)[0] == 503
        server.should_exit = True
        thread.join(PATIENCE_S)


def test_the_command_serves_until_it_is_interrupted(out: Path) -> None:
    """With a reply on its way, which does not hold it up."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "planner",
            "serve",
            str(out),
            "--port",
            "0",
            "--threads",
            "1",
            "--sessions",
            "2",
            "--context",
            "2000",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1: 2 sessions of 2000 tokens", first)
        assert found, first or process.communicate()[1]
        client = OpenAI(base_url=f"http://127.0.0.1:{found[1]}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model=NAME, prompt="the", max_tokens=1900, temperature=0, stream=True)
        next(iter(stream))
        process.send_signal(signal.SIGINT)
        rest, log = process.communicate(timeout=PATIENCE_S)
        stream.close()
    finally:
        process.kill()
    assert (process.returncode, rest, log) == (0, "", "stopped\n")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--context", "4096"), ("4096", "2048")),
        (("--host", "203.0.113.1"), ("cannot listen",)),
        (("--host", "no.such.host.invalid"), ("cannot listen",)),
    ],
)
def test_the_command_refuses_in_one_line(out: Path, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    told = CliRunner().invoke(main, ["serve", str(out), "--port", "0", *options], catch_exceptions=False)
    assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (1, "", 1), told.output
    assert all(part in told.stderr for part in parts)


def test_a_port_that_is_taken_and_a_directory_that_is_none(out: Path, tmp_path: Path, served: Served) -> None:
    for args in ((str(out), "--port", str(served.port)), (str(tmp_path), "--port", "0")):
        told = CliRunner().invoke(main, ["serve", *args], catch_exceptions=False)
        assert (told.exit_code, told.stderr.count("\n")) == (1, 1), told.output


def test_without_the_library_the_command_says_how_to_get_it(out: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from planner.cli import main; main(['serve', 'out'])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == "Error: uvicorn not installed: pip install 'llm-planner[serve]'\n"
