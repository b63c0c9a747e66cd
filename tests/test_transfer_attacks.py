"""Transfer attacks: examples of one network tried on another, by closed forms; what a suite says of sources; whole runs."""

from __future__ import annotations

import itertools
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rtbench
from rtbench.cli import cli
from rtbench.commands.estimate import predict
from rtbench.data.splits import Data, Split, take
from rtbench.engine.bind import Binder, as_measure
from rtbench.engine.loop import Loop
from rtbench.errors import UserError
from rtbench.evaluation.guard import frozen
from rtbench.evaluation.judge import AttackFailure
from rtbench.parts.kinds import Measure, declare, validate
from rtbench.parts.threats import Threat, inside
from rtbench.planning import suite
from rtbench.planning.plan import Plan, Stage, expand
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue
from rtbench.storage.results import Results
from rtbench.testing.lab import data as digits
from rtbench.testing.lab import pruned, trained
from studies import numbers, run, tree, values, write

FOUND = catalogue()
PGD = {"use": "pgd", "norm": "linf", "eps": "1/10", "steps": 5}
Samples = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def measure(use: str, model: nn.Module, found: Data, **knobs: Any) -> Measure:
    """A probe as the engine calls it; `source`, `sources` and `own` among the knobs are what it borrows."""
    lent = {word: knobs.pop(word) for word in ("source", "sources", "own") if word in knobs}
    part = Resolver({}, FOUND)("probe", {"use": use, **knobs}, "probe")
    rng = torch.Generator().manual_seed(1)
    bound = Binder(FOUND, 1, rng, found).part("probe", part)
    with frozen(model):
        return as_measure(bound(model=model, masks={}, data=found, rng=rng, loop=Loop(), history=(), **lent))


def craft(model: nn.Module, found: Data, **knobs: Any) -> Samples:
    return measure("craft", model, found, **knobs).samples


# Closed forms


