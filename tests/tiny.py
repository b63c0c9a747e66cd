"""A tiny catalogue, a tiny suite and a TOML writer, for tests of planning: the parts here are never called."""

from __future__ import annotations

import copy
import datetime
import json
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pluggy

from rtbench import hookspecs, plugins
from rtbench.hookspecs import hookimpl
from rtbench.parts.kinds import declare
from rtbench.parts.knobs import Attack, Objective, OneOf, Probe, Range
from rtbench.planning import suite
from rtbench.planning.plan import Plan, Stage, expand
from rtbench.plugins import Catalogue

Amount = OneOf("amount")
Length = OneOf("length")


def images(root: Any, *, valid: Annotated[int, Range("[1, inf)")] = 10) -> Any: ...


def mlp(shape: Any, classes: Any, *, hidden: Annotated[list[int], Range("[1, inf)")] = [8], bias: bool = True) -> Any: ...  # noqa: B006


def cnn(shape: Any, classes: Any, *, width: int = 4) -> Any: ...


def none(x: Any) -> Any: ...


def fgsm(model: Any, x: Any, y: Any, threat: Any) -> Any: ...


def pgd(model: Any, x: Any, y: Any, threat: Any, noise: Any, *, steps: Annotated[int, Range("[1, inf)")] = 10) -> Any: ...


def plain(model: Any, x: Any, y: Any, *, smooth: Annotated[float, Range("[0, 1)")] = 0.0) -> Any: ...


def robust(model: Any, x: Any, y: Any, *, attack: Attack = "none", weight: Annotated[Fraction, Range("[0, 1]")] = Fraction(1)) -> Any: ...


def both(model: Any, x: Any, y: Any, *, objectives: list[Objective]) -> Any:
    """objectives: the ones to add up"""


def _snapshots(knobs: dict[str, Any]) -> None:
    if "last" in knobs["snapshots"]:
        raise ValueError('a snapshot cannot be called "last"')


@declare(version=1, check=_snapshots)
def sgd(
    model: Any, masks: Any, data: Any, *, objective: Objective = "plain", lr: Annotated[float, Range("(0, inf)")] = 0.1,
    optimizer: Literal["sgd", "adam"] = "sgd", epochs: Annotated[int | None, Range("[1, inf)"), Length] = None,
    steps: Annotated[int | None, Range("[1, inf)"), Length] = None, probes: dict[str, Probe] = {},  # noqa: B006
    snapshots: list[str] = [],  # noqa: B006
) -> Any: ...  # fmt: skip


def magnitude(
    model: Any, masks: Any, *, drop: Annotated[float | None, Range("[0, 1)"), Amount] = None,
    count: Annotated[int | None, Range("[0, inf)"), Amount] = None, exclude: tuple[str, ...] = (),
) -> Any: ...  # fmt: skip


def chance(model: Any, masks: Any, rng: Any, *, drop: Annotated[float, Range("[0, 1)")] = 0.5) -> Any: ...


def snip(model: Any, masks: Any, data: Any, *, drop: Annotated[float, Range("[0, 1)")], objective: Objective = "plain") -> Any:
    """drop: share of the weights to prune"""


def accuracy(
    model: Any, data: Any, loop: Any, *, attack: Attack = "none", samples: Annotated[int | None, Range("[1, inf)")] = None
) -> Any: ...


def density(model: Any, masks: Any) -> Any: ...


PARTS: dict[str, dict[str, Callable[..., Any]]] = {
    "datasets": {"images": images}, "architectures": {"mlp": mlp, "cnn": cnn}, "attacks": {"none": none, "fgsm": fgsm, "pgd": pgd},
    "objectives": {"plain": plain, "robust": robust, "both": both}, "trainers": {"sgd": sgd},
    "pruners": {"magnitude": magnitude, "random": chance, "snip": snip}, "probes": {"accuracy": accuracy, "density": density},
}  # fmt: skip

