"""Several networks trained as one: each ends as it would alone but for rounding, whatever happens on the way."""

from __future__ import annotations

import contextlib
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtbench.builtin.architectures.vgg import vgg
from rtbench.builtin.trainers.stack import Stack
from rtbench.commands import api
from rtbench.data.splits import Data, Split
from rtbench.engine.bind import Binder
from rtbench.engine.loop import Loop
from rtbench.engine.saved import Pace, parse, read
from rtbench.evidence.explain import page
from rtbench.parts.kinds import Unstackable, stacked
from rtbench.parts.masks import Masks, apply_, ones
from rtbench.parts.meter import metered
from rtbench.parts.noise import GeneratorNoise, Generators, StackedNoise
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue
from rtbench.running.stacks import Stacks
from rtbench.storage.store import Store
from studies import SUITE, numbers, plugin, run, stages, tree, write

FOUND = catalogue()
PGD = {"use": "pgd", "norm": "linf", "eps": 0.1, "steps": 3}
VALID = {"valid": {"use": "loss", "split": "valid"}}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def split(n: int, shape: tuple[int, int, int], seed: int, augment: str = "none") -> Split:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, *shape), generator=rng, dtype=torch.uint8)
    first = x.flatten(1).float() @ torch.randn(x[0].numel(), 3, generator=torch.Generator().manual_seed(9))
    return Split(x, first.argmax(1), torch.arange(n), augment)


def data(shape: tuple[int, int, int] = (1, 4, 4), n: int = 70, augment: str = "none") -> Data:
    return Data(split(n, shape, 0, augment), split(30, shape, 1), None, None, shape, 3)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


class Crew:
    """Networks in training, each with weights, masks and a seed of its own, and a file to save itself in if there is a folder."""

    def __init__(self, number: int = 3, make: Any = network, found: Data | None = None, folder: Path | None = None, **knobs: Any) -> None:
        self.part = Resolver({}, FOUND)("trainer", {"use": "sgd", "batch": 16, **knobs}, "fit")
        self.data = found or data()
        self.models = [make(seed) for seed in range(number)]
        self.masks = [pruned(model, 1 - 0.3 * seed) for seed, model in enumerate(self.models)]
        self.rngs = [torch.Generator().manual_seed(seed) for seed in range(number)]
        self.folder, self.loops = folder, []
        if folder is not None:
            folder.mkdir(exist_ok=True)
        for seed, (model, masks, rng) in enumerate(zip(self.models, self.masks, self.rngs, strict=True)):
            file = None if folder is None else folder / f"{seed}.pt"
            self.loops.append(Dying(model, masks, rng, file, counts={"forwards": 0, "gradients": 0}))

    def alone(self, which: range | None = None) -> Crew:
        for seed in which or range(len(self.models)):
            with metered(self.models[seed], self.loops[seed].counts):
                self._binder(seed).part("trainer", self.part)(**self._words(seed))
        return self

    def as_one(self, seconds: float = math.inf) -> Crew:
        chosen = list(range(len(self.models)))
        pace = Pace(seconds)
        for seed in chosen:
            self.loops[seed].pace = pace
        calls = [{**self._words(seed), **self._binder(seed).values("trainer", self.part)} for seed in chosen]

        def together(numbers: list[int]) -> dict[str, Any]:
            rngs = Generators(self.rngs[chosen[number]] for number in numbers)
            return Binder(FOUND, 0, rngs, self.data).values("trainer", self.part)

        train = stacked(FOUND.get("trainer", "sgd").function)
        assert train is not None
        with contextlib.ExitStack() as meters:
            for seed in chosen:
                meters.enter_context(metered(self.models[seed], self.loops[seed].counts))
            train(calls, together)
        return self

    def _binder(self, seed: int) -> Binder:
        return Binder(FOUND, seed, self.rngs[seed], self.data, (), self.loops[seed].counts)

    def _words(self, seed: int) -> dict[str, Any]:
        return {"model": self.models[seed], "masks": self.masks[seed], "data": self.data, "rng": self.rngs[seed], "loop": self.loops[seed]}


class Killed(BaseException):
    """Stands for the signal that ends a process."""


