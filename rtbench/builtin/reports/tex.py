"""The board as a LaTeX table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rtbench.builtin.reports.text import sentence, sources, write
from rtbench.parts.flags import MARKS, PLAIN

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "≥": r"$\geq$", "–": "--", '"': "''",
    **{mark: rf"\textsuperscript{{{letter}}}" for mark, letter in zip(MARKS, PLAIN, strict=True)},
}  # fmt: skip


def latex(board: Any, path: Path | str) -> None:
    """A `table` with booktabs rules, ready for \\input: the columns that the terminal shows, the protocol in its caption.

    A caption of the suite's own takes the place of all but what the letters beside numbers mean.
    """
    headers, rows = board.table()
    align = "".join("r" if column.number else "l" for column in board.layout())
    facts = [f"{entry.get('label', entry['column'])}: {sentence(entry)}" for entry in board.protocol() if len(entry) > 1]
    flags = [f"{mark} {flag}" for flag, mark in board.marks().items()]
    told = flags if board.words else [*facts, *board.notes, *flags, *sources(board)]
    caption = ". ".join([board.caption().removesuffix("."), *told]) + "."
    label = board.label or f"tab:{re.sub(r'[^A-Za-z0-9:-]+', '-', board.suite)}"
    made = [f"% made with {' '.join(plugin.split())}" for plugin in board.plugins]
    lines = [
        "% needs \\usepackage{booktabs}", *made, "\\begin{table}", "\\centering", f"\\caption{{{escape(caption)}}}",
        f"\\label{{{label}}}", f"\\begin{{tabular}}{{{align}}}", "\\toprule",
        _line(headers), "\\midrule", *(_line(row) for row in rows), "\\bottomrule", "\\end{tabular}", "\\end{table}",
    ]  # fmt: skip
    write(path, "\n".join(lines) + "\n")


def escape(text: str) -> str:
    """The text with every character that means something to LaTeX escaped, on one line."""
    return "".join(SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def _line(cells: list[str]) -> str:
    # A row that begins with "[" or "*" would be read as an option of the line break before it.
    return " & ".join(f"{{{escape(cell)}}}" if cell[:1] in "[*" and cell else escape(cell) for cell in cells) + " \\\\"
