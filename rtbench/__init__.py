"""rtbench: which sparse neural networks are still robust, and by how much?

The names below are the whole public interface, loaded on first use so that `import rtbench` stays cheap.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "run": "api", "plan": "api", "board": "api", "check": "testing", "evaluate": "live",
    "hookimpl": "hookspecs",
    "Range": "knobs", "OneOf": "knobs", "Attack": "knobs", "Objective": "knobs", "Trainer": "knobs", "Probe": "knobs",
    "Measure": "kinds", "Attacked": "kinds", "Progress": "kinds", "declare": "kinds",
    "Threat": "threats", "project": "threats", "untouched": "evaluation.guard",
    "Data": "data", "Split": "data", "take": "data", "batches": "data", "choose": "data",
    "keep_top": "masks", "keep_top_each": "masks", "prunable": "masks",
    "UserError": "errors", "unknown": "errors", "torchvision": "vision",
}  # fmt: skip
__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from rtbench.api import board as board
    from rtbench.api import plan as plan
    from rtbench.api import run as run
    from rtbench.data import Data as Data
    from rtbench.data import Split as Split
    from rtbench.data import batches as batches
    from rtbench.data import choose as choose
    from rtbench.data import take as take
    from rtbench.errors import UserError as UserError
    from rtbench.errors import unknown as unknown
    from rtbench.evaluation.guard import untouched as untouched
    from rtbench.hookspecs import hookimpl as hookimpl
    from rtbench.kinds import Attacked as Attacked
    from rtbench.kinds import Measure as Measure
    from rtbench.kinds import Progress as Progress
    from rtbench.kinds import declare as declare
    from rtbench.knobs import Attack as Attack
    from rtbench.knobs import Objective as Objective
    from rtbench.knobs import OneOf as OneOf
    from rtbench.knobs import Probe as Probe
    from rtbench.knobs import Range as Range
    from rtbench.knobs import Trainer as Trainer
    from rtbench.live import evaluate as evaluate
    from rtbench.masks import keep_top as keep_top
    from rtbench.masks import keep_top_each as keep_top_each
    from rtbench.masks import prunable as prunable
    from rtbench.testing import check as check
    from rtbench.threats import Threat as Threat
    from rtbench.threats import project as project
    from rtbench.vision import torchvision as torchvision


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rtbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rtbench.{_WHERE[name]}"), name)


class _Package(ModuleType):
    """Importing the modules `plan` and `board` must not put them in the place of the functions of these names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
