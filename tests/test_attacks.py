"""FGSM and PGD where the answer is known: linear models, brute force, and a second implementation written for the test."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rtbench.builtin.attacks import rtbench_attacks
from rtbench.builtin.attacks.ascent import Model
from rtbench.builtin.attacks.fgsm import fgsm
from rtbench.builtin.attacks.losses import ce, dlr, kl_from, margin
from rtbench.builtin.attacks.none import none
from rtbench.builtin.attacks.pgd import pgd
from rtbench.errors import UserError
from rtbench.parts.kinds import knobs, validate
from rtbench.parts.knobs import check_all
from rtbench.parts.noise import CounterNoise, GeneratorNoise
from rtbench.parts.threats import Threat, inside, lengths, project, step


def source(n: int, seed: int = 0) -> CounterNoise:
    return CounterNoise(seed, torch.arange(n))


class Linear(nn.Module):
    """Two logits, 0 and w.x: label 0 is lost as w.x grows, so the worst case in a ball is w.x + eps * |w|_dual."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([torch.zeros_like(score), score], 1)


def linear(d: int = 30, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    w = torch.randn(d, generator=rng)
    w[0] = 0  # a pixel without gradient
    return Linear(w), 0.3 + 0.4 * torch.rand(8, 1, d, 1, generator=rng), torch.zeros(8, dtype=torch.int64)


def gain(model: Linear, x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv - x).double().flatten(1) @ model.w.detach().double()


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("eps", [Fraction(8, 255), Fraction(3, 10), Fraction(1, 100)])
def test_linear_models_are_pushed_to_the_dual_norm(loss: Any, eps: Fraction) -> None:
    model, x, y = linear()
    w = model.w.detach().double()
    for norm, dual, attack in (
        ("linf", w.abs().sum(), lambda t: fgsm(model, x, y, t, source(8), loss=loss)),
        ("linf", w.abs().sum(), lambda t: pgd(model, x, y, t, source(8), loss=loss)),
        ("linf", w.abs().sum(), lambda t: pgd(model, x, y, t, source(8), steps=3, step=Fraction(1), loss=loss, start="gaussian")),
        ("l2", w.norm(), lambda t: fgsm(model, x, y, t, source(8), loss=loss)),
        ("l2", w.norm(), lambda t: pgd(model, x, y, t, source(8), steps=60, step=t.eps, loss=loss)),
        ("l1", w.abs().max(), lambda t: fgsm(model, x, y, t, source(8), loss=loss)),
        ("l1", w.abs().max(), lambda t: pgd(model, x, y, t, source(8), steps=60, step=t.eps, loss=loss)),
    ):
        threat = Threat(norm, eps)
        x_adv = attack(threat)
        assert inside(x_adv, x, threat).all()
        assert torch.allclose(gain(model, x_adv, x), (float(eps) * dual).expand(8), rtol=1e-4, atol=1e-6), norm


def test_linf_attacks_end_on_the_last_float32_inside() -> None:
    model, x, y = linear()
    x_adv = pgd(model, x, y, Threat("linf", Fraction(8, 255)), source(8), step=Fraction(1, 10))
    sign = model.w.detach().sign().view(1, 1, -1, 1)
    further = torch.nextafter(x_adv, x_adv + sign)
    assert (~inside(further, x, Threat("linf", Fraction(8, 255)))).all()
    moved = sign.expand_as(x) != 0
    assert ((x_adv - x).sign() == sign)[moved].all()


def test_pixels_without_gradient_stay() -> None:
    model, x, y = linear()
    for norm in ("linf", "l2", "l1"):
        x_adv = fgsm(model, x, y, Threat(norm, Fraction(1, 10)), source(8))
        assert torch.equal(x_adv[:, :, 0], x[:, :, 0])


def test_l1_at_the_walls_of_the_box_spends_its_radius_on_the_next_best_pixels() -> None:
    """The best attack fills the room of the pixels with the largest weights, one after the other."""
    model, x, y = linear(60)
    x = (x > 0.5).float()
    eps = 3.5
    w = model.w.detach()
    room = torch.where(w > 0, 1 - x.flatten(1), x.flatten(1))
    order = w.abs().argsort(descending=True)
    best = [sum(float(w[i].abs()) * min(float(r[i]), max(0.0, eps - float(r[order[:k]].sum()))) for k, i in enumerate(order)) for r in room]
    x_adv = pgd(model, x, y, Threat("l1", Fraction(7, 2)), source(8), steps=60, step=Fraction(1), start="none")
    assert inside(x_adv, x, Threat("l1", Fraction(7, 2))).all()
    assert torch.allclose(gain(model, x_adv, x), torch.tensor(best, dtype=torch.float64), rtol=0.02)


def test_l2_at_the_walls_of_the_box_comes_close_to_the_best() -> None:
    """The best attack is clamp(x + t w) with the t whose norm is eps."""
    model, x, y = linear(60)
    x = (x > 0.5).float()
    w = model.w.detach().view(1, 1, -1, 1)
    low, high = torch.zeros(8, 1, 1, 1), torch.full((8, 1, 1, 1), 100.0)
    for _ in range(60):
        middle = (low + high) / 2
        far = lengths((x + middle * w).clamp(0, 1) - x, "l2") > 1.5
        low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    best = gain(model, (x + low * w).clamp(0, 1), x)
    x_adv = pgd(model, x, y, Threat("l2", Fraction(3, 2)), source(8), steps=10)
    assert (gain(model, x_adv, x) > 0.97 * best).all()  # ball before box would stay below that


def network(seed: int = 0, classes: int = 5) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A small random network and inputs with the labels it gives them, all but the first five."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 20), nn.Tanh(), nn.Linear(20, classes)
    )
    model.eval()
    x = torch.rand(40, 1, 6, 6)
    y = model(x).argmax(1)
    y[:5] = (y[:5] + 1) % classes
    return model, x, y


