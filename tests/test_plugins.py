"""Plugins: what loads, what is set aside with which sentence, and what a broken one costs the others."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from rtbench import plugins
from rtbench.errors import UserError
from rtbench.planning import suite
from rtbench.planning.plan import expand
from rtbench.plugins import Catalogue

GOOD = """
from typing import Annotated
from rtbench import Objective, Range, hookimpl

def snap(model, masks, data, *, keep: Annotated[float, Range("(0, 1]")] = 0.1, objective: Objective = "natural"):
    "keep: share to keep"

@hookimpl
def rtbench_pruners():
    return {"snap": snap}
"""
numbers = itertools.count()


class Site:
    """A folder on sys.path that distributions are installed into, as pip would: a module, METADATA and entry_points.txt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, source: str, version: str = "1.2", module: str | None = None, points: str | None = None) -> str:
        module = module or f"plugin_{next(numbers)}"
        (self.folder / f"{module}.py").write_text(source, encoding="utf-8")
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[rtbench]\n{points or f'main = {module}'}\n")
        importlib.invalidate_caches()
        return module


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An environment with the built-ins and nothing else installed, built-ins being loaded once for all tests."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    here = plugins.entry_points

    def only_here(group: str) -> list[Any]:
        return [entry for entry in here(group=group) if entry.dist is not None and Path(str(entry.dist.locate_file(""))) == folder]

    monkeypatch.setattr(plugins, "entry_points", only_here)
    before = set(sys.modules)
    yield Site(folder)
    for name in set(sys.modules) - before:
        if name.startswith(("plugin_", "rtbench_file_")):
            del sys.modules[name]


def use(found: Catalogue, kind: str, name: str) -> str:
    """The sentence one gets for using a part."""
    with pytest.raises(UserError) as error:
        found.get(kind, name, "parts.cut.use")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_builtins_are_plugins_and_load_alone(site: Site) -> None:
    found = plugins.catalogue()
    assert found.aside == {} == found.clashes and {part.owner for part in found.parts.values()} == {"rtbench"}
    assert {part.kind for part in found.parts.values()} == {
        "dataset",
        "architecture",
        "attack",
        "objective",
        "trainer",
        "pruner",
        "probe",
        "report",
    }
    for kind, name in (("dataset", "digits"), ("attack", "pgd"), ("pruner", "magnitude"), ("probe", "accuracy")):
        assert found.get(kind, name).name == name and name in found.names(kind)


def test_an_installed_plugin_gives_parts_that_a_suite_uses(site: Site, tmp_path: Path) -> None:
    site.install("rtbench-snap", GOOD)
    found = plugins.catalogue()
    part = found.get("pruner", "snap")
    assert (part.owner, part.owner_version, found.aside) == ("rtbench-snap", "1.2", {})
    loaded = suite.load("quick", None, ["parts.aa.use=pgd", 'axes.pruner=["snap"]', "recipes.sparse.steps.2={ prune = \"snap\", keep = 0.5 }",
                                        "axes.drop=[0.9]", "probes.aa.where={}"])  # fmt: skip
    (pruned, *_) = [stage for stage in expand(loaded, found, lambda part, where: "d").stages.values() if stage.verb == "prune"]
    assert pruned.part["use"] == "snap" and pruned.part["knobs"]["keep"] == 0.5 and pruned.part["knobs"]["objective"]["use"] == "natural"


def test_events_reach_plugins(site: Site) -> None:
    source = (
        "from rtbench import hookimpl\nseen = []\n@hookimpl\ndef rtbench_stage_failed(stage, reason):\n    seen.append((stage, reason))\n"
    )
    module = site.install("rtbench-watch", source)
    found = plugins.catalogue()
    found.manager.hook.rtbench_stage_failed(stage="s", reason="r")
    assert sys.modules[module].seen == [("s", "r")]


