"""The judge: one attack against one model on chosen samples, under an exact threat model.

A sample is robust only if the model classifies it rightly both clean and at the point the attack proposed, moved into the ball and
the box. Whatever goes wrong with an attack raises AttackFailure: a failure is never a robust sample.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rtbench.data import take
from rtbench.errors import StoreError, UserError
from rtbench.evaluation.findings import about_modes, about_outputs
from rtbench.evaluation.guard import Changed, frozen, own_randomness, same
from rtbench.evaluation.native import Build, Run
from rtbench.evaluation.nearest import Nearest
from rtbench.evaluation.panel import SAMPLES, about_gradients
from rtbench.evaluation.process import same_process
from rtbench.evaluation.watch import Watch
from rtbench.kinds import Attacked
from rtbench.loop import Loop
from rtbench.noise import CounterNoise
from rtbench.threats import Threat, inside, project, radius

R = TypeVar("R", bound=Run)
Plain = Callable[..., Any]
"""A plain attack with its knobs bound: f(model, x, y, threat, noise) -> x_adv or Attacked."""


class AttackFailure(Exception):
    """The attack crashed or proposed something that is no adversarial example at all."""


@dataclass
class Outcome:
    """What an attack did, one entry per sample in the order asked. True in `robust` is a sample it could not break."""

    ids: Tensor
    y: Tensor
    clean: Tensor
    robust: Tensor
    inner: dict[str, Tensor] = field(default_factory=dict)
    passes: dict[str, Tensor] = field(default_factory=dict)
    """Of native attacks, int64: forwards and gradients, what each sample cost."""
    flags: list[str] = field(default_factory=list)
    points: Tensor = field(default_factory=lambda: torch.zeros(0))
    """If asked for, (n, c, h, w): what the attack made of each sample, those that are misclassified clean too, inside ball and box."""

    @property
    def accuracy(self) -> float:
        return float(self.robust.double().mean())


@dataclass
class Judged:
    """An attack bound to the judge: what an `Attack` knob is in a probe."""

    attack: Plain
    threat: Threat | None
    seed: int
    name: str
    native: Build | None = None
    white: bool = True
    """It follows the model it attacks: what then makes its number doubtful is looked for."""
    minimal: bool = False
    """It seeks the smallest change, so one run of it, by `distances`, serves every radius."""

    def at(self, eps: Fraction) -> Judged:
        """The same attack with another radius."""
        assert self.threat is not None
        return replace(self, threat=self.threat._replace(eps=eps))

    def __call__(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int = 512, keep: bool = False) -> Outcome:
        """Attacks the samples at `positions` of a split, `batch` at a time, judges, and asks the model for what makes that doubtful.

        Survives a kill between batches. What follows the loop is no part of it: it comes out the same however often it runs.
        keep: also `points` of all samples. Native attacks leave those that are misclassified clean where they are.
        """
        try:
            if self.native is not None:
                result = self._native(model, split, positions, loop, batch, self.native, keep)
            else:
                result = self._plain(model, split, positions, loop, batch, keep)
            self._doubt(model, split, positions, batch, result)
        except Changed as error:
            raise AttackFailure(f'attack "{self.name}": {error}') from error
        return result

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

    def _plain(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int, keep: bool) -> Outcome:
        n = len(positions)
        whole, bits = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)
        result = Outcome(whole, whole.clone(), bits, bits.clone())
        if keep:
            result.points = torch.zeros(n, *split.shape)
        with frozen(model):
            for start in loop(range(0, n, batch), state=vars(result)):
                self._batch(model, split, positions[start : start + batch], start, result)
        return result

    def _doubt(self, model: nn.Module, split: Any, positions: Tensor, batch: int, result: Outcome) -> None:
        """Adds flags of what the model answers for the first samples, and for the first that are right clean."""
        if not self.white or self.threat is None or self.threat.eps == 0 or not len(positions):
            return
        right = result.clean.nonzero().squeeze(1)[:SAMPLES]
        with own_randomness(self.seed), frozen(model):
            x, _ = take(split, positions[: min(SAMPLES, batch)])
            found = [*about_modes(model), *about_outputs(model, x)]
            if len(right):
                x, y = take(split, positions[right.to(positions.device)])
                ids, robust = result.ids[right].to(x.device), result.robust[right].to(x.device)
                found += about_gradients(model, x, y, ids, robust, self.threat, self.seed, batch)
        result.flags += [flag for flag in dict.fromkeys(found) if flag not in result.flags]

    def distances(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int = 512) -> tuple[Outcome, Tensor]:
        """(verdicts at the radius, float64 (n,): distance of the nearest misclassified point, 0 where clean is one, inf if none is known).

        Of a native attack; survives a kill between steps. No sample is retired: every point counts that the attack ever queried.
        """
        assert self.native is not None and self.threat is not None
        run = self._run(model, split, positions, loop, batch, self.native, Nearest)
        distance = torch.where(run.found["clean"], run.distance, 0)
        outcome = replace(_outcome(run), robust=run.found["clean"] & (distance > radius(self.threat.eps)), inner={})
        self._doubt(model, split, positions, batch, outcome)
        return outcome, distance

    def _native(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int, build: Build, keep: bool) -> Outcome:
        run = self._run(model, split, positions, loop, batch, build, functools.partial(Run, keep=keep))
        outcome = _outcome(run)
        if run.best is not None:
            parts = torch.split(torch.arange(len(positions)), batch)
            outcome.points = torch.cat([self._admit(run.best[at.to(run.best.device)], run.source(at)[0]).cpu() for at in parts])
        return outcome

    def _run(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int, build: Build, kind: Callable[..., R]) -> R:
        """By slots, `batch` of them; survives a kill between steps."""
        assert self.threat is not None
        here = positions.to(split.ids.device)

        def source(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            at = here[rows.to(here.device)]
            return *take(split, at), split.ids[at]

        with self._failures(), own_randomness(self.seed), frozen(model):
            run = kind(model, source, len(positions), self.threat, build, self.seed, batch, take(split, positions[:1])[0])
            for _ in loop(range(run.steps), state={"run": run}):
                if not run.step():
                    break
        return run

    def _batch(self, model: nn.Module, split: Any, positions: Tensor, start: int, result: Outcome) -> None:
        x, y = take(split, positions)
        ids = split.ids[positions.to(split.ids.device)]
        here = slice(start, start + len(y))
        clean = correct(model, x, y)
        result.ids[here], result.y[here], result.clean[here] = ids.cpu(), y.cpu(), clean.cpu()
        inner: dict[str, Tensor] = {}
        robust, points = clean, x.clone()
        if self.threat is not None and bool(clean.any()):
            points[clean], held, inner = self._attack(model, x[clean], y[clean], ids[clean], result)
            robust = clean.clone()
            robust[clean] = held
        result.robust[here] = robust.cpu()
        if len(result.points):
            if bool((~clean).any()):
                points[~clean] = self._attack(model, x[~clean], y[~clean], ids[~clean], result)[0]
            result.points[here] = points.cpu()
        for name, survived in inner.items():
            bits = clean.clone()
            bits[clean] = survived.to(clean.device).bool()
            result.inner.setdefault(name, torch.zeros(len(result.robust), dtype=torch.bool))[here] = bits.cpu()

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, result: Outcome) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(points, robust, outcomes of inner attacks): the point returned, or the best ever queried where only that is misclassified."""
        assert self.threat is not None
        watch = Watch(x, y, self.threat)
        returned = self._call(model, x, y, ids, watch)
        returned = returned if isinstance(returned, Attacked) else Attacked(returned)
        if not same(x, watch.x) or not same(y, watch.y):
            raise AttackFailure(f'attack "{self.name}" changed its input')
        with self._failures():
            x_adv = self._admit(returned.x_adv, x)
            inner = {str(name): self._bits(str(name), survived, len(y)) for name, survived in returned.outcomes.items()}
            result.flags += [str(flag) for flag in returned.flags if str(flag) not in result.flags]
        robust = correct(model, x_adv, y)
        better = (robust & watch.found).nonzero().squeeze(1)
        if len(better):
            robust[better] = correct(model, watch.points[better], y[better])
            x_adv = x_adv.index_copy(0, better, watch.points[better])
        return x_adv, robust, inner

    def _call(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, watch: Watch) -> Any:
        """What the attack returns; process and model are as before when anything is judged, the last batch as well as the first."""
        with self._failures(alone=True), own_randomness(self.seed), frozen(model), same_process(model), watch.on(model):
            return self.attack(model, x, y, self.threat, CounterNoise(self.seed, ids))

    @contextlib.contextmanager
    def _failures(self, alone: bool = False) -> Iterator[None]:
        """Whatever goes wrong within is the attack's failure, but for want of memory, and of disk where the harness works as well.

        alone: nothing but the attack runs within, so that even what would end the run is the attack's doing.
        """
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError, KeyboardInterrupt, AttackFailure):
            raise
        except (Changed, UserError) as error:
            raise AttackFailure(f'attack "{self.name}": {error}') from error
        except BaseException as error:
            if not alone and (isinstance(error, StoreError) or not isinstance(error, Exception)):
                raise
            raise AttackFailure(f'attack "{self.name}" raised {type(error).__name__}: {error}') from error

    def _admit(self, x_adv: Any, x: Tensor) -> Tensor:
        """The proposal inside the ball and the box, checked strictly."""
        assert self.threat is not None
        # A subclass of Tensor decides itself what its operations do, the judge's included.
        if type(x_adv) not in (Tensor, nn.Parameter) or x_adv.shape != x.shape:
            shape = tuple(x_adv.shape) if type(x_adv) in (Tensor, nn.Parameter) else type(x_adv).__name__
            raise AttackFailure(f'attack "{self.name}" returned {shape}, not images of shape {tuple(x.shape)}')
        x_adv = x_adv.detach().to(x)
        if not bool(torch.isfinite(x_adv).all()):
            raise AttackFailure(f'attack "{self.name}" returned values that are not finite')
        admitted = project(x_adv, x, self.threat)
        if not bool(inside(admitted, x, self.threat).all()):
            raise AttackFailure(f'attack "{self.name}": its points could not be moved into the threat model')
        return admitted

    def _bits(self, name: str, survived: Any, n: int) -> Tensor:
        if type(survived) is not Tensor or survived.shape != (n,):
            raise AttackFailure(f'attack "{self.name}" returned outcomes of "{name}" that are not one bit per sample')
        return survived.detach()


def _outcome(run: Run) -> Outcome:
    found = run.found
    passes = {name: found[name] for name in ("forwards", "gradients")}
    return Outcome(found["ids"], found["y"], found["clean"], found["robust"], run.inner, passes, run.flags)


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which samples the model gets right, bool (n,); a logit that is not finite counts as wrong."""
    logits: Tensor = model(x)
    return (logits.argmax(1) == y) & torch.isfinite(logits).all(1)
