"""Keys and seeds: what changes them, what must not, and that they are the same everywhere."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from rtbench import keys
from rtbench.parts.kinds import declare
from rtbench.planning.plan import PROTOCOL, Stage
from tiny import changed, of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4),
    max_leaves=8,
)
STAGE = Stage(
    verb="train",
    part={"use": "sgd", "version": 1, "knobs": {"lr": 0.1, "epochs": 3, "nesterov": False, "clip": None, "milestones": [10, 20],
          "objective": {"use": "robust", "version": 2, "knobs": {"attack": {"use": "pgd", "version": 1, "knobs": {"eps": "8/255"}}}}}},
    data={"use": "digits", "version": 1, "knobs": {"valid": 10}, "digest": "abc"},
    net={"use": "mlp", "version": 1, "knobs": {"hidden": [300, 100]}},
    seed=7,
    inputs={"weights": "k1/step-5", "masks": "k2"},
)  # fmt: skip


@given(JSON)
def test_canonical_json_is_one_text_whatever_the_order_of_keys(value: Any) -> None:
    def backwards(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: backwards(item[name]) for name in reversed(item)}
        return [backwards(each) for each in item] if isinstance(item, list) else item

    assert keys.canonical(backwards(value)) == keys.canonical(value)
    assert json.loads(keys.canonical(value)) == value
    assert len(keys.key(value)) == 24 and set(keys.key(value)) <= set("0123456789abcdef")


@given(JSON, JSON)
def test_other_values_have_other_keys(one: Any, other: Any) -> None:
    assert (keys.key(one) == keys.key(other)) == (keys.canonical(one) == keys.canonical(other))


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_what_has_no_canonical_text_has_no_key(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        keys.key(value)


@given(st.lists(st.integers() | st.text(st.characters(codec="utf-8")), min_size=1))
def test_seeds_have_63_bits_and_depend_on_every_word(words: list[Any]) -> None:
    seed = keys.seed(*words)
    assert 0 <= seed < 2**63 and seed == keys.seed(*words)
    assert seed not in {keys.seed(*words[:-1]), keys.seed(*words, 0), keys.seed(words)}


def test_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert keys.file_digest(tmp_path / "f") == keys.digest(b"a", memoryview(b"bc"))
    assert keys.digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Stages


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything that is no filled table or list, and of the tables and lists themselves."""
    if isinstance(value, dict | list) and value:
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(leaf for name, item in inner for leaf in leaves(item, (*path, name)))]
    return [path]


PATHS = [path for path in leaves({name: getattr(STAGE, name) for name in ("part", "data", "net", "seed", "inputs")}) if path]


@given(st.sampled_from(PATHS), JSON)
def test_any_change_of_any_entry_of_a_stage_is_another_key(path: tuple[Any, ...], value: Any) -> None:
    fields = copy.deepcopy({name: getattr(STAGE, name) for name in ("part", "data", "net", "seed", "inputs")})
    here: Any = fields
    for word in path[:-1]:
        here = here[word]
    same = keys.canonical(here[path[-1]]) == keys.canonical(value)
    here[path[-1]] = value
    assert (Stage("train", **fields).key == STAGE.key) == same


@pytest.mark.parametrize("path", [path for path in PATHS if len(path) > 1], ids=lambda path: ".".join(map(str, path)))
def test_a_missing_or_added_entry_is_another_key(path: tuple[Any, ...]) -> None:
    fields = copy.deepcopy({name: getattr(STAGE, name) for name in ("part", "data", "net", "seed", "inputs")})
    here: Any = fields
    for word in path[:-1]:
        here = here[word]
    del here[path[-1]]
    fewer = Stage("train", **copy.deepcopy(fields)).key
    here.update(new=None) if isinstance(here, dict) else here.append(None)
    assert len({fewer, Stage("train", **fields).key, STAGE.key}) == 3


