"""plugins/rtbench-autoattack against pyautoattack itself: the same verdicts, its warnings as flags, none of its side effects."""

from __future__ import annotations

import importlib.util
import logging
import random
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from test_native import Wrapped, digits, solved, trained
from torch import Tensor, nn

from rtbench import Attacked, Threat, UserError
from rtbench.parts.kinds import knobs, validate
from rtbench.parts.noise import CounterNoise

pyautoattack = pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")
FOLDER = Path(__file__).parents[1] / "plugins" / "rtbench-autoattack" / "rtbench_autoattack"
spec = importlib.util.spec_from_file_location("rtbench_autoattack", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)])
assert spec is not None and spec.loader is not None
rtbench_autoattack = sys.modules["rtbench_autoattack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rtbench_autoattack)

LINF = Threat("linf", Fraction(1, 10))
WIDE = Threat("linf", Fraction(1, 2))
"""Breaks everything at the first attack, so that an evaluation takes a fraction of a second."""


def noise(seed: int = 0, n: int = 1) -> CounterNoise:
    return CounterNoise(seed, torch.arange(n))


def official(model: nn.Module, x: Tensor, y: Tensor, threat: Threat = WIDE, seed: int = 0, **knobs: Any) -> Attacked:
    return rtbench_autoattack.official(model, x, y, threat, noise(seed, len(x)), **knobs)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def points() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x[:40], y[:40]


@pytest.mark.parametrize(
    ("threat", "version"),
    [(LINF, "standard"), (LINF, "rand"), (Threat("l2", Fraction(2)), "standard"), (Threat("l1", Fraction(6)), "standard")],
)
def test_the_verdicts_are_those_of_the_library(model: nn.Module, points: tuple[Tensor, Tensor], threat: Threat, version: str) -> None:
    x, y = points
    direct = pyautoattack.AutoAttack(
        model, norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm], eps=float(threat.eps), seed=noise(5).seed, version=version
    )
    x_adv, y_adv = direct.run_standard_evaluation(x, y, batch_size=1000)
    ours = official(model, x, y, threat, seed=5, version=version)
    assert list(ours.outcomes) == direct.attacks_to_run
    assert torch.equal(list(ours.outcomes.values())[-1], y_adv == y)
    assert torch.equal(ours.x_adv, x_adv)
    bits = [model(x).argmax(1) == y, *ours.outcomes.values()]
    assert all(not (later & ~earlier).any() for earlier, later in pairwise(bits))
    assert torch.equal(model(ours.x_adv).argmax(1) == y, bits[-1])
    far = torch.linalg.vector_norm((ours.x_adv - x).flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[threat.norm], dim=1)
    assert float(far.max()) <= float(threat.eps) * (1 + 1e-5) and ours.x_adv.min() >= 0 and ours.x_adv.max() <= 1
    if threat is LINF:
        assert 0 < int(bits[-1].sum()) < int(bits[0].sum()) and not ours.flags


