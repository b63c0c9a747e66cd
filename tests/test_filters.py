"""Structured pruning: the greedy order against its definition, counts to the nearest filter, and what is never pruned."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pruners import net
from torch import nn

from rtbench.builtin.pruners.filters import filters, random_filters
from rtbench.errors import UserError
from rtbench.parts.kinds import knobs
from rtbench.parts.knobs import check_all
from rtbench.parts.masks import Masks, apply_, counts, ones

DATA = SimpleNamespace(shape=(3, 8, 8))
ROWS = ["stem.weight", "conv.weight", "hidden.weight"]


def cut(model: nn.Module, masks: Masks | None = None, **given: Any) -> Masks:
    values = check_all(knobs("pruner", filters), given, "cut", lambda kind, value, where: value)
    return filters(model, ones(model) if masks is None else masks, DATA, torch.Generator(), **values)


def left(masks: Masks) -> list[int]:
    """The filters that have weights left, by layer."""
    return [int(mask.flatten(1).any(1).sum()) for mask in masks.values()]


def one_at_a_time(model: nn.Module, masks: Masks, number: int, floor: int) -> Masks:
    """The definition: each time the filter of least scaled L1 goes, the scores of its layer then being made anew."""
    masks = {name: mask.clone() for name, mask in masks.items()}
    states = [{name: mask.clone() for name, mask in masks.items()}]
    while True:
        found = []
        for i, name in enumerate(ROWS):
            weight = (model.get_parameter(name).detach().double() * masks[name]).flatten(1)
            alive = [row for row in range(len(weight)) if masks[name][row].any()]
            if len(alive) > floor:
                means = {row: Fraction(float(weight[row].abs().sum())) / weight.shape[1] for row in alive}
                whole = sum(means.values())
                found += [(mean / whole if whole else Fraction(0), -i, -row) for row, mean in means.items()]
        if not found:
            break
        _, i, row = min(found)
        masks[ROWS[-i]][-row] = False
        states.append({name: mask.clone() for name, mask in masks.items()})
    return min(states, key=lambda state: abs(sum(k for k, _ in counts(state).values()) - number))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), count=st.integers(168, 414), floor=st.integers(0, 2), pruned=st.booleans(), flat=st.booleans())
def test_the_one_sort_is_the_greedy_order(seed: int, count: int, floor: int, pruned: bool, flat: bool) -> None:
    model = net(seed)
    masks = ones(model)
    if flat:  # many equal norms
        for name in ROWS:
            model.get_parameter(name).data.copy_(torch.randint(1, 3, (len(masks[name]), *[1] * (masks[name].dim() - 1))))
    if pruned:
        masks = {name: torch.rand(mask.shape) < 0.8 for name, mask in masks.items()}
        masks["conv.weight"][2] = False
        apply_(model, masks)
    alive = sum(k for k, _ in counts(masks).values())
    expected = one_at_a_time(model, masks, min(count, alive), floor)
    found = cut(model, masks, count=min(count, alive), floor=floor)
    assert all(torch.equal(found[name], expected[name]) for name in masks)


def test_scores_are_shares_of_what_is_left_of_the_layer() -> None:
    """Norms 1, 2, 3, 4 in one layer and 2, 2 in another of equal size: 1/10, 2/9 and 3/7 go before the second layer's 2/4."""
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[3.0], [1.0], [4.0], [-2.0]])
    model[1].weight.data = torch.full((2, 4), 0.5)
    orders = [filters(model, ones(model), DATA, torch.Generator(), count=count)["0.weight"].flatten().tolist() for count in (15, 14, 13)]
    assert orders == [[1, 0, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0]]
    assert left(filters(model, ones(model), DATA, torch.Generator(), count=9)) == [1, 1, 2]


def test_the_number_kept_is_the_nearest_and_rows_go_whole() -> None:
    model = net()
    for amount in ({"keep": 0.6}, {"drop": 0.3}, {"count": 200}):
        masks = cut(model, **amount)
        number = {"keep": 248, "drop": 290, "count": 200}[next(iter(amount))]
        assert abs(sum(k for k, _ in counts(masks).values()) - number) <= 18
        assert all(bool((mask.flatten(1).all(1) | ~mask.flatten(1).any(1)).all()) for mask in masks.values())
    # Two numbers equally near: stem filters of 27 and nothing between.
    wide = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(2, 1, bias=False))
    assert sum(k for k, _ in counts(cut(wide, count=8)).values()) == 10


