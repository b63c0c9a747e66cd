"""Mistakes in suites: one sentence each, with the file, the dotted path and the near miss, and never anything but UserError."""

from __future__ import annotations

import copy
import datetime
import itertools
import math
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from rtbench import cli, errors, plugins
from rtbench.errors import UserError, unknown
from rtbench.planning import suite
from rtbench.planning.plan import expand

SPARSE = "recipes.sparse.steps"
REPEAT = {"repeat": 2, "steps": [{"prune": "cut"}]}
PUBLISHED = {"where": {"drop": 0.9}, "probe": "clean", "value": 0.9, "source": "a paper"}

MISTAKES: list[tuple[dict[str, Any], str]] = [
    # Misspelt words
    ({"axess": {}}, 'axess: no entry "axess"; did you mean "axes"?'),
    ({"trails": 3}, 'trails: no entry "trails"; did you mean "trials"?'),
    ({"recipes.dense.step": []}, 'recipes.dense.step: no entry "step"; did you mean "steps"?'),
    ({"board.colums": []}, 'board.colums: no entry "colums"; did you mean "columns"?'),
    ({f"{SPARSE}.1": {"trian": "fit"}}, 'recipes.sparse.steps.1: no step "trian"; did you mean "train"?'),
    ({f"{SPARSE}.2": {"drop": 0.5, "prun": "cut"}}, 'recipes.sparse.steps.2: no step "prun"; did you mean "prune"?'),
    ({f"{SPARSE}.0.init": "nett"}, 'recipes.sparse.steps.0.init: no architecture "nett"; did you mean "net"?'),
    ({f"{SPARSE}.1.train": "SGD"}, 'recipes.sparse.steps.1.train: no trainer "SGD"; did you mean "sgd"?'),
    ({f"{SPARSE}.2.prune": "magnitud"}, 'recipes.sparse.steps.2.prune: no pruner "magnitud"; did you mean "magnitude"?'),
    ({f"{SPARSE}.2.drop": "$dorp"}, 'recipes.sparse.steps.2.drop: no axis "dorp"; did you mean "drop"?'),
    ({"parts.loss.attack": "$adversry"}, 'parts.loss.attack: no axis "adversry"; did you mean "adversary"?'),
    ({"parts.net.use": "mpl"}, 'parts.net.use: no architecture "mpl"; did you mean "mlp"?'),
    ({"parts.fit.epoch": 3}, 'parts.fit.epoch: no knob "epoch"; did you mean "epochs"?'),
    ({f"{SPARSE}.1.epoch": 3}, 'recipes.sparse.steps.1.epoch: no knob "epoch"; did you mean "epochs"?'),
    ({"parts.loss": {"use": "robust", "attack": {"use": "pgd", "norm": "l2", "eps": 1, "stesp": 2}}}, 'parts.loss.attack.stesp: no knob "stesp"'),
    ({"parts.fit.objective": "los"}, 'parts.fit.objective: no objective "los"; did you mean "loss"?'),
    ({"data": "image"}, 'data: no dataset "image"; did you mean "images"?'),
    ({"recipes.dense.data": "imags"}, 'recipes.dense.data: no dataset "imags"; did you mean "images"?'),
    ({"probes.clean.use": "acuracy"}, 'probes.clean.use: no probe "acuracy"; did you mean "accuracy"?'),
    ({"probes.pgd.attack": "pdg"}, 'probes.pgd.attack: no attack "pdg"; did you mean "pgd"?'),
    ({"axes.adversary": ["none", "pdg"]}, 'parts.loss.attack: no attack "pdg"; did you mean "pgd"?'),
    ({"probes.clean.at": "lats"}, 'probes.clean.at: no point "lats"; did you mean "last"?'),
    ({"probes.clean.where": {"dorp": 0.5}}, 'probes.clean.where: no axis "dorp"; did you mean "drop"?'),
    ({"probes.clean.where": {"drop": 0.95}}, 'probes.clean.where.drop: no value "0.95"; did you mean "0.9"?'),
    ({"probes.clean.where": {"recipe": "dens"}}, 'probes.clean.where.recipe: no value "dens"; did you mean "dense"?'),
    ({f"{SPARSE}.3.rewind": "initt"}, 'recipes.sparse.steps.3.rewind: no state to rewind to "initt"; did you mean "init"?'),
    ({"parts.fit.optimizer": "Adam"}, 'parts.fit.optimizer: no choice "Adam"; did you mean "adam"?'),
    ({"published": [{**PUBLISHED, "probe": "claen"}]}, 'published.0.probe: no probe "claen"; did you mean "clean"?'),
    ({"published": [{**PUBLISHED, "where": {"dop": 1}}]}, 'published.0.where: no axis "dop"; did you mean "drop"?'),
    ({"published": [{**PUBLISHED, "cavet": ""}]}, 'published.0.cavet: no entry "cavet"; did you mean "caveat"?'),
    # Wrong types and impossible values
    ({f"{SPARSE}.2.drop": 1.2}, "recipes.sparse.steps.2.drop: 1.2 is outside [0, 1)"),
    ({"axes.drop": [0.5, 1.2]}, "recipes.sparse.steps.2.drop: 1.2 is outside [0, 1)"),
    ({f"{SPARSE}.2.drop": -0.1}, "recipes.sparse.steps.2.drop: -0.1 is outside [0, 1)"),
    ({"parts.pgd.eps": "8/0"}, "parts.pgd.eps: '8/0' is not a number or a fraction such as \"8/255\""),
    ({"parts.pgd.eps": "abc"}, "parts.pgd.eps: 'abc' is not a number or a fraction"),
    ({"parts.pgd.eps": "-8/255"}, "parts.pgd.eps: -8/255 is outside [0, inf)"),
    ({"parts.pgd.eps": math.nan}, "parts.pgd.eps: nan is not a finite number"),
    ({"parts.fit.lr": math.inf}, "parts.fit.lr: inf is not a finite number"),
    ({f"{SPARSE}.2.drop": -math.inf}, "recipes.sparse.steps.2.drop: -inf is not a finite number"),
    ({"parts.pgd.eps": True}, "parts.pgd.eps: True is not a number"),
    ({"parts.pgd.norm": "l7"}, 'parts.pgd.norm: no choice "l7"; there is l1, l2, linf'),
    ({"parts.pgd.norm": ...}, "parts.pgd.norm: is missing; this part needs it: norm of the threat model"),
    ({"parts.pgd.eps": ...}, "parts.pgd.eps: is missing; this part needs it: radius in input units"),
    ({"probes.pgd.attack": "fgsm"}, "probes.pgd.attack.norm: is missing; this part needs it"),
    ({"parts.fit.epochs": 0}, "parts.fit.epochs: 0 is outside [1, inf)"),
    ({"parts.fit.epochs": 2.5}, "parts.fit.epochs: 2.5 is not a whole number"),
    ({"parts.fit.epochs": "2"}, "parts.fit.epochs: '2' is not a whole number"),
    ({"parts.fit.epochs": True}, "parts.fit.epochs: True is not a whole number"),
    ({"parts.fit.epochs": datetime.date(2020, 1, 1)}, "parts.fit.epochs: 2020-01-01 is a date or time"),
    ({"parts.fit.lr": datetime.time(12, 30)}, "parts.fit.lr: 12:30:00 is a date or time"),
    ({"parts.fit.lr": [0.1]}, "parts.fit.lr: [0.1] is not a number"),
    ({"parts.fit.lr": {"a": 1}}, "parts.fit.lr: {'a': 1} is not a number"),
    ({"parts.fit.lr": 2**64}, "parts.fit.lr: the number has more than 64 bits"),
    ({"parts.fit.steps": 5}, "parts.fit: give exactly one of epochs, steps, not epochs and steps"),
    ({"parts.fit.epochs": ...}, "parts.fit: give exactly one of epochs, steps, not none"),
    ({f"{SPARSE}.2.drop": ...}, "give exactly one of drop, count, not none"),
    ({"parts.fit.snapshots": ["last"]}, 'parts.fit: a snapshot cannot be called "last"'),
    ({"parts.fit.snapshots": "step-5"}, "parts.fit.snapshots: 'step-5' is not a list"),
    ({"parts.net.hidden": [4, "x"]}, "parts.net.hidden.1: 'x' is not a whole number"),
    ({"parts.net.hidden": [4, 0]}, "parts.net.hidden.1: 0 is outside [1, inf)"),
    ({"parts.fit.probes": {"a": "acuracy"}}, 'parts.fit.probes.a: no probe "acuracy"'),
    ({"parts.fit.objective": 3}, "parts.fit.objective: 3 names no objective"),
    ({"parts.fit.objective": {"smooth": 0.1}}, "parts.fit.objective.use: is missing or no name; it names the objective"),
    ({"parts.cut.use": "snip", f"{SPARSE}.2.drop": ...}, "parts.cut.drop: is missing; this part needs it: share of the weights to prune"),
    ({"trials": 0}, "trials: 0 is not at least 1"),
    ({"trials": "2"}, "trials: '2' is not a whole number"),
    ({"trials": True}, "trials: True is not a whole number"),
    ({"trials": 10**9}, "asks for more than 1,000,000 stages"),
    ({"axes.drop": []}, "axes.drop: [] is not a list of at least one value"),
    ({"axes.drop": 0.5}, "axes.drop: 0.5 is not a list of at least one value"),
    ({"axes.drop": [0.5, 0.5]}, "axes.drop: 0.5 is there twice"),
    ({"axes.drop": [0.5, "$adversary"]}, 'axes.drop: "$adversary" is not a value'),
    ({"axes.adversary": ["none", ["pgd"]]}, "parts.loss.attack: ['pgd'] names no attack"),
    ({"axes.round": [1]}, 'axes.round: "round" says where a number stands on the board'),
    ({"axes": [1]}, "axes: [1] is not a table"),
    ({"axes.a b": [1]}, 'axes."a b": a name is made of letters, digits, "-" and "_"'),
    ({"axes": {f"a{i}": list(range(10)) for i in range(9)}, f"{SPARSE}.2.drop": 0.5, "parts.loss.attack": "none"}, "axes: have more than 1,000,000"),
    ({"name": "../up"}, 'name: "../up" cannot be the name of a file'),
    ({"name": 3}, "name: 3 is not a text"),
    ({"data": ...}, "data: is missing or empty"),
    ({"data": 3}, "data: 3 is not a text or a table"),
    ({"data": {"valid": 3}}, "data.use: is missing or no name; it names the dataset"),
    ({"recipes": ...}, "recipes: is missing or empty"),
    ({"recipes": {}}, "recipes: is missing or empty"),
    ({"parts.fit": "sgd"}, "parts.fit: 'sgd' is not a table"),
    ({"parts.fit.use": ...}, "parts.fit.use: is missing or no text; it names the part"),
    ({"parts.fit.use": 3}, "parts.fit.use: is missing or no text"),
    ({"probes.clean.use": ["accuracy"]}, "probes.clean.use: is missing or no text"),
    ({"probes": 3}, "probes: 3 is not a table"),
    ({"profiles": 3}, "profiles: 3 is not a table"),
    ({"profiles.smoke": 3}, "profiles.smoke: 3 is not a table"),
    ({"profiles.smoke": {"parts": {"fit": {"epochs": 1}}}}, 'profiles.smoke.parts: put dotted keys in quotes, as in "parts.fit.epochs" = 1'),
    ({"published": {}}, "published: {} is not a list"),
    ({"published": [3]}, "published.0: 3 is not a table"),
    ({"published": [{"probe": "clean", "value": 1}]}, "published.0.source: is missing"),
    ({"published": [{"value": 1, "source": "s"}]}, "published.0.probe: is missing"),
    ({"published": [{"probe": "clean", "source": "s"}]}, "published.0.value: is missing"),
    ({"published": [{**PUBLISHED, "value": "0.9"}]}, "published.0.value: '0.9' is not a whole number or a number"),
    ({"published": [{**PUBLISHED, "value": math.nan}]}, "published.0.value: nan is not a finite number"),
    ({"board": 3}, "board: 3 is not a table"),
    ({"board": {"rows": [3]}}, "board.rows.0: 3 is not a text"),
    # Recipes that make no sense
    ({"recipes.dense.steps": []}, "recipes.dense.steps: is missing or empty"),
    ({"recipes.dense": {}}, "recipes.dense.steps: is missing or empty"),
    ({"recipes.dense.steps": "train"}, "recipes.dense.steps: 'train' is not a list"),
    ({"recipes.dense": 3}, "recipes.dense: 3 is not a table"),
    ({"recipes.dense.steps": ["train"]}, "recipes.dense.steps.0: 'train' is not a step such as { train = \"fit\" }"),
    ({"recipes.dense.steps": [{}]}, "recipes.dense.steps.0: {} is not a step"),
    ({"recipes.dense.steps": [{"train": "fit"}]}, "recipes.dense.steps.0: begin with init or load"),
    ({"recipes.dense.steps": [{"rewind": "init"}]}, "recipes.dense.steps.0: begin with init or load"),
    ({"recipes.dense.steps": [{"repeat": 0, "steps": [{"init": "net"}]}]}, "recipes.dense.steps: begin with init or load"),
    ({f"{SPARSE}.2": {"prune": "cut", "train": "fit"}}, "recipes.sparse.steps.2: is prune and train at once; write two steps"),
    ({f"{SPARSE}.2": {**REPEAT, "repeat": -1}}, "recipes.sparse.steps.2.repeat: -1 is not a number of rounds"),
    ({f"{SPARSE}.2": {**REPEAT, "repeat": "3"}}, "recipes.sparse.steps.2.repeat: '3' is not a number of rounds"),
    ({f"{SPARSE}.2": {**REPEAT, "repeat": 1.5}}, "recipes.sparse.steps.2.repeat: 1.5 is not a number of rounds"),
    ({f"{SPARSE}.2": {**REPEAT, "repeat": True}}, "recipes.sparse.steps.2.repeat: True is not a number of rounds"),
    ({f"{SPARSE}.2": {**REPEAT, "steps": [{"rewind": "init"}], "repeat": 10**9}}, "recipes.sparse.steps.2.steps.0: is step 100001 of one run"),
    ({f"{SPARSE}.2": {**REPEAT, "steps": []}}, "recipes.sparse.steps.2.steps: [] is not a list of steps"),
    ({f"{SPARSE}.2": {"repeat": 2}}, "recipes.sparse.steps.2.steps: None is not a list of steps"),
    ({f"{SPARSE}.2": {"repeat": 2, "step": []}}, 'recipes.sparse.steps.2.step: no entry "step"; did you mean "steps"?'),
    ({f"{SPARSE}.2": {**REPEAT, "steps": [{"prune": "cut", "drop": 7}]}}, "recipes.sparse.steps.2.steps.0.drop: 7.0 is outside [0, 1)"),
    ({f"{SPARSE}.2": {**REPEAT, "steps": [{"prune": "cut", "drop": [0.5]}]}}, "recipes.sparse.steps.2.steps.0.drop: has no value for round 2: the list ends before it"),
    ({f"{SPARSE}.2": {**REPEAT, "as": "all"}}, "recipes.sparse.steps.2.as: names the state that one init, load, train, prune or transfer"),
    ({f"{SPARSE}.3.as": "x"}, "recipes.sparse.steps.3.as: names the state"),
    ({f"{SPARSE}.1.as": 3}, "recipes.sparse.steps.1.as: names the state"),
    ({f"{SPARSE}.1.as": ""}, "recipes.sparse.steps.1.as: names the state"),
    ({f"{SPARSE}.1.as": "a/b"}, "recipes.sparse.steps.1.as: names the state"),
    ({f"{SPARSE}.1.as": "last"}, 'recipes.sparse.steps.1.as: "last" already means something; choose another name'),
    ({f"{SPARSE}.3.rewind": "dense"}, 'recipes.sparse.steps.3.rewind: no state to rewind to "dense"'),
    ({f"{SPARSE}.3.rewind": 3}, 'recipes.sparse.steps.3.rewind: no state to rewind to "3"'),
    ({f"{SPARSE}.3.rewind": "init/"}, 'recipes.sparse.steps.3.rewind: no state to rewind to "init/"; did you mean "init"?'),
    ({f"{SPARSE}.3": {"rewind": "init", "strict": True}}, 'recipes.sparse.steps.3.strict: no entry "strict"'),
    ({f"{SPARSE}.3.rewind": "init/step-5"}, 'recipes.sparse.steps.3.rewind: "init" has no snapshots; give a train step that keeps some a name with `as`'),
    ({f"{SPARSE}.0.as": "start", f"{SPARSE}.3.rewind": "start/step-5"}, '"start" has no snapshots'),
    ({f"{SPARSE}.1.as": "d", f"{SPARSE}.1.snapshots": ["step-50"], f"{SPARSE}.3.rewind": "d/step-5"}, 'no snapshot "step-5"; did you mean "step-50"?'),
    ({f"{SPARSE}.0.as": "a", f"{SPARSE}.1": {"init": "cnn"}, f"{SPARSE}.3.rewind": "a"}, '"a" is a state of another architecture or of other data'),
    ({f"{SPARSE}.2": {"transfer": "other"}}, 'recipes.sparse.steps.2.transfer: no dataset "other"'),
    ({f"{SPARSE}.2": {"transfer": "images", "valid": 3}}, 'recipes.sparse.steps.2.valid: no entry "valid"'),
    ({f"{SPARSE}.0": {"load": "absent.pt"}}, "recipes.sparse.steps.0.load: no checkpoint file"),
    ({f"{SPARSE}.0": {"load": "."}}, 'recipes.sparse.steps.0.load: "." cannot be read'),
    ({f"{SPARSE}.0": {"load": "a\0b"}}, "recipes.sparse.steps.0.load: "),
    ({f"{SPARSE}.0": {"load": "~nobody-of-this-name/x.pt"}}, "recipes.sparse.steps.0.load: "),
    ({f"{SPARSE}.0": {"load": 3}}, "recipes.sparse.steps.0.load: 3 is not a file name"),
    ({f"{SPARSE}.0": {"load": "a.pt", "rename": ["x"]}}, "recipes.sparse.steps.0.rename: ['x'] is not a table of pattern = replacement"),
    ({f"{SPARSE}.0": {"load": "a.pt", "strict": 1}}, "recipes.sparse.steps.0.strict: 1 is not true or false"),
    ({f"{SPARSE}.0": {"load": "a.pt", "masks": "nonzeros"}}, 'recipes.sparse.steps.0.masks: no choice "nonzeros"; did you mean "nonzero"?'),
    ({f"{SPARSE}.0": {"load": "a.pt", "nett": "net"}}, 'recipes.sparse.steps.0.nett: no entry "nett"; did you mean "net"?'),
    ({f"{SPARSE}.0": {"load": "a.pt", "net": "ent"}}, 'recipes.sparse.steps.0.net: no architecture "ent"; did you mean "net"?'),
    ({"probes.clean.at": []}, "probes.clean.at: is empty, so it would never be measured"),
    ({"probes.clean.at": -1}, "probes.clean.at: -1 is not a number of rounds"),
    ({"probes.clean.at": True}, 'probes.clean.at: no point "true"'),
    ({"probes.clean.at": [1.5]}, 'probes.clean.at: no point "1.5"'),
    ({"probes.clean.at": [{"a": 1}]}, "probes.clean.at: no point"),
    ({"probes.clean.where": "dense"}, "probes.clean.where: 'dense' is not a table of axis = value"),
    ({"probes": {}}, "nothing is left to run"),
    # Circles
    ({"parts.fit.objective": "sum", "parts.sum": {"use": "both", "objectives": ["loss", "sum"]}}, "parts.sum: parts are nested in a circle: parts.fit, parts.sum, parts.sum"),
    ({"parts.fit.objective": "a", "parts.a": {"use": "both", "objectives": ["b"]}, "parts.b": {"use": "both", "objectives": ["a"]}}, "in a circle: parts.fit, parts.a, parts.b, parts.a"),
]  # fmt: skip


