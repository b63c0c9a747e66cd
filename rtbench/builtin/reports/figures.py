"""Every figure that the suite declares, as files for print: SVG, PDF and PNG at the width of a column or a page."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from rtbench.builtin.reports.canvas import LEVEL, PRINT, hatch, settings, style
from rtbench.builtin.reports.plots import frame, hanging, paint
from rtbench.builtin.reports.text import escape, write
from rtbench.errors import UserError

COLUMN, WIDE = 3.35, 6.9
"""Inches: a column of a two-column page, and its whole width."""
POINTS = 8.0
DPI = 300
PLAIN: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None, "ModDate": None}, "png": {}}
"""Metadata of each format, without times: equal boards give equal bytes."""


def figures(board: Any, path: Path | str) -> None:
    """A folder with NAME.svg, NAME.pdf and NAME.png of every figure in the suite's [[figures]], and captions.md.

    Text is 8 points at the width at which it is drawn: a column (3.35 inches) for one panel, a page (6.9) for more. Raises UserError
    where the suite declares no figure.
    """
    if not board.figures:
        raise UserError('the suite declares no figures; add one, as in [[figures]] kind = "curve", x = "sparsity", y = "clean"')
    folder = Path(path)
    folder.mkdir()
    lines = []
    for figure in board.figures:
        with settings(PRINT, POINTS, text="path"):
            drawn = draw(figure)
            drawn.draw_without_rendering()
            drawn.set_layout_engine("none")  # laid out once, the same in every format
            for format, metadata in PLAIN.items():
                drawn.savefig(folder / f"{figure.name}.{format}", dpi=DPI, metadata=metadata)
        lines += [f"- `{figure.name}`: {escape(figure.title)}. {escape(figure.note)}"]
    write(folder / "captions.md", "\n".join([f"{escape(board.suite)}:", "", *lines]) + "\n")


def draw(figure: Any) -> Any:
    """The whole figure, its panels and a key below them, as a matplotlib figure."""
    from matplotlib.figure import Figure

    if not figure.panels:
        drawn = Figure(figsize=(COLUMN, 1.0), layout="constrained")
        drawn.text(0.5, 0.5, f"{figure.title}: {figure.note}", ha="center", va="center", wrap=True)
        return drawn
    columns, rows = grid(figure)
    keys = [] if figure.kind == "matrix" else _handles(figure)
    longest = max((len(label) for label in figure.labels()), default=0)
    width = COLUMN if columns == 1 and 0.36 * len(figure.x.ticks) + 0.065 * longest < COLUMN else WIDE
    across = max(1, min(len(keys), int(width * 72 / (POINTS * (0.6 * longest + 5)))))
    height = _height(figure, columns) * rows + 0.16 * math.ceil(len(keys) / across) + (0.15 if figure.head and keys else 0)
    drawn = Figure(figsize=(width, height), layout="constrained")
    shared = frame(figure, PRINT)
    for number, panel in enumerate(figure.panels):
        axes = drawn.add_subplot(rows, columns, number + 1)
        paint(axes, panel, shared)
        axes.set_title(textwrap.fill(panel.title, int(0.8 * width * 72 / columns / (0.52 * POINTS))), fontsize=POINTS)
    if keys:
        drawn.legend(handles=keys, loc="outside lower center", ncols=across, frameon=False, title=figure.head or None, handlelength=2.8,
                     title_fontsize=POINTS, columnspacing=1.4)  # fmt: skip
    return drawn


def grid(figure: Any) -> tuple[int, int]:
    """Columns and rows: a row for each number where they fit, else at most three panels beside each other, two of matrices."""
    most = 2 if figure.kind == "matrix" and len(figure.x.ticks) > 4 else 3
    per = sum(panel.y.name == figure.panels[0].y.name for panel in figure.panels)
    columns = per if per <= most and len(figure.panels) % per == 0 and per < len(figure.panels) else min(most, len(figure.panels))
    return columns, math.ceil(len(figure.panels) / columns)


def _height(figure: Any, columns: int) -> float:
    """Inches of one row of panels."""
    below = hanging(figure, POINTS)
    if figure.kind == "matrix":
        return 0.6 + below + 0.3 * max(len(panel.lines) for panel in figure.panels)
    return below + (2.1 if columns < 3 else 1.9)


def _handles(figure: Any) -> list[Any]:
    """What stands in the key, in the order of the styles; none where there is nothing to tell apart."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found = {line.style: line for panel in figure.panels for line in panel.lines if line.label}
    handles: list[Any] = []
    for number, line in sorted(found.items()):
        colour, marker, dash = style(number, PRINT)
        if figure.kind == "bar" and not line.level:
            handles.append(Patch(facecolor=colour, edgecolor=PRINT.card, hatch=hatch(number), linewidth=0, label=line.label))
        else:
            dash = LEVEL if line.level else "" if figure.kind == "scatter" else dash
            look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dash, "label": line.label}
            handles.append(Line2D([], [], linewidth=1.4, markersize=4, **look))
    return handles
