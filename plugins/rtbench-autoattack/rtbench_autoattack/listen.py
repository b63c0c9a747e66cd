"""What pyautoattack says and knows while it runs: its warnings as flags, its state after each attack."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from pyautoattack import autoattack
from pyautoattack.state import EvaluationState
from torch import Tensor

FLAGS = {
    "randomized defense": "randomised",
    "probability distribution": "probabilities",
    "dynamic defense": "dynamic-forward",
    "zero gradient": "zero-gradient",
    "Square Attack has decreased": "masked-gradient",
    "class": "few-classes",
}
"""Words that only one of the library's warnings has, and its flag, named as rtbench's own engine names it."""


class Warnings:
    """Stands in for the library's logger: every warning once, as a flag; all else is dropped."""

    def __init__(self) -> None:
        self.flags: list[str] = []

    def add(self, flag: str) -> None:
        if flag not in self.flags:
            self.flags.append(flag)

    def warning(self, text: str) -> None:
        self.add(next((flag for words, flag in FLAGS.items() if words in text), "other-warning"))

    def info(self, text: str) -> None:
        """Dropped."""

    debug = info


@contextlib.contextmanager
def muted(logger: logging.Logger) -> Iterator[None]:
    """Nothing passes through this logger."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, Tensor]]:
    """Per attack, bool (n,): which samples were robust when the library's evaluation noted it as done.

    The evaluation makes its state itself and shows it to nobody, so for its duration the state is one that remembers.
    """
    survivors: dict[str, Tensor] = {}

    class Remembering(EvaluationState):  # type: ignore[misc]
        def add_run_attack(self, attack: str) -> None:
            survivors[attack] = self.robust_flags.clone()
            super().add_run_attack(attack)

    autoattack.EvaluationState = Remembering
    try:
        yield survivors
    finally:
        autoattack.EvaluationState = EvaluationState
