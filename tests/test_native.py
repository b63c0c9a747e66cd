"""Native attacks: exact on linear models, indifferent to order, shards, batches and kills, and as strong as AutoAttack's own code."""

from __future__ import annotations

import copy
import gc
import importlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from rtbench.builtin.attacks import rtbench_attacks
from rtbench.builtin.attacks.apgd import checkpoints
from rtbench.builtin.attacks.autoattack import apgd, autoattack, fab, square
from rtbench.builtin.attacks.bumps import _window, bumps
from rtbench.builtin.attacks.hyperplane import onto_hyperplane
from rtbench.builtin.attacks.square import margin, schedule
from rtbench.data.splits import Split
from rtbench.engine.loop import Loop
from rtbench.errors import UserError
from rtbench.evaluation.guard import frozen
from rtbench.evaluation.judge import AttackFailure, Judged, Outcome, correct
from rtbench.evaluation.ladder import Ladder, padded
from rtbench.evaluation.native import Build, Run
from rtbench.parts.kinds import knobs, native, validate
from rtbench.parts.meter import metered
from rtbench.parts.noise import CounterNoise
from rtbench.parts.slots import Method, Native, Slots
from rtbench.parts.threats import Threat, inside

LINF, L2 = Threat("linf", Fraction(1, 10)), Threat("l2", Fraction(1, 2))
NATIVE = {"autoattack": autoattack, "apgd": apgd, "fab": fab, "square": square}


def built(name: str, **given: Any) -> Build:
    words = {
        "autoattack": ("threat", "classes", "shape"),
        "apgd": ("threat", "classes"),
        "fab": ("threat", "classes"),
        "square": ("threat", "shape"),
    }

    def build(threat: Threat, classes: int, shape: tuple[int, ...]) -> Native:
        return NATIVE[name](
            **{w: v for w, v in {"threat": threat, "classes": classes, "shape": shape}.items() if w in words[name]}, **given
        )

    return build


def joined(*builds: Build) -> Build:
    def build(threat: Threat, classes: int, shape: tuple[int, ...]) -> Native:
        parts = [build(threat, classes, shape) for build in builds]
        return Native(tuple(m for part in parts for m in part.methods), precision=parts[0].precision)

    return build


QUICK = joined(
    built("apgd", steps=20),
    built("apgd", loss="dlr-targeted", steps=10, targets=4),
    built("fab", steps=10, targets=4),
    built("square", queries=100),
)
"""Every method, in a fraction of a second."""


def digits(classes: int = 10) -> tuple[Tensor, Tensor]:
    raw = load_digits()
    x, y = torch.tensor(raw.images, dtype=torch.float32).div(16).unsqueeze(1), torch.tensor(raw.target)
    return x[y < classes], y[y < classes]


def trained(classes: int = 10, steps: int = 150, eps: float = 0.1, conv: bool = False) -> nn.Module:
    """A small network, fairly robust: trained on signed-gradient steps from random starts."""
    torch.manual_seed(0)
    x, y = digits(classes)
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()] if conv else []
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 if conv else 64, 32), nn.ReLU(), nn.Linear(32, classes))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for i in range(steps):
        xb, yb = x[i % 8 :: 8], y[i % 8 :: 8]
        at = (xb + eps * (2 * torch.rand_like(xb) - 1)).requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(model(at), yb), at)
        at = (at + eps * slope.sign()).detach().clamp(xb - eps, xb + eps).clamp(0, 1)
        optimizer.zero_grad()
        cross_entropy(model(at if eps else xb), yb).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def pruned(model: nn.Module, keep: float = 0.1) -> nn.Module:
    """Its largest weights alone."""
    model = copy.deepcopy(model)
    weights = [p for p in model.parameters() if p.dim() > 1]
    cut = torch.cat([w.detach().abs().flatten() for w in weights]).quantile(1 - keep)
    for w in weights:
        w.data[w.abs() < cut] = 0
    return model


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from more, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained()


def attacked(
    model: nn.Module,
    build: Build,
    threat: Threat,
    order: Tensor,
    *,
    batch: int = 64,
    seed: int = 3,
    loop: Loop | None = None,
    data: Any = None,
) -> Outcome:
    x, y = digits() if data is None else data
    split = Split(x, y, torch.arange(len(y)))
    return Judged(lambda: None, threat, seed, "native", build)(model, split, order, loop or Loop(), batch)


