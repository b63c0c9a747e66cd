"""The contract of reports: f(board, path) -> None writes one file; equal boards give equal bytes."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from pathlib import Path

from rtbench.board import Board
from rtbench.rows import CHANCE, Measured, Row
from rtbench.testing.result import need
from rtbench.testing.sample import Subject

FILE = "board.out"


def board() -> Board:
    """Two runs, the first ranked, with spread, flags, a published number and markup in names; the second failed half way."""
    pgd = Measured(0.5, 0.0707, 2, [0.45, 0.55], [0.41, 0.59], "test", 128, "pgd", "linf", "8/255")
    clean = Measured(0.9, 0.0, 2, [0.9, 0.9], [0.83, 0.94], "test", 128, None, None, None)
    sparsity = Measured(0.98, None, 1, [0.98, None], None, None, None, None, None, None)
    nothing = Measured(None, None, 0, [None, None], None, "test", 128, "pgd", "linf", "8/255")
    published = {"pgd": {"value": 0.48, "source": "Somebody <1999> & others, 50 % | $x_1$", "caveat": "other data"}}
    cell = {"pruner": {"use": "magnitude", "scope": "layer"}, "drop": 0.98}
    return Board(
        suite="a_suite & <more>", rank=["pgd"], axes=["pruner", "drop"], columns=["sparsity", "clean", "pgd"], sparsity=["sparsity"],
        accuracies=["clean", "pgd"], meta={"note": "made up"},
        rows=[
            Row(recipe="sparse", cell=cell, step=2, round=1, last=True, trials=2, done=2, published=published, status="done", reasons={},
                probes={"sparsity": sparsity, "clean": clean, "pgd": pgd}, flags={"zero-gradient": 1},
                keys={name: ["1" * 24, "2" * 24] for name in ("sparsity", "clean", "pgd")}, state=["3" * 24, "4" * 24]),
            Row(recipe="dense", cell={"drop": 0.5}, step="warm", round=0, last=True, trials=2, done=1, published={}, status="failed",
                reasons={"5" * 24: "it diverged: \"x\" is not finite\nafter 3 steps"}, probes={"pgd": nothing}, flags={CHANCE: 1},
                keys={"pgd": ["6" * 24, "7" * 24]}, state=["5" * 24, "8" * 24]),
        ],
    )  # fmt: skip


def _write(subject: Subject, made: Board) -> tuple[bytes, list[str]]:
    """The bytes it writes, and everything else that it writes into the file's folder or the working directory."""
    part = subject.binder().part("report", subject.resolve())
    with tempfile.TemporaryDirectory() as folder:
        target, cwd = Path(folder) / "target", Path(folder) / "cwd"
        target.mkdir()
        cwd.mkdir()
        with contextlib.chdir(cwd):
            part(board=made, path=target / FILE)
        need((target / FILE).is_file(), "there is no file at the path it was given")
        found = sorted(os.path.relpath(path, folder) for path in Path(folder).rglob("*") if path not in (target, cwd, target / FILE))
        return (target / FILE).read_bytes(), found


def writes(subject: Subject) -> None:
    """It writes a file that is not empty to the path it is given, for boards with rows and without."""
    for made in (board(), Board(suite="empty", rank=[], rows=[])):
        content, _ = _write(subject, made)
        need(content, "the file is empty")


def repeatable(subject: Subject) -> None:
    """Equal boards give equal bytes."""
    need(_write(subject, board())[0] == _write(subject, board())[0], "two files for equal boards differ")


def modest(subject: Subject) -> None:
    """It writes nothing else and leaves the board as it is."""
    made = board()
    before = copy.deepcopy(made)
    _, others = _write(subject, made)
    need(not others, f"it also writes {', '.join(others)}")
    need(made == before, "it alters the board")


def telling(subject: Subject) -> None:
    """Boards with other numbers give other files."""
    made, other = board(), board()
    other.rows[0].probes["pgd"] = other.rows[0].probes["pgd"]._replace(mean=0.25, values=[0.2, 0.3])
    need(_write(subject, made)[0] != _write(subject, other)[0], "the file does not depend on the numbers")


CHECKS = (writes, repeatable, modest, telling)
