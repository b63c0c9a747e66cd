"""parts, show, diff, check, doctor."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.text import Text

from rtbench.cli import options


@click.command()
@click.argument("what", required=False, metavar="[KIND|NAME]")
@options.plugins
def parts(what: str | None, plugins: tuple[str, ...]) -> None:
    """List all parts or those of a KIND, or explain the part called NAME."""
    from rtbench.cli.running import warn
    from rtbench.commands import describe
    from rtbench.plugins import catalogue
    from rtbench.terminal.screen import show_rows

    found = catalogue(plugins)
    warn(found)
    chosen = describe.find_parts(found, what)
    if what is None or any(part.name != what for part in chosen):
        heads = ("kind", "name", "what it does", "from")
        show_rows(heads, ((part.kind, part.name, describe.help_line(part), part.owner) for part in chosen))
        return
    for part in chosen:
        click.echo(f"{describe.heading(part)}\n{describe.help_line(part)}")
        if source := describe.source(part):
            click.echo(f"Source: {source}")
        show_rows(("knob", "type", "default", "help"), describe.knob_rows(part))


@click.command()
@click.argument("key")
@options.store
@options.formats("terminal", "json")
def show(key: str, store: str, format_: str) -> None:
    """Show the chain of stages behind the stage KEY (the beginning of a key is enough)."""
    from rtbench.commands import describe
    from rtbench.commands.upkeep import failed, resolve
    from rtbench.storage.store import Store

    opened = Store(store, create=False)
    if failure := failed(opened, key):
        click.echo(failure)
        return
    stages = describe.chain(opened, resolve(opened, key))
    if format_ == "json":
        click.echo(json.dumps(stages, indent=1))
        return
    console = Console()
    for number, stage in enumerate(stages, 1):
        facts = stage["provenance"]
        console.print(Text(f"{number}. {stage['verb']} {describe.part_text(stage['part'])}", style="bold"))
        console.print(Text(f"   key {stage['key']}, seed {stage['seed']}, data {stage['data']['use']}"))
        if stage["inputs"]:
            console.print(Text("   from " + ", ".join(f"{role} {ref}" for role, ref in stage["inputs"].items())))
        values = [f"{name or 'value'} = {value:.6g}" for name, value in stage["values"].items() if value is not None]
        if values:
            console.print(Text("   " + ", ".join(values)))
        if stage["flags"]:
            console.print(Text("   flags: " + ", ".join(stage["flags"])))
        if stage["weights"]:
            console.print(Text(f"   weights sha256 {stage['weights']}"))
        if code := describe.code_text(facts):
            console.print(Text(f"   code {code}"))
        plugin = facts.get("plugin", {})
        console.print(Text(
            f"   {facts.get('seconds', 0):.2f} s, {stage['passes']['forwards']} forwards, {stage['passes']['gradients']} gradients, "
            f"{plugin.get('name', 'rtbench')} {plugin.get('version', '')}, torch {facts.get('versions', {}).get('torch', '?')}, "
            f"{facts.get('device', '?')} of {facts.get('host', '?')}, {facts.get('finished', '?')}"
        ))  # fmt: skip


@click.command()
@click.argument("one")
@click.argument("other")
@options.store
def diff(one: str, other: str, store: str) -> None:
    """Compare two rows, ONE and OTHER: keys of any of their stages, as `board --format json` gives them."""
    from rtbench.commands import describe
    from rtbench.commands.upkeep import resolve
    from rtbench.storage.store import Store
    from rtbench.terminal.screen import show_rows

    opened = Store(store, create=False)
    first, second = resolve(opened, one), resolve(opened, other)
    rows = describe.difference(opened, first, second)
    if rows:
        show_rows(("where", first[:8], second[:8]), rows)
    else:
        click.echo("no difference")


@click.command()
@click.argument("name", required=False)
@options.plugins
def check(name: str | None, plugins: tuple[str, ...]) -> int:
    """Check every part, or those called NAME, against the contract of their kind."""
    from rtbench.cli.running import warn
    from rtbench.plugins import catalogue
    from rtbench.testing import check as run_checks

    found = catalogue(plugins)
    warn(found)
    counts = {"ok": 0, "skipped": 0, "FAILED": 0}
    for result in run_checks(name, found):
        verdict = "skipped" if result.skipped else "ok" if result.ok else "FAILED"
        counts[verdict] += 1
        reason = f"\n        {result.reason}" if result.reason and result.reason not in result.text else ""
        click.echo(f"{verdict:7} {result.kind} {result.name}: {result.text.removeprefix('skipped: ')}{reason}")
    tally = ", ".join(f"{count} {verdict.lower()}" for verdict, count in counts.items())
    click.echo(tally + (f", {len(found.aside)} plugins set aside" if found.aside else ""))
    return 1 if counts["FAILED"] or found.aside else 0


@click.command()
@options.plugins
@options.data
def doctor(plugins: tuple[str, ...], data: str | None) -> int:
    """Describe the environment: versions, plugins, GPU, data found. Exit code 1 if a plugin is broken."""
    from rtbench.commands.doctor import report
    from rtbench.terminal.screen import show_rows

    rows, sound = report(plugins, data)
    red = ("SET ASIDE", "CLASH")
    show_rows(("what", "found"), ((what, Text(finding, style="red" if finding.startswith(red) else "")) for what, finding in rows))
    return 0 if sound else 1
