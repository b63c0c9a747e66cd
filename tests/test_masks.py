"""Exact counts, whatever the scores: masks against brute force."""

from __future__ import annotations

import itertools
import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rtbench.errors import UserError
from rtbench.parts.amounts import exact, per_layer, wanted
from rtbench.parts.masks import apply_, compare, conv_only, counts, density, highest, keep_top, keep_top_each, ones, prunable, target


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 2, 2)
        self.attention = nn.MultiheadAttention(8, 2)
        self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
        self.embedding = nn.Embedding(5, 8)
        self.tied = nn.Linear(8, 5)
        self.tied.weight = self.embedding.weight
        self.again = nn.Linear(8, 5)
        self.again.weight = self.tied.weight
        self.head = nn.Linear(8, 3)


def test_prunable_lists_weights_in_model_order_and_shared_ones_once() -> None:
    assert prunable(Net()) == [
        "stem.weight",
        "up.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "cross.q_proj_weight",
        "cross.k_proj_weight",
        "cross.v_proj_weight",
        "cross.out_proj.weight",
        "tied.weight",
        "head.weight",
    ]
    assert conv_only(Net()) == ["stem.weight", "up.weight"]
    assert prunable(nn.Linear(2, 2)) == ["weight"]
    assert prunable(nn.BatchNorm1d(3)) == []


def test_prunable_leaves_out_weights_under_a_parametrization() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())
    assert prunable(model) == ["1.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_apply_makes_exact_zeros_and_leaves_the_rest_bit_by_bit(dtype: torch.dtype) -> None:
    model = nn.Linear(4, 3, bias=False).to(dtype)
    values = torch.tensor([[math.inf, -math.inf, math.nan, -0.0], [1e-7, -3.0, math.nan, math.inf], [0.0, 1, 2, 3]], dtype=dtype)
    model.weight.data.copy_(values)
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]], dtype=torch.bool)
    apply_(model, {"weight": mask})
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    assert torch.equal(model.weight.data.view(bits), torch.where(mask, values, 0.0).view(bits))
    assert model.weight.requires_grad and model.weight.grad_fn is None


def test_apply_reaches_weights_of_any_memory_layout() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    mask = torch.rand(4, 3, 3, 3) > 0.5
    before = model.weight.detach().clone()
    apply_(model, {"weight": mask})
    assert torch.equal(model.weight, before * mask)


def test_apply_names_what_does_not_fit() -> None:
    with pytest.raises(UserError, match=r'no parameter "0.wieght"; did you mean "0.weight"'):
        apply_(nn.Sequential(nn.Linear(2, 3)), {"0.wieght": torch.ones(3, 2, dtype=torch.bool)})
    with pytest.raises(UserError, match=r"shape \(2, 2\), the weight \(3, 2\)"):
        apply_(nn.Linear(2, 3), {"weight": torch.ones(2, 2, dtype=torch.bool)})


def test_density_and_counts() -> None:
    masks = {"a": torch.tensor([True, False, False, False]), "b": torch.ones(2, 2, dtype=torch.bool)}
    assert counts(masks) == {"a": (1, 4), "b": (4, 4)}
    assert density(masks) == 5 / 8
    assert density(masks, ["a"]) == 1 / 4
    assert density({}) == 1.0
    assert density(ones(Net())) == 1.0


@given(st.integers(0, 10**6), st.integers(0, 10**8))
def test_shares_are_decimal_and_round_half_up(millionths: int, size: int) -> None:
    share = Decimal(millionths) / 10**6
    expected = int((share * size).quantize(Decimal(1), ROUND_HALF_UP))
    assert wanted(size, size, keep=float(share)) == expected
    assert wanted(size, size, drop=float(1 - share)) == expected


def test_fractions_survive_the_way_through_a_float() -> None:
    assert exact(1 / 3) == Fraction(1, 3) and exact(0.8**3) == Fraction(64, 125) and exact(0.1) == Fraction(1, 10)
    assert wanted(3, 3, keep=1 / 6) == 1  # 0.5 rounded up, though the float is below 1/6
    assert wanted(10, 10, keep=0.15) == 2
    assert wanted(10**9, 10**9, keep=Fraction(1, 7)) == 142857143


def test_target_counts_excluded_layers_in() -> None:
    masks = {"a": torch.ones(10, dtype=torch.bool), "b": torch.ones(90, dtype=torch.bool)}
    masks["b"][:40] = False
    assert target(masks, keep=0.25) == 25
    assert target(masks, drop=0.25) == 45
    assert target(masks, count=7) == 7
    assert target(masks, keep=0.25, exclude=["a"]) == 25
    with pytest.raises(UserError, match="cannot keep 61 weights: 60 of 100 are left"):
        target(masks, keep=0.61)
    with pytest.raises(UserError, match="cannot keep only 7 of 100 weights: the excluded layers alone hold 10"):
        target(masks, count=7, exclude=["a"])
    for wrong in ({}, {"keep": 0.5, "drop": 0.5}, {"keep": 1.5}, {"drop": -0.1}, {"count": -1}):
        with pytest.raises(UserError):
            target(masks, **wrong)
    with pytest.raises(UserError, match='exclude: no layer "c"'):
        target(masks, count=50, exclude=["c"])