class Dying(Loop):
    """Saves itself, unless it is sudden, and dies after so many steps."""

    dies, suddenly = -1, False

    def _border(self, number: int, done: int, total: int, state: dict[str, Any]) -> None:
        if done == self.dies:
            if not self.suddenly:
                self._save(number, done, state)
            raise Killed
        super()._border(number, done, total, state)


def pruned(model: nn.Module, keep: float) -> Masks:
    rng = torch.Generator().manual_seed(6)
    masks = {name: torch.rand(mask.shape, generator=rng) < keep for name, mask in ones(model).items()}
    apply_(model, masks)
    return masks


def same(one: Crew, other: Crew, near: float = 1e-4) -> None:
    """Both crews are at the same end, but for rounding."""
    for a, b in zip(one.models, other.models, strict=True):
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.allclose(x.double(), y.double(), rtol=near, atol=near), name
    for a, b, masks in zip(one.loops, other.loops, other.masks, strict=True):
        assert [record[:2] for record in a.records] == [record[:2] for record in b.records]
        assert [record[2] for record in a.records] == pytest.approx([record[2] for record in b.records], rel=1e-2, abs=1e-3)
        assert a.counts == b.counts and a.kept.keys() == b.kept.keys()
        for name in a.kept:
            assert all(torch.allclose(x, b.kept[name][key], rtol=near, atol=near) for key, x in a.kept[name].items())
        assert all(not b.model.get_parameter(name)[~mask].any() for name, mask in masks.items())
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(one.rngs, other.rngs, strict=True))


WAYS: list[dict[str, Any]] = [
    {"epochs": 3, "lr": 0.1},
    {"epochs": 3, "lr": 0.1, "momentum": 0.0, "drop_last": True},
    {"steps": 13, "lr": 0.1, "nesterov": True, "decay": 1e-2, "schedule": "cosine", "warmup": 1.0},
    {"epochs": 3, "optimizer": "adam", "lr": 0.01, "objective": {"use": "robust", "attack": PGD, "mix": 0.5, "smooth": 0.1}},
    {"epochs": 3, "optimizer": "adamw", "lr": 0.01, "decay": 0.1, "objective": {"use": "robust", "attack": {**PGD, "use": "fgsm", "steps": None}}},
    {"epochs": 3, "optimizer": "rmsprop", "lr": 0.01, "objective": {"use": "trades", "attack": {**PGD, "start": "gaussian", "loss": "kl"}}},
    {"epochs": 3, "lr": 0.1, "snapshots": ["step-0", "step-4", "epoch-3"], "probes": VALID, "every": 3},
    {"epochs": 4, "lr": 0.9, "probes": VALID, "every": 2, "select": "valid", "best": "min"},
]  # fmt: skip
for way in WAYS:
    attack = way.get("objective", {}).get("attack", {})
    for knob in [knob for knob, value in attack.items() if value is None]:
        del attack[knob]


@pytest.mark.parametrize("knobs", WAYS)
def test_each_network_ends_as_it_would_alone(knobs: dict[str, Any]) -> None:
    same(Crew(**knobs).alone(), Crew(**knobs).as_one())


def test_a_stack_in_bfloat16_is_its_networks_in_bfloat16() -> None:
    knobs = {"epochs": 2, "lr": 0.1, "precision": "bf16", "objective": {"use": "robust", "attack": PGD}}
    same(Crew(**knobs).alone(), Crew(**knobs).as_one(), 2e-2)


def test_batchnorm_and_augmentation_are_each_networks_own() -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return vgg((3, 32, 32), 3, depth=7, width=0.0625)

    knobs = {"make": make, "found": data((3, 32, 32), 40, "pad-crop-flip"), "steps": 4, "lr": 0.01}
    alone, as_one = Crew(2, **knobs).alone(), Crew(2, **knobs).as_one()
    same(alone, as_one, 1e-3)
    moved = dict(as_one.models[0].named_buffers())
    assert any(float(buffer.float().sum()) != 0 for name, buffer in moved.items() if "running_mean" in name)


def test_masks_of_batchnorm_are_each_networks_own() -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))

    alone, as_one = (Crew(2, make, epochs=2, lr=0.1) for _ in range(2))
    for crew in (alone, as_one):
        crew.masks[1] |= {name: torch.tensor([True, False, True, True]) for name in ("1.weight", "1.bias")}
        apply_(crew.models[1], crew.masks[1])
    same(alone.alone(), as_one.as_one())
    assert as_one.models[0].get_parameter("1.weight")[1] != 0 and as_one.models[1].get_parameter("1.weight")[1] == 0


