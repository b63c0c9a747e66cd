"""The probes: closed forms of size and sparsity, accuracy with its flags, exact cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from torch.nn.functional import cross_entropy

from rtbench.builtin.probes.accuracy import at_chance
from rtbench.builtin.probes.size import cost
from rtbench.commands import api
from rtbench.data.splits import Data, Split
from rtbench.engine.bind import Binder, as_measure
from rtbench.engine.loop import Loop
from rtbench.errors import UserError
from rtbench.parts.kinds import Measure
from rtbench.parts.masks import Masks, apply_, ones
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue
from rtbench.storage.results import Results
from studies import SUITE, run, stages, values, write

FOUND = catalogue()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def images(n: int, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10, seed: int = 0) -> Split:
    rng = torch.Generator().manual_seed(seed)
    return Split(torch.rand(n, *shape, generator=rng), torch.arange(n) % classes, torch.arange(n) + 100)


def data(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10) -> Data:
    return Data(images(60, shape, classes), images(40, shape, classes, 1), images(50, shape, classes, 2), None, shape, classes)


def network(use: str, shape: tuple[int, int, int], classes: int, **knobs: Any) -> nn.Module:
    torch.manual_seed(0)
    part = Resolver({}, FOUND)("architecture", {"use": use, **knobs}, "net")
    model: nn.Module = Binder(FOUND, 0, torch.Generator()).part("architecture", part)(shape=shape, classes=classes)
    return model


def measure(model: nn.Module, masks: Masks, use: str, found: Data | None = None, history: tuple[Any, ...] = (), **knobs: Any) -> Measure:
    part = Resolver({}, FOUND)("probe", {"use": use, **knobs}, "probe")
    found = found or data()
    rng = torch.Generator().manual_seed(1)
    bound = Binder(FOUND, 1, rng, found, history).part("probe", part)
    return as_measure(bound(model=model.eval(), masks=masks, data=found, rng=rng, loop=Loop(), history=history))


def keeping(model: nn.Module, **counts: int) -> Masks:
    """Masks that keep the first so many weights of each layer, applied."""
    masks = ones(model)
    for name, mask in masks.items():
        mask.view(-1)[counts[name.removesuffix(".weight")] :] = False
    apply_(model, masks)
    return masks


MLP = (1, 4, 4)


def mlp(bias: bool = True) -> nn.Module:
    """16 - 8 - 3: 128 + 24 weights, 8 + 3 biases, which here are not 0."""
    model = network("mlp", MLP, 3, hidden=[8], bias=bias)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.fill_(0.5)
    return model


def lenet() -> nn.Module:
    """conv 8x1x3x3 at 8x8, conv 16x8x3x3 at 4x4, linear 64x32, linear 32x10, biases 8 + 16 + 32 + 10."""
    return network("lenet", (1, 8, 8), 10, channels=[8, 16], hidden=32, kernel=3, padding=1)


def test_density_and_sparsity_of_an_mlp() -> None:
    model = mlp()
    masks = keeping(model, fc1=32, fc2=6)
    found = measure(model, masks, "density", data(MLP, 3)).numbers
    assert found == {"": 38 / 152, "all": (38 + 11) / (152 + 11), "layer.fc1.weight": 32 / 128, "layer.fc2.weight": 6 / 24}
    zeros = measure(model, masks, "sparsity", data(MLP, 3)).numbers
    assert zeros == {name: 1 - value for name, value in found.items() if value is not None}


def test_density_of_a_lenet_counts_convolutions_apart() -> None:
    model = lenet()
    masks = keeping(model, conv1=36, conv2=288, fc1=512, fc2=0)
    found = measure(model, masks, "density").numbers
    prunable, biases = 72 + 1152 + 2048 + 320, 8 + 16 + 32 + 10
    assert found[""] == (36 + 288 + 512) / prunable and found["conv"] == (36 + 288) / (72 + 1152)
    assert found["all"] == (36 + 288 + 512 + biases) / (prunable + biases) and found["layer.fc2.weight"] == 0


def test_density_is_measured_not_believed() -> None:
    """A weight that is kept and happens to be 0 is not there; one that is pruned and is not 0 is an error."""
    model = mlp()
    masks = keeping(model, fc1=32, fc2=6)
    model.get_parameter("fc1.weight").data.view(-1)[:2] = 0
    assert measure(model, masks, "density", data(MLP, 3)).numbers[""] == 36 / 152
    model.get_parameter("fc1.weight").data.view(-1)[100] = 1e-30
    with pytest.raises(ValueError, match=r'pruned weights of "fc1\.weight" are not 0'):
        measure(model, masks, "density", data(MLP, 3))


def test_without_convolutions_or_prunable_weights_nothing_is_made_up() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3] * self.scale

    assert measure(Head(), {}, "density", data(MLP, 3)).numbers == {"": None, "all": 1.0}
    assert measure(Head(), {}, "sparsity", data(MLP, 3)).numbers == {"": None, "all": 0.0}


def test_parameters() -> None:
    model = lenet()
    masks = keeping(model, conv1=36, conv2=288, fc1=512, fc2=20)
    total, biases = 72 + 1152 + 2048 + 320, 66
    zeros = sum(int((p == 0).sum()) for n, p in model.named_parameters() if n.endswith("bias"))
    found = measure(model, masks, "parameters").numbers
    assert found == {"": 36 + 288 + 512 + 20 + biases - zeros, "all": total + biases, "prunable": total}
    assert measure(network("mlp", (1, 28, 28), 10, bias=False), {}, "parameters", data((1, 28, 28))).numbers["all"] == 266_200


def test_multiply_accumulates() -> None:
    model = lenet()
    dense = 72 * 64 + 1152 * 16 + 2048 + 320
    assert measure(model, ones(model), "macs").numbers == {"": dense, "dense": dense}
    masks = keeping(model, conv1=36, conv2=288, fc1=512, fc2=20)
    assert measure(model, masks, "macs").numbers == {"": 36 * 64 + 288 * 16 + 512 + 20, "dense": dense}
    assert measure(mlp(), {}, "macs", data(MLP, 3)).numbers == {"": 152, "dense": 152}
    assert not any(module._forward_hooks for module in model.modules())


def test_multiply_accumulates_of_strides_groups_and_tokens() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, stride=2, groups=2)
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.tokens = nn.Linear(6, 5)
            self.twice = nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(self.conv(x))  # (n, 8, 3, 3), (n, 4, 6, 6)
            return self.twice(self.twice(self.tokens(x))).mean((1, 2))

    odd = Odd()
    found = measure(odd, {}, "macs", data((4, 7, 7), 5)).numbers
    # A transposed convolution uses each weight once per pixel of its input.
    assert found["dense"] == 8 * 2 * 9 * 9 + 8 * 4 * 4 * 9 + 6 * 5 * 24 + 2 * 25 * 24
    nn.utils.parametrizations.weight_norm(odd.tokens)
    assert measure(odd, {}, "macs", data((4, 7, 7), 5)).numbers == found


class Constant(nn.Module):
    """Answers the same class, whatever it is shown."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(classes).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight + 0 * x.flatten(1).sum(1, keepdim=True)


