"""Threat models: balls of exact radius around images in the box [0, 1], projections, random starts, steepest steps.

Radii are rationals in input units. A point counts as inside only if float64 finds it inside the largest double not above the
radius; projections therefore round inwards, to numbers of the image's own precision. Images x are (n, ...) and lie in the box.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rtbench.errors import unknown
from rtbench.parts.noise import Noise

Start = Literal["none", "uniform", "gaussian"]
ORDERS = {"linf": math.inf, "l2": 2, "l1": 1}
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
TINY = torch.finfo(torch.float32).tiny

SLACK = 1 - 1e-11
"""How far inside the ball float64 sums aim, so that their own rounding cannot leave it: relative, far below float32's 6e-8."""


class Threat(NamedTuple):
    """norm: "linf", "l2" or "l1". eps: the exact radius in input units. The box is always [0, 1]."""

    norm: str
    eps: Fraction


def radius(eps: Fraction) -> float:
    """The largest double that is not above eps."""
    nearest = float(eps)
    return nearest if Fraction(nearest) <= eps else math.nextafter(nearest, -math.inf)


def bounds(x: Tensor, eps: Fraction) -> tuple[Tensor, Tensor]:
    """(lower, upper): the largest linf ball around x, within [x - eps, x + eps] and the box, that x's precision can express."""
    r, wide = radius(eps), x.double()
    lower, upper = (wide - r).clamp_(min=0).to(x.dtype), (wide + r).clamp_(max=1).to(x.dtype)
    # The neighbour of a float that is not negative has the next integer for its bits: twice as fast as where and nextafter.
    bits = INTEGERS[x.element_size()]
    lower.view(bits).add_(_beyond(wide, lower.double(), r))
    upper.view(bits).sub_(_beyond(upper.double(), wide, r).view(torch.int8))
    return lower, upper


def _beyond(high: Tensor, low: Tensor, r: float) -> Tensor:
    """high - low > r, decided exactly in float64: where the truth is close, one of the two differences has no rounding error."""
    return (high - low > r) | (high - r > low)


