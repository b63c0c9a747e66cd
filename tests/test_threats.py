"""Balls of exact radius: every point claimed inside is, by rational arithmetic, and no float32 is given away."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from torch import Tensor

from rtbench.errors import UserError
from rtbench.parts.noise import CounterNoise
from rtbench.parts.threats import Threat, bounds, finite, inside, lengths, project, pull, radius, start, step

EPS = [Fraction(8, 255), Fraction(3, 10), Fraction(1, 3), Fraction(1, 4), Fraction(1), Fraction(2), Fraction(0), Fraction(1, 10**8)]
pixels = st.floats(0, 1, width=32)
eps = st.sampled_from(EPS) | st.fractions(0, 2)


def row(*values: float) -> Tensor:
    """One sample, float32."""
    return torch.tensor([values], dtype=torch.float32)


def exactly(x: float, a: float, r: Fraction) -> bool:
    return abs(Fraction(a) - Fraction(x)) <= r and 0 <= a <= 1


@given(st.fractions(0, 10))
def test_radius_is_the_largest_double_not_above(r: Fraction) -> None:
    assert Fraction(radius(r)) <= r < Fraction(math.nextafter(radius(r), math.inf))


@settings(max_examples=500)
@given(pixels, eps)
@example(1e-17, Fraction(3, 10))
@example(1e-40, Fraction(1, 10**8))
@example(0.5, Fraction(1, 4))
@example(0.5, Fraction(math.nextafter(2**-25, 0)))
def test_linf_bounds_are_the_last_float32_inside(x: float, r: Fraction) -> None:
    lower, upper = (float(b) for b in bounds(row(x), r))
    exact = Fraction(radius(r))
    assert exactly(x, lower, r) and exactly(x, upper, r)
    above = float(np.nextafter(np.float32(upper), np.float32(2)))
    below = float(np.nextafter(np.float32(lower), np.float32(-1)))
    assert not exactly(x, above, exact) and not exactly(x, below, exact)


def test_linf_bounds_where_a_double_itself_would_round() -> None:
    """A pixel far below the radius's last bit: x + eps is no double, and rounding to one must not decide."""
    top = np.float32(0.3)
    r = Fraction(math.nextafter(float(top), 0))  # one double below a float32
    gap = Fraction(float(top)) - r
    for share in (0.25, 0.5, 0.6, 0.75, 1.0, 1.25):
        x = float(np.float32(float(gap) * share))
        upper = float(bounds(row(x), r)[1])
        assert exactly(x, upper, r) and (upper == top) == (Fraction(x) + r >= Fraction(float(top)))
        assert inside(row(float(top)), row(x), Threat("linf", r)).item() == exactly(x, float(top), r)