def linear(weights: Tensor) -> nn.Module:
    """Logits 0 and w.(x - 1/2) for 2x2 images."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(4), weights]))  # type: ignore[operator, union-attr]
        model[1].bias.copy_(torch.tensor([0.0, -0.5 * float(weights.sum())]))  # type: ignore[operator, union-attr]
    return model


def points(n: int, seed: int) -> Data:
    """Images in the middle of the box, where no ball of up to 0.3 meets its sides."""
    rng = torch.Generator().manual_seed(seed)
    split = Split(0.35 + 0.3 * torch.rand(n, 1, 2, 2, generator=rng), torch.randint(0, 2, (n,), generator=rng), torch.arange(n) * 3 + 5)
    return Data(split, split, split, None, (1, 2, 2), 2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), norm=st.sampled_from(["linf", "l2"]), eps=st.sampled_from(["1/100", "1/20", "1/5"]))
def test_transfer_between_linear_networks_is_what_the_source_direction_says(seed: int, norm: str, eps: str) -> None:
    ours, theirs = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
    found = points(40, seed)
    attack = {"use": "pgd", "norm": norm, "eps": eps, "steps": 4, "start": "none"}
    held = craft(linear(theirs), found, attack=attack)
    got = measure("transfer", linear(ours), found, attack=attack, source=held)
    x, y = take(found.train, torch.arange(40))
    away = -(2 * y - 1)[:, None].double() * (theirs.sign() if norm == "linf" else theirs / theirs.norm()).double()
    moved = x.flatten(1).double() + float(Fraction(eps)) * away
    margins = [(2 * y - 1) * ((at - 0.5) @ ours.double()) for at in (x.flatten(1).double(), moved)]
    sure = (margins[0].abs() > 1e-5) & (margins[1].abs() > 1e-5)
    expected = (margins[0] > 0) & (margins[1] > 0)
    assert torch.equal(got.samples["robust"].bool()[sure], expected[sure]) and int(sure.sum()) > 35
    assert torch.equal(got.samples["ids"], found.train.ids)
    assert inside(held["points"], x, Threat(norm, Fraction(eps))).all()  # type: ignore[arg-type]


def test_a_network_that_looks_elsewhere_is_not_touched_and_one_that_looks_the_same_way_is() -> None:
    found = points(60, 0)
    one, other = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0, 0, 1.0])
    attack = {**PGD, "eps": "1/5", "start": "none"}
    held = craft(linear(one), found, attack=attack)
    far, near = (measure("transfer", linear(w), found, attack=attack, source=held) for w in (other, 3 * one))
    assert far.numbers[""] == float(far.samples["clean"].double().mean()) > 0.3 and near.numbers[""] == 0


# The same judge


PLAIN = [PGD, {"use": "pgd", "norm": "l2", "eps": 1, "steps": 4, "restarts": 2}, {"use": "pgd", "norm": "l1", "eps": 3, "steps": 4}]
NATIVE = [
    {"use": "apgd", "norm": "linf", "eps": "1/10", "steps": 5},
    {"use": "fab", "norm": "l2", "eps": 1, "steps": 3},
    {"use": "square", "norm": "linf", "eps": "1/10", "queries": 9},
]


@pytest.mark.parametrize("attack", PLAIN + NATIVE[:1], ids=str)
def test_a_source_that_is_the_target_is_the_white_box_attack_bit_for_bit(attack: dict[str, Any]) -> None:
    model, found = trained(), digits()
    direct = measure("accuracy", model, found, attack=attack, samples=100, batch=32)
    held = measure("craft", model, found, attack=attack, samples=100, batch=32)
    replayed = measure("transfer", model, found, attack=attack, samples=100, batch=32, source=held.samples)
    assert 0 < direct.numbers[""] < 1 and direct.numbers == held.numbers and replayed.numbers[""] == direct.numbers[""]  # type: ignore[operator]
    for name, bits in direct.samples.items():
        assert torch.equal(held.samples[name], bits), name
        of_search = name.startswith("robust.") or name in ("forwards", "gradients", "margin")  # which only the attack itself has
        assert of_search or torch.equal(replayed.samples[name], bits), name


@pytest.mark.parametrize("attack", PLAIN + NATIVE, ids=str)
def test_every_sample_has_a_point_inside_the_ball_and_plain_attacks_move_also_what_the_source_gets_wrong(attack: dict[str, Any]) -> None:
    model, found = trained(), digits()
    pruned(model, 0.5)
    held = craft(model, found, attack=attack, samples=40, batch=16)
    assert found.test is not None
    x, _ = take(found.test, torch.arange(40))
    moved, wrong = (held["points"] != x).flatten(1).any(1), ~held["clean"].bool()
    assert inside(held["points"], x, Threat(attack["norm"], Fraction(attack["eps"]))).all() and 5 < int(wrong.sum()) < 35
    assert moved[~wrong].any() and (moved[wrong].all() if attack in PLAIN else not moved[wrong].any())


def test_borrowed_points_are_judged_like_any_other_proposal() -> None:
    model, found = trained(), digits()
    held = craft(model, found, attack=PGD, samples=50)
    given = {"attack": PGD, "samples": 50}
    honest = measure("transfer", model, found, **given, source=held).samples["robust"]
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    again = measure("transfer", model, found, **given, source={name: tensor[shuffled] for name, tensor in held.items()})
    assert torch.equal(again.samples["robust"], honest)
    far = {**held, "points": held["points"] + 100}  # moved back to the far corner of ball and box
    bounded = measure("transfer", model, found, **given, source=far)
    assert bounded.numbers[""] > 0  # type: ignore[operator]
    for broken, why in (({"points": held["points"] * torch.nan}, "not finite"), ({"ids": held["ids"] + 1000}, "no point for some")):
        with pytest.raises(AttackFailure, match=why):
            measure("transfer", model, found, **given, source={**held, **broken})


# The pool


class Masked(nn.Module):
    """Answers as the network in it, but its gradient says nothing: logits far beyond what cross-entropy can tell apart, or rounded input."""

    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "rounded":
            return self.inner((x * 255).round() / 255)  # type: ignore[no-any-return]
        return self.inner(x) * (1e5 if self.how == "saturated" else 1)  # type: ignore[no-any-return]


def pooled(model: nn.Module, found: Data, sources: dict[str, Samples], **knobs: Any) -> Measure:
    return measure("pool", model, found, sources=sources, own=craft(model, found, **knobs), **knobs)


@pytest.mark.parametrize(("how", "raised"), [("saturated", True), ("rounded", True), ("plain twin", False)])
def test_a_network_that_hides_its_gradient_is_flagged_and_its_plain_twin_is_not(how: str, raised: bool) -> None:
    found, neighbour = digits(), trained()
    pruned(neighbour, 0.8)
    knobs: dict[str, Any] = {"attack": {"use": "pgd", "norm": "linf", "eps": "1/10", "steps": 20, "start": "none"}}
    sources = {"0.2": craft(neighbour, found, **knobs)}
    got = pooled(Masked(trained(), how).eval(), found, sources, **knobs)
    assert ("transfer-beats-white-box" in got.flags) == raised
    assert got.numbers["white-box"] > 0.5 if raised else got.numbers["white-box"] < 0.4  # type: ignore[operator]
    assert got.numbers[""] <= min(got.numbers["transfer"], got.numbers["white-box"])  # type: ignore[type-var, operator]


def test_the_numbers_of_a_pool_are_those_of_its_bits() -> None:
    found, models = digits(), [trained() for _ in range(3)]
    for model, keep in zip(models[1:], (0.8, 0.4), strict=True):
        pruned(model, keep)
    sources = {str(i): craft(model, found, attack=PGD, samples=60) for i, model in enumerate(models[1:])}
    got = pooled(models[0], found, sources, attack=PGD, samples=60)
    each = {name: measure("transfer", models[0], found, attack=PGD, samples=60, source=held) for name, held in sources.items()}
    white = measure("accuracy", models[0], found, attack=PGD, samples=60).samples["robust"]
    bits = [each["0"].samples["robust"], each["1"].samples["robust"]]
    expected = {
        "": bits[0] & bits[1] & white,
        "transfer": bits[0] & bits[1],
        "white-box": white,
        "transfer.0": bits[0],
        "transfer.1": bits[1],
    }
    assert got.numbers == {name: float(robust.double().mean()) for name, robust in expected.items()}
    for name, robust in expected.items():
        assert torch.equal(got.samples[f"robust.{name}" if name else "robust"], robust)
    alone = pooled(models[0], found, {}, attack=PGD, samples=60)
    assert alone.numbers[""] == alone.numbers["white-box"] and alone.numbers["transfer"] == float(alone.samples["clean"].double().mean())


@pytest.mark.parametrize(("n", "broken", "raised"), [(400, 1, False), (400, 2, True), (1200, 2, False), (1200, 3, True)])
def test_the_flag_needs_two_samples_and_more_than_two_thousandths(n: int, broken: int, raised: bool) -> None:
    weights = torch.tensor([1.0, 2.0, -1.0, 0.5])
    plain = points(n, 1).train
    x, _ = take(plain, torch.arange(n))
    split = Split(x, linear(weights)(x).argmax(1), plain.ids)  # every sample is right
    found, knobs = Data(split, split, split, None, (1, 2, 2), 2), {"attack": {**PGD, "eps": "1/5"}}
    held = craft(linear(weights), found, **knobs)
    assert not held["robust"].any()
    few = {**held, "points": torch.where(torch.arange(n)[:, None, None, None] < broken, held["points"], x)}
    blind = {**held, "robust": held["clean"]}
    got = measure("pool", linear(weights), found, sources={"few": few}, own=blind, **knobs)
    assert ("transfer-beats-white-box" in got.flags) == raised and got.numbers["transfer"] == 1 - broken / n


# Suites


SUITE = """
name = "moving"
trials = 1
data = "digits"
[axes]
adversary = ["none", "pgd"]
drop = [0.5, 0.9]
[recipes.dense]
steps = [{ init = "net", as = "start" }, { train = "fit" }]
[recipes.sparse]
steps = [{ init = "net", as = "start" }, { train = "fit" }, { prune = "cut", drop = "$drop" }, { train = "fit" }]
[probes]
clean = { use = "accuracy", samples = 100, at = "last" }
moved = { use = "transfer", attack = "pgd", samples = 100, at = "last", from = [{ recipe = "dense" }, { drop = 0.9 }] }
[parts]
digits = { use = "digits", share = 0.2 }
net = { use = "mlp", hidden = [16] }
pgd = { use = "pgd", norm = "linf", eps = 0.1, steps = 3 }
loss = { use = "robust", attack = "$adversary" }
fit = { use = "sgd", lr = 0.2, batch = 50, epochs = 2, objective = "loss" }
cut = { use = "magnitude" }
"""
FROM = '[{ recipe = "dense" }, { drop = 0.9 }]'


def planned(folder: Path, changes: dict[str, str] | None = None, only: dict[str, list[str]] | None = None, overrides: Any = ()) -> Plan:
    text = SUITE
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    return expand(suite.load(write(folder, text), None, overrides), FOUND, lambda part, where: str(part["knobs"].get("share")), only)


def of(plan: Plan, use: str) -> list[Stage]:
    return [stage for stage in plan.stages.values() if stage.part.get("use") == use]


def last(plan: Plan, recipe: str, **cell: Any) -> Any:
    """The last point of a run at trial 0."""
    found = [p for p in plan.points if p.recipe == recipe and p.trial == 0 and cell.items() <= p.cell.items()]
    return found[-1]


def lender(plan: Plan, key: str, role: str = "source") -> str:
    """The state that a borrowed input was made on."""
    return plan.stages[plan.stages[key].inputs[role]].inputs["weights"]


def test_sources_are_runs_of_the_same_cell_and_give_their_names_to_the_numbers(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    for adversary in ("none", "pgd"):
        dense, sparse = last(plan, "dense", adversary=adversary), last(plan, "sparse", adversary=adversary, drop=0.5)
        other = last(plan, "sparse", adversary=adversary, drop=0.9)
        for point in (dense, sparse, other):
            assert list(point.probes) == ["clean", "moved.dense", "moved.0.9"]
            assert lender(plan, point.probes["moved.dense"]) == dense.key and lender(plan, point.probes["moved.0.9"]) == other.key
            assert plan.stages[point.probes["moved.dense"]].inputs["weights"] == point.key
    assert len(of(plan, "craft")) == 4 and len(of(plan, "transfer")) == 12
    order = list(plan.stages)
    assert all(order.index(parent) < order.index(key) for key, stage in plan.stages.items() for parent in stage.parents())


def test_sources_pair_trials(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"trials = 1": "trials = 2"})
    dense = {p.trial: p.key for p in plan.points if p.recipe == "dense" and p.cell["adversary"] == "pgd"}
    for point in plan.points:
        if point.cell["adversary"] == "pgd":
            assert lender(plan, point.probes["moved.dense"]) == dense[point.trial]
    assert len(set(dense.values())) == 2 and len({stage.seed for stage in of(plan, "craft")}) == 2


def test_all_is_the_full_matrix_of_what_is_planned_and_crafts_once_per_network(tmp_path: Path) -> None:
    plan = planned(tmp_path, {FROM: '"all"'})
    names = {
        f"moved.{name}" for name in ("dense-none", "dense-pgd", "sparse-none-0.5", "sparse-none-0.9", "sparse-pgd-0.5", "sparse-pgd-0.9")
    }
    assert all(set(point.probes) == {"clean", *names} for point in plan.points) and len(plan.points) == 6
    assert len(of(plan, "craft")) == 6 and len(of(plan, "transfer")) == 36
    apart = planned(tmp_path, {FROM: '"all"', "[recipes.dense]": '[recipes.dense]\ndata = { use = "digits", share = 0.3 }'})
    assert len(of(apart, "craft")) == 6 and len(of(apart, "transfer")) == 2 * 2 + 4 * 4  # none on other images
    some = planned(tmp_path, {FROM: '"all"'}, only={"recipe": ["sparse"], "adversary": ["pgd"]})
    assert {tuple(point.probes) for point in some.points} == {("clean", "moved.sparse-pgd-0.5", "moved.sparse-pgd-0.9")}
    assert set(some.stages) < set(plan.stages)


def test_only_brings_the_sources_that_the_chosen_runs_need_but_not_their_rows(tmp_path: Path) -> None:
    whole, some = planned(tmp_path), planned(tmp_path, only={"recipe": ["sparse"], "adversary": ["pgd"], "drop": ["0.5"]})
    assert [point.cell for point in some.points] == [{"adversary": "pgd", "drop": 0.5}]
    assert some.points[0].probes == last(whole, "sparse", adversary="pgd", drop=0.5).probes
    assert set(some.stages) < set(whole.stages) and len(of(some, "craft")) == 2 and len(of(some, "accuracy")) == 1
    narrowed = planned(tmp_path, overrides=["axes.drop=[0.5]"])  # the source whose value is gone goes with it
    assert {name for point in narrowed.points for name in point.probes} == {"clean", "moved.dense"}


def test_a_source_may_be_another_state_or_the_measured_run_itself_and_may_be_called_something_else(tmp_path: Path) -> None:
    given = '[{ as = "itself" }, { at = "first" }, { at = "start", recipe = "dense", as = "raw" }, { drop = [0.5, 0.9], at = 0 }]'
    plan = planned(tmp_path, {FROM: given})
    sparse = last(plan, "sparse", adversary="pgd", drop=0.5)
    assert [name for name in sparse.probes if name != "clean"] == ["moved.itself", "moved.first", "moved.raw", "moved.0.5-0", "moved.0.9-0"]
    assert lender(plan, sparse.probes["moved.itself"]) == sparse.key
    starts = {lender(plan, sparse.probes[name]) for name in ("moved.first", "moved.raw")}
    assert {plan.stages[key].verb for key in starts} == {"init"} and len(starts) == 1  # shared
    assert lender(plan, sparse.probes["moved.0.5-0"]) == lender(plan, sparse.probes["moved.0.9-0"])  # before pruning they are one


POOL = 'moved = { use = "pool", attack = "pgd", samples = 100, at = "last", from = '


def test_a_pool_is_one_stage_with_all_sources_but_itself_and_its_own_examples(tmp_path: Path) -> None:
    plan = planned(tmp_path, {'moved = { use = "transfer", attack = "pgd", samples = 100, at = "last", from = ': POOL})
    dense, other = last(plan, "dense", adversary="none"), last(plan, "sparse", adversary="none", drop=0.9)
    half = plan.stages[last(plan, "sparse", adversary="none", drop=0.5).probes["moved"]]
    assert set(half.inputs) == {"weights", "source.dense", "source.0.9", "own"}
    assert set(plan.stages[dense.probes["moved"]].inputs) == {"weights", "source.0.9", "own"}
    assert lender(plan, dense.probes["moved"], "own") == dense.key == lender(plan, half.key, "source.dense")
    assert lender(plan, other.probes["moved"], "source.dense") == dense.key
    assert len(of(plan, "craft")) == 6 == len(of(plan, "pool"))  # each network is attacked once, for itself and for all others


def test_what_makes_the_examples_on_others_may_be_another_attack(tmp_path: Path) -> None:
    plan = planned(tmp_path, {'moved = { use = "transfer", attack = "pgd", samples = 100, at = "last", from = ': POOL.replace("at =", 'source_attack = "weak", at ='),
                              "[parts]": '[parts]\nweak = { use = "fgsm", norm = "linf", eps = 0.2 }'})  # fmt: skip
    half = plan.stages[last(plan, "sparse", adversary="none", drop=0.5).probes["moved"]]
    used = {role: plan.stages[key].part["knobs"]["attack"]["use"] for role, key in half.inputs.items() if role != "weights"}
    assert used == {"source.dense": "fgsm", "source.0.9": "fgsm", "own": "pgd"}
    with pytest.raises(UserError, match='attack "none" makes no adversarial examples'):
        planned(tmp_path, {'moved = { use = "transfer", attack = "pgd"': 'moved = { use = "pool", attack = "pgd", source_attack = "none"'})


@pytest.mark.parametrize("use", ["transfer", "pool"])
def test_adding_a_source_or_an_axis_value_changes_no_other_stage(tmp_path: Path, use: str) -> None:
    before = planned(tmp_path, {'"transfer"': f'"{use}"'})
    more = planned(tmp_path, {'"transfer"': f'"{use}"', FROM: FROM[:-1] + ", { drop = 0.5 }]"})
    new = [plan_stage for key, plan_stage in more.stages.items() if key not in before.stages]
    wider = planned(tmp_path, {'"transfer"': f'"{use}"', "[0.5, 0.9]": "[0.5, 0.8, 0.9]"})
    assert set(before.stages) < set(wider.stages)
    if use == "transfer":
        assert set(before.stages) < set(more.stages) and sorted(stage.part["use"] for stage in new) == ["craft"] * 2 + ["transfer"] * 6
    else:  # crafted already, for the networks themselves; to a pool its sources belong
        assert {stage.part["use"] for stage in new} == {"pool"}


def test_where_and_at_say_which_networks_are_targets(tmp_path: Path) -> None:
    plan = planned(tmp_path, {'at = "last", from': 'at = "train", where = { recipe = "sparse", drop = 0.5 }, from'})
    assert {(p.recipe, p.cell.get("drop"), p.round) for p in plan.points if "moved.dense" in p.probes} == {
        ("sparse", 0.5, 0),
        ("sparse", 0.5, 1),
    }
    assert not any("moved.dense" in point.probes for point in plan.points if point.recipe == "dense")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f", from = {FROM}": ""}, 'probes.moved.from: is missing; "transfer" needs other runs, as in from = [{ recipe = "dense" }]'),
        ({"samples = 100, at = \"last\" }": 'samples = 100, from = "all" }'}, 'probes.clean.from: "accuracy" needs no other runs'),
        ({FROM: '"al"'}, "probes.moved.from: 'al' is neither \"all\" nor \"origin\" nor a table such as { recipe = \"dense\" }"),
        ({FROM: "[]"}, "probes.moved.from: is empty, so there is nobody to borrow from"),
        ({FROM: "[{}]"}, 'probes.moved.from.0: is empty; the measured run itself is { as = "itself" }'),
        ({FROM: '[{ recipe = "dens" }]'}, 'probes.moved.from.0.recipe: no value "dens"; did you mean "dense"?'),
        ({FROM: '[{ recipe = "dense" }, { dropp = 0.9 }]'}, 'probes.moved.from.1: no axis "dropp"; did you mean "drop"?'),
        ({FROM: "{ drop = 0.8 }"}, 'probes.moved.from.drop: no value "0.8"; did you mean "0.9"?'),
        ({FROM: '[{ drop = 0.9, at = "lst" }]'}, 'probes.moved.from.0.at: no point "lst"; did you mean "last"?'),
        ({FROM: "[{ drop = 0.9, at = -1 }]"}, "probes.moved.from.0.at: -1 is not a number of rounds"),
        ({FROM: "[{ drop = 0.9, at = 7 }]"}, 'probes.moved.from.0.at: recipe "sparse", adversary none, drop 0.9 has no state "7"'),
        ({FROM: '[{ recipe = "dense", drop = 0.9 }]'}, 'probes.moved.from.0: no run is so for recipe "dense", adversary none; choose another source, or keep the probe away with `where`'),
        ({FROM: '[{ recipe = "sparse" }]'}, 'probes.moved.from.0: "sparse" is 2 states, of recipe "sparse", adversary none, drop 0.5 and recipe "sparse", adversary none, drop 0.9 among others; name one, or list the values that are meant'),
        ({FROM: '[{ drop = 0.9, at = "train" }]'}, 'probes.moved.from.0: "0.9-train" is 2 states, of recipe "sparse", adversary none, drop 0.9 among others; name one, or list the values that are meant'),
        ({FROM: '[{ recipe = "dense" }, { recipe = "dense" }]'}, 'probes.moved.from.1: is called "dense" like probes.moved.from.0; give it a name with as = "..."'),
        ({FROM: '[{ drop = [0.5, 0.9], as = "both" }]'}, "probes.moved.from.0.as: 'both' is not the name of one source"),
        ({'attack = "pgd", samples = 100, at = "last", from': 'attack = "none", samples = 100, at = "last", from'}, 'probes.moved: attack "none" makes no adversarial examples; name one with norm and eps'),
        ({"[recipes.dense]": '[recipes.dense]\ndata = { use = "digits", share = 0.3 }'}, 'probes.moved.from.1: recipe "sparse", adversary none, drop 0.9 has other data than recipe "dense", adversary none'),
        ({"epochs = 2,": 'epochs = 2, probes = { x = { use = "pool", attack = "pgd" } },'}, 'parts.fit.probes.x.use: "pool" needs other runs, so it cannot be measured inside of one'),
    ],
    ids=range(19),
)  # fmt: skip
def test_a_mistake_in_from_is_one_sentence_with_its_path(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(tmp_path, change)
    assert str(caught.value) == f"{tmp_path / 'tiny.toml'}: {message}"


def test_a_probe_that_borrows_says_from_whom() -> None:
    def silent(source: Any) -> float: ...

    @declare(sources="craft")
    def modest(model: Any) -> float: ...

    @declare(sources="craft")
    def greedy(source: Any, sources: Any) -> float: ...

    @declare(sources="craft")
    def selfish(own: Any) -> float: ...

    for part, why in ((silent, "asks for source;"), (modest, "no source"), (greedy, "one at a time"), (selfish, "asks for own; ask")):
        with pytest.raises(ValueError, match=why):
            validate("probe", "it", part)


# Whole runs


QUICK = SUITE.replace('adversary = ["none", "pgd"]\n', "").replace('"$adversary"', '"none"')
QUICK = QUICK.replace("[parts]", 'mixed = { use = "pool", attack = "pgd", samples = 100, at = "last", from = "all" }\n[parts]')


def test_a_whole_study_is_measured_once_and_is_on_the_board(tmp_path: Path) -> None:
    path, store = (
        write(tmp_path, QUICK + '[board]\ncolumns = ["clean", "moved", "mixed", "mixed.white-box", "mixed.transfer.dense"]\n'),
        tmp_path / "s",
    )
    board = run(path, store)
    assert board.tally.done == len(rtbench.plan(path).stages) and not board.tally.failed
    assert board.columns == ["clean", "moved.dense", "moved.0.9", "mixed", "mixed.white-box", "mixed.transfer.dense"] and board.rank == [
        "clean"
    ]
    rows = {(row.recipe, row.cell.get("drop")): row for row in board.rows}
    for (recipe, drop), row in rows.items():
        got = {name: measured.mean for name, measured in row.probes.items()}
        assert got["mixed"] <= min(got["mixed.white-box"], got["mixed.transfer"]) <= got["clean"]
        for name, there in (("dense", recipe == "dense"), ("0.9", drop == 0.9)):
            pooled = f"mixed.transfer.{'dense' if name == 'dense' else 'sparse-0.9'}"
            assert got[f"moved.{name}"] == got["mixed.white-box" if there else pooled]
            assert row.probes[f"moved.{name}"].interval is not None and row.probes[f"moved.{name}"].eps == "1/10"
    files = tree(store)
    again = run(path, store)
    assert again.tally.done == 0 and numbers(again) == numbers(board) and tree(store) == files
    shown = CliRunner().invoke(cli, ["board", path, "--store", str(store), "--format", "markdown"])
    assert shown.exit_code == 0 and "moved.0.9" in shown.output and "mixed.transfer.dense" in shown.output


def test_another_source_runs_only_its_own_pairs_and_passes_are_foreseen(tmp_path: Path) -> None:
    store = tmp_path / "s"
    run(write(tmp_path, QUICK), store)
    path = write(tmp_path, QUICK.replace("{ drop = 0.9 }]", '{ drop = 0.9 }, { drop = 0.9, at = "prune" }]'))
    before = set(tree(store))
    board = run(path, store)
    new = {name.split("/")[0] for name in set(tree(store)) - before}
    results, plan = Results(store), rtbench.plan(path)
    assert board.tally.done == len(new) == 4
    assert sorted(results.record(key)["stage"]["part"]["use"] for key in new) == ["craft"] + ["transfer"] * 3
    for key, stage in plan.stages.items():
        if stage.part.get("use") in ("craft", "transfer", "pool"):
            foreseen, spent = predict(stage, FOUND, {"test": 360}), results.record(key)["passes"]
            assert foreseen is not None and 0 <= foreseen[1] - spent["gradients"] <= 64 * 31, "the panel asks only what is right clean"
            assert 0.5 * foreseen[0] <= spent["forwards"] <= foreseen[0]


def test_a_source_that_fails_fails_what_borrows_from_it_and_nothing_else(tmp_path: Path) -> None:
    text = QUICK.replace(
        "[recipes.sparse]\nsteps = [",
        '[recipes.wild]\nsteps = [{ init = "net" }, { train = "fit", lr = 1e38 }]\n[recipes.sparse]\nsteps = [',
    )
    text = text.replace(FROM, '[{ recipe = "wild" }, { recipe = "dense" }]').replace(
        'from = "all"', 'from = [{ recipe = "dense" }], where = { recipe = ["dense", "sparse"] }'
    )
    board = run(write(tmp_path, text), tmp_path / "s")
    for row in board.rows:
        got = {name: measured.mean for name, measured in row.probes.items()}
        if row.recipe != "wild":
            assert "moved.wild" not in got and {"clean", "moved.dense", "mixed"} <= set(got) and row.status == "failed"
            assert all("diverged" in reason for reason in row.reasons.values()) and list(row.reasons) == row.keys["moved.wild"]
    assert {reason for reason in board.tally.failed.values() if "needs" not in reason} == {
        '"fc1.weight" is not finite after train "sgd": it diverged'
    }


def test_lost_or_damaged_examples_are_made_again(tmp_path: Path) -> None:
    path, store = write(tmp_path, QUICK), tmp_path / "s"
    board, files = run(path, store), tree(store)
    keys = {use: [s.key for s in rtbench.plan(path).stages.values() if s.part.get("use") == use] for use in ("craft", "transfer")}
    damaged, gone = keys["craft"][0], keys["craft"][1]
    content = store / "results" / damaged / "samples.safetensors"
    content.write_bytes(content.read_bytes()[:-1] + b"\x00")
    (store / "results" / gone / "samples.safetensors").unlink()
    for key in keys["transfer"]:
        shutil.rmtree(store / "results" / key)
    again = run(path, store)
    assert numbers(again) == numbers(board)
    assert {name: digest for name, digest in tree(store).items() if ".corrupt" not in name} == files


def test_weights_may_go_when_the_examples_are_made(tmp_path: Path) -> None:
    path = write(tmp_path, QUICK)
    board = run(path, tmp_path / "s", keep="none")
    assert numbers(board) == numbers(run(path, tmp_path / "whole")) and not list((tmp_path / "s" / "results").glob("*/state.safetensors"))
    assert run(path, tmp_path / "s", keep="none").tally.done == 0
    one = next(row for row in board.rows if row.recipe == "dense")
    (key,) = one.keys["moved.dense"]
    assert values(tmp_path / "s", key)[""] == one.probes["moved.dense"].mean
    shutil.rmtree(tmp_path / "s" / "results" / one.keys["moved.0.9"][0])
    assert run(path, tmp_path / "s", keep="none").tally.done == 3  # init and train of the target; the source has left its examples


def test_pairs_that_are_planned_twice_are_one_stage(tmp_path: Path) -> None:
    twice = planned(tmp_path, {FROM: '[{ recipe = "dense" }, { recipe = "dense", at = 0 }]'})
    for point in twice.points:
        assert point.probes["moved.dense"] == point.probes["moved.dense-0"]
    assert len({key for point, name in itertools.product(twice.points, ("moved.dense",)) for key in [point.probes[name]]}) == 6
