"""Transfer to a new head and new data, and loading checkpoints inside a suite, as whole runs."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

import studies
from rtbench.engine.state import unpack
from rtbench.errors import UserError
from rtbench.storage.store import Store

SUITE = """
name = "move"
data = "source"
[recipes.move]
steps = [
  { init = "net", as = "start" },
  { train = "fit" },
  { prune = "cut" },
  { rewind = "start" },
  { transfer = "target", as = "moved" },
  { train = "fit" },
]
[probes]
clean = { use = "accuracy", at = "last" }
density = { use = "density", at = ["moved", "last"] }
[parts]
source = { use = "digits", share = 0.2 }
target = { use = "npz", file = "three.npz", valid = 10 }
net = { use = "mlp", hidden = [16, 12] }
fit = { use = "sgd", lr = 0.1, batch = 20, steps = 20 }
cut = { use = "magnitude", scope = "layer", drop = 0.75 }
"""


def three(folder: Path) -> None:
    """Three classes of 8x8 images, told apart by which rows are bright."""
    rng = numpy.random.default_rng(0)
    y = numpy.arange(120) % 3
    x = rng.random((120, 1, 8, 8), dtype=numpy.float32) * 0.4
    for label in range(3):
        x[y == label, :, 2 * label : 2 * label + 2] += 0.5
    numpy.savez(folder / "three.npz", x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])


def states(store: Path, verb: str) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    results = Store(store, create=False)
    return [unpack(results.state_bytes(key)) for key in results.finished() if results.record(key)["stage"]["verb"] == verb]


def test_transfer_keeps_the_ticket_and_gives_a_fresh_unpruned_head(tmp_path: Path) -> None:
    three(tmp_path)
    board = studies.run(studies.write(tmp_path, SUITE), tmp_path / "store", data=str(tmp_path))
    (start, _), (pruned, masks), (moved, moved_masks) = (states(tmp_path / "store", verb)[0] for verb in ("init", "prune", "transfer"))
    for name in ("fc1.weight", "fc2.weight"):
        assert torch.equal(moved_masks[name], masks[name]) and not masks[name].all()
        assert torch.equal(moved[name], start[name] * masks[name])  # the ticket: initial weights under the mask found on the source
    assert moved["fc3.weight"].shape == (3, 12) and pruned["fc3.weight"].shape == (10, 12)
    assert moved_masks["fc3.weight"].all() and bool((moved["fc3.weight"] != 0).all())
    last = next(row["probes"] for row in board.as_json()["rows"] if "clean" in row["probes"])
    assert last["clean"]["mean"] > 0.6 and last["clean"]["samples"] == 30
    kept = [row["probes"]["density"]["mean"] for row in board.as_json()["rows"]]
    assert kept == pytest.approx([(16 * 64 // 4 + 16 * 12 // 4 + 36) / (16 * 64 + 16 * 12 + 36)] * 2)


LOAD = """
name = "load"
data = "digits"
[recipes.tune]
steps = [{ load = "model.safetensors", net = "net", OPTIONS }, { prune = "cut" }, { rewind = "init" }, { train = "fit" }]
[probes]
density = { use = "density", at = ["load", "last"] }
[parts]
digits = { use = "digits", share = 0.2 }
net = { use = "mlp", hidden = [8], bias = false }
fit = { use = "sgd", lr = 0.1, batch = 20, steps = 5 }
cut = { use = "magnitude", drop = 0.5 }
"""


def loaded(folder: Path, options: str, tensors: dict[str, torch.Tensor]) -> list[float]:
    save_file(tensors, folder / "model.safetensors")
    text = LOAD.replace(", OPTIONS", f", {options}" if options else "")
    board = studies.run(studies.write(folder, text), folder / "store")
    assert board.tally is not None and not board.tally.failed, board.tally
    return [row["probes"]["density"]["mean"] for row in sorted(board.as_json()["rows"], key=lambda row: row["round"])]


def sparse() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    one = torch.randn(8, 64)
    one[:, ::2] = 0
    return {"fc1.weight": one, "fc2.weight": torch.randn(10, 8)}


def test_a_checkpoint_is_pruned_from_its_zeros_or_from_all_its_weights(tmp_path: Path) -> None:
    for rule in ("nonzero", "ones", "file"):
        (tmp_path / rule).mkdir()
    alive = (256 + 80) / (512 + 80)
    assert loaded(tmp_path / "nonzero", 'masks = "nonzero"', sparse()) == pytest.approx([alive, alive / 2])
    assert loaded(tmp_path / "ones", 'masks = "ones"', sparse()) == pytest.approx([alive, 0.5])
    masks = {f"mask:{name}": tensor != 0 for name, tensor in sparse().items()}
    assert loaded(tmp_path / "file", "", {**sparse(), **masks}) == pytest.approx([alive, alive / 2])


def test_names_are_mapped_and_misfits_are_named_or_reported(tmp_path: Path) -> None:
    renamed = {f"module.{name.replace('fc', 'layer')}": tensor for name, tensor in sparse().items()}
    assert len(loaded(tmp_path, 'rename = { "^layer" = "fc" }', renamed)) == 2
    surplus = {**sparse(), "other.weight": torch.zeros(2)}
    save_file(surplus, tmp_path / "model.safetensors")
    strict = studies.run(studies.write(tmp_path, LOAD.replace(", OPTIONS", "")), tmp_path / "strict")
    assert strict.tally is not None and any("other.weight" in reason for reason in strict.tally.failed.values())
    (tmp_path / "loose").mkdir()
    loaded(tmp_path / "loose", "strict = false", surplus)
    results = Store(tmp_path / "loose" / "store")
    about = [results.record(key)["about"] for key in results.finished() if results.record(key)["stage"]["verb"] == "load"]
    assert about == [{"mismatch": ["surplus other.weight"]}]


def test_a_checkpoint_that_is_not_there_is_a_mistake_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipes\.tune\.steps\.0\.load: no checkpoint file"):
        studies.run(studies.write(tmp_path, LOAD.replace(", OPTIONS", "")), tmp_path / "store")
    assert not (tmp_path / "store").exists()
