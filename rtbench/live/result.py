"""What `rtbench.evaluate` returns: numbers, every sample's outcome, who broke what, what it cost, how it was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rtbench.evaluation.recheck import Recheck
from rtbench.live import show
from rtbench.live.verdict import Verdict
from rtbench.parts.flags import meaning
from rtbench.statistics import wilson

SCHEMA = 1


class Broken(NamedTuple):
    """How many samples an attack, or one of its inner attacks, broke, and how many were still right after it."""

    attack: str
    broke: int
    left: int


def credited(whole: str, clean: Tensor, robust: Tensor, inner: dict[str, Tensor]) -> list[Broken]:
    """Inner attacks in their order, each credited with what those before it had left; then what only the `whole` broke."""
    found, alive = [], clean
    for name, survived in inner.items():
        after = alive & survived
        found.append(Broken(name, int((alive & ~after).sum()), int(after.sum())))
        alive = after
    if not found or bool((alive & ~robust).any()):
        found.append(Broken(whole, int((alive & ~robust).sum()), int((alive & robust).sum())))
    return found


@dataclass(frozen=True)
class Judgement:
    """One attack. clean, robust, inner: bool (n,), True where the sample was (still) right; None where the attack failed.

    passes: forwards and gradients (samples passed forward, samples differentiated) in total, the judge's own included.
    recheck: of a search in bfloat16, what float32 said of some samples that it left robust.
    per_sample: the same for each sample, int64 (n,), where the attack is a native one; those of flags and of empty slots are left out.
    """

    name: str
    attack: dict[str, Any]
    clean: Tensor | None = None
    robust: Tensor | None = None
    inner: dict[str, Tensor] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    passes: dict[str, int] = field(default_factory=dict)
    per_sample: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    recheck: Recheck | None = None
    failure: str | None = None

    @property
    def accuracy(self) -> float | None:
        return None if self.robust is None else _mean(self.robust)

    @property
    def attribution(self) -> list[Broken]:
        """Inner attacks in the order they ran, each credited with what those before it had left; then what only the whole broke."""
        if self.robust is None or self.clean is None:
            return []
        return credited(self.name, self.clean, self.robust, self.inner)

    def as_json(self) -> dict[str, Any]:
        interval = None if self.robust is None else wilson(_mean(self.robust), len(self.robust))
        return {
            "attack": self.attack, "accuracy": self.accuracy, "interval": interval, "failure": self.failure, "flags": list(self.flags),
            "attribution": [entry._asdict() for entry in self.attribution], "passes": self.passes,
            "per_sample": {name: column.tolist() for name, column in self.per_sample.items()}, "seconds": round(self.seconds, 3),
            "recheck": None if self.recheck is None else {"missed": self.recheck.missed, "asked": _bits(self.recheck.asked),
                                                          "held": _bits(self.recheck.held)},
            "bits": None if self.robust is None else _bits(self.robust), "inner": {name: _bits(bits) for name, bits in self.inner.items()},
        }  # fmt: skip


def judgement(name: str, attack: dict[str, Any], verdict: Verdict) -> Judgement:
    """The verdict of one attack."""
    outcome = verdict.outcome
    return Judgement(name, attack, outcome.clean, outcome.robust, dict(outcome.inner), verdict.measure.flags, verdict.counts,
                     dict(outcome.passes), verdict.seconds, outcome.recheck)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """A model under one attack or several. Shares are fractions in [0, 1]; print it, or show it in a notebook.

    attacks: one `Judgement` each. nonzero: measured shares of weights that are not 0: "all" parameters, "prunable" ones (of Conv, Linear
    and attention, as the model uses them). notes: what to know of how it ran. protocol: every knob, seed, versions, threads, and the
    SHA-256 of the data.
    """

    attacks: dict[str, Judgement]
    clean_bits: Tensor
    ids: Tensor
    y: Tensor
    norm: str | None
    eps: str | None
    own_flags: list[str]
    nonzero: dict[str, float]
    seconds: float
    protocol: dict[str, Any]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def clean(self) -> float:
        """The share of samples classified rightly."""
        return _mean(self.clean_bits)

    @property
    def failures(self) -> dict[str, str]:
        """Why attacks failed, by name."""
        return {name: each.failure for name, each in self.attacks.items() if each.failure is not None}

    @cached_property
    def robust(self) -> Tensor | None:
        """Which samples withstood every attack, bool (n,); None if one failed, for then nobody knows."""
        kept = [each.robust for each in self.attacks.values() if each.robust is not None]
        return torch.stack(kept).all(0) if len(kept) == len(self.attacks) else None

    @property
    def accuracy(self) -> float | None:
        """The share of samples that withstood every attack; None if an attack failed."""
        return None if self.robust is None else _mean(self.robust)

    @property
    def worst(self) -> float | Literal["incomplete"]:
        """The same for a reader: a failed attack makes it "incomplete"; `failures` says why."""
        return "incomplete" if self.accuracy is None else self.accuracy

    @property
    def interval(self) -> list[float] | None:
        """95 % Wilson score interval of `accuracy`."""
        return None if self.accuracy is None else wilson(self.accuracy, len(self))

    @property
    def outcomes(self) -> dict[str, Tensor]:
        """bool (n,) by name, True where the sample was right: "clean", "robust", every attack, and "attack.inner"."""
        found = {"clean": self.clean_bits} | ({} if self.robust is None else {"robust": self.robust})
        for name, each in self.attacks.items():
            found |= {} if each.robust is None else {name: each.robust}
            found |= {f"{name}.{inner}": bits for inner, bits in each.inner.items()}
        return found

    @property
    def attribution(self) -> dict[str, list[Broken]]:
        """Per attack, what each of its inner attacks broke and left."""
        return {name: each.attribution for name, each in self.attacks.items()}

    @property
    def flags(self) -> dict[str, str]:
        """What makes the numbers doubtful, and what each of these words means."""
        raised = [*self.own_flags, *(flag for each in self.attacks.values() for flag in each.flags), *["incomplete"] * bool(self.failures)]
        return {flag: meaning(flag) for flag in dict.fromkeys(raised)}

    @property
    def passes(self) -> dict[str, float]:
        """Samples passed forward and samples differentiated, in total and per sample, over all attacks that came through."""
        total = {word: sum(each.passes.get(word, 0) for each in self.attacks.values()) for word in ("forwards", "gradients")}
        return {**total, **{f"{word}_per_sample": count / len(self) for word, count in total.items()}}

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain lists, dicts, texts and numbers; bits are texts of 0 and 1 in the order of `ids`."""
        return {
            "schema": SCHEMA, "samples": len(self), "norm": self.norm, "eps": self.eps, "clean": self.clean, "accuracy": self.accuracy,
            "worst": self.worst, "interval": self.interval, "attacks": {name: each.as_json() for name, each in self.attacks.items()},
            "flags": self.flags, "failures": self.failures, "passes": self.passes, "seconds": round(self.seconds, 3),
            "bits": {"clean": _bits(self.clean_bits), "robust": None if self.robust is None else _bits(self.robust)},
            "nonzero": self.nonzero, "ids": self.ids.tolist(), "y": self.y.tolist(), "protocol": self.protocol, "notes": self.notes,
        }  # fmt: skip

    def __repr__(self) -> str:
        return show.text(self)

    def _repr_html_(self) -> str:
        return show.html(self)


def _mean(bits: Tensor) -> float:
    return float(bits.double().mean())


def _bits(bits: Tensor) -> str:
    return "".join(map(str, bits.int().tolist()))
