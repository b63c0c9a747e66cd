"""The judge: a bit per sample, right by brute force; whatever goes wrong with an attack, accuracy never rises."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rtbench.builtin.attacks.fgsm import fgsm
from rtbench.builtin.attacks.pgd import pgd
from rtbench.commands import api
from rtbench.data.splits import Split, take
from rtbench.engine.bind import Binder
from rtbench.engine.loop import Loop
from rtbench.engine.state import unpack
from rtbench.evaluation.guard import Changed, frozen
from rtbench.evaluation.judge import AttackFailure, Judged, Outcome, correct
from rtbench.parts.kinds import Attacked
from rtbench.parts.threats import Threat
from rtbench.plugins import catalogue
from rtbench.storage.results import Results
from studies import SUITE, plugin, run, stages, write

N, SHAPE, CLASSES = 60, (1, 3, 3), 4


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def split(n: int = N, seed: int = 0) -> Split:
    rng = torch.Generator().manual_seed(seed)
    return Split(torch.rand(n, *SHAPE, generator=rng), torch.randint(0, CLASSES, (n,), generator=rng), torch.arange(n) * 7 + 3)


def linear(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, CLASSES))


def network() -> nn.Module:
    """With what an attack can spoil: BatchNorm, dropout, several layers."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, CLASSES))
    with torch.no_grad():
        for _ in range(5):
            model.train()(torch.rand(32, *SHAPE))
    return model


def judged(attack: Callable[..., Any], norm: str = "linf", eps: str = "1/10", seed: int = 5) -> Judged:
    return Judged(attack, Threat(norm, Fraction(eps)), seed, "it")


def outcome(model: nn.Module, attack: Callable[..., Any], data: Split | None = None, batch: int = 512, **how: Any) -> Outcome:
    data = data or split()
    return judged(attack, **how)(model, data, torch.arange(len(data)), Loop(), batch)


def identity(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
    return x


def best_linear(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
    """The strongest linf attack on a linear model for each wrong class: moves every pixel by eps, and the box clips it."""
    weight = model[1].weight
    worst, best = x.clone(), torch.full((len(x),), torch.inf)
    for other in range(CLASSES):
        step = (weight[other] - weight[y]).sign().view_as(x) * float(threat.eps)
        moved = (x + step).clamp(0, 1)
        logits = model(moved)
        margin = logits.gather(1, y[:, None]).squeeze(1) - logits[:, other]
        better = (y != other) & (margin < best)
        worst[better], best[better] = moved[better], margin[better]
    return worst


@pytest.mark.parametrize("eps", ["0", "1/100", "1/20", "3/10", "1"])
def test_robust_bits_equal_brute_force_on_a_linear_model(eps: str) -> None:
    """Brute force: every corner of the box-clipped ball, of which a linear model has its extreme."""
    model, data = linear(), split(12)
    found = outcome(model, best_linear, data, eps=eps)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=9))).view(-1, *SHAPE) * float(Fraction(eps))
    for i in range(len(data)):
        with torch.no_grad():
            points = (data.x[i] + corners).clamp(0, 1)
            wrong = (model(points).argmax(1) != data.y[i]).any() or (model(data.x[i : i + 1]).argmax(1) != data.y[i]).any()
        assert bool(found.robust[i]) == (not wrong)


def test_pgd_finds_on_a_linear_model_what_brute_force_finds() -> None:
    exact = outcome(linear(), best_linear, eps="1/20")
    steps = outcome(linear(), lambda *given: pgd(*given, steps=20, loss="margin"), eps="1/20")
    assert torch.equal(exact.robust, steps.robust) and 0 < exact.robust.sum() < exact.clean.sum()


def test_ids_labels_and_order_are_those_asked_for() -> None:
    data, positions = split(), torch.tensor([40, 3, 3, 59, 0])
    found = judged(identity)(linear(), data, positions, Loop(), 2)
    assert found.ids.tolist() == [40 * 7 + 3, 24, 24, 59 * 7 + 3, 3] and found.y.tolist() == data.y[positions].tolist()
    x, y = take(data, positions)
    assert found.clean.tolist() == found.robust.tolist() == (linear()(x).argmax(1) == y).tolist()
    assert found.accuracy == found.robust.double().mean()


