"""Suite files: finding and reading them, profiles, --set."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from rtbench.errors import UserError
from rtbench.planning import suite
from rtbench.planning.suite import assign, override, text

RAW = {"trials": 1, "axes": {"drop": [0.5, 0.9]}, "parts": {"fit": {"use": "sgd", "epochs": 3, "milestones": [10, 20]}}, "board": {"rank": "pgd"},
       "recipes": {"a": {"steps": [{"init": "net"}, {"repeat": 5, "steps": [{"train": "fit"}]}]}}, "name": "x"}  # fmt: skip


def test_shipped_suites_are_found_by_name_and_load() -> None:
    assert {"quick", "cosentino2019", "boosting2019"} <= set(suite.shipped())
    for name, path in suite.shipped().items():
        loaded = suite.load(name)
        assert loaded.name == name == path.stem and loaded.path == str(path)
        for profile in tomllib.loads(path.read_text()).get("profiles", {}):
            suite.load(name, profile)


def test_a_suite_is_found_by_path_too(tmp_path: Path) -> None:
    loaded = suite.load(tiny.write(tmp_path, tiny.SUITE))
    assert loaded.name == "tiny" and loaded.trials == 1 and loaded.published == [] and loaded.board == {}
    assert loaded.axes == tiny.SUITE["axes"] and loaded.parts == tiny.SUITE["parts"] and loaded.recipes == tiny.SUITE["recipes"]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_bytes(b"\xef\xbb\xbf" + tiny.toml(tiny.SUITE).replace("\n", "\r\n").encode())
    assert suite.load(str(path)).axes == tiny.SUITE["axes"]


def test_a_profile_then_overrides_then_trials_apply(tmp_path: Path) -> None:
    path = tiny.write(tmp_path, tiny.changed({"profiles.smoke": {"parts.fit.epochs": 1, "trials": 2, "axes.drop": [0.1]}}))
    loaded = suite.load(path, "smoke", ["parts.fit.epochs = 5", "trials=7"], trials=4)
    assert (loaded.parts["fit"]["epochs"], loaded.trials, loaded.axes["drop"]) == (5, 4, [0.1])


def test_loading_a_profile_changes_nothing_for_the_next_load(tmp_path: Path) -> None:
    path = tiny.write(tmp_path, tiny.SUITE)
    before = suite.load(path)
    suite.load(path, "smoke", ["axes.drop+=0.1"])
    assert suite.load(path) == before


def set_(*texts: str) -> dict[str, Any]:
    raw = copy.deepcopy(RAW)
    for each in texts:
        override(raw, each)
    return raw


@pytest.mark.parametrize(
    ("given_text", "path", "value"),
    [
        ("parts.fit.epochs=7", "parts.fit.epochs", 7),
        (" parts.fit.lr = 1e-3 ", "parts.fit.lr", 0.001),
        ('parts.fit.use="adam"', "parts.fit.use", "adam"),
        ("parts.fit.use=fashion-mnist", "parts.fit.use", "fashion-mnist"),
        ("parts.fit.eps=8/255", "parts.fit.eps", "8/255"),
        ("parts.fit.note=a = b # c", "parts.fit.note", "a = b # c"),
        ("parts.fit.nesterov=true", "parts.fit.nesterov", True),
        ('parts.fit.objective={ use = "robust", mix = 0.5 }', "parts.fit.objective", {"use": "robust", "mix": 0.5}),
        ("axes.drop=[0.1, 0.2]", "axes.drop", [0.1, 0.2]),
        ("axes.drop+=0.95", "axes.drop", [0.5, 0.9, 0.95]),
        ("parts.fit.milestones += 30", "parts.fit.milestones", [10, 20, 30]),
        ("parts.fit.milestones.1=15", "parts.fit.milestones", [10, 15]),
        ("recipes.a.steps.1.repeat=2", "recipes.a.steps.1.repeat", 2),
        ("recipes.a.steps.1.steps.0.epochs=9", "recipes.a.steps.1.steps.0.epochs", 9),
        ('recipes.a.steps.1.steps+={ prune = "cut" }', "recipes.a.steps.1.steps", [{"train": "fit"}, {"prune": "cut"}]),
        ('probes.new={ use = "density" }', "probes.new", {"use": "density"}),
        ("trials=3", "trials", 3),
        ("about=", "about", ""),
        ("about=1\nb = 2", "about", "1\nb = 2"),
        ("about=1" + "0" * 5000, "about", "1" + "0" * 5000),
    ],
)
def test_set(given_text: str, path: str, value: Any) -> None:
    raw = set_(given_text)
    assert raw == tiny.changed({path: value}, RAW) and type(raw) is dict


def test_overrides_build_on_each_other() -> None:
    assert set_("axes.drop=[0.1]", "axes.drop+=0.2", "axes.drop.0=0.3")["axes"]["drop"] == [0.3, 0.2]


@pytest.mark.parametrize(
    ("given_text", "message"),
    [
        ("trials", '--set "trials" is not of the form a.b=c or a.b+=c'),
        ("=3", "is not of the form"), ("a..b=3", "is not of the form"), (".a=3", "is not of the form"), ("+=3", "is not of the form"),
        ("part.fit.epochs=1", '--set part.fit.epochs: no entry "part"; did you mean "parts"?'),
        ("parts.fitt.epochs=1", '--set parts.fitt.epochs: no entry "fitt"; did you mean "fit"?'),
        ("trials.x=1", '--set trials.x: "trials" is not a table'),
        ("name.x.y=1", '--set name.x.y: "name" is not a table'),
        ("axes.drop.2=1", '--set axes.drop.2: "axes.drop" has 2 items, numbered from 0; "2" is none of them'),
        ("axes.drop.-1=1", '"-1" is none of them'), ("axes.drop.²=1", '"²" is none of them'),
        ("axes.drop.99999999999999999999999=1", "is none of them"),
        ("recipes.a.steps.7.repeat=1", '"recipes.a.steps" has 2 items, numbered from 0; "7" is none of them'),
        ("trials+=1", '--set trials: "trials" is not a list to append to'), ("board.rank+=x", '"board.rank" is not a list to append to'),
        ("axes.drop.0+=1", '"axes.drop.0" is not a list to append to'), ("axes.dorp+=1", 'no entry "dorp"; did you mean "drop"?'),
        ("profiles.smoke.trials=1", "--set profiles.smoke.trials: profiles are applied before --set; set the entry itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_set(given_text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        set_(given_text)
    assert message in str(error.value) and "\n" not in str(error.value)


WORDS = st.sampled_from(
    ["axes", "drop", "parts", "fit", "recipes", "a", "steps", "0", "1", "9", "milestones", "trials", "new", "", "repeat", "²", "-1"]
)
VALUES = st.sampled_from([1, "x", [1], {"a": 1}, True, []])


@given(st.lists(WORDS, min_size=1, max_size=6), VALUES, st.booleans())
def test_assigning_anywhere_works_or_says_why_not(words: list[str], value: Any, append: bool) -> None:
    raw = copy.deepcopy(RAW)
    try:
        assign(raw, ".".join(words), value, "here", append)
    except UserError as error:
        assert str(error).startswith("here: ")
        return
    here: Any = raw
    for word in words:
        here = here[int(word)] if isinstance(here, list) else here[word]
    assert here[-1] == value if append else here == value


@pytest.mark.parametrize(
    ("value", "expected"), [("a", "a"), (0.9, "0.9"), (1e-3, "0.001"), (True, "true"), (3, "3"), ([64, 32], "[64,32]")]
)
def test_axis_values_are_written_as_texts(value: Any, expected: str) -> None:
    assert text(value) == expected


PLAIN = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), PLAIN))
def test_the_writer_of_these_tests_writes_toml(raw: dict[str, Any]) -> None:
    assert tomllib.loads(tiny.toml(raw)) == raw


def test_a_row_of_a_published_table_is_a_list_of_numbers_along_one_axis(tmp_path: Path) -> None:
    entry = {"probe": "clean", "where": {"recipe": "sparse", "drop": [0.5, 0.9]}, "value": [0.97, 0.9], "source": "a paper"}
    loaded = suite.load(tiny.write(tmp_path, {**tiny.SUITE, "published": [entry, {"probe": "clean", "value": 1, "source": "b"}]}))
    assert [(found.get("where"), found["value"]) for found in loaded.published] == [
        ({"recipe": "sparse", "drop": 0.5}, 0.97), ({"recipe": "sparse", "drop": 0.9}, 0.9), (None, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"value": [0.9]}, r"published\.0\.value: is a list of 1, so just one entry of where must be a list as long"),
        ({"value": [0.9], "where": {"drop": [0.5, 0.9]}}, r"published\.0\.value: is a list of 1"),
        ({"value": [0.9, 0.8], "where": {"drop": [0.5, 0.9], "adversary": ["none", "pgd"]}}, r"published\.0\.value: is a list of 2"),
        ({"value": [0.9, "x"], "where": {"drop": [0.5, 0.9]}}, r"published\.0\.value\.1: 'x' is not a number"),
    ],
)
def test_lists_of_published_numbers_that_go_with_nothing_are_refused(tmp_path: Path, entry: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        suite.load(tiny.write(tmp_path, {**tiny.SUITE, "published": [{"probe": "clean", "source": "a", **entry}]}))
