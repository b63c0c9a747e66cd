"""plugins/rtbench-torchattacks against torchattacks itself: every attack by name, under its norm, its true name and a seed."""

from __future__ import annotations

import importlib.util
import inspect
import random
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy
import pytest
import torch
from torch import Tensor, nn

from rtbench import Attacked, Threat, UserError
from rtbench.parts.kinds import knobs, validate
from rtbench.parts.knobs import check_all
from rtbench.parts.noise import CounterNoise, GeneratorNoise

torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
FOLDER = Path(__file__).parents[1] / "plugins" / "rtbench-torchattacks" / "rtbench_torchattacks"
spec = importlib.util.spec_from_file_location("rtbench_torchattacks", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)])
assert spec is not None and spec.loader is not None
plugin = sys.modules["rtbench_torchattacks"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)
table = sys.modules["rtbench_torchattacks.table"]

EPS = {"linf": Fraction(1, 10), "l2": Fraction(1, 2), "l1": Fraction(4)}
PAIRS = [(name, norm) for name, norms in table.NORMS.items() for norm in norms]
QUICK = {
    "Square": {"n_queries": 20}, "EADEN": {"max_iterations": 10}, "EADL1": {"max_iterations": 10}, "DeepFool": {"steps": 3}
}  # fmt: skip


def threat(norm: str) -> Threat:
    return Threat(norm, EPS[norm])


def network(channels: int = 3, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 7 * 7, classes)]
    return nn.Sequential(*layers).eval()


