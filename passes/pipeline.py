"""The passes in the order they run. The order is read here, top to bottom, and nowhere else."""

from passes.assign import Assign
from passes.elastic_windows import ElasticWindows
from passes.kv_bits import KvBits
from passes.legalise import Legalise
from passes.placement import Placement
from passes.prefix_kv import PrefixKv
from passes.prune_dominated import PruneDominated
from passes.pyramid_kv import PyramidKv
from passes.streaming_heads import StreamingHeads
from passes.uniform_kv import UniformKv
from passes.weight_bits import WeightBits
from planner.pipeline import Pass

PIPELINE: tuple[Pass, ...] = (
    # Widening, in any order with one result; what multiplies candidates comes last, because it is less work so.
    UniformKv(),  # first: the baseline, so the report's funnel shows what each method adds to it
    PyramidKv(),  # windows that differ by layer
    PrefixKv(),  # the same from measured attention
    StreamingHeads(),  # windows that differ by head
    ElasticWindows(),  # the same on a finer grid, growing with the context where contexts differ
    WeightBits(),  # matrices do not multiply heads
    KvBits(),  # every span at every pair of formats
    Placement(),  # every candidate in every tier
    # Narrowing and refining.
    Legalise(),  # before anything is compared or chosen: what is priced is what will run
    PruneDominated(),  # after rounding, which makes equals; before solving, which grows with the candidates
    Assign(),  # last: all decisions at once
)


def known() -> tuple[type[Pass], ...]:
    """Every method that `--passes` can name, in the order of the pipeline."""
    return tuple(dict.fromkeys(type(each) for each in PIPELINE))
