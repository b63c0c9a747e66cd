"""rtbench: which sparse neural networks are still robust, and by how much?

The names below are the whole public interface, loaded on first use so that `import rtbench` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "run": "commands.api", "plan": "commands.api", "board": "commands.api", "compare": "commands.api",
    "check": "testing", "evaluate": "live", "hookimpl": "hookspecs",
    "Range": "parts.knobs", "OneOf": "parts.knobs", "Attack": "parts.knobs", "Objective": "parts.knobs",
    "Trainer": "parts.knobs", "Probe": "parts.knobs",
    "Measure": "parts.kinds", "Attacked": "parts.kinds", "Progress": "parts.kinds", "declare": "parts.kinds",
    "Threat": "parts.threats", "project": "parts.threats", "untouched": "evaluation.guard",
    "Data": "data.splits", "Split": "data.splits", "take": "data.splits", "batches": "data.splits", "choose": "data.splits",
    "keep_top": "parts.masks", "keep_top_each": "parts.masks", "prunable": "parts.masks",
    "UserError": "errors", "unknown": "errors", "torchvision": "data.vision",
}  # fmt: skip
__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from rtbench.commands.api import board as board
    from rtbench.commands.api import compare as compare
    from rtbench.commands.api import plan as plan
    from rtbench.commands.api import run as run
    from rtbench.data.splits import Data as Data
    from rtbench.data.splits import Split as Split
    from rtbench.data.splits import batches as batches
    from rtbench.data.splits import choose as choose
    from rtbench.data.splits import take as take
    from rtbench.data.vision import torchvision as torchvision
    from rtbench.errors import UserError as UserError
    from rtbench.errors import unknown as unknown
    from rtbench.evaluation.guard import untouched as untouched
    from rtbench.hookspecs import hookimpl as hookimpl
    from rtbench.live import evaluate as evaluate
    from rtbench.parts.kinds import Attacked as Attacked
    from rtbench.parts.kinds import Measure as Measure
    from rtbench.parts.kinds import Progress as Progress
    from rtbench.parts.kinds import declare as declare
    from rtbench.parts.knobs import Attack as Attack
    from rtbench.parts.knobs import Objective as Objective
    from rtbench.parts.knobs import OneOf as OneOf
    from rtbench.parts.knobs import Probe as Probe
    from rtbench.parts.knobs import Range as Range
    from rtbench.parts.knobs import Trainer as Trainer
    from rtbench.parts.masks import keep_top as keep_top
    from rtbench.parts.masks import keep_top_each as keep_top_each
    from rtbench.parts.masks import prunable as prunable
    from rtbench.parts.threats import Threat as Threat
    from rtbench.parts.threats import project as project
    from rtbench.testing import check as check


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rtbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rtbench.{_WHERE[name]}"), name)
