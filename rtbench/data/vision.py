"""torchvision, importable whatever its binary was built against."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from rtbench.errors import UserError

_MISSING = ("nms", "qnms")
_kept: list[Any] = []  # a torch.library.Library undoes its definitions when it is collected


def torchvision() -> ModuleType:
    """The torchvision module; UserError if it is not installed.

    A CPU build of torch cannot load the compiled operators of a torchvision built for CUDA, and torchvision then fails to import
    because it describes the operators nms and qnms, which do not exist. Only in that case their two schemas are declared, without
    an implementation: data sets, transforms and models work, and a call of torchvision.ops.nms says that it has no kernel.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise UserError("torchvision is not installed; this part needs it") from error
    except RuntimeError as error:
        if "nms does not exist" not in str(error):
            raise
    _declare_operators()
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # left behind half initialised by the failed import
    return importlib.import_module("torchvision")


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in _MISSING:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _kept.append(library)
