"""A board, or two rows of it compared, written by a report part; and where a run writes its page."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtbench.errors import UserError
from rtbench.keys import key
from rtbench.plugins import Catalogue

if TYPE_CHECKING:
    from rtbench.commands.comparison import Comparison
    from rtbench.ranking.board import Board


def write_report(board: Board | Comparison, found: Catalogue, format: str, path: str | Path) -> None:
    """Writes the board with a report part, a file whole or not at all; files of a report that is a folder join what is there."""
    from rtbench.storage.store import explained

    target = Path(path)
    with explained(target, "--output"):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            found.get("report", format).function(board, aside)
            if aside.is_dir() and target.is_dir():  # whatever else is there stays
                for file in sorted(aside.iterdir()):
                    os.replace(file, target / file.name)
            else:
                os.replace(aside, target)
        finally:
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)


def page_path(store: str | Path, board: Board, choices: dict[str, Any]) -> Path:
    """Where a run writes its page: not over that of the whole suite if it is of a part, nor over that of another suite of the same name."""
    page = _page(store, board.suite, choices)
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            other = re.search(r'<meta name="suite" content="(\w*)">', file.read(2000))
    except OSError:
        return page
    return _page(store, board.suite, {**choices, "suite": board.origin}) if other and other[1] != board.origin else page


def _page(store: str | Path, name: str, choices: dict[str, Any]) -> Path:
    return Path(store) / f"{name}{'-' + key(choices)[:6] if choices else ''}.html"


def report_text(board: Board | Comparison, found: Catalogue, format: str) -> str:
    """The board as the text a report part would write; UserError for one that writes a folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_report(board, found, format, Path(folder) / "board")
        if (Path(folder) / "board").is_dir():
            raise UserError(f'"{format}" writes several files; name a folder for them with --output')
        return (Path(folder) / "board").read_text(encoding="utf-8")
