"""What is dropped is never needed: every choice has one as good among what stays, with no more labels."""

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from planner.dominance import Labelled, superfluous_labels, undominated

NONE = np.zeros(0, dtype=np.int64)


@st.composite
def groups(draw: st.DrawFn) -> list[Labelled]:
    """One to three sites of one to five candidates each: coarse numbers, so that many are equal."""
    small = st.integers(0, 2)
    result = []
    for _ in range(draw(st.integers(1, 3))):
        count, columns = draw(st.integers(1, 5)), draw(st.integers(1, 2))
        usage = draw(st.lists(st.lists(small, min_size=columns, max_size=columns), min_size=count, max_size=count))
        label = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
        cell = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
        result.append(Labelled(np.array(usage, dtype=float), np.array(label), np.array(cell)))
    return result


@given(group=groups())
def test_every_choice_has_one_as_good_without_the_superfluous_labels(group: list[Labelled]) -> None:
    superfluous = set(superfluous_labels(group).tolist())
    kept = [[i for i, label in enumerate(site.label.tolist()) if label not in superfluous] for site in group]
    for chosen in product(*(range(len(site.label)) for site in group)):
        labels = len({int(site.label[c]) for site, c in zip(group, chosen, strict=True)})
        assert any(
            len({int(site.label[d]) for site, d in zip(group, other, strict=True)}) <= labels
            and all(
                site.cell[d] == site.cell[c] and bool((site.usage[d] <= site.usage[c]).all())
                for site, c, d in zip(group, chosen, other, strict=True)
            )
            for other in product(*kept)
        )


@given(group=groups())
def test_what_stays_has_nothing_superfluous(group: list[Labelled]) -> None:
    superfluous = superfluous_labels(group)
    stays = [~np.isin(site.label, superfluous) for site in group]
    left = [Labelled(site.usage[own], site.label[own], site.cell[own]) for site, own in zip(group, stays, strict=True)]
    assert superfluous_labels(left).tolist() == []


def test_a_label_goes_only_where_its_answer_is_offered_at_all_its_sites() -> None:
    cheap, dear = np.array([[1.0]]), np.array([[1.0], [2.0]])
    first = Labelled(dear, np.array([0, 1]), np.zeros(2, dtype=np.int64))
    without = Labelled(cheap, np.array([1]), np.zeros(1, dtype=np.int64))
    elsewhere = Labelled(cheap, np.array([0]), np.zeros(1, dtype=np.int64))
    assert superfluous_labels([first, elsewhere]).tolist() == [1]
    assert superfluous_labels([first, without]).tolist() == []


def test_another_relation_keeps_what_it_tells_apart() -> None:
    usage, label = np.array([[1.0], [2.0]]), np.array([0, 1])
    assert superfluous_labels([Labelled(usage, label, np.array([0, 0]))]).tolist() == [1]
    assert superfluous_labels([Labelled(usage, label, np.array([0, 1]))]).tolist() == []


def test_many_equal_rows_leave_one_a_cell() -> None:
    keep = undominated(np.ones((300, 3)), np.arange(300) % 2)
    assert np.flatnonzero(keep).tolist() == [0, 1]
    assert undominated(np.zeros((0, 2)), NONE).tolist() == []
