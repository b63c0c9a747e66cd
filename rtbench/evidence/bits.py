"""Checks of a row's per-sample tensors against each other and against its numbers; nothing is asked of the network."""

from __future__ import annotations

import torch
from torch import Tensor

from rtbench.builtin.probes.accuracy import at_chance
from rtbench.data.splits import choose
from rtbench.errors import UserError
from rtbench.evaluation.findings import masked
from rtbench.evaluation.recheck import Recheck, chosen
from rtbench.evidence.verdict import MISSED, NUMERICS, Claim, Verdict, some
from rtbench.parts.flags import CHANCE
from rtbench.parts.slots import RECHECKED

BITS, COUNTS, FLOATS = ("robust", "clean"), ("ids", "forwards", "gradients"), ("margin", "clean.margin")


def check_columns(claim: Claim, native: bool, verdict: Verdict) -> bool:
    """Whether the tensors have the names, types and lengths that they should, so that one can go on."""
    before = len(verdict.problems)
    wanted = {"ids", *BITS, *FLOATS} | {f"robust.{name}" for name in claim.numbers if name and name != MISSED}
    wanted |= {"forwards", "gradients"} if native else set()
    wanted |= {"exact.asked", "exact.held"} if MISSED in claim.numbers else set()
    for name in sorted(wanted ^ claim.samples.keys()):
        verdict.problem("samples", f'"{name}" is {"missing" if name in wanted else "not a number or a column of this probe"}')
    n = claim.about.get("samples")
    for name, column in claim.samples.items():
        dtype = torch.float32 if name in FLOATS else torch.int64 if name in COUNTS else torch.uint8
        if column.dtype != dtype or column.shape != (n,):
            verdict.problem("samples", f'"{name}" is {column.dtype} {tuple(column.shape)}, not {dtype} ({n},)')
        elif dtype == torch.uint8 and bool((column > 1).any()):
            verdict.problem("samples", f'"{name}" holds more than bits')
        elif dtype == torch.float32 and bool(column.isnan().any()):
            verdict.problem("margin", f'"{name}" is not a number for {some(claim.samples["ids"][column.isnan()])}')
    return len(verdict.problems) == before


def check_again(kept: dict[str, Tensor], now: dict[str, Tensor], verdict: Verdict) -> float:
    """Holds stored columns against those measured again. The share of samples judged otherwise too near the boundary to tell."""
    for name in sorted(kept.keys() ^ now.keys()):
        if name in kept or not name.startswith("margin."):  # an earlier rtbench kept no margins of a pool
            verdict.problem("samples", f'"{name}" is missing or not a column of this probe')
    close = odd = torch.zeros_like(now.get("ids", torch.zeros(0)), dtype=torch.bool)
    shared = sorted(kept.keys() & now.keys())
    for name in [name for name in shared if "margin" in name and kept[name].shape == now[name].shape == close.shape]:
        close = close | (torch.minimum(kept[name].abs(), now[name].abs()) < NUMERICS)
    for name in shared:
        differ = _differ(kept[name], now[name])
        if now[name].dtype == torch.uint8 and differ.shape == close.shape:
            odd = odd | (differ & close)
            differ = differ & ~close
        if bool(differ.any()):
            verdict.problem("samples", f'"{name}" comes out otherwise, measured again')
    verdict.numerics += int(odd.sum())
    return float(odd.sum()) / max(1, len(odd))


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """Where two columns are not the same; numbers with a fraction up to what another CPU rounds otherwise, of the largest of them."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return torch.ones(1, dtype=torch.bool)
    if not one.is_floating_point():
        return one != other
    largest = float(other[other.isfinite()].abs().max()) if bool(other.isfinite().any()) else 0.0
    return ~torch.isclose(one, other, rtol=0, atol=NUMERICS * max(1.0, largest), equal_nan=True)


def check_ids(claim: Claim, verdict: Verdict) -> Tensor | None:
    """The positions in the split that the probe's rule chooses, if these are the samples of the row."""
    knobs = claim.part["knobs"]
    try:
        positions = choose(claim.split, knobs["samples"], knobs["rule"], torch.Generator().manual_seed(knobs["sample_seed"]))
    except UserError as error:
        verdict.problem("ids", str(error))
        return None
    if claim.about != {"split": knobs["split"], "samples": len(positions)}:
        verdict.problem("about", f"it says {claim.about}, the probe {len(positions)} samples of {knobs['split']}")
    if not torch.equal(claim.split.ids[positions.to(claim.split.device)].cpu(), claim.samples["ids"]):
        verdict.problem("ids", "these are not the samples that the probe's rule chooses")
        return None
    return positions