def test_networks_that_stop_early_leave_the_others_to_go_on() -> None:
    knobs = {**WAYS[3], "epochs": 40, "probes": VALID, "select": "valid", "best": "min", "patience": 2}
    alone, as_one = Crew(**knobs).alone(), Crew(**knobs).as_one()
    ends = [loop.records[-1][0] for loop in alone.loops]
    assert len(set(ends)) > 1, "they stop at different steps"
    same(alone, as_one, 1e-2)


@pytest.mark.parametrize("knobs", [WAYS[0], WAYS[3]])
def test_what_a_stack_saved_goes_on_alone_or_in_a_stack(knobs: dict[str, Any], tmp_path: Path) -> None:
    whole = Crew(**knobs).alone()
    for how in ("alone", "as_one"):
        begun = Crew(folder=tmp_path / how, **knobs)
        for loop in begun.loops:
            loop.dies = 6
        with pytest.raises(Killed):
            begun.as_one()
        assert len(list((tmp_path / how).iterdir())) == 3, "all of them saved themselves at the same step"
        again = Crew(folder=tmp_path / how, **knobs)
        same(whole, getattr(again, how)())


def test_networks_at_different_steps_are_stacked_with_those_at_theirs(tmp_path: Path) -> None:
    knobs = WAYS[3]
    whole = Crew(4, **knobs).alone()
    for seed, step in ((0, 3), (1, 7), (2, 3)):
        begun = Crew(4, folder=tmp_path, **knobs)
        begun.loops[seed].dies = step
        with pytest.raises(Killed):
            begun.alone(range(seed, seed + 1))
    same(whole, Crew(4, folder=tmp_path, **knobs).as_one())


def test_all_save_themselves_at_the_same_steps(tmp_path: Path) -> None:
    for times in range(5):
        crew = Crew(folder=tmp_path / str(times), steps=200)
        for loop in crew.loops:
            loop.dies, loop.suddenly = 150, True
        with pytest.raises(Killed):
            crew.as_one(seconds=0.003)
        saved = [parse(read(tmp_path / str(times) / f"{seed}.pt")[0])["done"] for seed in range(3)]
        assert len(set(saved)) == 1 and saved[0] > 0


def test_a_member_saves_no_more_than_itself(tmp_path: Path) -> None:
    alone, as_one = Crew(1, folder=tmp_path / "1", steps=4, optimizer="adam"), Crew(6, folder=tmp_path / "6", steps=4, optimizer="adam")
    for crew, name in ((alone, "alone"), (as_one, "as_one")):
        for loop in crew.loops:
            loop.dies = 2
        with pytest.raises(Killed):
            getattr(crew, name)()
    sizes = [(tmp_path / folder / "0.pt").stat().st_size for folder in ("1", "6")]
    assert sizes[1] < 1.1 * sizes[0]


class Drops(nn.Sequential):
    def __init__(self, seed: int) -> None:
        super().__init__(nn.Flatten(), nn.Dropout(0.5), *list(network(seed))[1:])


