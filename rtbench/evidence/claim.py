"""All checks of one row of which network and data are sound."""

from __future__ import annotations

import torch

from rtbench.engine.bind import Binder
from rtbench.evaluation.process import threads
from rtbench.evidence.bits import check_bits, check_columns, check_flags, check_ids, check_passes
from rtbench.evidence.points import Tick, attack_again, check_clean, check_native, check_points, check_witness
from rtbench.evidence.verdict import Claim, Verdict
from rtbench.parts.kinds import native

MOST = 1024
"""Nobody computed in more threads."""


def check_claim(claim: Claim, binder: Binder, verdict: Verdict, again: int, rng: torch.Generator, tick: Tick) -> None:
    """Adds to the verdict what does not hold. again: so many samples are attacked again, drawn from `rng`."""
    if claim.split is None:
        verdict.problem("data", f"has no split {claim.part['knobs']['split']}")
        return
    slots = native(binder.catalogue.get("attack", claim.attack["use"]).function)
    if not check_columns(claim, slots, verdict):
        return
    if "eps" in claim.attack["knobs"]:
        verdict.robust = int(claim.bits("robust").sum())
    check_bits(claim, slots, verdict)
    positions = check_ids(claim, verdict)
    if positions is None:
        return
    least, raised = check_native(claim, binder, positions, verdict)
    check_passes(claim, least, verdict)
    check_flags(claim, claim.split.y[positions.to(claim.split.device)].cpu(), raised, verdict)
    check_clean(claim, positions, verdict, tick)
    check_witness(claim, positions, verdict, tick)
    if claim.points is not None:
        check_points(claim, claim.points, positions, verdict)
    if again:
        told = claim.threads if type(claim.threads) is int and 0 < claim.threads <= MOST else None  # provenance is free text
        with threads(told):
            attack_again(claim, binder, positions, again, rng, verdict)
