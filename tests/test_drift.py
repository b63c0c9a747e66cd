"""Code drift: a part that was edited without a new version shows its old numbers, and says so."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rtbench.cli import cli
from rtbench.commands import api
from rtbench.commands.drift import Drift, check
from rtbench.commands.study import study
from rtbench.engine.code import digests
from rtbench.errors import UserError
from rtbench.plugins import Part, catalogue
from rtbench.storage.accepted import FILE
from rtbench.storage.index import rebuild
from rtbench.storage.results import PROVENANCE, Results, sign
from rtbench.storage.store import Store
from studies import SUITE, plugin, run, tree, write

CODE = '''
"""Parts."""

def few(masks, model):
    """Keep what is large."""
    return {name: mask & (model.get_parameter(name) > 0) for name, mask in masks.items()}  # more than 0

def push(model, x, y, threat, noise):
    return x + float(threat.eps)

@hookimpl
def rtbench_pruners():
    return {"few": few}

@hookimpl
def rtbench_attacks():
    return {"push": push}
'''
TEXT = SUITE.replace('drop = "$drop"', "").replace('prune = "cut", ', 'prune = "few"').replace("[axes]\ndrop = [0.5, 0.9]\n", "")
TEXT = TEXT.replace("[probes]", '[probes]\npushed = { use = "accuracy", attack = { use = "push", norm = "linf", eps = 0.1 }, at = "last" }')


class Lab:
    """A finished study with parts of its own in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "store"
        self.file, self.suite = plugin(folder, CODE), write(folder, TEXT)

    def edit(self, old: str, new: str) -> None:
        text = Path(self.file).read_text()
        assert old in text
        Path(self.file).write_text(text.replace(old, new))

    def drift(self, *accept: str, **choices: Any) -> dict[str, int]:
        """How many stored stages each changed part has."""
        found = check(study(self.suite, device="cpu", plugins=self.file, **choices), self.store, accept)
        return {drift.part: drift.stages for drift in found}

    def provenance(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Changes what every stage says of its parts."""
        results = Results(self.store)
        for key in results.finished():
            facts = results.provenance(key)
            change(facts)
            (results.folder(key) / PROVENANCE).write_text(json.dumps(sign({**facts, "stage": key})))
        rebuild(Store(self.store))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path)
    run(lab.suite, lab.store, plugins=lab.file)
    return lab


def test_an_edit_is_told_with_the_number_of_stored_stages_until_it_is_accepted(lab: Lab) -> None:
    assert lab.drift() == {} and not (lab.store / FILE).exists()
    before = tree(lab.store, skip=())
    lab.edit("> 0)", ">= 0)")
    assert lab.drift() == {"pruner few": 1, "attack push": 2}, "both are in the file that was edited"
    assert lab.drift(only=["recipe=dense"]) == {"attack push": 1}, "only what the plan takes from the store"
    assert lab.drift("few") == {"attack push": 2} and lab.drift() == {"attack push": 2}
    assert lab.drift("push") == {} == lab.drift()
    lab.edit(">= 0)", "> 0)")
    assert lab.drift() == {}, "what made them"
    lab.edit("> 0)", "> 1)")
    assert lab.drift() == {"pruner few": 1, "attack push": 2} and tree(lab.store, skip=()) == before


def test_a_nested_part_counts_and_a_new_version_ends_it(lab: Lab) -> None:
    lab.edit("def push", "@declare(version=2)\ndef push")
    assert lab.drift() == {"pruner few": 1}, "the stages of push are to be run"
    run(lab.suite, lab.store, plugins=lab.file, accept="few")
    assert lab.drift() == {}
    lab.edit("x + float", "x - float")
    assert lab.drift() == {"pruner few": 1, "attack push": 2}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # more than 0", ""), ("Keep what", "Leave what"), ("\n\ndef push", "\n# push\n\n\ndef push"), ('"""Parts."""', ""),
        ("{name: mask", "{\n  name: mask"),
    ],
)  # fmt: skip
def test_comments_docstrings_and_layout_are_no_edit(lab: Lab, old: str, new: str) -> None:
    lab.edit(old, new)
    assert lab.drift() == {}


def test_older_stores_and_other_releases_of_rtbench_are_not_compared(lab: Lab) -> None:
    def other(version: str) -> Callable[[dict[str, Any]], Any]:
        return lambda facts: [fact.update(code="0" * 16, version=version) for name, fact in facts["parts"].items() if name != "pruner few"]

    version = Results(lab.store).provenance(Results(lab.store).finished()[0])["versions"]["rtbench"]
    lab.provenance(other(version))
    assert lab.drift().items() >= {"trainer sgd": 2, "architecture mlp": 10, "dataset digits": 10, "attack push": 2}.items()
    lab.provenance(other("0.0.1"))
    assert lab.drift() == {"attack push": 2}, "a plugin's release does not answer for it"
    lab.provenance(lambda facts: facts.pop("parts"))
    assert lab.drift() == {}


def test_a_file_that_is_edited_while_it_runs_is_not_what_ran(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.edit("    return {name", '    open(__file__, "a").write("\\nMORE = 1\\n")\n    return {name')
    run(lab.suite, lab.store, plugins=lab.file)
    assert lab.drift() == {"pruner few": 1, "attack push": 2}


def test_a_damaged_note_of_what_was_accepted_costs_one_more_look(lab: Lab) -> None:
    lab.edit("> 0)", ">= 0)")
    assert lab.drift("few", "push") == {}
    (lab.store / FILE).write_text("[1")
    assert lab.drift() == {"pruner few": 1, "attack push": 2} and lab.drift("few", "push") == {}
    assert api.plan(lab.suite, plugins=lab.file) and Store(lab.store).finished()


def test_the_commands_warn_once_per_part_and_accept(lab: Lab) -> None:
    more = ["--plugin", lab.file, "--store", str(lab.store), "--device", "cpu"]
    lab.edit("> 0)", ">= 0)")
    told = [
        'rtbench: attack "push" changed since 2 stored stages; give it a new version, or accept with "rtbench run SUITE --accept push"',
        'rtbench: pruner "few" changed since 1 stored stage; give it a new version, or accept with "rtbench run SUITE --accept few"',
    ]

    def lines(*words: str) -> list[str]:
        result = CliRunner().invoke(cli, [*words, lab.suite, *more], standalone_mode=False)
        assert result.exception is None
        return [line for line in result.stderr.splitlines() if line.startswith("rtbench")]

    assert lines("plan") == told and lines("run", "--workers", "1") == told
    assert lines("run", "--workers", "1", "--accept", "push") == told[1:] and lines("plan") == told[1:]
    with pytest.warns(UserWarning, match='pruner "few" changed since 1 stored stage;'):
        run(lab.suite, lab.store, plugins=lab.file)
    with pytest.raises(UserError, match='--accept: no part "fev"; did you mean "few"'):
        lab.drift("fev")


def test_show_and_explain_name_the_code(lab: Lab) -> None:
    results = Results(lab.store)
    key = next(key for key in results.finished() if "attack push" in results.provenance(key)["parts"])
    code = results.provenance(key)["parts"]["attack push"]["code"]
    assert re.fullmatch(r"[0-9a-f]{16}", code)
    for command in ("show", "explain"):
        shown = " ".join(CliRunner().invoke(cli, [command, key, "--store", str(lab.store)]).output.split())
        assert f"attack push {code[:8]}" in shown


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin of several modules."""
    folder = tmp_path / "severed"
    folder.mkdir()
    files = {
        "__init__": "from rtbench import hookimpl\nfrom . import scores\nfrom severed.deep import late\n",
        "scores": "import severed.tools as tools\nVALUE = 1\n", "tools": "VALUE = 2\n", "deep": "def late():\n    from .lazy import x\n",
        "lazy": "raise ImportError('nobody wants it here')\n", "other": "VALUE = 3\n",
    }  # fmt: skip
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "severed"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("module", "counts"), [("__init__", True), ("scores", True), ("tools", True), ("deep", True), ("lazy", True), ("other", False)]
)
def test_what_the_plugin_imports_of_its_own_package_counts(package: Path, module: str, counts: bool) -> None:
    __import__("severed")
    part = Part("pruner", "few", print, "severed", "1", "severed")
    before = digests({"pruner few": part})
    assert len(before) == 1 and "severed.lazy" not in sys.modules
    file = package / f"{module}.py"
    file.write_text(file.read_text() + "MORE = 1\n")
    assert (digests({"pruner few": part}) != before) == counts


def test_built_in_parts_are_compared_by_their_own_modules() -> None:
    parts = {f"{kind} {name}": part for (kind, name), part in catalogue().parts.items() if part.owner == "rtbench"}
    found = digests(parts)
    assert found.keys() == parts.keys() and len(set(found.values())) > len(parts) / 2
    assert found == digests(parts) and found["attack pgd"] != found["attack apgd"] and found["attack pgd"] != found["pruner magnitude"]
    nowhere = replace(parts["attack pgd"], owner="notebook", module="no.such.module")
    assert digests({"attack pgd": nowhere}) == {}
    assert str(Drift("attack pgd", 1, frozenset())).startswith('attack "pgd" changed since 1 stored stage; give it a new version')