def reference(model: Model, x: Tensor, y: Tensor, threat: Threat, x_adv: Tensor, steps: int, size: float) -> Tensor:
    """PGD as libraries write it: one loop, float32, no precomputed bounds."""
    eps = float(threat.eps)
    for _ in range(steps):
        x_adv = x_adv.detach().clone().requires_grad_(True)
        functional.cross_entropy(model(x_adv), y).backward()
        grad = x_adv.grad
        assert grad is not None
        if threat.norm == "linf":
            delta = (x_adv.detach() + size * grad.sign() - x).clamp(-eps, eps)
        else:
            grad = grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
            delta = x_adv.detach() + size * grad - x
            delta = delta * (eps / delta.flatten(1).norm(dim=1)[:, None, None, None]).clamp(max=1)
        x_adv = (x + delta).clamp(0, 1)
    return x_adv.detach()


@pytest.mark.parametrize(("norm", "eps", "size"), [("linf", "8/255", "2/255"), ("linf", "0.3", "0.1"), ("l2", "1/4", "1/10")])
@pytest.mark.parametrize("start", ["none", "uniform"])
def test_pgd_is_what_a_second_implementation_computes(norm: str, eps: str, size: str, start: Any) -> None:
    model, x, y = network()
    x = x if norm == "linf" else 0.3 + 0.4 * x  # under l2 the two orders of ball and box agree only inside the box
    threat = Threat(norm, Fraction(eps))
    begun = pgd(model, x, y, threat, source(40), steps=1, step=Fraction(1, 10**12), start=start)  # a step too small to matter
    expected = reference(model, x, y, threat, begun, 4, float(Fraction(size)))
    found = pgd(model, x, y, threat, source(40), steps=4, step=Fraction(size), start=start)
    assert torch.allclose(found, expected, atol=2e-6)
    assert not torch.allclose(found, begun, atol=1e-3)


def test_fgsm_is_pgd_with_one_step_of_eps() -> None:
    model, x, y = network()
    threat = Threat("linf", Fraction(8, 255))
    assert torch.equal(fgsm(model, x, y, threat, source(40)), pgd(model, x, y, threat, source(40), steps=1, step=threat.eps, start="none"))
    started = fgsm(model, x, y, threat, source(40), start="uniform", step=Fraction(10, 255))
    assert torch.equal(started, pgd(model, x, y, threat, source(40), steps=1, step=Fraction(10, 255)))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["ce", "kl", "margin", "dlr"])
