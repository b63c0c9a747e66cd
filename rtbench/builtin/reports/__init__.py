"""Reports: a board as JSON, CSV, Markdown, LaTeX or one HTML page, and its figures as files. Equal boards give equal bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtbench.builtin.reports.figures import figures
from rtbench.builtin.reports.page import html
from rtbench.builtin.reports.tex import latex
from rtbench.builtin.reports.text import csv, json, markdown
from rtbench.hookspecs import hookimpl


@hookimpl
def rtbench_reports() -> dict[str, Callable[..., Any]]:
    return {"json": json, "csv": csv, "markdown": markdown, "latex": latex, "html": html, "figures": figures}
