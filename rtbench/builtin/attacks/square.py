"""Square attack: random search over square patches, without gradients.

Source: Andriushchenko, Croce, Flammarion & Hein 2020, arXiv:1912.00049.

What a query proposes depends on the best point and on its own number alone. So where the batch has room, the coming queries of a try are
asked at once, all from the best point there is; the first that gains is taken, those after it are asked again from the new best. That is
the search one by one, query for query.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rtbench.builtin.attacks.bumps import begin_l2, propose_l2
from rtbench.builtin.attacks.patches import Undo, begin_linf, constants, propose_linf
from rtbench.errors import UserError
from rtbench.slots import Method, Slots, missed

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries out of 10,000 after which the patch's share of the image is halved."""
AHEAD = (1, 2, 4, 8, 16)
"""How many queries of a try may be asked at once."""
FIXED, GAINED = 48, 0.2
"""What asking costs whatever the batch, in rows of it; the share of queries that gain, before any were seen."""


def square(name: str, norm: str, side: int, queries: int = 5000, restarts: int = 1, share: float = 0.8) -> Method:
    """The attack as slots, for images of `side` pixels. share: of the image's pixels that the first patches cover."""
    if norm not in ("linf", "l2"):
        raise UserError(f'the native Square takes linf and l2, not "{norm}"')
    if norm == "l2" and side < 5:
        raise UserError(f"Square under l2 needs images of at least 5 pixels, not {side}")
    begin, propose = (begin_linf, propose_linf) if norm == "linf" else (begin_l2, propose_l2)
    schedule = [share / 2 ** sum(query * 10_000 // queries > at for at in HALVED_AT) for query in range(queries + 1)]
    shares = tuple(sorted(set(schedule), reverse=True))
    levels = tuple(shares.index(one) for one in schedule)

    def step(slots: Slots) -> Tensor:
        ahead = _ahead(slots)
        age = slots.age + torch.arange(ahead, device=slots.age.device)[:, None]
        queried = age.flatten().clamp_(max=queries)
        points = _points(slots, ahead)
        undo = propose(slots, points[: len(queried)], shares, constants(levels, age.device), queried)
        logits = slots.ask(points, len(queried))[: len(queried)]
        rows, first, gained = _first_gain(slots, points, logits, age <= queries, undo)
        taken = (queries + 1 - slots.age).clamp_(max=ahead)
        taken[rows] = torch.where(gained, first + 1, taken[rows])
        if taken.device.type == "cpu":
            slots.scratch["gained"] = 0.9 * slots.scratch.get("gained", GAINED) + 0.1 * len(rows) / int(taken.sum())
        return taken

    def fresh(slots: Slots, rows: Tensor) -> None:
        begin(slots, rows)
        slots.put("lead", rows, torch.inf)

    return Method(name, fresh, step, queries + 1, 0, restarts, lanes=AHEAD[-1])


def _ahead(slots: Slots) -> int:
    """As many queries as promise the most progress for the time, by how often one gained of late; the verdicts do not depend on it."""
    fits = [ahead for ahead in AHEAD if ahead <= slots.lanes]
    if slots.x.device.type != "cpu":
        return fits[-1]
    gained = slots.scratch.get("gained", GAINED)
    return max(fits, key=lambda ahead: (1 - (1 - gained) ** ahead) / (FIXED + ahead * len(slots.y)))


def _points(slots: Slots, ahead: int) -> Tensor:
    """Room for the proposals of all slots, lane by lane, in a batch that the model may be asked at."""
    if "points" not in slots.scratch:
        slots.scratch["points"] = slots.x.new_zeros(slots.fit(slots.lanes * len(slots.y)), *slots.x.shape[1:])
    room: Tensor = slots.scratch["points"]
    return room[: slots.fit(ahead * len(slots.y))]


def _first_gain(slots: Slots, points: Tensor, logits: Tensor, due: Tensor, undo: Undo) -> tuple[Tensor, Tensor, Tensor]:
    """Takes each slot's first query that gained, or that the model gets wrong: (slots, int64 (m,); its lane; whether there was one).

    due: bool (lanes, B), whether a query is one of the try's own.
    """
    state, y = slots.state, slots.y.repeat(len(due))
    lead = margin(logits, y).view(due.shape)
    better = (lead < state["lead"]) & due
    cpu = y.device.type == "cpu"
    doubtful = not cpu or float(lead.min()) <= 0 or not math.isfinite(float(logits.sum()))
    event = better | (missed(logits, y).view(due.shape) & due) if doubtful else better
    rows = event.any(0).nonzero().squeeze(1) if cpu else torch.arange(len(slots.y), device=y.device)
    first = event[:, rows].int().argmax(0)
    at = first * len(slots.y) + rows
    found = points[at]
    if undo is not None:
        undo()
    if len(rows) == 0:
        return rows, first, event[first, rows]
    if doubtful:
        wrong = missed(logits[at], slots.y[rows]) & event[first, rows]
        if not cpu or bool(wrong.any()):
            whole = state["best"].index_copy(0, rows, found)
            some = torch.zeros_like(slots.y, dtype=torch.bool).index_copy_(0, rows, event[first, rows])
            slots.notice(slots, whole, logits[: len(slots.y)].index_copy(0, rows, logits[at]), some)
    gain = better[first, rows]
    best = torch.where(slots.column(gain), found, state["best"][rows])
    state["best"].index_copy_(0, rows, best)
    state["lead"].index_copy_(0, rows, torch.where(gain, lead[first, rows], state["lead"][rows]))
    if "clean" in slots.scratch:
        room = slots.scratch["points"][: slots.lanes * len(slots.y)].view(-1, *slots.x.shape)
        room.index_copy_(1, rows, best.expand(slots.lanes, *best.shape))
    return rows, first, event[first, rows]


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The label's logit less the highest other one, (n,)."""
    label = y[:, None]
    return logits.gather(1, label).squeeze(1) - logits.scatter(1, label, -torch.inf).amax(1)
