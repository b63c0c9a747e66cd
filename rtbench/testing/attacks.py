"""The contract of attacks: f(model, x, y, threat, noise) -> x_adv, under every norm that the attack takes."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rtbench.data.splits import take
from rtbench.engine.bind import threat_of
from rtbench.engine.loop import Loop
from rtbench.errors import UserError
from rtbench.evaluation.guard import own_randomness
from rtbench.evaluation.judge import AttackFailure, Outcome, correct
from rtbench.parts.kinds import Attacked, asks_for
from rtbench.parts.noise import CounterNoise
from rtbench.parts.threats import Threat, inside, project
from rtbench.testing.lab import alike, changes, data, generators, portrait, trained
from rtbench.testing.result import Broken, Skip, need
from rtbench.testing.sample import Subject

BALLS = {"linf": "3/10", "l2": "2", "l1": "10"}
"""So wide that attacks which go on until they succeed are soon done."""
SAMPLES = 32
PATIENCE = 3.0
"""Seconds after which `harmless` is content with the norms it has seen: such attacks go on to the end in a ball of radius 0."""
SEED = 5


class Trial(NamedTuple):
    """One call on the trained network: what it returned, and what it left changed."""

    threat: Threat | None
    resolved: dict[str, Any]
    x: Tensor
    y: Tensor
    proposed: Any
    touched: list[str]


def prepare(subject: Subject) -> None:
    """Skip where it takes none of the norms."""
    _trials(subject)


def _trials(subject: Subject) -> list[Trial]:
    """A first call under each norm that it does not refuse with a UserError."""
    return subject.once("trials", lambda: _try(subject))


def _try(subject: Subject) -> list[Trial]:
    if "threat" not in asks_for(subject.part.function):
        return [_call(subject, subject.resolve())]
    found, refusals = [], []
    for norm, eps in BALLS.items():
        if subject.wanted.get("norm", norm) != norm:
            continue
        try:
            found.append(_call(subject, subject.resolve(norm=norm, eps=subject.wanted.get("eps", eps))))
        except UserError as error:
            refusals.append(str(error))
    if not found:
        raise Skip(f"it takes none of linf, l2 and l1: {'; '.join(dict.fromkeys(refusals))}")
    return found


def _samples() -> tuple[Any, Tensor]:
    split = data().test
    return split, torch.arange(SAMPLES)


def _call(subject: Subject, resolved: dict[str, Any]) -> Trial:
    """As training calls it: eval mode, but parameters that require grad and hold one already."""
    model = trained().eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    split, positions = _samples()
    x, y = take(split, positions)
    x_before, y_before, before = x.clone(), y.clone(), portrait(model)
    with own_randomness(SEED):
        part = subject.binder(SEED).part("attack", resolved)
        noise = CounterNoise(SEED, split.ids[positions])
        proposed = part(model=model, x=x, y=y, threat=threat_of(resolved), noise=noise)
    touched = changes(before, portrait(model))
    if not torch.equal(x, x_before) or not torch.equal(y, y_before):
        touched.append("its input")
    return Trial(threat_of(resolved), resolved, x_before, y_before, proposed, touched)


def _proposal(trial: Trial) -> Any:
    return trial.proposed.x_adv if isinstance(trial.proposed, Attacked) else trial.proposed


def _where(trial: Trial) -> str:
    return f"under {trial.threat.norm}, " if trial.threat else ""


def proposes(subject: Subject) -> None:
    """It gives finite images of its input's shape and dtype, and where it adds outcomes, a bool per sample."""
    for trial in _trials(subject):
        x_adv = _proposal(trial)
        need(isinstance(x_adv, Tensor), f"{_where(trial)}it returns {type(x_adv).__name__}")
        need(x_adv.shape == trial.x.shape and x_adv.dtype == trial.x.dtype,
             f"{_where(trial)}it returns {x_adv.dtype} {tuple(x_adv.shape)} for {trial.x.dtype} {tuple(trial.x.shape)}")  # fmt: skip
        need(bool(torch.isfinite(x_adv).all()), f"{_where(trial)}it returns values that are not finite")
        for name, bits in trial.proposed.outcomes.items() if isinstance(trial.proposed, Attacked) else ():
            need(bits.shape == (SAMPLES,) and bits.dtype == torch.bool, f'{_where(trial)}outcomes of "{name}" are not a bool per sample')


def admissible(subject: Subject) -> None:
    """What it proposes can be moved into the ball and the box, strictly."""
    for trial in _trials(subject):
        if trial.threat is not None:
            admitted = project(_proposal(trial).detach(), trial.x, trial.threat)
            need(bool(inside(admitted, trial.x, trial.threat).all()), f"{_where(trial)}some points stay outside")


def tidy(subject: Subject) -> None:
    """It leaves its input, weights, buffers, modes, requires_grad, .grad and hooks as they were."""
    for trial in _trials(subject):
        need(not trial.touched, f"{_where(trial)}it changes {', '.join(trial.touched)}")


def repeatable(subject: Subject) -> None:
    """The same noise gives the same images, bit for bit."""
    for trial in _trials(subject):
        again = _call(subject, trial.resolved)
        need(alike(_proposal(trial), _proposal(again)), f"{_where(trial)}two calls with the same noise differ")


def harmful(subject: Subject) -> None:
    """It does not help the network: accuracy on what it proposes is not above clean accuracy by more than 5 points."""
    model = trained().eval()
    for trial in _trials(subject):
        x_adv = _proposal(trial).detach()
        admitted = project(x_adv, trial.x, trial.threat) if trial.threat else x_adv
        clean, after = (float(correct(model, x, trial.y).double().mean()) for x in (trial.x, admitted))
        need(after <= clean + 0.05, f"{_where(trial)}accuracy rises from {clean:.3f} to {after:.3f}")


def judged(subject: Subject) -> None:
    """Judged twice it gives the same verdicts, none better than clean, and the global generators are as before."""
    for trial in _trials(subject):
        before = generators()
        first = _judge(subject, trial.resolved)
        need(alike(before, generators()), f"{_where(trial)}a global generator was drawn from or seeded")
        torch.rand(3)
        second = _judge(subject, trial.resolved)
        need(alike(vars(first), vars(second)), f"{_where(trial)}two evaluations differ")
        need(first.accuracy <= float(first.clean.double().mean()), f"{_where(trial)}robust accuracy is above clean accuracy")


def harmless(subject: Subject) -> None:
    """With eps = 0 robust accuracy is clean accuracy."""
    started = time.monotonic()
    for trial in _trials(subject):
        if trial.threat is not None and time.monotonic() - started < PATIENCE:
            outcome = _judge(subject, subject.resolve(norm=trial.threat.norm, eps="0"), SAMPLES // 4)
            need(torch.equal(outcome.robust, outcome.clean), f"{_where(trial)}some samples count as broken in a ball of radius 0")


def _judge(subject: Subject, resolved: dict[str, Any], samples: int = SAMPLES) -> Outcome:
    """As a probe calls it, in batches of half of all samples."""
    split, positions = _samples()
    try:
        return subject.binder(SEED).judged(resolved)(trained(), split, positions[:samples], Loop(), SAMPLES // 2)
    except AttackFailure as error:
        raise Broken(str(error)) from error


CHECKS = (proposes, admissible, tidy, repeatable, harmful, judged, harmless)
