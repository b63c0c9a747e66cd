"""What all drawings share: colours, markers and dashes that differ in print and for every eye, settings, and SVG for the page.

Colours after Okabe & Ito 2008, some darker, for contrast on white. No two of the first eighteen styles share colour and dashes, and
no two of the first 36 colour and marker.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

LINES = 6
"""Colours; of more lines than this in one panel some share theirs."""
MARKERS = "osD^vP"
DASHES = ("-", "--", ":")
LEVEL = "-."
HATCHES = ("", "////", "....", "xxxx", "----", "++++")
INK, GRID, CARD = "#010203", "#010204", "#010205"


class Look(NamedTuple):
    """ink: text and frames. grid: lines behind the data. card: what is behind everything. series: one colour per line."""

    ink: str
    grid: str
    card: str
    series: tuple[str, ...]


PAGE = Look(INK, GRID, CARD, tuple(f"#0102{number + 16:x}" for number in range(LINES)))
"""Stands for the page's CSS variables, which `themed` puts in."""
PRINT = Look("#000000", "#dcdcdc", "#ffffff", ("#0072b2", "#d55e00", "#00875f", "#a3438f", "#9a6f00", "#555b63"))


def style(number: int, look: Look = PAGE) -> tuple[str, str, str]:
    """Colour, marker and dashes of the n-th label; neighbours differ in all three."""
    colour, shifted = number % LINES, number % LINES + number // LINES
    return look.series[colour], MARKERS[shifted % LINES], DASHES[shifted % len(DASHES)]


def hatch(number: int) -> str:
    """The hatching of the n-th label's bars, which differs where the colour is the same."""
    return HATCHES[(number % LINES + number // LINES) % len(HATCHES)]


@contextlib.contextmanager
def settings(look: Look, size: float, text: str = "none") -> Iterator[None]:
    """Matplotlib as it comes, whatever the reader's matplotlibrc says, with this ink and font size in points.

    text: what SVG has for text, "none" for itself, "path" for its shapes.
    """
    from matplotlib import rc_context, rcdefaults, rcParams

    chosen: dict[Any, Any] = {
        "svg.fonttype": text, "svg.hashsalt": "rtbench", "pdf.fonttype": 42, "font.size": size, "axes.labelcolor": look.ink,
        "text.color": look.ink, "axes.edgecolor": look.ink, "xtick.color": look.ink, "ytick.color": look.ink, "hatch.linewidth": 0.8,
        "axes.formatter.useoffset": False,
    }  # fmt: skip
    with rc_context():
        rcdefaults()
        rcParams.update(chosen)
        yield


def bare(axes: Any, look: Look) -> None:
    """Grid behind the data, no ticks, and of the frame only the bottom."""
    axes.grid(color=look.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=look.ink, length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(look.ink)


def kept_axis(axes: Any, sparsest: float) -> None:
    """Percent of weights kept, dense on the left; logarithmic as soon as about a tenth or less is kept."""
    low = 100 * max(sparsest, 1e-5)
    if low <= 15:
        axes.set_xscale("log")
        axes.set_xlim(125, low / 1.25)
        axes.set_xticks(log_ticks(low / 1.25, 100))
        axes.minorticks_off()
    else:
        room = 0.05 * (100 - low) or 5.0
        axes.set_xlim(100 + room, low - room)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("weights kept (%)")


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from low to high, both above 0; of many the powers alone, of one or none evenly spaced numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for power in powers for base in (1, 2, 5) if low <= (tick := float(f"{base}e{power}")) <= high]
    if len(ticks) < 2:
        return [float(f"{low + (high - low) * part / 4:.3g}") for part in range(5)]
    return ticks if len(ticks) < 9 else [tick for tick in ticks if f"{tick:e}".startswith("1")]


def svg(figure: Any) -> str:
    """The drawing as SVG with nothing about when it was made."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def themed(text: str, prefix: str) -> str:
    """The drawing as an element of a page: own ids, the page's font and colours, nothing about the machine that drew it."""
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (fill|stroke)="(#0102..)"', r' style="\1: \2"', text)  # where a page's variables mean something
    text = re.sub(r'\bid="(label\d+)[^"]*"', r'class="\1"', text)
    text = re.sub(r'(\bid="|"#|url\(#)', rf"\1{prefix}", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', text, count=1)
    text = text.replace(INK, "currentColor").replace(GRID, "var(--grid)").replace(CARD, "var(--card)")
    for number, colour in enumerate(PAGE.series):
        text = text.replace(colour, f"var(--series{number})")
    return text
