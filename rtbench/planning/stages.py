"""A stage: one call of one part on fixed inputs, named by its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rtbench import keys
from rtbench.planning.runs import Move

PROTOCOL = {"init": 1, "load": 1, "train": 1, "prune": 1, "transfer": 1, "probe": 2}
"""The harness's own version of each verb: bumped when what it does to a stage changes its result."""
STATES = ("weights", "masks")
"""Roles of inputs that are states; every other input is the samples that a probe kept."""


@dataclass(frozen=True)
class Stage:
    """One call of one part on fixed inputs. `files` maps digests of loaded files to their paths and is not part of the key."""

    verb: str
    part: dict[str, Any]
    data: dict[str, Any]
    net: dict[str, Any]
    seed: int
    inputs: dict[str, str]
    files: dict[str, str] = field(default_factory=dict, compare=False)

    @cached_property
    def key(self) -> str:
        return keys.key(self.described())

    def described(self) -> dict[str, Any]:
        """The JSON value that the key hashes."""
        return {
            "verb": self.verb, "protocol": PROTOCOL[self.verb], "part": self.part, "data": self.data, "net": self.net,
            "seed": self.seed, "inputs": self.inputs,
        }  # fmt: skip

    def parents(self) -> set[str]:
        """Keys of the stages whose state or samples this one reads."""
        return {ref.split("/")[0] for ref in self.inputs.values()}

    def states(self) -> list[str]:
        """The states that this one reads, "KEY" or "KEY/SNAPSHOT"."""
        return [ref for role, ref in self.inputs.items() if role in STATES]

    def borrowed(self) -> list[str]:
        """Roles of inputs that are samples of probes."""
        return [role for role in self.inputs if role not in STATES]


def stage_of(move: Move, made: Mapping[int, str], trial: int) -> Stage:
    """The stage of a move; masks come with the weights unless a rewind took the weights from elsewhere.

    made: keys of the run's moves that this one needs, by number.
    """
    inputs = {role: f"{made[number]}/{snapshot}" if snapshot else made[number] for role, (number, snapshot) in move.inputs.items()}
    if inputs.get("masks") == inputs.get("weights"):
        inputs.pop("masks", None)
    return Stage(move.verb, move.part, move.data, move.net, keys.seed(trial, *move.seed) if move.seed else 0, inputs, move.files)
