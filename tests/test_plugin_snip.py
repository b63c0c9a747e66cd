"""plugins/rtbench-snip against brute force; and all plugins as what they are: distributions found by their entry points."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import rtbench
from rtbench.data.splits import Split
from rtbench.parts.kinds import knobs, validate
from rtbench.parts.knobs import check_all
from rtbench.parts.masks import ones

REPOSITORY = Path(rtbench.__file__).parents[1]
PLUGINS = Path(__file__).parents[1] / "plugins"
spec = importlib.util.spec_from_file_location("rtbench_snip", PLUGINS / "rtbench-snip" / "rtbench_snip.py")
assert spec is not None and spec.loader is not None
rtbench_snip = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rtbench_snip)
snip = rtbench_snip.snip


def data_of(n: int = 12) -> SimpleNamespace:
    g = torch.Generator().manual_seed(1)
    return SimpleNamespace(train=Split(torch.rand(n, 1, 3, 3, generator=g), torch.randint(4, (n,), generator=g), torch.arange(n)))


def network(hidden: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, hidden), nn.ReLU(), nn.Linear(hidden, 4))


def linear_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Linear in every single weight of the last layer, so that the first-order effect of removing a weight is its whole effect."""
    return model(x).gather(1, y[:, None]).squeeze(1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_keeps_the_weights_whose_removal_changes_the_loss_most() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), data_of()
    masks = snip(model, ones(model), data, rng(), keep=0.25, batch=12, objective=linear_loss)
    weight, x, y = model[1].weight, data.train.x, data.train.y
    effect = torch.zeros(weight.numel())
    with torch.no_grad():
        before = linear_loss(model, x, y).mean()
        for i in range(weight.numel()):
            value = weight.view(-1)[i].clone()
            weight.view(-1)[i] = 0
            effect[i] = (linear_loss(model, x, y).mean() - before).abs()
            weight.view(-1)[i] = value
    expected = torch.zeros(weight.numel(), dtype=torch.bool)
    expected[effect.topk(9).indices] = True
    assert torch.equal(masks["1.weight"].view(-1), expected)


@pytest.mark.parametrize(("keep", "count"), [(0.01, 1), (0.1, 7), (0.5, 33), (1.0, 65)])
def test_the_count_is_exact_and_nothing_is_revived(keep: float, count: int) -> None:
    model, data = network(), data_of()
    masks = snip(model, ones(model), data, rng(), keep=keep, objective=linear_loss)
    assert sum(int(mask.sum()) for mask in masks.values()) == count
    again = snip(model, masks, data, rng(1), keep=keep / 2, objective=linear_loss)
    assert all(not (again[name] & ~masks[name]).any() for name in masks)


def test_the_batch_is_drawn_from_the_generator() -> None:
    model, data = network(), data_of()

    def with_seed(seed: int) -> list[torch.Tensor]:
        return list(snip(model, ones(model), data, rng(seed), keep=0.3, batch=2, objective=linear_loss).values())

    assert all(map(torch.equal, with_seed(3), with_seed(3)))
    assert any(not all(map(torch.equal, with_seed(3), with_seed(seed))) for seed in range(4, 9))


def test_a_layer_that_the_loss_does_not_reach_goes_first() -> None:
    model, data = network(), data_of()
    model.add_module("spare", nn.Linear(4, 4))
    used = nn.Sequential(*list(model)[:4])
    masks = snip(model, ones(model), data, rng(), keep=0.5, objective=lambda _, x, y: linear_loss(used, x, y))
    assert not masks["spare.weight"].any() and masks["1.weight"].any()


def test_the_part_is_valid_and_its_knobs_have_constraints() -> None:
    parts = rtbench_snip.rtbench_pruners()
    validate("pruner", "snip", parts["snip"])
    declared = knobs("pruner", parts["snip"])
    assert all(knob.help for knob in declared.values())
    nest = lambda kind, value, where: value  # noqa: E731
    resolved = check_all(declared, {"drop": 0.9}, "parts.cut", nest)
    assert resolved == {"keep": None, "drop": 0.9, "batch": 256, "objective": "robust"}
    for wrong in ({}, {"keep": 0}, {"keep": 1.5}, {"keep": 0.1, "drop": 0.9}, {"keep": 0.1, "batch": 0}):
        with pytest.raises(rtbench.UserError, match=r"parts\.cut"):
            check_all(declared, wrong, "parts.cut", nest)


FOUND = """
from rtbench.plugins import catalogue
found = catalogue()
for part in found.parts.values():
    print(part.kind, part.name, part.owner, part.owner_version)
for owner, reason in found.aside.items():
    print("aside", owner, reason)
"""


def test_all_four_distributions_install_and_are_found_by_entry_point(tmp_path: Path) -> None:
    if missing := [name for name in ("pip", "setuptools") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed")
    shutil.copytree(PLUGINS, tmp_path / "plugins")  # building leaves files beside the source
    folders = sorted(str(folder) for folder in (tmp_path / "plugins").iterdir() if (folder / "pyproject.toml").exists())
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    done = subprocess.run([*pip, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), str(REPOSITORY)])}
    out = subprocess.run([sys.executable, "-c", FOUND], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert "pruner snip rtbench-snip 0.1.0" in lines
    assert "architecture timm rtbench-timm 0.1.0" in lines
    assert "attack torchattacks rtbench-torchattacks 0.1.0" in lines
    assert "attack autoattack-official rtbench-autoattack 0.1.0" in lines or importlib.util.find_spec("pyautoattack") is None
