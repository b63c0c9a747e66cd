"""The board as one HTML page that needs nothing else: figures, sortable and filterable table, and what every column and flag means."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from rtbench.builtin.reports import figure, notes
from rtbench.builtin.reports.gallery import gallery, key_list
from rtbench.builtin.reports.text import write
from rtbench.parts.flags import MARKS

ABOUT = "Which sparse networks are still robust, and by how much?"


def html(board: Any, path: Path | str) -> None:
    """One self-contained page, light or dark as the reader's system is; it loads nothing from anywhere."""
    here = Path(__file__)
    name, rows = escape(board.suite), board.shown()
    counts = [f"{len(rows)} rows"] + [f"{n} {s}" for s in ("partial", "failed") if (n := sum(row.status == s for row in rows))]
    about = board.about or ABOUT
    body = [
        f"<header><h1>{name}</h1><p>{escape(about if about[-1] in '.?!' else f'{about}.')} {escape(', '.join(counts))}.</p></header>",
        "<main>", *([] if board.figures else _figure(board)), *_table(board), *gallery(board),
        '<div class="notes">', *notes.reading(board), *notes.columns(board), *notes.flags(board),
        *notes.failures(board), *notes.published(board), *notes.provenance(board), "</div>", "</main>",
    ]  # fmt: skip
    write(path, "\n".join([
        '<!doctype html>', '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', '<meta name="color-scheme" content="light dark">',
        f'<meta name="suite" content="{escape(board.origin)}">', f"<title>{name} · rtbench</title>",
        f"<style>\n{here.with_name('page.css').read_text(encoding='utf-8')}</style>", "</head>",
        "<body>", *body, f"<script>\n{here.with_name('page.js').read_text(encoding='utf-8')}</script>", "</body>", "</html>", "",
    ]))  # fmt: skip


def _figure(board: Any) -> list[str]:
    y, lines = figure.lines(board)
    if not lines:
        return []
    facts = next((entry for entry in board.protocol() if entry["column"] == y), {"column": y})
    share = y in board.accuracies
    ball = notes.ball({word: text for word, text in facts.items() if word != "attack"})
    y = facts.get("label", y).split(" ")[0] if "label" in facts else y
    drawn = figure.panels(lines, " ".join([y, *([ball] if ball else [])]) + (" (%)" if share else ""), share)
    dropped = len({line.panel for line in lines}) - len(drawn)
    keys = key_list(lines[0].head, [(number, text, "line") for number, text in enumerate(figure.labels(lines))])
    parts = ['<section aria-labelledby="figure-title">', f'<h2 id="figure-title">Sparsity against {escape(y)}</h2>', '<div class="panels">']
    for title, svg in drawn:
        caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
        told = escape(f"{y} by weights kept; {title}; numbers in the table")
        parts.append(f'<figure role="img" aria-label="{told}">{caption}{svg}</figure>')
    parts.append(f"</div>{keys}")
    note = f" {dropped} more panels are left out." if dropped else ""
    return [*parts, f'<p class="small">Error bars: standard deviation over the trials. Dense on the left.{note}</p>', "</section>"]


def _table(board: Any) -> list[str]:
    layout, texts, rows = board.layout(), board.text(), board.shown()
    facts = {entry["column"]: entry for entry in board.protocol()}
    sources, signs = notes.sources(board), _signs(board)
    head = "".join(_header(column, facts) for column in layout) + '<th scope="col">trace</th>'
    parts = [
        '<section aria-labelledby="table-title">', '<div class="bar"><h2 id="table-title">Board</h2>',
        '<label>Filter <input id="filter" type="search" placeholder="words of a row"></label>',
        '<output id="count" for="filter" aria-live="polite"></output></div>',
        '<div class="scroll" role="region" aria-labelledby="table-title" tabindex="0"><table>',
        f"<caption><span>{escape(board.caption())}.</span></caption>", f"<thead><tr>{head}</tr></thead>", "<tbody>",
    ]  # fmt: skip
    for row, cells in zip(rows, texts, strict=True):
        chance = "chance-level" in row.flags
        kind = "weak" if chance else row.status
        inner = "".join(_cell(board, row, column, text, sources, signs) for column, text in zip(layout, cells, strict=True))
        parts.append(f'<tr class="{kind}">{inner}<td>{_trace(row)}</td></tr>')
    return [*parts, "</tbody></table></div>", "</section>"]