def test_the_last_layer_and_floors_are_never_pruned() -> None:
    model = net()
    assert left(cut(model, count=27 + 36 + 6 + 30)) == [1, 1, 1, 3]
    assert left(cut(model, count=30, floor=0)) == [0, 0, 0, 3]
    assert left(cut(model, count=3 * (27 + 36 + 6) + 30, floor=3)) == [3, 3, 3, 3]
    assert left(cut(model, count=414, floor=99)) == [4, 6, 10, 3]
    with pytest.raises(UserError, match="cannot keep only 98 weights: layers never pruned and 1 filters of each other make 99"):
        cut(model, count=98)


def test_only_convolutions_and_what_has_no_rows() -> None:
    model = net()
    masks = cut(model, keep=0.5, only="conv")
    assert masks["hidden.weight"].all() and abs(sum(k for k, _ in list(counts(masks).values())[:2]) - 162) <= 18
    odd = nn.ModuleDict({"up": nn.ConvTranspose2d(2, 3, 2), "look": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 2)})
    masks = cut(odd, count=24 + 4 + 8 + 4)
    assert left({name: masks[f"look.{name}"] for name in ("in_proj_weight", "out_proj.weight")}) == [1, 1] and masks["up.weight"].all()
    assert cut(nn.Linear(3, 2), keep=1.0)["weight"].all()
    with pytest.raises(UserError, match="cannot keep only 3 weights"):
        cut(nn.Linear(3, 2), keep=0.5)


def test_grouped_convolutions_and_attention_lose_the_rows_of_least_norm() -> None:
    grouped = nn.ModuleDict({"grouped": nn.Conv2d(4, 4, 3, groups=2), "depthwise": nn.Conv2d(4, 8, 3, groups=4), "head": nn.Linear(8, 2)})
    attention = nn.ModuleDict({"one": nn.MultiheadAttention(4, 2), "wide": nn.MultiheadAttention(4, 2, kdim=6), "head": nn.Linear(4, 2)})
    for model in (grouped, attention):
        for name in ones(model).keys() - {"head.weight"}:
            model.get_parameter(name).data.copy_(torch.ones_like(model.get_parameter(name)))
            model.get_parameter(name).data[1::2] *= 0.01
        size = sum(mask[::2].numel() for name, mask in ones(model).items() if name != "head.weight")
        for name, mask in cut(model, count=size + model.get_parameter("head.weight").numel()).items():
            assert mask[::2].all() and (name == "head.weight" or not mask[1::2].any()), name


def test_layers_of_zeros_go_first_and_diverged_ones_are_refused() -> None:
    model = net()
    model.hidden.weight.data.zero_()
    assert left(cut(model, count=414 - 54)) == [4, 6, 1, 3]
    model.hidden.weight.data[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"the weights of hidden\.weight are not finite"):
        cut(model, keep=0.5)
    with pytest.raises(UserError, match="exactly one of keep, drop, count"):
        cut(model)


def drawn(seed: int, **given: Any) -> Masks:
    values = check_all(knobs("pruner", random_filters), given, "cut", lambda kind, value, where: value)
    model = net()
    return random_filters(model, ones(model), DATA, torch.Generator().manual_seed(seed), **values)


def test_random_filters_go_whole_each_as_likely_and_none_for_its_weights() -> None:
    rates = {name: torch.zeros(len(mask)) for name, mask in drawn(0, keep=0.6).items()}
    for seed in range(400):
        masks = drawn(seed, keep=0.6)
        assert abs(sum(k for k, _ in counts(masks).values()) - 248) <= 18
        assert all(bool((mask.flatten(1).all(1) | ~mask.flatten(1).any(1)).all()) for mask in masks.values())
        for name, mask in masks.items():
            rates[name] += mask.flatten(1).any(1).float()
    again = drawn(7, keep=0.6)
    assert all(torch.equal(mask, again[name]) for name, mask in drawn(7, keep=0.6).items())
    assert float(rates.pop("head.weight").min()) == 400
    every = torch.cat(list(rates.values())) / 400
    assert float((every - every.mean()).abs().max()) < 0.1, "four standard errors of a share of 400"
    assert left(drawn(3, count=27 + 36 + 6 + 30)) == [1, 1, 1, 3]
