"""The board as one HTML page that needs nothing else: figure, sortable and filterable table, and what every column and flag means."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from rtbench.builtin.reports import figure
from rtbench.builtin.reports.text import write

NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}
READING = (
    ("93.2 ± 0.4", "mean and standard deviation over the trials: networks from different seeds, all tested on the same samples"),
    ("n", "test samples that the attack saw; point at a number for its 95 % interval (Wilson) over them and for every trial"),
    ("#", "rank; – where a row is not finished or the network is at chance level"),
    ("57.1 (-0.3)", "a published number, and measured minus published"),
    ("trace", "keys of the stages behind each number, one per trial: rtbench show KEY tells how it came about"),
)


def html(board: Any, path: Path | str) -> None:
    """One self-contained page, light or dark as the reader's system is; it loads nothing from anywhere."""
    here = Path(__file__)
    name, rows = escape(board.suite), board.shown()
    counts = [f"{len(rows)} rows"] + [f"{n} {s}" for s in ("partial", "failed") if (n := sum(row.status == s for row in rows))]
    body = [
        f'<header><h1>{name}</h1><p>Which sparse networks are still robust, and by how much? {escape(", ".join(counts))}.</p></header>',
        "<main>", *_figure(board), *_table(board), '<div class="notes">', *_reading(board), *_columns(board), *_flags(board),
        *_failures(board), *_published(board), *_provenance(board), "</div>", "</main>",
    ]  # fmt: skip
    write(path, "\n".join([
        '<!doctype html>', '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', '<meta name="color-scheme" content="light dark">',
        f"<title>{name} · rtbench</title>", f"<style>\n{here.with_name('page.css').read_text(encoding='utf-8')}</style>", "</head>",
        "<body>", *body, f"<script>\n{here.with_name('page.js').read_text(encoding='utf-8')}</script>", "</body>", "</html>", "",
    ]))  # fmt: skip


def _figure(board: Any) -> list[str]:
    y, lines = figure.lines(board)
    if not lines:
        return []
    facts = next((entry for entry in board.protocol() if entry["column"] == y), {"column": y})
    share = y in board.accuracies
    label = f"{y}, {_ball(facts)}".rstrip(", ") + (" (%)" if share else "")
    drawn = figure.panels(lines, label, share)
    dropped = len({line.panel for line in lines}) - len(drawn)
    labels = sorted({line.label for line in lines})
    keys = "".join(f'<li data-label="{i}">{_swatch(i)}{escape(text)}</li>' for i, text in enumerate(labels) if text)
    parts = ['<section aria-labelledby="figure-title">', f'<h2 id="figure-title">Sparsity against {escape(y)}</h2>', '<div class="panels">']
    for title, svg in drawn:
        caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
        parts.append(f'<figure role="img" aria-label="{escape(f"{y} by weights kept; {title}; numbers in the table")}">{caption}{svg}</figure>')
    parts.append(f'</div><ul class="keys">{keys}</ul>')
    note = f" {dropped} more panels are left out." if dropped else ""
    return [*parts, f'<p class="small">Error bars: standard deviation over the trials. Dense on the left.{note}</p>', "</section>"]


def _swatch(number: int) -> str:
    colour, marker, dash = figure.style(number)
    shapes = {
        "o": '<circle cx="16" cy="7" r="4"/>', "s": '<path d="M12.5 3.5h7v7h-7z"/>', "D": '<path d="M16 2l5 5-5 5-5-5z"/>',
        "^": '<path d="M16 2.5l4.5 8h-9z"/>', "v": '<path d="M16 11.5l4.5-8h-9z"/>', "P": '<path d="M14 3h4v2.5h2.5v4H18V12h-4V9.500h-2.5v-4H14z"/>',
    }  # fmt: skip
    dashes = {"-": "", "--": ' stroke-dasharray="6 3"', ":": ' stroke-dasharray="2 3"'}[dash]
    line = f'<path d="M0 7h32" stroke="currentColor" stroke-width="1.6"{dashes}/>'
    variable = f"var(--series{number % figure.LINES})"
    return f'<svg class="swatch" viewBox="0 0 32 14" aria-hidden="true" style="color:{variable}" fill="currentColor">{line}{shapes[marker]}</svg>'


