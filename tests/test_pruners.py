"""The built-in pruners: which weights they keep, exact counts in every scope, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from rtbench.builtin.pruners import rtbench_pruners
from rtbench.builtin.pruners.scores import magnitude, normalised_magnitude, random
from rtbench.errors import UserError
from rtbench.parts.kinds import asks_for, knobs, validate
from rtbench.parts.knobs import check_all
from rtbench.parts.masks import Masks, apply_, counts, density, ones

NAMES = ["stem.weight", "conv.weight", "hidden.weight", "head.weight"]
PRUNERS = [magnitude, normalised_magnitude, random]


class Net(nn.Module):
    """27 * 4 = 108, 4 * 6 * 9 = 216, 6 * 10 = 60 and 10 * 3 = 30 prunable weights: 414."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)
        self.hidden, self.head = nn.Linear(6, 10), nn.Linear(10, 3)


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def cut(pruner: Any, model: nn.Module, masks: Masks | None = None, seed: int = 0, **given: Any) -> Masks:
    """The pruner as the engine calls it: knobs checked, tuples and defaults in their stored form."""
    values = check_all(knobs("pruner", pruner), given, "cut", lambda kind, value, where: value)
    words = {"model": model, "masks": ones(model) if masks is None else masks, "rng": torch.Generator().manual_seed(seed), "data": None}
    result: Masks = pruner(**{word: words[word] for word in asks_for(pruner)}, **values)
    return result


def kept(masks: Masks) -> list[int]:
    return [k for k, _ in counts(masks).values()]


def test_magnitude_keeps_the_largest_weights_of_the_network() -> None:
    model = net()
    masks = cut(magnitude, model, keep=0.1)
    flat = torch.cat([model.get_parameter(n).detach().abs().flatten() for n in NAMES])
    chosen = torch.cat([masks[n].flatten() for n in NAMES])
    assert int(chosen.sum()) == 41 and torch.equal(chosen, flat >= flat.sort(descending=True).values[40])


def test_normalised_magnitude_divides_by_the_mean_of_what_is_left() -> None:
    model = net()
    before = cut(magnitude, model, drop=0.3)
    apply_(model, before)
    masks = cut(normalised_magnitude, model, before, drop=0.5)
    scores = [model.get_parameter(n).detach().abs() / model.get_parameter(n).detach()[before[n]].abs().mean() for n in NAMES]
    flat = torch.cat([score.flatten() for score in scores])
    line = flat[torch.cat([before[n].flatten() for n in NAMES])].sort(descending=True).values[int(sum(kept(before)) / 2 + 0.5) - 1]
    assert torch.equal(torch.cat([masks[n].flatten() for n in NAMES]), flat >= line)
    assert kept(masks) != kept(cut(magnitude, model, before, drop=0.5))


def test_layers_of_zeros_and_layers_already_gone_have_scores() -> None:
    model = net()
    model.hidden.weight.data.zero_()
    masks = ones(model)
    masks["stem.weight"][:] = False
    found = kept(cut(normalised_magnitude, model, masks, count=200))
    assert found[0] == found[2] == 0 and sum(found) == 200
    assert kept(cut(normalised_magnitude, model, masks, drop=0.0)) == [0, 216, 60, 30]


def test_random_is_seeded_by_the_generator_and_uniform() -> None:
    model = net()
    assert all(torch.equal(a, b) for a, b in zip(*(cut(random, model, keep=0.3).values() for _ in range(2)), strict=True))
    state = torch.get_rng_state()
    runs = [torch.cat([m.flatten() for m in cut(random, model, seed=seed, keep=0.3).values()]) for seed in range(300)]
    assert torch.equal(torch.get_rng_state(), state)
    times = torch.stack(runs).sum(0)
    assert stats.chisquare(times.numpy()).pvalue > 1e-3 and times.float().std() > 4