def message(call: Any) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("changes", "fragment"), MISTAKES, ids=[f"{i}-{fragment[:40]}" for i, (_, fragment) in enumerate(MISTAKES)])
def test_a_mistake_is_one_sentence_with_file_path_and_near_miss(tmp_path: Path, changes: dict[str, Any], fragment: str) -> None:
    text = message(lambda: tiny.plan(tmp_path, changes))
    assert text.startswith(f"{tmp_path / 'tiny.toml'}: ") and fragment in text


@pytest.mark.parametrize(
    ("choice", "fragment"),
    [
        ({"profile": "smok"}, 'no profile "smok"; did you mean "smoke"?'),
        ({"profile": ""}, 'no profile ""; there is smoke'),
        ({"trials": 0}, "trials: 0 is not at least 1"),
        ({"trials": -1}, "trials: -1 is not at least 1"),
        ({"overrides": ["parts.fitt.epochs=1"]}, '--set parts.fitt.epochs: no entry "fitt"; did you mean "fit"?'),
        ({"overrides": ["parts.fit.epoch=1"]}, 'parts.fit.epoch: no knob "epoch"; did you mean "epochs"?'),
        ({"overrides": ["trails=2"]}, 'trails: no entry "trails"; did you mean "trials"?'),
        ({"overrides": ["trials=2020-01-01"]}, "trials: 2020-01-01 is a date or time"),
        ({"overrides": ['axes.advesary=["pgd"]']}, 'axes.advesary: no axis "advesary"; did you mean "adversary"?'),
        ({"overrides": ["parts.fit.lr=\udcff"]}, "parts.fit.lr: the text is not valid Unicode"),
        ({"only": {"dorp": ["0.5"]}}, '--only: no axis "dorp"; did you mean "drop"?'),
        ({"only": {"drop": ["0.7"]}}, '--only drop: no value "0.7"'),
        ({"only": {"recipe": ["dens"]}}, '--only recipe: no value "dens"; did you mean "dense"?'),
        (
            {"only": {"recipe": ["dense"], "drop": ["0.5"]}},
            "nothing is left to run: no recipe has a state to measure, or --only excludes all",
        ),
    ],
)
def test_mistakes_on_the_command_line(tmp_path: Path, choice: dict[str, Any], fragment: str) -> None:
    text = message(lambda: tiny.plan(tmp_path, **choice))
    assert text.startswith(f"{tmp_path / 'tiny.toml'}: ") and fragment in text


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"data = 'a'\nx = = 2", "is not valid TOML: Invalid value (at line 2, column 5)"),
        (b"data = 'a'\ndata = 'b'", "is not valid TOML: Cannot overwrite a value"),
        (b"data = '\xff\xfe'", "is not valid TOML: 'utf-8' codec can't decode byte 0xff in position 8"),
        (b"\xff\xfed\x00a\x00", "is not valid TOML: 'utf-8' codec can't decode"),
        (b"data = 1" + b"0" * 5000, "is not valid TOML: "),
        (b"data = " + b"[" * 3000 + b"]" * 3000, "is not valid TOML: its lists or tables are nested too deep"),
        (b"data = " + b"[" * 60 + b"]" * 60, "lists and tables are nested too deep"),
        (b"", "recipes: is missing or empty"),
    ],
)  # fmt: skip
def test_files_that_are_no_suite(tmp_path: Path, content: bytes, fragment: str) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    text = message(lambda: suite.load(str(tmp_path / "bad.toml")))
    assert text.startswith(f"{tmp_path / 'bad.toml'}: ") and fragment in text