SUITE: dict[str, Any] = {
    "data": "images",
    "axes": {"adversary": ["none", "pgd"], "drop": [0.5, 0.9]},
    "recipes": {
        "dense": {"steps": [{"init": "net"}, {"train": "fit"}]},
        "sparse": {
            "steps": [{"init": "net"}, {"train": "fit"}, {"prune": "cut", "drop": "$drop"}, {"rewind": "init"}, {"train": "fit"}],
        },
    },
    "probes": {"clean": {"use": "accuracy", "at": "last"}, "pgd": {"use": "accuracy", "attack": "pgd", "at": "last"}},
    "parts": {
        "images": {"use": "images"},
        "net": {"use": "mlp", "hidden": [4]},
        "pgd": {"use": "pgd", "norm": "linf", "eps": "3/10"},
        "loss": {"use": "robust", "attack": "$adversary"},
        "fit": {"use": "sgd", "objective": "loss", "epochs": 2},
        "cut": {"use": "magnitude"},
    },
    "profiles": {"smoke": {"parts.fit.epochs": 1}},
}


def hooks(name: str, parts: dict[str, Any]) -> ModuleType:
    """A plugin module whose hooks return these parts, e.g. {"pruners": {"name": function}}."""
    module = ModuleType(name)
    for kinds, functions in parts.items():
        vars(module)[f"rtbench_{kinds}"] = hookimpl(_returning(functions))
    return module


def _returning(value: Any) -> Callable[[], Any]:
    def hook() -> Any:
        return value

    return hook


def catalogue(parts: dict[str, dict[str, Any]] | None = None) -> Catalogue:
    """The tiny parts, with those of `parts` in their place or beside them; nothing else."""
    found = Catalogue(pluggy.PluginManager("rtbench"))
    found.manager.add_hookspecs(hookspecs)
    merged = {kinds: {**functions, **(parts or {}).get(kinds, {})} for kinds, functions in PARTS.items()}
    plugins._add(found, hooks("tiny", merged), "tiny", "tiny", "1")
    return found


def changed(changes: dict[str, Any], raw: dict[str, Any] = SUITE) -> dict[str, Any]:
    """The suite with entries set by dotted path, or removed where the new value is `...`; numbers are places in lists."""
    raw = copy.deepcopy(raw)
    for dotted, value in changes.items():
        *parents, last = [int(word) if word.isdigit() else word for word in dotted.split(".")]
        here: Any = raw
        for word in parents:
            here = here[word] if isinstance(here, list) else here.setdefault(word, {})
        if value is ...:
            del here[last]
        else:
            here[last] = value
    return raw


def write(folder: Path, raw: dict[str, Any] | str) -> str:
    """The path of a suite file in `folder` with this content."""
    path = folder / "tiny.toml"
    path.write_text(raw if isinstance(raw, str) else toml(raw), encoding="utf-8")
    return str(path)


def plan(
    folder: Path, changes: dict[str, Any] | None = None, *, raw: dict[str, Any] = SUITE, found: Catalogue | None = None,
    digests: Callable[[dict[str, Any], str], str] = lambda part, where: "d", only: dict[str, list[str]] | None = None,
    profile: str | None = None, overrides: Iterable[str] = (), trials: int | None = None,
) -> Plan:  # fmt: skip
    """The plan of the tiny suite with these changes, written to a file and read back."""
    loaded = suite.load(write(folder, changed(changes or {}, raw)), profile, overrides, trials)
    return expand(loaded, found or catalogue(), digests, only)


def of(plan: Plan, verb: str) -> list[Stage]:
    """The stages of one verb, in plan order."""
    return [stage for stage in plan.stages.values() if stage.verb == verb]


def cells(plan: Plan, recipe: str) -> list[dict[str, Any]]:
    """The cells of a recipe, in the order of the points."""
    found = [point.cell for point in plan.points if point.recipe == recipe and point.trial == 0]
    return [cell for i, cell in enumerate(found) if cell not in found[:i]]


def chain(plan: Plan, key: str) -> list[str]:
    """The verbs of the stages that lead to a key along the weights, itself last."""
    stage = plan.stages[key.split("/")[0]]
    return [*(chain(plan, stage.inputs["weights"]) if stage.inputs else []), stage.verb]


def toml(table: dict[str, Any]) -> str:
    """A TOML document: one line per top-level entry."""
    return "".join(f"{_key(name)} = {_value(value)}\n" for name, value in table.items())


def _key(name: str) -> str:
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return _key(value) if isinstance(value, str) else json.dumps(value)
