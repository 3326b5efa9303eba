"""Charts as inline SVG, drawn to be read at the width of a telephone and to be printed without colours.

    ranks    a row per name on a common axis: a dot with its interval or a bar, and a mark to compare it with
    lines    one quantity over steps: every value as a light point, and a line through their running means

A chart carries its title and, in words, what it shows. What a colour tells apart, a shape does too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDE, ROW, END = 320, 38, 8  # of a chart of ranks, a row of it, and what is left free at the sides
BOX = (46, 12, 262, 128)  # left, top, right and bottom of what `lines` draws in
SMALL = (320, 150)  # width and height of such a chart
POINTS, PLACES = 200, 100  # single values, and places of the line through them, that are drawn at most
PART = 10  # the running mean is over a tenth of the steps
LONGEST = 30  # characters of a name

STYLE = """
figure { margin: .6rem 0; min-width: 0; } figcaption { font-size: .9rem; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; } svg.ranks { width: 26rem; } svg.lines { width: 24rem; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
svg.ranks text { paint-order: stroke; stroke: var(--back); stroke-width: 3px; }
svg .soft { fill: var(--soft); font-size: 12px; } .rule { stroke: var(--line); }
.mark { fill: var(--mark); stroke: var(--mark); } .base { stroke: var(--base); stroke-width: 2; }
.line { fill: none; stroke: var(--mark); stroke-width: 2; stroke-linejoin: round; }
.dots { fill: none; stroke: var(--mark); stroke-width: 3; stroke-linecap: round; opacity: .3; }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); gap: 0 1rem; }
"""


@dataclass(frozen=True)
class Rank:
    """One row: what it is, its value and the interval around it, and the mark that it is compared with."""

    name: str
    value: float
    ends: tuple[float, float] | None = None
    base: float | None = None
    shown: str | None = None  # the value in words; default: three decimals


def ranks(
    rows: Sequence[Rank], title: str, *, span: tuple[float, float] = (0.0, 1.0), bars: bool = False
) -> str:
    """A row per name; values that leave `span` widen the axis, and what is no number is only written.

    Args:
        bars: from the axis' zero to the value, in place of dots.
    """
    ends = [end for row in rows for end in (row.value, row.base, *(row.ends or ())) if end is not None]
    ends = [end for end in ends if math.isfinite(end)]
    low, high = min((span[0], *ends)), max((span[1], *ends))
    height = ROW * len(rows) + 20

    def x(value: float) -> float:
        return END + (value - low) / ((high - low) or 1) * (WIDE - 2 * END)

    parts = []
    for tick in ticks(low, high):
        at = f"{x(tick):.1f}"
        anchor = {low: "start", high: "end"}.get(tick, "middle")
        parts.append(f'<line class="rule" x1="{at}" x2="{at}" y1="0" y2="{height - 16}"/>')
        parts.append(
            f'<text class="soft" x="{at}" y="{height - 4}" text-anchor="{anchor}">{number(tick)}</text>'
        )
    for i, row in enumerate(rows):
        parts += _rank(row, ROW * i, x, bars=bars)
    return _svg("ranks", WIDE, height, title, "; ".join(map(_said, rows)), parts)


def _rank(row: Rank, top: int, x: Callable[[float], float], *, bars: bool) -> list[str]:
    y, at = top + 26, x(row.value)
    parts = [
        f'<text x="{END}" y="{top + 14}">{escape(_short(row.name))}</text>',
        f'<text x="{WIDE - END}" y="{top + 14}" text-anchor="end">{escape(_value(row))}</text>',
    ]
    if not all(map(math.isfinite, (row.value, *(row.ends or ()), row.base or 0.0))):
        return parts
    if bars:
        zero = min(max(x(0.0), END), WIDE - END)
        left, wide = min(zero, at), abs(at - zero)
        parts.append(f'<rect class="mark" x="{left:.1f}" y="{y - 4}" width="{wide:.1f}" height="8"/>')
    else:
        parts.append(f'<circle class="mark" cx="{at:.1f}" cy="{y}" r="4"/>')
    if row.ends:
        ends = [f"{x(end):.1f}" for end in row.ends]
        parts.append(f'<line class="mark" x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}" stroke-width="2"/>')
    if row.base is not None:
        base = f"{x(row.base):.1f}"
        parts.append(f'<line class="base" x1="{base}" x2="{base}" y1="{y - 7}" y2="{y + 7}"/>')
    return parts


def _said(row: Rank) -> str:
    parts = [f"{row.name} {_value(row)}"]
    parts += [f"between {row.ends[0]:.3f} and {row.ends[1]:.3f}"] if row.ends else []
    parts += [f"against {row.base:.3f}"] if row.base is not None else []
    return " ".join(parts)


def _value(row: Rank) -> str:
    return f"{row.value:.3f}" if row.shown is None else row.shown


def lines(
    steps: Sequence[int],
    values: Sequence[float],
    title: str,
    *,
    span: tuple[int, int],
    window: int = 1,
    low: float | None = None,
) -> str:
    """One quantity over steps.

    Args:
        steps, values: (N,) each, steps rising; values that are no numbers are left out.
        span: first and last step of the axis.
        window: steps that the running mean is over; 1 = the line goes through the values themselves.
        low: a value that the axis must reach down to.
    """
    found = np.isfinite(np.asarray(values, float))
    at, of = np.asarray(steps, float)[found], np.asarray(values, float)[found]
    if not len(of):
        return "<p>Nothing was recorded.</p>"
    mean = smoothed(at, of, window)
    bottom, top = float(of.min() if low is None else min(low, of.min())), float(of.max())
    bottom, top = (bottom, top) if top > bottom else (bottom - 0.5, top + 0.5)
    left, above, right, below = BOX

    def x(step: float) -> float:
        return left + (step - span[0]) / max(span[1] - span[0], 1) * (right - left)

    def y(value: float) -> float:
        return below - (value - bottom) / (top - bottom) * (below - above)

    parts = []
    for tick in ticks(bottom, top, most=4):
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="soft" x="{left - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for step, anchor in zip(dict.fromkeys(span), ("start", "end"), strict=False):
        parts.append(
            f'<text class="soft" x="{x(step):.1f}" y="{SMALL[1] - 6}" text-anchor="{anchor}">{step:,}</text>'
        )
    if window > 1:
        dots = "".join(f"M{x(at[i]):.1f} {y(of[i]):.1f}h0" for i in thinned(len(of), POINTS))
        parts.append(f'<path class="dots" d="{dots}"/>')
    line = " ".join(f"{x(at[i]):.1f},{y(mean[i]):.1f}" for i in thinned(len(of), PLACES))
    end = f'x="{right + 8}" y="{y(mean[-1]) + 4:.1f}"'
    parts += [
        f'<polyline class="line" points="{line}"/>',
        f'<circle class="mark" cx="{x(at[-1]):.1f}" cy="{y(mean[-1]):.1f}" r="3"/>',
        f"<text {end}>{number(mean[-1])}</text>",
    ]
    told = (
        f"{number(mean[0])} at step {at[0]:,.0f}, {number(mean[-1])} at step {at[-1]:,.0f}; lowest "
        f"{number(mean.min())}, highest {number(mean.max())}"
    )
    return _svg("lines", *SMALL, title, told, parts)


def figure(caption: str, chart: str) -> str:
    """A chart under its name."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"


def window_of(steps: int) -> int:
    """Steps that the running mean of a run is over: a tenth of it, made odd; 1 in short runs."""
    return steps // PART // 2 * 2 + 1


def smoothed(steps: np.ndarray, values: np.ndarray, window: int) -> np.ndarray:
    """(N,): for each step the mean of the values within window // 2 steps of it, itself among them."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(steps, steps - window // 2, "left")
    last = np.searchsorted(steps, steps + window // 2, "right")
    return (sums[last] - sums[first]) / (last - first)


def thinned(count: int, most: int) -> list[int]:
    """At most `most` of the places 0..count-1, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, at most `most` of them: as near as 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        apart = power * factor
        first, last = math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9)
        if last - first < most:
            break
    return [float(f"{apart * i:.12g}") for i in range(first, last + 1)]


def number(value: float) -> str:
    """Three digits that matter, of large numbers all before the point."""
    if value and abs(value) < 1e-3:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _svg(kind: str, width: int, height: int, title: str, told: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(told)}</desc>{''.join(parts)}</svg>"
    )