def test_suites_that_are_not_there(tmp_path: Path) -> None:
    assert message(lambda: suite.load("quik")) == 'no suite "quik"; did you mean "quick"?'
    path = tiny.write(tmp_path, tiny.SUITE)
    assert (
        message(lambda: suite.load(path.replace("tiny", "tinny")))
        == f'no suite file "{path.replace("tiny", "tinny")}"; did you mean "{path}"?'
    )
    assert message(lambda: suite.load(str(tmp_path / "none" / "x.toml"))) == f'no suite file "{tmp_path}/none/x.toml"'
    assert "cannot be read" in message(lambda: suite.load("x/" * 3000 + "y.toml"))


def test_a_mistake_of_the_data_set_is_told_with_its_path(tmp_path: Path) -> None:
    def missing(part: dict[str, Any], where: str) -> str:
        raise UserError(f"{where}: the files are not there")

    assert message(lambda: tiny.plan(tmp_path, digests=missing)) == f"{tmp_path}/tiny.toml: data: the files are not there"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["run", "quik"], 'no suite "quik"; did you mean "quick"?'), (["rnu", "quick"], 'no command "rnu"; did you mean "run"?'),
     (["plan", "quick", "--only", "net"], '--only "net" is not of the form recipe=name or axis=value')],
)  # fmt: skip
def test_the_command_line_prints_one_line_and_exits_with_2(arguments: list[str], text: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["rtbench", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and capsys.readouterr().err == f"rtbench: {text}\n"


def test_the_sentence_for_what_is_not_there() -> None:
    assert str(unknown("part", "mpl", ["mlp", "cnn"], "parts.net")) == 'parts.net: no part "mpl"; did you mean "mlp"?'
    assert str(unknown("part", "MLP", ["mlp", "cnn"])) == 'no part "MLP"; did you mean "mlp"?'
    assert str(unknown("part", "xyz", ["b", "a", "a"])) == 'no part "xyz"; there is a, b'
    assert str(unknown("part", "xyz", [])) == 'no part "xyz"'
    assert str(unknown("part", "xyz", [f"part{i:02}" for i in range(20)])).endswith("part11 and more")
    assert str(unknown("value", 3, [1, "3.0"])) == 'no value "3"; there is 1, 3.0'
    assert UserError.exit_code == 2 and issubclass(errors.StoreError, UserError)


# Fuzz: whatever is done to a suite, planning it works or says in one sentence why not.


@pytest.fixture(scope="module")
def real() -> plugins.Catalogue:
    """All built-ins, and a stand-in for the plugin that the quick suite needs."""
    found = plugins.catalogue()
    for (kind, name), part in tiny.catalogue({"attacks": {"autoattack-official": tiny.fgsm}}).parts.items():
        found.parts.setdefault((kind, name), part)
    return found


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("parts.digits.use=digit", 'parts.digits.use: no dataset "digit"; did you mean "digits"?'),
        ("data=cifar-10", 'data: no dataset "cifar-10"; did you mean "cifar10"?'),
        ("parts.pgd.eps=8/0", "parts.pgd.eps: '8/0' is not a number or a fraction"),
        ("parts.pgd.norm=l3", 'parts.pgd.norm: no choice "l3"; there is l1, l2, linf'),
        ("parts.pgd.restart=3", 'parts.pgd.restart: no knob "restart"; did you mean "restarts"?'),
        ("parts.fit.epochs=0", "parts.fit.epochs: 0 is outside [1, inf)"),
        ("parts.fit.steps=5", "parts.fit: give exactly one of epochs, steps"),
        ("parts.fit.nesterov=true", 'parts.fit: nesterov needs optimizer = "sgd"'),
        ("parts.fit.snapshots=['stp-5']", 'parts.fit: snapshot "stp-5" is not of the form'),
        ("parts.global.keep=0.1", "parts.global: give exactly one of keep, drop, count"),
        ("axes.pruner=['globl']", 'no pruner "globl"; did you mean "global"?'),
        ("probes.aa.samples=0", "probes.aa.samples: 0 is outside [1, inf)"),
        ("probes.aa.rule=frist", 'probes.aa.rule: no choice "frist"; did you mean "first"?'),
    ],
)
def test_mistakes_with_the_real_parts(real: plugins.Catalogue, override: str, fragment: str) -> None:
    text = message(lambda: expand(suite.load("quick", None, [override]), real, lambda part, where: "d"))
    assert text.startswith(f"{suite.shipped()['quick']}: ") and fragment in text


