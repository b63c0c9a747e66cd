"""Built-in attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtbench.builtin.attacks.autoattack import apgd, autoattack, fab, square
from rtbench.builtin.attacks.carlini_wagner import cw
from rtbench.builtin.attacks.deepfool import deepfool
from rtbench.builtin.attacks.fgsm import fgsm
from rtbench.builtin.attacks.fmn import fmn
from rtbench.builtin.attacks.noise import noise
from rtbench.builtin.attacks.none import none
from rtbench.builtin.attacks.pgd import pgd
from rtbench.hookspecs import hookimpl


@hookimpl
def rtbench_attacks() -> dict[str, Callable[..., Any]]:
    return {
        "none": none, "noise": noise, "fgsm": fgsm, "pgd": pgd, "autoattack": autoattack, "apgd": apgd, "fab": fab, "square": square,
        "cw": cw, "deepfool": deepfool, "fmn": fmn,
    }  # fmt: skip
