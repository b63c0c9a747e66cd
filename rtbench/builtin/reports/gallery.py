"""The figures that the suite declares as sections of the page: a panel is an SVG of its own, so that a narrow screen can stack them."""

from __future__ import annotations

from html import escape
from typing import Any

from rtbench.builtin.reports.canvas import DASHES, LEVEL, LINES, PAGE, hatch, settings, style, svg, themed
from rtbench.builtin.reports.figures import grid
from rtbench.builtin.reports.plots import frame, hanging, paint, titled

SIZES = {1: (6.2, 3.5), 2: (5.4, 3.4)}
"""Inches by how many panels stand beside each other: a page shows one panel larger than three, and text should come out the same."""
SMALL = (4.4, 3.2)
LETTERS = 10.0
"""Points."""
HATCHED = {
    "": "", "////": "M9 7l5-5M9 12L19 2M14 12l9-9M19 12l4-4", "....": "M11 4h.1M16 4h.1M21 4h.1M13 8h.1M19 8h.1M11 11h.1M16 11h.1M21 11h.1",
    "xxxx": "M9 12L19 2M14 12l9-9M9 2l10 10M14 2l9 9", "----": "M8 4h16M8 7h16M8 10h16", "++++": "M8 4h16M8 10h16M12 1v12M20 1v12",
}  # fmt: skip
"""The hatching of bars, as strokes over a swatch."""


def gallery(board: Any) -> list[str]:
    """One section per figure."""
    return [text for figure in board.figures for text in section(figure)]


def section(figure: Any) -> list[str]:
    """A figure with its key and what its bands are; one that has no number yet says so."""
    name = f"figure-{figure.name}"
    parts = [f'<section aria-labelledby="{name}">', f'<h2 id="{name}">{escape(figure.title)}</h2>']
    if figure.panels:
        parts.append(f'<div class="panels{" pairs" if grid(figure)[0] == 2 else ""}">')
        for number, panel in enumerate(figure.panels):
            caption = f"<figcaption>{escape(panel.title)}</figcaption>" if panel.title else ""
            told = escape("; ".join(text for text in (f"{titled(panel.y)} by {titled(figure.x)}", panel.title) if text))
            parts.append(f'<figure role="img" aria-label="{told}">{caption}{_drawn(figure, number)}</figure>')
        parts.append("</div>")
        parts += _keys(figure)
    return [*parts, f'<p class="small">{escape(figure.note)}</p>', "</section>"]


def _drawn(figure: Any, number: int) -> str:
    from matplotlib.figure import Figure

    size = SIZES.get(grid(figure)[0], SMALL)
    if figure.kind == "matrix":
        size = size[0], 0.8 + 0.42 * len(figure.panels[number].lines)
    size = size[0], size[1] + hanging(figure, LETTERS)
    with settings(PAGE, LETTERS):
        drawn = Figure(figsize=size, layout="constrained")
        paint(drawn.subplots(), figure.panels[number], frame(figure, PAGE))
        return themed(svg(drawn), f"{figure.name}-{number}-")


def _keys(figure: Any) -> list[str]:
    lines = {line.style: line for panel in figure.panels for line in panel.lines}
    if figure.kind == "matrix" or not any(line.label for line in lines.values()):
        return []
    kind = {"bar": "bar", "scatter": "dot"}.get(figure.kind, "line")
    entries = [(number, line.label, "level" if line.level else kind) for number, line in sorted(lines.items())]
    return [key_list(figure.head, entries)]


def key_list(head: str, entries: list[tuple[int, str, str]]) -> str:
    """A key: what its entries are values of, then number of the style, text, and "line", "level", "dot" or "bar" for each."""
    first = f"<li>{escape(head)}:</li>" if head else ""
    items = "".join(f'<li data-label="{number}">{swatch(number, kind)}{escape(text)}</li>' for number, text, kind in entries if text)
    return f'<ul class="keys">{first}{items}</ul>'


def swatch(number: int, kind: str = "line") -> str:
    """A piece of the n-th line."""
    _, marker, dash = style(number)
    shapes = {
        "o": '<circle cx="16" cy="7" r="4"/>', "s": '<path d="M12.5 3.5h7v7h-7z"/>', "D": '<path d="M16 2l5 5-5 5-5-5z"/>',
        "^": '<path d="M16 2.5l4.5 8h-9z"/>', "v": '<path d="M16 11.5l4.5-8h-9z"/>',
        "P": '<path d="M14 3h4v2.5h2.5v4H18V12h-4V9.5h-2.5v-4H14z"/>',
    }  # fmt: skip
    dashes = dict(zip((*DASHES, LEVEL), ("", "6 3", "2 3", "7 2 2 2"), strict=True))[LEVEL if kind == "level" else dash]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    line = f'<path d="M0 7h32" stroke="currentColor" stroke-width="1.6"{dashed}/>'
    strokes = HATCHED[hatch(number)]
    hatched = f'<path d="{strokes}" style="stroke:var(--card)" stroke-width="1.2" stroke-linecap="round"/>' if strokes else ""
    bar = f'<path d="M8 1h16v12H8z"/>{hatched}'
    inner = {"dot": shapes[marker], "bar": bar}.get(kind, line + shapes[marker])
    look = f'viewBox="0 0 32 14" aria-hidden="true" style="color:var(--series{number % LINES})" fill="currentColor"'
    return f'<svg class="swatch" {look}>{inner}</svg>'
