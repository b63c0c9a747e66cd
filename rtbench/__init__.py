"""rtbench: which sparse neural networks are still robust, and by how much?

The names below are the whole public interface, loaded on first use so that `import rtbench` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "run": "api", "plan": "api", "board": "api", "check": "testing",
    "hookimpl": "hookspecs",
    "Range": "knobs", "OneOf": "knobs", "Attack": "knobs", "Objective": "knobs", "Trainer": "knobs", "Probe": "knobs",
    "Measure": "kinds", "Attacked": "kinds", "Progress": "kinds", "declare": "kinds",
    "Threat": "threats", "project": "threats",
    "Data": "data", "Split": "data", "take": "data", "batches": "data", "choose": "data",
    "keep_top": "masks", "keep_top_each": "masks", "prunable": "masks",
    "UserError": "errors", "unknown": "errors", "torchvision": "vision",
}  # fmt: skip
__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from rtbench.api import board, plan, run
    from rtbench.data import Data, Split, batches, choose, take
    from rtbench.errors import UserError, unknown
    from rtbench.hookspecs import hookimpl
    from rtbench.kinds import Attacked, Measure, Progress, declare
    from rtbench.knobs import Attack, Objective, OneOf, Probe, Range, Trainer
    from rtbench.masks import keep_top, keep_top_each, prunable
    from rtbench.testing import check
    from rtbench.threats import Threat, project
    from rtbench.vision import torchvision


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rtbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rtbench.{_WHERE[name]}"), name)
