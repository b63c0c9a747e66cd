"""Searches in bfloat16: what they miss is measured in float32, shown, kept, and checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from test_native import Fragile, Killed
from test_verify import Lab
from torch import Tensor, nn

import rtbench
from rtbench.cli import cli
from rtbench.data.splits import Split
from rtbench.engine.bind import Binder
from rtbench.engine.context import Options
from rtbench.engine.loop import Loop
from rtbench.engine.state import pack, unpack
from rtbench.evaluation.judge import Judged
from rtbench.evaluation.recheck import Recheck
from rtbench.evidence import verify_file
from rtbench.evidence.explain import page
from rtbench.parts.slots import RECHECKED
from rtbench.plugins import catalogue
from rtbench.storage.results import Results
from rtbench.storage.store import Store
from studies import SUITE, run, write

BALL = {"norm": "linf", "eps": "1/5"}
STEPS = {"steps": 5}


def network(offset: float) -> nn.Sequential:
    """Linear. bfloat16 cannot tell its logits apart beside an offset of 1000, and so finds class 0 right everywhere."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) / 4
        model[1].weight.copy_(weight[weight.sum(1).argsort(descending=True)])  # type: ignore[operator, union-attr]
        model[1].bias.fill_(offset)  # type: ignore[operator, union-attr]
    return model.eval()


def images(n: int) -> tuple[Tensor, Tensor]:
    """Images of class 0."""
    x = torch.rand(20 * n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    x = x[network(0)(x).argmax(1) == 0][:n]
    assert len(x) == n
    return x, torch.zeros(n, dtype=torch.int64)


X, Y = images(100)


def judged(precision: str = "bf16", use: str = "apgd") -> Judged:
    knobs = {**BALL, "steps": 5, "restarts": 1, "targets": 3, "precision": precision} | ({"loss": "ce"} if use == "apgd" else {})
    return Binder(catalogue(), 0, torch.Generator()).judged({"use": use, "version": 1, "knobs": knobs})


def test_what_bfloat16_misses_is_measured_and_shown() -> None:
    blind = rtbench.evaluate(network(1000), X, Y, "apgd", **BALL, knobs=STEPS, precision="bf16")
    exact = rtbench.evaluate(network(1000), X, Y, "apgd", **BALL, knobs=STEPS)
    each = blind.attacks["apgd"]
    assert blind.accuracy == 1.0 and exact.accuracy is not None and exact.accuracy < 0.3
    assert each.recheck is not None and each.recheck.asked.tolist() == [True] * RECHECKED + [False] * (100 - RECHECKED)
    assert torch.equal(each.recheck.held, each.recheck.asked & exact.outcomes["robust"])
    broke = int((~exact.outcomes["robust"][:RECHECKED]).sum())
    assert each.recheck.missed == broke / RECHECKED and "bf16-missed" in blind.flags and "bf16-missed" not in exact.flags
    assert f"float32 broke {broke} of 64 samples that the search in bfloat16 left robust, 95 % interval" in str(blind)
    assert (
        f"float32 broke {broke} of 64" in blind._repr_html_()
        and blind.as_json()["attacks"]["apgd"]["recheck"]["missed"] == each.recheck.missed
    )
    assert exact.attacks["apgd"].recheck is None and exact.attacks["apgd"].as_json()["recheck"] is None


def test_a_search_that_misses_nothing_says_so() -> None:
    found = rtbench.evaluate(network(0), X, Y, "apgd", "linf", "1/50", knobs=STEPS, precision="bf16")
    assert found.attacks["apgd"].recheck is not None and found.attacks["apgd"].recheck.missed == 0 and "bf16-missed" not in found.flags
    assert "float32 broke 0 of 64 samples" in str(found)
    none = rtbench.evaluate(network(0), X, Y, "apgd", "linf", "1", knobs=STEPS, precision="bf16")
    assert none.attacks["apgd"].recheck is not None and none.attacks["apgd"].recheck.missed is None and "bf16-missed" not in none.flags
    assert "left no sample to attack again" in str(none)


def test_passes_in_float32_are_counted_and_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for asked in (0, RECHECKED):
        monkeypatch.setattr("rtbench.evaluation.recheck.RECHECKED", asked)
        found = rtbench.evaluate(network(1000), X, Y, "apgd", "linf", "1/100000", knobs=STEPS, precision="bf16", batch=64)
        assert found.accuracy == 1.0
        counts.append(found.passes["gradients"])
    assert counts[1] - counts[0] == RECHECKED * 6
    predicted = catalogue().get("probe", "accuracy").function.passes  # type: ignore[attr-defined]

    def forecast(precision: str) -> Any:
        return predicted(
            {"split": "test", "samples": 100, "attack": {"knobs": {"precision": precision}}}, {"test": 500}, lambda *_: (9.0, 4.0)
        )

    assert forecast("exact") == (100 * 11, 100 * 4) and forecast("bf16") == (100 * 11 + 64 * 10, 164 * 4)


def test_processes_and_kills_change_nothing(tmp_path: Path) -> None:
    alone = rtbench.evaluate(network(1000), X, Y, "apgd", **BALL, knobs=STEPS, precision="bf16").attacks["apgd"].recheck
    shared = rtbench.evaluate(network(1000), X, Y, "apgd", **BALL, knobs=STEPS, precision="bf16", workers=2).attacks["apgd"].recheck
    assert alone is not None and shared is not None and torch.equal(alone.asked, shared.asked) and torch.equal(alone.held, shared.held)
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)

    def attacked(loop: Loop) -> Any:
        return judged()(network(1000), Split(X, Y, torch.arange(100)), torch.arange(100), loop, 32)

    whole, kills = attacked(Loop()), 0
    for after, late in ((3, 0), (12, 2), (14, 0), (9, 1), (6, 0)):
        try:
            attacked(Fragile(folder / "work", after, late))
        except Killed:
            kills += 1
    again = attacked(Loop(file=folder / "work"))
    assert kills >= 4 and torch.equal(again.recheck.asked, whole.recheck.asked) and torch.equal(again.recheck.held, whole.recheck.held)
    assert torch.equal(whole.recheck.held, alone.held) and whole.flags == again.flags


