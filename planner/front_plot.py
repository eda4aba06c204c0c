"""A front as one self-contained SVG: a panel for each pair of currencies, then predicted against measured."""

from collections.abc import Sequence
from itertools import combinations

from planner.front import NO_MATTER_NATS, UNITS, Front, Point, heading, middle, shown
from planner.goal import Objective
from planner.panel import HEIGHT, INK, WIDTH, Panel, number, text
from planner.plan import Interval
from planner.ruler import Ruler, label, ruler

ONE_COLOUR = "#2f6f9f"
RAMP = ((0x2C, 0x3E, 0x8F), (0x2A, 0x9D, 0x8F), (0xF0, 0xA0, 0x30))
UNIFORM, MEASURED, STAIRS = "#888888", "#c0392b", "#b5c7d8"
HEAD, FOOT, KEY = 46.0, 40.0, 30.0


def svg(front: Front) -> str:
    """The picture. Points hold their figures as titles, which browsers show under the pointer."""
    pairs = list(combinations(front.over, 2))
    checked = [name for name in front.over if any(front.measured(p, name) is not None for p in front.verified)]
    rows = HEIGHT + KEY
    width = WIDTH * max(len(pairs), len(checked))
    height = HEAD + rows + (rows if checked else 0.0) + FOOT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {number(width)} {number(height)}"'
        f' width="{number(width)}" height="{number(height)}" font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{number(width)}" height="{number(height)}" fill="white"/>',
        text((16.0, 20.0), f"{front.name} on {front.target} by {front.backend}", more='font-size="15"'),
        text(
            (16.0, 37.0),
            f"{len(front.points)} points, none better than another in everything; {front.dense.predicted.source}",
        ),
    ]
    for place, (y, x) in enumerate(pairs):
        lines += pair(front, x, y, WIDTH * place)
    for place, currency in enumerate(checked):
        lines += against(front, currency, WIDTH * place, HEAD + rows)
    return "\n".join([*lines, *key(front, height - FOOT), "</svg>", ""])


def pair(front: Front, x: Objective, y: Objective, left: float) -> list[str]:
    """One panel: every point over two currencies, coloured by the third, with the front of these two alone."""
    every = (*front.points, *front.beside)
    panel = Panel(axis(front, every, x), axis(front, every, y), heading(x), heading(y), left, HEAD)

    def at(point: Point) -> tuple[float, float]:
        return scaled(point.value(x), x), scaled(point.value(y), y)

    panel.stairs(stairs([at(point) for point in front.points]), STAIRS)
    rest = next((name for name in front.over if name not in (x, y)), None)
    third = None if rest is None else ruler([point.value(rest) for point in front.points], zero(rest))
    for point in every:
        if point.kind == "uniform":
            panel.cross(at(point), UNIFORM, told(front, point))
        elif point.kind == "dense":
            panel.diamond(at(point), INK, told(front, point))
        else:
            colour = ONE_COLOUR if rest is None or third is None else ramp(third.at(point.value(rest)))
            panel.dot(at(point), colour, told(front, point))
    for point in front.verified:
        measured_x, measured_y = front.measured(point, x), front.measured(point, y)
        found = (
            at(point)[0] if measured_x is None else scaled(measured_x.value, x),
            at(point)[1] if measured_y is None else scaled(measured_y.value, y),
        )
        panel.line(at(point), found, MEASURED)
        panel.dot(found, MEASURED, f"measured: {told(front, point, measured=True)}", hollow=True)
    return [*panel.lines, *(() if rest is None else bar(front, rest, left))]


def against(front: Front, currency: Objective, left: float, top: float) -> list[str]:
    """One panel: what was measured of a currency over what was predicted, with the intervals of both."""
    found = [(p, expected(p, currency), m) for p in front.verified if (m := front.measured(p, currency)) is not None]
    values = [scaled(v, currency) for _, *both in found for one in both for v in (one.low, one.value, one.high)]
    scale = ruler(values, zero(currency))
    title = f"measured {UNITS[currency][1]}"
    panel = Panel(scale, scale, f"predicted {heading(currency)}", title, left, top)
    panel.line((scale.low, scale.low), (scale.high, scale.high), INK, dashed=True)
    for point, predicted, measured in found:
        left_x, x, right_x = (scaled(v, currency) for v in (predicted.low, predicted.value, predicted.high))
        low, y, high = (scaled(v, currency) for v in (measured.low, measured.value, measured.high))
        panel.line((left_x, y), (right_x, y), UNIFORM)
        panel.line((x, low), (x, high), MEASURED)
        panel.dot((x, y), MEASURED, f"measured: {told(front, point, measured=True)}", hollow=True)
    return panel.lines


