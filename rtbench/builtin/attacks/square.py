"""Square attack: random search over square patches, without gradients.

Source: Andriushchenko, Croce, Flammarion & Hein 2020, arXiv:1912.00049.

What a query proposes depends on the best point and on its own number alone. So where the batch has room, the coming queries of a try are
asked at once, all from the best point there is; the first that gains is taken, those after it are asked again from the new best. That is
the search one by one, query for query. A patch that would leave the best point as it is, as one in four does under linf, is not asked
about at all.
"""

from __future__ import annotations

import bisect
import functools
import math

import torch
from torch import Tensor

from rtbench.builtin.attacks.bumps import begin_l2, propose_l2
from rtbench.builtin.attacks.patches import Proposed, begin_linf, constants, propose_linf, skipped
from rtbench.errors import UserError
from rtbench.parts.slots import Method, Slots, missed

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries out of 10,000 after which the patch's share of the image is halved."""
AHEAD = (1, 2, 4, 8, 16)
"""How many queries of a try may be asked at once."""
ALONE, SEVERAL, GAINED = 80, 100, 0.2
"""What a step costs whatever the batch, in rows of it, where each slot asks one query and where it asks several, on an MLP-300-100;
the share of queries that gain, before any were seen."""


def square(name: str, norm: str, side: int, queries: int = 5000, restarts: int = 1, share: float = 0.8, over: int | None = None) -> Method:
    """The attack as slots, for images of `side` pixels. share: of the image's pixels that the first patches cover.

    over: queries by which the patches have shrunk to the end; all of the attack's if None.
    """
    if norm not in ("linf", "l2"):
        raise UserError(f'the native Square takes linf and l2, not "{norm}"')
    if norm == "l2" and side < 5:
        raise UserError(f"Square under l2 needs images of at least 5 pixels, not {side}")
    begin, propose = (begin_linf, propose_linf) if norm == "linf" else (begin_l2, propose_l2)
    sizes = schedule(queries, share, over or queries)
    shares = tuple(sorted(set(sizes), reverse=True))
    levels = tuple(shares.index(size) for size in sizes)

    def step(slots: Slots) -> Tensor | None:
        ahead = _ahead(slots)
        points, tried = _points(slots, ahead), ahead * len(slots.y)
        proposed = propose(slots, points[:tried], ahead, shares, constants(levels, points.device))
        logits = slots.ask(points, tried)[:tried]
        return _first_gain(slots, points, logits, proposed)

    def fresh(slots: Slots, rows: Tensor) -> None:
        begin(slots, rows)
        slots.put("lead", rows, torch.inf)

    return Method(name, fresh, step, queries + 1, 0, restarts, lanes=AHEAD[-1], skipped=skipped(AHEAD[-1]))


