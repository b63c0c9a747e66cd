"""The kinds of parts: what each is called with, what it returns, and what it may declare about itself.

A part takes any subset of its kind's vocabulary (the engine passes only what it asks for); its keyword-only parameters are its
knobs (see `rtbench.parts.knobs`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from rtbench.parts.annotations import readable
from rtbench.parts.knobs import Knob, Range, knobs_of

VOCABULARY: dict[str, tuple[str, ...]] = {
    "dataset": ("root",),
    "architecture": ("shape", "classes"),
    "attack": ("model", "x", "y", "threat", "noise", "classes", "shape"),
    "objective": ("model", "x", "y", "rng", "progress"),
    "trainer": ("model", "masks", "data", "rng", "loop"),
    "pruner": ("model", "masks", "data", "rng", "loop"),
    "probe": ("model", "masks", "data", "rng", "loop", "history", "source", "sources", "own"),
    "report": ("board", "path"),
}
BORROWED = ("source", "sources", "own")
"""What a probe asks for that another probe kept per sample, which it names as `declare(sources=...)`; see `rtbench.hookspecs`."""
TAKEN = {
    "use": "names the part", "at": "says when a probe is measured", "where": "says where a probe is measured",
    "from": "says whose samples a probe is given",
}  # fmt: skip
"""Words of the suite language that no knob may be called; all but `use` only of probes, norm and eps only of attacks."""
Norm = Literal["linf", "l2", "l1"]
Eps = Annotated[Fraction, Range("[0, inf)")]

Passes = tuple[float, float]
"""Samples passed forward, and differentiated: of attacks and objectives per sample, of other parts in all.

A part predicts it as passes(knobs, sizes, nested): sizes are the split lengths by name, nested(kind, part) asks a nested part;
nested(kind, part, radii=5) asks what a nested attack takes at so many radii, at which a minimal-norm one is run once. A probe that is
given several `sources` predicts the passes of one.
"""
Stacked = Callable[[list[dict[str, Any]], Callable[[list[int]], dict[str, Any]]], None]
"""Trains several networks as one: f(calls, together), `calls` being the keyword arguments that the trainer would be called with for each.