def images(model: nn.Module, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Points that the network has right."""
    x = torch.rand(6, channels, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model(x).argmax(1)


def run(model: nn.Module, x: Tensor, y: Tensor, where: Threat, seed: int = 0, **knobs: Any) -> Attacked:
    return plugin.run(model, x, y, where, CounterNoise(seed, torch.arange(len(x))), **knobs)


@pytest.mark.parametrize(("attack", "norm"), PAIRS)
def test_every_attack_runs_under_every_norm_that_it_has(attack: str, norm: str) -> None:
    model = network()
    x, y = images(model)
    found = run(model, x, y, threat(norm), attack=attack, options=QUICK.get(attack))
    assert found.x_adv.shape == x.shape and bool(torch.isfinite(found.x_adv).all()) and not found.x_adv.requires_grad
    assert torch.equal(found.x_adv, x) == (attack == "VANILA")
    signature = inspect.signature(getattr(torchattacks, attack.removesuffix("-10-steps"))).parameters
    if {"eps", "max_epsilon"} & set(signature):
        far = torch.linalg.vector_norm((found.x_adv - x).flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
        assert float(far.max()) <= float(EPS[norm]) * (1 + 1e-5)
    assert ("torchattacks-autoattack-is-10-steps" in found.flags) == (attack == "AutoAttack-10-steps")


@pytest.mark.parametrize(("attack", "norm"), [(a, n) for a in table.NORMS for n in EPS if n not in table.NORMS[a]])
def test_no_attack_runs_under_another_norm(attack: str, norm: str) -> None:
    model = network()
    with pytest.raises(UserError, match=f'"{attack}" is an attack for .*, not for {norm}'):
        run(model, *images(model), threat(norm), attack=attack)
    with pytest.raises(ValueError, match=f"not for {norm}"):  # when a suite is planned
        plugin.run.check({"attack": attack, "norm": norm})


def test_the_table_is_all_that_the_library_has_and_says_of_norms_what_it_says() -> None:
    known = {name.removesuffix("-10-steps") for name in table.NORMS} | set(table.REFUSED)
    assert known == set(torchattacks.__all__) and set(get_args(table.Name)) == set(table.NORMS)
    for name, norms in table.NORMS.items():
        kind = getattr(torchattacks, name.removesuffix("-10-steps"))
        stated = [line for line in (kind.__doc__ or "").splitlines() if "Distance Measure" in line]
        words = {"linf": "Linf", "l2": "L2", "l1": "L1"}
        found = {norm for norm in words if stated and words[norm] in stated[0]} - ({"l1"} if name == "FAB" else set())
        assert not stated or found == set(norms), name


def test_fab_under_l1_is_broken_in_this_release() -> None:
    """Should it work one day, the table may say so."""
    model = network()
    with pytest.raises(UnboundLocalError):
        torchattacks.FAB(model, norm="L1", eps=4.0)(*images(model))


def test_pgd_is_the_library_s_pgd_with_our_radius_and_seed() -> None:
    model = network()
    x, y = images(model)
    ours = run(model, x, y, threat("linf"), seed=7, attack="PGD", options={"alpha": 0.02, "steps": 6})
    torch.manual_seed(CounterNoise(7, torch.arange(6)).seed)
    theirs = torchattacks.PGD(model, eps=0.1, alpha=0.02, steps=6)(x, y)
    assert torch.equal(ours.x_adv, theirs) and ours.flags == ()
    assert not torch.equal(run(model, x, y, threat("linf"), seed=8, attack="PGD", options={"alpha": 0.02, "steps": 6}).x_adv, theirs)


@pytest.mark.parametrize("attack", ["APGD", "FAB", "AutoAttack-10-steps"])
def test_attacks_that_seed_themselves_are_seeded_by_us(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    kind = torchattacks.APGD if attack == "AutoAttack-10-steps" else getattr(torchattacks, attack)
    monkeypatch.setattr(kind, "forward", lambda self, x, y: seeds.append(self.seed) or x)
    model = network()
    run(model, *images(model), threat("linf"), seed=7, attack=attack)
    assert seeds and set(seeds) == {CounterNoise(7, torch.arange(6)).seed}


def test_targeted_attacks_know_the_number_of_classes() -> None:
    model = network(classes=5)
    x, y = images(model)
    assert run(model, x, y, Threat("linf", Fraction(1, 1000)), attack="APGDT").x_adv.shape == x.shape
    model = network(classes=3)
    with pytest.raises(UserError, match="at least 4 classes, not 3"):
        run(model, x, y % 3, threat("linf"), attack="APGDT")


@pytest.mark.parametrize("attack", list(table.REFUSED))
def test_what_must_not_run_is_refused_with_its_reason(attack: str) -> None:
    model = network()
    with pytest.raises(UserError, match=f'"{attack}" is refused'):
        run(model, *images(model), threat("linf"), attack=attack)


def test_mistakes_are_one_sentence() -> None:
    model = network()
    x, y = images(model)
    for given, message in (
        ({"attack": "PGDD"}, 'no attack of torchattacks "PGDD"; did you mean "PGD'),
        ({"options": {"step": 3}}, 'no option of torchattacks PGD "step"; did you mean "steps"'),
        ({"options": {"eps": 0.3}}, '"eps" is no option of "PGD"; rtbench sets it'),
        ({"attack": "APGD", "options": {"seed": 1}}, '"seed" is no option of "APGD"'),
    ):
        with pytest.raises(UserError, match=message):
            run(model, x, y, threat("linf"), **given)
    grey = network(1)
    for attack in table.COLOUR_ONLY:
        with pytest.raises(UserError, match="needs images of 3 channels, not 1"):
            run(grey, *images(grey, 1), threat("linf"), attack=attack)


def test_steps_that_cannot_reach_the_radius_are_flagged() -> None:
    model = network()
    x, y = images(model)
    assert run(model, x, y, threat("linf"), attack="BIM").flags == ("steps-shorter-than-eps",)
    assert run(model, x, y, threat("linf"), attack="FFGSM").flags == ("steps-shorter-than-eps",)
    assert run(model, x, y, threat("linf"), attack="BIM", options={"steps": 13}).flags == ()
    assert run(model, x, y, Threat("linf", Fraction(20, 255)), attack="BIM").flags == ()


@pytest.mark.parametrize("attack", ["PGD", "FAB", "AutoAttack-10-steps"])
def test_nothing_is_left_behind(attack: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = network().train()
    model[4].eval()
    model[0].bias.requires_grad_(False)
    model[5].weight.grad = kept = torch.ones(10, 294)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
    x, y = images(model.eval())
    model.train()
    model[4].eval()
    x_before, y_before = x.clone(), y.clone()
    run(model, x, y, threat("linf"), attack=attack)
    assert [module.training for module in model.modules()] == [True, True, True, True, True, False, True]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["0.bias"]
    assert model[5].weight.grad is kept and bool((kept == 1).all())
    assert all(p.grad is None for p in model.parameters() if p.grad is not kept)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert bool((numpy.random.get_state()[1] == states[2]).all())
    assert torch.equal(x, x_before) and torch.equal(y, y_before)
    assert capfd.readouterr() == ("", "")


def test_a_network_without_parameters_is_attacked_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    x = torch.rand(4, 3, 4, 4)
    model = nn.Flatten()
    assert run(model, x, model(x).argmax(1), threat("linf"), attack="FGSM").x_adv.shape == x.shape
    assert capfd.readouterr() == ("", "")


def test_in_training_each_call_has_its_own_numbers() -> None:
    model = network()
    x, y = images(model)

    def two(seed: int) -> list[Tensor]:
        noise = GeneratorNoise(torch.Generator().manual_seed(seed))
        return [plugin.run(model, x, y, threat("linf"), noise, attack="PGD").x_adv for _ in range(2)]

    first, again = two(0), two(0)
    assert all(map(torch.equal, first, again)) and not torch.equal(*first)


def test_the_part_is_valid_and_its_attacks_are_known_when_planned() -> None:
    parts = plugin.rtbench_attacks()
    validate("attack", "torchattacks", parts["torchattacks"])
    declared = knobs("attack", parts["torchattacks"])
    assert set(declared) == {"norm", "eps", "attack", "options"} and all(knob.help for knob in declared.values())
    ball = {"norm": "linf", "eps": "8/255"}
    options = check_all(declared, {**ball, "options": {"alpha": "2/255", "steps": 5, "loss": "ce"}}, "parts.a", lambda *_: None)["options"]
    assert options == {"alpha": 2 / 255, "steps": 5, "loss": "ce"}
    with pytest.raises(UserError, match='did you mean "AutoAttack-10-steps"'):
        check_all(declared, {**ball, "attack": "AutoAttack"}, "parts.a", lambda *_: None)


def test_importing_the_plugin_does_not_import_the_stray_robustbench() -> None:
    assert not any(name.partition(".")[0] == "robustbench" for name in sys.modules)
