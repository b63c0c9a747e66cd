"""The judge: one attack against one model on chosen samples, under an exact threat model.

A sample is robust only if the model classifies it rightly both clean and at the point the attack proposed, moved into the ball and
the box. Whatever goes wrong with an attack raises AttackFailure: a failure is never a robust sample.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from rtbench.data.splits import take
from rtbench.errors import UserError
from rtbench.evaluation.findings import about_modes, about_outputs, has_gradient, masked
from rtbench.evaluation.guard import Changed, frozen, own_randomness
from rtbench.evaluation.native import MASKED_GRADIENT, Build, Run
from rtbench.evaluation.nearest import Nearest
from rtbench.evaluation.outcome import AttackFailure, Outcome, correct, verdict, woven
from rtbench.evaluation.panel import SAMPLES, about_gradients
from rtbench.evaluation.proposal import Plain, Proposer
from rtbench.evaluation.recheck import Recheck, chosen, in_float32
from rtbench.evaluation.witness import Shelf
from rtbench.parts.flags import BF16
from rtbench.parts.noise import CounterNoise
from rtbench.parts.threats import Threat, radius

if TYPE_CHECKING:
    from rtbench.engine.loop import Loop

__all__ = ["AttackFailure", "Judged", "Outcome", "Plain", "correct", "verdict"]

R = TypeVar("R", bound=Run)
Elsewhere = Callable[[Any, "Loop", int, bool], list[Outcome]]
"""The outcomes of samples i, i + k, i + 2k, ... of a split, for every i < k, given split, loop, batch and keep."""

BLIND = '; the network has no gradient at its images, so attacks that follow one fail: use attack = "square", which needs none'


@dataclass
class Judged:
    """An attack bound to the judge: what an `Attack` knob is in a probe.

    white: it follows the model that it attacks, so what makes its number doubtful is looked for. minimal: it seeks the smallest
    change, so one run of it, by `distances`, serves every radius. witnesses: adversarial examples are put on the outcome's shelf.
    elsewhere: where a native attack is run on the samples of a split, instead of here.
    """

    attack: Plain
    threat: Threat | None
    seed: int
    name: str
    native: Build | None = None
    white: bool = True
    minimal: bool = False
    witnesses: bool = False
    elsewhere: Elsewhere | None = None

    def __call__(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int = 512, keep: bool = False) -> Outcome:
        """Attacks the samples at `positions` of a split, `batch` at a time, judges, and asks the model for what makes that doubtful.

        Survives a kill between batches. What follows the loop is no part of it: it comes out the same however often it runs.
        keep: also `points` of all samples. Native attacks leave those that are misclassified clean where they are.
        """
        with self._explained(model, split, positions):
            result = self.attacked(model, split, positions, loop, batch, keep)
            self._recheck(model, split, positions, loop, batch, result)
            result.flags += [flag for flag in self.findings(model, split, positions, batch, result) if flag not in result.flags]
        return result

    @contextlib.contextmanager
    def _explained(self, model: nn.Module, split: Any, positions: Tensor) -> Iterator[None]:
        """A failure says so where it comes of a network that cannot be differentiated, and what can be done."""
        try:
            yield
        except Changed as error:
            raise AttackFailure(f'attack "{self.name}": {error}') from error
        except AttackFailure as error:
            if isinstance(error.__cause__, UserError) or not self.white:
                raise
            with own_randomness(self.seed), frozen(model):
                blind = not has_gradient(model, take(split, positions[:1])[0])
            raise AttackFailure(f"{error}{BLIND if blind else ''}") from error.__cause__

    def attacked(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int = 512, keep: bool = False) -> Outcome:
        """What a call returns, without the flags that ask the model again."""
        if self.native is None:
            return self._plain(model, split, positions, loop, batch, keep)
        if self.elsewhere is None:
            return self._native(model, split, positions, loop, batch, self.native, keep)
        result = woven(self.elsewhere(split.subset(positions), loop, batch, keep))
        result.flags = [flag for flag in result.flags if flag != MASKED_GRADIENT] + [MASKED_GRADIENT] * masked(result.inner)
        return result

    def at(self, eps: Fraction) -> Judged:
        """The same attack with another radius."""
        assert self.threat is not None
        return replace(self, threat=self.threat._replace(eps=eps))

    def proposing(self, ids: Tensor, points: Tensor) -> Judged:
        """The attack that proposes, under the same threat, these points (n, c, h, w) for the samples `ids`, int64 (n,)."""
        order = ids.argsort()
        known = ids[order]

        def propose(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: CounterNoise) -> Tensor:
            wanted = noise.ids.cpu()
            at = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
            if not torch.equal(known[at], wanted):
                raise UserError("there is no point for some of the samples")
            return points[order[at]].to(x)

        return replace(self, attack=propose, native=None, white=False)

    def distances(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int = 512) -> tuple[Outcome, Tensor]:
        """(verdicts at the radius, float64 (n,): distance of the nearest misclassified point, 0 where clean is one, inf if none is known).

        Of a native attack; survives a kill between steps. No sample is retired: every point counts that the attack ever queried.
        """
        assert self.native is not None and self.threat is not None
        with self._explained(model, split, positions):
            run = self._run(model, split, positions, loop, batch, functools.partial(Nearest, build=self.native))
            distance = torch.where(run.found["clean"], run.distance, 0)
            outcome = replace(_outcome(run), robust=run.found["clean"] & (distance > radius(self.threat.eps)), inner={})
            self._recheck(model, split, positions, loop, batch, outcome)
            outcome.flags += [flag for flag in self.findings(model, split, positions, batch, outcome) if flag not in outcome.flags]
        return outcome, distance

    def _recheck(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int, result: Outcome) -> None:
        """Attacks the first samples that a search in bfloat16 left robust again in float32, to say how many it missed.

        Their verdicts stay: a sample's must not depend on which others were asked.
        """
        if result.precision == "exact" or self.native is None:
            return
        asked, held = chosen(result.robust), torch.zeros_like(result.robust)
        if bool(asked.any()):
            kind = functools.partial(Run, build=functools.partial(in_float32, self.native))
            held[asked] = self._run(model, split, positions[asked.to(positions.device)], loop, batch, kind).found["robust"]
        result.recheck = Recheck(asked, held)
        result.flags += [BF16] if result.recheck.missed else []

    def findings(self, model: nn.Module, split: Any, positions: Tensor, batch: int, result: Outcome) -> list[str]:
        """Flags of what the model answers for the first samples, and for the first that are right clean."""
        if not self.white or self.threat is None or self.threat.eps == 0 or not len(positions):
            return []
        right = result.clean.nonzero().squeeze(1)[:SAMPLES]
        with own_randomness(self.seed), frozen(model):
            x, _ = take(split, positions[: min(SAMPLES, batch)])
            found = [*about_modes(model), *about_outputs(model, x)]
            if len(right):
                x, y = take(split, positions[right.to(positions.device)])
                ids, robust = result.ids[right].to(x.device), result.robust[right].to(x.device)
                found += about_gradients(model, x, y, ids, robust, self.threat, self.seed, batch)
        return list(dict.fromkeys(found))

    def _proposer(self) -> Proposer:
        assert self.threat is not None
        return Proposer(self.attack, self.threat, self.seed, self.name)

    def _shelf(self) -> Shelf | None:
        return Shelf() if self.witnesses and self.threat is not None else None

    def _native(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int, build: Build, keep: bool) -> Outcome:
        shelf = self._shelf()
        run = self._run(model, split, positions, loop, batch, functools.partial(Run, build=build, keep=keep, shelf=shelf))
        outcome = replace(_outcome(run), shelf=shelf)
        if run.best is not None:
            parts, admit = torch.split(torch.arange(len(positions)), batch), self._proposer().admit
            outcome.points = torch.cat([admit(run.best[at.to(run.best.device)], run.source(at)[0]).cpu() for at in parts])
        return outcome

    def _run(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int, kind: Callable[..., R]) -> R:
        """By slots, `batch` of them; survives a kill between steps."""
        here = positions.to(split.ids.device)

        def source(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            at = here[rows.to(here.device)]
            return *take(split, at), split.ids[at]

        like = take(split, positions[:1])[0]
        with self._proposer().failures(), own_randomness(self.seed), frozen(model):
            run = kind(model, source, len(positions), self.threat, seed=self.seed, batch=batch, like=like)
            for _ in loop(range(run.steps), state={"run": run}):
                if not run.step():
                    break
        return run

    def _plain(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int, keep: bool) -> Outcome:
        n = len(positions)
        whole, bits, far = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool), torch.zeros(n)
        result = Outcome(whole, whole.clone(), bits, bits.clone(), far, far.clone(), shelf=self._shelf())
        if keep:
            result.points = torch.zeros(n, *split.shape)
        state = {name: value for name, value in vars(result).items() if value is not None and name != "precision"}
        with frozen(model):
            for start in loop(range(0, n, batch), state=state):
                self._batch(model, split, positions[start : start + batch], start, result)
        return result

    def _batch(self, model: nn.Module, split: Any, positions: Tensor, start: int, result: Outcome) -> None:
        x, y = take(split, positions)
        ids = split.ids[positions.to(split.ids.device)]
        here = slice(start, start + len(y))
        clean, margin = verdict(model, x, y)
        result.ids[here], result.y[here], result.clean[here] = ids.cpu(), y.cpu(), clean.cpu()
        result.clean_margin[here] = margin.cpu()
        robust, points = clean.clone(), x.clone()
        if self.threat is not None and bool(clean.any()):
            found = self._proposer()(model, x[clean], y[clean], ids[clean])
            points[clean], robust[clean], margin[clean] = found.points, found.robust, found.margin
            result.flags += [flag for flag in found.flags if flag not in result.flags]
            for name, survived in found.inner.items():
                bits = torch.zeros_like(clean)
                bits[clean] = survived.to(clean.device).bool()
                result.inner.setdefault(name, torch.zeros(len(result.robust), dtype=torch.bool))[here] = bits.cpu()
        broken = clean & ~robust
        if result.shelf is not None:
            result.shelf.add(ids[broken], x[broken], points[broken])
        result.robust[here], result.margin[here] = robust.cpu(), margin.cpu()
        if len(result.points):
            if bool((~clean).any()) and self.threat is not None:
                points[~clean] = self._proposer()(model, x[~clean], y[~clean], ids[~clean]).points
            result.points[here] = points.cpu()


def _outcome(run: Run) -> Outcome:
    found = run.found
    passes = {name: found[name] for name in ("forwards", "gradients")}
    ids, y, clean, robust, first, margin = (found[name] for name in ("ids", "y", "clean", "robust", "clean_margin", "margin"))
    return Outcome(ids, y, clean, robust, first, margin, run.inner, passes, run.flags, precision=run.native.precision)