def test_a_curve_says_what_it_missed() -> None:
    curve = catalogue().get("probe", "curve").function

    def measure(offset: float, **given: Any) -> Any:
        data = rtbench.Data(*[Split(X, Y, torch.arange(100))] * 3, None, (1, 4, 4), 5)
        return curve(network(offset), data, Loop(), eps=(Fraction(1, 10), Fraction(1, 5)), split="test", batch=64, **given)

    for use in ("fab", "apgd"):
        found = measure(1000, attack=judged(use=use))
        assert found.numbers["missed"] > 0.5 and "bf16-missed" in found.flags, use
        assert set(found.about["radii"]) == {"1/10", "1/5"} | ({"raw.1/10", "raw.1/5"} if use == "apgd" else set())
        assert "missed" not in measure(1000, attack=judged("exact", use=use)).numbers


PROBES = """
half  = { use = "accuracy", attack = "half", samples = 80, at = "last" }
curve = { use = "curve", attack = "near", samples = 30, at = "last" }
[parts]
half = { use = "apgd", norm = "linf", eps = "1/50", steps = 3, precision = "bf16" }
near = { use = "fab", norm = "linf", eps = "1/50", steps = 3, precision = "bf16" }"""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("half")
    text = SUITE.replace("[parts]", PROBES).replace("epochs = 2", "epochs = 12")
    board = run(write(folder, text), folder / "store", only={"recipe": ["dense"]}, witness=True)
    (row,) = board.as_json()["rows"]
    return Lab(Store(folder / "store"), [], {name: trials[0] for name, trials in row["keys"].items()})


@pytest.fixture
def lab(honest: Lab, tmp_path: Path) -> Lab:
    import shutil

    shutil.copytree(honest.store.path, tmp_path / "store")
    return Lab(Store(tmp_path / "store"), [], dict(honest.keys))


def test_an_honest_row_holds_and_its_page_says_what_was_missed(honest: Lab) -> None:
    assert not [line for verdict in honest.check(again=5).values() for line in verdict.problems]
    bits, record = honest.bits("half"), honest.record("half")
    recheck = Recheck(bits["exact.asked"].bool(), bits["exact.held"].bool())
    assert int(recheck.asked.sum()) == min(RECHECKED, int(bits["robust"].sum())) > 20
    assert [0, "missed", recheck.missed] in record["records"] and recheck.missed is not None
    assert f"Of the first survivors {recheck}." in page(honest.store, honest.keys["half"])
    assert any(name == "missed" for _, name, _ in honest.record("curve")["records"])


