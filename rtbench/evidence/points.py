"""Checks that ask the network: one forward for every clean image and for every adversarial example that was kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rtbench.data.splits import take
from rtbench.engine.bind import Binder, threat_of
from rtbench.engine.loop import Loop
from rtbench.evaluation.guard import frozen, own_randomness
from rtbench.evaluation.judge import Judged, Outcome
from rtbench.evaluation.margins import margins
from rtbench.evaluation.witness import unpacked
from rtbench.evidence.verdict import MISSED, NUMERICS, Claim, Verdict, some
from rtbench.parts.flags import BF16, SOUGHT
from rtbench.parts.slots import missed
from rtbench.parts.threats import inside

Tick = Callable[[int], None]
"""Called with how many samples were asked."""


def check_clean(claim: Claim, positions: Tensor, verdict: Verdict, tick: Tick) -> None:
    """Whether the clean verdicts and margins come out again."""
    for here in torch.split(torch.arange(len(positions)), claim.part["knobs"]["batch"]):
        x, y = take(claim.split, positions[here])
        _compare(claim, here, x, y, "clean", "clean.margin", verdict)
        verdict.samples += len(here)
        tick(len(here))


def check_witness(claim: Claim, positions: Tensor, verdict: Verdict, tick: Tick) -> None:
    """Whether every broken sample has an adversarial example, strictly inside ball and box, that the network gets wrong."""
    threat, tensors, ids = threat_of(claim.attack), claim.witness, claim.samples["ids"]
    broken = claim.bits("clean") & ~claim.bits("robust")
    if threat is None and tensors is not None:
        verdict.problem("witness", "there are adversarial examples where nothing was attacked")
    if threat is None or (tensors is None and claim.points is not None):
        return
    if tensors is None and not bool(broken.any()):
        return
    if tensors is None:
        verdict.unsaid.append(f"{int(broken.sum())} broken samples: no adversarial examples were kept (--witness)")
        return
    place = {int(number): at for at, number in enumerate(ids)}
    kept = tensors.get("ids", torch.zeros(0))
    if kept.dtype != torch.int64 or sorted(kept.tolist()) != sorted(ids[broken].tolist()):
        verdict.problem("witness", f"{len(kept)} examples, not one for each of the {int(broken.sum())} broken samples")
        return

    def clean(wanted: Tensor) -> Tensor:
        return take(claim.split, positions[_places(place, wanted)])[0]

    try:
        for wanted, x_adv in unpacked(tensors, clean):
            here = _places(place, wanted)
            x, y = take(claim.split, positions[here])
            within = inside(x_adv, x, threat).cpu()
            if not bool(within.all()):
                verdict.problem("witness", f"outside the ball of {threat.norm} {threat.eps} or the box: {some(wanted[~within])}")
            _compare(claim, here, x_adv, y, "robust", "margin", verdict)
            verdict.witnesses += len(here)
            tick(len(here))
    except ValueError as error:
        verdict.problem("witness", str(error))


def check_points(claim: Claim, points: Tensor, positions: Tensor, verdict: Verdict) -> None:
    """Whether all points that were kept lie strictly inside ball and box, and the network gets those of broken samples wrong."""
    threat, broken = threat_of(claim.attack), claim.bits("clean") & ~claim.bits("robust")
    if threat is None or points.dtype != torch.float32 or points.shape != (len(positions), *claim.split.shape):
        verdict.problem("points", f"they are {points.dtype} {tuple(points.shape)}, not one image for each sample under a threat")
        return
    for here in torch.split(torch.arange(len(positions)), claim.part["knobs"]["batch"]):
        x, y = take(claim.split, positions[here])
        asked, wrong = points[here].to(x.device), broken[here].nonzero().squeeze(1)
        within = inside(asked, x, threat).cpu()
        if not bool(within.all()):
            text = some(claim.samples["ids"][here][~within])
            verdict.problem("points", f"outside the ball of {threat.norm} {threat.eps} or the box: {text}")
        at = wrong.to(x.device)
        if len(wrong):
            _compare(claim, here[wrong], asked[at], y[at], "robust", "margin", verdict)
        verdict.witnesses += len(wrong)


def _places(place: dict[int, int], ids: Tensor) -> Tensor:
    return torch.tensor([place[number] for number in ids.tolist()], dtype=torch.int64)


@torch.no_grad()
def _compare(claim: Claim, here: Tensor, x: Tensor, y: Tensor, bits: str, margin: str, verdict: Verdict) -> None:
    """Asks the network again and holds verdict and margin of these samples against what is stored."""
    with frozen(claim.model):
        logits = claim.model(x)
    right = ~missed(logits, y).cpu()
    found, stored = margins(logits, y).cpu(), claim.samples[margin][here]
    odd = right != claim.bits(bits)[here]
    close = torch.minimum(found.abs(), stored.abs()) < NUMERICS
    verdict.numerics += int((odd & close).sum())
    name, ids = "witness" if bits == "robust" else "clean", claim.samples["ids"][here]
    if bool((odd & ~close).any()):
        text = "the network gets it right" if bits == "robust" else "the network answers otherwise"
        verdict.problem(name, f"{text}: {some(ids[odd & ~close])}")
    scale = logits.abs().amax(1).nan_to_num(posinf=0.0).clamp_min(1).cpu()
    far = (found != stored) & ~((found - stored).abs() <= NUMERICS * scale)
    if bool(far.any()):
        verdict.problem("margin", f'"{margin}" comes out otherwise: {some(ids[far])}')


def check_native(claim: Claim, binder: Binder, positions: Tensor, verdict: Verdict) -> tuple[tuple[int, int], dict[str, bool]]:
    """(forwards, gradients) of a sample that a native attack does not break, and which flags its network and protocol raise."""
    judged = binder.judged(claim.attack)
    asked = _findings(claim, judged, positions)
    if judged.threat is None:
        return (0, 0), dict.fromkeys(claim.flags, False)
    if judged.native is None:
        return (0, 0), dict.fromkeys(asked, True)  # a plain attack may raise any flag itself
    x = take(claim.split, positions[:1])[0]
    with frozen(claim.model), torch.no_grad():
        logits = claim.model(x)
    plan = judged.native(judged.threat, logits.shape[1], tuple(x.shape[1:]))
    forwards = 1 + sum(method.steps * method.tries * method.forwards for method in plan.methods)
    gradients = sum(method.steps * method.tries * method.gradients for method in plan.methods)
    if (plan.precision != "exact") != (MISSED in claim.numbers):
        verdict.problem("number", f"{MISSED} is {'missing' if plan.precision != 'exact' else 'one of searches in bfloat16'}")
    again = [flag for flag, seekers in SOUGHT.items() if "search" not in seekers]  # what the search alone saw cannot be found again
    raised = {flag: flag in (*asked, *plan.flags) for flag in again} | {BF16: bool(claim.numbers.get(MISSED))}
    return (forwards, gradients), raised | dict.fromkeys(asked, True)


def _findings(claim: Claim, judged: Judged, positions: Tensor) -> list[str]:
    """What the judge asks of the first samples of every model that was attacked, asked again."""
    if judged.threat is None or judged.threat.eps == 0 or len(positions) == 0:
        return []
    names = ("ids", "y", "clean", "robust", "clean.margin", "margin")
    columns = {
        **claim.samples,
        "y": claim.split.y[positions.to(claim.split.device)].cpu(),
        "clean": claim.bits("clean"),
        "robust": claim.bits("robust"),
    }
    with own_randomness(claim.seed), frozen(claim.model):
        return judged.findings(
            claim.model, claim.split, positions, claim.part["knobs"]["batch"], Outcome(*(columns[name] for name in names))
        )


def attack_again(claim: Claim, binder: Binder, positions: Tensor, count: int, rng: torch.Generator, verdict: Verdict) -> None:
    """Attacks `count` random samples that are right clean once more, as the protocol says, and compares.

    Native attacks give a sample the same verdict whatever it shares the batch with. Plain ones need not: whole batches are attacked.
    """
    judged, batch = binder.judged(claim.attack), claim.part["knobs"]["batch"]
    attacked = claim.bits("clean").nonzero().squeeze(1)
    chosen = attacked[torch.randperm(len(attacked), generator=rng)[:count]].sort().values
    groups = [chosen] if judged.native is not None else [g for g in torch.split(torch.arange(len(positions)), batch) if _meet(g, chosen)]
    for here in groups:
        if judged.threat is None or len(here) == 0:
            continue
        outcome = judged(claim.model, claim.split, positions[here], Loop(), batch)
        odd = outcome.robust != claim.bits("robust")[here]
        if outcome.recheck is not None:
            both = outcome.recheck.asked & claim.bits("exact.asked")[here]
            odd |= both & (outcome.recheck.held != claim.bits("exact.held")[here])
        close = odd & (torch.minimum(outcome.margin.abs(), claim.samples["margin"][here].abs()) < NUMERICS)
        verdict.numerics += int(close.sum())
        verdict.again += len(here)
        if bool((odd & ~close).any()):
            verdict.problem("again", f"attacked again, the verdict is another one: {some(outcome.ids[odd & ~close])}")


def _meet(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isin(one, other).any())
