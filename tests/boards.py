"""Hand-made plans and stores for tests of the board and of what shows it."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from rtbench.engine.state import pack
from rtbench.planning.plan import Plan, Point, Stage
from rtbench.planning.suite import Suite
from rtbench.ranking.board import Board, make
from rtbench.storage.index import Index
from rtbench.storage.store import Store

ACCURACY = {"use": "accuracy", "version": 1, "knobs": {"attack": {"use": "none", "version": 1, "knobs": {}}, "split": "test"}}
DENSITY = {"use": "density", "version": 1, "knobs": {}}


def attacked(use: str, eps: str, norm: str = "linf", **knobs: Any) -> dict[str, Any]:
    """A resolved accuracy probe under an attack."""
    attack = {"use": use, "version": 1, "knobs": {"norm": norm, "eps": eps}}
    return {"use": "accuracy", "version": 1, "knobs": {"attack": attack, **knobs}}


def suite(probes: dict[str, dict[str, Any]], **changes: Any) -> Suite:
    named = {name: {"use": part["use"]} for name, part in probes.items()}
    empty = Suite("made.toml", "made", 1, "images", {}, {"sparse": {"steps": [{}]}}, named, {}, {}, [])
    return replace(empty, **changes)


class Made:
    """A plan and a store that grow state by state. probes: resolved parts by name."""

    def __init__(self, path: Path, probes: dict[str, dict[str, Any]], **changes: Any) -> None:
        self.parts, self.store, self.path = probes, Store(path), path
        self.plan = Plan(suite(probes, **changes))

    def stage(self, verb: str, part: dict[str, Any], seed: int, **inputs: str) -> Stage:
        data, net = {"use": "images", "version": 1, "knobs": {}, "digest": "0"}, {"use": "mlp", "version": 1, "knobs": {}}
        stage = Stage(verb, part, data, net, seed, inputs)
        self.plan.add(stage)
        return stage

    def state(
        self, recipe: str, cell: dict[str, Any], trial: int, order: int = 0, probes: list[str] | None = None,
        step: int | str | None = None, round: int | None = None,
    ) -> Point:  # fmt: skip
        """Adds one measured state: an init, a train stage and its probes, none of them done."""
        init = self.stage("init", {"use": "mlp", "version": 1, "knobs": {"recipe": recipe, "cell": str(cell)}}, trial)
        train = self.stage("train", {"use": "sgd", "version": 1, "knobs": {"order": order}}, trial, weights=init.key)
        keys = {name: self.stage("probe", {**self.parts[name]}, hash_of(name), weights=train.key).key for name in probes or self.parts}
        point = Point(recipe, cell, trial, order + 1 if step is None else step, order if round is None else round, order, train.key, keys)
        self.plan.points.append(point)
        return point

    def put(
        self, key: str, numbers: dict[str, float | None], flags: list[str] | None = None, about: dict[str, Any] | None = None,
        files: dict[str, bytes] | None = None,
    ) -> None:  # fmt: skip
        """Stores a result of a stage of the plan."""
        record = {
            "stage": self.plan.stages[key].described(), "records": [[0, name, value] for name, value in numbers.items()],
            "flags": flags or [], "about": about or {}, "passes": {"forwards": 0, "gradients": 0},
        }  # fmt: skip
        with mock.patch("os.fsync"):  # hundreds of results in a folder that does not outlive the test
            self.store.put(key, record, {"seconds": 1.0}, files or {})

    def share(self, key: str, value: float, samples: int = 400, flags: list[str] | None = None, **subs: float) -> None:
        """Stores an accuracy over some test samples."""
        self.put(key, {"": value, **subs}, flags, {"split": "test", "samples": samples})

    def verdicts(self, key: str, ids: list[int], robust: list[int], flags: list[str] | None = None) -> None:
        """Stores an accuracy with a bit per sample."""
        columns = {
            "ids": torch.tensor(ids),
            "robust": torch.tensor(robust, dtype=torch.uint8),
            "clean": torch.ones(len(ids), dtype=torch.uint8),
        }
        about = {"split": "test", "samples": len(ids)}
        self.put(key, {"": sum(robust) / len(robust)}, flags, about, {"samples.safetensors": pack(columns)})

    def board(self, **meta: str) -> Board:
        index = Index(self.store)
        try:
            return make(self.plan, self.store, index, meta)
        finally:
            index.close()


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def quick(path: Path, trials: int = 2, **changes: Any) -> Made:
    """Like the quick suite: dense and pruned, two networks, two adversaries, three pruners, three drops; all done."""
    probes = {"density": DENSITY, "clean": ACCURACY, "fgsm": attacked("fgsm", "1/10"), "pgd": attacked("pgd", "1/10"),
              "aa": attacked("autoattack-official", "1/10")}  # fmt: skip
    axes = {"net": ["mlp", "lenet"], "adversary": ["none", "pgd"], "pruner": ["global", "layer", "random"], "drop": [0.8, 0.9, 0.98]}
    recipes = {"dense": {"steps": [{}]}, "sparse": {"steps": [{}]}}
    board = {"rank": ["aa", "pgd"], **changes.pop("board", {})}
    made = Made(path, probes, name="quick", axes=axes, recipes=recipes, trials=trials, board=board, **changes)
    draw = random.Random(0)
    cells: list[tuple[str, dict[str, Any]]] = []
    for net in axes["net"]:
        for adversary in axes["adversary"]:
            cells.append(("dense", {"net": net, "adversary": adversary}))
            kinds = itertools.product(axes["pruner"], axes["drop"])
            cells += [("sparse", {"net": net, "adversary": adversary, "pruner": pruner, "drop": drop}) for pruner, drop in kinds]
    for recipe, cell in cells:
        for trial in range(trials):
            fill(made, recipe, cell, trial, draw)
    return made


def fill(made: Made, recipe: str, cell: dict[str, Any], trial: int, draw: random.Random) -> None:
    strong, drop = cell["adversary"] == "pgd", cell.get("drop", 0.0)
    aa = strong and (recipe == "dense" or (drop == 0.9 and cell["pruner"] != "layer"))
    point = made.state(recipe, cell, trial, probes=[name for name in made.parts if name != "aa" or aa])
    weak = 0.4 if cell.get("pruner") == "random" else 0.12
    clean = max(0.1, 0.97 - weak * drop**6 + draw.gauss(0, 0.006) - 0.02 * strong)
    pgd = max(0.02, (0.78 if strong else 0.28) - 1.6 * weak * drop**8 + draw.gauss(0, 0.012) + 0.03 * (cell["net"] == "lenet"))
    chance = drop == 0.98 and cell["pruner"] == "random" and trial == 0 and cell["net"] == "mlp"
    flags = ["chance-level"] if chance else []
    made.put(point.probes["density"], {"": 1 - drop, "all": 1.01 - drop, "layer.0.weight": 1 - drop})
    made.share(point.probes["clean"], 0.11 if chance else clean, 397, flags)
    made.share(point.probes["fgsm"], 0.1 if chance else pgd + 0.06, 397, flags)
    made.share(point.probes["pgd"], 0.1 if chance else pgd, 397, flags + (["masked-gradient"] if recipe == "dense" and not strong else []))
    if aa:
        made.share(point.probes["aa"], pgd - 0.02, 128, **{"apgd-ce": pgd - 0.005})


def tickets(path: Path, trials: int = 3, rounds: int = 12) -> Made:
    """Like the tickets suite: one recipe, many rounds, some of it published, some failed."""
    probes = {"sparsity": {"use": "sparsity", "version": 1, "knobs": {}}, "clean": ACCURACY, "pgd": attacked("pgd", "3/10")}
    where = {"strategy": "init", "adversary": "pgd", "round": 3}
    published = [{"where": where, "probe": "pgd", "value": 0.894, "source": "arXiv:1912.02386, Fig. 2", "caveat": "read off a plot"}]
    axes = {"adversary": ["none", "fgsm", "pgd"], "strategy": ["init", "fresh", "last"]}
    made = Made(path, probes, name="tickets", axes=axes, trials=trials, published=published, recipes={"ticket": {"steps": [{}]}})
    draw = random.Random(1)
    for a, adversary in enumerate(axes["adversary"]):
        for s, strategy in enumerate(axes["strategy"]):
            for trial in range(trials):
                for order in range(rounds):
                    point = made.state("ticket", {"adversary": adversary, "strategy": strategy}, trial, order)
                    kept = 0.8**order
                    if adversary == "fgsm" and strategy == "last" and trial == 1 and order == rounds - 1:
                        made.store.put_failure(point.key, 'trainer "sgd" raised ValueError: the loss is not finite at step 120', "")
                        continue
                    made.put(point.probes["sparsity"], {"": 1 - kept})
                    made.share(point.probes["clean"], 0.985 - 0.01 * s - 0.02 * (1 - kept) ** 30 + draw.gauss(0, 0.001), 10000)
                    made.share(point.probes["pgd"], 0.1 + a * 0.4 - 0.03 * s - 0.2 * (1 - kept) ** 20 * a + draw.uniform(0, 0.03), 10000)
    return made