together(numbers) has the same knobs once more, with objectives that take one network and one batch for all of these calls, (calls * n, ...)
in their order, and draw for each from its own generator. It returns nothing and leaves in every network, generator and loop what its call
alone would, but for rounding; it raises Unstackable, before anything is changed, where it cannot.
"""
F = TypeVar("F", bound=Callable[..., Any])


class Progress(NamedTuple):
    """Where training stands; drives ramps of eps, beta and weights in objectives."""

    step: int
    steps: int
    epoch: int
    epochs: int


class Unstackable(Exception):
    """These trainings cannot be made as one: each is made alone."""


class Measure(NamedTuple):
    """What a probe returns when it has more to say than numbers.

    numbers: values by name ("" is the probe's own value). samples: per-sample tensors, kept beside the record, "ids" among them.
    flags: findings about the model or the measurement. timings: numbers that differ from run to run, kept with the provenance.
    about: facts that describe the measurement (split, samples, attack, norm, eps). witness: a packed shelf of adversarial examples,
    kept in a file of its own.
    """

    numbers: dict[str, float | None]
    samples: dict[str, Any] = {}  # noqa: RUF012
    flags: tuple[str, ...] = ()
    timings: dict[str, float] = {}  # noqa: RUF012
    about: dict[str, Any] = {}  # noqa: RUF012
    witness: dict[str, Any] | None = None


class Attacked(NamedTuple):
    """What a plain attack may return instead of x_adv alone.

    x_adv: (n, c, h, w). outcomes: per inner attack, a bool tensor (n,), True where the sample survived it. flags: its warnings.
    """

    x_adv: Any
    outcomes: dict[str, Any] = {}  # noqa: RUF012
    flags: tuple[str, ...] = ()


def declare(
    *, version: int = 1, revives: bool = False, structured: bool = False, minimal: tuple[str, ...] = (), witnesses: bool = False,
    norms: tuple[str, ...] = ("linf", "l2", "l1"), sources: str | None = None,
    check: Callable[[dict[str, Any]], None] | None = None,
    passes: Callable[[dict[str, Any], dict[str, int], Callable[..., Passes]], Passes] | None = None,
    stacked: Stacked | None = None,
) -> Callable[[F], F]:  # fmt: skip
    """States facts about a part.

    version: bump it when results change. revives: this pruner may bring weights back. structured: this
    one prunes whole rows of weights, so the number it keeps is as near to its amount as these allow. minimal: the norms under which
    this native attack seeks the smallest change, whatever eps, so that one run of it tells robust accuracy at every radius. norms: those
    that this attack takes; another one is refused when a suite is planned, whatever its other knobs are. witnesses:
    this probe returns the adversarial examples that its attack was asked to keep. sources: of a probe, the probe whose per-sample
    tensors it is given as `source`, `sources` or `own`; it has all knobs of that one, which "source_NAME" may replace on the sources.
    check: called with the checked knobs when a suite is planned, raises ValueError where they do not go together. passes: what
    `rtbench plan` predicts with, see `Passes`. stacked: of a trainer, what trains several networks as one, see `Stacked`.
    """

    def mark(function: F) -> F:
        facts = {"version": version, "revives": revives, "structured": structured, "minimal": minimal, "witnesses": witnesses,
                 "norms": norms, "sources": sources, "check": check, "passes": passes, "stacked": stacked}  # fmt: skip
        for name, value in facts.items():
            setattr(function, name, value)
        return function

    return mark


def version(function: Callable[..., Any]) -> int:
    """The part's hand-bumped version, 1 unless declared."""
    return int(getattr(function, "version", 1))


def minimal(function: Callable[..., Any], norm: str) -> bool:
    """Whether this attack seeks the smallest change under this norm."""
    return norm in getattr(function, "minimal", ())


def stacked(function: Callable[..., Any]) -> Stacked | None:
    """What trains several networks as one; None where this trainer cannot."""
    return getattr(function, "stacked", None)


def asks_for(function: Callable[..., Any]) -> tuple[str, ...]:
    """The positional parameters of a part: the vocabulary it wants."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def lender(function: Callable[..., Any]) -> str | None:
    """The probe whose per-sample tensors this one is given; None where it borrows nothing."""
    return getattr(function, "sources", None)


def native(function: Callable[..., Any]) -> bool:
    """Whether an attack is a native one: it asks for no images and returns `rtbench.parts.slots.Native`, methods that work on slots."""
    return not {"model", "x", "y", "noise"} & set(asks_for(function))


def knobs(kind: str, function: Callable[..., Any]) -> dict[str, Knob]:
    """The knobs a user may set: the part's own, and for attacks under a threat model its norm and eps."""
    own = knobs_of(function)
    if kind == "attack" and "threat" in asks_for(function):
        norm = Knob("norm", Norm, inspect.Parameter.empty, "norm of the threat model")
        eps = Knob("eps", Eps, inspect.Parameter.empty, 'radius in input units, exact: "8/255", 0.3')
        return {"norm": norm, "eps": eps, **own}
    return own


def validate(kind: str, name: str, function: Any) -> None:
    """Raises ValueError, one sentence, unless `function` can serve as a part of this kind."""
    if not callable(function):
        raise ValueError(f'{kind} "{name}" is not a function')
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ValueError(f'{kind} "{name}" may not take {parameter}')
    strangers = [word for word in asks_for(function) if word not in VOCABULARY[kind]]
    if strangers:
        raise ValueError(
            f'{kind} "{name}" asks for {", ".join(strangers)}; a {kind} is called with {", ".join(VOCABULARY[kind])}, '
            "and its knobs are keyword-only (after *)"
        )
    _check_borrowing(kind, name, function)
    if kind == "attack" and name != "none" and "threat" not in asks_for(function):
        raise ValueError(
            f'attack "{name}" does not ask for threat, so there is no ball to judge it in; take threat, which has norm and eps'
        )
    try:
        own = knobs_of(function)
    except (AttributeError, NameError, TypeError) as error:
        raise ValueError(f'{kind} "{name}" has a knob whose annotation cannot be read: {error}') from error
    taken = {word: why for word, why in TAKEN.items() if word == "use" or kind == "probe"}
    if kind == "attack" and "threat" in asks_for(function):
        taken |= {"norm": "comes with `threat`", "eps": "comes with `threat`"}
    for knob in own.values():
        if knob.name in taken:
            raise ValueError(f'{kind} "{name}" may not call a knob "{knob.name}": that word {taken[knob.name]}')
        if not readable(knob.annotation):
            raise ValueError(f'{kind} "{name}": knob "{knob.name}" is of type {knob.annotation}, which no suite can write')


def _check_borrowing(kind: str, name: str, function: Callable[..., Any]) -> None:
    words = [word for word in asks_for(function) if word in BORROWED]
    if bool(words) != (lender(function) is not None):
        asked = " and ".join(words) or "no source"
        raise ValueError(f'{kind} "{name}" asks for {asked}; who asks for source, sources or own declares `sources`, and nobody else does')
    if words and ("source" in words) == ("sources" in words):
        raise ValueError(f'{kind} "{name}" asks for {" and ".join(words)}; ask for `source`, one at a time, or `sources`, all at once')
