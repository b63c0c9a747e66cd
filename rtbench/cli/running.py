"""run, plan, board, compare."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from rtbench.cli import options

if TYPE_CHECKING:
    from rtbench.commands.study import Study


@click.command()
@options.choosing
@options.store
@click.option("--workers", type=int, metavar="N", help="Worker processes; 1 is none.  [default: one per core, 4 at most; 1 on a GPU]")
@click.option("--threads", type=int, help="Threads per process; all cores, or the cores shared by the workers.")
@click.option("--isolate", is_flag=True, help="Run stages in a process of their own even with one worker, as parts of plugins always do.")
@click.option("--budget", metavar="TIME", help="Stop after this long (90s, 30m, 2h); run again to continue.")
@click.option("--timeout", default="30m", show_default=True, metavar="TIME", help="Kill a worker that is silent for so long.")
@click.option("--keep", type=click.Choice(["all", "measured", "none"]), default="all", show_default=True, help="Which weights to keep.")
@click.option("--witness", is_flag=True, help="Keep adversarial examples as evidence; finished probes without run again.")
@click.option(
    "--stack", type=int, default=1, show_default=True, metavar="N", help="Train up to N networks of a kind as one: small ones, on a GPU."
)
@click.option("--accept", multiple=True, metavar="PART", help="Keep results of another code of PART, from now on; may be repeated.")
@click.option(
    "--report", metavar="FILE", help="The HTML report.  [default: STORE/SUITE.html, or SUITE-xxxxxx.html if taken or with choices]"
)
def run(suite: str, store: str, workers: int | None, threads: int | None, isolate: bool, budget: str | None, timeout: str, keep: str,
        witness: bool, stack: int, accept: tuple[str, ...], report: str | None, **given: Any) -> int:  # fmt: skip
    """Run what SUITE still lacks, then show its board.

    SUITE is a path or the name of a shipped suite. Finished stages are never run again; an interrupted run continues.
    """
    from rtbench.engine.memory import reuse_freed
    from rtbench.engine.processes import cores, start_server

    reuse_freed()
    if workers != 1 and cores() > 1:
        start_server()
    what = planned(suite, **given)
    from rtbench.commands import api, drift
    from rtbench.terminal.screen import Screen
    from rtbench.terminal.waiting import waiting

    warn(what.catalogue, drift.check(what, store, accept))
    how = api.How(workers, isolate, threads, options.seconds(budget), options.seconds(timeout) or 0.0, keep, witness=witness, stack=stack)
    with Screen(what.plan) as screen:
        board = api.run_study(what, store, how, screen)
    chosen = {name: value for name, value in given.items() if value and name in ("profile", "sets", "only_", "trials")}
    path = report or api.page_path(store, board, chosen)
    with waiting("writing the report"):
        api.write_report(board, what.catalogue, "html", path)
    show(board, what.catalogue, "terminal", None)
    click.echo(api.summary(board, path))
    return 1 if board.tally is not None and board.tally.failed else 0


@click.command()
@options.choosing
@options.store
def plan(suite: str, store: str, **given: Any) -> None:
    """Show what a run of SUITE would do, without doing it."""
    from rtbench.commands.estimate import estimate
    from rtbench.terminal.planned import plan_table
    from rtbench.terminal.screen import show_table
    from rtbench.terminal.waiting import waiting

    what = planned(suite, **given)
    with waiting("looking what is there"):
        summary = estimate(what, store)
    warn(what.catalogue, summary["drift"])
    show_table(plan_table(summary))


@click.command()
@options.choosing
@options.store
@options.formats("terminal", "json", "csv", "markdown", "latex", "html", "figures")
@click.option("--output", metavar="PATH", help="Write to a file, of figures to a folder, instead of the terminal.")
@click.option("--columns", metavar="NAMES", help="The columns of numbers: clean,pgd.  [default: the suite's]")
@click.option("--without", metavar="NAMES", help="Leave out these columns of tables: #,trials,flags,constant or an axis.")
@click.option("--caption", metavar="TEXT", help="The caption of tables, instead of what rtbench says.")
@click.option("--label", metavar="NAME", help="What LaTeX refers to the table by.  [default: tab:SUITE]")
def board(suite: str, store: str, format_: str, output: str | None, columns: str | None, without: str | None, caption: str | None,
          label: str | None, **given: Any) -> None:  # fmt: skip
    """Show the board of SUITE from what the store has; computes nothing."""
    import json

    from rtbench.commands import api

    lists = {
        name: [word.strip() for word in text.split(",")] for name, text in (("columns", columns), ("without", without)) if text is not None
    }
    entries = {**lists, **{name: text for name, text in (("caption", caption), ("label", label)) if text is not None}}
    given["sets"] += tuple(f"board.{name}={json.dumps(value, ensure_ascii=False)}" for name, value in entries.items())
    what = planned(suite, **given)
    warn(what.catalogue)
    show(api.board_of(what, store), what.catalogue, format_, output)


@click.command()
@options.choosing
@click.argument("one")
@click.argument("other")
@options.store
@options.formats("terminal", "json", "csv", "markdown", "latex")
@click.option("--output", metavar="PATH", help="Write to a file instead of the terminal.")
def compare(suite: str, one: str, other: str, store: str, format_: str, output: str | None, **given: Any) -> None:
    """By how much row ONE of the board of SUITE beats row OTHER, for every column of both, and whether that is more than chance.

    A row is named by the beginning of one of its keys, or by what no other row is: recipe=sparse,pruner=global,drop=0.9. Of the states of
    one run the last is meant, unless step=... or round=... names another.
    """
    from rtbench.commands import api

    what = planned(suite, **given)
    warn(what.catalogue)
    show(api.compare_rows(what, one, other, store), what.catalogue, format_, output)


def planned(suite: str, **given: Any) -> Study:
    """The suite, planned, with the choices of the command line; with torch to load, that takes some seconds."""
    from rtbench.terminal.waiting import waiting

    with waiting("planning"):
        from rtbench.commands.study import study

        return study(suite, **options.choices(**given))


def show(found: Any, catalogue: Any, format_: str, output: str | None) -> None:
    """Prints a board or a comparison, or writes it to a file, in one of the formats."""
    from rtbench.commands import api
    from rtbench.ranking.board import Board
    from rtbench.terminal.compared import compared_table
    from rtbench.terminal.screen import board_table, show_table

    if format_ == "terminal" and output is None:
        show_table(board_table(found) if isinstance(found, Board) else compared_table(found))
    elif output is not None:
        api.write_report(found, catalogue, "markdown" if format_ == "terminal" else format_, output)
    else:
        click.echo(api.report_text(found, catalogue, format_), nl=False)


def warn(catalogue: Any, changed: Iterable[Any] = ()) -> None:
    """One line for every plugin that was set aside, and for every part whose code changed since results were stored."""
    for plugin, reason in catalogue.aside.items():
        print(f'rtbench: plugin "{plugin}" was set aside: {reason}', file=sys.stderr)
    for drift in changed:
        print(f"rtbench: {drift}", file=sys.stderr)
