"""What all built-in data sets share: the split knobs, the checks on what was loaded, and the sentences for files that are amiss."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch

from rtbench import keys
from rtbench.data.splits import Data, Images, carve, fraction
from rtbench.errors import UserError
from rtbench.parts.knobs import Range, knobs_of

Seed = Annotated[int, Range("[0, 4294967295]")]


class Loaded(NamedTuple):
    """A data set as its authors split it. valid: their own validation split, if they made one. extra: more training samples."""

    train: Images
    test: Images
    classes: int
    valid: Images | None = None
    extra: Images | None = None


def finish(
    loaded: Loaded,
    *,
    valid: Annotated[int, Range("[1, inf)")] | None = None,
    valid_rule: Literal["first", "last", "random"] = "last",
    split_seed: Seed = 0,
    share: Annotated[float, Range("(0, 1]")] = 1.0,
    share_rule: Literal["random", "first", "stratified"] = "random",
    augment: Literal["none", "pad-crop", "pad-crop-flip"] = "none",
) -> Data:
    """Checks what was loaded, holds out the validation split, then keeps a share of the training samples; UserError if impossible.

    valid: training samples held out for validation; left out, the data's own validation split or else a tenth of the training samples
    valid_rule: which training samples are held out
    split_seed: seeds the random choices of this split; the same in every trial
    share: share of the training samples that is kept after holding out, rounded down
    share_rule: which training samples are kept
    augment: what trainers do to training images: pad-crop pads with black and crops a random window, pad-crop-flip mirrors half of them
    """
    _verify(loaded)
    train, held = loaded.train, loaded.valid
    if held is None:
        train, held = carve(train, max(1, len(train) // 10) if valid is None else valid, valid_rule, split_seed)
    elif valid is not None:
        raise UserError(f"this data set has its own validation split of {len(held)} samples; leave out the knob valid")
    train = replace(fraction(train, share, share_rule, split_seed), augment=augment)
    extra = None if loaded.extra is None else replace(loaded.extra, augment=augment)
    return Data(train, held, loaded.test, extra, train.shape, loaded.classes)


def with_split(*, valid: int | None) -> Callable[[Callable[..., Loaded]], Callable[..., Data]]:
    """Makes a data set part of a loader, f(...) -> Loaded, by adding the knobs of `finish` to its own, with this default of `valid`.

    A loader that declares one of these knobs itself is given its value too. A set without a validation split of its own needs a number.
    """

    def decorate(load: Callable[..., Loaded]) -> Callable[..., Data]:
        signature, shared = inspect.signature(load, eval_str=True), dict(knobs_of(finish))
        shared["valid"] = shared["valid"]._replace(default=valid)
        if valid is not None:
            shared["valid"] = shared["valid"]._replace(annotation=Annotated[int, Range("[1, inf)")])

        @wraps(load)
        def dataset(*args: Any, **given: Any) -> Data:
            split = {name: given.get(name, knob.default) for name, knob in shared.items()}
            own = {name: value for name, value in given.items() if name in signature.parameters or name not in shared}
            return finish(load(*args, **own), **split)

        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=knob.default, annotation=knob.annotation)
            for name, knob in shared.items()
            if name not in signature.parameters
        ]
        parameters = [*signature.parameters.values(), *added]
        dataset.__signature__ = signature.replace(parameters=parameters, return_annotation=Data)  # type: ignore[attr-defined]
        dataset.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": Data}
        help = "\n".join(f"{name}: {knob.help}" for name, knob in shared.items() if name not in signature.parameters)
        dataset.__doc__ = f"{inspect.getdoc(load)}\n{help}"
        return dataset

    return decorate


def missing(name: str, path: Path, download: str = "") -> UserError:
    """The sentence for a file that is not there. download: the name under which `rtbench data` gets it, if it can."""
    remedy = f"get it with `rtbench data {download} --download`, or set" if download else "set"
    return UserError(f"{name}: there is no {path.name} in {path.parent}; {remedy} RTBENCH_DATA to the folder that has the data sets")


def damaged(name: str, path: Path, why: str) -> UserError:
    """The sentence for a file that is there and is not what it should be."""
    return UserError(f"{name}: {path} {why}; delete it and get it again")


def _verify(loaded: Loaded) -> None:
    """Equal shapes, at least one sample and labels in 0..classes-1 in every split."""
    for name in ("train", "test", "valid", "extra"):
        split: Images | None = getattr(loaded, name)
        if split is None:
            continue
        if not len(split):
            raise UserError(f"the {name} split is empty")
        if split.shape != loaded.train.shape:
            raise UserError(f"the {name} images have shape {split.shape} and the train images {loaded.train.shape}")
        low, high = int(split.y.min()), int(split.y.max())
        if low < 0 or high >= loaded.classes:
            raise UserError(f"the {name} split has labels from {low} to {high}, but there are {loaded.classes} classes, 0 and up")


def seeded(*parts: str | int) -> torch.Generator:
    """A CPU generator for a fixed order, seeded by these words and by nothing else."""
    return torch.Generator().manual_seed(keys.seed(*parts))
