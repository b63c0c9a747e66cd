"""An evaluation as people read it: a short text table, and HTML for notebooks in whatever colours the notebook has."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from rtbench.ranking.wording import compact, percent, radius
from rtbench.statistics import wilson

if TYPE_CHECKING:
    from rtbench.live.result import Evaluation

Line = tuple[str, str, str, str, bool]
"""Name, share in percent, 95 % interval, remark; whether it is an inner attack's."""
CELL = "padding:.15em .8em .15em 0;text-align:{};white-space:nowrap"
TABLE = "border-collapse:collapse;color:inherit;font:inherit;font-variant-numeric:tabular-nums"
SMALL = 'style="font-size:.9em;margin:.3em 0"'


def title(result: Evaluation) -> str:
    ball = f", {result.norm} {radius(result.eps)}" if result.eps is not None else ""
    return f"{len(result)} sample{'s' if len(result) != 1 else ''}{ball}"


def lines(result: Evaluation) -> Iterator[Line]:
    """One line for clean accuracy, for each attack and its inner ones, and for the worst case over several."""
    n = len(result)
    yield ("clean", percent(result.clean), _interval(result.clean, n), "", False)
    for name, each in result.attacks.items():
        if each.accuracy is None:
            yield (name, "failed", "", "", False)
            continue
        yield (name, percent(each.accuracy), _interval(each.accuracy, n), f"broke {int(result.clean_bits.sum()) - _count(each)}", False)
        if each.inner:
            yield from ((entry.attack, percent(entry.left / n), "", f"broke {entry.broke}", True) for entry in each.attribution)
    if len(result.attacks) > 1:
        worst = result.accuracy
        yield ("worst", "incomplete" if worst is None else percent(worst), "" if worst is None else _interval(worst, n), "", False)


def _count(each: Any) -> int:
    return int(each.robust.sum())


def _interval(share: float, n: int) -> str:
    low, high = wilson(share, n)
    return f"[{percent(low)}, {percent(high)}]"


def remarks(result: Evaluation) -> Iterator[tuple[str, str]]:
    """What else there is to say: flags and failures first, then the price and what to know."""
    for flag, text in result.flags.items():
        yield f"flag {flag}", text
    for name, reason in result.failures.items():
        yield f"failed {name}", reason
    for name, each in result.attacks.items():
        if each.recheck is not None:
            yield f"bf16 {name}", str(each.recheck)
    passes = result.passes
    counts = ", ".join(
        f"{compact(passes[word])} {word} ({compact(passes[f'{word}_per_sample'])} a sample)" for word in ("forwards", "gradients")
    )
    yield "cost", f"{counts}, {result.seconds:.1f} s on {result.protocol['device']}, {result.protocol['threads']} threads"
    if result.nonzero:
        yield "non-zero", ", ".join(f"{percent(share)} % of {name} weights" for name, share in result.nonzero.items())
    for note in result.notes:
        yield "note", note


def text(result: Evaluation) -> str:
    """A table of fixed-width text."""
    rows = [("  " * inner + name, share, interval, remark) for name, share, interval, remark, inner in lines(result)]
    rows = [("", "accuracy %", "95 % interval", ""), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    table = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}".rstrip() for row in rows]
    return "\n".join([f"rtbench.evaluate: {title(result)}", *table, *(f"{head}: {body}" for head, body in remarks(result))])


def html(result: Evaluation) -> str:
    """The same as HTML without any style of its own but spacing and weight, so that it reads on light and on dark."""
    head = "".join(_cell(word, "right" if i == 1 else "left", "th") for i, word in enumerate(("", "accuracy %", "95 % interval", "")))
    body = []
    for name, share, interval, remark, inner in lines(result):
        bold = "" if inner else "font-weight:600;"
        look = "opacity:.75" if inner else ""
        cells = _cell(name, "left", "td", "padding-left:1.4em" if inner else "") + _cell(share, "right", "td", bold)
        body.append(f'<tr style="{look}">{cells}{_cell(interval, "left")}{_cell(remark, "left")}</tr>')
    notes = "".join(f"<p {SMALL}>{_remark(head, text)}</p>" for head, text in remarks(result))
    return (
        f'<div class="rtbench"><p style="margin:.3em 0"><b>{escape(title(result))}</b></p>'
        f'<table style="{TABLE}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>{notes}</div>"
    )


def _remark(head: str, body: str) -> str:
    warn = "background:#fdf0d5;color:#7a4a00;border-radius:.8em;padding:0 .5em" if head.startswith(("flag", "failed")) else ""
    return f'<b style="{warn}">{escape(head)}</b> <span style="opacity:.75">{escape(body)}</span>'


def _cell(body: str, align: str, tag: str = "td", more: str = "") -> str:
    return f'<{tag} style="{CELL.format(align)};{more}">{escape(body)}</{tag}>'
