"""The documentation is true: its commands exist, its examples run, its tables name what there is."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

import rtbench
import studies
from rtbench import hookspecs
from rtbench.cli import COMMANDS
from rtbench.planning import suite
from rtbench.planning.plan import expand
from rtbench.plugins import catalogue
from rtbench.ranking.figures import declared
from rtbench.testing import check

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of a page in one language, indentation removed."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) + "\n" for indent, text in found]


def test_every_command_that_the_pages_name_exists_with_its_options() -> None:
    seen = 0
    for name in PAGES:
        lines = [line for block in blocks(name, "sh") for line in block.splitlines()]
        lines += re.findall(r"`(rtbench [a-z][^`]*)`", PAGES[name])
        for line in (piece.strip().removeprefix(".venv/bin/") for text in lines for piece in text.split("&&")):
            words = shlex.split(line, comments=True)
            if words[:1] != ["rtbench"]:
                continue
            seen += 1
            assert words[1] in COMMANDS, f"{name}: {line}"
            command = getattr(importlib.import_module(f"rtbench.cli.{COMMANDS[words[1]][0]}"), words[1])
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, f"{name}: {line}"
    assert seen > 10


def test_links_between_pages_lead_somewhere() -> None:
    for name, text in PAGES.items():
        folder = ROOT if (ROOT / name).is_file() else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (folder / target).exists(), f"{name}: {target}"


def test_the_pruner_of_contributing_passes_the_contract_and_joins_the_board(tmp_path: Path) -> None:
    code = next(block for block in blocks("CONTRIBUTING.md", "python") if "rtbench_pruners" in block)
    (tmp_path / "shy.py").write_text(code)
    found = catalogue([str(tmp_path / "shy.py")])
    results = list(check("shy", found))
    assert len(results) > 5 and all(result.ok for result in results), [str(result) for result in results if not result.ok]
    chosen = {
        "set": ["axes.pruner+=shy", "axes.drop=[0.8]", "parts.fit.epochs=1"],
        "only": {"recipe": ["sparse"], "net": ["mlp"], "pruner": ["shy"]},
    }
    board = studies.run("quick", tmp_path / "store", plugins=[str(tmp_path / "shy.py")], trials=1, **chosen)
    rows = board.as_json()["rows"]
    assert {row["cell"]["pruner"] for row in rows} == {"shy"} and all(row["status"] == "done" for row in rows)
    assert all(row["probes"]["sparsity"]["mean"] == pytest.approx(0.8, abs=1e-3) for row in rows)


def test_the_attack_of_contributing_passes_the_contract_and_breaks_what_noise_does_not(tmp_path: Path) -> None:
    code = next(block for block in blocks("CONTRIBUTING.md", "python") if "rtbench_attacks" in block)
    (tmp_path / "signs.py").write_text(code)
    results = list(check("signs", catalogue([str(tmp_path / "signs.py")])))
    assert len(results) > 5 and all(result.ok for result in results), [str(result) for result in results if not result.ok]
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)).eval(), torch.rand(50, 1, 8, 8)
    y = model(x).argmax(1)
    found = rtbench.evaluate(model, x, y, ["signs", "noise"], eps="1/50", plugins=[str(tmp_path / "signs.py")])
    signs, noise = found.attacks["signs"].accuracy, found.attacks["noise"].accuracy
    assert signs is not None and noise is not None and signs < noise and signs < 1


def test_the_snippets_for_people_from_elsewhere_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model so fragile that every attack is done at once."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5)).eval()
    x = 0.5 + 0.001 * torch.rand(8, 1, 4, 4)
    x, y = x.clamp(0, 1), model(x).argmax(1)
    names = {"model": model, "x": x, "y": y}
    snippets = blocks("coming-from.md", "python")
    assert len(snippets) == 5
    for snippet in snippets:
        exec(compile(snippet, "coming-from.md", "exec"), names)
    assert names["worst"] == names["result"].accuracy and (tmp_path / "model.safetensors").exists()


def test_the_suite_of_the_language_page_plans(tmp_path: Path) -> None:
    example, *pieces = blocks("suites.md", "toml")
    for number, text in enumerate([example, *(example + "\n" + piece for piece in pieces if "[[published]]" not in piece)]):
        text = text.replace('rank    = ["aa", "pgd"]', 'rank = "pgd"').replace('columns = ["sparsity", "clean"]', 'columns = ["clean"]')
        (tmp_path / f"{number}.toml").write_text(text)
        loaded = suite.load(str(tmp_path / f"{number}.toml"), "smoke" if "smoke" in text else None)
        plan = expand(loaded, catalogue(), lambda part, where: "digest")
        assert {point.recipe for point in plan.points} >= {"dense", "sparse"}


def test_the_figures_of_the_language_page_can_be_drawn(tmp_path: Path) -> None:
    example, *pieces = blocks("suites.md", "toml")
    transfer, probes, figures = (
        next(piece for piece in pieces if word in piece) for word in ("[probes.pool]", "[probes.alive]", "[[figures]]")
    )
    density = '[probes.density]\nuse = "density"\n'
    (tmp_path / "drawn.toml").write_text("\n".join([example, transfer, probes, density, figures]))
    plan = expand(suite.load(str(tmp_path / "drawn.toml")), catalogue(), lambda part, where: "digest")
    assert [figure.kind for figure in declared(plan)] == ["curve", "bar", "scatter", "matrix", "density"]


def test_the_pages_name_every_hook_command_and_module() -> None:
    for hook in [name for name in vars(hookspecs) if name.startswith("rtbench_")]:
        assert getattr(hookspecs, hook).__doc__, f"{hook} says nothing"
    root = Path(rtbench.__file__).parent
    folders = [path.parent for path in root.glob("*/__init__.py")]
    parts = [root, *(folder for folder in folders if folder.name not in ("builtin", "testing", "cli"))]
    modules = {path.stem for folder in parts for path in folder.glob("*.py")} - {"__init__"}
    named = set(re.findall(r"`([a-z_]+)/?`", PAGES["architecture.md"]))
    assert modules | {folder.name for folder in folders} <= named, "docs/architecture.md lacks a module"


def test_shipped_suites_name_their_source() -> None:
    for name, path in suite.shipped().items():
        assert re.search(r"arXiv|offline", path.read_text()), f"{name} says not where it is from"