def test_verb_and_protocol_are_part_of_the_key_and_paths_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({replace(STAGE, verb=verb).key for verb in PROTOCOL}) == len(PROTOCOL)
    elsewhere = replace(STAGE, files={"sha": "/somewhere/else.pt"})
    assert elsewhere.key == STAGE.key and elsewhere == STAGE
    before = STAGE.key
    monkeypatch.setitem(PROTOCOL, "train", 2)
    assert replace(STAGE).key != before


def test_the_key_of_a_simple_stage_never_changes() -> None:
    """Should this fail, every stored result is orphaned: bump PROTOCOL deliberately, or undo the change."""
    stage = Stage("init", {"use": "mlp", "version": 1, "knobs": {"bias": True, "eps": "8/255", "lr": 0.1}}, {"digest": "0"}, {}, 3, {})
    text = '{"data":{"digest":"0"},"inputs":{},"net":{},"part":{"knobs":{"bias":true,"eps":"8/255","lr":0.1},"use":"mlp","version":1},'
    assert keys.canonical(stage.described()) == text + '"protocol":1,"seed":3,"verb":"init"}'
    assert stage.key == "b8b67df912366d421f8a7b09"
    assert keys.seed(0, "train", 1) == 8405675000567002310


# Suites


def keys_of(folder: Path, changes: dict[str, Any] | None = None, **more: Any) -> set[str]:
    return set(tiny.plan(folder, changes, **more).stages)


def test_keys_are_the_same_in_every_process(tmp_path: Path) -> None:
    path = tiny.write(tmp_path, tiny.SUITE)
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(tiny.__file__)!r})\nimport tiny\nfrom rtbench.planning import suite\n"
        f"from rtbench.planning.plan import expand\nprint(list(expand(suite.load({path!r}), tiny.catalogue(), lambda part, where: 'd').stages))"
    )
    here = str(list(tiny.plan(tmp_path).stages))
    for hashing in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hashing}, capture_output=True, text=True)
        assert done.stdout.strip() == here, done.stderr


def test_names_of_parts_axes_recipes_probes_and_files_are_no_part_of_a_key(tmp_path: Path) -> None:
    text = json.dumps(tiny.SUITE)
    for old, new in (("net", "network"), ("fit", "training"), ("cut", "a-cut"), ("adversary", "enemy"), ("dense", "full"), ("clean", "natural"),
                     ("drop", "share"), ("loss", "criterion")):  # fmt: skip
        if old == "drop":
            text = text.replace('"drop": [', f'"{new}": [').replace("$drop", f"${new}")
        elif old == "net":
            text = text.replace('"net"', f'"{new}"')
        else:
            text = text.replace(f'"{old}"', f'"{new}"').replace(f"${old}", f"${new}").replace(f".{old}.", f".{new}.")
    renamed = json.loads(text)
    assert renamed["axes"] == {"enemy": ["none", "pgd"], "share": [0.5, 0.9]} and set(renamed["recipes"]) == {"full", "sparse"}
    (tmp_path / "elsewhere").mkdir()
    assert keys_of(tmp_path / "elsewhere", raw=renamed) == keys_of(tmp_path)
    backwards = {table: dict(reversed(entries.items())) if isinstance(entries, dict) else entries for table, entries in renamed.items()}
    assert keys_of(tmp_path, raw=backwards) == keys_of(tmp_path)


def test_what_a_part_is_by_default_may_as_well_be_written(tmp_path: Path) -> None:
    written = {"parts.fit.lr": 0.1, "parts.fit.optimizer": "sgd", "parts.net.bias": True, "parts.images": {"use": "images", "valid": 10}}
    assert keys_of(tmp_path, written) == keys_of(tmp_path, {"parts.loss.weight": 1.0}) == keys_of(tmp_path)
    assert keys_of(tmp_path, {"parts.fit.lr": "1/10"}) == keys_of(tmp_path)


