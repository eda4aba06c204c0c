"""The loss model: what a profile does not hold is never priced as nothing."""

from dataclasses import replace

import numpy as np
import pytest

from planner.errors import InputError
from planner.goal import Workload
from planner.loss import Correction, LossModel
from planner.profile import KvPrices, ModelProfile, WeightPrices
from planner.space import FLOAT16, Full, KvChoice, KvSite
from planner.spec import LayerSpec, ModelSpec

SPEC = ModelSpec("toy", "toy", "ab" * 32, 32, 320, 4096, (LayerSpec(1, 1, 32),), (), 0)
CHOICE = KvChoice(Full(), FLOAT16, FLOAT16, 4, (("dram", 1.0),))


def profile(*contexts: int) -> ModelProfile:
    """One head, whose loss at a length is that length in nats."""
    loss = np.array(contexts, np.float64).reshape(1, 1, 1, 1, len(contexts))
    kv = KvPrices(SPEC.kv_sites, (), (FLOAT16,), (FLOAT16,), 4, loss, loss)
    none = np.zeros((0, 0))
    return ModelProfile("", "", contexts, 1, 0, kv, WeightPrices((), (), none, none), loss[:, :, 0, 0], {}, ())


def model(known: tuple[int, ...], asked: tuple[int, ...], weights: tuple[float, ...] = ()) -> LossModel:
    """The loss of a workload under a profile of other lengths."""
    return LossModel(SPEC, profile(*known), Workload(asked, weights, new_tokens=8), Correction(), Correction())


def test_a_loss_is_the_mean_over_the_lengths_of_the_workload_alone() -> None:
    assert model((64, 128, 256), (256, 64), (3, 1)).price(KvSite(0, 0), CHOICE) == 208
    assert model((64, 128, 256), (128,)).price(KvSite(0, 0), CHOICE) == 128


@pytest.mark.parametrize(
    ("known", "asked", "told"),
    [
        ((64,), (128,), "128 not in the profile, which has 64; take those lengths, or profile the model for this"),
        ((64, 128), (32, 64, 512), "32, 512 not in the profile, which has 64, 128; "),
        ((), (64,), "64 not in the profile, which has none; "),
    ],
)
def test_a_length_without_prices_is_refused(known: tuple[int, ...], asked: tuple[int, ...], told: str) -> None:
    with pytest.raises(InputError, match=f"^workload.context_tokens: {told}"):
        model(known, asked)


def test_a_workload_put_in_later_is_checked_as_well() -> None:
    with pytest.raises(InputError, match="2048 not in the profile"):
        replace(model((64,), (64,)), workload=Workload((64, 2048), new_tokens=8))
