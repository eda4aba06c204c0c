"""A panel of a plot as SVG: axes with titles, ticks and labels, and marks at places along them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from planner.ruler import Ruler, label

WIDTH, HEIGHT = 440.0, 350.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 16.0, 14.0, 52.0
INK, PALE = "#333", "#e4e4e4"

Place = tuple[float, float]


@dataclass
class Panel:
    """Marks over two axes; x to the right and y upwards, in the values of their rulers."""

    x: Ruler
    y: Ruler
    x_title: str
    y_title: str
    left: float
    top: float
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        x0, x1 = self.left + LEFT, self.left + WIDTH - RIGHT
        y0, y1 = self.top + HEIGHT - BOTTOM, self.top + TOP
        for value in self.x.ticks():
            x = self.place(value, self.y.low)[0]
            self.lines.append(stroke((x, y0), (x, y1), PALE))
            self.lines.append(text((x, y0 + 16), label(value), "middle"))
        for value in self.y.ticks():
            y = self.place(self.x.low, value)[1]
            self.lines.append(stroke((x0, y), (x1, y), PALE))
            self.lines.append(text((x0 - 6, y + 4), label(value), "end"))
        self.lines += [stroke((x0, y0), (x1, y0), INK), stroke((x0, y0), (x0, y1), INK)]
        self.lines.append(text(((x0 + x1) / 2, y0 + 38), self.x_title, "middle"))
        x, y = self.left + 14, (y0 + y1) / 2
        turned = f'transform="rotate(-90 {number(x)} {number(y)})"'
        self.lines.append(text((x, y), self.y_title, "middle", turned))

    def place(self, x: float, y: float) -> Place:
        """Where values lie in the picture."""
        across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return self.left + LEFT + self.x.at(x) * across, self.top + TOP + (1 - self.y.at(y)) * up

    def stairs(self, places: Sequence[Place], colour: str) -> None:
        """A line through falling values: what is possible from one to the next is what the first one reaches."""
        drawn = [self.place(*each) for each in places]
        steps = [f"M{number(drawn[0][0])} {number(drawn[0][1])}"]
        steps += [f"H{number(x)}V{number(y)}" for x, y in drawn[1:]]
        self.lines.append(f'<path d="{"".join(steps)}" fill="none" stroke="{colour}" stroke-width="1.2"/>')

    def line(self, one: Place, other: Place, colour: str, dashed: bool = False) -> None:
        self.lines.append(stroke(self.place(*one), self.place(*other), colour, dashed))

    def dot(self, at: Place, colour: str, told: str, hollow: bool = False) -> None:
        """A filled circle, or a ring; `told` shows where a pointer rests on it."""
        x, y = self.place(*at)
        look = f'fill="none" stroke="{colour}" stroke-width="1.6" r="6"' if hollow else f'fill="{colour}" r="4"'
        self.lines.append(f'<circle cx="{number(x)}" cy="{number(y)}" {look}>{title(told)}</circle>')

    def cross(self, at: Place, colour: str, told: str) -> None:
        x, y = self.place(*at)
        path = f"M{number(x - 4)} {number(y - 4)}l8 8m0 -8l-8 8"
        self.lines.append(f'<path d="{path}" stroke="{colour}" stroke-width="1.6">{title(told)}</path>')

    def diamond(self, at: Place, colour: str, told: str) -> None:
        x, y = self.place(*at)
        path = f"M{number(x)} {number(y - 6)}l6 6l-6 6l-6 -6z"
        self.lines.append(f'<path d="{path}" fill="{colour}">{title(told)}</path>')


def number(value: float) -> str:
    """A coordinate, the same on every machine.

    >>> number(12.34), number(-0.01)
    ('12.3', '0.0')
    """
    return f"{round(value, 1) + 0.0:.1f}"


def title(told: str) -> str:
    return f"<title>{escape(told)}</title>"


def text(at: Place, written: str, anchor: str = "start", more: str = "") -> str:
    """A line of text; `more` holds further attributes."""
    head = f'<text x="{number(at[0])}" y="{number(at[1])}" text-anchor="{anchor}"'
    return f"{head}{' ' if more else ''}{more}>{escape(written)}</text>"


def stroke(one: Place, other: Place, colour: str, dashed: bool = False) -> str:
    (x1, y1), (x2, y2) = one, other
    ends = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
    return f'<line {ends} stroke="{colour}"{" stroke-dasharray=" + chr(34) + "4 3" + chr(34) if dashed else ""}/>'