def check_bits(claim: Claim, native: bool, verdict: Verdict) -> None:
    """Whether bits, numbers and margins say the same."""
    ids, robust, clean, inner = claim.samples["ids"], claim.bits("robust"), claim.bits("clean"), claim.inner
    for name, bits in {"": robust, **inner}.items():
        if claim.numbers.get(name) != float(bits.double().mean()):
            verdict.problem("number", f"{name or 'the value'} is {claim.numbers.get(name)}, the bits say {float(bits.double().mean())}")
    if bool((robust & ~clean).any()):
        verdict.problem("robust", f"robust but wrong clean: {some(ids[robust & ~clean])}")
    left = clean
    for name, bits in inner.items():
        if bool((bits & ~left).any()):
            verdict.problem("inner", f"{name} left more than what came before it: {some(ids[bits & ~left])}")
        left = bits if native else clean  # other attacks need not be cumulative
    if native and inner and not torch.equal(left, robust):
        verdict.problem("inner", f"the last attack left others than are robust: {some(ids[left ^ robust])}")
    _margins(claim, native, verdict)
    if MISSED in claim.numbers:
        _recheck(claim, verdict)


def _recheck(claim: Claim, verdict: Verdict) -> None:
    """Whether those were attacked again in float32 that should have been, and the number says what came of it."""
    ids, robust, asked, held = claim.samples["ids"], claim.bits("robust"), claim.bits("exact.asked"), claim.bits("exact.held")
    odd = asked ^ chosen(robust)
    if bool(odd.any()):
        verdict.problem("exact", f"not the first {RECHECKED} robust samples were attacked again: {some(ids[odd])}")
    if bool((held & ~asked).any()):
        verdict.problem("exact", f"held, and was not attacked again: {some(ids[held & ~asked])}")
    missed = Recheck(asked, held).missed
    if claim.numbers[MISSED] != missed:
        verdict.problem("number", f"{MISSED} is {claim.numbers[MISSED]}, the bits say {missed}")


def _margins(claim: Claim, native: bool, verdict: Verdict) -> None:
    ids, margin, first, clean = (claim.samples[name] for name in ("ids", "margin", "clean.margin", "clean"))
    for name, column, bits in (("margin", margin, claim.bits("robust")), ("clean.margin", first, claim.bits("clean"))):
        odd = (bits & (column < 0)) | (~bits & (column > 0))
        if bool(odd.any()):
            verdict.problem("margin", f'"{name}" is on the other side than the verdict: {some(ids[odd])}')
    alone = (clean == 0) & (margin != first)
    if bool(alone.any()):
        verdict.problem("margin", f"another one than clean where nothing was attacked: {some(ids[alone])}")
    held = claim.bits("robust") & (margin != first)
    if native and bool(held.any()):
        verdict.problem("margin", f"another one than clean, where nothing else was found: {some(ids[held])}")


def check_passes(claim: Claim, least: tuple[int, int], verdict: Verdict) -> None:
    """Whether passes are no fewer than what happened takes. least: forwards and gradients of a sample that no native attack broke."""
    ids, robust = claim.samples["ids"], claim.bits("robust")
    needed = [len(ids), 0]
    for number, name in enumerate(("forwards", "gradients")):
        if name in claim.samples:
            column = claim.samples[name]
            needed[number] = int(column.sum())
            odd = (column < 1 - number) | (robust & (column < least[number]))
            if bool(odd.any()):
                verdict.problem("passes", f"fewer {name} than the attack takes: {some(ids[odd])}")
        elif number == 0 and "eps" in claim.attack["knobs"]:
            needed[0] += int(claim.samples["clean"].sum())  # where the attack's points were judged
        said = (claim.passes or {}).get(name)
        if said is None or said < needed[number]:
            verdict.problem("passes", f"{said} {name} in all, {needed[number]} of the samples alone")


def check_flags(claim: Claim, y: Tensor, raised: dict[str, bool], verdict: Verdict) -> None:
    """Whether flags that follow from what is known are raised, and only then. y: labels. raised: those asked of the network."""
    raised = {**raised, CHANCE: at_chance(int(claim.bits("clean").sum()), int(torch.bincount(y).max()), len(y))}
    if "masked-gradient" in raised:
        raised["masked-gradient"] = masked(claim.inner)
    if claim.flags != sorted(set(claim.flags)):
        verdict.problem("flags", "they are not in order")
    for flag, true in raised.items():
        if true != (flag in claim.flags):
            verdict.problem("flags", f'"{flag}" {"is missing" if true else "is raised for no reason"}')
