"""What a profile says of its curves, on any device: throughput by type, the costs of calling, the error, the notes."""

from collections.abc import Callable, Iterator, Mapping
from statistics import quantiles

from planner.measured import Curve, Machine
from profiles.machine import cpu_flags
from profiles.record import Piece
from profiles.timing import Clock, Sample, in_turns, wall_clock

MOST_ERROR = 1.0
"""Beyond it nothing is known."""

DEEP_LAYERS = 40
"""More than one: so many that their matrices come from memory at every step, as a model's do and as they are priced."""

DECODERS = ((1, 1), (1 + DEEP_LAYERS, 1), (1 + DEEP_LAYERS, 2))
"""(layers, classes of heads) of the short decoders whose differences are the costs of calling."""

DECODER_S = 4.0


def decoder_pieces(opened: Callable[[int, int], Callable[[], object]], clock: Clock = wall_clock) -> Iterator[Piece]:
    """A step of each decoder, timed in turns; `opened` gives the step of one of so many layers and classes."""
    taken: dict[int, Sample] = {}

    def sampling(number: int) -> Callable[[float], Sample]:
        def one(budget_s: float) -> Sample:
            if number not in taken:
                steps = [opened(layers, classes) for layers, classes in DECODERS]
                taken.update(enumerate(in_turns(steps, budget_s * len(DECODERS), clock)))
            return taken.pop(number)

        return one

    for number, (layers, classes) in enumerate(DECODERS):
        yield Piece(stepping(classes), "s", "layers", layers, 1, DECODER_S, sampling(number))


def stepping(classes: int) -> str:
    """The name of a curve."""
    return f"decoder step, {classes} class{'' if classes == 1 else 'es'}"


def overheads(named: Mapping[str, Curve], priced_s: float) -> tuple[float, float, float]:
    """Seconds that a layer, a class of heads and a step take; `priced_s` of a layer are priced elsewhere.

    >>> one = Curve("decoder step, 1 class", "s", "layers", ((1, 3.0, 0.0), (41, 83.0, 0.0)))
    >>> two = Curve("decoder step, 2 classes", "s", "layers", ((41, 103.5, 0.0),))
    >>> overheads({one.name: one, two.name: two}, 0.25)
    (1.25, 0.5, 1.0)
    """
    one_s, deep_s, parted_s = (named[stepping(classes)].value(layers) or 0.0 for layers, classes in DECODERS)
    each_class = max(parted_s - deep_s, 0.0) / (1 + DEEP_LAYERS)
    each_layer = max(deep_s - one_s, 0.0) / DEEP_LAYERS
    return max(each_layer - each_class - priced_s, 0.0), each_class, max(one_s - each_layer, 0.0)


def throughput(named: Mapping[str, Curve]) -> tuple[tuple[str, float], ...]:
    """Of the library's products with the most tokens, by type."""
    types = (name.split()[1] for name in named if name.startswith("torch ") and name.endswith(" product"))
    return tuple((kind, named[f"torch {kind} product"].points[-1][1]) for kind in types)


def error(curves: tuple[Curve, ...], least: float) -> float:
    """The relative half-width of a prediction: what nine in ten figures spread by at most, and no less than `least`.

    >>> error((Curve("step", "s", "layers", ((1, 1.0, 0.2), (17, 9.0, 0.4))),), 0.25)
    0.38
    """
    spreads = [spread for curve in curves for _, _, spread in curve.points]
    ninth = quantiles(spreads, n=10, method="inclusive")[-1] if len(spreads) > 1 else spreads[0]
    return min(max(least, ninth), MOST_ERROR)


def machine_notes(machine: Machine) -> tuple[str, ...]:
    """The load under which figures were taken, and what makes them differ from others'."""
    notes = [
        f"load average {machine.load_average:.2f} when measuring began; others took {machine.others_share:.0%} of the"
        " CPUs meanwhile"
    ]
    if "hypervisor" in cpu_flags():
        notes.append("virtual machine: its host may cache flash reads and share the cores")
    if machine.quick:
        notes.append("quick: short budgets, no long caches; for comparing, not for planning")
    return tuple(notes)