ASIDE = {
    "does not import": ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    "is not Python": ("def f(:\n", "SyntaxError: invalid syntax"),
    "exits": ("raise SystemExit('old Python')", "SystemExit: old Python"),
    "raises without words": ("raise RuntimeError", "RuntimeError: no message"),
    "raises on several lines": ("raise RuntimeError('one\\n  two')", "RuntimeError: one two"),
    "has no hooks": ("x = 1", "has no hook; it needs a function such as rtbench_pruners marked @hookimpl"),
    "misnames a hook": (GOOD.replace("rtbench_pruners", "rtbench_pruner"), 'no hook "rtbench_pruner"; did you mean "rtbench_pruners"?'),
    "misnames the prefix": (GOOD.replace("rtbench_pruners", "rtbnch_pruners"), 'no hook "rtbnch_pruners"; did you mean "rtbench_pruners"?'),
    "forgets hookimpl": (GOOD.replace("@hookimpl", ""), "rtbench_pruners lacks @hookimpl"),
    "asks a hook for arguments": (GOOD.replace("rtbench_pruners()", "rtbench_pruners(registry)"), "'registry'"),
    "fails in a hook": (GOOD.replace('return {"snap"', 'return undefined, {"snap"'), "NameError: name 'undefined' is not defined"),
    "returns a list": (GOOD.replace('{"snap": snap}', "[snap]"), "rtbench_pruners returns list, not a dict of name: function"),
    "forgets to return": (GOOD.replace("return ", ""), "rtbench_pruners returns NoneType, not a dict of name: function"),
    "returns no function": (GOOD.replace(": snap}", ": 3}"), 'pruner "snap" is not a function'),
    "uses capitals": (GOOD.replace('"snap"', '"Snap_2"'), 'pruner name "Snap_2" is not lower case letters, digits and single dashes'),
    "names by number": (GOOD.replace('"snap"', "3"), 'pruner name "3" is not lower case'),
    "asks for what is not there": (
        GOOD.replace("masks, data,", "masks, loader,"),
        'pruner "snap" asks for loader; a pruner is called with model, masks, data, rng, loop, and its knobs are keyword-only (after *)',
    ),
    "takes anything": (GOOD.replace('= "natural")', '= "natural", **rest)'), 'pruner "snap" may not take **rest'),
    "takes positionals": (GOOD.replace("def snap(model, masks, data, *,", "def snap(model, /, masks, *,"), "may not take model"),
    "has an annotation that is not there": (GOOD.replace("Objective =", '"Objectif" ='), "has a knob whose annotation cannot be read: name 'Objectif'"),
    "has a knob of no TOML type": (GOOD.replace("objective: Objective", "objective: bytes"), 'knob "objective" is of type <class \'bytes\'>, which no suite'),
    "has a knob called use": (GOOD.replace("objective: Objective", "use: Objective"), 'may not call a knob "use": that word names the part'),
    "is of another interface": ("RTBENCH_API = 99\n" + GOOD, "it was written for plugin interface 99, this rtbench has 1; install a matching version"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASIDE)
def test_a_broken_plugin_is_set_aside_with_one_sentence_and_others_load(site: Site, name: str) -> None:
    source, reason = ASIDE[name]
    site.install("rtbench-broken", source)
    site.install("rtbench-whole", GOOD.replace('"snap"', '"whole"'))
    found = plugins.catalogue()
    assert list(found.aside) == ["rtbench-broken"] and reason in found.aside["rtbench-broken"] and "\n" not in found.aside["rtbench-broken"]
    assert found.get("pruner", "whole").owner == "rtbench-whole" and ("pruner", "snap") not in found.parts
    text = use(found, "pruner", "snap")
    assert text.startswith('parts.cut.use: no pruner "snap"; ') and 'plugin "rtbench-broken" was set aside: ' in text and reason in text


@pytest.mark.parametrize("name", ASIDE)
def test_a_broken_plugin_file_is_a_mistake_at_once(site: Site, tmp_path: Path, name: str) -> None:
    source, reason = ASIDE[name]
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(UserError) as error:
        plugins.catalogue([str(path)])
    assert str(error.value).startswith(f'plugin file "{path}": ') and reason in str(error.value) and "\n" not in str(error.value)


def test_probes_may_not_call_their_knobs_at_and_where(site: Site, tmp_path: Path) -> None:
    for word in ("at", "where"):
        (tmp_path / "p.py").write_text(
            f"from rtbench import hookimpl\ndef probe(model, *, {word}: str = ''): ...\n@hookimpl\ndef rtbench_probes(): return {{'p': probe}}"
        )
        with pytest.raises(UserError, match=f'may not call a knob "{word}"'):
            plugins.catalogue([str(tmp_path / "p.py")])


def test_an_attack_leaves_norm_and_eps_to_its_threat_model(site: Site, tmp_path: Path) -> None:
    source = "from rtbench import hookimpl\ndef a(x, threat, *, eps: float = 1.0): ...\n@hookimpl\ndef rtbench_attacks(): return {'a': a}"
    (tmp_path / "p.py").write_text(source)
    with pytest.raises(UserError, match='may not call a knob "eps": that word comes with `threat`'):
        plugins.catalogue([str(tmp_path / "p.py")])


def test_an_attack_without_a_threat_model_is_refused_as_nobody_would_call_it(site: Site, tmp_path: Path) -> None:
    """There is no ball to judge it in, so clean accuracy would stand as accuracy under it."""
    for head in ("model, x, y", "model, x, y, *, eps: float = 0.3", "x", "classes"):
        source = f"from rtbench import hookimpl\ndef a({head}): ...\n@hookimpl\ndef rtbench_attacks(): return {{'a': a}}"
        (tmp_path / "p.py").write_text(source)
        with pytest.raises(UserError, match='attack "a" does not ask for threat, so there is no ball to judge it in'):
            plugins.catalogue([str(tmp_path / "p.py")])


def test_two_broken_entry_points_of_one_plugin_are_both_reported(site: Site) -> None:
    site.install("rtbench-broken", "x = 1", module="plugin_two", points="one = plugin_two\ntwo = plugin_two_missing")
    assert set(plugins.catalogue().aside) == {"rtbench-broken", "rtbench-broken:two"}


def test_an_entry_point_that_names_no_module_is_set_aside(site: Site) -> None:
    site.install("rtbench-broken", GOOD, module="plugin_function", points="main = plugin_function:snap")
    assert "not a module with hooks" in plugins.catalogue().aside["rtbench-broken"]


def test_an_entry_point_that_names_nothing_is_set_aside(site: Site) -> None:
    site.install("rtbench-broken", GOOD, module="plugin_nothing", points="main = plugin_nothing:absent")
    assert plugins.catalogue().aside["rtbench-broken"].startswith("AttributeError: ")


def test_a_clash_of_two_plugins_matters_only_to_who_uses_the_name(site: Site) -> None:
    site.install("rtbench-one", GOOD)
    site.install("rtbench-two", GOOD.replace('"snap": snap', '"snap": snap, "snip-snap": snap'))
    found = plugins.catalogue()
    assert found.aside == {} and found.get("pruner", "snip-snap").owner == "rtbench-two" and found.get("pruner", "magnitude")
    text = 'parts.cut.use: pruner "snap" is claimed by "rtbench-one" and "rtbench-two"; uninstall one or rename its part'
    assert use(found, "pruner", "snap") == text


def test_a_plugin_cannot_take_the_name_of_a_builtin(site: Site) -> None:
    site.install("rtbench-one", GOOD.replace('"snap"', '"magnitude"'))
    assert '"magnitude" is claimed by "rtbench" and "rtbench-one"' in use(plugins.catalogue(), "pruner", "magnitude")


def test_one_name_may_serve_two_kinds(site: Site) -> None:
    site.install("rtbench-one", GOOD.replace('"snap"', '"pgd"'))
    found = plugins.catalogue()
    assert found.get("pruner", "pgd").owner == "rtbench-one" and found.get("attack", "pgd").owner == "rtbench"


def test_plugin_files(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    found = plugins.catalogue([str(path), str(path)])
    assert found.get("pruner", "snap").owner == "mine.py" and found.files == (str(path),)
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "mine.py"
    other.write_text(GOOD.replace('"snap"', '"other"'))
    assert {"snap", "other"} <= set(plugins.catalogue([str(path), str(other)]).names("pruner"))


@pytest.mark.parametrize(("name", "text"), [("absent.py", "no such file"), ("notes.txt", "not a Python file"), ("folder", "no such file")])
def test_plugin_files_that_are_none(site: Site, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=text) as error:
        plugins.catalogue([str(tmp_path / name)])
    assert name in str(error.value)


def test_a_plugin_file_that_clashes_is_a_mistake_at_once(site: Site, tmp_path: Path) -> None:
    site.install("rtbench-one", GOOD)
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    with pytest.raises(UserError, match=r'plugin file ".*mine\.py": pruner "snap" is claimed by "rtbench-one" and "mine\.py"'):
        plugins.catalogue([str(path)])


def test_a_clash_elsewhere_does_not_blame_an_innocent_file(site: Site, tmp_path: Path) -> None:
    site.install("rtbench-one.py", GOOD)
    site.install("rtbench-two", GOOD)
    (tmp_path / "one.py").write_text(GOOD.replace('"snap"', '"other"'))
    assert "other" in plugins.catalogue([str(tmp_path / "one.py")]).names("pruner")


def test_interrupting_the_import_of_a_plugin_interrupts(site: Site) -> None:
    site.install("rtbench-slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        plugins.catalogue()


def test_a_suite_is_stopped_only_by_the_broken_plugin_it_uses(tmp_path: Path) -> None:
    found = tiny.catalogue()
    found.aside["rtbench-snap"] = "ImportError: too old"
    assert tiny.plan(tmp_path, found=found).points
    with pytest.raises(UserError, match=r'parts\.cut\.use: no pruner "snap".*plugin "rtbench-snap" was set aside: ImportError: too old'):
        tiny.plan(tmp_path, {"parts.cut.use": "snap"}, found=found)
    with pytest.raises(UserError, match='no pruner "cutt"; did you mean "cut"'):
        tiny.plan(tmp_path, {"recipes.sparse.steps.2.prune": "cutt"}, found=found)


def test_a_plugin_file_that_imports_its_neighbour_is_told_how_it_is_found(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("")
    (tmp_path / "mine.py").write_text("import neighbour\n")
    with pytest.raises(UserError, match=rf"No module named 'neighbour'; what lies beside .* PYTHONPATH={tmp_path}"):
        plugins.catalogue([str(tmp_path / "mine.py")])