@given(st.lists(st.integers(-3, 3), max_size=40), st.data())
def test_highest_is_a_stable_sort(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    chosen = highest(torch.tensor(values, dtype=torch.float32), k)
    assert chosen.nonzero().flatten().tolist() == sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:k])


@st.composite
def networks(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores full of ties, and masks that are part pruned already."""
    scores, masks = {}, {}
    for name in ("a", "b", "c")[: draw(st.integers(1, 3))]:
        size = draw(st.integers(1, 12))
        scores[name] = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)), dtype=torch.float32)
        masks[name] = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    return scores, masks


@settings(max_examples=200)
@given(networks(), st.data())
def test_keep_top_keeps_exactly_the_best(network: tuple[dict[str, Tensor], dict[str, Tensor]], data: st.DataObject) -> None:
    scores, masks = network
    excluded = data.draw(st.sets(st.sampled_from(list(masks)), max_size=1))
    floor = data.draw(st.integers(0, 3))
    alive = {name: masks[name].nonzero().flatten().tolist() for name in masks}
    ranked = {n: sorted(alive[n], key=lambda i, n=n: (-float(scores[n][i]), i)) for n in masks if n not in excluded}
    held = sum(len(alive[name]) for name in excluded)
    sure = {(name, i) for name, order in ranked.items() for i in order[:floor]}
    count = data.draw(st.integers(held + len(sure), sum(map(len, alive.values()))))
    rest = sorted(((-float(scores[n][i]), k, i, n) for k, n in enumerate(masks) for i in ranked.get(n, []) if (n, i) not in sure))
    best = sure | {(n, i) for _, _, i, n in rest[: count - held - len(sure)]} | {(n, i) for n in excluded for i in alive[n]}
    result = keep_top(scores, masks, count=count, exclude=excluded, floor=floor)
    assert {(name, i) for name in masks for i in result[name].nonzero().flatten().tolist()} == best
    assert sum(kept for kept, _ in counts(result).values()) == count


def test_no_choice_that_honours_the_floor_scores_higher() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        scores = {"a": torch.rand(5), "b": torch.rand(4) / 3}
        flat = torch.cat(list(scores.values()))
        for count in range(4, 10):
            choices = (set(c) for c in itertools.combinations(range(9), count))
            best = max(float(flat[list(c)].sum()) for c in choices if len(c & set(range(5))) >= 2 and len(c - set(range(5))) >= 2)
            result = keep_top(scores, {name: torch.ones(len(s), dtype=torch.bool) for name, s in scores.items()}, count=count, floor=2)
            assert float(flat[torch.cat(list(result.values()))].sum()) == pytest.approx(best)


@given(networks(), st.floats(0, 1), st.integers(0, 3))
def test_each_layer_keeps_its_share_and_its_best(network: tuple[dict[str, Tensor], dict[str, Tensor]], drop: float, floor: int) -> None:
    scores, masks = network
    result = keep_top_each(scores, masks, drop=drop, floor=floor)
    for name, mask in masks.items():
        alive = int(mask.sum())
        assert int(result[name].sum()) == max(wanted(mask.numel(), alive, drop=drop), min(floor, alive))
        assert not (result[name] & ~mask).any()
        kept, lost = scores[name][result[name]], scores[name][mask & ~result[name]]
        assert not len(kept) or not len(lost) or kept.min() >= lost.max()


def test_equal_scores_and_infinite_ones_keep_the_exact_count() -> None:
    masks = {"a": torch.ones(1000, dtype=torch.bool), "b": torch.ones(500, dtype=torch.bool)}
    result = keep_top({"a": torch.zeros(1000), "b": torch.zeros(500)}, masks, keep=0.1)
    assert result["a"].nonzero().flatten().tolist() == list(range(150)) and not result["b"].any()
    scores = {"a": torch.full((1000,), math.inf), "b": torch.full((500,), -math.inf)}
    assert counts(keep_top(scores, masks, count=1100)) == {"a": (1000, 1000), "b": (100, 500)}


def test_halves_and_integers_are_scores_too() -> None:
    mask = {"a": torch.ones(6, dtype=torch.bool)}
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64):
        assert keep_top({"a": torch.tensor([3, 1, 2, 5, 4, 0], dtype=dtype)}, mask, count=3)["a"].tolist() == [1, 0, 0, 1, 1, 0]


def test_nan_scores_are_an_error_unless_the_weight_is_pruned_already() -> None:
    scores, masks = {"a": torch.tensor([1.0, math.nan, 2.0])}, {"a": torch.tensor([True, False, True])}
    assert keep_top(scores, masks, count=1)["a"].tolist() == [False, False, True]
    for keep in (keep_top, keep_top_each):
        with pytest.raises(UserError, match="scores of a are not numbers"):
            keep(scores, {"a": torch.ones(3, dtype=torch.bool)}, count=1)
        with pytest.raises(ValueError, match="no scores of shape"):
            keep({}, masks, count=1)


def test_impossible_floors_are_said_in_numbers() -> None:
    masks = {"a": torch.ones(5, dtype=torch.bool), "b": torch.ones(5, dtype=torch.bool)}
    with pytest.raises(UserError, match="cannot keep only 5 weights: 3 in every layer that is not excluded makes 6"):
        keep_top({n: torch.rand(5) for n in masks}, masks, count=5, floor=3)


def test_rates_take_the_place_of_the_common_amount() -> None:
    masks = {name: torch.ones(100, dtype=torch.bool) for name in ("conv1", "conv2", "fc")}
    scores = {name: torch.rand(100) for name in masks}

    def kept(**knobs: Any) -> list[int]:
        return [k for k, _ in counts(keep_top_each(scores, masks, **knobs)).values()]

    assert kept(drop=0.5, rates={"fc": 0.1}) == [50, 50, 90]
    assert kept(rates={"conv*": 0.3, "conv2": 0.4}) == [70, 60, 100]
    assert kept(keep=0.2, exclude=["conv?"]) == [100, 100, 20]
    assert kept(count=7, floor=9) == [9, 9, 9]
    with pytest.raises(UserError, match='rates: no layer "cnov1"; did you mean "conv1"'):
        kept(drop=0.5, rates={"cnov1": 0.1})
    with pytest.raises(UserError, match=r"conv1 is given 0\.\d and 0\.\d by two patterns"):
        kept(rates={"conv*": 0.3, "*1": 0.4})
    with pytest.raises(UserError, match="cannot keep 101 weights of conv1: 100 of 100 are left"):
        kept(count=101)
    with pytest.raises(UserError, match="exactly one of keep, drop and count, not none"):
        kept()


def test_order_of_rates_does_not_matter() -> None:
    assert per_layer(["a1", "a2"], {"a*": 0.5, "a1": 0.1}) == per_layer(["a1", "a2"], {"a1": 0.1, "a*": 0.5}) == {"a1": 0.1, "a2": 0.5}


def test_twenty_rounds_on_the_300_100_network_have_no_off_by_one() -> None:
    """Cosentino et al. 2019: 20, 20 and 10 % of what is left per round; their own code pruned one weight more each time."""
    torch.manual_seed(0)
    masks = ones(nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)))
    scores = {name: torch.rand(mask.shape) for name, mask in masks.items()}
    exact_counts, off_by_one, shown, published = [235_200, 30_000, 1_000], [235_200, 30_000, 1_000], [], []
    for _ in range(20):
        masks = keep_top_each(scores, masks, drop=0.2, rates={"2.weight": 0.1})
        exact_counts = [(tenths * n + 5) // 10 for tenths, n in zip((8, 8, 9), exact_counts, strict=True)]
        off_by_one = [n - round(rate * n) - 1 for rate, n in zip((0.2, 0.2, 0.1), off_by_one, strict=True)]
        assert [kept for kept, _ in counts(masks).values()] == exact_counts
        shown.append(f"{100 * density(masks):.1f}")
        published.append(f"{100 * sum(off_by_one) / 266_200:.1f}")
    assert " ".join(published) == "80.0 64.1 51.3 41.0 32.9 26.3 21.1 16.9 13.5 10.8 8.7 6.9 5.6 4.5 3.6 2.9 2.3 1.8 1.5 1.2"
    assert {i + 1: shown[i] for i in range(20) if shown[i] != published[i]} == {4: "41.1", 12: "7.0", 18: "1.9"}


def test_comparing_masks() -> None:
    a = {"x": torch.tensor([1, 1, 0, 0], dtype=torch.bool), "y": torch.tensor([1, 0], dtype=torch.bool)}
    b = {"x": torch.tensor([0, 1, 1, 0], dtype=torch.bool), "y": torch.tensor([1, 1], dtype=torch.bool)}
    assert compare(a, b) == {"iou": 2 / 5, "overlap": 2 / 3, "agree": 3 / 6, "chance": 2 / (7 - 2)}
    assert compare(a, a)["iou"] == compare(a, a)["agree"] == 1.0
    assert compare({"x": torch.zeros(3, dtype=torch.bool)}, {"x": torch.zeros(3, dtype=torch.bool)})["iou"] == 1.0
    with pytest.raises(UserError, match="different architectures"):
        compare(a, {"x": a["x"]})


def test_chance_is_what_random_masks_show() -> None:
    torch.manual_seed(0)
    one, two = ({n: torch.rand(s) < p for n, s, p in (("a", 40_000, 0.2), ("b", 20_000, 0.7))} for _ in range(2))
    found = compare(one, two)
    assert found["iou"] == pytest.approx(found["chance"], abs=0.01)
