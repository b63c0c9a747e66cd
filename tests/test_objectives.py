"""Natural and robust losses against their formulas, and how many forward passes they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtbench.builtin.objectives import rtbench_objectives
from rtbench.builtin.objectives.cross_entropy import natural, robust
from rtbench.errors import UserError
from rtbench.parts.kinds import knobs, validate
from rtbench.parts.knobs import check_all

RNG = torch.Generator()


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 4))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        out: Tensor = self.body(x)
        return out


def setup() -> tuple[Counted, Tensor, Tensor]:
    torch.manual_seed(0)
    return Counted().double(), torch.rand(6, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])


def none(model: Any, x: Tensor, y: Tensor, rng: Any) -> Tensor:
    return x


def shift(model: Any, x: Tensor, y: Tensor, rng: Any) -> Tensor:
    """An attack whose result still hangs on the graph of x and of the weights."""
    return (x + 0.1 * model.body[1].weight.sum().sign() + 0.1 * x.sin()).clamp(0, 1)


def crossed(model: Counted, x: Tensor, y: Tensor, smooth: float = 0.0) -> Tensor:
    wanted = torch.full((len(y), 4), smooth / 4, dtype=x.dtype)
    wanted[torch.arange(len(y)), y] += 1 - smooth
    return -(wanted * model.body(x).softmax(1).log()).sum(1)


def l1_norm(model: Counted) -> Tensor:
    return model.body[1].weight.abs().sum() + model.body[3].weight.abs().sum()


@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_natural_is_smoothed_cross_entropy_plus_the_norm_of_the_weights(smooth: float) -> None:
    model, x, y = setup()
    losses = natural(model, x, y, smooth=smooth, l1=0.01)
    assert losses.shape == (6,)
    assert torch.allclose(losses, crossed(model, x, y, smooth) + 0.01 * l1_norm(model))
    assert torch.allclose(natural(model, x, y, smooth=smooth), crossed(model, x, y, smooth))


@pytest.mark.parametrize("mix", [0.25, 0.5, 1.0])
def test_robust_mixes_attacked_and_clean_losses(mix: float) -> None:
    model, x, y = setup()
    x_adv = shift(model, x, y, RNG).detach()
    expected = mix * crossed(model, x_adv, y, 0.1) + (1 - mix) * crossed(model, x, y, 0.1) + 0.001 * l1_norm(model)
    losses = robust(model, x, y, RNG, attack=shift, mix=mix, smooth=0.1, l1=0.001)
    assert torch.allclose(losses, expected)
    assert len(model.seen) == (1 if mix == 1 else 2)


def test_no_gradient_flows_through_the_attack() -> None:
    model, x, y = setup()
    x.requires_grad_()
    fixed = shift(model, x, y, RNG).detach()
    parameters = list(model.parameters())
    found = torch.autograd.grad(robust(model, x, y, RNG, attack=shift).sum(), parameters)
    expected = torch.autograd.grad(crossed(model, fixed, y).sum(), parameters)
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    losses = robust(model, x, y, RNG, attack=shift)
    assert torch.autograd.grad(losses.sum(), x, allow_unused=True) == (None,)


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_under_no_attack_robust_is_natural_with_one_forward_pass(mix: float) -> None:
    model, x, y = setup()
    losses = robust(model, x, y, RNG, attack=none, mix=mix, smooth=0.1)
    assert len(model.seen) == 1 and model.seen[0] is x
    assert torch.equal(losses, natural(model, x, y, smooth=0.1))


def test_a_mix_of_zero_asks_for_no_attack() -> None:
    def never(*words: Any) -> Tensor:
        raise AssertionError

    model, x, y = setup()
    assert torch.equal(robust(model, x, y, RNG, attack=never, mix=0.0), natural(model, x, y))


def test_the_attack_is_given_the_generator() -> None:
    model, x, y = setup()

    def noisy(model: Any, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        return x + torch.rand(x.shape, generator=rng, dtype=x.dtype)

    runs = [robust(model, x, y, torch.Generator().manual_seed(seed), attack=noisy) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_losses_can_be_stacked_over_models() -> None:
    """No .item() and no branch on values: the objective runs inside torch.func.vmap."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double() for _ in range(3)]
    _, x, y = setup()
    parameters, buffers = torch.func.stack_module_state(models)  # type: ignore[arg-type]

    class Called(nn.Module):
        def __init__(self, state: Any) -> None:
            super().__init__()
            self.state = state

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(models[0], self.state, (x,))
            return found

    def losses(state: Any) -> Tensor:
        return robust(Called(state), x, y, RNG, attack=lambda model, x, y, rng: x + 0.1, mix=0.5, smooth=0.1)

    stacked = torch.func.vmap(losses)({**parameters, **buffers})
    expected = torch.stack([robust(m, x, y, RNG, attack=lambda model, x, y, rng: x + 0.1, mix=0.5, smooth=0.1) for m in models])
    assert torch.allclose(stacked, expected)


def test_parts_declare_their_knobs() -> None:
    parts = rtbench_objectives()
    assert list(parts) == ["natural", "robust", "trades"]
    for name, function in parts.items():
        validate("objective", name, function)
        assert all(knob.help for knob in knobs("objective", function).values())
    for wrong in ({"mix": 1.5}, {"smooth": 1}, {"l1": -1}):
        with pytest.raises(UserError):
            check_all(knobs("objective", robust), dict(wrong), "loss", lambda kind, value, where: value)
