"""Reports for machines and for plain-text documents."""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
import re
from pathlib import Path
from typing import Any


def json(board: Any, path: Path | str) -> None:
    """Every row with every number, per layer too, in the board's own JSON schema."""
    write(path, json_module.dumps(board.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def csv(board: Any, path: Path | str) -> None:
    """One line per row, also those that show = "last" leaves out, whose `last` is false.

    Axes, then per probe the .keys of the stages behind it, its mean, .sd, .n, .low and .high (95 % interval) and .values, one per trial;
    state.keys are those of the networks; where there are any, .flags raised while it was measured and .missing, the attacks that a worst
    case lacks. On boards with lottery tickets: ticket (the verdict), ticket.test, .p and .n.

    Accuracies are shares, not percent. Lists are joined by ";", and a field is empty where there is nothing.
    """
    text = io.StringIO()
    records = board.records()
    writer = csv_module.DictWriter(text, list(records[0]) if records else ["rank"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: field(value) for name, value in record.items()} for record in records)
    write(path, text.getvalue())


def markdown(board: Any, path: Path | str) -> None:
    """The table that the terminal shows, as GitHub reads it, with what its flags mean and how each column was measured."""
    headers, rows = board.table()
    lines = [escape(board.caption()), "", _line(headers)]
    lines.append("|" + "|".join(" ---: " if column.number else " --- " for column in board.layout()) + "|")
    lines += [_line(row) for row in rows]
    facts = [f"- {escape(entry.get('label', entry['column']))}: {escape(sentence(entry))}" for entry in board.protocol() if len(entry) > 1]
    marks = board.marks()
    flags = [f"- {marks[flag]} {escape(flag)}: {escape(meaning)}" for flag, meaning in board.legend().items()]
    failures = [f"- {escape(reason)}" for reason in dict.fromkeys(reason for row in board.shown() for reason in row.reasons.values())]
    failures += [f"- {escape(name)} is incomplete without {escape(', '.join(lost))}" for name, lost in board.incomplete().items()]
    published = [f"- {escape(text)}" for text in sources(board)]
    notes = [f"- {escape(note)}" for note in board.notes]
    plugins = [f"- {escape(plugin)}" for plugin in board.plugins]
    for title, entries in (("Columns", facts), ("Notes", notes), ("Flags", flags), ("Failed", failures), ("Published", published),
                           ("Plugins", plugins)):  # fmt: skip
        if entries:
            lines += ["", f"{title}:", "", *entries]
    write(path, "\n".join(lines) + "\n")


def sentence(entry: dict[str, str]) -> str:
    """How a column was measured, in words."""
    words = [entry["attack"]] if "attack" in entry else []
    words += [f"{entry['norm']} {entry['eps']}"] if "norm" in entry and "eps" in entry else []
    if "samples" in entry:
        words.append(f"{entry['samples']} {entry.get('split', '')} samples".replace("  ", " "))
    return ", ".join(words)


def sources(board: Any) -> list[str]:
    """Where the published numbers come from and what to beware of, each once."""
    entries = [(name, entry) for row in board.shown() for name, entry in row.published.items()]
    return list(dict.fromkeys(f"{name}: {entry['source']}{'; ' + entry['caveat'] if 'caveat' in entry else ''}" for name, entry in entries))


def field(value: Any) -> str:
    """A value as the text of one field: lists joined by ";", nothing for None."""
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        return ";".join(field(item) for item in value)
    if value is None:
        return ""
    return json_module.dumps(value, sort_keys=True) if isinstance(value, dict | list | bool) else str(value)


def escape(text: str) -> str:
    """The text as Markdown that shows it as it is, on one line and inside a table."""
    return re.sub(r"([\\`*_{}\[\]<>|~#])", r"\\\1", " ".join(text.split()))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def write(path: Path | str, text: str) -> None:
    """The text as UTF-8 with the same line ends everywhere."""
    Path(path).write_text(text, encoding="utf-8", newline="\n")
