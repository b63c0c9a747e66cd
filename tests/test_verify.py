"""`rtbench verify`: an honest store passes, and every way of tampering with one is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from rtbench import keys
from rtbench.cli import cli
from rtbench.cli.evidence import _show
from rtbench.engine.context import Options
from rtbench.engine.state import pack, unpack
from rtbench.evaluation.witness import Shelf, unpacked
from rtbench.evidence import Verdict, verify_file, verify_store
from rtbench.evidence.explain import page
from rtbench.plugins import catalogue
from rtbench.storage.results import PROVENANCE, RECORD, SAMPLES, STATE, WITNESS, Results, sign
from rtbench.storage.store import Store
from studies import SUITE, plugin, run, write

PLUGIN = """
    from rtbench.builtin.attacks.apgd import apgd
    from rtbench.parts.slots import Native

    def brief(threat, classes, shape):
        return Native((apgd("apgd-ce", "ce", steps=2), apgd("apgd-t", "dlr-targeted", steps=8, targets=3)))

    @hookimpl
    def rtbench_attacks():
        return {"brief": brief}
"""
PROBES = """
pgd     = { use = "accuracy", attack = "pgd", samples = 60, at = "last" }
native  = { use = "accuracy", attack = "native", samples = 40, rule = "random", batch = 32, at = "last" }
sparse  = { use = "sparsity", at = "last" }
"""


@dataclass
class Lab:
    """A store and its stages, to be spoilt."""

    store: Store
    files: list[str]
    keys: dict[str, str]

    def __getitem__(self, name: str) -> Path:
        return self.store.folder(self.keys[name])

    def check(self, again: int = 0) -> dict[str, Verdict]:
        found = verify_store(self.store, catalogue(self.files), Options("nowhere"), again=again)
        return {verdict.key: verdict for verdict in found}

    def record(self, name: str) -> dict[str, Any]:
        return {word: value for word, value in json.loads((self[name] / RECORD).read_bytes()).items() if word != "digest"}

    def put(self, name: str, record: dict[str, Any]) -> None:
        """Signed again, as whoever knows how would."""
        (self[name] / RECORD).write_text(keys.canonical(sign(record)))

    def edit(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        record = self.record(name)
        change(record)
        self.put(name, record)

    def write(self, name: str, file: str, content: bytes) -> None:
        """Replaces a file and its digest in the record."""
        (self[name] / file).write_bytes(content)
        self.edit(name, lambda record: (record["files"].update({file: keys.digest(content)}), record["sizes"].update({file: len(content)})))

    def tensors(self, name: str, change: Callable[[dict[str, Tensor]], None], file: str = SAMPLES) -> None:
        weights, masks = unpack((self[name] / file).read_bytes())
        tensors = {**weights, **{f"mask:{layer}": mask for layer, mask in masks.items()}}
        change(tensors)
        self.write(name, file, pack(tensors))

    def stage(self, name: str, change: Callable[[dict[str, Any]], None], rekey: bool = True) -> None:
        """Another recipe; with its own key, folder and provenance, unless `rekey` is False."""
        self.edit(name, lambda record: change(record["stage"]))
        if rekey:
            old, new = self.keys[name], keys.key(self.record(name)["stage"])
            facts = self.store.provenance(old)
            self[name].rename(self.store.folder(new))
            self.keys[name] = new
            (self[name] / PROVENANCE).write_text(json.dumps(sign({**facts, "stage": new})))

    def bits(self, name: str) -> dict[str, Tensor]:
        return unpack((self[name] / SAMPLES).read_bytes())[0]

    def broken(self, name: str) -> Tensor:
        """Positions of samples that the attack broke."""
        found = self.bits(name)
        return ((found["clean"] == 1) & (found["robust"] == 0)).nonzero().squeeze(1)

    def moved(self, name: str, change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        """Packs the witnesses again, (ids, x_adv) = change(ids, x_adv, x)."""
        split = digits(self)
        place = {int(number): at for at, number in enumerate(split.ids)}

        def clean(ids: Tensor) -> Tensor:
            return split.x[[place[number] for number in ids.tolist()]]

        packed = unpack((self[name] / WITNESS).read_bytes())[0]
        ids, x_adv = map(torch.cat, zip(*unpacked(packed, clean), strict=True))
        shelf, x = Shelf(), clean(ids)
        ids, x_adv = change(ids, x_adv, x)
        shelf.add(ids, x[: len(ids)], x_adv)
        self.write(name, WITNESS, pack(shelf.tensors()))


def digits(lab: Lab) -> Any:
    from rtbench.engine.context import load_data

    return load_data(lab.record("pgd")["stage"]["data"], catalogue(), Options("nowhere")).test


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("honest")
    text = SUITE.replace("[parts]", PROBES + '[parts]\nnative = { use = "brief", norm = "linf", eps = "1/20" }')
    text = text.replace("eps = 0.1, steps = 3", "eps = 0.05, steps = 3, step = 0.02").replace("epochs = 2", "epochs = 12")
    files = [plugin(folder, PLUGIN)]
    board = run(write(folder, text), folder / "store", only={"recipe": ["sparse"], "drop": ["0.5"]}, plugins=files, witness=True)
    (row,) = board.as_json()["rows"]
    found = {name: trials[0] for name, trials in row["keys"].items()} | {"train": row["state"][0]}
    results = Results(folder / "store")
    found["prune"] = results.record(found["train"])["stage"]["inputs"]["masks"]
    return Lab(Store(folder / "store"), files, found)


@pytest.fixture
def lab(honest: Lab, tmp_path: Path) -> Lab:
    shutil.copytree(honest.store.path, tmp_path / "store")
    return Lab(Store(tmp_path / "store"), honest.files, dict(honest.keys))


def test_an_honest_store_passes_and_says_how_much_was_checked(honest: Lab) -> None:
    found = honest.check(again=3)
    assert not [line for verdict in found.values() for line in verdict.problems + verdict.unsaid]
    assert found.keys() == {honest.keys[name] for name in ("clean", "density", "sparse", "pgd", "native")}
    native, pgd = found[honest.keys["native"]], found[honest.keys["pgd"]]
    assert (native.samples, native.witnesses, native.again) == (40, len(honest.broken("native")), 3)
    assert (pgd.samples, pgd.witnesses, pgd.again) == (60, len(honest.broken("pgd")), 60)  # whole batches of a plain attack
    assert 3 < native.witnesses < 35 and 3 < pgd.witnesses < 55


def flip(name: str, where: int, at: int = 0) -> Callable[[dict[str, Tensor]], None]:
    """Turns the bit of the `at`-th sample whose bit it is."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name][(tensors[name] == where).nonzero().squeeze(1)[at]] = 1 - where

    return change


