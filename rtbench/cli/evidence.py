"""verify, explain."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from rtbench.cli import options


@click.command()
@click.argument("what", metavar="STORE|FILE")
@click.option("--key", "keys", multiple=True, metavar="KEY", help="Only this row; may be repeated.  [default: all]")
@click.option("--again", default=0, metavar="N", help="Also attack N random samples of every row again.")
@click.option("--checkpoint", metavar="FILE", help="Where the checkpoint of a result FILE lies now.")
@click.option("--witness", metavar="FILE", help="Where the adversarial examples of a result FILE lie now.")
@options.plugins
@options.device
@options.data
@options.formats("terminal", "json")
def verify(what: str, keys: tuple[str, ...], again: int, checkpoint: str | None, witness: str | None, plugins: tuple[str, ...],
           device: str, data: str | None, format_: str) -> int:  # fmt: skip
    """Check again what a STORE, or a FILE written by `evaluate --output`, says; exit code 1 where something does not hold.

    From weights, data, protocol and kept adversarial examples, with one forward per sample. Robust samples can only be attacked --again.
    """
    from rtbench.cli.running import warn
    from rtbench.plugins import catalogue

    found, seed = catalogue(plugins), secrets.randbits(32)
    warn(found)
    verdicts = _verified(what, keys, found, again, seed, device, data, checkpoint, witness)
    if format_ == "json":
        click.echo(json.dumps([verdict.as_json() for verdict in verdicts], indent=1))
    else:
        _show(verdicts, seed if again else None)
    return 1 if any(verdict.problems for verdict in verdicts) else 0


def _verified(what: str, keys: tuple[str, ...], found: Any, again: int, seed: int, device: str, data: str | None,
              checkpoint: str | None, witness: str | None) -> list[Any]:  # fmt: skip
    """Verdicts, with a bar on stderr while they are found."""
    from pathlib import Path

    import torch

    from rtbench.commands.study import data_root, pick_device
    from rtbench.commands.upkeep import resolve
    from rtbench.engine.context import Options
    from rtbench.errors import UserError
    from rtbench.evidence import verify_file, verify_store
    from rtbench.storage.store import Store

    how, rng, path = Options(data_root(data), pick_device(device)), torch.Generator().manual_seed(seed), Path(what)
    if path.is_file():
        if keys:
            raise UserError("--key names rows of a store, not of a file")
        return [verify_file(path, found, how, checkpoint, witness, again, rng)]
    if checkpoint or witness:
        raise UserError("--checkpoint and --witness go with a result file, not with a store")
    store = Store(what, create=False)
    chosen = [resolve(store, key) for key in keys]
    with Progress(console=Console(stderr=True), transient=True, disable=not Console(stderr=True).is_terminal) as progress:
        task = progress.add_task("samples", total=None)

        def started(key: str, total: int) -> None:
            progress.update(task, description=key[:8], total=total, completed=0)

        return verify_store(store, found, how, chosen, again, rng, started, lambda count: progress.advance(task, count))


def _show(verdicts: list[Any], seed: int | None) -> None:
    """A line for every problem, then a table of the whole."""
    from rtbench.evidence.verdict import NUMERICS
    from rtbench.terminal.screen import show_rows

    for verdict in verdicts:
        for line in verdict.problems:
            click.echo(f"{verdict.key[:8]} {verdict.what}: {line}")
    unsaid: dict[str, list[str]] = {}
    for verdict in verdicts:
        for text in verdict.unsaid:
            unsaid.setdefault(re.sub(r"\d+", "", text), []).append(f"{verdict.key[:8]} {verdict.what}: not checked: {text}")
    for lines in unsaid.values():
        click.echo(lines[0] + (f" ({len(lines) - 1} more rows alike)" if len(lines) > 1 else ""))
    sums = {name: sum(getattr(verdict, name) for verdict in verdicts) for name in ("samples", "witnesses", "robust", "again", "numerics")}
    rows = {
        "rows that hold": sum(not verdict.problems for verdict in verdicts),
        "rows that do not": sum(bool(verdict.problems) for verdict in verdicts),
        "rows with something not checked": sum(bool(verdict.unsaid) for verdict in verdicts),
        "clean images asked again": sums["samples"], "adversarial examples asked again": sums["witnesses"],
        "robust samples, which only attacking again can test": sums["robust"],
        f"samples attacked again{'' if seed is None else f' (drawn with seed {seed})'}": sums["again"],
        f"too close to tell (margin below {NUMERICS:g})": sums["numerics"],
    }  # fmt: skip
    show_rows(("checked", "count"), ((name, str(count)) for name, count in rows.items()))


@click.command()
@click.argument("key")
@options.store
@options.formats("terminal", "markdown")
def explain(key: str, store: str, format_: str) -> None:
    """One page on the stage KEY: what was run, on what, why it can be believed, what it cost."""
    from rich.markdown import Markdown

    from rtbench.commands.upkeep import resolve
    from rtbench.evidence.explain import page
    from rtbench.storage.store import Store

    opened = Store(store, create=False)
    text = page(opened, resolve(opened, key))
    if format_ == "markdown":
        click.echo(text)
        return
    console = Console()
    console.print(Markdown(text), width=min(100, console.width))
