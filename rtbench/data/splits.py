"""Images and labels: splits, the only two ways to read them (`take` and `batches`), digests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rtbench import keys
from rtbench.data.augment import pad_crop, pad_crop_flip
from rtbench.data.sampling import carve, choose, fraction, interleave
from rtbench.data.streams import Stream

__all__ = ["Data", "Images", "Split", "Stream", "batches", "carve", "choose", "data_digest", "fraction", "interleave", "take"]

AUGMENTS = {"pad-crop-flip": pad_crop_flip, "pad-crop": pad_crop}


@dataclass(frozen=True, eq=False)
class Split:
    """n images in memory, never changed in place.

    x: (n, c, h, w), uint8 0..255 or float32 in [0, 1]. y: int64 (n,). ids: int64 (n,), positions in the original set.
    augment: "none", "pad-crop" or "pad-crop-flip", what `batches` does to the images when asked to. pad: pixels of padding around the crop.
    uint8 is kept as it is on every device: turning a batch into floats costs no more than gathering four times the bytes would.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    augment: str = "none"
    pad: int = 4

    def __post_init__(self) -> None:
        if self.x.dim() != 4 or self.x.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"x is {self.x.dtype} {tuple(self.x.shape)}, not uint8 or float32 (n, c, h, w)")
        for name, column in (("y", self.y), ("ids", self.ids)):
            if column.dtype != torch.int64 or column.shape != (len(self.x),) or column.device != self.x.device:
                raise ValueError(f"{name} is {column.dtype} {tuple(column.shape)}, not int64 ({len(self.x)},) beside x")
        if self.augment != "none" and self.augment not in AUGMENTS:
            raise ValueError(f"augment is {self.augment!r}, not none or {', '.join(AUGMENTS)}")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.x.shape[1:]
        return c, h, w

    @property
    def device(self) -> torch.device:
        return self.x.device

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`; keeps a digest already computed."""
        moved = replace(self, x=self.x.to(device), y=self.y.to(device), ids=self.ids.to(device))
        if "_digest" in self.__dict__:
            moved.__dict__["_digest"] = self._digest
        return moved

    def subset(self, positions: Tensor) -> Split:
        """The samples at these positions, int64 (m,), in that order; a copy."""
        here = positions.to(self.device)
        x, y, ids = (column.index_select(0, here) for column in (self.x, self.y, self.ids))
        return replace(self, x=x, y=y, ids=ids)

    def digest(self) -> str:
        """SHA-256 over dtype, shape and bytes of x and of y, the same on every device; computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        chunks: list[bytes | memoryview] = []
        for column in (self.x, self.y):
            chunks.append(keys.canonical([str(column.dtype), list(column.shape)]).encode())
            chunks.append(column.detach().cpu().contiguous().view(-1).numpy().data.cast("B") if len(column) else b"")
        return keys.digest(*chunks)

    def raw(self, groups: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each group of positions, as they are stored."""
        return (self.x.index_select(0, positions) for positions in groups)


Images = Split | Stream


class Data(NamedTuple):
    """A data set. train, valid, test, extra (more training samples, such as pseudo-labelled ones): images read as [0, 1].

    shape: (c, h, w) of an image. classes: labels are 0..classes-1.
    """

    train: Images
    valid: Images
    test: Images | None
    extra: Images | None
    shape: tuple[int, int, int]
    classes: int

    def to(self, device: torch.device | str) -> Data:
        """The same data with every split on `device`."""
        test, extra = (None if split is None else split.to(device) for split in (self.test, self.extra))
        return self._replace(train=self.train.to(device), valid=self.valid.to(device), test=test, extra=extra)


def data_digest(data: Data) -> str:
    """SHA-256 over the digests of all splits, in hexadecimal; an absent split counts as such."""
    splits = (data.train, data.valid, data.test, data.extra)
    return keys.digest(keys.canonical([None if split is None else split.digest() for split in splits]).encode())


def take(split: Images, positions: Tensor) -> tuple[Tensor, Tensor]:
    """x float32 (m, c, h, w) in [0, 1] and y int64 (m,) at these positions, on the split's device; never augmented."""
    here = positions.to(split.device)
    return _floats(next(iter(split.raw([here])))), split.y.index_select(0, here)


def batches(
    split: Images,
    size: int,
    order: Tensor | None = None,
    augment: bool = False,
    rng: torch.Generator | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of up to `size` samples, as `take` gives them, at the positions of `order` (None: 0..n-1), in that order.

    augment: applies the split's own augmentation with draws from `rng`, a CPU generator; the draws of a batch are made when that
    batch is asked for, never ahead, so the generator's state at a batch border is the same whatever is prefetched.
    drop_last: leaves out a last batch that is not full.
    """
    change = augment and split.augment != "none"
    if size < 1:
        raise ValueError(f"a batch of {size} samples")
    if change and rng is None:
        raise ValueError(f"{split.augment} needs a generator")
    order = torch.arange(len(split)) if order is None else order
    order = order[: len(order) // size * size] if drop_last else order
    groups = torch.split(order.to(split.device), size) if len(order) else ()
    return _batches(split, groups, rng if change else None)


def _batches(split: Images, groups: tuple[Tensor, ...], rng: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
    for here, x in zip(groups, split.raw(groups), strict=True):
        changed = x if rng is None else AUGMENTS[split.augment](x, split.pad, rng)
        yield _floats(changed), split.y.index_select(0, here)


def _floats(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 else x.float().div_(_full_scale(x.device))


@lru_cache
def _full_scale(device: torch.device) -> Tensor:
    """255 as a tensor: by a Python number, CUDA multiplies with 1/255 instead of dividing, which rounds differently than a CPU."""
    return torch.tensor(255.0, device=device)
