"""Checks of a security curve: its numbers are what its distances say, and one forward of every clean image gives its verdict again."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from rtbench.builtin.probes.accuracy import at_chance
from rtbench.builtin.probes.curve import radii
from rtbench.data.splits import take
from rtbench.evaluation.guard import frozen
from rtbench.evaluation.margins import margins
from rtbench.evidence.bits import check_ids
from rtbench.evidence.points import Tick
from rtbench.evidence.verdict import MISSED, NUMERICS, Claim, Verdict, some
from rtbench.parts.flags import BF16, CHANCE
from rtbench.parts.slots import missed
from rtbench.parts.threats import radius

COLUMNS = {"ids": torch.int64, "clean": torch.uint8, "robust": torch.uint8, "distance": torch.float64}


def check_curve(claim: Claim, verdict: Verdict, tick: Tick) -> None:
    """Adds to the verdict what does not hold of a row of the probe `curve`."""
    verdict.unsaid.append("how near the nearest misclassified point is: only attacking again tells")
    names = [name for name in claim.numbers if name not in ("", "median", MISSED)]
    shown = {"distances": ["median"] * ("median" in claim.numbers), "radii": {name: name.removeprefix("raw.") for name in names}}
    if {name: value for name, value in claim.about.items() if name not in ("split", "samples")} != shown:
        verdict.problem("about", "its radii are not those of its numbers")
    claim = replace(claim, about={name: claim.about.get(name) for name in ("split", "samples")})
    n = claim.about["samples"]
    there = {name: (column.dtype, column.shape) for name, column in claim.samples.items()}
    if there != {name: (dtype, (n,)) for name, dtype in COLUMNS.items()}:
        verdict.problem("samples", f"not {', '.join(COLUMNS)} of {n} samples each")
        return
    positions = check_ids(claim, verdict)
    if positions is None:
        return
    _check_numbers(claim, verdict)
    y = claim.split.y[positions.to(claim.split.device)].cpu()
    if (CHANCE in claim.flags) != at_chance(int(claim.bits("clean").sum()), int(torch.bincount(y).max()), len(y)):
        verdict.problem("flags", f'"{CHANCE}" is {"raised for no reason" if CHANCE in claim.flags else "missing"}')
    for here in torch.split(torch.arange(len(positions)), claim.part["knobs"]["batch"]):
        _check_clean(claim, here, *take(claim.split, positions[here]), verdict)
        verdict.samples += len(here)
        tick(len(here))


@torch.no_grad()
def _check_clean(claim: Claim, here: Tensor, x: Tensor, y: Tensor, verdict: Verdict) -> None:
    with frozen(claim.model):
        logits = claim.model(x)
    odd, close = ~missed(logits, y).cpu() != claim.bits("clean")[here], margins(logits, y).abs().cpu() < NUMERICS
    verdict.numerics += int((odd & close).sum())
    if bool((odd & ~close).any()):
        verdict.problem("clean", f"the network answers otherwise: {some(claim.samples['ids'][here][odd & ~close])}")


def _check_numbers(claim: Claim, verdict: Verdict) -> None:
    ids, clean, distance, knobs = claim.samples["ids"], claim.bits("clean"), claim.samples["distance"], claim.part["knobs"]
    odd = ~((distance > 0) == clean) | ~(distance >= 0)
    if bool(odd.any()):
        verdict.problem("distance", f"not 0 just where the clean image is misclassified: {some(ids[odd])}")
    own = Fraction(claim.attack["knobs"]["eps"])
    asked = radii(own, None if knobs["eps"] is None else tuple(map(Fraction, knobs["eps"])))
    robust = {one: clean & (distance > radius(one)) for one in asked}
    if not torch.equal(robust[own], claim.bits("robust")):
        verdict.problem("robust", f"the distances say otherwise: {some(ids[robust[own] ^ claim.bits('robust')])}")
    told: dict[str, float | None] = {"": float(robust[own].double().mean())}
    told |= {str(one): float(bits.double().mean()) for one, bits in robust.items()}
    if "median" in claim.numbers:
        median = float(distance.median())
        told["median"] = median if median < torch.inf else None
    if claim.attack["knobs"].get("precision") == "bf16" or MISSED in claim.numbers:
        told[MISSED] = claim.numbers.get(MISSED)
        if (BF16 in claim.flags) != bool(told[MISSED]):
            verdict.problem("flags", f'"{BF16}" {"is missing" if told[MISSED] else "is raised for no reason"}')
    raw = {name for name in claim.numbers if name.startswith("raw.")}
    wanted = set[str]() if "median" in claim.numbers else {f"raw.{one}" for one in asked}
    if claim.numbers.keys() - raw != told.keys() or raw != wanted:
        verdict.problem("number", "the record has other numbers than a curve of these radii")
    for name, value in told.items():
        if name in claim.numbers and claim.numbers[name] != value:
            verdict.problem("number", f"{name or 'the value'} is {claim.numbers[name]}, the distances say {value}")
    for name in raw:  # what a smaller radius broke counts at a larger one too
        least, most = told.get(name.removeprefix("raw.")), float(clean.double().mean())
        if least is not None and not least <= (claim.numbers[name] or 0.0) <= most:
            verdict.problem("number", f"{name} is {claim.numbers[name]}, not from {least} to {most}")
