"""The contract of reports: f(board, path) -> None writes one file, or a folder of files; equal boards give equal bytes."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from rtbench.planning import suite as suites
from rtbench.planning.plan import Plan, expand
from rtbench.plugins import catalogue
from rtbench.ranking.board import Board, make
from rtbench.storage.index import Index
from rtbench.storage.store import Store
from rtbench.testing.result import need
from rtbench.testing.sample import Subject

FILE = "board.out"
SUITE = """
name = "a_suite"
trials = 2
data = "digits"
[axes]
drop = [0.5, 0.98]
[recipes.dense]
steps = [{ init = "mlp" }, { train = "fit" }]
[recipes.sparse]
steps = [{ init = "mlp" }, { train = "fit" }, { prune = "magnitude", drop = "$drop" }, { train = "fit" }]
[probes]
sparsity = { use = "sparsity" }
clean = { use = "accuracy" }
pgd_2 = { use = "accuracy", attack = { use = "pgd", norm = "linf", eps = "8/255" } }
[parts]
fit = { use = "sgd", epochs = 1 }
[board]
rank = "pgd_2"
[[published]]
where = { recipe = "sparse", drop = 0.98 }
probe = "pgd_2"
value = 0.48
source = 'Somebody <1999> & others, 50 % | $x_1$'
caveat = "other data"
[[figures]]
kind = "curve"
x = "sparsity"
y = "pgd_2"
lines = ["recipe"]
"""


def board(share: float = 0.5) -> Board:
    """A dense row and two sparse ones over two trials, with spread, flags, a failed trial, a published number, markup in texts.

    share: the accuracies are about this; 0 gives the board of a suite of which nothing is done.
    """
    return copy.deepcopy(_board(share))


@lru_cache(maxsize=4)
def _board(share: float) -> Board:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "suite.toml"
        file.write_text(SUITE, encoding="utf-8")
        plan = expand(suites.load(str(file)), catalogue(), lambda part, where: "0" * 64)
        store = Store(Path(folder) / "store")
        if share:
            _fill(plan, store, share)
        index = Index(store)
        try:
            return make(plan, store, index)
        finally:
            index.close()


def _fill(plan: Plan, store: Store, share: float) -> None:
    """Made-up results of every probe but those of the last point, whose state failed."""
    *points, last = plan.points
    for number, point in enumerate(points):
        for probe, key in point.probes.items():
            about: dict[str, Any] = {} if probe == "sparsity" else {"split": "test", "samples": 128}
            flags = ["chance-level", "a-flag"] if probe == "clean" and number == 0 else []
            record = {
                "stage": plan.stages[key].described(), "records": [[0, "", share + number / 128]], "flags": flags, "about": about,
                "passes": {"forwards": 0, "gradients": 0},
            }  # fmt: skip
            store.put(key, record, {"seconds": 1.0}, {})
    store.put_failure(last.key, 'it diverged: "x" is not finite\nafter 3 steps', "")


def _write(subject: Subject, made: Board) -> tuple[bytes, list[str]]:
    """The bytes it writes, of all files of a folder, and everything else that it writes into the file's folder or the working directory."""
    part = subject.binder().part("report", subject.resolve())
    with tempfile.TemporaryDirectory() as folder:
        target, cwd = Path(folder) / "target", Path(folder) / "cwd"
        target.mkdir()
        cwd.mkdir()
        with contextlib.chdir(cwd):
            part(board=made, path=target / FILE)
        made_at = target / FILE
        need(made_at.exists(), "there is no file at the path it was given")
        own = sorted(path for path in made_at.rglob("*") if path.is_file()) if made_at.is_dir() else [made_at]
        known = {target, cwd, made_at, *made_at.rglob("*")}
        found = sorted(os.path.relpath(path, folder) for path in Path(folder).rglob("*") if path not in known)
        return b"".join(path.name.encode() * made_at.is_dir() + path.read_bytes() for path in own), found


def writes(subject: Subject) -> None:
    """It writes a file that is not empty to the path it is given, for boards that are full and for those with no number yet."""
    for made in (board(), board(0)):
        content, _ = _write(subject, made)
        need(content, "the file is empty")


def repeatable(subject: Subject) -> None:
    """Equal boards give equal bytes."""
    need(_write(subject, board())[0] == _write(subject, board())[0], "two files for equal boards differ")


def telling(subject: Subject) -> None:
    """Boards with other numbers give other files."""
    need(_write(subject, board())[0] != _write(subject, board(0.25))[0], "the file does not depend on the numbers")


def modest(subject: Subject) -> None:
    """It writes nothing else and leaves the board as it is."""
    made = board()
    before = copy.deepcopy(made)
    _, others = _write(subject, made)
    need(not others, f"it also writes {', '.join(others)}")
    need(made == before, "it alters the board")


CHECKS = (writes, repeatable, telling, modest)
