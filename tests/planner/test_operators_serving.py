"""A batching engine in miniature: what must hold whatever the steps cost."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.operators.serving import Engine, Load, Served, serve

ROOM = 10**9
FREE = Engine(token_budget=10**6, kernel_s=0.0, sequence_s=0.0)


@dataclass
class Priced:
    """Steps priced by the step, the prompt token, the sequence and the token it holds; keeps what it saw."""

    step: float = 1.0
    prompt: float = 0.0
    sequence: float = 0.0
    held: float = 0.0
    chunks: list[tuple[int, int]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def step_s(self, chunks: list[tuple[int, int]], decoded: int, context: float) -> float:
        tokens = sum(size for size, _ in chunks)
        self.chunks += chunks
        self.sizes.append((tokens, decoded))
        return self.step + self.prompt * tokens + self.sequence * decoded + self.held * decoded * context


def test_one_client_reads_its_prompt_then_decodes() -> None:
    # 10 prompt tokens at 0.5 and the step; then 4 steps over 11, 12, 13 and 14 tokens held.
    times = Priced(step=2.0, prompt=0.5, held=0.1)
    served = serve(times, FREE, Load(1, prompt=10, output=5, waves=3), ROOM)
    assert served.ttft_s == pytest.approx(2.0 + 5.0)
    assert served.tpot_s == pytest.approx(2.0 + 0.1 * (11 + 12 + 13 + 14) / 4)


def test_clients_together_share_steps() -> None:
    served = serve(Priced(), FREE, Load(4, prompt=10, output=5), ROOM)
    # Each wave waits one step for the one under way, except the first.
    assert served.tpot_s == pytest.approx(1.0)
    assert 1.0 <= served.ttft_s <= 2.0


def test_host_work_is_paid_by_sequence_and_step() -> None:
    served = serve(Priced(), replace(FREE, sequence_s=0.25), Load(4, prompt=10, output=5, waves=1), ROOM)
    assert served.tpot_s == pytest.approx(1.0 + 4 * 0.25)


def test_a_cache_for_one_request_serves_one_after_another() -> None:
    served = serve(Priced(), FREE, Load(3, prompt=10, output=5, waves=20), kv_tokens=15)
    alone = serve(Priced(), FREE, Load(1, prompt=10, output=5, waves=20), kv_tokens=15)
    assert served.tpot_s == pytest.approx(alone.tpot_s)
    # Two others are answered in full before one's turn, five steps each.
    assert served.ttft_s == pytest.approx(1 + 2 * 5, rel=0.1)


def test_decoding_waits_for_prompts_where_they_do_not_mix() -> None:
    load = Load(8, prompt=100, output=20)
    mixed, apart = Priced(), Priced()
    serve(mixed, replace(FREE, token_budget=150), load, ROOM)
    serve(apart, replace(FREE, token_budget=150, mixed=False), load, ROOM)
    assert any(tokens and decoded for tokens, decoded in mixed.sizes)
    assert not any(tokens and decoded for tokens, decoded in apart.sizes)


def test_a_prompt_longer_than_the_budget_is_read_in_one_step_or_in_chunks() -> None:
    whole, parts = Priced(), Priced()
    serve(whole, replace(FREE, token_budget=64, chunked=False), Load(1, prompt=100, output=2, waves=1), ROOM)
    serve(parts, replace(FREE, token_budget=64), Load(1, prompt=100, output=2, waves=1), ROOM)
    assert whole.chunks == [(100, 0)]
    assert parts.chunks == [(64, 0), (36, 64)]


def test_evicted_sequences_are_read_again_with_what_they_had_made() -> None:
    times = Priced()
    serve(times, FREE, Load(2, prompt=10, output=10, waves=1), kv_tokens=30)
    assert times.chunks[:2] == [(10, 0), (10, 0)]
    assert [before for _, before in times.chunks] == [0, 0, 0]
    assert times.chunks[2][0] > 10


def test_room_that_is_reserved_is_never_taken_away() -> None:
    times = Priced()
    serve(times, replace(FREE, reserves_output=True), Load(2, prompt=10, output=10, waves=1), kv_tokens=30)
    assert times.chunks == [(10, 0), (10, 0)]
    assert max(decoded for _, decoded in times.sizes) == 1


ENGINES = st.builds(
    Engine,
    token_budget=st.integers(1, 80),
    mixed=st.booleans(),
    chunked=st.booleans(),
    reserves_output=st.booleans(),
    sequence_s=st.floats(0, 0.1),
)
LOADS = st.builds(
    Load,
    concurrency=st.integers(1, 9),
    prompt=st.integers(1, 60),
    output=st.integers(2, 30),
    waves=st.integers(1, 3),
    spread=st.sampled_from((0.0, 0.2, 0.9)),
)


@settings(max_examples=150, deadline=None)
@given(engine=ENGINES, load=LOADS, spare=st.integers(0, 200))
def test_every_request_is_answered_and_the_same_run_gives_the_same_times(
    engine: Engine, load: Load, spare: int
) -> None:
    kv_tokens = load.prompt + load.output + spare
    first, second = Priced(prompt=0.01, held=0.001), Priced(prompt=0.01, held=0.001)
    served = serve(first, engine, load, kv_tokens)
    assert served == serve(second, engine, load, kv_tokens)
    assert served.ttft_s > 0 and served.tpot_s >= 1.0
    if engine.chunked and engine.mixed:
        assert all(tokens + decoded <= max(engine.token_budget, load.concurrency) for tokens, decoded in first.sizes)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"concurrency": 0}, "concurrency 0"),
        ({"prompt": 0}, "prompt 0"),
        ({"output": 1}, "output 1"),
        ({"waves": 0}, "waves 0"),
        ({"spread": 1.0}, "spread by 1.0"),
    ],
)
def test_a_load_that_is_none_is_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Load(**({"concurrency": 1, "prompt": 1, "output": 2} | wrong))  # type: ignore[arg-type]


def test_a_request_larger_than_the_cache_is_refused() -> None:
    with pytest.raises(InputError, match="15 tokens does not fit a cache of 14"):
        serve(Priced(), FREE, Load(1, prompt=10, output=5), kv_tokens=14)


def test_served_is_a_mean_over_requests() -> None:
    # The second prompt waits for the step that reads the first, whose second token waits for the second prompt.
    times = Priced(step=0.0, prompt=1.0)
    engine = replace(FREE, token_budget=10, chunked=False)
    served = serve(times, engine, Load(2, prompt=10, output=2, waves=1), ROOM)
    assert served == Served(ttft_s=pytest.approx((10 + 20) / 2), tpot_s=pytest.approx((10 + 0) / 2))
