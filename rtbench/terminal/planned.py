"""What a run would do, as a table: stages by verb, passes, time and disk."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from rtbench.terminal.progress import duration


def plan_table(summary: dict[str, Any]) -> Table:
    """What a run would do. summary: "stages" (verb -> total, cached, todo), "asked", "trainings", "seconds", "bytes", "passes",
    "unknown"."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_footer=True, title_justify="left", caption_justify="left")
    table.title, table.title_style, table.caption_style = Text(str(summary.get("suite", ""))), "bold", ""
    stages = summary["stages"]
    totals = {word: sum(counts[word] for counts in stages.values()) for word in ("total", "cached", "todo")}
    table.add_column("stage", footer="all", no_wrap=True)
    for word, head in (("total", "stages"), ("cached", "already there"), ("todo", "to do")):
        table.add_column(head, footer=str(totals[word]), justify="right", no_wrap=True)
    for verb, counts in stages.items():
        table.add_row(verb, *(str(counts[word]) for word in ("total", "cached", "todo")))
    lines = _costs(summary, totals)
    table.min_width = max(map(len, lines), default=0)
    table.caption = Text("\n".join(lines))
    return table


def _costs(summary: dict[str, Any], totals: dict[str, int]) -> list[str]:
    lines = []
    if summary.get("asked", 0) > totals["total"]:
        trainings = f", {summary['trainings']} of them trainings," if summary.get("trainings") else ""
        lines.append(f"{summary['asked']} stages{trainings} if runs shared nothing; {summary['asked'] - totals['total']} are shared")
    if not totals["todo"]:
        return [*lines, "Nothing to do."]
    passes = summary.get("passes") or {}
    counts = [f"{_unit(passes[word])} {word}" for word in ("forwards", "gradients") if passes.get(word)]
    lines += [f"passes: {', '.join(counts)}"] if counts else []
    unknown = summary.get("unknown", 0)
    if summary.get("seconds") is not None:
        lines.append(
            f"time: about {duration(summary['seconds'])} in one process" + (f", and {unknown} stages of unknown length" if unknown else "")
        )
        lines += _grounds(summary)
    return lines + ([f"disk: {_unit(summary['bytes'])}B"] if summary.get("bytes") is not None else [])


def _grounds(summary: dict[str, Any]) -> list[str]:
    """What the time was measured on."""
    stored, measured = summary.get("stored", 0), summary.get("measured", 0)
    words = [f"{stored} stages as long as like ones in the store"] * bool(stored)
    words += [f"{measured} by their passes, timed just now on {summary.get('device')} as busy as it is"] * bool(measured)
    return [f"of that, {'; '.join(words)}"] if words else []


def _unit(value: float) -> str:
    """1.2 M, 340 k: three digits and a decimal unit, with a space before it."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{float(f'{value / size:.3g}'):g} {unit}"
    return f"{value:.0f} "
