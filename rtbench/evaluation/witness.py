"""Adversarial examples kept as evidence: float32, every bit, compressed as they are found, a few hundred in memory at a time.

What is stored of an example is how far the bits of its numbers, read as integers, are from those of the clean image. Many are moved by the
same step, so a number is a code: which of the up to 255 commonest distances of its chunk it has moved by, or that its distance follows.
Before deflating, a chunk of m images of d numbers is: how many codes, one byte; their distances, int32; m * d codes, uint8; the distances
that have none, as four planes of bytes. A packed shelf is deterministic: tensors `ids`, int64 (m,); `ends`, int64 (chunks,), where each
chunk of `ROWS` examples ends in `bytes`, uint8. Only who has the clean images can read it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

ROWS, CODES, LEVEL = 256, 255, 6
"""Examples that are compressed together; distances that have a code; zlib's."""


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
        self._pack()

    def _pack(self) -> None:
        while len(self.moved) >= ROWS:
            self.chunks.append(_deflated(self.moved[:ROWS]))
            self.moved = self.moved[ROWS:].clone()

    def extend(self, other: Shelf) -> None:
        """Takes what another shelf holds."""
        full, more = len(self.ids) - len(self.moved), len(other.ids) - len(other.moved)
        self.ids = torch.cat([self.ids[:full], other.ids[:more], self.ids[full:], other.ids[more:]])
        self.chunks += other.chunks
        self.moved = torch.cat([part for part in (self.moved, other.moved) if len(part)] or [self.moved])
        self._pack()

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
    values, code, count = moved.flatten().unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    common = count.argsort(descending=True, stable=True)[:CODES]
    common = common[count[common] > 1]
    codes = torch.full((len(values),), len(common), dtype=torch.uint8)
    codes[common] = torch.arange(len(common), dtype=torch.uint8)
    codes = codes[code]
    rest = _bytes(moved.flatten()[codes == len(common)]).view(-1, 4).t().flatten()
    whole = torch.cat([torch.tensor([len(common)], dtype=torch.uint8), _bytes(values[common]), codes, rest])
    return torch.frombuffer(bytearray(zlib.compress(whole.numpy().tobytes(), LEVEL)), dtype=torch.uint8)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _inflated(content: Tensor, x: Tensor) -> Tensor:
    """The images that were `_deflated`, from clean ones (m, c, h, w)."""
    n, most = x.numel(), 1 + 4 * CODES + 5 * x.numel()
    try:
        stream = zlib.decompressobj()
        whole = stream.decompress(content.numpy().tobytes(), most)
    except zlib.error as error:
        raise ValueError(f"a chunk cannot be read: {error}") from None
    size = whole[0] if whole else 0
    known, codes, rest = 1 + 4 * size, whole[1 + 4 * size : 1 + 4 * size + n], whole[1 + 4 * size + n :]
    if not stream.eof or len(codes) != n or max(codes) > size or len(rest) != 4 * codes.count(size):
        raise ValueError(f"a chunk is not {len(x)} images of shape {tuple(x.shape[1:])}")
    values = torch.cat([_ints(whole[1:known]), torch.zeros(1, dtype=torch.int32)])
    code = torch.frombuffer(bytearray(codes), dtype=torch.uint8)
    moved = values[code.long()]
    moved[code == size] = _ints(rest, planes=True)
    return (_bits(x.cpu()) + moved.view(len(x), -1)).view(torch.float32).view(x.shape).to(x.device)


def _ints(content: bytes, planes: bool = False) -> Tensor:
    if not content:
        return torch.zeros(0, dtype=torch.int32)
    found = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return (found.view(4, -1).t().reshape(-1) if planes else found).view(torch.int32)