class Compares(nn.Sequential):
    """Centres each sample by the batch's mean, in eval mode too: a network that mixes samples."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if float(x.mean()) > 0 else 2.0)


REFUSED: dict[str, dict[str, Any]] = {
    "dropout": {"make": Drops},
    "a branch on values": {"make": lambda seed: Compares(*network(seed))},
    "clipping": {"clip": 1.0},
    "l1": {"objective": {"use": "natural", "l1": 1e-3}},
    "restarts": {"objective": {"use": "robust", "attack": {**PGD, "restarts": 2}}},
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_stacked_is_refused_untouched(why: str) -> None:
    crew, fresh = (Crew(epochs=2, lr=0.1, **REFUSED[why]) for _ in range(2))
    with pytest.raises(Unstackable):
        crew.as_one()
    same(fresh, crew, 0.0)
    for one in (fresh, crew):
        torch.manual_seed(3)
        one.alone()
    same(fresh, crew, 0.0)


def test_a_step_that_is_not_each_networks_own_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = StackedNoise.uniform
    monkeypatch.setattr(StackedNoise, "uniform", lambda self, x: drawn(self, x).flip(0))
    with pytest.raises(Unstackable, match="not a step of each"):
        Crew(**WAYS[3]).as_one()


def test_a_stack_is_its_networks() -> None:
    models = [network(seed) for seed in range(4)]
    x = torch.rand(4 * 5, 1, 4, 4)
    expected = torch.cat([model(part) for model, part in zip(models, x.chunk(4), strict=True)])
    stack = Stack(models)
    assert torch.allclose(stack(x), expected, atol=1e-6)
    with torch.no_grad():
        stack.own["1.weight"][2] += 1
    assert torch.equal(models[2].get_parameter("1.weight"), stack.own["1.weight"][2]), "a network is a view of the stack"


def test_noise_of_a_stack_is_that_of_each() -> None:
    rngs = [torch.Generator().manual_seed(seed) for seed in range(3)]
    stack = StackedNoise(Generators(torch.Generator().manual_seed(seed) for seed in range(3)), 12)
    each = [GeneratorNoise(rng, 4) for rng in rngs]
    x = torch.empty(12, 2, 2)
    assert torch.equal(stack.uniform(x), torch.cat([noise.uniform(x[:4]) for noise in each]))
    assert torch.equal(stack.normal(x), torch.cat([noise.normal(x[:4]) for noise in each]))
    assert torch.equal(stack.stream("a").randint(0, 99), torch.cat([noise.randint(0, 99) for noise in each]))


TRIALS = SUITE.replace('data = "digits"', 'data = "digits"\ntrials = 3', 1)


def facts(store: Path) -> list[int]:
    """How many networks each training was stacked with."""
    found = [json.loads(file.read_text()) for file in sorted(store.glob("results/*/provenance.json"))]
    return [fact.get("stack", 1) for fact in found if fact.get("plugin", {}).get("part", "").startswith("trainer")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_in_stacks_is_the_study(tmp_path: Path, workers: int) -> None:
    path = write(tmp_path, TRIALS)
    alone = run(path, tmp_path / "alone")
    as_one = run(path, tmp_path / "stacks", stack=4, workers=workers)
    assert as_one.tally.done == alone.tally.done and not as_one.tally.failed
    # Nine trainings: three dense, then six whose networks were pruned; a second worker may start before all of these are there.
    assert sorted(facts(tmp_path / "stacks")) == [2, 2, 3, 3, 3, 4, 4, 4, 4] if workers == 1 else max(facts(tmp_path / "stacks")) > 1
    together = sum(networks > 1 for networks in facts(tmp_path / "stacks"))
    assert as_one.tally.stacked == together and f"{together} of them trained with others as one" in api.summary(as_one, "x")
    for a, b in zip(alone.rows, as_one.rows, strict=True):
        assert a.probes["density"].values == b.probes["density"].values
        assert a.probes["clean"].values == pytest.approx(b.probes["clean"].values, abs=0.02)
    records = [
        {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / s / "results").glob("*/record.json")} for s in ("alone", "stacks")
    ]
    assert records[0].keys() == records[1].keys()
    assert all(records[0][key]["passes"] == records[1][key]["passes"] for key in records[0])
    assert run(path, tmp_path / "stacks").tally.done == 0, "stacked or not is not part of a key"
    (row, *_) = as_one.as_json()["rows"]
    assert "trained its network and others as one" in page(Store(tmp_path / "stacks"), row["keys"]["clean"][0])


def test_what_cannot_be_stacked_is_run_alone_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, TRIALS.replace("epochs = 2 }", "epochs = 2, clip = 1.0 }"))
    alone = run(path, tmp_path / "alone")
    with pytest.warns(UserWarning, match="3 networks are trained each alone, not as one: the norm of a gradient is clipped"):
        board = run(path, tmp_path / "stacks", stack=3)
    assert board.tally.stacked == 0 and tree(tmp_path / "alone") == tree(tmp_path / "stacks") and numbers(alone) == numbers(board)


DIVERGES = """
class Unlucky(torch.nn.Linear):
    head_name = ""

    def __init__(self, classes):
        super().__init__(64, classes)
        self.register_buffer("scale", torch.tensor(1e20 if torch.rand(()) < 0.5 else 1.0))

    def forward(self, x):
        x = x.flatten(1)
        return super().forward(x * self.scale if self.training else x)

