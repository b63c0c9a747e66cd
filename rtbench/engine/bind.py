"""From a resolved part to something to call: knobs decoded, nested parts bound to the generator, the judge or the stage's seed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from rtbench import keys
from rtbench.engine.loop import Loop
from rtbench.evaluation.guard import frozen, own_randomness
from rtbench.evaluation.judge import Judged
from rtbench.evaluation.native import Build, plain
from rtbench.parts.kinds import Attacked, Measure, Progress, asks_for, knobs, minimal, native
from rtbench.parts.knobs import decode
from rtbench.parts.masks import of_weights
from rtbench.parts.noise import Generators, training_noise
from rtbench.parts.threats import Threat
from rtbench.plugins import Catalogue

START = Progress(0, 1, 0, 1)


@dataclass(frozen=True)
class Binder:
    """Binds parts for one stage. rng: the stage's generator. data: what nested probes see."""

    catalogue: Catalogue
    seed: int
    rng: torch.Generator | Generators
    data: Any = None
    history: tuple[Any, ...] = ()
    counts: dict[str, int] | None = None
    """The stage's pass counts; probes inside training do not add to them."""
    keep: bool = False
    """Attacks of probes keep adversarial examples."""

    def part(self, kind: str, resolved: dict[str, Any]) -> Callable[..., Any]:
        """The part as a function of its vocabulary words, given by keyword; it is passed those it asks for. Native attacks become plain."""
        if kind == "attack" and native(self.catalogue.get(kind, resolved["use"]).function):
            return functools.partial(plain, self._native(resolved))
        return self._bound(kind, resolved)

    def _native(self, resolved: dict[str, Any]) -> Build:
        bound = self._bound("attack", resolved)
        return lambda threat, classes, shape: bound(threat=threat, classes=classes, shape=shape)

    def values(self, kind: str, resolved: dict[str, Any]) -> dict[str, Any]:
        """The part's knobs as its function is given them."""
        function = self.catalogue.get(kind, resolved["use"]).function
        given_as_threat = ("norm", "eps") if "threat" in asks_for(function) else ()
        declared = {name: knob for name, knob in knobs(kind, function).items() if name not in given_as_threat}
        return {
            name: decode(knob.annotation, resolved["knobs"][name], lambda k, v: self.nested(kind, k, v)) for name, knob in declared.items()
        }

    def _bound(self, kind: str, resolved: dict[str, Any]) -> Callable[..., Any]:
        function, values = self.catalogue.get(kind, resolved["use"]).function, self.values(kind, resolved)
        words = asks_for(function)

        def call(**given: Any) -> Any:
            return function(**{word: given[word] for word in words}, **values)

        return call

    def nested(self, outer: str, kind: str, resolved: dict[str, Any]) -> Any:
        """A nested part as its outer part calls it; see `rtbench.hookspecs`."""
        if kind == "attack":
            return self.judged(resolved) if outer == "probe" else self.raw_attack(resolved)
        bound = self.part(kind, resolved)
        if kind == "objective":
            return functools.partial(_objective, bound, self.rng)
        if kind == "trainer":
            return functools.partial(_trainer, bound, self.rng)
        if kind == "probe":
            return self.probe(bound, resolved)
        raise TypeError(f"a {kind} cannot be a knob")

    def judged(self, resolved: dict[str, Any]) -> Judged:
        bound = self.part("attack", resolved)

        def called(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Any:
            return bound(model=model, x=x, y=y, threat=threat, noise=noise)

        function, threat = self.catalogue.get("attack", resolved["use"]).function, threat_of(resolved)
        slots = self._native(resolved) if native(function) else None
        smallest = threat is not None and minimal(function, threat.norm)
        return Judged(called, threat, self.seed, resolved["use"], slots, minimal=smallest, witnesses=self.keep)

    def raw_attack(self, resolved: dict[str, Any]) -> Callable[..., Tensor]:
        """attack(model, x, y, rng) -> x_adv, crafted in eval mode, for training."""
        bound, threat = self.part("attack", resolved), threat_of(resolved)
        if threat is None:
            return lambda model, x, y, rng: x

        def attack(model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator | Generators) -> Tensor:
            modes = [(module, module.training) for module in model.modules()]
            model.eval()
            try:
                returned = bound(model=model, x=x, y=y, threat=threat, noise=training_noise(rng, len(x)))
            finally:
                for module, training in modes:
                    module.training = training
            x_adv: Tensor = returned.x_adv if isinstance(returned, Attacked) else returned
            return x_adv.detach()

        return attack

    def probe(self, bound: Callable[..., Any], resolved: dict[str, Any]) -> Callable[..., Measure]:
        """probe(model, masks) -> Measure, for use inside training: neither the stage's generators nor its pass counts notice."""

        def measure(model: nn.Module, masks: Any) -> Measure:
            rng = torch.Generator().manual_seed(keys.seed(self.seed, "probe", resolved))
            counts = dict(self.counts or {})
            with own_randomness(rng.initial_seed()), frozen(model):
                weights = of_weights(model, masks)
                measured = bound(model=model, masks=weights, data=self.data, rng=rng, loop=Loop(), history=self.history)
            if self.counts is not None:
                self.counts.update(counts)
            return as_measure(measured)

        return measure


def _objective(
    bound: Callable[..., Any], rng: torch.Generator | Generators, model: nn.Module, x: Tensor, y: Tensor, progress: Progress = START
) -> Tensor:
    losses: Tensor = bound(model=model, x=x, y=y, rng=rng, progress=progress)
    return losses


def _trainer(bound: Callable[..., Any], rng: torch.Generator | Generators, model: nn.Module, masks: Any, data: Any, loop: Loop) -> Any:
    return bound(model=model, masks=masks, data=data, rng=rng, loop=loop)


def threat_of(resolved: dict[str, Any]) -> Threat | None:
    """The threat model that an attack part states; None for an attack under none."""
    given = resolved["knobs"]
    return Threat(given["norm"], Fraction(given["eps"])) if "norm" in given and "eps" in given else None


def as_measure(returned: Any) -> Measure:
    """What a probe returned as a Measure: a number is its own value, a dict its numbers."""
    if isinstance(returned, Measure):
        return returned
    if isinstance(returned, dict):
        return Measure({str(name): None if value is None else float(value) for name, value in returned.items()})
    return Measure({"": float(returned)})
