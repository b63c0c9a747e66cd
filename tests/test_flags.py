"""Flags: a planted defence raises its own, the same network without the trick raises none; and what plain attacks found counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from test_native import Wrapped
from torch import Tensor, nn
from torch.autograd import grad

from rtbench.builtin.attacks.pgd import pgd
from rtbench.data.splits import Split
from rtbench.engine.loop import Loop, OutOfBudget
from rtbench.evaluation.findings import about_modes, about_outputs
from rtbench.evaluation.judge import Judged, Outcome
from rtbench.evaluation.native import Build
from rtbench.evaluation.panel import SAMPLES
from rtbench.parts.flags import FLAGS, SOUGHT, sought
from rtbench.parts.threats import Threat, inside

N, CLASSES, EPS = 80, 4, Fraction(1, 10)


@pytest.fixture(scope="module")
def data() -> Split:
    """Clouds around four images, 0.4 apart in every pixel from the middle: noise alone breaks few at eps 1/10."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.where(torch.rand(CLASSES, 1, 6, 6, generator=rng) < 0.5, 0.35, 0.65)
    y = torch.arange(N) % CLASSES
    return Split((centres[y] + 0.22 * torch.randn(N, 1, 6, 6, generator=rng)).clamp(0, 1), y, torch.arange(N) * 3)


@pytest.fixture(scope="module")
def model(data: Split) -> nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data.x), data.y).backward()
        optimizer.step()
    return net.eval()


class Stubborn(nn.Dropout):
    """Stays in training mode whatever it is told."""

    def train(self, mode: bool = True) -> Stubborn:
        self.training = True
        return self


