"""Small figures of the report as inline SVG: interval strips, their axis, and curves.

Strips give every x position in percent, so one row follows the width of its table cell and
stays crisp in print; text stays text. Everything is a pure function of numbers; text is
escaped here, and the result is ``markupsafe.Markup`` so that a template does not escape it
twice. Matplotlib is not used: one strip is 1 kB instead of 12 kB, and a page holds a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from markupsafe import Markup, escape


@dataclass(frozen=True)
class Role:
    """How one kind of condition is drawn: its words, its colour and its marker."""

    name: str
    meaning: str
    colour: str
    marker: str


ROLES: tuple[Role, ...] = (
    Role("chance", "no information at all", "#6b7280", "ring"),
    Role("no-brain baseline", "never sees the brain of the tested trial", "#a16207", "dot"),
    Role(
        "strong baseline",
        "sees the brain through a simpler method, or is told the category",
        "#2f66b0",
        "diamond",
    ),
    Role("ours", "the method under test", "#c2410c", "disc"),
    Role("ceiling", "the best this chain could do", "#15803d", "square"),
)
# Curves of one role are told apart by hue and dash; the role's own colour comes first.
_LINE_COLOURS = {
    "strong baseline": ("#2f66b0", "#7c3aed", "#0e7490", "#1e3a8a"),
    "no-brain baseline": ("#a16207", "#be185d", "#7c5c3b", "#854d6b"),
}
_DASHES = ("6 3", "2 3", "9 3 2 3", "12 4")
NOT_AVAILABLE = "not available"


def role_of(name: str) -> Role:
    """Return the role called ``name``; ValueError lists the roles there are."""
    for role in ROLES:
        if role.name == name:
            return role
    known = ", ".join(repr(role.name) for role in ROLES)
    raise ValueError(f"unknown role {name!r} of a condition; roles are {known}")


def is_number(value: object) -> bool:
    """Say whether ``value`` is a finite number (booleans are not numbers)."""
    if value is None or isinstance(value, bool | np.bool_ | str):
        return False
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def format_number(value: object, digits: int = 3) -> str:
    """Write a number for reading: ``digits`` significant digits, or 'not available'.

    Examples
    --------
    >>> format_number(0.123456), format_number(1234), format_number(3.0), format_number(None)
    ('0.123', '1,234', '3.00', 'not available')
    """
    if not is_number(value):
        return NOT_AVAILABLE
    number = float(value)  # type: ignore[arg-type]
    if number == 0:
        return "0"
    if isinstance(value, int | np.integer):
        return f"{int(number):,}".replace("-", "−")
    if not 1e-4 <= abs(number) < 1e7:
        return f"{number:.{digits - 1}e}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return f"{number:,.{decimals}f}".replace("-", "−")


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round positions (1, 2 or 5 times a power of ten) that lie inside ``[low, high]``.

    Examples
    --------
    >>> nice_ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _tick_text(value: float, ticks: Sequence[float]) -> str:
    step = min((b - a for a, b in pairwise(ticks)), default=abs(value) or 1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return f"{value:.{decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class Axis:
    """A linear axis whose better end is on the right; positions in percent of the width."""

    low: float
    high: float
    reverse: bool = False

    @classmethod
    def around(cls, values: Sequence[object], *, reverse: bool = False) -> Axis:
        """Span all finite ``values`` with a margin of 4 %; [0, 1] where there are none."""
        finite = [float(v) for v in values if is_number(v)]  # type: ignore[arg-type]
        if not finite:
            return cls(0.0, 1.0, reverse)
        low, high = min(finite), max(finite)
        margin = 0.04 * (high - low) or 0.05 * max(abs(high), 1.0)
        return cls(low - margin, high + margin, reverse)

    def percent(self, value: float) -> float:
        """Position of ``value`` from 3 to 97 % (room for markers); values outside are clipped."""
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return 3.0 + 94.0 * (1.0 - share if self.reverse else share)

    def ticks(self) -> list[float]:
        """Round tick positions inside the axis."""
        return nice_ticks(self.low, self.high, 4)


def marker(kind: str, colour: str) -> str:
    """SVG of one marker centred on (0, 0); told apart by shape as well as by colour."""
    ink = f'fill="{colour}" stroke="#fff" stroke-width="1.2"'
    shapes = {
        "ring": f'<circle r="4.2" fill="#fff" stroke="{colour}" stroke-width="2"/>',
        "dot": f'<circle r="4.4" {ink}/>',
        "diamond": f'<path d="M0-6 6 0 0 6-6 0Z" {ink}/>',
        "disc": f'<circle r="6.6" {ink}/>',
        "square": f'<rect x="-5" y="-5" width="10" height="10" {ink}/>',
    }
    return shapes[kind]


def legend_mark(role: str) -> Markup:
    """Draw the marker of a role alone, for a legend."""
    shown = role_of(role)
    inner = marker(shown.marker, shown.colour)
    return Markup(
        '<svg class="mark" width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true">'
        f"{inner}</svg>"
    )


def strip(
    points: Sequence[Mapping[str, object]],
    axis: Axis,
    *,
    references: Mapping[str, float | None] | None = None,
    height: int = 28,
    label: str = "",
) -> Markup:
    """Draw means with intervals (bar), medians (tick) and reference lines on one row.

    Parameters
    ----------
    points : each with ``mean``, ``role`` and, where known, ``median``, ``low``, ``high``,
        ``name``; numbers in the unit of the axis. Points without a finite mean are left out.
    references : role name -> value of a thin vertical line (chance, ceiling).
    label : text for screen readers.
    """
    middle = height / 2
    parts = [
        f'<line x1="{axis.percent(t):.2f}%" x2="{axis.percent(t):.2f}%" y1="0" y2="{height}" '
        'stroke="#eceff3"/>'
        for t in axis.ticks()
    ]
    for name, value in (references or {}).items():
        if is_number(value):
            x = f"{axis.percent(float(value)):.2f}%"  # type: ignore[arg-type]
            parts.append(
                f'<line x1="{x}" x2="{x}" y1="0" y2="{height}" stroke="{role_of(name).colour}" '
                'stroke-width="1.2" stroke-dasharray="3 3" opacity=".75"/>'
            )
    for point in points:
        if is_number(point.get("mean")):
            parts.append(_point(point, axis, middle))
    words = escape(label)
    return Markup(
        f'<svg class="strip" width="100%" height="{height}" role="img" aria-label="{words}">'
        + "".join(parts)
        + "</svg>"
    )


def _point(point: Mapping[str, object], axis: Axis, middle: float) -> str:
    role = role_of(str(point["role"]))
    parts = []
    if is_number(point.get("low")) and is_number(point.get("high")):
        ends = [axis.percent(float(point[k])) for k in ("low", "high")]  # type: ignore[arg-type]
        parts.append(
            f'<line x1="{min(ends):.2f}%" x2="{max(ends):.2f}%" y1="{middle}" y2="{middle}" '
            f'stroke="{role.colour}" stroke-width="3" stroke-linecap="round" opacity=".55"/>'
        )
    if is_number(point.get("median")):
        x = f"{axis.percent(float(point['median'])):.2f}%"  # type: ignore[arg-type]
        parts.append(
            f'<line x1="{x}" x2="{x}" y1="{middle - 9}" y2="{middle + 9}" '
            f'stroke="{role.colour}" stroke-width="2"/>'
        )
    x = f"{axis.percent(float(point['mean'])):.2f}%"  # type: ignore[arg-type]
    title = f"{point.get('name', role.name)}: {format_number(point['mean'])}"
    parts.append(
        f'<svg x="{x}" y="{middle}" overflow="visible"><title>{escape(title)}</title>'
        f"{marker(role.marker, role.colour)}</svg>"
    )
    return "".join(parts)


def strip_axis(axis: Axis, *, label: str = "") -> Markup:
    """Draw the tick numbers that belong under a column of strips."""
    ticks = axis.ticks()
    parts = [
        f'<text x="{axis.percent(t):.2f}%" y="13" text-anchor="middle" font-size="11" '
        f'fill="#5b6472">{_tick_text(t, ticks)}</text>'
        for t in ticks
    ]
    return Markup(
        f'<svg class="strip" width="100%" height="18" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def curve(
    frame: pd.DataFrame,
    *,
    roles: Mapping[str, str],
    level_name: str,
    value_name: str,
    default: float | None = None,
) -> Markup:
    """Draw one metric over levels, a line and an interval band for each condition.

    Parameters
    ----------
    frame : rows of one metric with columns level, condition, value, low, high; a NaN value
        breaks the line, a NaN bound leaves out the band at that level.
    roles : condition -> role; conditions not named are drawn as plain lines.
    default : level that is marked as the one used for the rest of the page.
    """
    longest = max((len(str(c)) for c in frame["condition"]), default=0)
    width, height, left, top, bottom = 600, 320, 48, 14, 44
    right = min(max(20 + 7.0 * longest, 90.0), 230.0)
    inner_w, inner_h = width - left - right, height - top - bottom
    levels = sorted({float(v) for v in frame["level"] if is_number(v)})
    values = [v for c in ("value", "low", "high") for v in frame[c] if is_number(v)]
    if not levels or not values:
        return Markup("<p>{}</p>").format(NOT_AVAILABLE)
    logarithmic = levels[0] > 0 and levels[-1] / levels[0] >= 8
    ends = [math.log(v) if logarithmic else v for v in (levels[0], levels[-1])]
    span = Axis.around(values)

    def x_of(level: float) -> float:
        place = math.log(level) if logarithmic else level
        share = 0.5 if ends[0] == ends[1] else (place - ends[0]) / (ends[1] - ends[0])
        return left + inner_w * (0.03 + 0.94 * share)

    def y_of(value: float) -> float:
        return top + inner_h * (1.0 - (value - span.low) / (span.high - span.low))

    base = top + inner_h
    parts = []
    ticks = nice_ticks(span.low, span.high, 5)
    for tick in ticks:
        y = y_of(tick)
        parts.append(f'<path d="M{left} {y:.1f}H{left + inner_w}" stroke="#e7eaef"/>')
        parts.append(_text(left - 7, y + 4, _tick_text(tick, ticks), anchor="end"))
    for level in levels:
        x = x_of(level)
        parts.append(f'<path d="M{x:.1f} {base}v5" stroke="#8b93a1"/>')
        parts.append(_text(x, base + 18, f"{level:g}", anchor="middle"))
    parts.append(f'<path d="M{left} {base}h{inner_w}" stroke="#8b93a1"/>')
    parts.append(_text(left + inner_w / 2, height - 7, level_name, anchor="middle"))
    if default is not None and levels[0] <= default <= levels[-1]:
        x = x_of(default)
        parts.append(
            f'<path d="M{x:.1f} {top}V{base}" stroke="#1c2330" stroke-dasharray="2 4" '
            'opacity=".6"/>'
        )
        parts.append(_text(x + 4, top + 9, "default", anchor="start"))
    labels = []
    drawn: dict[str, int] = {}
    for condition, rows in frame.groupby("condition", sort=False):
        role = roles.get(str(condition), "")
        hues = _LINE_COLOURS.get(role, (role_of(role).colour,) if role else ("#444c59",))
        place = drawn[role] = drawn.get(role, -1) + 1
        colour = hues[place % len(hues)]
        dash = "" if role == "ours" else _DASHES[place % len(_DASHES)]
        wide = 3.0 if role == "ours" else 1.8
        kind = role_of(role).marker if role else "dot"
        parts.append(_line(rows.sort_values("level"), x_of, y_of, colour, dash, wide, kind))
        seen = rows[[is_number(v) for v in rows["value"]]].sort_values("level")
        if len(seen):
            labels.append((y_of(float(seen["value"].iloc[-1])), str(condition), colour))
    parts.extend(_end_labels(labels, left + inner_w + 10, top + 8, base))
    words = escape(f"{value_name} over {level_name}, one line for each condition")
    return Markup(
        f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{words}">'
        + "".join(parts)
        + "</svg>"
    )


def _line(rows, x_of, y_of, colour: str, dash: str, wide: float, kind: str) -> str:
    path, marks, upper, lower, pen = [], [], [], [], "M"
    for row in rows.itertuples():
        if not is_number(row.value):
            pen = "M"
            continue
        x, y = x_of(float(row.level)), y_of(float(row.value))
        path.append(f"{pen}{x:.1f} {y:.1f}")
        marks.append(f'<g transform="translate({x:.1f} {y:.1f})scale(.75)">')
        marks.append(f"{marker(kind, colour)}</g>")
        pen = "L"
        if is_number(row.low) and is_number(row.high):
            upper.append(f"{x:.1f} {y_of(float(row.high)):.1f}")
            lower.append(f"{x:.1f} {y_of(float(row.low)):.1f}")
    band = ""
    if len(upper) > 1:
        band = f'<path d="M{"L".join(upper + lower[::-1])}Z" fill="{colour}" opacity=".12"/>'
    return (
        f'{band}<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="{wide}" '
        f'stroke-dasharray="{dash}" stroke-linejoin="round"/>{"".join(marks)}'
    )


def _end_labels(labels, x: float, top: float, base: float) -> list[str]:
    gap = 14.0
    placed: list[list] = [list(entry) for entry in sorted(labels)]
    for above, entry in pairwise(placed):
        entry[0] = max(entry[0], above[0] + gap)
    if placed:
        placed[-1][0] = min(placed[-1][0], base)
    for entry, below in zip(placed[-2::-1], placed[:0:-1], strict=True):
        entry[0] = min(entry[0], below[0] - gap)
    return [
        _text(x, max(y, top) + 4, name, anchor="start", colour=colour) for y, name, colour in placed
    ]


def _text(x: float, y: float, words: str, *, anchor: str, colour: str = "#5b6472") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11.5" '
        f'fill="{colour}">{escape(words)}</text>'
    )
