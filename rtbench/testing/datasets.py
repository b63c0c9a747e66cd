"""The contract of datasets: f(root) -> Data."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rtbench.commands.study import data_root
from rtbench.data.splits import Data, Images, Split, batches, data_digest, take
from rtbench.errors import UserError
from rtbench.evaluation.guard import own_randomness
from rtbench.testing.result import Skip, need
from rtbench.testing.sample import Subject

FEW = 256
"""Images of a stream that are decoded for a look; a split in memory is looked at whole."""


def load(subject: Subject, seed: int = 0) -> Data:
    part = subject.binder().part("dataset", subject.resolve())
    with own_randomness(seed):
        found: Data = part(root=Path(data_root(None)))
    return found


def prepare(subject: Subject) -> None:
    """Skip where the files of the dataset are not on this machine."""
    try:
        _loaded(subject)
    except UserError as error:
        raise Skip(str(error)) from None


def _loaded(subject: Subject) -> Data:
    return subject.once("data", lambda: load(subject))


def _splits(subject: Subject) -> dict[str, Images]:
    found = _loaded(subject)
    need(isinstance(found, Data), f"it returns {type(found).__name__}, not rtbench.Data")
    return {name: split for name in ("train", "valid", "test", "extra") if (split := getattr(found, name)) is not None}


def complete(subject: Subject) -> None:
    """It has train, valid and test splits, none of them empty."""
    splits = _splits(subject)
    for name in ("train", "valid", "test"):
        need(name in splits and len(splits[name]), f"there is no {name} split, or nothing in it")


def images(subject: Subject) -> None:
    """Images are read as float32 (n, c, h, w) in [0, 1], of the shape it declares."""
    shape = tuple(_loaded(subject).shape)
    for name, split in _splits(subject).items():
        whole = isinstance(split, Split)
        order = None if whole else torch.arange(min(FEW, len(split)))
        for x, _ in batches(split, 2048, order):
            need(x.dtype == torch.float32, f"{name} images are {x.dtype}")
            need(x.shape[1:] == shape, f"{name} images have shape {tuple(x.shape[1:])}, not {shape}")
            need(bool(((x >= 0) & (x <= 1)).all()), f"{name} images have values from {float(x.min()):g} to {float(x.max()):g}")
        x, y = take(split, torch.tensor([len(split) - 1, 0]))
        need(x.shape == (2, *shape) and torch.equal(y.cpu(), split.y.cpu()[[-1, 0]]), f"take gives other {name} samples than asked for")


def labels(subject: Subject) -> None:
    """Labels are int64 (n,), from 0 to the number of classes less one."""
    classes = _loaded(subject).classes
    need(isinstance(classes, int) and classes > 1, f"it declares {classes} classes")
    for name, split in _splits(subject).items():
        need(split.y.dtype == torch.int64 and split.y.shape == (len(split),), f"{name} labels are {split.y.dtype} {tuple(split.y.shape)}")
        low, high = int(split.y.min()), int(split.y.max())
        need(low >= 0 and high < classes, f"{name} labels go from {low} to {high}, but there are {classes} classes")


def apart(subject: Subject) -> None:
    """No sample is in a split twice, or both in train and in valid."""
    splits = _splits(subject)
    for name, split in splits.items():
        need(_unique(split.ids) == len(split), f"{name} has ids that occur twice")
    both = torch.cat([splits["train"].ids, splits["valid"].ids])
    shared = len(both) - _unique(both)
    need(not shared, f"train and valid share {shared} ids")


def _unique(ids: Tensor) -> int:
    return len(torch.unique(ids))


def repeatable(subject: Subject) -> None:
    """Loaded again it is the same, byte for byte."""
    one, two = _loaded(subject), load(subject, seed=1)
    need(data_digest(one) == data_digest(two), "two loads have different digests")
    for name in _splits(subject):
        need(torch.equal(getattr(one, name).ids, getattr(two, name).ids), f"two loads give {name} different ids")


CHECKS = (complete, images, labels, apart, repeatable)