@functools.lru_cache(maxsize=16)
def schedule(queries: int, share: float, over: int) -> tuple[float, ...]:
    """The patches' share of the image at each query: those of the first points, then of as many proposals."""
    proposals = [0, *range(queries)]
    return tuple(share / 2 ** bisect.bisect_left(HALVED_AT, proposal * 10_000 // over) for proposal in proposals)


def _ahead(slots: Slots) -> int:
    """As many queries as promise the most progress for the time, by how often one gained of late; the verdicts do not depend on it."""
    fits = [ahead for ahead in AHEAD if ahead <= slots.lanes]
    if slots.x.device.type != "cpu":
        return fits[-1]
    gained, rows = slots.scratch.get("gained", GAINED), len(slots.y)

    def progress(ahead: int) -> float:
        return float(1 - (1 - gained) ** ahead) / ((ALONE if ahead == 1 else SEVERAL) + ahead * rows)

    return max(fits, key=progress)


def _points(slots: Slots, ahead: int) -> Tensor:
    """Room for the proposals of all slots, lane by lane, in a batch that the model may be asked at."""
    if "points" not in slots.scratch:
        slots.scratch["points"] = slots.x.new_zeros(slots.fit(slots.lanes * len(slots.y)), *slots.x.shape[1:])
    room: Tensor = slots.scratch["points"]
    return room[: slots.fit(ahead * len(slots.y))]


def _first_gain(slots: Slots, points: Tensor, logits: Tensor, proposed: Proposed) -> Tensor | None:
    """Takes each slot's first query that gained, or that the model gets wrong; how many queries that leaves behind, None for one each."""
    b, y, cpu, due = len(slots.y), _labels(slots, len(logits)), logits.device.type == "cpu", proposed.due
    lead = margin(logits, y)
    better = lead.view(-1, b) < slots.state["lead"]
    if due is not None:
        better &= due
    event, doubtful = better, not cpu or float(lead.min()) <= 0 or not math.isfinite(float(logits.sum()))
    if doubtful:
        wrong = missed(logits, y).view(-1, b)
        event = better | (wrong if due is None else wrong & due)
    several = len(event) > 1
    hit, first = (event.any(0), event.int().argmax(0)) if several else (event[0], None)
    rows = hit.nonzero().squeeze(1) if cpu else torch.arange(b, device=y.device)
    at = rows if first is None else first[rows] * b + rows
    found = points[at]
    if proposed.undo is not None:
        proposed.undo()
    if len(rows):
        _take(slots, rows, found, lead[at], better.flatten()[at] if doubtful else None)
    if doubtful and (not cpu or bool(missed(logits[at], slots.y[rows]).any())):
        _tell(slots, rows, found, logits[at], event.flatten()[at])
    if proposed.number is None:
        queried = None
    elif first is None:
        queried = proposed.number[0] + 1
    else:
        queried = torch.where(hit, proposed.number.gather(0, first[None])[0], proposed.number.amax(0)) + 1
    if cpu:
        share = len(rows) / (b if first is None or queried is None else int(queried.sum()))
        slots.scratch["gained"] = 0.9 * slots.scratch.get("gained", GAINED) + 0.1 * share
    return queried


def _take(slots: Slots, rows: Tensor, found: Tensor, lead: Tensor, gain: Tensor | None) -> None:
    """Makes `found` (m, ...), of that lead, the best of the slots `rows`, int64 (m,), where `gain`, bool (m,); everywhere if None."""
    state = slots.state
    if gain is not None:
        found = torch.where(slots.column(gain), found, state["best"][rows])
        lead = torch.where(gain, lead, state["lead"][rows])
    state["best"].index_copy_(0, rows, found)
    state["lead"].index_copy_(0, rows, lead)
    if "clean" in slots.scratch:
        room = slots.scratch["points"][: slots.lanes * len(slots.y)].view(-1, *slots.x.shape)
        room.index_copy_(1, rows, found.expand(slots.lanes, *found.shape))


def _tell(slots: Slots, rows: Tensor, points: Tensor, logits: Tensor, event: Tensor) -> None:
    """Notices these points (m, ...) of the slots `rows`, where `event`, bool (m,)."""
    whole = slots.state["best"].index_copy(0, rows, points)
    some = torch.zeros_like(slots.y, dtype=torch.bool).index_copy_(0, rows, event)
    slots.notice(slots, whole, logits.new_zeros(len(slots.y), logits.shape[1]).index_copy_(0, rows, logits), some)


def _labels(slots: Slots, count: int) -> Tensor:
    """The labels of all slots lane by lane, (count,)."""
    if count == len(slots.y):
        return slots.y
    name = f"y{count}"
    if name not in slots.scratch:
        slots.scratch[name] = slots.y.repeat(count // len(slots.y))
    labels: Tensor = slots.scratch[name]
    return labels


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The label's logit less the highest other one, (n,)."""
    label = y[:, None]
    return logits.gather(1, label).squeeze(1) - logits.scatter(1, label, -torch.inf).amax(1)