def first(name: str, value: int) -> Callable[[dict[str, Tensor]], None]:
    """Sets the first bit of a column that differs."""

    def change(tensors: dict[str, Tensor]) -> None:
        at = int((tensors[name] != value).nonzero()[0])
        tensors[name][at] = value

    return change


def said(lab: Lab, name: str, value: float | None) -> None:
    lab.edit(name, lambda record: [entry.__setitem__(2, value) for entry in record["records"] if entry[1] == "missed"])


def unsaid(lab: Lab) -> None:
    """As if the search had been exact."""
    lab.tensors("half", lambda tensors: (tensors.pop("exact.asked"), tensors.pop("exact.held")))
    lab.edit("half", lambda record: record.update(records=[entry for entry in record["records"] if entry[1] != "missed"]))


CASES: dict[str, tuple[str, str, Callable[[Lab], Any]]] = {
    "the rate": ("half", "number", lambda lab: said(lab, "half", 0.5)),
    "the rate left out": ("half", "samples", lambda lab: said(lab, "half", 0.5) or lab.edit(
        "half", lambda record: record.update(records=[entry for entry in record["records"] if entry[1] != "missed"]))),
    "the rate and its bits left out": ("half", "number", unsaid),
    "one fewer asked": ("half", "exact", lambda lab: lab.tensors("half", first("exact.asked", 0))),
    "held without being asked": ("half", "exact", lambda lab: lab.tensors("half", lambda t: t["exact.held"].copy_(1 - t["exact.asked"]))),
    "one that did not hold": ("half", "number", lambda lab: lab.tensors("half", first("exact.held", 0))),
    "one that did not hold, the rate made to fit": ("half", "flags", lambda lab: (
        lab.tensors("half", first("exact.held", 0)), said(lab, "half", 1 / int(lab.bits("half")["exact.asked"].sum())))),
    "a flag": ("half", "flags", lambda lab: lab.edit("half", lambda record: record.update(flags=sorted([*record["flags"], "bf16-missed"])))),
    "a curve's rate": ("curve", "flags", lambda lab: said(lab, "curve", 0.5)),
    "a curve's rate left out": ("curve", "number", lambda lab: lab.edit(
        "curve", lambda record: record.update(records=[entry for entry in record["records"] if entry[1] != "missed"]))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_tampering_is_named(name: str, lab: Lab) -> None:
    probe, kind, tamper = CASES[name]
    tamper(lab)
    problems = lab.check()[lab.keys[probe]].problems
    assert any(line.startswith(f"{kind}:") for line in problems), problems


def test_what_did_not_hold_is_found_by_attacking_again(lab: Lab) -> None:
    lab.tensors("half", first("exact.held", 0))
    said(lab, "half", 1 / int(lab.bits("half")["exact.asked"].sum()))
    lab.edit("half", lambda record: record.update(flags=sorted([*record["flags"], "bf16-missed"])))
    assert not lab.check()[lab.keys["half"]].problems
    assert any(line.startswith("again:") for line in lab.check(again=80)[lab.keys["half"]].problems)


def test_the_command_says_it_and_its_file_is_checked(honest: Lab, tmp_path: Path) -> None:
    weights = tmp_path / "net.safetensors"
    state = honest.record("half")["stage"]["inputs"]["weights"]
    weights.write_bytes(pack(unpack((Results(honest.store.path).folder(state) / "state.safetensors").read_bytes())[0]))
    result = tmp_path / "result.json"
    shown = CliRunner().invoke(
        cli,
        ["evaluate", str(weights), "--arch", "mlp", "--knob", "hidden=[16]", "--dataset", "digits", "--attack", "apgd", "--attack-knob",
         "steps=3", "--attack-knob", "precision=bf16", "--norm", "linf", "--eps", "1/50", "--samples", "80", "--output", str(result)],
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert "bf16     float32 broke " in shown.output and "after missed" not in shown.output
    assert not verify_file(result, catalogue(), Options("nowhere")).problems
    assert json.loads(result.read_text())["parts"].keys() == {"apgd-ce", "missed"}
