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
from rtbench.evaluation.guard import Changed, frozen, own_randomness
from rtbench.evaluation.margins import margins
from rtbench.evaluation.native import Build, Run
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
        """Attacks the samples at `positions` of a split, `batch` at a time, and judges; survives a kill between batches."""
        if self.native is not None:
            return self._native(model, split, positions, loop, batch, self.native)
        n = len(positions)
        whole, bits, far = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool), torch.zeros(n)
        result = Outcome(whole, whole.clone(), bits, bits.clone(), far, far.clone(), shelf=self._shelf())
        state = {name: value for name, value in vars(result).items() if value is not None}
        try:
            with frozen(model):
                for start in loop(range(0, n, batch), state=state):
                    self._batch(model, split, positions[start : start + batch], start, result)
        except Changed as error:
            raise AttackFailure(f'attack "{self.name}": {error}') from error
        return result

    def _shelf(self) -> Shelf | None:
        return Shelf() if self.keep and self.threat is not None else None

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
            x_adv, inner = self._attack(model, x[clean], y[clean], ids[clean], result)
            robust = clean.clone()
            robust[clean], margin[clean] = verdict(model, x_adv, y[clean])
            if result.shelf is not None:
                broken = ~robust[clean]
                result.shelf.add(ids[clean][broken], x[clean][broken], x_adv[broken])
        result.robust[here], result.margin[here] = robust.cpu(), margin.cpu()
        for name, survived in inner.items():
            bits = clean.clone()
            bits[clean] = survived.to(clean.device).bool()
            result.inner.setdefault(name, torch.zeros(len(result.robust), dtype=torch.bool))[here] = bits.cpu()

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, result: Outcome) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.threat is not None
        x_before, y_before = x.clone(), y.clone()
        returned = self._call(model, x, y, ids)
        returned = returned if isinstance(returned, Attacked) else Attacked(returned)
        if not torch.equal(x, x_before) or not torch.equal(y, y_before):
            raise AttackFailure(f'attack "{self.name}" changed its input')
        result.flags += [flag for flag in returned.flags if flag not in result.flags]
        for name, survived in returned.outcomes.items():
            if not isinstance(survived, Tensor) or survived.shape != (len(y),):
                raise AttackFailure(f'attack "{self.name}" returned outcomes of "{name}" that are not one bit per sample')
        return self._admit(returned.x_adv, x), dict(returned.outcomes)

    def _call(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor) -> Any:
        """What the attack returns; the model is as it was before anything is judged, the last batch as well as the first."""
        with self._failures(), own_randomness(self.seed), frozen(model):
            return self.attack(model, x, y, self.threat, CounterNoise(self.seed, ids))

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Whatever goes wrong within is the attack's failure, but for want of memory or disk."""
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError, StoreError):
            raise
        except (Changed, UserError) as error:
            raise AttackFailure(f'attack "{self.name}": {error}') from error
        except Exception as error:
            raise AttackFailure(f'attack "{self.name}" raised {type(error).__name__}: {error}') from error

    def _admit(self, x_adv: Any, x: Tensor) -> Tensor:
        """The proposal inside the ball and the box, checked strictly."""
        assert self.threat is not None
        if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
            shape = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
            raise AttackFailure(f'attack "{self.name}" returned {shape}, not images of shape {tuple(x.shape)}')
        x_adv = x_adv.detach().to(x)
        if not bool(torch.isfinite(x_adv).all()):
            raise AttackFailure(f'attack "{self.name}" returned values that are not finite')
        admitted = project(x_adv, x, self.threat)
        if not bool(inside(admitted, x, self.threat).all()):
            raise AttackFailure(f'attack "{self.name}": its points could not be moved into the threat model')
        return admitted


@torch.no_grad()
def verdict(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples the model gets right, bool (n,), a logit that is not finite counting as wrong; and the margins."""
    logits: Tensor = model(x)
    return (logits.argmax(1) == y) & torch.isfinite(logits).all(1), margins(logits, y)


def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which samples the model gets right, bool (n,)."""
    return verdict(model, x, y)[0]
