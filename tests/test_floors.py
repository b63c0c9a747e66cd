"""Floors: a lower module never imports a higher one, built-ins import only the ground floor, and planning needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rtbench

ROOT = Path(rtbench.__file__).parent
FLOORS = [
    "errors keys statistics",
    "data parts",
    "hookspecs",
    "builtin plugins",
    "planning",
    "storage",
    "evaluation",
    "engine",
    "running",
    "ranking",
    "commands",
    "live",
    "evidence",
    "terminal testing",
    "cli",
]
FLOOR = {module: number for number, floor in enumerate(FLOORS) for module in floor.split()}
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in sorted(ROOT.rglob("*.py"))
}


def imports(path: Path, lazy: bool = True) -> Iterator[str]:
    """The rtbench modules a file imports, those inside functions too unless `lazy` is False; for type checkers only ones aside."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "rtbench")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module and node.module.split(".")[0] == "rtbench":
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (name if name in FILES else node.module for name in inner)
        todo.extend(ast.iter_child_nodes(node))


def unit(module: str) -> str:
    """The word of `FLOORS` for a module; "" is the package itself, which loads its public names lazily."""
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    assert unit(module) in FLOOR, f"give {module} a floor in FLOORS"
    return FLOOR[unit(module)]


MODULES = [module for module in FILES if unit(module)]


def test_every_module_has_a_floor_and_every_floor_its_modules() -> None:
    assert {unit(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_lower_never_imports_higher(module: str) -> None:
    higher = {name for name in imports(FILES[module]) if unit(name) and floor(name) > floor(module)}
    assert not higher, f"{module} is on floor {floor(module)}"


@pytest.mark.parametrize("module", [module for module in MODULES if unit(module) == "builtin"])
def test_builtins_import_the_ground_floor_hookimpl_and_their_own_folder(module: str) -> None:
    folder = ".".join(module.split(".")[:3])
    for name in imports(FILES[module]):
        assert floor(name) <= floor("rtbench.parts") or name == "rtbench.hookspecs" or name.startswith(folder), f"{module} imports {name}"


def test_no_two_modules_import_each_other_at_once() -> None:
    above = {module: {name for name in imports(path, lazy=False) if unit(name)} for module, path in FILES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"a circle: {' -> '.join([*trail[trail.index(module) :], module])}"
        if module not in done:
            for name in sorted(above[module]):
                visit(name, (*trail, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def loaded_by(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import rtbench, rtbench.cli, rtbench.planning.suite, rtbench.planning.plan, rtbench.planning.resolve, rtbench.plugins, rtbench.parts.knobs, rtbench.parts.kinds, rtbench.hookspecs",
        "from rtbench import hookimpl, declare, UserError, unknown, Range, Attack, Measure",
        "from rtbench import cli\ntry: cli.cli.main(['--help'])\nexcept SystemExit: pass",
        "from rtbench import cli\ntry: cli.cli.main(['run', '--help'])\nexcept SystemExit: pass",
        "from rtbench.planning import suite\nsuite.load('quick')",
    ],
)
def test_planning_and_help_do_not_import_torch(code: str) -> None:
    loaded = loaded_by(code)
    assert "rtbench" in loaded and not loaded & {"torch", "numpy", "sklearn", "matplotlib", "rtbench.builtin"}


@pytest.mark.parametrize("name", rtbench.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(rtbench, name) is not None


def test_the_import_reader_reads_what_it_should(tmp_path: Path) -> None:
    source = """
from typing import TYPE_CHECKING
import torch, rtbench.parts.masks
from rtbench import keys, UserError
from rtbench.evaluation.judge import Judged
if TYPE_CHECKING:
    from rtbench.cli import cli
def f():
    from rtbench.ranking.board import make
"""
    (tmp_path / "x.py").write_text(source)
    eager = {"rtbench.parts.masks", "rtbench.keys", "rtbench", "rtbench.evaluation.judge"}
    assert set(imports(tmp_path / "x.py", lazy=False)) == eager and set(imports(tmp_path / "x.py")) == {*eager, "rtbench.ranking.board"}