QUICK = tomllib.loads(suite.shipped()["quick"].read_text(encoding="utf-8")) | {"trials": 1}
WORDS = [
    "",
    "$",
    "$net",
    "$drop",
    "$nope",
    "pgd",
    "loss",
    "mlp",
    "fit",
    "magnitude",
    "init",
    "train",
    "prune",
    "repeat",
    "rewind",
    "last",
    "8/255",
    "x/y",
    "\0",
    "ß",
]
NAMES = [
    "use",
    "at",
    "where",
    "as",
    "steps",
    "train",
    "drop",
    "eps",
    "load",
    "transfer",
    "repeat",
    "attack",
    "objective",
    "probes",
    "net",
    "",
    "a.b",
    "masks",
]
SCALARS = (
    st.sampled_from([-1, 0, 1, 2, 3, 10**6, 2**31, 2**63, -(2**70)]) | st.booleans() | st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8"), max_size=3)
    | st.floats(width=32) | st.dates() | st.datetimes() | st.times()
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3), max_leaves=5
)
STEP = st.dictionaries(
    st.sampled_from(["init", "load", "train", "prune", "rewind", "transfer", "repeat", "as", "steps"]), ANYTHING, min_size=1, max_size=2
)
files = itertools.count()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(place for name, item in inner for place in places(item, (*path, name)))]


def mutate(raw: dict[str, Any], data: st.DataObject) -> None:
    """Replaces, deletes or inserts one entry somewhere."""
    path = data.draw(st.sampled_from(places(raw)))
    here: Any = raw
    for word in path[:-1]:
        here = here[word]
    what, value = data.draw(st.sampled_from(["replace", "delete", "insert"])), data.draw(ANYTHING | STEP)
    if what == "delete":
        del here[path[-1]]
    elif what == "insert" and isinstance(here, list):
        here.insert(path[-1], value)
    else:
        here[path[-1] if what == "replace" else data.draw(st.sampled_from(NAMES))] = value


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_suite_whatsoever_raises_anything_but_user_errors(real: plugins.Catalogue, data: st.DataObject) -> None:
    raw = copy.deepcopy(QUICK)
    for _ in range(data.draw(st.integers(1, 3))):
        if raw:
            mutate(raw, data)
    with tempfile.TemporaryDirectory() as folder:
        path = tiny.write(Path(folder), raw)
        try:
            plan = expand(suite.load(path), real, lambda part, where: "d")
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            return
    assert plan.points and all(stage.parents() <= set(plan.stages) for stage in plan.stages.values())