def test_every_loss_and_norm_attacks_and_stays_inside(norm: str, loss: Any) -> None:
    model, x, y = network()
    eps = {"linf": Fraction(1, 10), "l2": Fraction(1), "l1": Fraction(4)}[norm]
    before, parameters = x.clone(), [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():  # the harness may or may not record gradients
        x_adv = pgd(model, x, y, Threat(norm, eps), source(40), loss=loss)
    right = int((model(x).argmax(1) == y).sum())
    assert int((model(x_adv).argmax(1) == y).sum()) < right
    assert inside(x_adv, x, Threat(norm, eps)).all() and not x_adv.requires_grad
    assert torch.equal(x, before) and all(torch.equal(p, q) for p, q in zip(model.parameters(), parameters, strict=True))
    assert all(p.grad is None for p in model.parameters()) and x.grad is None


def brute(logits: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
    margins, ratios = [], []
    for z, label in zip(logits.tolist(), y.tolist(), strict=True):
        difference = max(v for i, v in enumerate(z) if i != label) - z[label]
        ranked = sorted(z, reverse=True)
        margins.append(difference)
        ratios.append(difference / (ranked[0] - ranked[2]))
    return margins, ratios


def test_losses_by_brute_force() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(50, 6, dtype=torch.float64), torch.randint(6, (50,))
    margins, ratios = brute(logits, y)
    assert torch.allclose(margin(logits, y), torch.tensor(margins, dtype=torch.float64))
    assert torch.allclose(dlr(logits, y), torch.tensor(ratios, dtype=torch.float64))
    assert torch.allclose(dlr(100 * logits + 7, y), dlr(logits, y)), "blind to scale and shift"
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)
    assert torch.allclose(ce(logits, y), -logits.softmax(1).log()[torch.arange(50), y])
    p, q = logits.softmax(1), logits.flip(0).softmax(1)
    assert torch.allclose(kl_from(logits)(logits.flip(0), y), (p * (p / q).log()).sum(1))
    for loss in (margin, dlr, kl_from(logits.flip(0))):
        assert torch.autograd.gradcheck(lambda z, f=loss: f(z, y), logits.clone().requires_grad_())


def test_labels_that_are_left_and_labels_that_are_reached() -> None:
    model, x, y = network()
    threat = Threat("linf", Fraction(3, 10))
    with torch.no_grad():
        clean = model(x)
    predicted = pgd(model, x, y, threat, source(40), label="predicted")
    assert torch.equal(predicted, pgd(model, x, clean.argmax(1), threat, source(40)))
    least = clean.scatter(1, y[:, None], torch.inf).argmin(1)
    reached = pgd(model, x, y, threat, source(40), steps=30, label="least-likely")
    assert (ce(model(reached), least) < ce(clean, least)).all() and (least != y).all()
    target = (y + 1 + (source(40).uniform(torch.zeros(40)) * 4).long()) % 5
    found = pgd(model, x, y, threat, source(40), label="target", start="none")
    assert torch.allclose(found, towards(model, x, target, threat), atol=1e-6)


def towards(model: Model, x: Tensor, target: Tensor, threat: Threat) -> Tensor:
    """Descends the cross-entropy of the target with PGD's default step."""
    x_adv, size = x.clone(), float(threat.eps * Fraction(5, 2) / 10)
    for _ in range(10):
        x_adv.requires_grad_()
        grad = torch.autograd.grad(functional.cross_entropy(model(x_adv), target, reduction="sum"), x_adv)[0]
        x_adv = project(x_adv.detach() - size * step(grad, threat.norm), x, threat)
    return x_adv


def test_random_targets_are_other_classes_evenly() -> None:
    def model(x: Tensor) -> Tensor:
        return x.flatten(1)

    n = 3000
    x = torch.full((n, 1, 2, 2), 0.5)
    y = torch.arange(n) % 4
    threat = Threat("linf", Fraction(1, 10))
    x_adv = pgd(model, x, y, threat, source(n), label="target", loss="margin", start="none", steps=1)
    reached = (x_adv - x).flatten(1).argmax(1)
    assert (reached != y).all()
    assert torch.bincount((reached - y) % 4, minlength=4)[1:].tolist() == pytest.approx([1000] * 3, abs=110)


def test_restarts_keep_the_misclassified_try_and_else_the_highest_loss() -> None:
    model, x, y = network()
    threat, seed = Threat("linf", Fraction(1, 5)), 5
    knobs_: dict[str, Any] = {"steps": 1, "step": Fraction(1, 20)}  # weak on purpose: the start decides
    again = source(40, seed)
    tries = [pgd(model, x, y, threat, again, **knobs_) for _ in range(6)]
    wrong = torch.stack([model(t).argmax(1) != y for t in tries])
    height = torch.stack([ce(model(t), y) for t in tries])
    found = pgd(model, x, y, threat, source(40, seed), restarts=6, **knobs_)
    broken = wrong.any(0)
    assert 0 < int(broken.sum()) < 40 and int((broken & ~wrong[0]).sum()) > 0, "the test needs all three kinds of samples"
    assert torch.equal(model(found).argmax(1) != y, broken)
    assert torch.allclose(ce(model(found), y)[~broken], height.amax(0)[~broken], atol=1e-5)
    first = torch.stack(tries)[wrong.int().argmax(0), torch.arange(40)]
    assert torch.allclose(found[broken], first[broken], atol=1e-5)


def test_evaluation_does_not_depend_on_batches() -> None:
    model, x, y = network()
    model, x = model.double(), x.double()
    ids, threat = torch.arange(40) * 7, Threat("l2", Fraction(1, 2))
    knobs_: dict[str, Any] = {"restarts": 3, "label": "target"}
    whole = pgd(model, x, y, threat, CounterNoise(0, ids), **knobs_)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    parts = torch.cat([pgd(model, x[i], y[i], threat, CounterNoise(0, ids[i]), **knobs_) for i in order.split(7)])
    assert torch.allclose(parts, whole[order], atol=1e-9)


def test_attacks_draw_from_the_generator_in_training() -> None:
    model, x, y = network()
    threat = Threat("linf", Fraction(8, 255))
    runs = [pgd(model, x, y, threat, GeneratorNoise(torch.Generator().manual_seed(s)), label="target", restarts=2) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_radius_zero_and_empty_batches() -> None:
    model, x, y = network()
    for norm in ("linf", "l2", "l1"):
        assert torch.equal(pgd(model, x, y, Threat(norm, Fraction(0)), source(40)), x)
        assert pgd(model, x[:0], y[:0], Threat(norm, Fraction(1)), source(0), restarts=2).shape == (0, 1, 6, 6)


def test_contradictions_are_refused() -> None:
    model, x, y = network()
    threat = Threat("linf", Fraction(8, 255))
    with pytest.raises(UserError, match='loss "kl" has no gradient at the clean image'):
        fgsm(model, x, y, threat, source(40), loss="kl")
    with pytest.raises(UserError, match='label "predicted" has no effect'):
        pgd(model, x, y, threat, source(40), loss="kl", label="predicted")
    with pytest.raises(UserError, match="3 restarts from the clean image are all the same"):
        pgd(model, x, y, threat, source(40), restarts=3, start="none")
    with pytest.raises(UserError, match='loss "dlr" needs at least 3 classes and there are 2'):
        linear_model, linear_x, linear_y = linear()
        pgd(linear_model, linear_x, linear_y, threat, source(8), loss="dlr")


def test_none_is_the_very_same_tensor() -> None:
    x = torch.rand(2, 1, 2, 2)
    assert none(x) is x


def test_parts_declare_their_knobs() -> None:
    parts = rtbench_attacks()
    assert list(parts) == ["none", "noise", "fgsm", "pgd", "autoattack", "apgd", "fab", "square", "cw", "deepfool", "fmn"]
    for name, function in parts.items():
        validate("attack", name, function)
        assert all(knob.help for knob in knobs("attack", function).values())
    assert knobs("attack", none) == {}
    values = check_all(knobs("attack", pgd), {"norm": "linf", "eps": "8/255", "step": 0.05}, "pgd", lambda kind, value, where: value)
    assert values["step"] == "1/20" and values["steps"] == 10 and values["start"] == "uniform"
    for wrong in ({"steps": 0}, {"step": 0}, {"restarts": 0}, {"loss": "mse"}, {"start_scale": 0}, {"norm": "l0"}):
        with pytest.raises(UserError):
            check_all(knobs("attack", pgd), {"norm": "linf", "eps": 0.3, **wrong}, "pgd", lambda kind, value, where: value)
