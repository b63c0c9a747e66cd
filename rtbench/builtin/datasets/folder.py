"""Any folder of images with one subfolder per class, ImageNet included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from rtbench.builtin.datasets.common import Loaded, Seed, with_split
from rtbench.builtin.datasets.images import ENDINGS, decode_image
from rtbench.data.sampling import portion
from rtbench.data.splits import Images, Split, Stream, carve, interleave
from rtbench.errors import UserError, unknown
from rtbench.parts.knobs import Range

NAMES = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}


@with_split(valid=None)
def image_folder(
    root: Path,
    *,
    folder: str,
    size: Annotated[int, Range("[1, inf)")],
    shorter: Annotated[int, Range("[1, inf)")] | None = None,
    channels: Literal[1, 3] = 3,
    test: Annotated[float, Range("(0, 1)")] | None = None,
    test_rule: Literal["first", "last", "random"] = "last",
    split_seed: Seed = 0,
    memory_mb: Annotated[int, Range("[0, inf)")] = 2048,
    workers: Annotated[int, Range("[0, inf)")] = 0,
) -> Loaded:
    """Images in `train/CLASS/`, `valid/CLASS/` (or `val`) and `test/CLASS/`, or all of them in `CLASS/`; classes in order of name.

    Files count in an order that spreads every class evenly, by name within a class, so a split by `first` or `last` is stratified.
    They are decoded once where they fit the memory, else streamed: a stream's digest is over names, sizes and labels, not pixels.

    folder: the folder of images, absolute or inside the data folder
    size: pixels per side that the model sees: the centre of a larger image
    shorter: pixels to which the shorter side is scaled before the centre is cut out; left out, it is `size`
    channels: 3 for colour, 1 for grey
    test: share of the training samples held out as the test set, rounded down; left out, the test folder or else a fifth
    test_rule: which training samples are held out as the test set
    split_seed: seeds the random choices of this split; the same in every trial
    memory_mb: decoded images are kept in memory up to this many MiB in total, and streamed beyond
    workers: threads that decode a stream; 0 is one per processor
    """
    if shorter is not None and shorter < size:
        raise UserError(f"image-folder: a shorter side of {shorter} pixels is less than the size {size}")
    top = root / folder
    decode, shape = partial(decode_image, size=size, shorter=shorter, channels=channels), (channels, size, size)
    splits: dict[str, Images] = {}
    for split, (names, y) in _scan(top).items():
        splits[split] = Stream(top, names, y, torch.arange(len(y)), shape, decode, workers=workers)
    count = int(splits["train"].y.max()) + 1
    if "test" in splits and test is not None:
        raise UserError(f"image-folder: {top} has its own test folder; leave out the knob test")
    if "test" not in splits:
        held = portion(0.2 if test is None else test, len(splits["train"]))
        splits["train"], splits["test"] = carve(splits["train"], held, test_rule, split_seed)
    if sum(map(len, splits.values())) * channels * size**2 <= memory_mb * 2**20:
        splits = {name: decoded(split) for name, split in splits.items()}
    return Loaded(splits["train"], splits["test"], count, valid=splits.get("valid"))


def decoded(split: Images) -> Split:
    """The same samples in memory, with their pixels decoded."""
    x = torch.empty((len(split), *split.shape), dtype=torch.uint8)
    groups = torch.split(torch.arange(len(split)), 256)
    for here, images in zip(groups, split.raw(groups), strict=True):
        x[here] = images
    return Split(x, split.y, split.ids)


def _scan(top: Path) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """Per split found under `top`: the images' paths relative to it and their labels, the classes being those of the train split."""
    if not top.is_dir():
        raise UserError(f"image-folder: there is no folder {top}; a relative one is looked for in the data folder, set RTBENCH_DATA")
    subfolders = _subfolders(top)
    places = {name: top / found for name, choices in NAMES.items() for found in choices if found in subfolders}
    if places and "train" not in places:
        raise UserError(f"image-folder: {top} has a folder {' and '.join(places)}, but none named train")
    places = places or {"train": top}
    classes = _subfolders(places["train"])
    if len(classes) < 2:
        raise UserError(f"image-folder: {places['train']} has {len(classes)} subfolders; there must be one for each class")
    return {name: _list(top, place, classes) for name, place in places.items()}


def _list(top: Path, place: Path, classes: list[str]) -> tuple[tuple[str, ...], Tensor]:
    files: list[str] = []
    labels: list[int] = []
    for name in _subfolders(place):
        if name not in classes:
            raise unknown("class", name, classes, f"image-folder: {place}")
        found = sorted(_images(top, place / name))
        if not found:
            raise UserError(f"image-folder: {place / name} has no images ({', '.join(ENDINGS)})")
        files += found
        labels += [classes.index(name)] * len(found)
    y = torch.tensor(labels, dtype=torch.int64)
    order = interleave(y)
    return tuple(files[i] for i in order.tolist()), y[order]


def _images(top: Path, folder: Path) -> Iterator[str]:
    """Every image below `folder`, as a path relative to `top` with forward slashes; what begins with a dot is left out."""
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        prefix = Path(place).relative_to(top).as_posix()
        yield from (f"{prefix}/{name}" for name in files if name.lower().endswith(ENDINGS) and not name.startswith("."))


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
