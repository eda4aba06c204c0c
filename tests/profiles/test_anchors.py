"""Anchors: what prices made is run on every document, the rest on the first, and a killed run goes on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.executor import Executor, Session
from planner.plan import Plan
from planner.profile import ModelProfile
from planner.quality import compare
from profiles import anchors
from profiles.calibration import document_sha256
from profiles.parts import Parts
from tests.backends.oracle import FULL32, Subject, subject, tokens_of
from tests.profiles.test_fisher import calibration, profiler, unwatched

CONTEXT, CHUNK = 96, 32
DOCUMENTS = tuple(tuple(tokens_of(CONTEXT, seed=50 + i)) for i in range(3))


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Subject:
    return subject(tiny_llama)


@pytest.fixture(scope="module")
def profile(llama: Subject, tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return profiler(llama, calibration(CONTEXT, draws=3), tmp_path_factory.mktemp("parts"), unwatched).run()


@dataclass
class Counted:
    """Sessions of an executor that are counted where they are opened and scored, and may be interrupted."""

    most: int = 10**9
    opened: int = 0
    scored: Counter[tuple[int, tuple[int, ...]]] = field(default_factory=Counter)

    def watch(self, executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count what this executor opens from here on."""
        own = executor.open

        def opened(plan: Plan) -> Session:
            self.opened += 1
            session, number = own(plan), self.opened
            score = session.score

            def scored(document: Sequence[int], first: int, chunk_tokens: int) -> NDArray[np.float32]:
                if self.scored.total() == self.most:
                    raise KeyboardInterrupt
                self.scored[number, tuple(document)] += 1
                return score(document, first, chunk_tokens)

            monkeypatch.setattr(session, "score", scored)
            return session

        monkeypatch.setattr(executor, "open", opened)


def measured(profile: ModelProfile, llama: Subject, directory: Path, count: int) -> ModelProfile:
    return anchors.measure(profile, llama.spec, llama.executor, DOCUMENTS[:count], CHUNK, Parts(directory), unwatched)


@pytest.mark.parametrize("count", [1, 3])
def test_what_prices_made_is_run_on_every_document(
    llama: Subject, profile: ModelProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    counting = Counted()
    counting.watch(llama.executor, monkeypatch)
    found = measured(profile, llama, tmp_path, count)
    made = sum(anchor.chosen for anchor in found.anchors)
    assert 0 < made < len(found.anchors)
    dense, others = count, len(found.anchors) - made
    assert counting.scored.total() == dense + made * count + others
    assert set(counting.scored.values()) == {1}
    assert counting.opened == len(found.anchors) + dense, "each setting is opened once"
    assert found.documents == (*profile.documents, *map(document_sha256, DOCUMENTS[:count]))


def test_an_anchor_is_the_mean_over_documents(llama: Subject, profile: ModelProfile, tmp_path: Path) -> None:
    found = measured(profile, llama, tmp_path, 3)
    wanted = next(s for s in anchors.settings(profile, llama.spec, llama.executor.capabilities, 0) if s.by_price)
    first, losses = CONTEXT // 2, []
    for document in DOCUMENTS:
        sessions = [llama.executor.open(llama.plan(f)) for f in (lambda _: FULL32, lambda site: wanted.chosen[site])]
        dense, planned = (session.score(document, first, CHUNK) for session in sessions)
        losses.append(compare(dense, planned, document[first + 1 :]).loss_nats)
    (anchor,) = (a for a in found.anchors if a.name == wanted.name)
    assert anchor.measured_nats == pytest.approx(np.mean(losses), rel=1e-3)
    assert len({round(loss, 6) for loss in losses}) == 3


def test_a_killed_run_goes_on_where_it_stopped(
    llama: Subject, profile: ModelProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(profile, llama, tmp_path / "whole", 3)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        Counted(most=9).watch(llama.executor, patched)
        measured(profile, llama, tmp_path / "killed", 3)
    again = Counted()
    again.watch(llama.executor, monkeypatch)
    assert measured(profile, llama, tmp_path / "killed", 3).anchors == whole.anchors
    assert again.opened < len(whole.anchors) + 3
