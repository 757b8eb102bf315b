"""The loss curve as a picture: where its lines, ticks and hover marks lie, in numbers that a template draws.

The picture is 1000 by 1000 units and is stretched to the width of the page; text is no part of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

MOST_POINTS = 400
"""More than this cannot be told apart on a screen."""

_SIZE = 1000.0


class XY(NamedTuple):
    """One point of a line."""

    x: float
    y: float


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, `at` per cent of its length."""

    at: float
    label: str


@dataclass(frozen=True)
class Spot:
    """What the pointer meets: a column of the picture, with the point in it and its facts."""

    left: float
    width: float
    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Chart:
    """Everything there is to draw; a line is an SVG path, empty where it has no points."""

    raw: str
    smooth: str
    heldout: str
    heldout_marks: str
    """A dot for each point of that line, for they are few and lie far apart."""
    window: int
    """Steps that one point of the smooth line is the mean of."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    spots: list[Spot]


def loss_chart(curve: Sequence[Mapping[str, Any]]) -> Chart | None:
    """The chart of a curve's `step` and `loss` (and `heldout`, where it has that); None of an empty one."""
    points = [entry for entry in curve if math.isfinite(entry["loss"])]
    if not points:
        return None
    raw = [XY(entry["step"], entry["loss"]) for entry in points]
    heldout = [
        XY(entry["step"], entry["heldout"]) for entry in points if entry.get("heldout") is not None
    ]
    window = len(raw) // 40 * 2 + 1
    smooth = smoothed(raw, window) if window > 1 else []

    xs, losses = [point.x for point in raw], [point.y for point in raw + heldout]
    y_values = nice_ticks(min(losses), max(losses))
    frame = _Frame(min(xs), max(xs), y_values[0], y_values[-1])
    x_values = [x for x in nice_ticks(min(xs), max(xs), finest=1) if min(xs) <= x <= max(xs)]
    return Chart(
        raw=_path(frame, thinned(raw)),
        smooth=_path(frame, thinned(smooth)),
        heldout=_path(frame, thinned(heldout)),
        heldout_marks="".join(_path(frame, [point]) for point in thinned(heldout)),
        window=window,
        x_ticks=[Tick(frame.x(x) / 10, label) for x, label in _labelled(x_values)],
        y_ticks=[Tick(frame.y(y) / 10, label) for y, label in _labelled(y_values)],
        spots=_spots(frame, points),
    )


def thinned(points: Sequence[XY], most: int = MOST_POINTS) -> list[XY]:
    """At most `most` of the points (4 or more): both ends, and of each stretch its lowest and highest."""
    if len(points) <= most:
        return list(points)
    stretches = (most - 2) // 2
    inner = points[1:-1]
    kept = [points[0]]
    for index in range(stretches):
        stretch = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        ends = min(stretch, key=lambda point: point.y), max(stretch, key=lambda point: point.y)
        kept += sorted(set(ends))
    return [*kept, points[-1]]


def smoothed(points: Sequence[XY], window: int) -> list[XY]:
    """The mean of the `window` points around each; near the ends of fewer, so that it never lags."""
    sums = [0.0, *accumulate(point.y for point in points)]
    last = len(points) - 1
    means = []
    for index, point in enumerate(points):
        half = min(window // 2, index, last - index)
        means.append(XY(point.x, (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)))
    return means


def nice_ticks(low: float, high: float, *, finest: float = 0) -> list[float]:
    """A few round numbers that enclose `low` and `high`.

    They are 1, 2 or 5 times a power of ten apart, and never closer than `finest`.
    """
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, low + (abs(low) or 1) / 2
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    step = max(step, finest)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    left: float
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        # A curve of one point stands in the middle.
        span = self.right - self.left
        return _SIZE * (value - self.left) / span if span else _SIZE / 2

    def y(self, value: float) -> float:
        return _SIZE * (self.top - value) / (self.top - self.bottom)


def _path(frame: _Frame, points: Sequence[XY]) -> str:
    places = [f"{frame.x(point.x):.1f} {frame.y(point.y):.1f}" for point in points]
    if len(places) == 1:
        return f"M{places[0]}h0"  # a dot, drawn by the line's round ends
    return "M" + "L".join(places) if places else ""


def _labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    step = values[1] - values[0] if len(values) > 1 else 1
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(value, f"{value:,.{decimals}f}") for value in values]


def _spots(frame: _Frame, points: Sequence[Mapping[str, Any]]) -> list[Spot]:
    by_step = {entry["step"]: entry for entry in points}
    kept = [by_step[x] for x, _ in thinned([XY(entry["step"], entry["loss"]) for entry in points])]
    places = [frame.x(entry["step"]) for entry in kept]
    middles = [(left + right) / 2 for left, right in pairwise(places)]
    edges = [0.0, *middles, _SIZE]
    return [
        Spot(edges[i], edges[i + 1] - edges[i], places[i], frame.y(entry["loss"]), _facts(entry))
        for i, entry in enumerate(kept)
    ]


def _facts(entry: Mapping[str, Any]) -> str:
    words = [f"step {entry['step']:,}", f"loss {entry['loss']:.4g}"]
    for name, form in (
        ("heldout", "held-out loss {:.4g}"),
        ("epoch", "epoch {:.2f}"),
        ("lr", "learning rate {:.3g}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    ):
        if entry.get(name) is not None:
            words.append(form.format(entry[name]))
    return "\n".join(words)
