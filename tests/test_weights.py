"""Probes of weights and masks in closed form, and whose they borrow in a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import studies
from rtbench import UserError
from rtbench.builtin.probes.weights import mask, overlap, survivors, weights
from rtbench.parts.masks import compare


def network(*layers: Tensor) -> nn.Module:
    """Linear layers with these weights, called 0.weight, 1.weight, ..."""
    model = nn.Sequential(*(nn.Linear(layer.shape[1], layer.shape[0], bias=False) for layer in layers))
    for module, layer in zip(model, layers, strict=True):
        module.weight.data.copy_(layer)
    return model


def lent(layer: Tensor, *more: Tensor) -> dict[str, Tensor]:
    """What `weights` keeps of a dense network."""
    model = network(layer, *more)
    return weights(model, {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}).samples


def test_survivors_are_counted_in_their_bins() -> None:
    initial = torch.tensor([[-0.9, -0.4, -0.2, 0.0, 0.1, 0.3, 0.5, 0.7]])
    kept = torch.tensor([[1, 1, 0, 1, 1, 0, 1, 1]]).bool()
    found = survivors({"0.weight": kept}, lent(initial), bins=4, limit=0.5)
    assert found.about["edges"] == [-0.5, -0.25, 0.0, 0.25, 0.5] and found.about["weights"] == 6
    numbers = found.numbers
    # -0.9 and 0.7 are outside, 0 is in no bin, 0.5 is in the last one
    assert [numbers[f"bin.{i}"] for i in range(4)] == pytest.approx([1 / 6, 0, 1 / 6, 1 / 6])
    assert (numbers["outside"], numbers["zero"]) == pytest.approx((2 / 6, 1 / 6))
    assert numbers[""] == pytest.approx((0.9 + 0.4 + 0 + 0.1 + 0.5 + 0.7) / 6)
    assert numbers["mean"] == pytest.approx(0.0, abs=1e-7)
    assert numbers["sd"] == pytest.approx(((0.81 + 0.16 + 0.01 + 0.25 + 0.49) / 6) ** 0.5)


@pytest.mark.parametrize("sizes", [[(3, 5)], [(8, 8), (1, 64)], [(7, 30), (130, 7), (1, 1)]])
def test_shares_add_up_over_layers_of_any_size(sizes: list[tuple[int, int]]) -> None:
    rng = torch.Generator().manual_seed(3)
    layers = [torch.randn(size, generator=rng) for size in sizes]
    masks = {f"{i}.weight": torch.rand(size, generator=rng) < 0.6 for i, size in enumerate(sizes)}
    found = survivors(masks, lent(*layers), bins=7, limit=1.0)
    shares = [value for name, value in found.numbers.items() if name.startswith("bin.") or name in ("zero", "outside")]
    assert sum(value or 0.0 for value in shares) == pytest.approx(1.0)
    alive = torch.cat([layer[masks[f"{i}.weight"]] for i, layer in enumerate(layers)])
    assert found.numbers[""] == pytest.approx(float(alive.abs().mean()), rel=1e-6)
    assert found.about["weights"] == len(alive)


def test_survivors_of_some_layers_and_of_none() -> None:
    layers = torch.full((2, 3), 0.1), torch.full((4, 2), 0.3)
    masks = {"0.weight": torch.ones(2, 3).bool(), "1.weight": torch.ones(4, 2).bool()}
    assert survivors(masks, lent(*layers), bins=4, limit=1.0, layers=["1.*"]).numbers[""] == pytest.approx(0.3)
    nothing = survivors({name: ~layer for name, layer in masks.items()}, lent(*layers), bins=4, limit=1.0)
    assert nothing.numbers == {"": None, "sd": None}
    with pytest.raises(UserError, match="no layer"):
        survivors(masks, lent(*layers), bins=4, limit=1.0, layers=["2.*"])


def test_weights_of_another_architecture_are_refused_and_masks_of_one_have_no_overlap() -> None:
    masks = {"0.weight": torch.ones(3, 5).bool()}
    with pytest.raises(UserError, match="another architecture"):
        survivors(masks, lent(torch.zeros(5, 5)), bins=4, limit=1.0)
    assert set(overlap(masks, mask({"0.weight": torch.ones(5, 5).bool()}).samples).numbers.values()) == {None}


@pytest.mark.parametrize("shape", [(4, 4), (9, 23), (64, 3)])
def test_overlap_is_that_of_the_masks(shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(5)
    one, other = ({"a": torch.rand(shape, generator=rng) < share, "b": torch.rand(2, 3, generator=rng) < share} for share in (0.4, 0.7))
    expected = compare(one, other)
    found = overlap(one, mask(other).samples).numbers
    assert found == {"": expected["iou"], **{name: expected[name] for name in ("overlap", "agree", "chance")}}
    assert mask(other).numbers[""] == pytest.approx(sum(int(m.sum()) for m in other.values()) / sum(m.numel() for m in other.values()))


def test_lent_masks_are_an_eighth_of_a_byte_an_entry() -> None:
    samples = mask({"a": torch.ones(640, 100).bool()}).samples
    assert samples["bits"].numel() == 8000 and len(samples["ids"]) == 1000


SUITE = """
name = "tickets"
data = "digits"
[axes]
strategy = ["init", "fresh"]
[recipes.ticket]
steps = [{ init = "net" }, { train = "fit" }, { prune = "cut", drop = 0.8 }, { rewind = "$strategy" }, { train = "fit" }]
[probes]
alive = { use = "survivors", from = "origin", at = ["init", "prune", "last"], bins = 10 }
first = { use = "survivors", from = { at = "first" }, at = "last", bins = 10 }
[parts]
digits = { use = "digits", share = 0.2 }
net = { use = "mlp", hidden = [16] }
cut = { use = "magnitude", scope = "layer" }
fit = { use = "sgd", lr = 0.2, batch = 50, epochs = 3 }
"""


def test_the_origin_of_reinitialised_weights_is_the_new_initialisation(tmp_path: Path) -> None:
    board = studies.run(studies.write(tmp_path, SUITE), tmp_path / "store")

    def number(strategy: str, name: str, place: str) -> Any:
        rows = [row for row in board.rows if row.cell["strategy"] == strategy and name in row.probes]
        return sorted(rows, key=lambda row: row.order)[{"prune": -2, "last": -1}[place]].probes[name].mean

    whole = min(row.probes["alive.origin"].mean for row in board.rows if row.order == 0)
    pruned, reset, fresh = (
        number("init", "alive.origin", "prune"),
        number("init", "alive.origin", "last"),
        number("fresh", "alive.origin", "last"),
    )
    assert pruned == reset > 1.1 * whole  # magnitude keeps what began large
    assert fresh == pytest.approx(whole, rel=0.1)  # nobody chose among these
    assert number("fresh", "alive.origin", "prune") == pruned
    assert number("init", "first.first", "last") == number("fresh", "first.first", "last") == reset


def test_origin_is_explained_where_from_is_misspelt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'probes\.alive\.from.*"origin"'):
        studies.run(studies.write(tmp_path, SUITE.replace('from = "origin"', 'from = "orign"')), tmp_path / "store")