def _table(board: Any) -> list[str]:
    layout, texts, rows = board.layout(), board.text(), board.shown()
    facts = {entry["column"]: entry for entry in board.protocol()}
    sources = _sources(board)
    head = "".join(_header(column, facts) for column in layout) + '<th scope="col">trace</th>'
    parts = [
        '<section aria-labelledby="table-title">', '<div class="bar"><h2 id="table-title">Board</h2>',
        '<label>Filter <input id="filter" type="search" placeholder="words of a row"></label>',
        '<output id="count" for="filter" aria-live="polite"></output></div>',
        '<div class="scroll" role="region" aria-labelledby="table-title" tabindex="0"><table>',
        f"<caption>{escape(board.caption())}.</caption>", f"<thead><tr>{head}</tr></thead>", "<tbody>",
    ]  # fmt: skip
    for row, cells in zip(rows, texts, strict=True):
        chance = "chance-level" in row.flags
        kind = "weak" if chance else row.status
        inner = "".join(_cell(board, row, column, text, sources) for column, text in zip(layout, cells, strict=True))
        parts.append(f'<tr class="{kind}">{inner}<td>{_trace(row)}</td></tr>')
    return [*parts, "</tbody></table></div>", "</section>"]


def _header(column: Any, facts: dict[str, dict[str, str]]) -> str:
    entry = facts.get(column.name, {}) if column.kind == "probe" else {}
    ball = _ball({word: text for word, text in entry.items() if word != "attack"})
    small = " · ".join([*([ball] if ball else []), *([f"n={entry['samples']}"] if "samples" in entry else [])])
    name = f"{escape(column.name)} published" if column.kind == "published" else escape(column.head if not entry else column.name)
    inner = f'{name}{f"<small>{escape(small)}</small>" if small else ""}'
    sort = ' aria-sort="ascending"' if column.kind == "rank" else ""
    return f'<th scope="col" class="{column.kind}"{sort}><button type="button">{inner}</button></th>'


def _cell(board: Any, row: Any, column: Any, text: str, sources: dict[str, int]) -> str:
    if column.kind == "probe" and column.name in row.probes:
        return _number(row.probes[column.name], text, column.name in board.accuracies, column.name in board.rank)
    if column.kind == "published" and column.name in row.published:
        number = sources[_source(column.name, row.published[column.name])]
        value = row.published[column.name]["value"]
        return f'<td class="published" data-value="{value}">{escape(text)} <a href="#source{number}">[{number}]</a></td>'
    if column.kind == "flags":
        return f'<td class="flags">{"".join(_chip(board, item) for item in text.split(", ") if item)}</td>'
    value = row.cell.get(column.name) if column.kind == "axis" else text
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else text if text.isdigit() else None
    data = f' data-value="{number}"' if number is not None else ""
    return f'<td class="{column.kind}"{data}>{escape(text)}</td>'


def _number(measured: Any, text: str, share: bool, ranked: bool) -> str:
    if measured.mean is None:
        return f'<td class="probe">{escape(text)}</td>'
    main, _, spread = text.partition(" ± ")
    scale, digits = (100, ".1f") if share else (1, ".4g")
    about = [f"{measured.n} of {len(measured.values)} trials: " + ", ".join("–" if v is None else f"{scale * v:{digits}}" for v in measured.values)]
    if measured.interval:
        about.append("95 % interval {:.1f} to {:.1f}".format(*(100 * edge for edge in measured.interval)))
    if measured.samples:
        about.append(f"{measured.samples} {measured.split or ''} samples".replace("  ", " "))
    bar = f' style="--share:{measured.mean:.4f}"' if share else ""
    kind = f"probe{' share' if share else ''}{' ranked' if ranked else ''}"
    small = f' <span class="sd">± {escape(spread)}</span>' if spread else ""
    return f'<td class="{kind}" data-value="{measured.mean!r}" title="{escape("; ".join(about))}"{bar}><b>{escape(main)}</b>{small}</td>'


