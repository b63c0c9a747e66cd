"""The sgd trainer against training loops written by hand: weights, masks, schedules, snapshots, selection."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rtbench import keys
from rtbench.builtin.trainers.course import order
from rtbench.builtin.trainers.layout import channels_last
from rtbench.builtin.trainers.schedule import scale, warmed
from rtbench.builtin.trainers.sgd import predicted
from rtbench.builtin.trainers.watch import measure
from rtbench.data.splits import Data, Split
from rtbench.engine.bind import Binder
from rtbench.engine.loop import Loop
from rtbench.errors import UserError
from rtbench.evaluation.process import usual
from rtbench.parts.kinds import Measure
from rtbench.parts.masks import Masks, apply_, ones
from rtbench.parts.meter import metered
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue

FOUND = catalogue()
SEED, N, BATCH = 11, 50, 16
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def split(n: int, seed: int) -> Split:
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 3, 3, generator=rng)
    return Split(x, (x.flatten(1) @ torch.randn(9, 3, generator=torch.Generator().manual_seed(9))).argmax(1), torch.arange(n))


DATA = Data(split(N, 0), split(40, 1), split(40, 2), None, (1, 3, 3), 3)


def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))


def halved(model: nn.Module) -> Masks:
    """Half of every layer pruned, and applied."""
    rng = torch.Generator().manual_seed(6)
    masks = {name: torch.rand(mask.shape, generator=rng) < 0.5 for name, mask in ones(model).items()}
    apply_(model, masks)
    return masks


class Trained:
    """What the trainer makes of the network; knobs as in a suite."""

    def __init__(self, masked: bool = True, model: nn.Module | None = None, **knobs: Any) -> None:
        part = Resolver({}, FOUND)("trainer", {"use": "sgd", "batch": BATCH, **knobs}, "fit")
        self.model = model or network()
        self.masks = halved(self.model) if masked else ones(self.model)
        rng, self.counts = torch.Generator().manual_seed(SEED), {"forwards": 0, "gradients": 0}
        self.loop = Loop(self.model, self.masks, rng)
        bound = Binder(FOUND, SEED, rng, DATA, (), self.counts).part("trainer", part)
        with metered(self.model, self.counts):
            bound(model=self.model, masks=self.masks, data=DATA._replace(test=None), rng=rng, loop=self.loop)
        self.state: State = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(step, value) for step, entry, value in self.loop.records if entry == name]


def close(one: State, other: State, atol: float = 1e-6) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], rtol=0, atol=atol) for name in one)


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


Update = Callable[[dict[str, Any], Tensor, Tensor, float, int], Tensor]


def by_hand(
    update: Update, steps: int, rate: Callable[[int], float] = lambda step: 0.05, clip: float | None = None, bf16: bool = False
) -> tuple[State, list[float]]:
    """A masked loop with nothing of rtbench in it but the seed of the order; update(memory, w, g, lr, t) -> new w. Also the losses."""
    model = network()
    masks = halved(model)
    memory: dict[str, dict[str, Any]] = {name: {} for name, _ in model.named_parameters()}
    losses, per_epoch = [], math.ceil(N / BATCH)
    for step in range(steps):
        epoch, i = divmod(step, per_epoch)
        seed = torch.Generator().manual_seed(keys.seed(SEED, "order", epoch))
        here = torch.randperm(N, generator=seed)[i * BATCH : (i + 1) * BATCH]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = cross_entropy(model(DATA.train.x[here]), DATA.train.y[here])
        losses.append(float(loss.detach()))
        grads = dict(zip(memory, torch.autograd.grad(loss, list(model.parameters())), strict=True))
        grads = {name: grad * masks[name] if name in masks else grad for name, grad in grads.items()}
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads.values()))
        if clip is not None and norm > clip:
            grads = {name: grad * clip / norm for name, grad in grads.items()}
        with torch.no_grad():
            for name, weight in model.named_parameters():
                new = update(memory[name], weight.detach().clone(), grads[name], rate(step), step + 1)
                weight.copy_(new * masks[name] if name in masks else new)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, losses


def momentum(mu: float, decay: float = 0.0, nesterov: bool = False) -> Update:
    def update(memory: dict[str, Any], w: Tensor, g: Tensor, lr: float, t: int) -> Tensor:
        g = g + decay * w
        memory["v"] = v = g if t == 1 else mu * memory["v"] + g
        return w - lr * (g + mu * v if nesterov else v)

    return update


def adam(decay: float = 0.0, decoupled: bool = False) -> Update:
    def update(memory: dict[str, Any], w: Tensor, g: Tensor, lr: float, t: int) -> Tensor:
        w, g = (w * (1 - lr * decay), g) if decoupled else (w, g + decay * w)
        m, v = memory.get("m", 0), memory.get("v", 0)
        memory["m"], memory["v"] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        return w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    return update


def rmsprop(mu: float, decay: float = 0.0) -> Update:
    def update(memory: dict[str, Any], w: Tensor, g: Tensor, lr: float, t: int) -> Tensor:
        g = g + decay * w
        memory["v"] = v = 0.99 * memory.get("v", 0) + 0.01 * g * g
        memory["b"] = b = mu * memory.get("b", 0) + g / (v.sqrt() + 1e-8)
        return w - lr * b

    return update


@pytest.mark.parametrize(
    ("knobs", "update"),
    [
        ({"optimizer": "sgd", "momentum": 0.0}, momentum(0.0)),
        ({"optimizer": "sgd", "momentum": 0.9}, momentum(0.9)),
        ({"optimizer": "sgd", "momentum": 0.5, "decay": 0.01, "nesterov": True}, momentum(0.5, 0.01, True)),
        ({"optimizer": "adam"}, adam()),
        ({"optimizer": "adam", "decay": 0.1}, adam(0.1)),
        ({"optimizer": "adamw", "decay": 0.1}, adam(0.1, decoupled=True)),
        ({"optimizer": "rmsprop", "momentum": 0.0}, rmsprop(0.0)),
        ({"optimizer": "rmsprop", "momentum": 0.9, "decay": 0.01}, rmsprop(0.9, 0.01)),
    ],
)
def test_weights_are_those_of_a_masked_loop_written_by_hand(knobs: dict[str, Any], update: Update) -> None:
    lr = 0.005 if knobs["optimizer"] == "rmsprop" else 0.05
    state, losses = by_hand(update, 11, lambda step: lr)
    found = Trained(steps=11, lr=lr, **knobs)
    assert close(found.state, state, 2e-5 if knobs["optimizer"] == "rmsprop" else 1e-6)
    assert all(bool((found.state[name][~mask] == 0).all()) for name, mask in found.masks.items()), "exactly 0"
    # The loss is the mean over each epoch, at its last step; the last epoch may be short.
    assert found.curve("loss") == [
        (last, pytest.approx(sum(losses[first:last]) / (last - first), abs=1e-5)) for first, last in ((0, 4), (4, 8), (8, 11))
    ]


def test_schedule_warm_up_and_clipping_act_on_every_step() -> None:
    def rate(step: int) -> float:
        falling = 0.3 * 0.5 * (1 + math.cos(math.pi * step / 12))
        return 0.01 + (falling - 0.01) * step / 4 if step < 4 else falling

    state, _ = by_hand(momentum(0.9), 12, rate, clip=0.2)
    assert close(Trained(epochs=3, lr=0.3, schedule="cosine", warmup=1.0, warmup_lr=0.01, clip=0.2).state, state)
    assert not close(Trained(epochs=3, lr=0.3, schedule="cosine", warmup=1.0, warmup_lr=0.01).state, state, 1e-3)


def test_bfloat16_is_for_losses_and_attacks_alone() -> None:
    knobs = {"steps": 20, "lr": 0.05, "probes": {"v": {"use": "loss", "split": "valid"}}}
    half, exact = Trained(precision="bf16", **knobs), Trained(**knobs)
    by_hand_half, _ = by_hand(momentum(0.9), 20, bf16=True)
    near = max(float((half.state[name] - tensor).abs().max()) for name, tensor in by_hand_half.items())
    far = max(float((half.state[name] - tensor).abs().max()) for name, tensor in exact.state.items())
    assert near < 1e-5 < 1e-4 < far < 0.1, (near, far)
    in_a_stage = usual()(lambda: Trained(precision="bf16", **knobs))()
    assert equal(in_a_stage.state, half.state), "weights are not those of an earlier step"
    assert all(tensor.dtype == torch.float32 for tensor in half.state.values())
    with torch.no_grad():
        assert half.curve("v")[-1][1] == pytest.approx(float(cross_entropy(half.model(DATA.valid.x), DATA.valid.y)), rel=1e-6)
    attacked = Trained(precision="bf16", objective={"use": "robust", "attack": {"use": "pgd", "norm": "linf", "eps": 0.1}}, **knobs)
    assert attacked.curve("loss")[-1][1] > half.curve("loss")[-1][1] and attacked.counts == {
        "forwards": 20 * 11 * N // 4,
        "gradients": 20 * 11 * N // 4,
    }


def test_clipping_bounds_the_norm_of_what_is_kept() -> None:
    """Pruned weights do not use up the norm: after one plain step the weights moved by exactly lr * clip."""
    model = network()
    masks = halved(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = Trained(steps=1, lr=0.5, momentum=0.0, clip=1e-3).state
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm()
    assert float(moved) == pytest.approx(0.5 * 1e-3, rel=1e-3)
    assert all(bool((after[name][~mask] == 0).all()) for name, mask in masks.items())


def test_without_masks_nothing_is_multiplied_away() -> None:
    found = Trained(masked=False, epochs=1, lr=0.1)
    assert all(bool((found.state[name] != 0).all()) for name in found.masks)


def test_an_epoch_sees_every_sample_once_in_an_order_of_its_own() -> None:
    rng = torch.Generator().manual_seed(3)
    torch.rand(5, generator=rng)
    orders = [order(100, rng, epoch).tolist() for epoch in range(3)]
    assert all(sorted(one) == list(range(100)) for one in orders) and len({tuple(one) for one in orders}) == 3
    assert orders[1] == order(100, torch.Generator().manual_seed(3), 1).tolist() != order(100, torch.Generator().manual_seed(4), 1).tolist()


@pytest.mark.parametrize("knobs", [{"epochs": 2}, {"steps": 8}, {"epochs": 2, "drop_last": True}, {"steps": 6, "drop_last": True}])
def test_passes_are_as_predicted(knobs: dict[str, Any]) -> None:
    found = Trained(**knobs)
    n = N if not knobs.get("drop_last") else N // BATCH * BATCH
    assert found.counts == {"forwards": 2 * n, "gradients": 2 * n}
    part = Resolver({}, FOUND)("trainer", {"use": "sgd", "batch": BATCH, **knobs}, "fit")
    assert predicted(part["knobs"], {"train": N}, lambda kind, part: (1, 1)) == (2 * n, 2 * n)


def test_drop_last_needs_one_full_batch() -> None:
    with pytest.raises(UserError, match="drop_last leaves no batch of 64 in 50 training samples"):
        Trained(epochs=1, batch=64, drop_last=True)
    assert Trained(epochs=1, batch=64).counts["forwards"] == N


def test_frozen_parameters_stay_and_something_must_be_trained() -> None:
    model = network()
    model[1].weight.requires_grad_(False)
    before = model[1].weight.detach().clone() * halved(network())["1.weight"]
    after = Trained(model=model, epochs=1, decay=0.1).state
    assert torch.equal(after["1.weight"], before)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="nothing to train"):
        Trained(model=model, epochs=1)


def test_snapshots_are_what_a_shorter_training_gives() -> None:
    names = ["step-0", "step-3", "step-4", "epoch-1", "epoch-2", "step-10"]
    found = Trained(steps=10, optimizer="adam", lr=0.01, snapshots=names)
    assert set(found.loop.kept) == set(names)
    for name, step in (("step-3", 3), ("step-4", 4), ("epoch-1", 4), ("epoch-2", 8), ("step-10", 10)):
        assert equal(found.loop.kept[name], Trained(steps=step, optimizer="adam", lr=0.01).state), name
    model = network()
    halved(model)
    assert equal(found.loop.kept["step-0"], dict(model.state_dict()))


def test_a_snapshot_that_is_never_reached_is_an_error() -> None:
    with pytest.raises(UserError, match='snapshot "epoch-3" lies at step 12 and training ends at step 11'):
        Trained(steps=11, snapshots=["epoch-3"])


WATCH: dict[str, Any] = {"v": {"use": "accuracy", "split": "valid"}, "l": {"use": "loss", "split": "valid"}}
TURNS: dict[str, Any] = {"optimizer": "sgd", "lr": 1.5, "momentum": 0.9}
"""A rate at which accuracy goes up and down."""


@pytest.mark.parametrize(("select", "best"), [("v", "max"), ("v", "min"), ("l", "min")])
def test_the_best_validation_state_is_the_result_and_the_earlier_wins_a_tie(select: str, best: str) -> None:
    found = Trained(steps=15, probes=WATCH, every=2, select=select, best=best, **TURNS)
    curve = found.curve(select)
    assert [step for step, _ in curve] == [2, 4, 6, 8, 10, 12, 14, 15]
    step = (max if best == "max" else min)(curve, key=lambda entry: entry[1])[0]
    assert step < 15 and equal(found.state, Trained(steps=step, **TURNS).state)
    assert not equal(found.state, Trained(steps=15, probes=WATCH, every=2, **TURNS).state), "without select it is the last"


def test_probes_on_the_way_measure_the_state_of_that_moment() -> None:
    found = Trained(epochs=3, probes=WATCH, **TURNS)
    for step, value in found.curve("v"):
        model = network()
        model.load_state_dict(Trained(steps=step, **TURNS).state)
        with torch.no_grad():
            assert value == float((model(DATA.valid.x).argmax(1) == DATA.valid.y).double().mean())
    assert [step for step, _ in found.curve("l")] == [4, 8, 12]


def test_selection_on_anything_but_the_validation_split_is_refused() -> None:
    for part in ("train", "test"):
        with pytest.raises(UserError, match=f'must be measured on the validation split, not on "{part}"'):
            Trained(epochs=1, probes={"v": {"use": "accuracy", "split": part}}, select="v")


def test_a_value_that_is_not_finite_is_never_the_best() -> None:
    values = iter([math.nan, 0.3, math.inf, None, 0.2])

    def probe(model: nn.Module, masks: Masks) -> Measure:
        return Measure({"": next(values)}, about={"split": "valid"})

    course = watching(probe)
    for step in range(5):
        measure(course, step)
    assert (course.seen["value"], course.seen["step"]) == (0.3, 1)


def watching(probe: Any, **given: Any) -> Any:
    """A training as far as measurements see it."""
    usual = {"select": "v", "best": "max", "improve": 0.0, "patience": None, "guard": "", "fall": 0.2, "on_collapse": "record"}
    return SimpleNamespace(model=network(), masks={}, loop=Loop(), seen={}, probes={"v": probe}, **{**usual, **given})


def watched(values: list[float], **given: Any) -> tuple[list[list[Any]], int, dict[str, Any]]:
    """What is logged of a probe with these values, after which of them training stops (0: never), and what is remembered."""
    turns = iter(values)
    course = watching(lambda model, masks: Measure({"": next(turns)}, about={"split": "valid"}), **given)
    stop = next((step for step in range(1, len(values) + 1) if measure(course, step)), 0)
    return course.loop.records, stop, course.seen


@pytest.mark.parametrize(
    ("values", "given", "stop"),
    [
        ([0.1, 0.2, 0.2, 0.2, 0.3], {"patience": 2}, 4),
        ([0.1, 0.2, 0.2, 0.3, 0.2], {"patience": 2}, 0),
        ([0.1, 0.15, 0.2], {"patience": 2, "improve": 0.06}, 0),  # 0.2 is better than 0.1 by more than that
        ([0.1, 0.15, 0.16], {"patience": 2, "improve": 0.06}, 3),
        ([0.3, 0.2, 0.25, 0.1], {"patience": 2, "best": "min"}, 0),
        ([0.3, math.nan, math.nan], {"patience": 2}, 3),
        ([0.3, 0.2, 0.1], {}, 0),
    ],
)  # fmt: skip
def test_patience_counts_measurements_that_are_not_better(values: list[float], given: dict[str, Any], stop: int) -> None:
    records, found, _ = watched(values, **given)
    assert found == stop and [step for step, name, _ in records if name == "stopped"] == ([stop] if stop else [])


@pytest.mark.parametrize(
    ("values", "given", "collapsed", "stop"),
    [
        ([0.1, 0.4, 0.25, 0.19, 0.0], {}, 4, 0),
        ([0.1, 0.4, 0.25, 0.19, 0.0], {"on_collapse": "stop"}, 4, 4),
        ([0.1, 0.4, 0.25, 0.19], {"fall": 0.1}, 3, 0),
        ([0.1, 0.2, 0.3], {"on_collapse": "stop"}, 0, 0),
        ([0.9, 0.5, 0.9, 0.1], {}, 2, 0),  # recorded once
    ],
)
def test_a_fall_of_the_guard_is_recorded_once_and_stops_training_if_asked(values: Any, given: Any, collapsed: int, stop: int) -> None:
    records, found, _ = watched(values, select="last", guard="v", **given)
    assert [step for step, name, _ in records if name == "collapsed"] == ([collapsed] if collapsed else [])
    assert found == stop


def test_training_stops_early_and_gives_the_best_state() -> None:
    found = Trained(epochs=40, probes=WATCH, select="l", best="min", patience=2, **TURNS)
    curve = found.curve("l")
    ((last, _),) = found.curve("stopped")
    best = min(curve, key=lambda entry: entry[1])[0]
    assert last == curve[-1][0] == best + 8 < 160 and found.curve("epoch")[-1] == (last, last / 4)
    assert equal(found.state, Trained(steps=best, **TURNS).state)


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs"),
        ({"nesterov": True, "optimizer": "adam"}, "nesterov needs"),
        ({"select": "w", "probes": WATCH}, r'select = "w" is neither "last" nor one of probes \(v, l\)'),
        ({"patience": 2, "probes": WATCH}, "patience waits for a better `select`"),
        ({"guard": "w", "probes": WATCH}, r'guard = "w" is not one of probes \(v, l\)'),
        ({"on_collapse": "stop"}, "on_collapse and fall are about a guard"),
        ({"fall": 0.1}, "on_collapse and fall are about a guard"),
        ({"select": "l", "probes": WATCH}, 'select = "l" is a loss, and best = "max"'),
        ({"improve": 0.1, "probes": WATCH}, "improve says how much better `select` must be"),
        ({"patience": 2, "select": "l", "best": "min", "probes": WATCH, "snapshots": ["step-5"]}, "may stop before a snapshot is there"),
        ({"snapshots": ["last"]}, 'snapshot "last" is not of the form'),
        ({"snapshots": ["step-5 epoch-1"]}, "is not of the form"),
        ({"steps": 3}, "exactly one of epochs, steps"),
        ({"lr": 0.0}, "outside"),
        ({"batch": 0}, "outside"),
    ],
)
def test_knobs_that_do_not_go_together_are_refused_when_planned(knobs: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Resolver({}, FOUND)("trainer", {"use": "sgd", "epochs": 1, **knobs}, "fit")


def factor(schedule: str, step: int, steps: int = 20, per_epoch: int = 5, **given: Any) -> float:
    knobs = {"drops": [0.5, 0.75], "milestones": [1, 3], "gamma": 0.1, "peak": 0.3, **given}
    return scale(schedule, step, steps, per_epoch, knobs["drops"], knobs["milestones"], knobs["gamma"], knobs["peak"])


def test_schedules_in_closed_form() -> None:
    steps = range(20)
    assert [factor("constant", step) for step in steps] == [1.0] * 20
    assert [factor("cosine", step) for step in steps] == pytest.approx([math.cos(math.pi * step / 40) ** 2 for step in steps])
    assert factor("cosine", 0) == 1 and factor("cosine", 20) == pytest.approx(0) and 0 < factor("cosine", 19) < 0.01
    assert [factor("step", step) for step in steps] == pytest.approx([1.0] * 10 + [0.1] * 5 + [0.01] * 5)
    assert [factor("step", step, drops=[0.75, 0.5], gamma=0.5) for step in (9, 10, 14, 15)] == [1, 0.5, 0.5, 0.25], "in any order"
    assert factor("step", 2, steps=3, drops=[0.5]) == pytest.approx(0.1) and factor("step", 1, steps=3, drops=[0.5]) == 1
    assert [factor("step", step, steps=100, drops=[0.07, 0.55]) for step in (6, 7, 54, 55)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert [factor("milestones", step) for step in steps] == pytest.approx([1.0] * 5 + [0.1] * 10 + [0.01] * 5)
    assert factor("milestones", 0, milestones=[0]) == pytest.approx(0.1) and factor("milestones", 19, milestones=[]) == 1
    cycle = [factor("one-cycle", step) for step in steps]
    assert cycle[:6] == pytest.approx([(step + 1) / 7 for step in range(6)]) and cycle[6] == 1 == max(cycle)
    assert cycle[6:] == pytest.approx([(20 - step) / 14 for step in range(6, 20)]) and cycle[-1] > 0 == factor("one-cycle", 20)


def test_one_cycle_of_any_length_rises_and_falls_between_0_and_1() -> None:
    for steps in range(1, 40):
        for peak in (0.01, 0.3, 0.5, 0.99):
            cycle = [factor("one-cycle", step, steps, peak=peak) for step in range(steps)]
            top = cycle.index(max(cycle))
            assert all(0 < value <= 1 for value in cycle)
            assert cycle[: top + 1] == sorted(cycle[: top + 1]) and cycle[top:] == sorted(cycle[top:], reverse=True)


def test_warm_up_in_closed_form() -> None:
    def values(kind: str, epochs: float = 2.0, start: float = 0.2) -> list[float]:
        return [warmed(1.0, step, 4, epochs, start, kind) for step in range(10)]

    assert values("linear") == pytest.approx([0.2 + 0.8 * step / 8 for step in range(8)] + [1, 1])
    assert values("epochs") == pytest.approx([0.2] * 4 + [0.6] * 4 + [1, 1])
    assert values("constant") == pytest.approx([0.2] * 8 + [1, 1])
    assert values("linear", 0.5, 0.0) == pytest.approx([0, 0.5] + [1] * 8)
    for kind in ("linear", "epochs", "constant"):
        assert values(kind, 0.0) == [1.0] * 10


class Viewing(nn.Module):
    """Flattens maps as many networks do that are found in the wild."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.dropout(self.norm(self.conv(x)), 0.5, True)
        return self.fc(self.flat(x))

    def flat(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


class Reshaping(Viewing):
    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def viewing_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """As attacks under L2 and penalties of input gradients do."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(x), y), x, create_graph=True)
    return cross_entropy(model(x), y, reduction="none") + grad.view(len(x), -1).norm(dim=1)


def plain_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y, reduction="none")


@pytest.mark.parametrize(
    ("kind", "objective", "fast"), [(Viewing, plain_loss, False), (Reshaping, viewing_gradients, False), (Reshaping, plain_loss, True)]
)
def test_a_step_that_views_maps_is_made_in_the_layout_it_can_do_with(kind: type[Viewing], objective: Any, fast: bool) -> None:
    model, asked, split = kind(), list[int](), Split(torch.rand(4, 3, 8, 8), torch.arange(4), torch.arange(4))
    model.register_forward_hook(lambda *_: asked.append(1))
    model.norm.eval()
    before, drawn, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state(), torch.Generator()

    def step() -> None:
        objective(model, split.x + torch.rand(1, generator=rng), split.y).sum().backward()
        model.norm.train()

    at = rng.get_state()
    with channels_last(model, rng, step):
        assert not asked and torch.equal(torch.get_rng_state(), drawn) and torch.equal(rng.get_state(), at)
        assert [module.training for module in model.modules()] == [True, True, False, True]
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert model.conv.weight.is_contiguous() is not fast
        step()
    assert model.conv.weight.is_contiguous()


def test_objectives_that_view_input_gradients_train_networks_on_colour_images() -> None:
    data = DATA._replace(train=Split(torch.rand(20, 3, 8, 8), torch.arange(20) % 10, torch.arange(20)), shape=(3, 8, 8), classes=10)
    model, function = Reshaping(), FOUND.get("trainer", "sgd").function
    function(
        model, ones(model), data, torch.Generator(), Loop(), objective=lambda net, x, y, progress: viewing_gradients(net, x, y),
        batch=8, steps=3,
    )  # fmt: skip
    assert model.norm.num_batches_tracked == 6


@pytest.mark.parametrize("channels", [2, 4, 8, 16])
def test_gradients_are_the_same_in_the_layout_of_training(channels: int) -> None:
    """Of few channels oneDNN makes a crash, or wrong gradients, in the faster layout."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 2 * channels, 1, stride=2))
    x = torch.rand(97, 3, 32, 32)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model(x).square().mean(), list(model.parameters())))

    plain = gradients()
    with channels_last(model, torch.Generator(), lambda: None):
        trained = gradients()
    assert all(torch.allclose(one, other, rtol=1e-3, atol=1e-6) for one, other in zip(plain, trained, strict=True))
