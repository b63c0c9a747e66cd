"""Minimal-norm attacks and curves: exact on linear models, never below the truth, one run as good as one per radius."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import Fragile, Killed, Linear, digits, exactly, trained
from torch import Tensor, nn

from attacks import CATALOGUE, judged
from rtbench.builtin.probes.curve import curve, predicted
from rtbench.commands.estimate import predict
from rtbench.data.splits import Data, Split
from rtbench.engine.loop import Loop
from rtbench.errors import UserError
from rtbench.evaluation import findings, panel
from rtbench.evaluation.guard import frozen
from rtbench.evaluation.judge import Judged, correct
from rtbench.evaluation.native import Build
from rtbench.evaluation.nearest import Nearest
from rtbench.parts.kinds import Measure
from rtbench.parts.meter import metered
from rtbench.parts.slots import Method, Native, Slots
from rtbench.parts.threats import Threat, distances, inside, radius
from rtbench.planning.plan import Stage
from rtbench.planning.resolve import Resolver

MINIMAL = {"deepfool": {"overshoot": 1e-3}, "fmn": {"steps": 200}, "fab": {"steps": 30}, "cw": {"steps": 100}}


def split(x: Tensor, y: Tensor) -> Split:
    return Split(x, y, torch.arange(len(y)) * 3 + 5)


def nearest(
    attack: Judged, model: nn.Module, x: Tensor, y: Tensor, order: Tensor | None = None, batch: int = 64, loop: Loop | None = None
) -> Tensor:
    return attack.distances(model, split(x, y), torch.arange(len(y)) if order is None else order, loop or Loop(), batch)[1]


def measured(attack: Judged, model: nn.Module, x: Tensor, y: Tensor, eps: list[str], **given: Any) -> Measure:
    data = Data(split(x, y), split(x, y), split(x, y), None, tuple(x.shape[1:]), 10)  # type: ignore[arg-type]
    return curve(model, data, Loop(), attack=attack, eps=tuple(map(Fraction, eps)), **given)


def linear(seed: int, classes: int = 5, d: int = 64, n: int = 60) -> tuple[Linear, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    model = Linear(torch.randn(classes, d, generator=rng), torch.randn(classes, generator=rng) / 4)
    side = math.isqrt(d)
    x = torch.rand(n, 1, side, side, generator=rng)
    x[: n // 3] = x[: n // 3].round()  # at the walls of the box
    return model, x, model(x).argmax(1)


def truth(model: Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """float64 (n,): the distance to the nearest other class in the box; for each class by bisection along the shortest way to it."""
    flat, w, b = x.flatten(1).double(), model.layer.weight.detach().double(), model.layer.bias.detach().double()
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for other in range(len(w)):
        slope = w[y] - w[other]
        low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1.0 if norm == "linf" else 1e3).double()
        for _ in range(60):
            t = (low + high) / 2
            at = (flat - t * (slope.sign() if norm == "linf" else slope)).clamp(0, 1)
            safe = ((at * slope).sum(1) + b[y] - b[other] > 0)[:, None]
            low, high = torch.where(safe, t, low), torch.where(safe, high, t)
        far = (at - flat).abs().amax(1) if norm == "linf" else (at - flat).norm(dim=1)
        nearest = torch.where(y == other, nearest, torch.minimum(nearest, far))
    return nearest


@pytest.mark.parametrize(("use", "norm", "most"), [
    ("deepfool", "linf", 1.5), ("deepfool", "l2", 1.1), ("fab", "linf", 1.02), ("fab", "l2", 1.02), ("fmn", "linf", 1.15), ("fmn", "l2", 1.05), ("cw", "l2", 1.05),
])  # fmt: skip
def test_distances_on_linear_models_are_hardly_above_the_exact_ones(use: str, norm: str, most: float) -> None:
    model, x, y = linear(0)
    exact, found = truth(model, x, y, norm), nearest(judged(use, norm, **MINIMAL[use]), model, x, y)
    assert torch.isfinite(found).all() and (found - exact).min() > -1e-5  # float32 may see the boundary a little early
    assert (found / exact).median() < most and (found - exact)[20:].max() < (
        0.03 if norm == "linf" else 0.25 if use == "cw" else 0.1
    )  # those are not at the walls


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_is_exact_on_a_binary_linear_model(norm: str) -> None:
    """|f| / ||w|| of the dual norm, 1e-4, and the overshoot, where the box is far."""
    rng = torch.Generator().manual_seed(1)
    w = torch.randn(2, 64, generator=rng)
    x = 0.4 + 0.2 * torch.rand(50, 1, 8, 8, generator=rng)
    model = Linear(w, -(w * 0.5).sum(1))
    logits = model(x).double()
    apart = (w[0] - w[1]).double()
    exact = (logits[:, 0] - logits[:, 1]).abs() / (apart.abs().sum() if norm == "linf" else apart.norm())
    assert exact.max() < 0.3
    for overshoot in (0.001, 0.02, 0.5):
        found = nearest(judged("deepfool", norm, overshoot=overshoot), model, x, logits.argmax(1))
        assert torch.allclose(found.detach(), (1 + overshoot) * (exact.detach() + 1e-4), rtol=1e-4)


@pytest.mark.parametrize(("use", "norm"), [("fab", "linf"), ("fab", "l2")])
def test_the_curve_of_a_linear_model_is_the_exact_one_at_every_radius(use: str, norm: str) -> None:
    model, x, y = linear(2, classes=4, n=120)
    eps = ["1/60", "1/40", "1/30", "1/20", "1/15", "1/10"] if norm == "linf" else ["1/8", "1/5", "1/4", "1/3", "1/2", "3/4"]
    found = measured(judged(use, norm, eps[2]), model, x, y, eps)
    for one in eps:
        lead = exactly(model, x, y, Threat(norm, Fraction(one)))
        assert abs(found.numbers[one] - float((lead > 0).double().mean())) <= float((lead.abs() < 0.02).double().mean())
    assert found.numbers[""] == found.numbers[eps[2]]
    assert found.numbers["median"] == pytest.approx(float(truth(model, x, y, norm).median()), rel=0.02)
    assert found.samples["distance"].dtype == torch.float64 and found.flags == ()


def brute(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, per: int = 17) -> bool:
    """Whether a grid over ball and box, corners included, holds a point that the model gets wrong."""
    axes = [torch.linspace(max(0.0, v - eps), min(1.0, v + eps), per).double() for v in x.flatten().tolist()]
    points = torch.stack([g.flatten() for g in torch.meshgrid(*axes, indexing="ij")], 1).view(-1, *x.shape[1:])
    near = distances(points, x.expand_as(points), norm) <= eps
    return bool((model.double()(points[near]).argmax(1) != y).any())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("use", ["deepfool", "fmn", "fab", "cw"])
def test_distances_on_tiny_networks_are_never_below_what_brute_force_finds(use: str, norm: str) -> None:
    if (use, norm) == ("cw", "linf"):
        pytest.skip("C&W under linf has a radius")
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(300, 1, 1, 3)
    y = model(x).argmax(1)
    other = (y != y.mode().values).nonzero().squeeze(1)[:5]
    x, y = torch.cat([x[:7], x[other]]), torch.cat([y[:7], y[other]])
    found = nearest(judged(use, norm, **MINIMAL[use]), model, x, y)
    reached = torch.isfinite(found)
    assert int(reached.sum()) >= 4
    missed = 0
    for i in reached.nonzero().squeeze(1).tolist():
        d, wide = float(found[i]), copy.deepcopy(model)
        missed += brute(wide, x[i : i + 1], y[i], norm, 0.7 * d)
        step = 2 * d / 16 * (1 if norm == "linf" else math.sqrt(3))
        assert brute(wide, x[i : i + 1], y[i], norm, d + step, 33)  # what it claims is there, up to the grid
    assert missed <= 2  # a local search now and then stops at a farther piece of the boundary


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained(steps=60)


@pytest.mark.parametrize(("use", "norm", "how"), [
    ("fmn", "linf", {"steps": 30}), ("fmn", "l2", {"steps": 30}), ("deepfool", "l2", {"candidates": 3}), ("cw", "l2", {"steps": 12, "search": 4}),
    ("fab", "linf", {"steps": 8, "targets": 3, "restarts": 2}),
])  # fmt: skip
def test_distances_do_not_depend_on_order_shards_or_kills(
    model: nn.Module, tmp_path: Path, use: str, norm: str, how: dict[str, Any]
) -> None:
    x, y = (column[:120] for column in digits())
    attack = judged(use, norm, **how)
    whole = nearest(attack, model, x, y)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    assert torch.equal(whole[order], nearest(attack, model, x, y, order))
    for i in range(3):
        assert torch.equal(whole[i::3], nearest(attack, model, x, y, torch.arange(i, 120, 3)))
    file = tmp_path / "a" / "b" / "c" / "work"
    file.parent.mkdir(parents=True)
    kills = 0
    for after, late in ((2, 0), (3, 1), (9, 2), (4, 0)):
        try:
            nearest(attack, model, x, y, loop=Fragile(file, after, late))
        except Killed:
            kills += 1
    assert kills >= 3 and torch.equal(whole, nearest(attack, model, x, y, loop=Loop(file=file)))
    assert len(whole.unique()) > 60


@pytest.mark.parametrize(
    ("use", "norm"), [("fmn", "linf"), ("fmn", "l2"), ("deepfool", "linf"), ("deepfool", "l2"), ("cw", "l2"), ("fab", "l2")]
)
def test_one_run_agrees_with_a_run_at_every_radius(model: nn.Module, use: str, norm: str) -> None:
    x, y = (column[:70] for column in digits())
    quick = {"cw": {"steps": 30, "search": 5}, "fab": {"steps": 12, "targets": 4}, "fmn": {"steps": 60}, "deepfool": {}}[use]
    eps = ["1/50", "1/20", "1/10", "1/5"] if norm == "linf" else ["1/10", "1/4", "1/2", "1"]
    attack = judged(use, norm, eps[0], **quick)
    found = measured(attack, model, x, y, eps)
    for one in eps:
        fixed = attack.at(Fraction(one))(model, split(x, y), torch.arange(70), Loop(), 64)
        bits = found.samples["distance"] > radius(Fraction(one))
        assert not (fixed.robust & ~bits).any()  # what the run at all radii broke, the run at one has seen as well
        assert int((bits & ~fixed.robust).sum()) <= 3  # which also moves points into the ball that were outside
    assert found.numbers[eps[0]] > found.numbers[eps[-1]] + 0.2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_distance_is_that_of_a_point_in_the_box_that_float32_gets_wrong(model: nn.Module, norm: str) -> None:
    x, y = (column[:64] for column in digits())
    queried: list[tuple[Tensor, Tensor]] = []

    class Spy(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            logits = model(points)
            queried.append((points.detach().clone(), logits.detach()))
            return logits

    spy = Spy()
    found = nearest(replace(judged("fmn", norm, steps=25), white=False), spy, x, y)
    best = torch.full((64,), torch.inf).double()
    right = correct(model, x, y)
    kept = right.nonzero().squeeze(1)
    for points, logits in queried:
        if len(points) == len(kept) or len(points) == 64:
            far = distances(points[: len(kept)].clamp(0, 1), x[kept[: len(points)]], norm)
            wrong = logits[: len(kept)].argmax(1) != y[kept]
            best[kept] = torch.where(wrong & (points[: len(kept)] >= 0).flatten(1).all(1), torch.minimum(best[kept], far), best[kept])
    best[~right] = 0
    assert torch.equal(found, best)


def test_false_claims_and_points_outside_the_box_have_no_distance(model: nn.Module) -> None:
    x, y = (column[:32] for column in digits())

    def lying(slots: Slots) -> None:
        slots.model = copy.deepcopy(model)  # as a search with a copy claims
        slots.notice(slots, slots.x, torch.full((len(slots.y), 10), torch.nan), None)
        slots.model = model
        slots.notice(slots, slots.x - 1e-9, torch.full((len(slots.y), 10), torch.nan), None)
        slots.notice(slots, slots.x * torch.nan, torch.full((len(slots.y), 10), torch.nan), None)

    build: Build = lambda *_: Native((Method("odd", lambda slots, rows: None, lying, 3),))  # noqa: E731
    with frozen(model):
        run = Nearest(model, lambda rows: (x[rows], y[rows], rows), 32, Threat("linf", Fraction(1, 10)), build, 0, 32, x[:1])
        while run.step():
            pass
    zero = (x == 0).flatten(1).any(1)
    assert torch.isinf(run.distance[zero & run.found["clean"]]).all() and zero.all()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6),
    st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6),
    st.sampled_from(["linf", "l2"]),
)
def test_a_distance_is_the_smallest_radius_that_contains_the_point(at: list[float], image: list[float], norm: str) -> None:
    a, x = torch.tensor([at]), torch.tensor([image[: len(at)]])
    d = float(distances(a, x, norm))
    assert inside(a, x, Threat(norm, Fraction(d))).all()
    assert d == 0 or not inside(a, x, Threat(norm, Fraction(math.nextafter(d, 0)))).any()
    if norm == "linf":
        exact = max(abs(Fraction(p) - Fraction(q)) for p, q in zip(a[0].tolist(), x[0].tolist(), strict=True))
        assert Fraction(math.nextafter(d, -1)) < exact <= Fraction(d)


def half_space(m: float, d: int = 16, n: int = 400) -> tuple[Linear, Tensor, Tensor]:
    """Two classes apart along the first pixel, every image the same way from the boundary: right as long as that pixel falls by less than m."""
    w = torch.zeros(2, d)
    w[0, 0] = 1.0
    x = torch.full((n, 1, 4, 4), 0.5)
    return Linear(w, torch.tensor([0.0, 0.5 - m])), x, torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize(("norm", "distribution"), list(itertools.product(("linf", "l2"), ("uniform", "gaussian", "corners"))))
def test_noise_breaks_a_half_space_as_often_as_the_closed_form_says(norm: str, distribution: str) -> None:
    eps, share, draws = 0.4, 0.45 if norm == "linf" else 0.2, 3
    m, d = share * eps, 16
    sigma = 1.0 if norm == "linf" else d**-0.5
    tail = {
        "gaussian": 0.5 * math.erfc(share / sigma / math.sqrt(2)), "corners": 0.5 if share <= sigma else 0.0,
        "uniform": (1 - share) / 2 if norm == "linf" else float((torch.linspace(share, 1, 20001).square().neg() + 1).pow((d - 1) / 2).mean() * (1 - share))
        / float((torch.linspace(-1, 1, 20001).square().neg() + 1).pow((d - 1) / 2).mean() * 2),
    }[distribution]  # fmt: skip
    model, x, y = half_space(m)
    robust = judged("noise", norm, "2/5", draws=draws, distribution=distribution)(model, split(x, y), torch.arange(400), Loop(), 128).robust
    expected = (1 - tail) ** draws
    assert abs(float(robust.double().mean()) - expected) < 4 * math.sqrt(max(expected * (1 - expected), 1e-9) / 400) + (
        0.04 if (norm, distribution) == ("l2", "gaussian") else 1e-3
    )


@pytest.mark.parametrize("distribution", ["uniform", "gaussian", "corners"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_never_breaks_what_is_certified(norm: str, distribution: str) -> None:
    model, x, y = linear(3)
    eps = "1/15" if norm == "linf" else "1/2"
    robust = judged("noise", norm, eps, distribution=distribution)(model, split(x, y), torch.arange(60), Loop(), 64).robust
    certified = exactly(model, x, y, Threat(norm, Fraction(eps))) > 0
    assert not (certified & ~robust).any() and certified.any() and not certified.all()


class Detector(nn.Module):
    """Knows its test images: what is farther than `far` from the nearest one is answered as that one is. Its plain twin has far = inf."""

    def __init__(self, inner: nn.Module, known: Tensor, far: float) -> None:
        super().__init__()
        self.inner, self.known, self.far = inner, known, far

    def forward(self, x: Tensor) -> Tensor:
        apart = torch.cdist(x.flatten(1).detach(), self.known.flatten(1), p=math.inf)
        least, which = apart.min(1)
        return torch.where((least > self.far)[:, None], self.inner(self.known[which]), self.inner(x))


def test_a_defence_against_large_changes_raises_larger_eps_and_its_plain_twin_does_not(model: nn.Module) -> None:
    x, y = (column[:80] for column in digits())
    eps = ["1/20", "1/10", "3/20", "1/5", "1/4"]
    attack = judged("pgd", "linf", "1/10", steps=8)
    found = measured(attack, Detector(model, x, 0.12), x, y, eps)
    twin = measured(attack, Detector(model, x, math.inf), x, y, eps)
    assert "larger-eps-more-accurate" in found.flags and twin.flags == ()
    assert found.numbers["raw.1/4"] > found.numbers["raw.1/10"] + 0.1  # the attack alone, and the curve, which forgets nothing
    values = [found.numbers[one] for one in eps]
    assert values == sorted(values, reverse=True) and found.numbers["1/4"] <= found.numbers["raw.1/10"]
    assert all(twin.numbers[one] <= twin.numbers[f"raw.{one}"] for one in eps)


@pytest.mark.parametrize(("counts", "n", "raised"), [
    ([50, 40, 30], 100, False), ([50, 40, 41], 100, False), ([50, 40, 42], 100, True), ([900, 880, 885], 1000, False), ([900, 880, 886], 1000, True),
    ([40, 50, 60], 100, True), ([40, 30, 20, 33], 100, True),
])  # fmt: skip
def test_what_counts_as_rising(counts: list[int], n: int, raised: bool) -> None:
    from rtbench.builtin.probes.curve import _rises

    assert _rises(counts, n) is raised


def test_robust_is_what_the_attack_at_its_own_radius_left(model: nn.Module) -> None:
    x, y = (column[:100] for column in digits())
    attack = judged("pgd", "linf", "1/10", steps=5)
    found = measured(attack, model, x, y, ["1/20", "1/5"])
    alone = [attack.at(Fraction(one))(model, split(x, y), torch.arange(100), Loop(), 512) for one in ("1/20", "1/10", "1/5")]
    assert torch.equal(found.samples["robust"].bool(), alone[0].robust & alone[1].robust)
    assert set(found.numbers) == {"", "1/20", "1/10", "1/5", "raw.1/20", "raw.1/10", "raw.1/5"}
    assert [found.numbers[f"raw.{one}"] for one in ("1/20", "1/10", "1/5")] == [one.accuracy for one in alone]
    assert set(found.samples["distance"].tolist()) <= {0.0, math.inf, *(radius(Fraction(1, n)) for n in (5, 10, 20))}


@pytest.mark.parametrize(("given", "message"), [
    ({"attack": "none"}, "has no radius"), ({"attack": {"use": "pgd", "norm": "linf", "eps": "1/10"}, "eps": ["1/10"]}, "at least two radii"),
    ({"attack": {"use": "pgd", "norm": "linf", "eps": "1/10"}, "eps": ["8"]}, "exceeds the range"),
    ({"attack": {"use": "pgd", "norm": "linf", "eps": "1/10"}, "eps": ["0"]}, "outside"),
    ({"attack": {"use": "cw", "norm": "linf", "eps": "1/10", "search": 3}}, "of C&W under l2"), ({"attack": {"use": "cw", "norm": "l2", "eps": "1", "restarts": 3}}, "of C&W under linf"),
])  # fmt: skip
def test_what_cannot_be_measured_is_said_when_the_suite_is_planned(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Resolver({}, CATALOGUE)("probe", {"use": "curve", **given}, "probes.c")


@pytest.mark.parametrize("use", ["fmn", "deepfool", "cw", "noise"])
def test_l1_is_refused(use: str) -> None:
    with pytest.raises(Exception, match="takes linf and l2"):
        nearest(judged(use, "l1", "1"), trained(steps=1), *(column[:4] for column in digits()))


def foreseen(probe: str, use: str, batch: int = 512, **attack: Any) -> Any:
    threat = {} if use == "none" else {"norm": "l2", "eps": "1/1000"}
    given = {"use": probe, "attack": {"use": use, **threat, **attack}, "samples": 50, "batch": batch}
    return predict(Stage("probe", Resolver({}, CATALOGUE)("probe", given, "c"), {}, {}, 0, {}), CATALOGUE, {"test": 1000})


def test_passes_are_predicted(model: nn.Module) -> None:
    forwards, gradients = 50 * (panel.FORWARDS + findings.FORWARDS), 50 * panel.GRADIENTS
    assert foreseen("curve", use="fmn", steps=20) == (50 * 22 + forwards, 50 * 20 + gradients)
    assert foreseen("curve", use="cw", steps=20) == (50 * 182 + forwards, 50 * 180 + gradients)
    assert foreseen("accuracy", use="noise", draws=3) == (50 * 5 + forwards, gradients), "whose model has gradients, though it takes none"
    assert foreseen("accuracy", use="none") == (50, 0)
    x, y = (column[:50] for column in digits())
    outcome, _ = judged("fmn", "l2", "1/1000", steps=20).distances(model, split(x, y), torch.arange(50), Loop(), 64)
    assert set(outcome.passes["forwards"].tolist()) <= {1, 21} and set(outcome.passes["gradients"].tolist()) <= {0, 20}
    assert predicted is curve.passes


@pytest.mark.parametrize(("probe", "use", "how"), [
    ("accuracy", "pgd", {"steps": 4}), ("curve", "pgd", {"steps": 4}), ("curve", "fgsm", {}),
])  # fmt: skip
def test_what_is_predicted_is_what_is_asked_where_nothing_is_broken(model: nn.Module, probe: str, use: str, how: dict[str, Any]) -> None:
    x = digits()[0][:50]
    held = split(x, model(x).argmax(1))
    for batch in (64, 20):
        asked: dict[str, int] = {}
        with metered(model, asked):
            measure = CATALOGUE.get("probe", probe).function(
                model, Data(held, held, held, None, (1, 8, 8), 10), Loop(), attack=judged(use, "l2", "1/1000", **how), batch=batch
            )
        assert measure.numbers[""] == 1 and foreseen(probe, use, batch, **how) == (asked["forwards"], asked["gradients"])


def test_deepfool_leaves_a_sample_once_its_class_has_changed(model: nn.Module) -> None:
    x, y = (column[:64] for column in digits())
    outcome, found = judged("deepfool", "l2", steps=50).distances(model, split(x, y), torch.arange(64), Loop(), 64)
    assert torch.isfinite(found).all() and outcome.passes["forwards"].max() < 30


@pytest.mark.parametrize("use", ["cw", "fmn", "deepfool", "noise"])
def test_as_attacks_with_a_radius_they_are_no_stronger_than_the_truth(use: str) -> None:
    model, x, y = linear(4)
    for norm, eps in (("linf", "1/20"), ("l2", "1/3")):
        lead = exactly(model, x, y, Threat(norm, Fraction(eps)))
        how = MINIMAL[use] if use != "noise" else {}
        robust = judged(use, norm, eps, **how)(model, split(x, y), torch.arange(60), Loop(), 64).robust
        assert not (~robust & (lead > 1e-5)).any()
        if use != "noise":
            assert int((robust & (lead < 0)).sum()) <= 6