def test_each_attack_has_the_outcomes_that_it_had_alone(model: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    ours = official(model, x, y, LINF, seed=2, version="rand").outcomes
    direct = pyautoattack.AutoAttack(model, norm="Linf", eps=0.1, seed=noise(2).seed, version="rand")
    direct.attacks_to_run = ["apgd-ce"]
    _, y_adv = direct.run_standard_evaluation(x, y, batch_size=1000)
    assert torch.equal(ours["apgd-ce"], y_adv == y)


def test_attacks_with_nothing_left_to_do_leave_nothing(model: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    outcomes = official(model, *points).outcomes
    assert list(outcomes) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert not any(bits.any() for bits in outcomes.values())


@pytest.mark.parametrize(
    ("flag", "planted"),
    [
        ("randomised", {"after": lambda z: z + 0.1 * torch.randn_like(z)}),
        ("probabilities", {"after": lambda z: z.softmax(1)}),
        ("dynamic-forward", {"before": solved}),
    ],
)
def test_a_planted_defence_raises_its_flag_and_its_plain_twin_does_not(
    model: nn.Module, points: tuple[Tensor, Tensor], flag: str, planted: dict[str, Any]
) -> None:
    assert official(Wrapped(model, **planted), *points).flags == (flag,)
    assert official(Wrapped(model), *points).flags == ()


def test_a_dynamic_defence_before_it_in_the_process_is_not_held_against_a_network(
    model: nn.Module, points: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pyautoattack.checks.funcs, "grad", 3)  # as the library leaves it
    assert official(model, *points).flags == ()
    assert pyautoattack.checks.funcs["grad"] == 3


def test_rounding_the_input_hides_the_gradient_from_all_but_square(model: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    found = official(Wrapped(model, before=lambda x: (x * 8).round() / 8), x[:8], y[:8], Threat("linf", Fraction(1, 5)))
    assert found.flags == ("zero-gradient", "masked-gradient")
    assert int(found.outcomes["square"].sum()) < int(found.outcomes["fab-t"].sum())


@pytest.mark.parametrize(("classes", "attacks", "flags"), [
    (5, ["apgd-ce", "apgd-t", "fab-t", "square"], ()),
    (3, ["apgd-ce", "fab-t", "square"], ("few-classes",)),
    (2, ["apgd-ce", "fab-t", "square"], ("few-classes",)),
])  # fmt: skip
def test_few_classes(classes: int, attacks: list[str], flags: tuple[str, ...]) -> None:
    x, y = digits(classes)
    found = official(trained(classes, 30), x[:10], y[:10], Threat("linf", Fraction(1, 100)))
    assert list(found.outcomes) == attacks and found.flags == flags and found.outcomes["fab-t"].any()


def test_few_classes_in_the_other_versions() -> None:
    x, y = digits(3)
    for version, attacks in (("rand", ["apgd-ce", "apgd-dlr"]), ("plus", ["apgd-ce", "apgd-dlr", "fab", "square", "fab-t"])):
        assert list(official(trained(3, 30), x[:9], y[:9], version=version).outcomes) == attacks
    x, y = digits(2)
    assert list(official(trained(2, 30), x[:9], y[:9], version="rand").outcomes) == ["apgd-ce"]


def test_what_cannot_be_attacked_is_said_in_one_sentence() -> None:
    tiny = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(UserError, match="at least 5 pixels, not 4"):
        official(tiny, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), Threat("l2", Fraction(1)))
    with pytest.raises(UserError, match="1 class"):
        official(nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), torch.rand(2, 1, 4, 4), torch.tensor([0, 0]))


def test_nothing_is_left_behind(points: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(trained(steps=10), nn.BatchNorm1d(10), nn.Dropout(0.5)).train()
    model[1].eval()
    model[0][1].weight.requires_grad_(False)
    model[0][3].weight.grad = kept = torch.ones(10, 32)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
    x, y = points
    inputs = x.clone(), y.clone()

    def tracer(frame: Any, event: str, arg: Any) -> None:
        return None

    before, level = sys.gettrace(), logging.getLogger("auto-attack").level
    logging.getLogger("auto-attack").setLevel(logging.DEBUG)
    sys.settrace(tracer)
    try:
        flags = official(model, x, y, Threat("linf", Fraction(1, 100))).flags
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
        logging.getLogger("auto-attack").setLevel(level)
    assert flags == ()  # in training mode dropout would have made it look randomised
    assert [module.training for module in model.modules()] == [True, True, True, True, True, True, False, True]
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert model[0][3].weight.grad is kept and bool((kept == 1).all())
    assert all(p.grad is None for p in model.parameters() if p is not model[0][3].weight)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert bool((numpy.random.get_state()[1] == states[2]).all())
    assert torch.equal(x, inputs[0]) and torch.equal(y, inputs[1])
    assert not any(pyautoattack.checks.funcs.values()) and pyautoattack.autoattack.EvaluationState is pyautoattack.state.EvaluationState
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_everything_is_put_back_after_a_crash_as_well(points: tuple[Tensor, Tensor]) -> None:
    def broken(x: Tensor) -> Tensor:
        if len(x) > 1:
            raise RuntimeError("planted")
        return x

    model, state, tracer = Wrapped(trained(steps=10), before=broken).train(), torch.get_rng_state(), sys.gettrace()
    with pytest.raises(RuntimeError, match="planted"):
        official(model, *points)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state) and sys.gettrace() is tracer
    assert pyautoattack.autoattack.EvaluationState is pyautoattack.state.EvaluationState


def test_the_seed_decides_and_nothing_else(model: nn.Module, points: tuple[Tensor, Tensor]) -> None:
    x, y = points
    noisy = Wrapped(model, after=lambda z: z + 5 * torch.randn_like(z))
    first = official(noisy, x, y, seed=1)
    torch.manual_seed(123)
    assert torch.equal(official(noisy, x, y, seed=1).x_adv, first.x_adv)
    assert not torch.equal(official(noisy, x, y, seed=2).x_adv, first.x_adv)


def test_the_part_is_valid() -> None:
    parts = rtbench_autoattack.rtbench_attacks()
    validate("attack", "autoattack-official", parts["autoattack-official"])
    declared = knobs("attack", parts["autoattack-official"])
    assert set(declared) == {"norm", "eps", "version", "batch"} and all(knob.help for knob in declared.values())