def test_bounds_keep_doubles_exact_too() -> None:
    x = torch.rand(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lower, upper = bounds(x, Fraction(1, 3))
    assert all(exactly(float(a), float(b), Fraction(1, 3)) for a, b in zip(x.flatten(), upper.flatten(), strict=True))
    assert inside(lower, x, Threat("linf", Fraction(1, 3))).all()


@settings(max_examples=300)
@given(pixels, st.floats(-2, 3, width=32), eps)
def test_inside_linf_agrees_with_rational_arithmetic(x: float, a: float, r: Fraction) -> None:
    assert inside(row(a), row(x), Threat("linf", r)).item() == exactly(x, a, Fraction(radius(r)))


def test_inside_is_strict_and_finite() -> None:
    x, threat = torch.zeros(1, 2), Threat("linf", Fraction(3, 10))
    assert not inside(row(0.3, 0.0), x, threat)  # float32's 0.3 is above 3/10
    assert inside(row(float(np.nextafter(np.float32(0.3), np.float32(0))), 0.0), x, threat)
    for norm in ("linf", "l2", "l1"):
        for bad in (math.nan, math.inf, -math.inf, -1e-30, 1 + 1e-6):
            assert not inside(row(bad, 0.0), x, Threat(norm, Fraction(5)))
        assert inside(torch.zeros(0, 3, 2, 2), torch.zeros(0, 3, 2, 2), Threat(norm, Fraction(1))).shape == (0,)
    assert not inside(row(0.6, 0.8001), x, Threat("l2", Fraction(1))) and inside(row(0.6, 0.7999), x, Threat("l2", Fraction(1)))
    assert not inside(row(0.25, 0.7501), x, Threat("l1", Fraction(1))) and inside(row(0.25, 0.75), x, Threat("l1", Fraction(1)))
    with pytest.raises(UserError, match='no norm "l3"'):
        inside(x, x, Threat("l3", Fraction(1)))


proposals = st.floats(-1e6, 1e6, width=32) | st.floats(-0.5, 1.5, width=32) | st.sampled_from([math.inf, -math.inf, 0.0, 1.0])
vectors = st.lists(st.tuples(pixels, proposals), min_size=1, max_size=6)


@settings(max_examples=400)
@given(vectors, eps, st.sampled_from(["linf", "l2", "l1"]))
@example([(0.5, 2**-100)], Fraction(1), "l2")
def test_projections_are_inside_and_do_not_move_what_is(pairs: list[tuple[float, float]], r: Fraction, norm: str) -> None:
    x, proposal = row(*(x for x, _ in pairs)), row(*(a for _, a in pairs))
    threat = Threat(norm, r)
    found = project(proposal, x, threat)
    assert found.dtype == x.dtype and inside(found, x, threat).all()
    assert torch.equal(project(found, x, threat), found)
    if inside(proposal, x, threat):
        assert torch.equal(found, proposal)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("r", [Fraction(8, 255), Fraction(3, 10), Fraction(1, 3), Fraction(5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projections_of_whole_images(norm: str, r: Fraction, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(64, 3, 8, 8, generator=rng, dtype=dtype)
    x[:16] = x[:16].round()  # in the corners of the box
    proposal = x + torch.randn(x.shape, generator=rng, dtype=dtype) * torch.logspace(-3, 3, 64)[:, None, None, None]
    threat = Threat(norm, r)
    found = project(proposal, x, threat)
    assert inside(found, x, threat).all() and not inside(proposal, x, threat).all()
    boxed = proposal.clamp(0, 1)
    outside = ~inside(boxed, x, threat)
    used = lengths((found - x).double(), norm).flatten()[outside]
    assert (used >= float(r) - 192 * 2**-24).all()  # the whole radius is used, up to float32's rounding of 192 values
    fast = boxed if norm == "linf" else pull(proposal, x, threat)
    if norm != "linf":
        assert torch.allclose(fast, found, atol=1e-5) and fast.min() >= 0 and fast.max() <= 1


def test_linf_projection_is_the_nearest_point() -> None:
    x, proposal = row(0.5, 0.1, 0.95, 0.5), row(0.9, -3.0, 2.0, 0.51)
    found = project(proposal, x, Threat("linf", Fraction(1, 10)))
    assert torch.allclose(found, row(0.6, 0.0, 1.0, 0.51), atol=1e-7)


def solved(delta: np.ndarray[Any, Any], r: float, norm: str) -> np.ndarray[Any, Any]:
    """The nearest point of the ball by a general solver; delta = p - q with p, q >= 0 makes l1 smooth."""
    d = len(delta)
    room = {"type": "ineq", "fun": lambda pq: r - pq.sum() if norm == "l1" else r**2 - ((pq[:d] - pq[d:]) ** 2).sum()}
    found = optimize.minimize(
        lambda pq: ((pq[:d] - pq[d:] - delta) ** 2).sum(), np.full(2 * d, 0.01), constraints=[room], bounds=[(0, 1)] * 2 * d
    )
    nearest: np.ndarray[Any, Any] = found.x[:d] - found.x[d:]
    return nearest


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_ball_projections_are_the_nearest_points(norm: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, delta = torch.full((1, 5), 0.5, dtype=torch.float64), rng.normal(size=5) * 0.2
        found = project(x + torch.tensor(delta), x, Threat(norm, Fraction(1, 4)))[0].numpy() - 0.5
        assert np.allclose(found, solved(delta, 0.25, norm), atol=1e-4)


def test_nan_stays_nan_for_the_judge_to_see() -> None:
    for norm in ("linf", "l2", "l1"):
        found = project(torch.tensor([[math.nan, 0.5], [0.9, 0.5]]), torch.full((2, 2), 0.5), Threat(norm, Fraction(1, 10)))
        assert found[0].isnan().any() and found[1].isfinite().all()


def source(n: int) -> CounterNoise:
    return CounterNoise(0, torch.arange(n))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", ["none", "uniform", "gaussian"])
def test_starts_are_new_tensors_inside(norm: str, kind: str) -> None:
    x = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:20] = x[:20].round()
    before, threat = x.clone(), Threat(norm, Fraction(8, 255))
    found = start(x, threat, source(50), kind, 0.5)  # type: ignore[arg-type]
    assert inside(found, x, threat).all()
    found += 1
    assert torch.equal(x, before)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_uniform_starts_are_uniform_in_the_ball(norm: str) -> None:
    """In d dimensions (norm / eps)^d is uniform on [0, 1], and single coordinates have the variance of the ball."""
    d, n = 6, 4000
    x = torch.full((n, 1, 2, 3), 0.5, dtype=torch.float64)
    delta = (start(x, Threat(norm, Fraction(1, 10)), source(n)) - x).flatten(1) * 10
    depth = lengths(delta, norm).flatten() ** d
    assert stats.kstest(depth.numpy(), "uniform").pvalue > 0.01
    variance = {"linf": 1 / 3, "l2": 1 / (d + 2), "l1": 2 / ((d + 1) * (d + 2))}[norm]
    assert torch.allclose(delta.var(0), torch.full((d,), variance, dtype=torch.float64), rtol=0.1)
    assert delta.mean(0).abs().max() < 4 * math.sqrt(variance / n)
    assert np.abs(np.corrcoef(delta.T.numpy()) - np.eye(d)).max() < 0.07


def test_gaussian_starts_have_the_scale_asked_for() -> None:
    x = torch.full((200, 1, 10, 10), 0.5)
    delta = start(x, Threat("linf", Fraction(1, 2)), source(200), "gaussian", 0.001) - x
    assert float(delta.std()) == pytest.approx(0.001, rel=0.03)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_steps_gain_the_dual_norm(norm: str) -> None:
    grad = torch.randn(20, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    grad[3] = 0
    grad[4] *= 1e-30  # its squares vanish in float32
    direction = step(grad, norm)
    gain = (grad.double() * direction.double()).flatten(1).sum(1)
    dual = lengths(grad.double(), {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]).flatten()
    assert torch.allclose(gain, dual, rtol=1e-5, atol=0)
    size = lengths(direction, norm).flatten()
    assert size[3] == 0 and torch.allclose(size[4:], torch.ones(16))
    assert not direction[3].any()


def test_l1_steps_take_the_largest_hundredth() -> None:
    grad = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    direction: Tensor = step(grad, "l1").flatten(1)
    assert (direction.count_nonzero(1) == 3).all()
    assert torch.allclose(direction.abs().sum(1), torch.ones(2))
    top = grad.flatten(1).abs().topk(3).indices
    assert torch.equal(direction.gather(1, top).sign(), grad.flatten(1).gather(1, top).sign())


def test_gradients_that_are_not_finite_become_what_steps_can_follow() -> None:
    rows = torch.tensor([[[3.0, -torch.inf, torch.nan, -1]], [[torch.inf, 0, 0, torch.nan]], [[1.0, -2, 0.5, 3e38]]])
    told = torch.tensor([[[3.0, -3, 0, -1]], [[1.0, 0, 0, 0]], [[1.0, -2, 0.5, 3e38]]])
    assert torch.equal(finite(rows), told) and all(torch.equal(finite(row[None])[0], one) for row, one in zip(rows, told, strict=True))