def unlucky(shape, classes):
    model = torch.nn.Sequential(Unlucky(classes))
    model.head_name = "0"
    return model

@hookimpl
def rtbench_architectures():
    return {"unlucky": unlucky}
"""


def test_a_network_that_diverges_fails_in_its_own_name(tmp_path: Path) -> None:
    path = write(tmp_path, TRIALS.replace('{ use = "mlp", hidden = [16] }', '{ use = "unlucky" }'))
    choices = {"plugins": [plugin(tmp_path, DIVERGES)], "only": {"recipe": ["dense"]}, "trials": 6}
    alone, as_one = run(path, tmp_path / "alone", **choices), run(path, tmp_path / "stacks", stack=6, **choices)
    reasons = [reason for reason in alone.tally.failed.values() if "it diverged" in reason]
    assert 0 < len(reasons) < 6, "some diverge and some do not"
    assert alone.tally.failed == as_one.tally.failed and as_one.tally.stacked == 6 - len(reasons)


DEADLY = """
import traceback

def net(shape, classes):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))
    model.head_name = "1"
    return model

def deadly(model, data):
    if any(frame.filename.endswith("stacked.py") for frame in traceback.extract_stack()):
        os._exit(3)
    return 1.0

@hookimpl
def rtbench_architectures():
    return {"net": net}

@hookimpl
def rtbench_probes():
    return {"deadly": deadly}
"""


def test_a_worker_that_dies_of_a_stack_is_no_ones_failure(tmp_path: Path) -> None:
    path = write(tmp_path, TRIALS.replace("epochs = 2 }", 'epochs = 2, probes = { d = "deadly" } }'))
    board = run(path, tmp_path / "store", stack=3, isolate=True, plugins=[plugin(tmp_path, DEADLY)], only={"recipe": ["dense"]})
    assert not board.tally.failed and board.tally.stacked == 0 and facts(tmp_path / "store") == [1, 1, 1]


def test_a_budget_ends_a_stack_which_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path, TRIALS.replace("epochs = 2 }", "epochs = 30 }"))
    whole, times = run(path, tmp_path / "whole", only={"recipe": ["dense"]}), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while run(path, tmp_path / "store", stack=3, only={"recipe": ["dense"]}, budget=0.1 * 1.25**times).tally.late:
            times += 1
    board = run(path, tmp_path / "store", stack=3, only={"recipe": ["dense"]})
    assert times > 0 and board.tally.done == 0 and facts(tmp_path / "store") == [3, 3, 3]
    assert board.rows[0].probes["clean"].values == pytest.approx(whole.rows[0].probes["clean"].values, abs=0.02)


def test_the_time_of_a_stack_is_shared_among_its_networks(tmp_path: Path) -> None:
    path = write(tmp_path, TRIALS.replace("epochs = 2 }", "epochs = 150 }"))
    started = time.perf_counter()
    run(path, tmp_path / "store", stack=3, only={"recipe": ["dense"]})
    elapsed = time.perf_counter() - started
    found = [json.loads(file.read_text()) for file in (tmp_path / "store").glob("results/*/provenance.json")]
    seconds = [fact["seconds"] for fact in found if fact.get("stack") == 3]
    assert len(seconds) == 3 and elapsed / 3 < sum(seconds) < elapsed


def test_trainings_wait_for_what_may_join_them(tmp_path: Path) -> None:
    plan = api.plan(write(tmp_path, TRIALS), device="cpu")
    picker = Stacks(plan, FOUND, 2)
    dense = [stage.key for stage in stages(plan, "train") if stage.inputs.keys() == {"weights"}]
    init = stages(plan, "init")[0].key
    ready = [*dense[:3], init]
    assert picker.take(ready, lambda key: True) == [init], "what is no training goes first"
    assert picker.take(ready, lambda key: True) == [dense[2], dense[1]] and ready == [dense[0]]
    ready.append(dense[2])
    picker.apart.add(dense[2])
    assert picker.take(ready, lambda key: True) == [dense[2]] and ready == [dense[0]]
    assert picker.take(ready, lambda key: False) == [] and ready == []