def test_random_does_not_depend_on_the_order_in_which_masks_were_stored() -> None:
    model = net()
    masks = ones(model)
    shuffled = {name: masks[name] for name in sorted(masks)}
    for pruner in PRUNERS:
        a, b = cut(pruner, model, masks, keep=0.3), cut(pruner, model, shuffled, keep=0.3)
        assert list(b) == sorted(masks) and all(torch.equal(a[name], b[name]) for name in NAMES)


@pytest.mark.parametrize("pruner", PRUNERS)
@given(
    scope=st.sampled_from(["global", "layer"]),
    amount=st.sampled_from(["keep", "drop"]),
    share=st.integers(1, 99),
    floor=st.integers(0, 3),
    rounds=st.integers(1, 3),
)
def test_counts_are_exact_and_nothing_is_revived(pruner: Any, scope: str, amount: str, share: int, floor: int, rounds: int) -> None:
    model, masks = net(), None
    for n in range(1, rounds + 1):
        before = ones(model) if masks is None else masks
        value = share / 100 if amount == "drop" else share / 100 / n
        sizes = [108, 216, 60, 30] if amount == "keep" else kept(before)
        groups = [sizes] if scope == "global" else [[size] for size in sizes]
        left = [int((value if amount == "keep" else 1 - value) * sum(group) + 0.5 + 1e-9) for group in groups]
        if scope == "global" and left[0] < sum(min(floor, size) for size in kept(before)):
            with pytest.raises(UserError, match="cannot keep only"):
                cut(pruner, model, before, scope=scope, floor=floor, **{amount: value})
            return
        masks = cut(pruner, model, before, scope=scope, floor=floor, **{amount: value})
        assert all(not (masks[name] & ~before[name]).any() for name in NAMES)
        assert all(k >= min(floor, b) for k, b in zip(kept(masks), kept(before), strict=True))
        if scope == "global":
            assert sum(kept(masks)) == left[0]
        else:
            assert kept(masks) == [max(a, min(floor, b)) for a, b in zip(left, kept(before), strict=True)]
        apply_(model, masks)


@pytest.mark.parametrize("pruner", PRUNERS)
def test_only_convolutions(pruner: Any) -> None:
    """Chen et al. 2022 drop 20 % of the remaining weights of convolutions, round after round."""
    model = net()
    masks, left = ones(model), 324
    for _ in range(4):
        masks = cut(pruner, model, masks, drop=0.2, only="conv")
        left = (8 * left + 5) // 10
        assert sum(kept(masks)[:2]) == left and kept(masks)[2:] == [60, 30]
    assert sum(kept(cut(pruner, model, keep=0.5, only="conv"))[:2]) == 162
    with pytest.raises(UserError, match="no convolutions"):
        cut(pruner, nn.Linear(3, 2), keep=0.5, only="conv")
    with pytest.raises(UserError, match="no prunable weights"):
        cut(pruner, nn.BatchNorm1d(3), keep=0.5)


@pytest.mark.parametrize("pruner", PRUNERS)
def test_excluded_layers_stay_and_count(pruner: Any) -> None:
    model = net()
    masks = cut(pruner, model, keep=0.5, exclude=["first", "last"])
    assert kept(masks)[0] == 108 and kept(masks)[3] == 30 and sum(kept(masks)) == 207 and density(masks) == 0.5
    assert kept(cut(pruner, model, scope="layer", drop=0.5, exclude=["first", "h*"])) == [108, 108, 60, 30]
    assert kept(cut(pruner, model, drop=0.5, only="conv", exclude=["last", "first"])) == [108, 54, 60, 30]
    with pytest.raises(UserError, match="the excluded layers alone hold 138"):
        cut(pruner, model, keep=0.3, exclude=["first", "last"])
    with pytest.raises(UserError, match=r'exclude: no layer "steem\.weight"; did you mean "stem\.weight"'):
        cut(pruner, model, keep=0.5, exclude=["steem.weight"])


