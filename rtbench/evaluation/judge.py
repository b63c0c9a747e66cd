"""The judge: one attack against one model on chosen samples, under an exact threat model.

A sample is robust only if the model classifies it rightly both clean and at the point the attack proposed, moved into the ball and
the box. Whatever goes wrong with an attack raises AttackFailure: a failure is never a robust sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rtbench.data import take
from rtbench.errors import StoreError, UserError
from rtbench.evaluation.findings import about_modes, about_outputs
from rtbench.evaluation.guard import Changed, frozen, own_randomness, same
from rtbench.evaluation.margins import margins
from rtbench.evaluation.native import Build, Run
from rtbench.evaluation.panel import SAMPLES, about_gradients
from rtbench.evaluation.process import same_process
from rtbench.evaluation.watch import Watch
from rtbench.evaluation.witness import Shelf
from rtbench.kinds import Attacked
from rtbench.loop import Loop
from rtbench.noise import CounterNoise
from rtbench.threats import Threat, inside, project

Plain = Callable[..., Any]
"""A plain attack with its knobs bound: f(model, x, y, threat, noise) -> x_adv or Attacked."""


class AttackFailure(Exception):
    """The attack crashed or proposed something that is no adversarial example at all."""


@dataclass
class Outcome:
    """What an attack did, one entry per sample in the order asked. True in `robust` is a sample it could not break.

    clean_margin, margin: float32 (see `margins`), at the clean image and where the verdict was given: of a broken sample at its
    adversarial example, of one that is wrong clean at the clean image, of a robust one at the point that a plain attack returned, and
    under native attacks the lowest one that the search saw, in the search's precision.
    """

    ids: Tensor
    y: Tensor
    clean: Tensor
    robust: Tensor
    clean_margin: Tensor
    margin: Tensor
    inner: dict[str, Tensor] = field(default_factory=dict)
    passes: dict[str, Tensor] = field(default_factory=dict)
    """Of native attacks, int64: forwards and gradients, what each sample cost."""
    flags: list[str] = field(default_factory=list)
    shelf: Shelf | None = None
    """Where adversarial examples of samples that are right clean were put, if they were to be kept."""

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
    keep: bool = False
    """Adversarial examples are put on the outcome's shelf."""

    def __call__(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int = 512) -> Outcome:
        """Attacks the samples at `positions` of a split, `batch` at a time, judges, and asks the model for what makes that doubtful.

        Survives a kill between batches. What follows the loop is no part of it: it comes out the same however often it runs.
        """
        try:
            if self.native is not None:
                result = self._native(model, split, positions, loop, batch, self.native)
            else:
                result = self._plain(model, split, positions, loop, batch)
            if self.threat is not None and self.threat.eps > 0 and len(positions):
                with own_randomness(self.seed), frozen(model):
                    found = self.findings(model, split, positions, batch, result)
                result.flags += [flag for flag in found if flag not in result.flags]
        except Changed as error:
            raise AttackFailure(f'attack "{self.name}": {error}') from error
        return result

    def _shelf(self) -> Shelf | None:
        return Shelf() if self.keep and self.threat is not None else None

    def _plain(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int) -> Outcome:
        n = len(positions)
        whole, bits, far = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool), torch.zeros(n)
        result = Outcome(whole, whole.clone(), bits, bits.clone(), far, far.clone(), shelf=self._shelf())
        state = {name: value for name, value in vars(result).items() if value is not None}
        with frozen(model):
            for start in loop(range(0, n, batch), state=state):
                self._batch(model, split, positions[start : start + batch], start, result)
        return result

    def findings(self, model: nn.Module, split: Any, positions: Tensor, batch: int, result: Outcome) -> list[str]:
        """Flags of the first samples, and of the first that are right clean; the model is in eval mode."""
        assert self.threat is not None
        x, _ = take(split, positions[: min(SAMPLES, batch)])
        flags = list(dict.fromkeys([*about_modes(model), *about_outputs(model, x)]))
        right = result.clean.nonzero().squeeze(1)[:SAMPLES]
        if len(right):
            x, y = take(split, positions[right.to(positions.device)])
            ids, robust = result.ids[right].to(x.device), result.robust[right].to(x.device)
            flags += about_gradients(model, x, y, ids, robust, self.threat, self.seed, batch)
        return flags

    def _native(self, model: nn.Module, split: Any, positions: Tensor, loop: Loop, batch: int, build: Build) -> Outcome:
        """By slots, `batch` of them; survives a kill between steps."""
        assert self.threat is not None
        here, shelf = positions.to(split.ids.device), self._shelf()

        def source(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            at = here[rows.to(here.device)]
            return *take(split, at), split.ids[at]

        with self._failures(), own_randomness(self.seed), frozen(model):
            like = take(split, positions[:1])[0]
            run = Run(model, source, len(positions), self.threat, build, self.seed, batch, like, shelf=shelf)
            for _ in loop(range(run.steps), state={"run": run}):
                if not run.step():
                    break
        found = run.found
        passes = {name: found[name] for name in ("forwards", "gradients")}
        ids, y, clean, robust, first, margin = (found[name] for name in ("ids", "y", "clean", "robust", "clean_margin", "margin"))
        return Outcome(ids, y, clean, robust, first, margin, run.inner, passes, run.flags, shelf)

    def _batch(self, model: nn.Module, split: Any, positions: Tensor, start: int, result: Outcome) -> None:
        x, y = take(split, positions)
        ids = split.ids[positions.to(split.ids.device)]
        here = slice(start, start + len(y))
        clean, margin = verdict(model, x, y)
        result.ids[here], result.y[here], result.clean[here] = ids.cpu(), y.cpu(), clean.cpu()
        result.clean_margin[here] = margin.cpu()
        inner: dict[str, Tensor] = {}
        robust = clean
        if self.threat is not None and bool(clean.any()):
            held, nearest, points, inner = self._attack(model, x[clean], y[clean], ids[clean], result)
            robust = clean.clone()
            robust[clean] = held
            margin[clean] = nearest
            if result.shelf is not None:
                result.shelf.add(ids[clean][~held], x[clean][~held], points[~held])
        result.robust[here], result.margin[here] = robust.cpu(), margin.cpu()
        for name, survived in inner.items():
            bits = clean.clone()
            bits[clean] = survived.to(clean.device).bool()
            result.inner.setdefault(name, torch.zeros(len(result.robust), dtype=torch.bool))[here] = bits.cpu()

    def _attack(
        self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, result: Outcome
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(robust, bool (n,): what is right at the point returned, and at the best ever queried; margins; points; inner outcomes)."""
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
        robust, margin = verdict(model, x_adv, y)
        better = (robust & watch.found).nonzero().squeeze(1)
        if len(better):
            again, other = verdict(model, watch.points[better], y[better])
            robust[better] = again
            margin[better] = torch.minimum(margin[better], other)
            x_adv[better[~again]] = watch.points[better[~again]]
        return robust, margin, x_adv, inner

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


@torch.no_grad()
def verdict(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples the model gets right, bool (n,), a logit that is not finite counting as wrong; and the margins."""
    logits: Tensor = model(x)
    return (logits.argmax(1) == y) & torch.isfinite(logits).all(1), margins(logits, y)


def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which samples the model gets right, bool (n,)."""
    return verdict(model, x, y)[0]