def strong(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
    return pgd(model, x, y, threat, noise, steps=20, loss="margin")


def nothing(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
    return x


def attacked(
    model: nn.Module, data: Split, attack: Any = strong, eps: Fraction = EPS, norm: str = "linf", batch: int = 512, loop: Any = None
) -> Outcome:
    return Judged(attack, Threat(norm, eps), 3, "it")(model, data, torch.arange(len(data)), loop or Loop(), batch)


def solved(x: Tensor) -> Tensor:
    """Optimises inside the forward pass, to no effect, by a name that was imported before anyone watched."""
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        grad(z.sum(), z)
    return x


def reversed_(x: Tensor) -> Tensor:
    """The same image; its gradients point the other way."""
    return 2 * x.detach() - x


def snapped(data: Split) -> Callable[[Tensor], Tensor]:
    """Takes back perturbations that are larger than 1.3 eps, knowing the images."""

    def before(x: Tensor) -> Tensor:
        far = torch.cdist(x.flatten(1), data.x.flatten(1), p=torch.inf)
        near, which = far.min(1)
        return torch.where((near > 0.13).view(-1, 1, 1, 1), data.x[which], x)

    return before


PLANTED: dict[str, Callable[[nn.Module, Split], nn.Module]] = {
    "randomised": lambda net, data: Wrapped(net, after=lambda z: z + 0.05 * torch.randn_like(z)),
    "probabilities": lambda net, data: Wrapped(net, after=lambda z: z.softmax(1)),
    "dynamic-forward": lambda net, data: Wrapped(net, before=solved),
    "train-mode": lambda net, data: Wrapped(net, after=nn.BatchNorm1d(CLASSES, affine=False, track_running_stats=False)),
    "zero-gradient": lambda net, data: Wrapped(net, before=lambda x: (x * 8).round() / 8),
    "unbounded-robust": lambda net, data: Wrapped(net, before=lambda x: x.detach() + 0 * x),
    "loss-not-increasing": lambda net, data: Wrapped(net, before=reversed_),
    "noise-beats-gradients": lambda net, data: Wrapped(net, before=reversed_),
    "larger-eps-more-accurate": lambda net, data: Wrapped(net, before=snapped(data)),
}  # fmt: skip


@pytest.mark.parametrize("flag", PLANTED)
def test_a_planted_defence_raises_its_flag(flag: str, model: nn.Module, data: Split) -> None:
    eps = Fraction(1, 4) if flag == "noise-beats-gradients" else EPS
    assert flag in attacked(PLANTED[flag](model, data), data, eps=eps).flags and flag in FLAGS


def test_the_judge_looks_for_what_can_be_planted_and_every_flag_has_a_meaning() -> None:
    assert set(sought("judge")) == set(PLANTED) and set(SOUGHT) <= set(FLAGS)
    assert {by for seekers in SOUGHT.values() for by in seekers} == {"judge", "engine", "search"}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_plain_twin_raises_none(norm: str, model: nn.Module, data: Split) -> None:
    for eps in {"linf": (EPS, Fraction(1, 4), Fraction(1)), "l2": (Fraction(1, 2), Fraction(2)), "l1": (Fraction(4), Fraction(10))}[norm]:
        found = attacked(Wrapped(model), data, eps=eps, norm=norm)
        assert found.flags == [] and found.clean.double().mean() > 0.9 > found.accuracy


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_radius_below_what_float32_tells_apart_raises_none(norm: str, model: nn.Module, data: Split) -> None:
    for eps in (Fraction(1, 10**12), Fraction(1, 10**8), Fraction(1, 10**7), Fraction(1, 10**5)):
        assert attacked(Wrapped(model), data, eps=eps, norm=norm).flags == []
    assert "loss-not-increasing" in attacked(PLANTED["loss-not-increasing"](model, data), data, eps=Fraction(1, 1000), norm=norm).flags


def test_flags_beyond_doubt_are_the_only_ones(model: nn.Module, data: Split) -> None:
    """A defence that concerns outputs alone raises no flag about gradients."""
    for flag in ("probabilities", "dynamic-forward"):
        assert attacked(PLANTED[flag](model, data), data).flags == [flag]


def test_an_attack_that_noise_beats(model: nn.Module, data: Split) -> None:
    """By the verdict of the attack that was run; without it, gradients do their work."""
    assert attacked(model, data, nothing, Fraction(1, 4)).flags == ["noise-beats-gradients"]
    assert attacked(model, data, strong, Fraction(1, 4)).flags == []


def test_train_mode_by_its_modules(model: nn.Module, data: Split) -> None:
    still = Wrapped(model, after=Stubborn(0.5))
    assert {"train-mode", "randomised"} <= set(attacked(still, data).flags) and about_modes(still.eval()) == ["train-mode"]
    twin = Wrapped(model, after=nn.Dropout(0.5)).train()
    assert attacked(twin, data).flags == [] and twin.training and about_modes(twin) == ["train-mode"] and about_modes(twin.eval()) == []


def test_one_image_is_enough_to_see_that_rows_mix(data: Split, model: nn.Module) -> None:
    mixing = Wrapped(model, after=lambda z: z - z.mean(0) / 2)
    assert about_outputs(mixing, data.x[:1]) == ["train-mode"] and about_outputs(model, data.x[:1]) == []


def test_networks_that_cannot_be_differentiated_are_judged_and_flagged(model: nn.Module, data: Split) -> None:
    def refuses(x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(lambda slope: torch.linalg.cholesky(-torch.eye(2)))  # raises on the way back
        return x * 1

    class Hard(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(model(x).argmax(1), CLASSES).float()

    for blind in (Hard(), Wrapped(model, before=refuses), Wrapped(model, after=lambda z: z.detach())):
        found = attacked(blind, data, nothing)
        assert {"zero-gradient", "unbounded-robust", "loss-not-increasing"} <= set(found.flags)
        assert torch.equal(found.robust, attacked(model, data, nothing).robust)


def test_no_flags_without_a_threat(model: nn.Module, data: Split) -> None:
    bad, asked = Wrapped(model, before=lambda x: x.detach(), after=lambda z: z.softmax(1)), []
    bad.register_forward_hook(lambda module, given, logits: asked.append(len(logits)))
    assert attacked(bad, data, nothing, eps=Fraction(0)).flags == [] and sum(asked) <= 2 * N
    assert Judged(nothing, None, 0, "none")(bad, data, torch.arange(N), Loop()).flags == []


def test_the_panel_disturbs_nothing(model: nn.Module, data: Split) -> None:
    """Neither the generators nor what the attack does; it is the same in whatever batches the samples came."""
    seen: list[Tensor] = []

    def draws(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
        seen.append(torch.rand(3))
        return strong(net, x, y, threat, noise)

    state = torch.get_rng_state()
    whole, parts = (
        attacked(PLANTED["zero-gradient"](model, data), data, draws),
        attacked(PLANTED["zero-gradient"](model, data), data, draws, batch=16),
    )
    assert torch.equal(torch.get_rng_state(), state) and all(torch.equal(seen[0], other) for other in seen)
    assert torch.equal(whole.robust, parts.robust) and set(whole.flags) == set(parts.flags) != set()
    assert int(whole.clean.sum()) > SAMPLES, "so that it is a panel, not all of them"


@pytest.mark.parametrize("dies_after", [0, 2])
def test_flags_survive_a_kill(model: nn.Module, data: Split, tmp_path: Path, dies_after: int) -> None:
    bad = PLANTED["zero-gradient"](model, data)
    right = attacked(bad, data, batch=16)

    class Killed(Loop):
        def __call__(self, items: Any, state: Any = None) -> Any:
            for number, item in enumerate(super().__call__(items, state)):
                if number == dies_after + 1:
                    raise OutOfBudget
                yield item

    with pytest.raises(OutOfBudget):
        attacked(bad, data, batch=16, loop=Killed(file=tmp_path / "loop.pt", seconds=0.0))
    again = attacked(bad, data, batch=16, loop=Loop(file=tmp_path / "loop.pt", seconds=0.0))
    assert torch.equal(again.robust, right.robust) and again.flags == right.flags and len(set(again.flags)) == len(again.flags)


def forgetful(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
    """Finds, and throws away what it found."""
    strong(model, x, y, threat, noise)
    model(strong(model, x, y, threat, noise))
    return x


def test_the_best_point_ever_queried_counts(model: nn.Module, data: Split) -> None:
    returned, thrown, idle = attacked(model, data), attacked(model, data, forgetful), attacked(model, data, nothing)
    assert torch.equal(thrown.robust & returned.robust, thrown.robust) and thrown.accuracy < idle.accuracy


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_point_queried_where_a_logit_is_not_finite_counts(value: float, model: nn.Module, data: Split) -> None:
    class Overflowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = model(x)
            kept = torch.cdist(x.flatten(1), data.x.flatten(1), p=torch.inf).amin(1) == 0
            return torch.where(kept[:, None], logits, logits.scatter(1, logits.argmax(1, keepdim=True), value))

    def found_and_thrown(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
        net((x + 0.05).clamp(0, 1))
        return x

    right = replace(data, y=model(data.x).argmax(1))
    assert attacked(Overflowing(), right, found_and_thrown).accuracy == 0 and attacked(Overflowing(), right, nothing).accuracy == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_cannot_be_attributed_or_lies_outside_does_not_count(norm: str, model: nn.Module, data: Split) -> None:
    idle = attacked(model, data, nothing, norm=norm)

    def outside(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
        x_adv = strong(net.inner, x, y, threat._replace(eps=threat.eps * 3), noise)
        net(x_adv[~inside(x_adv, x, threat)].repeat(2, 1, 1, 1)[: len(x)])  # other rows
        net(torch.where(inside(x_adv, x, threat).view(-1, 1, 1, 1), x, x_adv))
        return x

    def some(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
        net(strong(net.inner, x, y, threat, noise)[1:])
        net(strong(net.inner, x, y, threat, noise).roll(1, 0))
        return x

    for attack in (outside, some):
        assert torch.equal(attacked(Wrapped(model), data, attack, norm=norm).robust, idle.robust)


def test_a_point_outside_by_rounding_is_moved_in_and_judged(model: nn.Module, data: Split) -> None:
    """x + delta in float32 lies outside the exact ball in about every second pixel."""

    def rounded(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
        x_adv = strong(net.inner, x, y, threat, noise)
        x_adv = (x + (x_adv - x).sign() * float(threat.eps)).clamp(0, 1)
        assert not bool(inside(x_adv, x, threat).all())
        net(x_adv)
        return x

    assert (
        attacked(Wrapped(model), data, rounded).accuracy <= attacked(model, data).accuracy + 0.03 < attacked(model, data, nothing).accuracy
    )


def test_watching_is_no_query_and_leaves_no_hook(model: nn.Module, data: Split) -> None:
    asked: list[int] = []
    handle = model.register_forward_hook(lambda module, given, logits: asked.append(len(logits)))
    counts: list[int] = []

    def counted(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
        before = len(asked)
        x_adv = pgd(net, x, y, threat, noise, steps=4)
        counts.append(len(asked) - before)
        return x_adv

    attacked(model, data, counted)
    handle.remove()
    assert counts == [4] and not model._forward_hooks


def test_native_attacks_have_the_same_flags(model: nn.Module, data: Split) -> None:
    from rtbench.builtin.attacks.autoattack import apgd

    def build(threat: Threat, classes: int, shape: tuple[int, ...]) -> Any:
        return apgd(threat, classes, loss="ce", steps=5)

    slots: Build = build
    for flag in ("probabilities", "train-mode", "unbounded-robust", "larger-eps-more-accurate"):
        bad = PLANTED[flag](model, data)
        assert flag in Judged(strong, Threat("linf", EPS), 3, "it", slots)(bad, data, torch.arange(N), Loop(), 64).flags
    assert Judged(strong, Threat("linf", EPS), 3, "it", slots)(Wrapped(model), data, torch.arange(N), Loop(), 64).flags == []