def test_single_layers_have_their_own_rates() -> None:
    model = net()
    layers = {"scope": "layer", "drop": 0.2}
    assert kept(cut(magnitude, model, **layers, last=0.1)) == [86, 173, 48, 27]
    assert kept(cut(magnitude, model, **layers, rates={"*conv*": 0.5, "head.weight": 0.0})) == [86, 108, 48, 30]
    assert kept(cut(magnitude, model, **layers, rates={"stem*": 0.5}, last=0.1)) == [54, 173, 48, 27]
    assert kept(cut(magnitude, model, scope="layer", drop=0.99, floor=2)) == [2, 2, 2, 2]
    assert kept(cut(magnitude, model, scope="layer", count=20)) == [20, 20, 20, 20]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"drop": 0.2, "last": 0.1}, 'need scope "layer"'),
        ({"drop": 0.2, "rates": {"head*": 0.1}}, 'need scope "layer"'),
        ({"scope": "layer", "keep": 0.2, "last": 0.1}, "give drop for the other layers"),
        ({"scope": "layer", "drop": 0.2, "rates": {"haed.weight": 0.1}}, 'rates: no layer "haed.weight"; did you mean "head.weight"'),
        ({"scope": "layer", "drop": 0.2, "rates": {"head.weight": 0.3}, "last": 0.1}, "two rates of one layer"),
        ({"scope": "layer", "drop": 0.2, "last": 0.1, "exclude": ["last"]}, "the last layer, head.weight, is not pruned"),
        ({"scope": "layer", "drop": 0.2, "last": 0.1, "only": "conv"}, "the last layer, head.weight, is not pruned"),
        ({"scope": "layer", "count": 31}, "cannot keep 31 weights of head.weight: 30 of 30 are left"),
        ({"count": 415}, "cannot keep 415 weights: 414 of 414 are left"),
        ({"keep": 0.2, "drop": 0.2}, "exactly one of keep, drop, count"),
        ({}, "exactly one of keep, drop, count"),
        ({"keep": 0}, "outside"),
        ({"drop": 1}, "outside"),
        ({"keep": 0.5, "floor": -1}, "outside"),
    ],
)
def test_contradictions_are_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cut(magnitude, net(), **given_)


def test_diverged_weights_are_refused() -> None:
    model = net()
    model.conv.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"scores of conv\.weight are not numbers"):
        cut(magnitude, model, keep=0.5)
    assert sum(kept(cut(random, model, keep=0.5))) == 207


def test_other_masks_pass_through_and_weights_are_not_touched() -> None:
    model = net()
    masks = {**ones(model), "norm.weight": torch.tensor([True, False, True, True])}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for pruner in PRUNERS:
        found = cut(pruner, model, masks, drop=0.5)
        assert found["norm.weight"] is masks["norm.weight"] and sum(kept(found)) == 207 + 3
    assert all(masks[name].all() for name in NAMES), "the masks given are not changed"
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def test_parts_declare_their_knobs() -> None:
    parts = rtbench_pruners()
    assert list(parts) == ["magnitude", "normalised-magnitude", "random", "filters", "random-filters"]
    for name, function in parts.items():
        validate("pruner", name, function)
        declared = knobs("pruner", function)
        assert all(knob.help for knob in declared.values())
        assert {k for k, knob in declared.items() if knob.group == "amount"} == {"keep", "drop", "count"}
    assert magnitude.__doc__ is not None and magnitude.__doc__.startswith("Keep the weights of largest")


@pytest.mark.parametrize(("scope", "left"), [("layer", "each"), ("global", "all")])
def test_extra_weights_are_pruned_beyond_the_amount(scope: str, left: str) -> None:
    """As code that prunes all |w| <= the k-th smallest counted from 0: k + 1 of each layer."""
    model = net()
    before, after = (kept(cut(magnitude, model, scope=scope, drop=0.5, extra=extra)) for extra in (0, 1))
    if left == "each":
        assert after == [number - 1 for number in before]
    else:
        assert sum(after) == sum(before) - 1
    assert sum(kept(cut(magnitude, model, scope=scope, drop=0.99, extra=10**6))) == 0
    assert all(number >= 2 for number in kept(cut(magnitude, model, scope="layer", drop=0.99, extra=10**6, floor=2)))