def expected(point: Point, currency: Objective) -> Interval:
    """What is predicted of a point, a count as an interval of no width."""
    found: float | Interval | None = getattr(point.predicted, currency)
    return found if isinstance(found, Interval) else Interval(*[point.value(currency)] * 3)


def axis(front: Front, points: Sequence[Point], currency: Objective) -> Ruler:
    """A ruler for all that a panel shows of a currency, what was measured too."""
    values = [point.value(currency) for point in points]
    values += [found.value for p in front.verified if (found := front.measured(p, currency)) is not None]
    return ruler([scaled(value, currency) for value in values], zero(currency))


def zero(currency: Objective) -> float | None:
    """Up to where an axis is linear, as a lossless plan is on it too; None for a currency that is never nothing."""
    return NO_MATTER_NATS if currency == "loss_nats" else None


def scaled(value: float, currency: Objective) -> float:
    """A value in the unit that is shown."""
    return value * UNITS[currency][0]


def stairs(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those places that no other one is to the left of and below, from left to right.

    >>> stairs([(3, 1), (1, 3), (2, 3), (2, 2)])
    [(1, 3), (2, 2), (3, 1)]
    """
    kept: list[tuple[float, float]] = []
    for x, y in sorted(places):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return kept


def ramp(share: float) -> str:
    """A colour between the ends of the ramp.

    >>> ramp(0.0), ramp(0.5), ramp(2.0)
    ('#2c3e8f', '#2a9d8f', '#f0a030')
    """
    along = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    first = min(int(along), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (along - first)) for a, b in zip(RAMP[first], RAMP[first + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def told(front: Front, point: Point, measured: bool = False) -> str:
    """A point and its figures in one phrase."""
    parts = []
    for currency in front.over:
        value = front.measured(point, currency) if measured else getattr(point.predicted, currency)
        if value is not None:
            _, what, unit = UNITS[currency]
            parts.append(f"{what} {shown(middle(value), currency)} {unit}")
    return f"{point.name}: {', '.join(parts)}"


def bar(front: Front, currency: Objective, left: float) -> list[str]:
    """What the colours of a panel stand for: a row of swatches between the least value and the largest."""
    values = sorted(scaled(point.value(currency), currency) for point in front.points)
    x, y, each = left + WIDTH / 2, HEAD + HEIGHT + 2, 12.0
    lines = [
        f'<rect x="{number(x + i * each)}" y="{number(y)}" width="{number(each)}" height="10" fill="{ramp(i / 7)}"/>'
        for i in range(8)
    ]
    ends = (text((x - 6, y + 9), f"{heading(currency)}: {label(values[0])}", "end"), label(values[-1]))
    return [*lines, ends[0], text((x + 8 * each + 6, y + 9), ends[1])]


def key(front: Front, top: float) -> list[str]:
    """What the marks stand for."""
    y = top + 18
    lines = [
        f'<circle cx="24.0" cy="{number(y - 4)}" r="4" fill="{ONE_COLOUR}"/>',
        text((36.0, y), "planned"),
        f'<path d="M110.0 {number(y - 8)}l8 8m0 -8l-8 8" stroke="{UNIFORM}" stroke-width="1.6"/>',
        text((126.0, y), "best uniform settings"),
        f'<path d="M286.0 {number(y - 10)}l6 6l-6 6l-6 -6z" fill="{INK}"/>',
        text((300.0, y), "dense"),
    ]
    if front.verified:
        lines.append(
            f'<circle cx="366.0" cy="{number(y - 4)}" r="6" fill="none" stroke="{MEASURED}" stroke-width="1.6"/>'
        )
        lines.append(text((378.0, y), "measured here"))
    return lines
