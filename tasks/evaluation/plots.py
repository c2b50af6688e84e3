"""Estimates and answer lengths in, inline SVG out.

Written by hand and not by matplotlib: so the page's own colours, fonts and dark mode reach into the plots.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from tasks.artifacts import Estimate, Who

WIDTH, LEFT, RIGHT, LINE, TOP = 900, 210, 130, 17, 26


@dataclass(frozen=True)
class Line:
    """One line of a dot plot: its group's label, who it belongs to, and the estimate."""

    label: str
    who: Who
    estimate: Estimate


def dot_plot(title: str, groups: Sequence[Sequence[Line]], span: tuple[float, float], signed: bool = False) -> str:
    """One dot with its interval a line, the lines of a group together; `signed` draws the zero line and signs."""
    low, high = span
    ticks = _ticks(low, high)
    height = TOP + sum(len(group) * LINE + 12 for group in groups) + 6
    parts = [_grid(ticks, span, height, signed)]
    y = TOP + 8.0
    for group in groups:
        middle = y + (len(group) - 1) * LINE / 2
        parts.append(
            f'<text class="label" x="{LEFT - 14}" y="{middle + 4:.1f}">{escape(_short(group[0].label))}</text>'
        )
        for line in group:
            parts.append(_mark(line, span, y, signed))
            y += LINE
        y += 12
    return _svg(title, height, parts)


def signed_span(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """A span around zero that holds every interval, rounded to tenths."""
    low = min(0.0, *(estimate.low for estimate in estimates))
    high = max(0.0, *(estimate.high for estimate in estimates))
    return math.floor(low * 10 - 1e-9) / 10 if low else -0.1, math.ceil(high * 10 + 1e-9) / 10 if high else 0.1


def histogram(title: str, lengths: Mapping[Who, Sequence[float]]) -> str:
    """Answers by their length in tokens, one row of bars a model, the same bins for all."""
    longest = max(1.0, *(float(max(values)) for values in lengths.values()))
    edges = np.linspace(0, longest, min(40, int(longest)) + 1)
    counts = {who: np.histogram(values, bins=edges)[0] for who, values in lengths.items()}
    tallest = max(int(found.max()) for found in counts.values())
    band = 58
    height = TOP + band * len(counts) + 6
    parts = [_grid(_ticks(0, longest), (0, longest), height, False)]
    for at, (who, found) in enumerate(counts.items()):
        floor = TOP + band * (at + 1)
        parts.append(f'<text class="label" x="{LEFT - 14}" y="{floor - 4}">{who}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
        mean = float(np.mean(lengths[who]))
        parts.append(f'<text class="value {who}" x="{WIDTH - RIGHT + 14}" y="{floor - 4}">mean {mean:.1f}</text>')
        for left, right, count in zip(edges, edges[1:], found, strict=False):
            if count:
                tall = max(1.5, (band - 12) * count / tallest)
                x1, x2 = _x(left, (0, longest)), _x(right, (0, longest))
                parts.append(
                    f'<rect class="{who}" x="{x1 + 0.5:.1f}" y="{floor - tall:.1f}" width="{max(1, x2 - x1 - 1):.1f}" '
                    f'height="{tall:.1f}"><title>{count} answers of {left:.0f} to {right:.0f} tokens</title></rect>'
                )
    return _svg(title, height, parts)


def _mark(line: Line, span: tuple[float, float], y: float, signed: bool) -> str:
    found, who = line.estimate, line.who
    low, high, mean = (_x(value, span) for value in (found.low, found.high, found.mean))
    number = f"{found.mean:+.3f}" if signed else f"{found.mean:.3f}"
    return (
        f'<g class="{who}"><title>{escape(line.label)}, {who}: {number} '
        f"[{found.low:.3f}, {found.high:.3f}], {found.rows} rows</title>"
        f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<circle cx="{mean:.1f}" cy="{y:.1f}" r="4.5"/></g>'
        f'<text class="value {who}" x="{WIDTH - RIGHT + 14}" y="{y + 4:.1f}">{number} {who}</text>'
    )


def _grid(ticks: Sequence[float], span: tuple[float, float], height: float, signed: bool) -> str:
    parts = []
    for tick in ticks:
        kind = "zero" if signed and tick == 0 else "grid"
        parts.append(
            f'<line class="{kind}" x1="{_x(tick, span):.1f}" x2="{_x(tick, span):.1f}" y1="{TOP - 6}" y2="{height}"/>'
        )
        parts.append(f'<text class="tick" x="{_x(tick, span):.1f}" y="{TOP - 12}">{tick:g}</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """About six round numbers from low to high.

    >>> _ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(at * step, 6) + 0.0 for at in range(first, last + 1)]


def _x(value: float, span: tuple[float, float]) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - span[0]) / (span[1] - span[0])


def _short(label: str) -> str:
    return label if len(label) <= 30 else f"{label[:29]}…"


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