@pytest.mark.parametrize(
    ("changes", "untouched"),
    [
        ({"parts.net.hidden": [5]}, set()),
        ({"parts.net.hidden": [4, 4]}, set()),
        ({"parts.images.valid": 11}, set()),
        ({"parts.fit.lr": 0.2}, {"init"}),
        ({"parts.fit.epochs": 3}, {"init"}),
        ({"parts.fit.optimizer": "adam"}, {"init"}),
        ({"parts.loss.weight": "1/3"}, {"init"}),
        ({"parts.cut.exclude": ["head"]}, {"init"}),
    ],
)
def test_every_knob_is_part_of_the_keys_that_depend_on_it(tmp_path: Path, changes: dict[str, Any], untouched: set[str]) -> None:
    before, after = tiny.plan(tmp_path), tiny.plan(tmp_path, changes)
    shared = set(before.stages) & set(after.stages)
    dense = {"init", "train", "probe"} if "parts.cut.exclude" in changes else set()
    assert {before.stages[key].verb for key in shared} == untouched | dense
    assert len(after.stages) == len(before.stages)


def test_data_versions_and_norms_are_part_of_the_keys(tmp_path: Path) -> None:
    before = keys_of(tmp_path)
    assert not before & keys_of(tmp_path, digests=lambda part, where: "other bytes")
    newer = tiny.catalogue({"trainers": {"sgd": declare(version=2)(copy_of(tiny.sgd))}})
    after = tiny.plan(tmp_path, found=newer)
    assert {after.stages[key].verb for key in before & set(after.stages)} == {"init"}
    nested = tiny.catalogue({"attacks": {"pgd": declare(version=2)(copy_of(tiny.pgd))}})
    assert before - keys_of(tmp_path, found=nested)
    assert not attacked(tmp_path, norm="linf") & attacked(tmp_path, norm="l2")


def copy_of(function: Any) -> Any:
    """The same function under another identity, so that marking it does not mark the original."""
    made = type(function)(function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__, made.__annotations__ = function.__kwdefaults__, function.__annotations__
    return made


def attacked(folder: Path, **threat: Any) -> set[str]:
    """Keys of the stages that an attack is part of."""
    whole = tiny.plan(folder, {f"parts.pgd.{name}": value for name, value in threat.items()})
    return {stage.key for stage in of(whole, "probe") if stage.part["knobs"]["attack"]["use"] == "pgd"}


@pytest.mark.parametrize(
    ("one", "other"), [(0.3, "3/10"), (0.3, "0.3"), ("6/20", 0.3), ("8/255", "16/510"), (0.031, "31/1000"), (1, 1.0), (1, "1")]
)
def test_equal_eps_have_equal_keys(tmp_path: Path, one: Any, other: Any) -> None:
    assert attacked(tmp_path, eps=one) == attacked(tmp_path, eps=other)


@pytest.mark.parametrize(
    ("one", "other"), [("8/255", 0.031), ("8/255", 0.031372549), (0.3, 0.30000000000000004), (0, 1), ("1/3", 0.3333333333333333)]
)
def test_other_eps_have_other_keys(tmp_path: Path, one: Any, other: Any) -> None:
    assert not attacked(tmp_path, eps=one) & attacked(tmp_path, eps=other)


def test_a_probes_seed_depends_on_the_probe_and_the_trial_alone(tmp_path: Path) -> None:
    before = {stage.key: stage.seed for stage in of(tiny.plan(tmp_path), "probe")}
    renamed = changed({"probes": {"a": {"use": "density"}, "b": tiny.SUITE["probes"]["pgd"], "c": tiny.SUITE["probes"]["clean"]}})
    after = tiny.plan(tmp_path, raw=renamed)
    assert before.items() <= {stage.key: stage.seed for stage in of(after, "probe")}.items()
    shifted = tiny.plan(tmp_path, {"recipes.sparse.steps.2": {"train": "fit"}, "axes.drop": ...})
    assert {stage.seed for stage in of(shifted, "probe")} == set(before.values()) and len(set(before.values())) == 2
