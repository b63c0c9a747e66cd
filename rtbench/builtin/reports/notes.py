"""The notes under the board's page: how to read it, what its columns measured, flags, failures, sources, provenance."""

from __future__ import annotations

import re
from html import escape
from typing import Any

NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}
WORST = (
    "the share of samples robust against every attack run under that threat, on the samples that all of them saw; "
    "incomplete where one failed or is missing"
)
READING = (
    ("93.2 ± 0.4", "mean and standard deviation over the trials: networks from different seeds, all tested on the same samples"),
    ("n", "test samples that the attack saw; point at a number for its 95 % interval (Wilson) over them and for every trial"),
    ("#", "rank; – where a row is not finished or the network is at chance level"),
    ("57.1 (-0.3)", "a published number, and measured minus published"),
    ("93.2ᵃ", "a flag was raised while this number was measured; the letter leads to what it means"),
    ("worst", WORST),
    ("trace", "keys of the stages behind each number, one per trial: rtbench show KEY tells how it came about"),
)


def ball(entry: dict[str, str]) -> str:
    """An attack as the field writes it: pgd, ℓ∞ 8/255."""
    ball = f"{NORMS.get(entry['norm'], entry['norm'])} {entry['eps']}" if "norm" in entry and "eps" in entry else ""
    return ", ".join(text for text in (entry.get("attack", ""), ball) if text)


def _section(title: str, inner: str) -> list[str]:
    return [f"<section><h2>{title}</h2>", inner, "</section>"]


def reading(board: Any) -> list[str]:
    kinds = {column.kind for column in board.layout()}
    there = {"57.1 (-0.3)": "published" in kinds, "93.2ᵃ": bool(board.legend()), "worst": any("label" in e for e in board.protocol())}
    known = [(term, text) for term, text in READING if there.get(term, True)]
    known += [(term, text) for term, _, text in (note.partition(": ") for note in board.notes)]
    return _section("How to read a row", f"<dl>{''.join(f'<dt>{escape(term)}</dt><dd>{escape(text)}</dd>' for term, text in known)}</dl>")


def columns(board: Any) -> list[str]:
    words = ("attack", "norm", "eps", "split", "samples")
    head = "".join(f'<th scope="col">{word}</th>' for word in ("column", *words))
    rows = [
        f'<tr><th scope="row">{escape(entry.get("label", entry["column"]))}</th>{_cells(entry, words)}</tr>' for entry in board.protocol()
    ]
    table = f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return _section("What the columns measured", table + '<p class="small">eps is in input units, pixels in [0, 1].</p>')


def _cells(entry: dict[str, str], words: tuple[str, ...]) -> str:
    return "".join(f"<td>{escape(_fact(entry, word))}</td>" for word in words)


def _fact(entry: dict[str, str], word: str) -> str:
    return NORMS.get(entry.get(word, ""), entry.get(word, "–"))


def flags(board: Any) -> list[str]:
    items = "".join(f'<dt id="flag-{escape(flag)}">{escape(flag)}</dt><dd>{escape(text)}</dd>' for flag, text in board.legend().items())
    return _section("Flags", f"<dl>{items}</dl>") if items else []


def failures(board: Any) -> list[str]:
    reasons = dict.fromkeys(reason for row in board.shown() for reason in row.reasons.values())
    return _section("Failed", f"<ul>{''.join(f'<li>{escape(reason)}</li>' for reason in reasons)}</ul>") if reasons else []


def source(name: str, entry: dict[str, Any]) -> str:
    return f"{name}: {entry['source']}" + (f"; {entry['caveat']}" if "caveat" in entry else "")


def sources(board: Any) -> dict[str, int]:
    """Every source of a published number, numbered from 1."""
    texts = dict.fromkeys(source(name, entry) for row in board.shown() for name, entry in row.published.items())
    return {text: number for number, text in enumerate(texts, 1)}


def published(board: Any) -> list[str]:
    items = "".join(f'<li id="source{number}">{link(text)}</li>' for text, number in sources(board).items())
    return _section("Published numbers", f"<ol>{items}</ol>") if items else []


def link(text: str) -> str:
    """The text as HTML, with arXiv ids and web addresses in it as links."""
    found = r"(https?://[^\s<>\"]+[^\s<>\".,;)])|(?:arXiv:|\b)(\d{4}\.\d{4,5})(v\d+)?\b"
    parts, end = [], 0
    for match in re.finditer(found, text, re.IGNORECASE):
        url = match[1] or f"https://arxiv.org/abs/{match[2]}{match[3] or ''}"
        parts += [escape(text[end : match.start()]), f'<a href="{escape(url)}" rel="noreferrer">{escape(match[0])}</a>']
        end = match.end()
    return "".join([*parts, escape(text[end:])])


def provenance(board: Any) -> list[str]:
    items = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(text))}</dd>" for name, text in board.meta.items())
    return _section("Provenance", f"<dl>{items}</dl>") if items else []
