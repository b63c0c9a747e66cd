"""The contract of probes: f(model, masks, data, rng, loop, history) -> numbers, on a trained and pruned network."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rtbench.engine.bind import as_measure
from rtbench.engine.loop import Loop
from rtbench.errors import UserError
from rtbench.evaluation.guard import Changed, frozen, own_randomness
from rtbench.parts.kinds import Measure, lender
from rtbench.parts.masks import ones
from rtbench.planning.borrow import lent
from rtbench.testing.lab import alike, changes, columns, data, generators, portrait, pruned, trained
from rtbench.testing.result import Broken, Skip, need
from rtbench.testing.sample import Subject
from rtbench.testing.stages import Fragile, Killed

SEED = 17
HISTORY = tuple(
    {"key": f"{number:024x}", "verb": verb, "part": part, "records": records, "forwards": passes, "gradients": passes, "seconds": 0.5}
    for number, (verb, part, passes, records) in enumerate([
        ("init", {}, 0, []),
        ("train", {"use": "sgd", "version": 1, "knobs": {}}, 512,
         [[8, "epoch", 1.0], [8, "loss", 1.5], [16, "epoch", 2.0], [16, "loss", 0.5]]),
        ("prune", {"use": "magnitude", "version": 1, "knobs": {}}, 0, []),
    ])
)  # fmt: skip
"""What led to the network: stages as the engine lists them."""


class Look(NamedTuple):
    """One measurement, and what it left changed."""

    returned: Any
    touched: list[str]
    borders: int


def prepare(subject: Subject) -> None:
    """Skip where it says that it cannot measure this network or on these data."""
    try:
        _first(subject)
    except UserError as error:
        raise Skip(str(error)) from None


def look(subject: Subject, file: Path | None = None, dies_at: int | None = None) -> Look:
    """One measurement as the engine makes it; Killed if it came to that border of the loop."""
    model = trained()
    masks, found, rng = pruned(model), data(), torch.Generator().manual_seed(SEED)
    loop = Fragile(dies_at, rng=rng, file=file)
    masks_before, data_before = {name: mask.clone() for name, mask in masks.items()}, columns(found)
    part = subject.binder(SEED, rng=rng, data=found, history=HISTORY).part("probe", subject.resolve())
    held = subject.once("borrowed", lambda: borrowed(subject))
    held_before = copy.deepcopy(held)
    with own_randomness(SEED):
        random = generators()
        try:
            with frozen(model):
                before = portrait(model)
                returned = part(model=model, masks=masks, data=found, rng=rng, loop=loop, history=HISTORY, **held)
                touched = changes(before, portrait(model))
        except Changed as error:
            raise Broken(str(error)) from error
        touched += [] if alike(random, generators()) else ["the state of a global generator"]
    touched += [] if alike(masks_before, masks) else ["the masks"]
    touched += [] if alike(data_before, columns(found)) else ["the data"]
    touched += [] if alike(held_before, held) else ["what it was given of other runs"]
    return Look(returned, touched, loop.borders)


def borrowed(subject: Subject) -> dict[str, Any]:
    """What a probe that borrows is given: of two other networks, and of the measured one."""
    if lender(subject.part.function) is None:
        return {}

    def samples(keep: float | None, own: bool = False) -> dict[str, Tensor]:
        model, found, rng = trained(), data(), torch.Generator().manual_seed(SEED)
        masks = ones(model) if keep is None else pruned(model, keep)
        part = subject.binder(SEED, rng=rng, data=found, history=HISTORY).part("probe", lent(subject.catalogue, subject.resolve(), own))
        with own_randomness(SEED), frozen(model):
            return as_measure(part(model=model, masks=masks, data=found, rng=rng, loop=Loop(), history=HISTORY)).samples

    dense, sparse = samples(None), samples(0.3)
    return {"source": dense, "sources": {"dense": dense, "sparse": sparse}, "own": samples(0.6, own=True)}


def _first(subject: Subject) -> Look:
    return subject.once("first", lambda: look(subject))


def _measure(subject: Subject) -> Measure:
    return as_measure(_first(subject).returned)


def numeric(subject: Subject) -> None:
    """It returns a number, a table of numbers, or a Measure; each number is finite or None."""
    returned = _first(subject).returned
    need(isinstance(returned, int | float | dict | Measure), f"it returns {type(returned).__name__}")
    numbers = _measure(subject).numbers
    need(numbers, "it returns no number at all")
    for name, value in numbers.items():
        need(isinstance(name, str), f"the name {name!r} is not a text")
        need(value is None or (isinstance(value, int | float) and math.isfinite(value)), f'"{name}" is {value!r}')


def sampled(subject: Subject) -> None:
    """Tensors it keeps per sample are of one length, with the samples' ids among them."""
    samples = _measure(subject).samples
    if not samples:
        raise Skip("it keeps nothing per sample")
    need(isinstance(samples.get("ids"), Tensor), 'there is no tensor "ids" among them')
    ids = samples["ids"]
    need(ids.dtype == torch.int64 and ids.dim() == 1 and len(ids.unique()) == len(ids), '"ids" are not different whole numbers')
    for name, tensor in samples.items():
        need(isinstance(tensor, Tensor) and tensor.shape[:1] == ids.shape, f'"{name}" is not a tensor of {len(ids)} samples')


def tidy(subject: Subject) -> None:
    """It leaves the network, its masks, the data and the global generators as they were."""
    touched = _first(subject).touched
    need(not touched, f"it changes {', '.join(touched)}")


def repeatable(subject: Subject) -> None:
    """Measured again it is the same, bit for bit; only timings may differ."""
    difference = _differing(_measure(subject), as_measure(look(subject).returned))
    need(not difference, f"its {difference} differ between two measurements")


def resumable(subject: Subject) -> None:
    """Killed in the middle of its loop and resumed, it measures the same, bit for bit."""
    borders = _first(subject).borders
    if not borders:
        raise Skip("it does not use the loop")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loop.pt"
        try:
            look(subject, file, (borders + 1) // 2)
        except Killed:
            difference = _differing(_measure(subject), as_measure(look(subject, file).returned))
        else:
            raise Broken("the second measurement comes to fewer items of its loop than the first")
    need(not difference, f"after a kill its {difference} differ")


def _differing(one: Measure, other: Measure) -> str:
    return next((name for name in ("numbers", "samples", "flags", "about") if not alike(getattr(one, name), getattr(other, name))), "")


CHECKS = (numeric, sampled, tidy, repeatable, resumable)
