"""Charts as SVG, to stand within a page."""

from __future__ import annotations

from markupsafe import Markup, escape

from pipeline.reporting.distributions import BINS, Axis, Distribution

_WIDTH, _HEIGHT = 320, 120
_FOOT = 18
"""Pixels below for the numbers of the axis."""


def histogram(axis: Axis, series: dict[str, Distribution]) -> Markup:
    """Steps of each distribution over one axis, with its words for those who do not see it."""
    most = max(int(one.counts.max()) for one in series.values())
    said = f"{axis.title}{f', {axis.unit}' if axis.unit else ''}: {'; '.join(map(_said, series, series.values()))}"
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" aria-label="{escape(said)}">',
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>',
    ]
    parts += [f'<path class="{escape(name)}" d="{_steps(one, most)}"/>' for name, one in series.items()]
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value = axis.low + share * (axis.high - axis.low)
        parts.append(f'<text x="{share * _WIDTH:g}" y="{_HEIGHT + 14}" text-anchor="{anchor}">{value:g}</text>')
    return Markup("".join([*parts, "</svg>"]))  # nosec B704: all that comes from outside is escaped


def _said(name: str, one: Distribution) -> str:
    return f"{name} median {one.median:.3g} of {one.total} rows"


def _steps(one: Distribution, most: int) -> str:
    wide = _WIDTH / BINS
    path = [f"M0 {_HEIGHT}"]
    for place, count in enumerate(one.counts.tolist()):
        y = _HEIGHT - (_HEIGHT - 4) * count / max(most, 1)
        path.append(f"V{y:.1f}H{(place + 1) * wide:.1f}")
    return "".join([*path, f"V{_HEIGHT}Z"])