def number(lab: Lab, name: str, value: float | None = None, sub: str = "") -> None:
    """Makes the recorded number what the bits say, or another one."""
    column = f"robust.{sub}" if sub else "robust"
    value = float(lab.bits(name)[column].double().mean()) if value is None else value
    lab.edit(name, lambda record: [entry.__setitem__(2, value) for entry in record["records"] if entry[1] == sub])


def lose(lab: Lab, name: str, *files: str) -> None:
    """Files are gone, and the record says that there never were any."""
    for file in files:
        (lab[name] / file).unlink()
        lab.edit(name, lambda record, file=file: [record[word].pop(file) for word in ("files", "sizes")])  # type: ignore[misc]


def heal(lab: Lab, name: str) -> None:
    """Claims that a broken sample is robust, everywhere: what only attacking again can find."""
    packed = unpack((lab[name] / WITNESS).read_bytes())[0]
    lost = int(packed["ids"][-1])
    at = int((lab.bits(name)["ids"] == lost).nonzero())

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["margin"][at] = tensors["clean.margin"][at] / (1 if name == "native" else 2)
        for column in [column for column in tensors if column.startswith("robust")]:
            tensors[column][at] = 1

    lab.tensors(name, change)
    lab.moved(name, lambda ids, x_adv, x: (ids[:-1], x_adv[:-1]))
    number(lab, name)