class Linear(nn.Module):
    """Logits x @ w.T + b."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(w.shape[1], w.shape[0])
        self.layer.weight.data, self.layer.bias.data = w, b

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def exactly(model: Linear, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """(n,): the least lead of the label over another class in the ball and the box, by closed form for linf, by bisection for l2."""
    x, eps = x.flatten(1).double(), float(threat.eps)
    w, b = model.layer.weight.detach().double(), model.layer.bias.detach().double()
    least = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for other in range(len(w)):
        slope = w[y] - w[other]
        if threat.norm == "linf":
            at = torch.where(slope > 0, (x - eps).clamp_min(0), (x + eps).clamp_max(1))
        else:
            low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1e6).double()
            for _ in range(100):
                t = (low + high) / 2
                far = ((x - t * slope).clamp(0, 1) - x).norm(dim=1, keepdim=True) > eps
                low, high = torch.where(far, low, t), torch.where(far, t, high)
            at = (x - low * slope).clamp(0, 1)
        lead = (at * slope).sum(1) + b[y] - b[other]
        least = torch.where(y == other, least, torch.minimum(least, lead))
    return least


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("norm", "eps"), [("linf", "1/20"), ("linf", "8/255"), ("l2", "1/3"), ("l2", "1/6")])
def test_robust_accuracy_of_linear_models_is_the_exact_one(norm: str, eps: str, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    model = Linear(torch.randn(4 + seed, 64, generator=rng), torch.randn(4 + seed, generator=rng) / 4)
    x = torch.rand(150, 1, 8, 8, generator=rng)
    x[:50] = x[:50].round()  # at the walls of the box
    y = model(x).argmax(1)
    threat = Threat(norm, Fraction(eps))
    lead = exactly(model, x, y, threat)
    sure = lead.abs() > 1e-4
    build = joined(built("apgd"), built("apgd", loss="dlr-targeted"), built("fab"))
    robust = attacked(model, build, threat, torch.arange(150), data=(x, y)).robust
    assert 3 < int((lead > 0).sum()) < 147
    assert torch.equal(robust[sure], lead[sure] > 0) and sure.double().mean() > 0.98


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hyperplanes_are_met_by_the_least_change_in_the_box(norm: str) -> None:
    rng = torch.Generator().manual_seed(0)
    x, w = torch.rand(200, 40, generator=rng), torch.randn(200, 40, generator=rng)
    x[:100], w[:, 0] = x[:100].round(), 0
    gap = torch.randn(200, generator=rng) * 6
    guess = torch.rand(200, generator=rng) * torch.tensor([0, 1, 10, 1000]).repeat(50)
    change = onto_hyperplane(x, w, gap, norm, guess)[0] - x
    assert ((x + change) >= -1e-6).all() and ((x + change) <= 1 + 1e-6).all()
    met = ((w * change).sum(1) + gap).abs() < 1e-3
    most = torch.where(w * gap[:, None] > 0, x, 1 - x) * w.abs()
    assert torch.equal(met, most.sum(1) >= gap.abs()) and 150 < int(met.sum()) < 200
    t = change.abs().amax(1) if norm == "linf" else (change.abs() / w.abs().clamp_min(1e-9)).amax(1)
    less = torch.minimum(most / w.abs().clamp_min(1e-9), 0.999 * t[:, None] * (1 if norm == "linf" else w.abs()))
    assert ((less * w.abs()).sum(1) < gap.abs())[met].all()  # a smaller t does not reach it, and no other shape is shorter


@pytest.mark.parametrize("threat", [LINF, L2])
def test_every_claim_holds_strictly_inside_the_ball(model: nn.Module, threat: Threat) -> None:
    x, y = digits()
    with frozen(model):
        run = Run(model, lambda rows: (x[rows], y[rows], rows), 200, threat, QUICK, 0, 64, x[:1], keep=True)
        while run.step():
            pass
        assert run.best is not None and inside(run.best, x[:200], threat).all()
        assert torch.equal(correct(model, run.best, y[:200]), run.found["robust"])
    bits = [run.found["clean"], *run.inner.values()]
    assert all(not (later & ~earlier).any() for earlier, later in pairwise(bits))
    assert 0 < int(run.found["robust"].sum()) < int(run.found["clean"].sum())


@pytest.mark.parametrize("threat", [LINF, L2])
@pytest.mark.parametrize("conv", [False, True])
def test_verdicts_do_not_depend_on_order_shards_or_kills(threat: Threat, conv: bool, tmp_path: Any) -> None:
    model = trained(conv=conv, steps=60)
    whole = attacked(model, QUICK, threat, torch.arange(300))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    mixed = attacked(model, QUICK, threat, order)
    parts = [attacked(model, QUICK, threat, torch.arange(i, 300, 4)) for i in range(4)]
    for name, bits in whole.inner.items():
        assert torch.equal(bits[order], mixed.inner[name]), name
        assert all(torch.equal(bits[i::4], part.inner[name]) for i, part in enumerate(parts)), name
    assert torch.equal(whole.robust[order], mixed.robust) and torch.equal(whole.clean[order], mixed.clean)


class Killed(BaseException):
    pass


class Fragile(Loop):
    """Dies after so many items, right after it saved or a while later."""

    def __init__(self, file: Any, after: int, late: int) -> None:
        super().__init__(file=file, seconds=1e9)
        self.after, self.late, self.count = after, late, 0

    def _border(self, number: int, done: int, total: int, state: dict[str, Any]) -> None:
        self.count += 1
        if self.count == self.after:
            self._save(number, done, state)
        if self.count == self.after + self.late:
            raise Killed


@pytest.mark.parametrize("threat", [LINF, L2])
def test_a_killed_evaluation_goes_on_to_the_same_bits(model: nn.Module, threat: Threat, tmp_path: Any) -> None:
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    order = torch.arange(150)
    asked: list[dict[str, int]] = []

    def run(loop: Loop) -> Outcome:
        asked.append(loop.counts)
        with metered(model, loop.counts):
            return attacked(model, QUICK, threat, order, loop=loop)

    whole = run(Loop())
    kills = 0
    for after, late in ((2, 0), (5, 3), (30, 0), (40, 7), (25, 2), (60, 1), (40, 0), (35, 11)):
        try:
            run(Fragile(folder / "work", after, late))
        except Killed:
            kills += 1
    again = run(Loop(file=folder / "work"))
    assert kills == 8 and asked[-1] == asked[0]
    assert torch.equal(again.robust, whole.robust) and all(torch.equal(again.inner[name], bits) for name, bits in whole.inner.items())
    assert all(torch.equal(again.passes[name], count) for name, count in whole.passes.items())


def test_verdicts_hardly_depend_on_the_batch(model: nn.Module) -> None:
    found = [attacked(model, QUICK, LINF, torch.arange(400), batch=batch).robust for batch in (1, 7, 64, 250, 1000)]
    assert torch.equal(found[0], found[1])  # both are 16
    assert all(float((bits == found[2]).double().mean()) >= 0.995 for bits in found)


@pytest.mark.parametrize("threat", [LINF, L2])
def test_a_search_in_bfloat16_claims_nothing_that_float32_denies(model: nn.Module, threat: Threat) -> None:
    x, y = digits()
    build = joined(built("apgd", precision="bf16"), built("fab", steps=20), built("square", queries=200))
    with frozen(model):
        run = Run(model, lambda rows: (x[rows], y[rows], rows), 300, threat, build, 0, 64, x[:1], keep=True)
        while run.step():
            pass
        assert run.best is not None and inside(run.best, x[:300], threat).all()
        broken = run.found["clean"] & ~run.found["robust"]
        assert not correct(model, run.best, y[:300])[broken].any()
    exact = attacked(model, joined(built("apgd"), built("fab", steps=20), built("square", queries=200)), threat, torch.arange(300))
    assert (run.found["robust"] != exact.robust).double().mean() <= 0.02


def test_passes_are_counted_per_sample(model: nn.Module) -> None:
    asked = {"forwards": 0, "gradients": 0}

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked["forwards"] += len(x)
            asked["gradients"] += len(x) if x.requires_grad else 0
            return model(x)

    found = attacked(Counting(), joined(built("apgd", steps=20), built("fab", steps=10)), Threat("linf", Fraction(0)), torch.arange(64))
    robust = found.robust
    assert torch.equal(robust, found.clean)
    assert set(found.passes["forwards"][robust].tolist()) == {1 + 21 + 2 * 10 * 9} and set(found.passes["gradients"][robust].tolist()) == {
        21 + 90
    }
    assert set(found.passes["forwards"][~robust].tolist()) <= {1}
    assert 0 <= asked["gradients"] - int(found.passes["gradients"].sum()) <= 64 * 111 * 0.2 + 64 * 3


def test_memory_does_not_grow_with_the_samples(model: nn.Module) -> None:
    x, y = digits()
    sizes = []
    for n in (100, 1700):
        with frozen(model):
            run = Run(model, lambda rows: (x[rows], y[rows], rows), n, LINF, QUICK, 0, 64, x[:1])
            most = 0
            while run.step():
                kept = run.state_dict()["tries"]
                most = max([most, *(t.numel() for part in ("slots", "state") for t in kept.get(part, {}).values())])
        sizes.append(most)
    assert sizes == [64 * 64, 64 * 64]


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        where, size = storage.data_ptr(), storage.nbytes()
        self.now += size if self.holders.get(where, 0) == 0 else 0
        self.holders[where] = self.holders.get(where, 0) + 1
        self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._drop, where, size)

    def _drop(self, where: int, size: int) -> None:
        self.holders[where] -= 1
        self.now -= size if self.holders[where] == 0 else 0


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection within: when it comes depends on every test before, and the peak on when it comes."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_peak_memory_is_that_of_the_batch() -> None:
    rng = torch.Generator().manual_seed(0)
    model = Linear(torch.randn(5, 3 * 32 * 32, generator=rng), torch.zeros(5))
    build = joined(built("apgd", steps=3), built("fab", steps=2, targets=2), built("square", queries=12))

    def source(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = CounterNoise(0, rows).uniform(torch.empty(len(rows), 3, 32, 32))
        with torch.no_grad():
            return x, model(x).argmax(1), rows

    peaks = []
    for n in (200, 2000):
        with uncollected(), frozen(model), Peak() as peak:
            run = Run(model, source, n, Threat("linf", Fraction(1, 400)), build, 0, 64, torch.zeros(1, 3, 32, 32))
            while run.step():
                pass
        peaks.append(peak.most)
        assert 0.2 * n < int(run.found["robust"].sum()) < 0.9 * n
    assert peaks[0] > 64 * 3 * 32 * 32 * 4 * 5 and peaks[1] < 1.05 * peaks[0]


def test_broken_samples_make_room_at_once(model: nn.Module) -> None:
    x, y = digits()
    with frozen(model):
        run = Run(model, lambda rows: (x[rows], y[rows], rows), 1024, Threat("linf", Fraction(1, 2)), built("apgd"), 0, 64, x[:1])
        steps = 0
        while run.step():
            steps += 1
    assert not run.found["robust"].any()
    assert steps < 16 + 16 * 4 + 100 and run.rows < 1.6 * int(run.found["forwards"].sum())


def test_the_schedule_of_steps_is_the_papers() -> None:
    due, span = checkpoints(100)
    assert [k for k, d in enumerate(due) if d] == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [s for s in span if s] == [22, 19, 16, 13, 10, 7, 6, 6]


@pytest.mark.parametrize("autoattack_s", [True, False])
def test_square_s_patches_shrink_as_the_authors_do(autoattack_s: bool) -> None:
    """AutoAttack stops their schedule of 10,000 queries at 5,000; Square by itself shortens it."""
    theirs = pytest.importorskip("pyautoattack.square").SquareAttack(None, n_queries=5000, p_init=0.8, resc_schedule=not autoattack_s)
    ours = schedule(5000, 0.8, 10_000 if autoattack_s else 5000)
    assert list(ours) == [0.8, *(theirs.p_selection(proposal) for proposal in range(5000))]


@pytest.mark.parametrize("side", [3, 4, 5, 7, 13, 25])
def test_square_s_bumps_are_the_authors(side: int) -> None:
    theirs = pytest.importorskip("pyautoattack.square").SquareAttack(None, norm="L2", device="cpu").eta(side)
    ours = bumps(28)[side, :side, :side]
    assert any(torch.allclose(ours, turned, atol=1e-6) for turned in (theirs, theirs.T))  # theirs is turned at random
    assert bumps(28)[side].count_nonzero() == ours.count_nonzero()


def test_square_s_patches_under_l2_stay_off_the_last_row_and_column() -> None:
    bits = torch.randint(-(2**62), 2**62, (2, 400), generator=torch.Generator().manual_seed(0)) * 2
    inside, _, _ = _window(*bits, torch.full((400,), 3), 8, 8)
    reached = inside.any(0)
    assert reached[:7, :7].all()
    assert not reached[7].any()
    assert not reached[:, 7].any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_never_lets_go_of_what_it_gained(model: nn.Module, norm: str) -> None:
    threat = Threat(norm, Fraction(1, 20))
    (method,) = square(threat, (1, 8, 8), queries=60).methods
    x, y = digits()
    slots = Slots(model, threat, x[:32].clone(), y[:32], lambda *_: None)
    if norm == "linf":
        slots.lower, slots.upper = (x[:32] - 0.05).clamp(0, 1), (x[:32] + 0.05).clamp(0, 1)
    method.begin(slots, torch.arange(32))
    leads = []
    for _ in range(60):
        taken = method.step(slots)
        slots.age += 1 if taken is None else taken
        leads.append(slots.state["lead"].clone())
        reached = margin(model(slots.state["best"]), y[:32])
        assert torch.allclose(reached, leads[-1], atol=1e-5)
        assert inside(slots.state["best"].clamp(0, 1), x[:32], Threat(norm, Fraction(501, 10000))).all()
    assert (torch.stack(leads).diff(dim=0) <= 0).all() and (leads[-1] < leads[0]).double().mean() > 0.9


def searched(
    model: nn.Module, threat: Threat, lanes: int, n: int = 40, queries: int = 300, killed: int = 10**9, share: float = 0.8
) -> tuple[dict[str, Any], Run, int]:
    """What Square finds with so many queries at once at most, the run, and its steps; killed after each `killed` steps."""
    x, y = digits()
    build = joined(
        lambda *words: Native(tuple(replace(m, lanes=lanes) for m in built("square", queries=queries, share=share)(*words).methods))
    )
    with frozen(model):
        run = Run(model, lambda rows: (x[rows], y[rows], rows), n, threat, build, 0, 256, x[:1], keep=True)
        steps = 0
        while run.step():
            steps += 1
            if steps % killed == 0:
                saved = copy.deepcopy(run.state_dict())
                run = Run(model, lambda rows: (x[rows], y[rows], rows), n, threat, build, 0, 256, x[:1], keep=True)
                run.load_state_dict(saved)
    return {"robust": run.found["robust"], "forwards": run.found["forwards"], "best": run.best}, run, steps


@pytest.mark.parametrize("threat", [Threat("linf", Fraction(1, 8)), L2])
@pytest.mark.parametrize("conv", [False, True])
def test_queries_asked_ahead_are_the_queries_one_by_one(threat: Threat, conv: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(conv=conv, steps=60)
    one, serial, steps = searched(model, threat, 1)
    for lanes in (16, 3):
        if lanes == 3:  # as many as there may be, whether that saves time or not
            monkeypatch.setattr(importlib.import_module("rtbench.builtin.attacks.square"), "_ahead", lambda slots: slots.lanes)
        many, _, fewer = searched(model, threat, lanes)
        assert all(torch.equal(many[name], one[name]) for name in one)
        assert fewer < 0.8 * steps
    broken = one["forwards"][serial.found["clean"] & ~one["robust"]]
    assert int(one["robust"].sum()) > 3 and len(broken) > 3 and (one["forwards"][one["robust"]] == 302).all() and int(broken.min()) < 302


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("share", [0.8, 0.05])
def test_queries_that_change_nothing_are_left_out_and_nothing_comes_of_it(
    lanes: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """share 0.05: single pixels from the first query on, half of which are where they are to go already."""
    model, threat = trained(steps=60), Threat("linf", Fraction(1, 8))
    patches = importlib.import_module("rtbench.builtin.attacks.patches")
    ahead = importlib.import_module("rtbench.builtin.attacks.square")
    monkeypatch.setattr(ahead, "_ahead", lambda slots: slots.lanes)
    found, run, _ = searched(model, threat, lanes, share=share)
    monkeypatch.setattr(patches, "skipped", lambda ahead: 0)
    every, whole, _ = searched(model, threat, lanes, share=share)
    assert all(torch.equal(found[name], every[name]) for name in every)
    assert run.rows < 0.9 * whole.rows
    assert int(found["robust"].sum()) > 3


@pytest.mark.parametrize("left_out", [True, False])
def test_few_samples_fill_the_batch(model: nn.Module, left_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not left_out:
        monkeypatch.setattr(importlib.import_module("rtbench.builtin.attacks.patches"), "skipped", lambda ahead: 0)
    _, run, steps = searched(model, Threat("linf", Fraction(1, 20)), 16, n=16, queries=1000)
    assert run.occupancy > 0.9 and steps < 500
    asked = int(run.found["forwards"].sum())
    assert (asked / 1.5 if left_out else asked) < run.rows < 3 * asked  # where 16 are asked, 8 more may be left out


@pytest.mark.parametrize("threat", [Threat("linf", Fraction(1, 20)), L2])
def test_a_kill_does_not_change_how_many_queries_are_asked_at_once(model: nn.Module, threat: Threat) -> None:
    whole, run, steps = searched(model, threat, 16, n=16)
    again, other, same = searched(model, threat, 16, n=16, killed=7)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert (other.rows, other.busy, same) == (run.rows, run.busy, steps)


class Wrapped(nn.Module):
    """The network with something done before or after it."""

    def __init__(
        self, inner: nn.Module, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda z: z
    ) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.before(x)))


def solved(x: Tensor) -> Tensor:
    """A defence that optimises inside the forward pass; it changes nothing."""
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        torch.autograd.grad(z.sum(), z)
    return x


@pytest.mark.parametrize(("flags", "planted"), [
    ({"randomised"}, {"after": lambda z: z + 0.1 * torch.randn_like(z)}), ({"probabilities"}, {"after": lambda z: z.softmax(1)}),
    ({"dynamic-forward"}, {"before": solved}), ({"zero-gradient", "masked-gradient"}, {"before": lambda x: (x * 8).round() / 8}),
])  # fmt: skip
def test_a_planted_defence_raises_its_flag_and_its_plain_twin_does_not(model: nn.Module, flags: set[str], planted: dict[str, Any]) -> None:
    build = joined(built("apgd", loss="dlr-targeted", steps=10, targets=3), built("square", queries=100))
    wide = Threat("linf", Fraction(1, 8))
    assert (
        set(attacked(Wrapped(model, **planted), build, wide, torch.arange(60)).flags) >= flags
    )  # masked gradients are noticed by the panel, too
    twin = joined(built("apgd", loss="dlr-targeted", steps=30), built("square", queries=100))
    assert attacked(Wrapped(model), twin, wide, torch.arange(60)).flags == []


@pytest.mark.parametrize(("classes", "methods", "flags"), [
    (10, ["apgd-ce", "apgd-t", "fab-t", "square"], ()), (5, ["apgd-ce", "apgd-t", "fab-t", "square"], ()),
    (3, ["apgd-ce", "fab-t", "square"], ("few-classes",)), (2, ["apgd-ce", "fab-t", "square"], ("few-classes",)),
])  # fmt: skip
def test_few_classes(classes: int, methods: list[str], flags: tuple[str, ...]) -> None:
    found = autoattack(LINF, classes, (1, 8, 8))
    assert [m.name for m in found.methods] == methods and found.flags == flags
    assert all(m.targets in (0, classes - 1) for m in found.methods)
    x, y = digits(classes)
    tight = Threat("linf", Fraction(1, 50))
    small = joined(*(lambda *_, m=m: Native((m,)) for m in found.methods if m.name != "square"))
    outcome = attacked(trained(classes, 30), small, tight, torch.arange(20), data=(x, y))
    assert outcome.robust.any()


@pytest.mark.parametrize("build", [built("fab", steps=2, targets=15), built("apgd", loss="dlr-targeted", steps=2, targets=15)])
def test_all_targets_that_are_asked_for_are_attacked(build: Build) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 20))
    with torch.no_grad():
        model[1].bias[0] = 100.0  # type: ignore[operator, union-attr]
    outcome = attacked(model, build, LINF, torch.arange(1), data=(x, y))
    (method,) = build(LINF, 20, (1, 4, 4)).methods
    assert bool(outcome.robust.all()) and int(outcome.passes["gradients"]) == 15 * method.steps


def test_few_classes_in_the_other_versions() -> None:
    assert [m.name for m in autoattack(LINF, 3, (1, 8, 8), version="rand").methods] == ["apgd-ce", "apgd-dlr"]
    assert [m.name for m in autoattack(LINF, 3, (1, 8, 8), version="plus").methods] == ["apgd-ce", "apgd-dlr", "fab", "square", "fab-t"]
    assert [m.name for m in autoattack(LINF, 2, (1, 8, 8), version="rand").methods] == ["apgd-ce"]


@pytest.mark.parametrize(("build", "threat", "shape", "message"), [
    (built("autoattack"), Threat("l1", Fraction(1)), (1, 8, 8), "takes linf and l2"),
    (built("autoattack"), Threat("l2", Fraction(1)), (1, 4, 4), "at least 5 pixels, not 4"),
    (built("apgd", loss="dlr-targeted"), LINF, (1, 8, 8), "needs more than 3 classes"),
])  # fmt: skip
def test_what_cannot_be_attacked_is_said_in_one_sentence(build: Build, threat: Threat, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(threat, 3, shape)


def test_an_attack_that_fails_is_no_robust_sample(model: nn.Module) -> None:
    def broken(slots: Slots) -> None:
        raise RuntimeError("planted")

    def build(*_: Any) -> Native:
        return Native((Method("broken", lambda slots, rows: None, broken, 3),))

    with pytest.raises(AttackFailure, match="planted"):
        attacked(model, build, LINF, torch.arange(10))


def test_attacks_without_gradients_need_none(model: nn.Module) -> None:
    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = model(x)
            return logits.detach()

    found, plain = (attacked(one, built("square", queries=50), LINF, torch.arange(40)) for one in (Blind(), model))
    assert "zero-gradient" in found.flags and torch.equal(found.robust, plain.robust) and bool((found.clean & ~found.robust).any())
    for attack in (built("apgd", steps=5), built("autoattack")):
        with pytest.raises(AttackFailure, match=r'does not require grad .* use attack = "square", which needs none'):
            attacked(Blind(), attack, LINF, torch.arange(40))


def test_claims_outside_the_ball_or_that_are_false_break_nothing(model: nn.Module) -> None:
    def far(slots: Slots) -> None:
        slots.forward(1 - slots.x)

    def lying(slots: Slots) -> None:
        slots.notice(slots, slots.x + 5 * slots.eps, torch.full((len(slots.y), 10), torch.nan), None)

    for step in (far, lying):
        method = Method("odd", lambda slots, rows: None, step, 3)
        tiny = Threat("linf", Fraction(1, 10**6))
        found = attacked(model, lambda *_, m=method: Native((m,)), tiny, torch.arange(50))
        assert torch.equal(found.robust, found.clean)


def test_the_ladder_leaves_out_sizes_that_change_bits() -> None:
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * (1 + 1e-6 * (len(x) < 60))

    ladder = Ladder(Moody(), torch.zeros(1, 1, 8, 8), 250)
    assert [ladder.fit(n) for n in (256, 250, 200, 100, 65, 60, 40, 1)] == [256, 256, 208, 112, 80, 64, 64, 64]
    assert [padded(n) for n in (1, 7, 64, 250, 1000)] == [16, 16, 64, 256, 1008]


@pytest.mark.parametrize("name", list(NATIVE))
def test_the_parts_are_valid(name: str) -> None:
    function = rtbench_attacks()[name]
    validate("attack", name, function)
    assert native(function) and all(knob.help for knob in knobs("attack", function).values())


def official() -> Callable[..., Any]:
    pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")
    import test_plugin_autoattack

    return test_plugin_autoattack.official


@pytest.mark.parametrize(("threat", "conv", "eps", "keep"), [
    (Threat("linf", Fraction(1, 20)), False, 0.0, 1.0), (Threat("linf", Fraction(1, 10)), True, 0.1, 0.5), (L2, False, 0.1, 1.0),
])  # fmt: skip
def test_no_weaker_than_the_authors_own_code(threat: Threat, conv: bool, eps: float, keep: float) -> None:
    x, y = digits()
    n = 32
    model = pruned(trained(conv=conv, eps=eps, steps=100), keep)
    ours = attacked(model, built("autoattack"), threat, torch.arange(n), batch=128)
    theirs = [
        official()(model, x[:n], y[:n], threat, seed=seed).outcomes for seed in range(3)
    ]  # benchmarks/agreement.py does the same at length
    for name, bits in ours.inner.items():
        seeds = [(found[name] & ours.clean) for found in theirs]
        assert int(bits.sum()) <= max(int(s.sum()) for s in seeds) + 1, name
        apart = max(int((a != b).sum()) for a in seeds for b in seeds)
        assert all(int((bits != s).sum()) <= apart + 1 for s in seeds), name
