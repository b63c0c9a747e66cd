"""reindex, merge, gc."""

from __future__ import annotations

import click

from rtbench.cli import options


@click.command()
@options.store
def reindex(store: str) -> None:
    """Rebuild the index of a store from its folders."""
    from rtbench.storage.index import rebuild
    from rtbench.storage.store import Store

    click.echo(f"{rebuild(Store(store, create=False))} stages indexed")


@click.command()
@click.argument("other")
@options.store
def merge(other: str, store: str) -> int:
    """Copy the results of the store OTHER into this one; what both have stays as it is."""
    from rtbench.commands.upkeep import merge as merge_stores
    from rtbench.storage.store import Store

    copied, present, damaged = merge_stores(Store(store), Store(other, create=False))
    click.echo(f"{copied} stages copied, {present} already there" + (f", {len(damaged)} damaged and left out" if damaged else ""))
    return 1 if damaged else 0


@click.command()
@click.argument("suites", nargs=-1, type=options.SuiteName())
@options.store
@click.option("--profile", help="A profile of the suites.")
@click.option("--set", "sets", multiple=True, metavar="A.B=C", help="Override an entry of the suites.")
@click.option("--keep", type=click.Choice(["measured", "none"]), default="measured", show_default=True, help="Which weights to keep.")
@options.plugins
def gc(suites: tuple[str, ...], store: str, profile: str | None, sets: tuple[str, ...], keep: str, plugins: tuple[str, ...]) -> None:
    """Drop weights that no pending stage, rewind or board of SUITES needs. Records and samples are never dropped."""
    from rtbench.commands import api
    from rtbench.commands.upkeep import clean
    from rtbench.commands.upkeep import gc as collect
    from rtbench.errors import UserError
    from rtbench.storage.store import Store

    if not suites and keep == "measured":
        raise UserError("name the suites whose weights are to be kept, or --keep none to drop all weights")
    opened = Store(store, create=False)
    opened.writable()
    plans = [api.plan(suite, profile=profile, set=sets, plugins=plugins) for suite in suites]
    dropped, freed = collect(opened, plans, keep)
    click.echo(f"weights of {dropped} stages dropped, {(freed + clean(opened)) / 1e6:.1f} MB freed")
