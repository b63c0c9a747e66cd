"""Images that do not fit memory: paths and labels, decoded by threads while the previous batch is in use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rtbench import keys
from rtbench.errors import UserError

AHEAD = 2
"""How many batches are being decoded while one is in use."""


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, eq=False)
class Stream:
    """n images under `folder`, read like a `Split` through `take` and `batches`.

    names: (n,) paths relative to `folder`, with forward slashes. y: int64 (n,). ids: int64 (n,), positions in the original set.
    decode: path -> uint8 (c, h, w) of exactly `shape`. workers: threads that decode (decoders release the interpreter lock);
    0 is one per processor.
    """

    folder: Path
    names: tuple[str, ...]
    y: Tensor
    ids: Tensor
    shape: tuple[int, int, int]
    decode: Callable[[Path], Tensor]
    augment: str = "none"
    pad: int = 4
    workers: int = 0

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.y) == len(self.ids):
            raise ValueError(f"{len(self.names)} names, {len(self.y)} labels and {len(self.ids)} ids")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def device(self) -> torch.device:
        return self.y.device

    def to(self, device: torch.device | str) -> Stream:
        """The same stream, its batches arriving on `device`; keeps a digest already computed."""
        moved = replace(self, y=self.y.to(device), ids=self.ids.to(device))
        if "_digest" in self.__dict__:
            moved.__dict__["_digest"] = self._digest
        return moved

    def subset(self, positions: Tensor) -> Stream:
        """The samples at these positions, int64 (m,), in that order."""
        here = positions.to(self.device)
        names = tuple(self.names[i] for i in positions.tolist())
        return replace(self, names=names, y=self.y.index_select(0, here), ids=self.ids.index_select(0, here))

    def digest(self) -> str:
        """SHA-256 over the relative names, the files' sizes in bytes, the labels and the decoded shape: pixels are not read."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        sizes = [(self.folder / name).stat().st_size for name in self.names]
        rows = list(zip(self.names, sizes, self.y.tolist(), strict=True))
        return keys.digest(keys.canonical(["stream", self.shape, rows]).encode())

    def raw(self, groups: Iterable[Tensor]) -> Iterator[Tensor]:
        """uint8 (m, c, h, w) per group of positions, in order, the next `AHEAD` groups being decoded meanwhile."""
        pool = ThreadPoolExecutor(self.workers or processors())
        waiting: deque[list[Future[Tensor]]] = deque()
        try:
            for positions in groups:
                waiting.append([pool.submit(self.read, i) for i in positions.tolist()])
                if len(waiting) > AHEAD:
                    yield self._gather(waiting.popleft())
            while waiting:
                yield self._gather(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _gather(self, images: list[Future[Tensor]]) -> Tensor:
        stacked = torch.stack([image.result() for image in images]) if images else torch.empty((0, *self.shape), dtype=torch.uint8)
        return stacked.to(self.device)

    def read(self, position: int) -> Tensor:
        """One decoded image, uint8 (c, h, w) on the CPU; UserError if the file is gone or has another shape."""
        path = self.folder / self.names[position]
        if not path.is_file():
            raise UserError(f"{path} is gone")
        image = self.decode(path)
        if image.dtype != torch.uint8 or tuple(image.shape) != self.shape:
            raise UserError(f"{path} was decoded to {image.dtype} {tuple(image.shape)} instead of uint8 {self.shape}")
        return image
