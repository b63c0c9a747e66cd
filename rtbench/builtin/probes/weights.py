"""Which weights survive pruning, and which masks agree: distributions of borrowed weights, overlap with borrowed masks.

What is lent is kept in rows of 64 entries, no row across two layers: 4 bytes a weight, an eighth of one a mask entry, and 13 a row.

Sources: Frankle & Carbin 2019, arXiv:1803.03635, Appendix F.4 (initial weights that survive); Paganini & Forde 2020,
arXiv:2001.05050 (overlap of masks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rtbench.errors import UserError
from rtbench.parts.amounts import matching
from rtbench.parts.kinds import Measure, declare
from rtbench.parts.knobs import Range
from rtbench.parts.masks import Masks, compare

ROW = 64
POWERS = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)


def weights(model: nn.Module, masks: Masks) -> Measure:
    """Mean absolute value of the weights that masks keep, and "sd", their standard deviation; keeps all weights for `survivors`."""
    found = [model.get_parameter(name).detach().float().cpu().flatten() for name in masks]
    alive = _joined([layer[mask.cpu().flatten()] for layer, mask in zip(found, masks.values(), strict=True)])
    where, rows = _rows(found)
    return Measure(_moments(alive), {**where, "weights": rows})


def mask(masks: Masks) -> Measure:
    """The share of prunable weights that masks keep; keeps the masks for `overlap`."""
    found = [layer.cpu().flatten() for layer in masks.values()]
    where, rows = _rows(found)
    kept, size = sum(int(layer.count_nonzero()) for layer in found), sum(map(len, found))
    return Measure({"": kept / size if size else None}, {**where, "bits": (rows.view(len(rows), -1, 8).byte() * POWERS).sum(2).byte()})


@declare(sources="weights")
def survivors(
    masks: Masks, source: dict[str, Tensor], *,
    bins: Annotated[int, Range("[2, 1000]")] = 60,
    limit: Annotated[float, Range("(0, inf)")] = 0.3,
    layers: list[str] = [],  # noqa: B006
) -> Measure:  # fmt: skip
    """The borrowed weights where this network's masks keep them: of `from = "origin"` the initial weights that survive.

    Its own value is their mean absolute value; "sd" and "mean" tell the rest. "bin.0" to "bin.N" are the shares of them in bins of equal
    width from -limit to limit, whose edges the record states; "outside" is the share beyond, "zero" that of exact zeros, which are in
    no bin. The shares add up to 1. After a rewind to `fresh` weights the origin are these, which no pruning has selected.

    bins: how many
    limit: edges of the outermost bins
    layers: only these, by name or shell pattern; all prunable ones if empty
    """
    names = matching(masks, layers, "layers") if layers else list(masks)
    found = _unrolled(source["weights"], source, masks)
    if found is None:
        raise UserError("survivors: the weights it is given are of another architecture")
    alive = _joined([found[name][masks[name].cpu().flatten()] for name in names])
    numbers = _moments(alive)
    edges = torch.linspace(-limit, limit, bins + 1, dtype=torch.float64)
    if len(alive):
        zero, inside = alive == 0, alive.abs() <= limit
        counts = torch.histc(alive[inside & ~zero], bins, -limit, limit)
        numbers |= {"mean": float(alive.mean()), "zero": float(zero.double().mean()), "outside": float((~inside).double().mean())}
        numbers |= {f"bin.{number}": float(count) / len(alive) for number, count in enumerate(counts)}
    return Measure(numbers, about={"edges": edges.tolist(), "weights": len(alive)})


@declare(sources="mask")
def overlap(masks: Masks, source: dict[str, Tensor]) -> Measure:
    """How alike this network's masks and the borrowed ones are: intersection over union of what they keep.

    "overlap" is the intersection over the smaller one, "agree" the share of equal entries, and "chance" the intersection over union
    expected of random masks that keep as many weights in each layer. No number where the architectures differ.
    """
    bits = (source["bits"].unsqueeze(2) & POWERS).bool().flatten(1)
    other = _unrolled(bits, source, masks)
    if other is None:
        return Measure({"": None, "overlap": None, "agree": None, "chance": None})
    found = compare({name: layer.cpu().flatten() for name, layer in masks.items()}, other)
    return Measure({"": found["iou"], **{name: value for name, value in found.items() if name != "iou"}})


def _rows(layers: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Which layer each row is of, and how many entries of it are meant; and the rows (n, 64) of flat layers, filled up with 0."""
    padded = [pad(layer, (0, -len(layer) % ROW)).view(-1, ROW) for layer in layers]
    rows = torch.cat(padded) if padded else torch.zeros(0, ROW)
    number = torch.cat([torch.full((len(each),), i, dtype=torch.int32) for i, each in enumerate(padded)] or [torch.zeros(0).int()])
    size = torch.cat([_sizes(len(layer)) for layer in layers] or [torch.zeros(0).byte()])
    return {"ids": torch.arange(len(rows)), "layer": number, "size": size}, rows


def _sizes(n: int) -> Tensor:
    """uint8: how many of n entries are in each row."""
    return (n - torch.arange(0, n, ROW)).clamp(max=ROW).byte()


def _unrolled(rows: Tensor, where: dict[str, Tensor], masks: Masks) -> dict[str, Tensor] | None:
    """The flat layers that rows hold, under the names of this network's; None if its layers are of other sizes."""
    sizes = [int(where["size"][where["layer"] == number].long().sum()) for number in range(int(where["layer"].max()) + 1)]
    if sizes != [layer.numel() for layer in masks.values()]:
        return None
    return {name: rows[where["layer"] == number].flatten()[: layer.numel()] for number, (name, layer) in enumerate(masks.items())}


def _joined(layers: Sequence[Tensor]) -> Tensor:
    return torch.cat([layer.double() for layer in layers]) if layers else torch.zeros(0, dtype=torch.float64)


def _moments(alive: Tensor) -> dict[str, float | None]:
    if not len(alive):
        return {"": None, "sd": None}
    return {"": float(alive.abs().mean()), "sd": float(alive.std(correction=0))}
