"""TRADES against its formula, its gradient, and what its attack climbs."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, softmax

from rtbench.builtin.objectives.cross_entropy import natural
from rtbench.builtin.objectives.trades import trades
from rtbench.engine.bind import Binder
from rtbench.errors import UserError
from rtbench.parts.kinds import knobs
from rtbench.parts.knobs import check_all
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue

RNG = torch.Generator()
FOUND = catalogue()


def setup() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).double()
    return model, torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])


def shift(model: Any, x: Tensor, y: Tensor, rng: Any) -> Tensor:
    """An attack whose result still hangs on the graph of x and of the weights."""
    return (x + 0.1 * model[0].weight.sum().sign() * x.sin() + 0.05 * x.cos()).clamp(0, 1)


def none(model: Any, x: Tensor, y: Tensor, rng: Any) -> Tensor:
    return x


def divergence(model: nn.Module, x: Tensor, x_adv: Tensor) -> Tensor:
    p, q = softmax(model(x), 1), softmax(model(x_adv), 1)
    return (p * (p.log() - q.log())).sum(1)


@pytest.mark.parametrize(("beta", "smooth", "l1"), [(6.0, 0.0, 0.0), (1.0, 0.1, 0.01)])
def test_losses_and_gradients_are_those_of_the_formula(beta: float, smooth: float, l1: float) -> None:
    model, x, y = setup()
    fixed = shift(model, x, y, RNG).detach()
    wanted = torch.full((6, 4), smooth / 4, dtype=x.dtype)
    wanted[torch.arange(6), y] += 1 - smooth
    norm = model[0].weight.abs().sum() + model[4].weight.abs().sum()
    expected = -(wanted * log_softmax(model(x), 1)).sum(1) + beta * divergence(model, x, fixed) + l1 * norm
    losses = trades(model, x, y, RNG, attack=shift, beta=beta, smooth=smooth, l1=l1)
    assert losses.shape == (6,) and torch.allclose(losses, expected)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(value.mean(), parameters) for value in (losses, expected))
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_divergence_is_from_the_clean_to_the_attacked_output() -> None:
    """Certain on the clean image, undecided on the attacked one: log 2; the other way round it would be far larger."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, 0, 0] * 40, torch.zeros(len(x), dtype=x.dtype)], 1)

    x, y = torch.ones(2, 1, 1, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    losses = trades(Scaled(), x, y, RNG, attack=lambda model, x, y, rng: torch.zeros_like(x), beta=1.0)
    assert torch.allclose(losses, torch.full((2,), 2.0, dtype=x.dtype).log())


def test_without_weight_or_attack_it_is_natural_training() -> None:
    def never(*words: Any) -> Tensor:
        raise AssertionError

    model, x, y = setup()
    model.eval()
    expected = natural(model, x, y, smooth=0.1)
    assert torch.equal(trades(model, x, y, RNG, attack=never, beta=0.0, smooth=0.1), expected)
    assert torch.equal(trades(model, x, y, RNG, attack=none, smooth=0.1), expected)


def test_batchnorm_sees_clean_and_attacked_images_once_each_and_the_attack_none() -> None:
    model, x, y = setup()
    trades(model, x, y, RNG, attack=nested(eps="0.1"))
    assert int(model[1].num_batches_tracked) == 2 and model.training and all(p.grad is None for p in model.parameters())


def nested(**given: Any) -> Any:
    """The attack of the paper, bound as an objective's."""
    wanted = {"use": "pgd", "norm": "linf", "loss": "kl", "start": "gaussian", "start_scale": 0.001, "steps": 10, **given}
    return Binder(FOUND, 0, RNG).raw_attack(Resolver({}, FOUND)("attack", wanted, "attack"))


@pytest.mark.parametrize("eps", ["1/50", "1/10"])
def test_the_attack_of_the_paper_finds_more_divergence_than_noise(eps: str) -> None:
    model, x, y = setup()
    model.eval()
    x_adv = nested(eps=eps)(model, x, y, torch.Generator().manual_seed(0))
    assert float((x_adv - x).abs().max()) <= float(Fraction(eps)) + 1e-12
    with torch.no_grad():
        crafted = divergence(model, x, x_adv)
        for seed in range(20):
            sign = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
            assert (crafted >= divergence(model, x, (x + float(Fraction(eps)) * sign).clamp(0, 1))).all()


def test_knobs() -> None:
    found = check_all(knobs("objective", trades), {"attack": "none"}, "loss", lambda kind, value, where: value)
    assert found == {"attack": "none", "beta": 6.0, "smooth": 0.0, "l1": 0.0}
    for wrong in ({}, {"attack": "none", "beta": -1}):
        with pytest.raises(UserError):
            check_all(knobs("objective", trades), dict(wrong), "loss", lambda kind, value, where: value)


def test_predicted_passes() -> None:
    def asked(kind: str, part: Any) -> tuple[float, float]:
        return (0, 0) if part == "none" else (10, 10)

    predict = trades.passes  # type: ignore[attr-defined]
    assert [predict({"attack": a, "beta": b}, {}, asked) for a, b in (("pgd", 6.0), ("pgd", 0.0), ("none", 6.0))] == [
        (12, 12),
        (1, 1),
        (1, 1),
    ]
