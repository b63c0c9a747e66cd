"""A tiny study on digits, its parts in plugin files, and what a store holds: for tests that run whole studies."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import rtbench
from rtbench.planning.plan import Plan, Stage
from rtbench.ranking.board import Board
from rtbench.storage.results import Results

TESTS = Path(__file__).parent
torch.set_num_threads(1)

SUITE = """
name = "tiny"
data = "digits"
[axes]
drop = [0.5, 0.9]
[recipes.dense]
steps = [{ init = "net" }, { train = "fit" }]
[recipes.sparse]
steps = [{ init = "net" }, { train = "fit" }, { prune = "cut", drop = "$drop" }, { rewind = "init" }, { train = "fit" }]
[probes]
clean   = { use = "accuracy", samples = 200, at = "last" }
density = { use = "density", at = "last" }
[parts]
digits = { use = "digits", share = 0.2 }
net    = { use = "mlp", hidden = [16] }
pgd    = { use = "pgd", norm = "linf", eps = 0.1, steps = 3 }
fit    = { use = "sgd", lr = 0.2, batch = 50, epochs = 2 }
cut    = { use = "magnitude" }
"""


def write(folder: Path, text: str = SUITE, name: str = "tiny.toml") -> str:
    """The path of a suite file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def plugin(folder: Path, code: str, name: str = "parts.py") -> str:
    """The path of a plugin file in `folder`; `code` need not import what parts usually need."""
    folder.mkdir(parents=True, exist_ok=True)
    head = "import os, signal, time\nimport torch\nfrom rtbench import Attack, Attacked, Measure, declare, hookimpl, take\n"
    (folder / name).write_text(head + textwrap.dedent(code), encoding="utf-8")
    return str(folder / name)


def run(suite: str, store: Path | str, **given: Any) -> Board:
    """`rtbench.run` in this process, in one thread, on the CPU, unless told otherwise."""
    return rtbench.run(suite, **{"store": store, "workers": 1, "threads": 1, "device": "cpu", **given})


def interruptible() -> None:
    """Before a process that is to be interrupted begins: shells start what they run in the background deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def numbers(board: Board) -> list[Any]:
    """What the board says, but for times."""
    return [[row.recipe, row.cell, {name: m.values for name, m in row.probes.items() if "seconds" not in name}] for row in board.rows]


def tree(store: Path | str, skip: Iterable[str] = ("provenance.json",)) -> dict[str, str]:
    """Digests of every file of every finished result, by path, provenance aside."""
    results = Path(store) / "results"
    files = [path for path in sorted(results.rglob("*")) if path.is_file() and path.name not in skip]
    return {str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stages(plan: Plan, verb: str) -> list[Stage]:
    """The stages of one verb, in plan order."""
    return [stage for stage in plan.stages.values() if stage.verb == verb]


def values(store: Path | str, key: str) -> dict[str, Any]:
    """The last value of each name in a stage's record."""
    return {name: value for _, name, value in Results(store).record(key)["records"]}


def python(code: str, *arguments: object, cwd: Path | str | None = None, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter that can import this folder; arguments are sys.argv[1:]."""
    head = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd)