def clip_(x_adv: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Moves x_adv into precomputed `bounds`, in place: all that the inner loop of an linf attack needs."""
    return x_adv.clamp_(lower, upper)


def project(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """x_adv moved strictly inside the threat model, as `inside` judges; points that are inside already do not move. NaN stays NaN.

    linf: the nearest point. l2, l1: first into the box, then onto the ball. x lies in the box and both ball projections only shrink
    |x_adv - x| in every coordinate, so the box is not left again and the whole radius is used; the other order, ball then box,
    would spend radius on what the box then cuts off.
    """
    if threat.norm == "linf":
        return torch.clamp(x_adv.to(x.dtype), *bounds(x, threat.eps))
    r, wide = radius(threat.eps), x.double()
    boxed = x_adv.to(x.dtype).clamp(0, 1)
    delta = boxed.double() - wide
    outside = lengths(delta, threat.norm) > r
    delta = onto_ball(delta, threat.norm, r * SLACK)
    moved = (wide + delta).to(x.dtype)
    moved = torch.where((moved.double() - wide).abs() > delta.abs(), torch.nextafter(moved, x), moved)
    return torch.where(outside, moved, boxed)


def pull(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """`project` for the loop of an l2 or l1 attack: in x's own precision, hence inside only up to rounding."""
    return onto_ball(x_adv.clamp(0, 1).sub_(x), threat.norm, float(threat.eps)).add_(x)


def passable(ascent: Tensor, at: Tensor) -> Tensor:
    """A direction (n, ...) with 0 where points at the wall of the box could not follow it."""
    return ascent.masked_fill(((at <= 0) & (ascent < 0)) | ((at >= 1) & (ascent > 0)), 0)


def onto_ball(delta: Tensor, norm: str, r: float) -> Tensor:
    """The point of the l2 or l1 ball of radius r nearest to each delta (n, ...).

    l1 by sorting, after Duchi, Shalev-Shwartz, Singer & Chandra 2008, "Efficient projections onto the l1-ball".
    """
    if norm == "l1":
        flat = delta.flatten(1).abs()
        ranked = flat.sort(dim=1, descending=True).values
        surplus = (ranked.cumsum(1) - r) / torch.arange(1, flat.shape[1] + 1, device=flat.device)
        last = (ranked > surplus).sum(1, keepdim=True).sub_(1).clamp_(min=0)
        cut = surplus.gather(1, last).clamp_(min=0)
        delta = (flat - cut).clamp_(min=0).view_as(delta).copysign(delta)
    return delta * (r / lengths(delta, norm).clamp_(min=TINY)).clamp_(max=1)


def lengths(delta: Tensor, norm: str) -> Tensor:
    """The norm of each delta (n, ...), of shape (n, 1, ...)."""
    if norm not in ORDERS:
        raise unknown("norm", norm, ORDERS)
    found: Tensor = torch.linalg.vector_norm(delta.flatten(1), ORDERS[norm], dim=1)
    return found.view(-1, *[1] * (delta.dim() - 1))


def inside(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """bool (n,): which points lie in the ball and in the box, strictly, in float64; never where a value is not finite."""
    boxed = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    return boxed & (distances(x_adv, x, threat.norm) <= radius(threat.eps))


def distances(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """float64 (n,): how far each point is from its image. A point lies in a ball if this is not above the ball's `radius`.

    linf: the smallest double not below the exact distance. l2, l1: as float64 sums it up.
    """
    far, wide = x_adv.double(), x.double()
    if norm != "linf":
        return lengths(far - wide, norm).flatten()
    high, low = torch.maximum(far, wide), torch.minimum(far, wide)
    found = high - low
    short = (found - high) + low < 0  # what rounding took away, exactly (Dekker 1971)
    found = torch.where(short, torch.nextafter(found, torch.full_like(found, torch.inf)), found)
    return found.flatten(1).amax(1)


def start(
    x: Tensor, threat: Threat, noise: Noise, kind: Start = "uniform", scale: float = 1e-3, limits: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Where an attack begins: a new tensor inside the threat model.

    none: x. uniform: uniform in the ball, then into the box. gaussian: x plus normal noise of standard deviation `scale`, then into
    ball and box. limits: `bounds` of linf where they are known already.
    """
    if kind == "none":
        return x.clone()
    if kind == "gaussian":
        found = noise.normal(x).mul_(scale).add_(x)
    elif threat.norm == "linf":
        found = noise.uniform(x).mul_(2).sub_(1).mul_(float(threat.eps)).add_(x)
    else:
        found = _uniform(x, threat.norm, noise).mul_(float(threat.eps)).add_(x)
    return clip_(found, *(limits or bounds(x, threat.eps))) if threat.norm == "linf" else project(found, x, threat)


def _uniform(x: Tensor, norm: str, noise: Noise) -> Tensor:
    """Uniform in the unit ball of l2 or l1, of x's shape.

    l2: a normal direction at a distance u^(1/d). l1: exponential magnitudes over their sum and one more exponential
    (Barthe, Guédon, Mendelson & Naor 2005, arXiv:math/0503650), with random signs.
    """
    one = x.flatten(1)[:, :1].view(-1, *[1] * (x.dim() - 1))
    if norm == "l2":
        direction = noise.normal(x)
        far = noise.uniform(one) ** (1 / max(1, x[0:1].numel()))
        return direction * (far / lengths(direction, norm).clamp_(min=TINY))
    sizes, extra = (noise.uniform(like).neg_().log1p_().neg_() for like in (x, one))
    signs = noise.uniform(x).sub_(0.5)
    return (sizes / (lengths(sizes, norm) + extra).clamp_(min=TINY)).copysign_(signs)


def finite(slope: Tensor) -> Tensor:
    """A gradient (n, ...) as steps can follow it: 0 for NaN, and for what is infinite the largest other size in its row, 1 if that is 0."""
    if slope.device.type == "cpu" and math.isfinite(float(slope.sum())):  # one number tells whether to look closer
        return slope
    size = slope.nan_to_num(0, 0, 0).abs().flatten(1).amax(1).view(-1, *[1] * (slope.dim() - 1))
    size = torch.where(size > 0, size, 1)
    return slope.nan_to_num(0, torch.inf, -torch.inf).clamp(-size, size)


def step(grad: Tensor, norm: str) -> Tensor:
    """The steepest ascent direction of unit norm for a gradient (n, ...); 0 where the gradient is 0.

    linf: the sign. l2: the gradient over its norm. l1: equal steps along the largest hundredth of the coordinates, at least one
    (sparse steps: Tramer & Boneh 2019, arXiv:1904.13000).
    """
    if norm == "linf":
        return grad.sign()
    if norm == "l2":
        grad = grad / lengths(grad, "linf").clamp_(min=TINY)  # squares of tiny gradients would vanish in float32
        return grad / lengths(grad, norm).clamp_(min=TINY)
    flat = grad.flatten(1)
    where = flat.abs().topk(-(-flat.shape[1] // 100), dim=1).indices
    picked = torch.zeros_like(flat).scatter_(1, where, flat.gather(1, where).sign_()).view_as(grad)
    return picked / lengths(picked, norm).clamp_(min=1)