def test_misclassified_samples_are_never_robust_and_never_attacked() -> None:
    model, data, seen = linear(), split(), []

    def helpful(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Attacked:
        """Tries to make wrong samples right, and claims that it did."""
        seen.append((x, y))
        step = model[1].weight[y].view_as(x) * float(threat.eps) * 10
        return Attacked((x + step).clamp(0, 1), {"inner": torch.ones(len(y), dtype=torch.bool)})

    found = outcome(model, helpful, eps="1")
    assert not bool((found.robust & ~found.clean).any()) and not bool((found.inner["inner"] & ~found.clean).any())
    assert torch.equal(seen[0][0], data.x[found.clean]) and torch.equal(seen[0][1], data.y[found.clean])
    assert found.inner["inner"].sum() == found.clean.sum() < N


def test_logits_that_are_not_finite_are_wrong() -> None:
    class Odd(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            number = x[:, 0, 0, 0].mul(8).round().long()
            logits = nn.functional.one_hot(number % CLASSES, CLASSES).float()
            logits[number % 2 == 1, 0] = self.value
            logits[number == 2] = torch.inf
            return logits

    x = (torch.arange(8) / 8).view(-1, 1, 1, 1).expand(8, *SHAPE).contiguous()
    data = Split(x, torch.arange(8) % CLASSES, torch.arange(8))
    for value in (torch.nan, torch.inf, -torch.inf):
        assert correct(Odd(value), data.x, data.y).tolist() == [True, False, False, False, True, False, True, False]
        assert outcome(Odd(value), identity, data).robust.tolist() == [True, False, False, False, True, False, True, False]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_batch_size_does_not_change_a_bit(norm: str) -> None:
    """Of attacks that draw, too: their noise belongs to the samples."""
    attacks: list[Callable[..., Any]] = [fgsm, lambda *given: pgd(*given, steps=4, restarts=3), lambda *given: pgd(*given, label="target")]
    for attack in attacks:
        whole = outcome(network(), attack, norm=norm, eps="3/10", batch=N)
        assert 0 < whole.robust.sum() < whole.clean.sum() or norm == "linf"
        for batch in (1, 7, 59):
            other = outcome(network(), attack, norm=norm, eps="3/10", batch=batch)
            assert all(torch.equal(getattr(whole, name), getattr(other, name)) for name in ("ids", "y", "clean", "robust"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["linf", "l2", "l1"]), st.fractions(0, 2, max_denominator=255))
def test_whatever_is_proposed_is_judged_inside_the_threat_model(seed: int, norm: str, eps: Fraction) -> None:
    """A proposal anywhere is moved into ball and box: robustness under eps 0 is clean accuracy, and shrinks as eps grows."""
    from rtbench.parts.threats import inside

    rng, points = torch.Generator().manual_seed(seed), list[tuple[Tensor, Tensor]]()

    def wild(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
        return x + torch.randn(x.shape, generator=rng) * 3

    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, x: Tensor) -> Tensor:
            points.append((x, x))
            logits: Tensor = self.inner(x)
            return logits

    data = split(16, seed)
    found = outcome(Recording(), wild, data, norm=norm, eps=str(eps))
    assert not bool((found.robust & ~found.clean).any())
    if bool(found.clean.any()):
        judged_at = points[-1][0]
        assert bool(inside(judged_at, data.x[found.clean], Threat(norm, eps)).all())
    if eps == 0:
        assert torch.equal(found.robust, found.clean)


SPOILERS: dict[str, Callable[..., Any]] = {}


def spoiler(attack: Callable[..., Any]) -> Callable[..., Any]:
    SPOILERS[attack.__name__] = attack
    return attack


@spoiler
def raises(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    raise IndexError("off by one")


@spoiler
def nan(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    return torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) == 0, torch.nan, x)


@spoiler
def infinite(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    return x + torch.inf


@spoiler
def short(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    return x[:-1]


@spoiler
def flat(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    return x.flatten(1)


@spoiler
def nothing(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    return None


@spoiler
def array(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    return x.numpy()


@spoiler
def changes_images(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    return x.zero_()


@spoiler
def changes_labels(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    y.copy_(model(x).argmin(1))
    return x


@spoiler
def changes_weights(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    with torch.no_grad():
        model[0].weight.mul_(1.001)
    return x


@spoiler
def replaces_weights(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    model[5].weight = nn.Parameter(torch.zeros_like(model[5].weight))
    return x


@spoiler
def resizes_weights(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    model[5].weight.data = torch.zeros(CLASSES + 1, 16)
    return x


@spoiler
def replaces_a_layer(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    model[2] = nn.Identity()
    return x


@spoiler
def adds_a_layer(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    model.add_module("after", nn.ReLU())
    return x


@spoiler
def changes_statistics(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    model[1].running_mean += 1
    return x


@spoiler
def updates_statistics(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    model.train()
    model(x)
    return x


@spoiler
def replaces_statistics(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    model[1].running_mean = torch.zeros(4)
    return x


@spoiler
def claims_too_much(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    return Attacked(x, {"inner": torch.ones(len(x) + 1)})


@pytest.mark.parametrize("name", list(SPOILERS))
def test_an_attack_that_goes_wrong_is_a_failure(name: str) -> None:
    model, data = network(), split()
    before, modules = {key: value.clone() for key, value in model.state_dict().items()}, list(model.modules())
    wanted = {"raises": "raised IndexError: off by one"}.get(name, "")
    for batch in (N, 10):
        with pytest.raises(AttackFailure, match=f'attack "it".*{wanted}'):
            outcome(model, SPOILERS[name], data, batch=batch)
        after = model.state_dict()
        assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
        assert list(model.modules()) == modules and torch.equal(data.x, split().x) and torch.equal(data.y, split().y)
    clean = outcome(model, identity, data)
    assert clean.accuracy == outcome(network(), identity).accuracy


def leaves_train_mode(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    model[4].train()
    return x


def leaves_gradients(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    for p in model.parameters():
        p.requires_grad_(True)
    x_adv = x.clone().requires_grad_(True)
    torch.nn.functional.cross_entropy(model(x_adv), y).backward()
    x.requires_grad_(True)
    return x_adv


def leaves_hooks(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    model.register_forward_hook(
        lambda module, inputs, logits: logits * 0 + nn.functional.one_hot(y, CLASSES) if len(logits) == len(y) else None
    )
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0,))
    return x


def leaves_another_forward(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    model.forward = lambda images: nn.functional.one_hot(y[: len(images)], CLASSES).float()
    return x


def leaves_global_state(model: Any, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Any:
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    return x


RESTORED = [leaves_train_mode, leaves_gradients, leaves_hooks, leaves_another_forward, leaves_global_state]


@pytest.mark.parametrize("attack", RESTORED)
def test_what_an_attack_leaves_behind_is_put_back_before_anything_is_judged(attack: Callable[..., Any]) -> None:
    model = network().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[5].bias.grad = torch.full((CLASSES,), 2.0)
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    right = outcome(model, identity, batch=10)
    found = outcome(model, attack, batch=10)
    assert all(torch.equal(getattr(found, name), getattr(right, name)) for name in ("ids", "y", "clean", "robust"))
    assert [m.training for m in model.modules()] == modes and [p.requires_grad for p in model.parameters()] == flags
    assert [None if p.grad is None else p.grad.tolist() for p in model.parameters()] == [None] * 5 + [[2.0] * CLASSES]
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert numpy.random.get_state()[1].tolist() == state[2]
    assert "forward" not in vars(model) and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_attack_sees_the_model_as_it_is_judged() -> None:
    seen = []

    def look(model: nn.Module, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Tensor:
        seen.append((any(m.training for m in model.modules()), any(p.requires_grad for p in model.parameters()), x.dtype, x.requires_grad))
        return x

    outcome(network().train(), look)
    assert seen == [(False, False, torch.float32, False)]


def test_frozen_puts_tied_weights_and_non_persistent_buffers_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.register_buffer("mean", torch.ones(3), persistent=False)
    with pytest.raises(Changed, match="it changed"), frozen(model):
        model.mean.add_(1)
        model[1].weight.data.zero_()
    assert model[1].weight is model[0].weight and bool((model[0].weight != 0).any()) and model.mean.tolist() == [1, 1, 1]
    with pytest.raises(ZeroDivisionError), frozen(model):  # the first error is the one that is told
        model.mean.add_(1)
        raise ZeroDivisionError
    assert model.mean.tolist() == [1, 1, 1]
    with frozen(model):
        assert not model.training and not model[0].weight.requires_grad
    assert model.training and model[0].weight.requires_grad


def test_inner_outcomes_and_flags_of_all_batches() -> None:
    def parts(model: nn.Module, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Attacked:
        broken = noise.uniform(x[:, 0, 0, 0]) < 0.5
        return Attacked(x, {"half": ~broken}, ("odd", "first") if len(x) > 3 else ("odd",))

    whole, other = outcome(linear(), parts), outcome(linear(), parts, batch=7)
    assert whole.flags[:2] == ["odd", "first"] and set(other.flags) == set(whole.flags)
    assert torch.equal(whole.inner["half"], other.inner["half"]) and 0 < whole.inner["half"].sum() < whole.clean.sum()


def test_a_model_that_is_always_wrong_and_an_attack_under_no_threat() -> None:
    data = split()
    wrong = Split(data.x, (linear()(data.x).argmax(1) + 1) % CLASSES, data.ids)
    found = outcome(linear(), raises, wrong)
    assert found.accuracy == 0 and not found.clean.any(), "there is nothing to attack"
    free = Judged(lambda **_: pytest.fail("called"), None, 0, "none")(linear(), data, torch.arange(N), Loop())
    assert torch.equal(free.robust, free.clean)


def test_attacks_in_training_leave_single_modes_alone_and_may_draw_integers() -> None:
    def draws(model: nn.Module, x: Tensor, y: Tensor, threat: Any, noise: Any) -> Tensor:
        assert not any(module.training for module in model.modules())
        return x + noise.randint(0, 2).view(-1, 1, 1, 1) * 0.01

    found = catalogue()
    part = found.parts["attack", "pgd"]
    found.parts["attack", "draws"] = type(part)("attack", "draws", draws, "test", "")
    attack = Binder(found, 0, torch.Generator()).raw_attack({"use": "draws", "knobs": {"norm": "linf", "eps": "1/10"}})
    model = network().train()
    model[1].eval()
    data = split()
    x_adv = attack(model, data.x, data.y, torch.Generator().manual_seed(0))
    assert [module.training for module in model] == [True, False, True, True, True, True] and model.training
    moved = (x_adv - data.x).amax((1, 2, 3))
    assert 0 < int((moved > 0.005).sum()) < N


def test_judged_bits_are_stored_with_their_ids(tmp_path: Path) -> None:
    text = SUITE.replace(
        "[parts]", 'pgd = { use = "accuracy", attack = "pgd", samples = 40, rule = "stratified", batch = 9, at = "last" }\n[parts]'
    )
    run(write(tmp_path, text), tmp_path / "store", only={"recipe": ["dense"]})
    plan = api.plan(write(tmp_path, text), device="cpu", only={"recipe": ["dense"]})
    results = Results(tmp_path / "store")
    for probe in stages(plan, "probe"):
        if probe.part["use"] == "accuracy":
            bits, _ = unpack(results.samples_bytes(probe.key))
            record = results.record(probe.key)
            n = probe.part["knobs"]["samples"]
            assert {name: (tensor.dtype, len(tensor)) for name, tensor in bits.items()} == {
                "ids": (torch.int64, n), "robust": (torch.uint8, n), "clean": (torch.uint8, n), "margin": (torch.float32, n), "clean.margin": (torch.float32, n),
            }  # fmt: skip
            assert len(set(bits["ids"].tolist())) == n and record["about"] == {"split": "test", "samples": n}
            assert record["records"] == [[0, "", float(bits["robust"].double().mean())]]
            assert bool((bits["robust"] <= bits["clean"]).all())


def test_a_failing_attack_fails_its_probe_alone(tmp_path: Path) -> None:
    code = """
    def cheat(model, x, y, threat, noise):
        model[-1].bias.data[:] = 0
        return x

    @hookimpl
    def rtbench_attacks():
        return {"cheat": cheat}
    """
    text = SUITE.replace(
        "density = {", 'c = { use = "accuracy", attack = { use = "cheat", norm = "linf", eps = 0.1 }, at = "last" }\ndensity = {'
    )
    choices: dict[str, Any] = {"plugins": [plugin(tmp_path, code)], "only": {"recipe": ["dense"]}}
    board = run(write(tmp_path, text), tmp_path / "store", **choices)
    assert list(board.tally.failed.values()) == ['attack "cheat": it changed fc2.bias of the model'] and board.tally.done == 4
    (row,) = board.rows
    assert "c" not in row.probes or row.probes["c"].mean is None
