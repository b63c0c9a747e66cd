"""Adversarial examples kept as evidence: float32, every bit, compressed as they are found, a few hundred in memory at a time.

What is stored of an example is how far the bits of its numbers, read as integers, are from those of the clean image: many numbers are
equal or moved by the same step. The four bytes of the distances are stored apart (a byte plane changes little from pixel to pixel) and
deflated. A packed shelf is deterministic: tensors `ids`, int64 (m,); `ends`, int64 (chunks,), where each chunk of `ROWS` examples ends
in `bytes`, uint8. Only who has the clean images can read it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

ROWS = 256
"""Examples that are compressed together."""
LEVEL = 6


class Shelf:
    """Collects adversarial examples in any order."""

    def __init__(self) -> None:
        self.ids = torch.zeros(0, dtype=torch.int64)
        self.moved = torch.zeros(0)
        """Distances, int32 (m, d), not compressed yet: those of the last ids."""
        self.chunks: list[Tensor] = []

    def add(self, ids: Tensor, x: Tensor, x_adv: Tensor) -> None:
        """ids int64 (m,); clean and adversarial images float32 (m, c, h, w)."""
        moved = (_bits(x_adv) - _bits(x)).cpu()
        self.ids = torch.cat([self.ids, ids.cpu()])
        self.moved = torch.cat([self.moved, moved]) if len(self.moved) else moved
        while len(self.moved) >= ROWS:
            self.chunks.append(_deflated(self.moved[:ROWS]))
            self.moved = self.moved[ROWS:].clone()

    def tensors(self) -> dict[str, Tensor]:
        """The packed shelf."""
        chunks = [*self.chunks, _deflated(self.moved)] if len(self.moved) else self.chunks
        ends = torch.tensor([len(chunk) for chunk in chunks], dtype=torch.int64).cumsum(0)
        return {"ids": self.ids, "ends": ends, "bytes": torch.cat(chunks) if chunks else torch.zeros(0, dtype=torch.uint8)}

    def state_dict(self) -> dict[str, Any]:
        return {"ids": self.ids, "moved": self.moved, "chunks": list(self.chunks)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.ids, self.moved, self.chunks = saved["ids"], saved["moved"], list(saved["chunks"])


def unpacked(tensors: dict[str, Tensor], clean: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, adversarial examples) of a packed shelf, chunk by chunk; `clean` gives the images of these ids.

    ValueError, one sentence, where it is no packed shelf.
    """
    ids, ends, content = _shelf(tensors)
    start = 0
    for number, end in enumerate(ends.tolist()):
        here = ids[number * ROWS : (number + 1) * ROWS]
        x = clean(here)
        yield here, _inflated(content[start:end], x)
        start = end


def _shelf(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    wanted = {"ids": torch.int64, "ends": torch.int64, "bytes": torch.uint8}
    if tensors.keys() != wanted.keys():
        raise ValueError(f"it holds {', '.join(sorted(tensors))}, not {', '.join(wanted)}")
    for name, dtype in wanted.items():
        if tensors[name].dtype != dtype or tensors[name].dim() != 1:
            raise ValueError(f'its "{name}" is {tensors[name].dtype} {tuple(tensors[name].shape)}, not {dtype} in one row')
    ids, ends, content = (tensors[name] for name in wanted)
    steps = [0, *ends.tolist()]
    if len(ends) != -(-len(ids) // ROWS) or steps != sorted(steps) or steps[-1] != len(content):
        raise ValueError("its chunks do not add up")
    return ids, ends, content


def _bits(x: Tensor) -> Tensor:
    return x.detach().float().contiguous().view(torch.int32).flatten(1)


def _deflated(moved: Tensor) -> Tensor:
    planes = moved.contiguous().view(torch.uint8).view(-1, 4).t().contiguous()
    return torch.frombuffer(bytearray(zlib.compress(planes.numpy().tobytes(), LEVEL)), dtype=torch.uint8)


def _inflated(content: Tensor, x: Tensor) -> Tensor:
    """The images that were `_deflated`, from clean ones (m, c, h, w)."""
    size = x.numel() * 4
    try:
        stream = zlib.decompressobj()
        planes = stream.decompress(content.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise ValueError(f"a chunk cannot be read: {error}") from None
    if len(planes) != size or not stream.eof:
        raise ValueError(f"a chunk holds {len(planes)} bytes or more, not the {size} of {len(x)} images of shape {tuple(x.shape[1:])}")
    moved = torch.frombuffer(bytearray(planes), dtype=torch.uint8).view(4, -1).t().contiguous().view(torch.int32)
    return (_bits(x.cpu()) + moved.view(len(x), -1)).view(torch.float32).view(x.shape).to(x.device)
