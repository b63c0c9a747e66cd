"""No weaker than the same attack in torchattacks, foolbox and adv-lib, where they are installed: same network, images and knobs.

They are in no extra: torchattacks pins requests 2.25, foolbox and adv-lib want packages that talk to the network (requests, visdom).
`python tests/test_peers.py` prints the table of docs/evaluation.md.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from test_native import digits, trained
from torch import Tensor, nn

from attacks import judged
from rtbench.data.splits import Split
from rtbench.data.vision import torchvision
from rtbench.engine.loop import Loop
from rtbench.errors import UserError
from rtbench.evaluation.judge import Judged, correct
from rtbench.parts.threats import Threat, distances

N, SEEDS = 60, 3
Peer = Callable[[Any, nn.Module, Tensor, Tensor, float], Tensor]
"""(library, model, x, y, eps) -> x_adv."""


def library(name: str) -> Any:
    try:
        torchvision()
        return importlib.import_module(name)
    except (ImportError, UserError) as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def foolbox(attack: str, **how: Any) -> Peer:
    def call(lib: Any, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        wrapped = lib.PyTorchModel(model, bounds=(0, 1), device="cpu")
        found = getattr(lib.attacks, attack)(**how)(
            wrapped, x, y, epsilons=None if "FMN" in attack or "Deep" in attack or "Carlini" in attack else eps
        )
        return found[0]

    return call


def torchattacks(attack: str, sized: bool = True, **how: Any) -> Peer:
    def call(lib: Any, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        seed = {"seed": torch.initial_seed() % 2**31} if attack == "APGD" else {}  # it would take 0 every time
        return getattr(lib, attack)(model, **({"eps": eps} if sized else {}), **seed, **how)(x, y)

    return call


def advlib(attack: str, sized: bool = False, **how: Any) -> Peer:
    def call(lib: Any, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        found = getattr(lib, attack)(model, x, y, **({"eps": eps} if sized else {}), **how)
        return found[1] if isinstance(found, tuple) else found

    return call


FA, TA, AL = "foolbox", "torchattacks", "adv_lib.attacks"
CASES: list[tuple[str, str, Peer, str, str, dict[str, Any]]] = [
    (TA, "FGSM", torchattacks("FGSM"), "fgsm", "linf", {}),
    (FA, "LinfFastGradientAttack", foolbox("LinfFastGradientAttack"), "fgsm", "linf", {}),
    (TA, "PGD", torchattacks("PGD", alpha=0.01, steps=20), "pgd", "linf", {"steps": 20, "step": "1/100"}),
    (FA, "LinfPGD", foolbox("LinfPGD", abs_stepsize=0.01, steps=20), "pgd", "linf", {"steps": 20, "step": "1/100"}),
    (TA, "PGDL2", torchattacks("PGDL2", alpha=0.1, steps=20), "pgd", "l2", {"steps": 20, "step": "1/10"}),
    (FA, "L2PGD", foolbox("L2PGD", abs_stepsize=0.1, steps=20), "pgd", "l2", {"steps": 20, "step": "1/10"}),
    (TA, "APGD", torchattacks("APGD", norm="Linf", steps=50), "apgd", "linf", {"steps": 50}),
    (TA, "APGD l2", torchattacks("APGD", norm="L2", steps=50), "apgd", "l2", {"steps": 50}),
    (AL, "apgd dlr", advlib("apgd", True, norm=math.inf, n_iter=50), "apgd", "linf", {"steps": 50, "loss": "dlr"}),
    (FA, "L2CarliniWagnerAttack", foolbox("L2CarliniWagnerAttack", steps=200, stepsize=0.1), "cw", "l2", {}),
    (AL, "carlini_wagner_l2", advlib("carlini_wagner_l2", max_iterations=200, learning_rate=0.1), "cw", "l2", {}),
    (TA, "CW", torchattacks("CW", False, steps=200, lr=0.1), "cw", "l2", {}),
    (FA, "LinfDeepFoolAttack", foolbox("LinfDeepFoolAttack"), "deepfool", "linf", {}),
    (FA, "L2DeepFoolAttack", foolbox("L2DeepFoolAttack"), "deepfool", "l2", {}),
    (TA, "DeepFool", torchattacks("DeepFool", False), "deepfool", "l2", {}),
    (AL, "df", advlib("df", norm=2, steps=50), "deepfool", "l2", {}),
    (FA, "LInfFMNAttack", foolbox("LInfFMNAttack", steps=200, max_stepsize=10.0), "fmn", "linf", {"steps": 200}),
    (FA, "L2FMNAttack", foolbox("L2FMNAttack", steps=200), "fmn", "l2", {"steps": 200}),
    (AL, "fmn linf", advlib("fmn", norm=math.inf, steps=200, α_init=10.0), "fmn", "linf", {"steps": 200}),
    (AL, "fmn l2", advlib("fmn", norm=2, steps=200), "fmn", "l2", {"steps": 200}),
]  # fmt: skip


@functools.cache
def network(conv: bool) -> nn.Module:
    model = trained(conv=conv)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def compare(case: tuple[str, str, Peer, str, str, dict[str, Any]], conv: bool) -> tuple[bool, list[float], list[float]]:
    """(whether these are median distances, theirs, ours), a number per seed; else robust accuracy at 1/10 (linf) or 1/2 (l2)."""
    module, _, peer, use, norm, how = case
    lib, model = library(module), network(conv)
    x, y = (column[:N] for column in digits())
    eps = "1/10" if norm == "linf" else "1/2"
    here, ids = Split(x, y, torch.arange(N)), torch.arange(N)
    ours = [judged(use, norm, eps, seed=seed, **how) for seed in range(SEEDS)]

    def theirs(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
        torch.manual_seed(noise.seed)
        return peer(lib, model, x, y, float(threat.eps)).detach()

    if not ours[0].minimal:
        bound = [Judged(theirs, Threat(norm, Fraction(eps)), seed, module) for seed in range(SEEDS)]
        return False, *([attack(model, here, ids, Loop(), N).accuracy for attack in each] for each in (bound, ours))
    torch.manual_seed(0)
    x_adv = peer(lib, model, x, y, 0.0).detach()
    found = torch.where(correct(model, x_adv, y), torch.inf, distances(x_adv.clamp(0, 1), x, norm))
    found[~correct(model, x, y)] = 0
    return True, [float(found.median())], [float(ours[0].distances(model, here, ids, Loop(), N)[1].median())]


@pytest.mark.parametrize("conv", [False, True], ids=["mlp", "cnn"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[3]}".replace(" ", "-"))
def test_no_weaker_than_the_peers(case: tuple[str, str, Peer, str, str, dict[str, Any]], conv: bool) -> None:
    is_distance, theirs, ours = compare(case, conv)
    if is_distance:
        assert ours[0] <= 1.02 * theirs[0]
    else:
        assert sum(ours) / SEEDS <= max(theirs) + 1 / N + 1e-9


def table() -> None:
    print(
        "| peer | attack | ours | norm | measured | MLP theirs | MLP ours | CNN theirs | CNN ours |\n|---|---|---|---|---|---|---|---|---|"
    )
    for case in CASES:
        found = [compare(case, conv) for conv in (False, True)]
        cells = [_range(numbers, is_distance) for is_distance, theirs, ours in found for numbers in (theirs, ours)]
        what = "median distance" if found[0][0] else "robust"
        print(f"| {case[0].split('.')[0]} | {case[1]} | `{case[3]}` | {case[4]} | {what} | {' | '.join(cells)} |", flush=True)


def _range(numbers: list[float], is_distance: bool) -> str:
    low, high = (f"{n:.4f}" if is_distance else f"{100 * n:.1f}%" for n in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    table()
