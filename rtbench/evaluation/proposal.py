"""A plain attack on one batch: run where it can spoil nothing, and what it proposes moved into the threat model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rtbench.errors import StoreError, UserError
from rtbench.evaluation.guard import Changed, frozen, own_randomness, same
from rtbench.evaluation.outcome import AttackFailure, verdict
from rtbench.evaluation.process import same_process
from rtbench.evaluation.watch import Watch
from rtbench.parts.kinds import Attacked
from rtbench.parts.noise import CounterNoise
from rtbench.parts.threats import Threat, inside, project

Plain = Callable[..., Any]
"""A plain attack with its knobs bound: f(model, x, y, threat, noise) -> x_adv or Attacked."""


class Proposal(NamedTuple):
    """What it made of n samples: points (n, ...) strictly inside, robust bool (n,) and margins there; bits of inner attacks; flags."""

    points: Tensor
    robust: Tensor
    margin: Tensor
    inner: dict[str, Tensor]
    flags: tuple[str, ...]


class Proposer(NamedTuple):
    """A plain attack under a threat, by name."""

    attack: Plain
    threat: Threat
    seed: int
    name: str

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor) -> Proposal:
        """The point it returned, or the best it ever asked about where only that is misclassified. AttackFailure if it did wrong."""
        watch = Watch(x, y, self.threat)
        returned = self._call(model, x, y, ids, watch)
        returned = returned if isinstance(returned, Attacked) else Attacked(returned)
        if not same(x, watch.x) or not same(y, watch.y):
            raise AttackFailure(f'attack "{self.name}" changed its input')
        with self.failures():
            points = self.admit(returned.x_adv, x)
            inner = {str(name): self._bits(str(name), survived, len(y)) for name, survived in returned.outcomes.items()}
            flags = tuple(str(flag) for flag in returned.flags)
        robust, margin = verdict(model, points, y)
        better = (robust & watch.found).nonzero().squeeze(1)
        if len(better):
            robust[better], other = verdict(model, watch.points[better], y[better])
            margin[better] = torch.minimum(margin[better], other)
            broken = better[~robust[better]]
            points = points.index_copy(0, broken, watch.points[broken])
        return Proposal(points, robust, margin, inner, flags)

    def _call(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, watch: Watch) -> Any:
        """What the attack returns; process and model are as before when anything is judged, the last batch as well as the first."""
        with self.failures(alone=True), own_randomness(self.seed), frozen(model), same_process(model), watch.on(model):
            return self.attack(model, x, y, self.threat, CounterNoise(self.seed, ids))

    @contextlib.contextmanager
    def failures(self, alone: bool = False) -> Iterator[None]:
        """Whatever goes wrong within is the attack's failure, but for want of memory, and of disk where the harness works as well.

        alone: nothing but the attack runs within, so that even what would end the run is the attack's doing.
        """
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError, KeyboardInterrupt, AttackFailure):
            raise
        except BaseException as error:
            if not alone and (isinstance(error, StoreError) or not isinstance(error, Exception)):
                raise
            if isinstance(error, Changed | UserError):
                raise AttackFailure(f'attack "{self.name}": {error}') from error
            raise AttackFailure(f'attack "{self.name}" raised {type(error).__name__}: {error}') from error

    def admit(self, x_adv: Any, x: Tensor) -> Tensor:
        """The proposal inside the ball and the box, checked strictly."""
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