def rot(path: Path, at: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def weight(tensors: dict[str, Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("weight") and not name.startswith("mask:"))
    tensors[name][tensors[name] != 0] *= 1.01


def unprune(tensors: dict[str, Tensor]) -> None:
    mask = next(name for name in tensors if name.startswith("mask:"))
    tensors[mask.removeprefix("mask:")][~tensors[mask]] = 0.01


def remask(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("mask:")]:
        tensors[name] = tensors[name].flip(0)


def reweighed(lab: Lab) -> None:
    """Other weights under the old key, every digest and the provenance of what was measured on them made to fit."""
    lab.tensors("train", weight, STATE)
    for name in ("clean", "density", "sparse", "pgd", "native"):
        facts = {**lab.store.provenance(lab.keys[name]), "weights": lab.store.state_digest(lab.keys["train"]), "stage": lab.keys[name]}
        (lab[name] / PROVENANCE).write_text(json.dumps(sign(facts)))


def knob(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda stage: stage["part"]["knobs"].update({name: value})


def ball(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda stage: stage["part"]["knobs"]["attack"]["knobs"].update(values)


def reseeded(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """A change of the recipe, with the seed that the changed probe would have had."""

    def both(stage: dict[str, Any]) -> None:
        change(stage)
        stage["seed"] = keys.seed(0, "probe", stage["part"])

    return both


def several(*changes: Callable[[Lab], Any]) -> Callable[[Lab], None]:
    return lambda lab: [change(lab) for change in changes] and None


CASES: dict[str, tuple[str, Callable[[Lab], Any]]] = {
    # Files
    "a bit of the samples flipped": ("files", lambda lab: rot(lab["pgd"] / SAMPLES)),
    "a bit of the weights flipped": ("files", lambda lab: rot(lab["train"] / STATE)),
    "a bit of the record flipped": ("record", lambda lab: rot(lab["pgd"] / RECORD, 40)),
    "samples gone": ("files", lambda lab: (lab["pgd"] / SAMPLES).unlink()),
    "witnesses gone": ("files", lambda lab: (lab["pgd"] / WITNESS).unlink()),
    "samples cut short": ("files", lambda lab: (lab["pgd"] / SAMPLES).write_bytes((lab["pgd"] / SAMPLES).read_bytes()[:-8])),
    "a file too many": ("files", lambda lab: (lab["pgd"] / "notes.txt").write_text("x")),
    "a digest missing": ("record", lambda lab: lab.edit("pgd", lambda record: record["files"].pop(SAMPLES))),
    "samples and witnesses left out, of a plain attack": ("samples", lambda lab: (lose(lab, "pgd", SAMPLES, WITNESS), number(lab, "pgd", 0.99))),
    "samples and witnesses left out, of a native attack": ("samples", lambda lab: lose(lab, "native", SAMPLES, WITNESS)),
    "the record gone": ("record", lambda lab: (lab["pgd"] / RECORD).unlink()),
    "the record unsigned": ("record", lambda lab: (lab["pgd"] / RECORD).write_text(keys.canonical(lab.record("pgd")))),
    "records that are none": ("record", lambda lab: lab.edit("pgd", lambda record: record.update(records=[[1]]))),
    "knobs that are none": ("part", lambda lab: lab.stage("pgd", lambda stage: stage["part"].update(knobs=[]))),
    "samples that are no tensors": ("record", lambda lab: lab.write("pgd", SAMPLES, b"not tensors at all")),
    "the record of another stage": ("key", lambda lab: [shutil.copy(file, lab["pgd"]) for file in lab["native"].iterdir()]),
    "provenance of another stage": ("provenance", lambda lab: shutil.copy(lab["native"] / PROVENANCE, lab["pgd"])),
    "provenance gone": ("provenance", lambda lab: (lab["pgd"] / PROVENANCE).unlink()),
    # The recipe
    "eps changed, old key": ("key", lambda lab: lab.stage("pgd", ball(eps="1/10"), rekey=False)),
    "eps changed, new key": ("seed", lambda lab: lab.stage("pgd", ball(eps="1/10"))),
    "eps smaller, new key and seed": ("witness", lambda lab: lab.stage("pgd", reseeded(ball(eps="1/40")))),
    "norm changed, new key and seed": ("witness", lambda lab: lab.stage("pgd", reseeded(ball(norm="l2")))),
    "split changed": ("about", lambda lab: lab.stage("pgd", reseeded(knob("split", "valid")))),
    "split changed, about too": ("ids", lambda lab: several(
        lambda lab: lab.stage("pgd", reseeded(knob("split", "valid"))),
        lambda lab: lab.edit("pgd", lambda record: record["about"].update(split="valid")))(lab)),
    "fewer samples claimed": ("samples", lambda lab: lab.edit("pgd", lambda record: record["about"].update(samples=59))),
    "more samples in the recipe": ("ids", lambda lab: lab.stage("pgd", reseeded(knob("samples", 61)))),
    "other samples in the recipe": ("ids", lambda lab: lab.stage("native", reseeded(knob("sample_seed", 7)))),
    "the seed changed": ("seed", lambda lab: lab.stage("pgd", lambda stage: stage.update(seed=stage["seed"] + 1))),
    "another protocol": ("protocol", lambda lab: lab.stage("pgd", lambda stage: stage.update(protocol=99))),
    "another version of the probe": ("version", lambda lab: lab.stage("pgd", lambda stage: stage["part"].update(version=9))),
    "another version of the attack": ("version", lambda lab: lab.stage("pgd", lambda stage: stage["part"]["knobs"]["attack"].update(version=9))),
    "a knob that there is not": ("part", lambda lab: lab.stage("pgd", reseeded(ball(strength=3)))),
    "a knob left out": ("knobs", lambda lab: lab.stage("pgd", reseeded(lambda stage: stage["part"]["knobs"]["attack"]["knobs"].pop("restarts")))),
    "an attack that there is not": ("part", lambda lab: lab.stage("pgd", reseeded(lambda stage: stage["part"]["knobs"]["attack"].update(use="x")))),
    "another data digest": ("data", lambda lab: lab.stage("pgd", lambda stage: stage["data"].update(digest="0" * 64))),
    "another network": ("network", lambda lab: lab.stage("pgd", lambda stage: stage["net"]["knobs"].update(hidden=[8]))),
    # Inputs
    "a parent that there is not": ("parent", lambda lab: lab.stage("pgd", lambda stage: stage.update(inputs={"weights": "0" * 24}))),
    "another parent": ("weights", lambda lab: lab.stage("pgd", lambda stage: stage.update(inputs={"weights": lab.keys["prune"]}))),
    "an ancestor gone": ("parent", lambda lab: shutil.rmtree(lab["prune"])),
    "weights replaced": ("weights", lambda lab: lab.write("train", STATE, (lab["prune"] / STATE).read_bytes())),
    "one layer's weights changed, digests made to fit": ("weights", lambda lab: lab.tensors("train", weight, STATE)),
    "weights changed, provenance made to fit": ("margin", reweighed),
    "pruned weights revived": ("masks", lambda lab: lab.tensors("train", unprune, STATE)),
    "masks replaced": ("masks", lambda lab: lab.tensors("train", remask, STATE)),
    # Bits and numbers
    "a number changed": ("number", lambda lab: number(lab, "pgd", 0.99)),
    "a number of an attack's part changed": ("number", lambda lab: number(lab, "native", 0.99, "apgd-ce")),
    "a number removed": ("samples", lambda lab: lab.edit("native", lambda record: record["records"].pop())),
    "a number twice": ("number", lambda lab: lab.edit("pgd", lambda record: record["records"].append([0, "", 0.99]))),
    "a broken bit flipped": ("number", lambda lab: lab.tensors("pgd", flip("robust", 0))),
    "a broken bit flipped, number made to fit": ("margin", lambda lab: (lab.tensors("pgd", flip("robust", 0)), number(lab, "pgd"))),
    "a robust bit flipped, number made to fit": ("witness", lambda lab: (lab.tensors("pgd", flip("robust", 1)), number(lab, "pgd"))),
    "a clean bit flipped": ("clean", lambda lab: lab.tensors("pgd", flip("clean", 0))),
    "a bit of an attack's part flipped": ("inner", lambda lab: (lab.tensors("native", flip("robust.apgd-ce", 1)), number(lab, "native", None, "apgd-ce"))),
    "the last attack's bit flipped": ("inner", lambda lab: (lab.tensors("native", flip("robust.apgd-t", 1)), number(lab, "native", None, "apgd-t"))),
    "a bit that is none": ("samples", lambda lab: lab.tensors("pgd", lambda t: t["robust"].__setitem__(0, 2))),
    "two ids swapped": ("ids", lambda lab: lab.tensors("pgd", lambda t: t["ids"].__setitem__(slice(0, 2), t["ids"][:2].flip(0)))),
    "an id repeated": ("ids", lambda lab: lab.tensors("pgd", lambda t: t["ids"].__setitem__(1, t["ids"][0]))),
    "a column removed": ("samples", lambda lab: lab.tensors("pgd", lambda t: t.pop("margin"))),
    "a column too many": ("samples", lambda lab: lab.tensors("pgd", lambda t: t.update(more=t["robust"]))),
    "a column of another type": ("samples", lambda lab: lab.tensors("pgd", lambda t: t.update(margin=t["margin"].double()))),
    "a column of another length": ("samples", lambda lab: lab.tensors("pgd", lambda t: t.update(clean=t["clean"][:-1]))),
    "a margin edited": ("margin", lambda lab: lab.tensors("pgd", lambda t: t["margin"].__setitem__(int(lab.broken("pgd")[0]), -0.5))),
    "a clean margin edited": ("margin", lambda lab: lab.tensors("pgd", lambda t: t["clean.margin"].mul_(1.001))),
    "a margin on the other side": ("margin", lambda lab: lab.tensors("pgd", lambda t: t["margin"].neg_())),
    "a margin of a sample that a native attack left": ("margin", lambda lab: lab.tensors("native", lambda t: t["margin"].sub_(t["robust"] * 1e-3))),
    "a margin that is no number": ("margin", lambda lab: lab.tensors("pgd", lambda t: t["margin"].__setitem__(0, torch.nan))),
    "chance-level removed": ("flags", lambda lab: chance(lab)),
    "a flag added": ("flags", lambda lab: lab.edit("pgd", lambda record: record["flags"].append("chance-level"))),
    "a flag of what nothing attacked": ("flags", lambda lab: lab.edit("clean", lambda record: record["flags"].append("randomised"))),
    "a flag of the search added": ("flags", lambda lab: lab.edit("native", lambda record: record["flags"].append("masked-gradient"))),
    "a flag twice": ("flags", lambda lab: lab.edit("pgd", lambda record: record["flags"].extend(["odd", "odd"]))),
    "passes lowered": ("passes", lambda lab: lab.edit("native", lambda record: record["passes"].update(forwards=60))),
    "passes not counted": ("passes", lambda lab: lab.edit("pgd", lambda record: record.update(passes=None))),
    "gradients lowered": ("passes", lambda lab: lab.edit("native", lambda record: record["passes"].update(gradients=0))),
    "passes of samples lowered": ("passes", lambda lab: lab.tensors("native", lambda t: t["forwards"].fill_(3))),
    "passes of a plain attack lowered": ("passes", lambda lab: lab.edit("pgd", lambda record: record["passes"].update(forwards=60))),
    # Witnesses
    "a witness outside the ball": ("witness", lambda lab: lab.moved("pgd", lambda ids, x_adv, x: (ids, (x + (x_adv - x) * 1.01).clamp(0, 1)))),
    "a witness outside the box": ("witness", lambda lab: lab.moved("pgd", lambda ids, x_adv, x: (ids, x_adv - 0.01))),
    "a witness that is the clean image": ("witness", lambda lab: lab.moved("pgd", lambda ids, x_adv, x: (ids, x))),
    "a witness of another sample": ("witness", lambda lab: lab.moved("pgd", lambda ids, x_adv, x: (ids, x_adv.roll(1, 0)))),
    "a witness that is no number": ("witness", lambda lab: lab.moved("pgd", lambda ids, x_adv, x: (ids, torch.full_like(x, torch.nan)))),
    "a witness missing": ("witness", lambda lab: lab.moved("pgd", lambda ids, x_adv, x: (ids[:-1], x_adv[:-1]))),
    "a witness twice": ("witness", lambda lab: lab.moved("native", lambda ids, x_adv, x: (torch.cat([ids[:-1], ids[:1]]), x_adv))),
    "witnesses of another row": ("witness", lambda lab: lab.write("native", WITNESS, (lab["pgd"] / WITNESS).read_bytes())),
    "witness ids swapped": ("witness", lambda lab: lab.tensors("pgd", lambda t: t.update(ids=t["ids"].roll(1)), WITNESS)),
    "witness bytes cut": ("witness", lambda lab: lab.tensors("pgd", lambda t: (t.update(bytes=t["bytes"][:-4]), t["ends"].sub_(4)), WITNESS)),
    "witnesses of what nothing attacked": ("witness", lambda lab: lab.write("clean", WITNESS, (lab["pgd"] / WITNESS).read_bytes())),
    "witness bytes of another type": ("witness", lambda lab: lab.tensors("pgd", lambda t: t.update(bytes=t["bytes"].float()), WITNESS)),
    # Probes without samples
    "a sparsity edited": ("number", lambda lab: number(lab, "sparse", 0.9)),
    "a density of a layer edited": ("number", lambda lab: lab.edit("density", lambda record: record["records"][-1].__setitem__(2, 0.1))),
    "a sparsity removed": ("number", lambda lab: lab.edit("sparse", lambda record: record["records"].pop())),
}  # fmt: skip


def chance(lab: Lab) -> None:
    """A network that answers one class, and a row that says nothing of it: all else is consistent."""

    def blind(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("weight")]:
            tensors[name].zero_()

    lab.tensors("train", blind, STATE)
    (lab["clean"] / PROVENANCE).write_text(
        json.dumps(sign({"weights": lab.store.state_digest(lab.keys["train"]), "stage": lab.keys["clean"]}))
    )
    split, bias = digits(lab), unpack((lab["train"] / STATE).read_bytes())[0]
    logits = next(tensor for name, tensor in bias.items() if name.endswith("bias") and len(tensor) == 10)
    at = {int(number): place for place, number in enumerate(split.ids)}
    y = split.y[[at[number] for number in lab.bits("clean")["ids"].tolist()]]

    def change(tensors: dict[str, Tensor]) -> None:
        others = logits.expand(len(y), 10).scatter(1, y[:, None], -torch.inf).amax(1)
        for name in ("margin", "clean.margin"):
            tensors[name] = logits[y] - others
        for name in ("robust", "clean"):
            tensors[name] = (y == logits.argmax()).byte()

    lab.tensors("clean", change)
    number(lab, "clean")


@pytest.mark.parametrize("name", CASES)
def test_tampering_is_named(name: str, lab: Lab) -> None:
    wanted, tamper = CASES[name]
    tamper(lab)
    problems = [line for verdict in lab.check().values() for line in verdict.problems]
    assert any(line.startswith(f"{wanted}: ") for line in problems), problems


def test_a_row_whose_plugin_is_missing_is_not_checked_and_the_others_hold(lab: Lab) -> None:
    lab.files = []
    found = lab.check()
    assert not [line for verdict in found.values() for line in verdict.problems]
    native = found.pop(lab.keys["native"])
    assert native.unsaid == ['the attack brief of plugin "parts.py" is not installed'] and not native.samples
    assert all(not verdict.unsaid and verdict.samples >= 60 * (verdict.key == lab.keys["pgd"]) for verdict in found.values())
    result = CliRunner().invoke(cli, ["verify", str(lab.store.path)], standalone_mode=False)
    assert result.return_value == 0 and f"{lab.keys['native'][:8]} probe accuracy: not checked: the attack brief of plugin" in result.output
    older(lab, "native")
    assert lab.check()[lab.keys["native"]].unsaid == native.unsaid


def older(lab: Lab, name: str, **more: Any) -> None:
    """The provenance of an earlier rtbench, which named the plugins of a stage and not their parts."""
    facts = lab.store.provenance(lab.keys[name]) | {"stage": lab.keys[name]} | more
    (lab[name] / PROVENANCE).write_text(json.dumps(sign({word: value for word, value in facts.items() if word != "parts"})))


def test_what_is_behind_a_row_may_be_of_a_missing_plugin(tmp_path: Path) -> None:
    code = """
    def half(masks, model):
        return {name: mask & (model.get_parameter(name) > 0) for name, mask in masks.items()}

    @hookimpl
    def rtbench_pruners():
        return {"half": half}
    """
    text = SUITE.replace('{ prune = "cut", drop = "$drop" }', '{ prune = "half" }').replace("[axes]\ndrop = [0.5, 0.9]\n", "")
    run(write(tmp_path, text), tmp_path / "store", only={"recipe": ["sparse"]}, plugins=[plugin(tmp_path, code)])
    for verdict in verify_store(Store(tmp_path / "store"), catalogue(), Options("nowhere")):
        assert verdict.unsaid == ['the pruner half of plugin "parts.py" is not installed'] and not verdict.problems
        assert verdict.samples == 200 * ("accuracy" in verdict.what), "weights, bits and numbers are checked all the same"


def rename(stage: dict[str, Any]) -> None:
    stage["part"]["knobs"]["attack"].update(use="x")


@pytest.mark.parametrize(
    ("wanted", "tamper"),
    [
        ("part", lambda lab: lab.stage("pgd", reseeded(rename))),
        ("part", lambda lab: lab.stage("native", reseeded(rename))),
        ("part", lambda lab: (lab.stage("pgd", reseeded(rename)), older(lab, "pgd"))),
        ("part", lambda lab: (lab.stage("native", reseeded(rename)), (lab["native"] / PROVENANCE).unlink())),
        ("record", lambda lab: (lab.stage("pgd", reseeded(rename)), older(lab, "pgd", plugins=1))),
        ("seed", lambda lab: lab.stage("native", ball(eps="1/10"))),
        ("files", lambda lab: rot(lab["native"] / SAMPLES)),
        ("weights", lambda lab: lab.tensors("train", weight, STATE)),
        ("protocol", lambda lab: lab.stage("native", lambda stage: stage.update(protocol=99))),
    ],
)
def test_a_missing_plugin_hides_no_tampering(wanted: str, tamper: Callable[[Lab], Any], lab: Lab) -> None:
    tamper(lab)
    lab.files = []
    problems = [line for verdict in lab.check().values() for line in verdict.problems]
    assert any(line.startswith(f"{wanted}: ") for line in problems), problems


def test_a_part_that_its_plugin_here_lacks_is_named(lab: Lab) -> None:
    lab.stage("native", reseeded(rename))
    older(lab, "native")
    assert any("part: " in line for line in lab.check()[lab.keys["native"]].problems)


def test_there_are_many_kinds_of_tampering() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize("name", ["pgd", "native"])
def test_a_broken_sample_claimed_robust_throughout_is_found_by_attacking_again(name: str, lab: Lab) -> None:
    heal(lab, name)
    if name == "native":
        number(lab, name, sub="apgd-ce"), number(lab, name, sub="apgd-t")
        lab.tensors(
            name, lambda t: [t[column].__setitem__(t["robust"] == 1, t[column].max()) for column in ("forwards", "gradients")] and None
        )
        lab.edit(name, lambda record: record["passes"].update(forwards=10**6, gradients=10**6))
    assert not lab.check()[lab.keys[name]].problems  # nothing else can tell
    (line,) = lab.check(again=100)[lab.keys[name]].problems
    assert line.startswith("again: ") and "1 sample" in line


OTHERS = """
curve = { use = "curve", attack = "near", samples = 40, at = "last" }
each  = { use = "curve", attack = "pgd", samples = 40, eps = [0.02, 0.05], at = "last" }
moved = { use = "transfer", attack = "pgd", samples = 40, at = "last", from = [{ recipe = "dense" }] }
pool  = { use = "pool", attack = "pgd", samples = 40, at = "last", from = [{ recipe = "dense" }] }
"""


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A store of probes that keep other things of their samples than `accuracy`."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("others")
    text = SUITE.replace("[parts]", OTHERS + '[parts]\nnear = { use = "fmn", norm = "linf", eps = "1/20", steps = 10 }').replace(
        "0.5, 0.9", "0.5"
    )
    text = text.replace("epochs = 2", "epochs = 12").replace("eps = 0.1, steps = 3", "eps = 0.05, steps = 3, step = 0.02")
    board = run(write(folder, text), folder / "store")
    row = next(row for row in board.as_json()["rows"] if row["recipe"] == "sparse")
    found = {name: trials[0] for name, trials in row["keys"].items()}
    moved = next(name for name in found if name.startswith("moved"))
    found |= {"moved": found[moved], "craft": Results(folder / "store").record(found[moved])["stage"]["inputs"]["source"]}
    return Lab(Store(folder / "store"), [], found)


def share(lab: Lab, name: str, number_: str, value: float) -> None:
    lab.edit(name, lambda record: [entry.__setitem__(2, value) for entry in record["records"] if entry[1] == number_])


OTHER_CASES: dict[str, tuple[str, str, Callable[[Lab], Any]]] = {
    "a curve's value": ("curve", "number", lambda lab: share(lab, "curve", "", 0.99)),
    "a curve at another radius": ("curve", "number", lambda lab: share(lab, "curve", "1/40", 0.99)),
    "a curve's median": ("curve", "number", lambda lab: share(lab, "curve", "median", 0.99)),
    "a raw accuracy below the curve": ("each", "number", lambda lab: share(lab, "each", "raw.1/20", 0.0)),
    "a distance": ("curve", "number", lambda lab: lab.tensors("curve", lambda t: t["distance"].mul_(3))),
    "a distance of what is wrong clean": ("curve", "distance", lambda lab: lab.tensors("curve", lambda t: t["distance"].fill_(1))),
    "a curve's clean bits": ("curve", "distance", lambda lab: lab.tensors("curve", lambda t: t["clean"].fill_(1))),
    "a curve's ids": ("curve", "ids", lambda lab: lab.tensors("curve", lambda t: t.update(ids=t["ids"].flip(0)))),
    "a curve's radii": ("curve", "about", lambda lab: lab.edit("curve", lambda record: record["about"]["radii"].update({"1/40": "1/4"}))),
    "a curve's samples left out": ("curve", "samples", lambda lab: lose(lab, "curve", SAMPLES)),
    "points outside the ball": ("craft", "points", lambda lab: lab.tensors("craft", lambda t: t["points"].add_(0.2).clamp_(0, 1))),
    "points that break nothing": ("craft", "witness", lambda lab: lab.tensors("craft", lambda t: t["points"].copy_(clean_images(lab)))),
    "a transfer's number": ("moved", "number", lambda lab: share(lab, "moved", "", 0.99)),
    "a transfer's bits": ("moved", "samples", lambda lab: lab.tensors("moved", flip("robust", 1))),
    "a pool's number": ("pool", "number", lambda lab: share(lab, "pool", "transfer", 0.99)),
    "a pool's bits": ("pool", "samples", lambda lab: lab.tensors("pool", flip("robust.white-box", 1))),
    "examples borrowed of another run": ("moved", "parent", lambda lab: lab.tensors("craft", lambda t: t["margin"].add_(0))
                                         or lab.tensors("craft", lambda t: t["clean.margin"].mul_(1.00001))),
}  # fmt: skip


def clean_images(lab: Lab) -> Tensor:
    from rtbench.engine.context import load_data

    split = load_data(lab.record("craft")["stage"]["data"], catalogue(), Options("nowhere")).test
    return split.x[torch.isin(split.ids, lab.bits("craft")["ids"])].clone()  # type: ignore[union-attr]


def test_honest_curves_and_transfers_pass(others: Lab) -> None:
    found = others.check()
    assert not [line for verdict in found.values() for line in verdict.problems]
    assert {others.keys[name] for name in ("curve", "each", "moved", "pool", "craft")} <= found.keys()
    assert found[others.keys["curve"]].samples == 40 and found[others.keys["craft"]].witnesses == len(others.broken("craft")) > 3


def test_the_pages_of_a_curve_and_a_pool_say_every_number_and_count_no_sample_twice(others: Lab) -> None:
    text, record = page(others.store, others.keys["curve"]), others.record("curve")
    assert all(f"| {name} | {value:.6g} |" in text for _, name, value in record["records"] if name and value is not None)
    assert "| 1/40 | " in text and "| median | " in text
    pool, bits = page(others.store, others.keys["pool"]), others.bits("pool")
    broken = [int(found) for found in re.findall(r"\| broken by .* \| (-?\d+) \|", pool)]
    assert min(broken) >= 0 and sum(broken) == int(bits["clean"].sum()) - int(bits["robust"].sum()) > 0


@pytest.mark.parametrize("name", OTHER_CASES)
def test_tampering_with_curves_and_transfers_is_named(name: str, others: Lab, tmp_path: Path) -> None:
    where, wanted, tamper = OTHER_CASES[name]
    shutil.copytree(others.store.path, tmp_path / "store")
    lab = Lab(Store(tmp_path / "store"), others.files, dict(others.keys))
    tamper(lab)
    (verdict,) = verify_store(lab.store, catalogue(), Options("nowhere"), [lab.keys[where]])
    assert any(line.startswith(f"{wanted}: ") for line in verdict.problems), verdict.problems


@pytest.mark.parametrize(("name", "column", "sub"), [("pool", "robust.transfer.dense", "transfer.dense"), ("moved", "robust", "")])
def test_borrowed_examples_at_the_boundary_are_numerics(
    name: str, column: str, sub: str, others: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another CPU, were float32 so coarse that a margin could be off by 0.5."""
    shutil.copytree(others.store.path, tmp_path / "store")
    lab = Lab(Store(tmp_path / "store"), others.files, dict(others.keys))
    bits, margins = lab.bits(name), lab.bits(name)[column.replace("robust", "margin")].abs()
    near, far = int(margins.argmin()), int(margins.argmax())
    assert margins[near] < 0.5 < margins[far]
    for at, noticed in ((near, False), (far, True)):
        changed = bits[column].clone()
        changed[at] ^= 1
        lab.tensors(name, lambda t, changed=changed: t[column].copy_(changed))  # type: ignore[misc]
        share(lab, name, sub, float(changed.double().mean()))
        monkeypatch.setattr("rtbench.evidence.bits.NUMERICS", 0.5)
        (verdict,) = verify_store(lab.store, catalogue(), Options("nowhere"), [lab.keys[name]])
        assert bool(verdict.problems) == noticed and verdict.numerics == (not noticed)
        monkeypatch.undo()
        assert verify_store(lab.store, catalogue(), Options("nowhere"), [lab.keys[name]])[0].problems
    lab.tensors(name, lambda t: t[column].copy_(bits[column]))
    share(lab, name, sub, float(bits[column].double().mean()))
    lab.tensors(name, lambda t: [t.pop(old) for old in list(t) if old.startswith("margin.")] and None)
    (verdict,) = verify_store(lab.store, catalogue(), Options("nowhere"), [lab.keys[name]])
    assert not verdict.problems, "what an earlier rtbench kept"


def test_verdicts_at_the_boundary_are_numerics(lab: Lab) -> None:
    """As on another CPU: a margin of 5e-6 that came out on the other side there."""
    state = unpack((lab["train"] / STATE).read_bytes())[0]
    before = lab.bits("clean")

    def change(tensors: dict[str, Tensor]) -> None:
        at = int((tensors["clean"] == 1).nonzero()[0])
        for column in ("robust", "clean"):
            tensors[column][at] = 0
        for column in ("margin", "clean.margin"):
            tensors[column][at] = -5e-6

    lab.tensors("clean", change)
    number(lab, "clean")
    verdict = lab.check()[lab.keys["clean"]]
    assert verdict.numerics == 1 and all(line.startswith("margin") for line in verdict.problems)  # the margin itself is far from that
    assert state and before["clean"].sum() - 1 == lab.bits("clean")["clean"].sum()


def test_without_witnesses_it_says_what_was_not_checked(lab: Lab) -> None:
    (lab["pgd"] / WITNESS).unlink()
    lab.edit("pgd", lambda record: (record["files"].pop(WITNESS), record["sizes"].pop(WITNESS)))
    verdict = lab.check()[lab.keys["pgd"]]
    assert not verdict.problems and f"{len(lab.broken('pgd'))} broken samples" in verdict.unsaid[0]


def test_a_row_without_a_broken_sample_needs_no_witness(lab: Lab) -> None:
    (lab["pgd"] / WITNESS).unlink()
    lab.edit("pgd", lambda record: (record["files"].pop(WITNESS), record["sizes"].pop(WITNESS)))
    lab.tensors("pgd", lambda t: t["robust"].copy_(t["clean"]))
    assert not lab.check()[lab.keys["pgd"]].unsaid


def test_dropped_weights_are_said_and_are_no_tampering(lab: Lab) -> None:
    lab.store.drop_state(lab.keys["train"])
    verdict = lab.check()[lab.keys["pgd"]]
    assert not verdict.problems and "dropped" in verdict.unsaid[0]


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(arguments), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return int(result.return_value or 0), result.output


def test_the_command_names_the_row_and_exits_with_1(lab: Lab) -> None:
    arguments = ("verify", str(lab.store.path), "--plugin", lab.files[0], "--device", "cpu")
    assert invoke(*arguments)[0] == 0
    number(lab, "pgd", 0.5)
    code, text = invoke(*arguments)
    assert code == 1 and f"{lab.keys['pgd'][:8]} accuracy under pgd: number: the value is 0.5" in text
    assert invoke(*arguments, "--key", lab.keys["native"][:10])[0] == 0


@pytest.fixture(scope="module")
def result(honest: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("result")
    shutil.copy(honest["train"] / STATE, folder / "model.safetensors")
    code, _ = invoke(
        "evaluate", str(folder / "model.safetensors"), "--arch", "mlp", "--knob", "hidden=[16]", "--dataset", "digits", "--data-knob", "share=0.2",
        "--attack", "brief", "--norm", "linf", "--eps", "1/20", "--samples", "30", "--plugin", honest.files[0], "--device", "cpu",
        "--output", str(folder / "result.json"), "--witness", str(folder / "result.witness.safetensors"),
    )  # fmt: skip
    assert code == 0
    return folder


@pytest.fixture
def copied(result: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(result, tmp_path / "result")
    yield tmp_path / "result"


def check(honest: Lab, folder: Path, **given: Any) -> Verdict:
    file = folder / "result.json"
    return verify_file(file, catalogue(honest.files), Options("nowhere"), checkpoint=str(folder / "model.safetensors"), **given)


def test_an_honest_result_file_passes(honest: Lab, copied: Path) -> None:
    verdict = check(honest, copied, again=5)
    assert not verdict.problems and (verdict.samples, verdict.again) == (30, 5) and verdict.witnesses > 3


SPOILT: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "bits that are none": ("record", lambda result: result.update(bits="x" * 30)),
    "ids that are none": ("record", lambda result: result.update(ids=["x"] * 30)),
    "robust": ("number", lambda result: result.update(robust=0.99)),
    "bits": ("number", lambda result: result.update(bits="1" * 30)),
    "ids": ("ids", lambda result: result["ids"].reverse()),
    "eps shown": ("protocol", lambda result: result.update(eps="1/2")),
    "eps": ("witness", lambda result: (result.update(eps="1/40"), result["protocol"]["knobs"]["attack"]["knobs"].update(eps="1/40"))),
    "clean": ("number", lambda result: result.update(clean=1.0)),
    "flags": ("flags", lambda result: result.update(flags=["chance-level"])),
    "margins": ("margin", lambda result: result["columns"].update(margin=[value * 2 for value in result["columns"]["margin"]])),
    "data": ("data", lambda result: result["dataset"].update(digest="0" * 64)),
    "nonzero": ("number", lambda result: result.update(nonzero=0.01)),
    "passes": ("passes", lambda result: result["passes"].update(forwards=30)),
    "architecture": ("weights", lambda result: result["architecture"]["knobs"].update(hidden=[8])),
    "version": ("version", lambda result: result["protocol"].update(version=9)),
    "checkpoint": ("weights", lambda result: result.update(sha256="0" * 64)),
    "witness": ("files", lambda result: result["witness"].update(sha256="0" * 64)),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_tampering_with_a_result_file_is_named(name: str, honest: Lab, copied: Path) -> None:
    wanted, tamper = SPOILT[name]
    result = {word: value for word, value in json.loads((copied / "result.json").read_text()).items() if word != "digest"}
    tamper(result)
    (copied / "result.json").write_text(json.dumps(sign(result)))
    problems = check(honest, copied).problems
    assert any(line.startswith(f"{wanted}: ") for line in problems), problems


def test_a_result_file_edited_by_hand_is_named(honest: Lab, copied: Path) -> None:
    text = (copied / "result.json").read_text()
    (copied / "result.json").write_text(text.replace('"split": "test"', '"split": "valid"'))
    assert check(honest, copied).problems[0].startswith("record: ")


def test_what_could_not_be_checked_is_said_once_for_all_rows_alike(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Verdict(f"{n:08x}", "accuracy", unsaid=[f"{n} broken samples have no adversarial example"]) for n in range(7)]
    _show([*rows, Verdict("f" * 8, "accuracy", problems=["weights: another digest"], unsaid=["the data are not here"])], None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ffffffff accuracy: weights: another digest"
    assert lines[1] == "00000000 accuracy: not checked: 0 broken samples have no adversarial example (6 more rows alike)"
    assert lines[2] == "ffffffff accuracy: not checked: the data are not here"
