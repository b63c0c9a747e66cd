"""Rounds of pruning, run whole: the ratios of a published schedule, and masks of BatchNorm that stay from round to round."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rtbench.commands import api
from rtbench.engine.state import unpack
from rtbench.planning.plan import Plan
from rtbench.storage.results import Results
from studies import run, stages, values, write

RATIOS = [18, 32, 45, 56, 65, 73, 80, 87, 92, 98]
"""Percent pruned after each round in Li et al. 2020, arXiv:2003.05733."""

SUITE = """
name = "rounds"
data = "digits"
[recipes.sparse]
steps = [{ init = "net" }, { train = "fit" }, { repeat = REPEAT, steps = [{ prune = "cut" }, { rewind = "init" }, { train = "fit" }] }]
[probes]
density = { use = "density", at = "train" }
[parts]
digits = { use = "digits", share = 0.1 }
net    = { use = "vgg", depth = 2, width = 0.1 }
fit    = { use = "sgd", lr = 0.05, decay = 0.01, batch = 50, steps = 3 }
cut    = CUT
"""


def study(folder: Path, repeat: int, cut: str) -> tuple[Plan, Path]:
    suite = write(folder, SUITE.replace("REPEAT", str(repeat)).replace("CUT", cut))
    run(suite, folder / "store")
    return api.plan(suite, device="cpu"), folder / "store"


def state(store: Path, stage: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return unpack(Results(store).state_bytes(stage.key))


def test_the_published_ratios_are_their_formula_without_decimals() -> None:
    """R * i / (i + 10) / (n / (n + 10)) with n = 10, R = 98, cut to whole percents; the first, 17.8, they print rounded."""
    exact = [98 * i / (i + 10) / (10 / 20) for i in range(1, 11)]
    assert [math.floor(ratio) for ratio in exact] == [17, *RATIOS[1:]] and round(exact[0]) == RATIOS[0]


def test_keep_may_be_a_list_with_one_share_per_round(tmp_path: Path) -> None:
    keep = [(100 - ratio) / 100 for ratio in RATIOS]
    plan, store = study(tmp_path, 10, f'{{ use = "normalised-magnitude", keep = {keep} }}')
    prunes = stages(plan, "prune")
    size = sum(mask.numel() for mask in state(store, prunes[0])[1].values())
    for stage, ratio in zip(prunes, RATIOS, strict=True):
        assert sum(int(mask.sum()) for mask in state(store, stage)[1].values()) == math.floor((100 - ratio) * size / 100 + 0.5)
    measured = [values(store, stage.key)[""] for stage in stages(plan, "probe")]
    assert measured == pytest.approx([1.0, *keep], abs=1 / size)


@pytest.mark.parametrize("cut", [
    '{ use = "normalised-magnitude", scope = "layer", keep = [0.03, 0.015], channels = true }',
    '{ use = "filters", keep = [0.5, 0.3], channels = [true, false] }',
])  # fmt: skip
def test_masks_of_batchnorm_stay_at_zero_and_count_for_nothing(tmp_path: Path, cut: str) -> None:
    plan, store = study(tmp_path, 2, cut)
    prunes, trains = stages(plan, "prune"), stages(plan, "train")
    before: dict[str, torch.Tensor] = {}
    for pruned, trained, probe in zip(prunes, trains[1:], stages(plan, "probe")[1:], strict=True):
        masks = state(store, pruned)[1]
        norms = {name: mask for name, mask in masks.items() if mask.dim() == 1}
        assert norms and sum(int((~mask).sum()) for mask in norms.values()) > 0
        assert all(not (norms[name] & ~mask).any() for name, mask in before.items()), "they stay in later rounds"
        for stage in (pruned, trained):
            weights, kept = state(store, stage)
            assert kept.keys() == masks.keys() and all(torch.equal(kept[name], mask) for name, mask in masks.items())
            assert all(not weights[name][~mask].any() for name, mask in masks.items())
        weights = state(store, trained)[0]
        assert all(bool(weights[name][mask].all()) for name, mask in norms.items() if name.endswith("weight")), "the others are not touched"
        counted = [mask for name, mask in masks.items() if name not in norms]
        share = sum(int(mask.sum()) for mask in counted) / sum(mask.numel() for mask in counted)
        assert values(store, probe.key)[""] == pytest.approx(share, abs=1e-3)
        before = norms