def _chip(board: Any, item: str) -> str:
    flag = item.split(" ")[0]
    return f'<a class="flag" href="#flag-{escape(flag)}" title="{escape(board.legend().get(flag, ""))}">{escape(item)}</a>'


def _trace(row: Any) -> str:
    keys = {**row.keys, "state": row.state}
    lines = "".join(f"<dt>{escape(name)}</dt><dd><code>{'<br>'.join(map(escape, stages))}</code></dd>" for name, stages in keys.items())
    return f"<details><summary>keys</summary><dl>{lines}</dl></details>"


def _ball(entry: dict[str, str]) -> str:
    """An attack as the field writes it: pgd, ℓ∞ 8/255."""
    ball = f"{NORMS.get(entry['norm'], entry['norm'])} {entry['eps']}" if "norm" in entry and "eps" in entry else ""
    return ", ".join(text for text in (entry.get("attack", ""), ball) if text)


def _notes(title: str, inner: str) -> list[str]:
    return [f"<section><h2>{title}</h2>", inner, "</section>"]


def _reading(board: Any) -> list[str]:
    kinds = {column.kind for column in board.layout()}
    known = [(term, text) for term, text in READING if term[:2] != "57" or "published" in kinds]
    return _notes("How to read a row", f"<dl>{''.join(f'<dt>{escape(term)}</dt><dd>{escape(text)}</dd>' for term, text in known)}</dl>")


def _columns(board: Any) -> list[str]:
    words = ("attack", "norm", "eps", "split", "samples")
    head = "".join(f'<th scope="col">{word}</th>' for word in ("column", *words))
    rows = [
        f'<tr><th scope="row">{escape(entry["column"])}</th>' + "".join(f"<td>{escape(NORMS.get(entry.get(w, ''), entry.get(w, '–')))}</td>" for w in words) + "</tr>"
        for entry in board.protocol()
    ]
    table = f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return _notes("What the columns measured", table + '<p class="small">eps is in input units, pixels in [0, 1].</p>')


def _flags(board: Any) -> list[str]:
    items = "".join(f'<dt id="flag-{escape(flag)}">{escape(flag)}</dt><dd>{escape(text)}</dd>' for flag, text in board.legend().items())
    return _notes("Flags", f"<dl>{items}</dl>") if items else []


def _failures(board: Any) -> list[str]:
    reasons = dict.fromkeys(reason for row in board.shown() for reason in row.reasons.values())
    return _notes("Failed", f"<ul>{''.join(f'<li>{escape(reason)}</li>' for reason in reasons)}</ul>") if reasons else []


def _source(name: str, entry: dict[str, Any]) -> str:
    return f"{name}: {entry['source']}" + (f". {entry['caveat']}" if "caveat" in entry else "")


def _sources(board: Any) -> dict[str, int]:
    """Every source of a published number, numbered from 1."""
    texts = dict.fromkeys(_source(name, entry) for row in board.shown() for name, entry in row.published.items())
    return {text: number for number, text in enumerate(texts, 1)}


def _published(board: Any) -> list[str]:
    items = "".join(f'<li id="source{number}">{link(text)}</li>' for text, number in _sources(board).items())
    return _notes("Published numbers", f"<ol>{items}</ol>") if items else []


def link(text: str) -> str:
    """The text as HTML, with arXiv ids and web addresses in it as links."""
    found = r"(https?://[^\s<>\"]+[^\s<>\".,;)])|(?:arXiv:|\b)(\d{4}\.\d{4,5})(v\d+)?\b"
    parts, end = [], 0
    for match in re.finditer(found, text, re.IGNORECASE):
        url = match[1] or f"https://arxiv.org/abs/{match[2]}{match[3] or ''}"
        parts += [escape(text[end : match.start()]), f'<a href="{escape(url)}" rel="noreferrer">{escape(match[0])}</a>']
        end = match.end()
    return "".join([*parts, escape(text[end:])])


def _provenance(board: Any) -> list[str]:
    items = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(text))}</dd>" for name, text in board.meta.items())
    return _notes("Provenance", f"<dl>{items}</dl>") if items else []
