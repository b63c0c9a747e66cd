"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from rtbench.errors import UserError


class SuiteName(click.ParamType[str]):
    """A path or the name of a shipped suite; the shell completes both."""

    name = "suite"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from rtbench.planning.suite import shipped

        return [CompletionItem(name) for name in shipped() if name.startswith(incomplete)] + [CompletionItem(incomplete, type="file")]


def seconds(text: str | None) -> float | None:
    """Seconds from "90", "90s", "30m", "1.5h"."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if not match:
        raise UserError(f'"{text}" is not a duration such as 90s, 30m or 2h')
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


plugins = click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="A Python file with hooks; may be repeated.")
device = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, or auto.")
data = click.option("--data", metavar="DIR", help="The data folder; RTBENCH_DATA, or ./data.")


def formats(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """How to print it; the first name unless told otherwise."""
    return click.option("--format", "format_", type=click.Choice(names), default=names[0], show_default=True)


def choosing(command: Callable[..., Any]) -> Callable[..., Any]:
    """What to run: the suite and everything that changes it."""
    for decorate in reversed([
        click.argument("suite", type=SuiteName()),
        click.option("--profile", help="A profile of the suite, such as smoke."),
        click.option("--set", "sets", multiple=True, metavar="A.B=C", help="Override an entry; A.B+=C appends to a list."),
        click.option("--only", "only_", multiple=True, metavar="NAME=VALUE,...", help="Only these recipes, axis values; dense rows stay."),
        click.option("--trials", type=int, help="Trials per cell, instead of the suite's."),
        device,
        plugins,
        data,
    ]):  # fmt: skip
        command = decorate(command)
    return command


def store(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the results are."""
    from rtbench.commands.api import STORE

    option = click.option("--store", default=STORE, show_default=True, metavar="DIR", help="The store of results.")
    return option(command)


def choices(profile: str | None, sets: tuple[str, ...], only_: tuple[str, ...], trials: int | None, device: str,
            plugins: tuple[str, ...], data: str | None) -> dict[str, Any]:  # fmt: skip
    """The options of `choosing` as keyword arguments of `rtbench.commands.study.study`."""
    return {"profile": profile, "set": sets, "only": only_, "trials": trials, "device": device, "plugins": plugins, "data": data}