class Knowing(nn.Module):
    """Knows the labels of `images`, but for a share of the samples: their pixels name them."""

    def __init__(self, split: Split, wrong: float) -> None:
        super().__init__()
        self.x, self.y, self.wrong = split.x.flatten(1), split.y, wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nearest = torch.cdist(x.flatten(1), self.x).argmin(1)
        answer = torch.where(nearest < self.wrong * len(self.y), (self.y[nearest] + 1) % 10, self.y[nearest])
        return nn.functional.one_hot(answer, 10).float()


def test_a_constant_classifier_is_flagged_and_a_good_one_is_not() -> None:
    attack = {"use": "pgd", "norm": "linf", "eps": 0.1, "steps": 2}
    for found in (measure(Constant(), {}, "accuracy"), measure(Constant(), {}, "accuracy", attack=attack)):
        assert found.numbers == {"": 0.1} and "chance-level" in found.flags, "robust, and worth nothing"
    test = data().test
    assert isinstance(test, Split)
    assert measure(Knowing(test, 0.2), {}, "accuracy").flags == ()
    assert measure(Knowing(test, 0.85), {}, "accuracy").flags == ("chance-level",)
    skewed = data()._replace(test=Split(test.x, torch.where(torch.arange(50) < 40, 9, 3), test.ids))
    found = measure(Constant(), {}, "accuracy", skewed)
    assert found.numbers == {"": 0.8} and found.flags == ("chance-level",), "the commonest class is no achievement"


