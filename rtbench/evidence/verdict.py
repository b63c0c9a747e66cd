"""What a check of one row found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

NUMERICS = 1e-5
"""A verdict closer to the boundary than this may be another one on another CPU: logits of a few units carry errors of that size."""
MISSED = "missed"
"""The number of the probes that says what share of the samples a search in bfloat16 left robust float32 breaks."""
MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError, SafetensorError)
"""What comes of a record that is signed and yet is not what any rtbench wrote."""


@dataclass
class Verdict:
    """One row. problems: one line each, what does not hold and why. unsaid: what could not be checked, and why.

    samples, witnesses, numerics: samples and adversarial examples asked again, and how many of either are too close to the boundary to
    tell. again: samples attacked again. robust: samples said to be robust, which no check but attacking again can show.
    """

    key: str
    what: str
    problems: list[str] = field(default_factory=list)
    unsaid: list[str] = field(default_factory=list)
    samples: int = 0
    witnesses: int = 0
    numerics: int = 0
    again: int = 0
    robust: int = 0

    def problem(self, name: str, text: str) -> None:
        line = f"{name}: {text}"
        if line not in self.problems:
            self.problems.append(line)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "ok": not self.problems}


@dataclass
class Claim:
    """What a row says: the probe's resolved part, its numbers, flags and per-sample tensors; and what it says it of.

    passes: forwards and gradients in all. witness: a packed shelf. threads: in which it was computed, as
    is said of it; they change the last bits of a pass. points: (n, c, h, w), what the attack made of each sample, if it was to be kept.
    """

    part: dict[str, Any]
    numbers: dict[str, Any]
    flags: list[str]
    about: dict[str, Any]
    passes: dict[str, int] | None
    samples: dict[str, Tensor]
    witness: dict[str, Tensor] | None
    model: nn.Module
    split: Any
    seed: int
    threads: Any = None
    points: Tensor | None = None

    @property
    def attack(self) -> dict[str, Any]:
        """The resolved attack."""
        found: dict[str, Any] = self.part["knobs"]["attack"]
        return found

    @property
    def inner(self) -> dict[str, Tensor]:
        """Bits after each of the attack's own parts, in the order of the numbers."""
        return {name: self.samples[f"robust.{name}"].bool() for name in self.numbers if name and f"robust.{name}" in self.samples}

    def bits(self, name: str) -> Tensor:
        return self.samples[name].bool()


def some(ids: Tensor) -> str:
    """ "3 samples, first id 17" """
    return f"{len(ids)} sample{'s' if len(ids) != 1 else ''}, first id {int(ids[0])}"
