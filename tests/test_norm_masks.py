"""Masks of BatchNorm in whole runs: who is given them, who is not, and that files, rewinds and transfers carry them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import studies
from rtbench.builtin.architectures.vgg import vgg
from rtbench.commands import api
from rtbench.engine.context import Options
from rtbench.engine.state import MASK, check_masks, pack, unpack
from rtbench.errors import UserError
from rtbench.evidence import verify_store
from rtbench.parts.masks import normalisation, of_weights, ones, prunable
from rtbench.plugins import catalogue
from rtbench.storage.results import Results
from rtbench.storage.store import Store

PLUGIN = '''
from rtbench.parts.masks import keep_top, ones, prunable

def unaware(model, masks, *, drop: float = 0.5):
    """Knows of prunable weights only. drop: share"""
    assert list(masks) == prunable(model)
    return keep_top({name: model.get_parameter(name).detach().abs() for name in masks}, masks, drop=drop)

@declare(revives=True)
def open(model):
    """Revives everything."""
    return ones(model)

def names(model, masks):
    """How many masks a probe is given."""
    assert list(masks) == prunable(model)
    return len(masks)

def grow(model, masks):
    """Returns masks of weights alone, all but the masked channels grown."""
    assert len(masks) > len(prunable(model))
    return {name: torch.ones_like(masks[name]) for name in prunable(model)}

@hookimpl
def rtbench_pruners():
    return {"unaware": unaware, "open": open}

@hookimpl
def rtbench_probes():
    return {"names": names}

@hookimpl
def rtbench_trainers():
    return {"grow": grow}
'''
SUITE = """
name = "norms"
data = "source"
[recipes.r]
steps = [{ init = "net" }, { prune = "cut" }, STEPS]
[probes]
seen = { use = "names", at = "last" }
[parts]
source = { use = "digits", share = 0.1 }
other  = { use = "digits", share = 0.2 }
net    = { use = "vgg", depth = 2, width = 0.1 }
fit    = { use = "sgd", lr = 0.05, batch = 50, steps = 3, probes = { inner = { use = "names" } } }
cut    = { use = "normalised-magnitude", scope = "layer", keep = 0.03, channels = true }
"""
NORMS = normalisation(vgg((1, 8, 8), 10, depth=2, width=0.1))
Masks = dict[str, torch.Tensor]


def study(folder: Path, steps: str) -> list[tuple[str, Masks, Masks]]:
    """(verb, weights, masks of BatchNorm) of every state, in plan order; pruned weights are 0 everywhere."""
    suite, files = studies.write(folder, SUITE.replace("STEPS", steps)), [studies.plugin(folder, PLUGIN)]
    board = studies.run(suite, folder / "store", plugins=files)
    assert board.tally is not None and not board.tally.failed, board.tally.failed
    found, store = [], Results(folder / "store")
    for stage in api.plan(suite, device="cpu", plugins=files).stages.values():
        if stage.verb != "probe":
            weights, masks = unpack(store.state_bytes(stage.key))
            assert all(not weights[name][~mask].any() for name, mask in masks.items())
            found.append((stage.verb, weights, {name: mask for name, mask in masks.items() if name in NORMS}))
    verdicts = verify_store(Store(folder / "store"), catalogue(files), Options("nowhere"))
    assert verdicts and all(not verdict.problems for verdict in verdicts)
    return found


def equal(a: Masks, b: Masks) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("steps", [
    '{ prune = "unaware" }, { train = "fit" }',
    '{ rewind = "init" }, { train = "fit" }, { train = "grow" }',
    '{ rewind = "fresh" }, { transfer = "other" }, { train = "fit" }',
])  # fmt: skip
def test_masks_of_batchnorm_outlast_parts_that_do_not_know_them(tmp_path: Path, steps: str) -> None:
    first, *rest = [norms for verb, _, norms in study(tmp_path, steps) if verb != "init"]
    assert first and len(rest) == 2 and all(equal(first, norms) for norms in rest)
    assert sum(int((~mask).sum()) for mask in first.values()) > 0


def test_a_pruner_that_revives_decides_alone(tmp_path: Path) -> None:
    assert [bool(norms) for _, _, norms in study(tmp_path, '{ prune = "open" }, { train = "fit" }')] == [False, True, False, False]


def test_files_carry_them(tmp_path: Path) -> None:
    _, (_, weights, norms), *_ = study(tmp_path, '{ train = "fit" }')
    model = vgg((1, 8, 8), 10, depth=2, width=0.1)
    masks = ones(model) | norms
    assert equal(unpack(pack(weights, masks))[1], masks)
    (tmp_path / "again").mkdir()
    save_file(weights | {MASK + name: mask for name, mask in masks.items()}, tmp_path / "again" / "m.safetensors")
    text = SUITE.replace('{ init = "net" }, { prune = "cut" }, STEPS', '{ load = "m.safetensors", net = "net" }, { train = "fit" }')
    suite, files = studies.write(tmp_path / "again", text), [studies.plugin(tmp_path, PLUGIN)]
    studies.run(suite, tmp_path / "again" / "store", plugins=files)
    store, plan = Results(tmp_path / "again" / "store"), api.plan(suite, device="cpu", plugins=files)
    states = [unpack(store.state_bytes(stage.key)) for stage in plan.stages.values() if stage.verb != "probe"]
    assert len(states) == 2 and all(equal(kept, masks) for _, kept in states)


def test_masks_of_anything_else_or_of_another_shape_are_refused() -> None:
    model = vgg((1, 8, 8), 10, depth=2, width=0.1)
    norm = torch.ones(6, dtype=torch.bool)
    masks = ones(model) | {"features.1.weight": norm}
    check_masks(model, masks, "it")
    assert list(of_weights(model, masks)) == prunable(model) and "features.1.bias" in NORMS
    for name, mask, reason in (
        ("classifier.0.bias", torch.ones(26, dtype=torch.bool), 'differ, first in "classifier.0.bias"'),
        ("features.1.running_mean", norm, 'differ, first in "features.1.running_mean"'),
        ("features.1.bias", norm[:5], "not a bool tensor of shape"),
        ("features.1.bias", norm.float(), "not a bool tensor of shape"),
    ):
        with pytest.raises(UserError, match=reason):
            check_masks(model, masks | {name: mask}, "it")
    del masks["features.0.weight"]
    with pytest.raises(UserError, match=r'differ, first in "features\.0\.weight"'):
        check_masks(model, masks, "it")