def test_chance_is_told_by_the_lower_end_of_the_wilson_interval() -> None:
    for n in (10, 100, 397, 10_000):
        for right in range(0, n + 1, max(1, n // 50)):
            low = binomtest(right, n).proportion_ci(0.95, method="wilson").low
            for commonest in (n // 10, n // 2):
                if not math.isclose(low, commonest / n, abs_tol=1e-4):
                    assert at_chance(right, commonest, n) == (low <= commonest / n)


def test_accuracy_of_splits_and_samples() -> None:
    found = data()
    for split in ("train", "valid", "test"):
        part = getattr(found, split)
        model = Knowing(part, 0.5)
        whole = measure(model, {}, "accuracy", split=split)
        assert whole.numbers == {"": 0.5} and whole.about == {"split": split, "samples": len(part)}
        assert whole.samples["ids"].tolist() == part.ids.tolist() and int(whole.samples["clean"].sum()) == len(part) // 2
    test = found.test
    assert isinstance(test, Split)
    first = measure(Knowing(test, 0.5), {}, "accuracy", samples=30)
    assert first.samples["ids"].tolist() == list(range(100, 130)) and first.numbers == {"": 5 / 30}
    even = measure(Knowing(test, 0.0), {}, "accuracy", samples=30, rule="stratified").samples["ids"]
    assert torch.bincount(test.y[even - 100]).tolist() == [3] * 10
    one, other = (
        measure(Knowing(test, 0.0), {}, "accuracy", samples=30, rule="random", sample_seed=seed).samples["ids"] for seed in (0, 1)
    )
    assert one.tolist() != other.tolist() and len(set(one.tolist())) == 30


def test_impossible_measurements_are_said_to_be_so() -> None:
    with pytest.raises(UserError, match="cannot choose 51 of 50"):
        measure(Constant(), {}, "accuracy", samples=51)
    for use in ("accuracy", "loss"):
        with pytest.raises(ValueError, match='there is no "test" split'):
            measure(Constant(), {}, use, data()._replace(test=None))


def test_loss_is_the_mean_over_samples_whatever_the_batches() -> None:
    model, found = mlp(), data(MLP, 3)
    for split, n in (("test", 50), ("train", 33)):
        part = getattr(found, split)
        with torch.no_grad():
            right = float(cross_entropy(model(part.x[:n]), part.y[:n]))
        for batch in (7, n, 512):
            assert measure(model, {}, "loss", found, split=split, samples=n, batch=batch).numbers[""] == pytest.approx(right, abs=1e-6)


def test_cost_adds_up_the_history() -> None:
    history = tuple(
        {"verb": verb, "forwards": forwards, "gradients": gradients, "seconds": seconds}
        for verb, forwards, gradients, seconds in (
            ("init", 0, 0, 0.5),
            ("train", 100, 90, 2.0),
            ("prune", 10, 5, 1.0),
            ("train", 7, 7, 4.0),
        )
    )
    found = cost(history)
    assert found.numbers == {"": 102, "forwards": 117, "before": 95, "last": 7}
    assert found.timings == {"seconds": 7.5, "seconds.train": 6.0, "seconds.prune": 1.0, "seconds.before": 3.5, "seconds.last": 4.0}
    assert cost(()).numbers == {"": 0, "forwards": 0}
    lost = cost((*history, {"verb": "prune", "forwards": 0, "gradients": 0, "seconds": None}))
    assert lost.timings == {"seconds.train": 6.0, "seconds.before": 3.5, "seconds.last": 4.0}, "what is not known is not 0"


def test_cost_in_a_study_is_exact_and_counts_a_shared_ancestor_once(tmp_path: Path) -> None:
    """A ticket is trained, pruned, rewound and trained again; its masks and its weights share their first stages."""
    text = SUITE.replace("density = {", 'cost = { use = "cost", at = "last" }\ndensity = {')
    run(write(tmp_path, text), tmp_path / "store")
    plan = api.plan(write(tmp_path, text), device="cpu")
    passes = {stage.key: Results(tmp_path / "store").record(stage.key)["passes"] for stage in stages(plan, "train")}
    assert len(set(map(str, passes.values()))) == 1
    one = next(iter(passes.values()))
    for point in plan.points:
        found = values(tmp_path / "store", point.probes["cost"])
        trainings = 1 if point.recipe == "dense" else 2
        assert found == {
            "": trainings * one["gradients"], "forwards": trainings * one["forwards"], "before": (trainings - 1) * one["gradients"],
            "last": one["gradients"],
        }  # fmt: skip