def _header(column: Any, facts: dict[str, dict[str, str]]) -> str:
    entry = facts.get(column.name, {}) if column.kind == "probe" else {}
    ball = notes.ball({word: text for word, text in entry.items() if word != "attack"})
    small = " · ".join([*([ball] if ball else []), *([f"n={entry['samples']}"] if "samples" in entry else [])])
    short = entry["label"].split(" ")[0] if "label" in entry else column.name  # the ball stands below it
    name = f"{escape(column.name)} published" if column.kind == "published" else escape(short if entry else column.head)
    inner = f"{name}{f'<small>{escape(small)}</small>' if small else ''}"
    sort = ' aria-sort="ascending"' if column.kind == "rank" else ""
    return f'<th scope="col" class="{column.kind}{" number" if column.number else ""}"{sort}><button type="button">{inner}</button></th>'


def _cell(board: Any, row: Any, column: Any, text: str, sources: dict[str, int], signs: dict[str, str]) -> str:
    if column.kind == "probe" and column.name in row.probes:
        share, ranked = column.name in board.accuracies, column.name in board.rank
        marks = "".join(sign for flag, sign in signs.items() if flag in row.probes[column.name].flags)
        return _number(row.probes[column.name], text, share, ranked, f'<span class="marks">{marks}</span>' if marks else "")
    if column.kind == "published" and column.name in row.published:
        place = sources[notes.source(column.name, row.published[column.name])]
        value = row.published[column.name]["value"]
        return f'<td class="published number" data-value="{value}">{escape(text)} <a href="#source{place}">[{place}]</a></td>'
    if column.kind == "flags":
        return f'<td class="flags">{"".join(_chip(board, item) for item in text.split(", ") if item)}</td>'
    value = row.cell.get(column.name) if column.kind == "axis" else text
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else text if text.isdigit() else None
    data = f' data-value="{number}"' if number is not None else ""
    return f'<td class="{column.kind}{" number" if column.number else ""}"{data}>{escape(text)}</td>'


def _signs(board: Any) -> dict[str, str]:
    """Each flag as a raised letter that leads to what it means."""
    legend = board.legend()
    return {
        flag: f'<a href="#flag-{escape(flag)}" title="{escape(flag)}: {escape(legend[flag])}">{mark}</a>'
        for flag, mark in board.marks().items()
    }


def _number(measured: Any, text: str, share: bool, ranked: bool, marks: str) -> str:
    text = text.rstrip(MARKS)
    if measured.mean is None:
        lost = f' title="without {escape(", ".join(measured.missing))}"' if measured.missing else ""
        return f'<td class="probe number{" incomplete" if lost else ""}"{lost}>{escape(text)}{marks}</td>'
    main, _, spread = text.partition(" ± ")
    scale, digits = (100, ".1f") if share else (1, ".4g")
    trials = ", ".join("–" if value is None else f"{scale * value:{digits}}" for value in measured.values)
    about = [f"{measured.n} of {len(measured.values)} trials: {trials}"]
    if measured.interval:
        about.append("95 % interval {:.1f} to {:.1f}".format(*(100 * edge for edge in measured.interval)))
    if measured.samples:
        about.append(f"{measured.samples} {measured.split or ''} samples".replace("  ", " "))
    bar = f' style="--share:{measured.mean:.4f}"' if share else ""
    kind = f"probe number{' share' if share else ''}{' ranked' if ranked else ''}"
    small = f' <span class="sd">± {escape(spread)}</span>' if spread else ""
    told = f'data-value="{measured.mean!r}" title="{escape("; ".join(about))}"{bar}'
    return f'<td class="{kind}" {told}><b>{escape(main)}</b>{small}{marks}</td>'


def _chip(board: Any, item: str) -> str:
    flag = item.split(" ")[0]
    return f'<a class="flag" href="#flag-{escape(flag)}" title="{escape(board.legend().get(flag, ""))}">{escape(item)}</a>'


def _trace(row: Any) -> str:
    keys = {**row.keys, "state": row.state}
    lines = "".join(f"<dt>{escape(name)}</dt><dd><code>{'<br>'.join(map(escape, stages))}</code></dd>" for name, stages in keys.items())
    return f"<details><summary>keys</summary><dl>{lines}</dl></details>"
