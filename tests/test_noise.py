"""Counter-based noise: good statistics, and nothing but seed, id, stream, draw and element decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from rtbench.parts.noise import CounterNoise, GeneratorNoise, Noise, mix


def splitmix64(state: int, n: int) -> list[int]:
    """The generator as published, in Python's integers."""
    found = []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        found.append(z ^ (z >> 31))
    return found


def test_mixing_is_splitmix64() -> None:
    states = (torch.arange(1, 101) * (0x9E3779B97F4A7C15 - 2**64)) + 1234567
    assert [bits % 2**64 for bits in mix(states).tolist()] == splitmix64(1234567, 100)
    assert splitmix64(1234567, 1)[0] == 6457827717110365317  # the value usually quoted for this seed


def noise(n: int, seed: int = 0) -> CounterNoise:
    return CounterNoise(seed, torch.arange(n))


def draws(source: Noise, x: Tensor) -> list[Tensor]:
    return [source.uniform(x), source.normal(x), source.randint(0, 10), source.stream("a").uniform(x), source.uniform(x)]


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12), st.integers(-(2**70), 2**70))
def test_batches_and_order_change_nothing(order: list[int], batch: int, seed: int) -> None:
    ids, x = torch.arange(100, 112) ** 3, torch.zeros(12, 3, 5)
    whole = draws(CounterNoise(seed, ids), x)
    split = [draws(CounterNoise(seed, ids[part]), x[part]) for part in torch.tensor(order).split(batch)]
    for reference, parts in zip(whole, zip(*split, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), reference[order])


def test_rows_are_the_samples_noise_however_they_are_taken() -> None:
    x = torch.zeros(6, 4)
    whole = [noise(6).uniform(x)]
    source = noise(6)
    first, second, third = source.uniform(x), source.rows(torch.tensor([4, 1])).uniform(x[:2]), source.uniform(x)
    assert torch.equal(first, whole[0])
    reference = noise(6)
    one, two, three = (reference.uniform(x) for _ in range(3))
    assert torch.equal(second, two[[4, 1]])
    assert torch.equal(third[[0, 2, 3, 5]], two[[0, 2, 3, 5]]) and torch.equal(third[[4, 1]], three[[4, 1]])  # each its own count
    with pytest.raises(ValueError, match=r"noise of 6 samples, and x has 1; that of some of them is noise\.rows\(index\)"):
        source.uniform(x[:1])
    nested = source.rows(torch.arange(6) > 2).rows(torch.tensor([True, False, True]))
    assert torch.equal(nested.uniform(x[:2])[0], three[3]) and one is not two


def test_seeds_streams_ids_and_draws_all_differ() -> None:
    x = torch.zeros(5, 40)
    source = noise(5)
    seen = [source.uniform(x), source.uniform(x), source.stream("a").uniform(x), source.stream(1).uniform(x), source.stream("1").uniform(x)]
    seen += [source.stream("a").stream("a").uniform(x), noise(5, 1).uniform(x), noise(5, -1).uniform(x)]
    rows = torch.cat(seen)
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    assert torch.equal(source.stream("a").uniform(x), noise(5).stream("a").uniform(x))


@pytest.mark.parametrize("axis", ["ids", "draws", "streams", "elements", "seeds"])
def test_distributions_and_independence_along_every_axis(axis: str) -> None:
    """(400, 250) numbers whose first axis is neighbouring ids, draws, streams, elements or seeds."""
    n, m = 400, 250
    if axis in ("ids", "elements"):
        pairs = [(noise(n).uniform(torch.zeros(n, m)), noise(n).normal(torch.zeros(n, m)))]
        pairs = [(u.T, g.T) for u, g in pairs] if axis == "elements" else pairs
    else:
        one, same = torch.zeros(1, m), noise(1)
        sources = {"draws": [same] * n, "streams": [same.stream(i) for i in range(n)], "seeds": [noise(1, i) for i in range(n)]}[axis]
        pairs = [(torch.cat([s.uniform(one) for s in sources]), torch.cat([s.normal(one) for s in sources]))]
    for u, g in pairs:
        assert u.min() >= 0 and u.max() < 1
        assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
        assert stats.kstest(g.flatten().numpy(), "norm").pvalue > 1e-3
        for values, mean, sd in ((u.double(), 0.5, math.sqrt(1 / 12)), (g.double(), 0, 1)):
            z = (values - mean) / sd
            assert abs(z.mean()) < 4 / math.sqrt(n * m) and abs(z.var() - 1) < 8 / math.sqrt(n * m)
            assert abs((z[1:] * z[:-1]).mean()) < 4 / math.sqrt(n * m)  # neighbours along the axis
            assert abs((z[:, 1:] * z[:, :-1]).mean()) < 4 / math.sqrt(n * m)
            assert np.abs(np.corrcoef(z[:20].numpy()) - np.eye(20)).max() < 5 / math.sqrt(m)


def test_bits_are_balanced() -> None:
    bits = noise(1000)._bits(torch.zeros(1000, 100)).flatten()
    ones = torch.stack([(bits >> i & 1).double().mean() for i in range(64)])
    assert (ones - 0.5).abs().max() < 5 * 0.5 / math.sqrt(len(bits))


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 11), (torch.bfloat16, 8), (torch.float32, 24), (torch.float64, 53)])
def test_uniform_numbers_are_never_one(dtype: torch.dtype, digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 3, dtype=dtype)
    monkeypatch.setattr(CounterNoise, "_bits", lambda self, x: torch.full(x.shape, -1))  # all 64 bits set: the largest draw
    top = noise(2).uniform(x)
    assert top.dtype == dtype and (top == 1 - 2.0**-digits).all() and (top < 1).all()
    assert (CounterNoise(0, torch.arange(2)).randint(3, 10) == 9).all()
    assert noise(2).normal(x.double()).isfinite().all()
    monkeypatch.setattr(CounterNoise, "_bits", lambda self, x: torch.zeros(x.shape, dtype=torch.int64))
    assert not noise(2).uniform(x).any() and noise(2).normal(x.double()).isfinite().all()


def test_whole_numbers_are_even_over_the_range() -> None:
    found = noise(70_000).randint(-2, 5)
    assert found.dtype == torch.int64 and found.min() == -2 and found.max() == 4
    assert stats.chisquare(torch.bincount(found + 2).numpy()).pvalue > 1e-3


def test_shapes_dtypes_and_emptiness() -> None:
    for x in (torch.zeros(3, 1, 2, 2), torch.zeros(3), torch.zeros(3, 0), torch.zeros(3, 5, dtype=torch.float64)):
        for found in (noise(3).uniform(x), noise(3).normal(x)):
            assert found.shape == x.shape and found.dtype == x.dtype
    empty = noise(0)
    assert empty.uniform(torch.zeros(0, 3, 2)).shape == (0, 3, 2) and empty.randint(0, 3).shape == (0,)


def test_seed_is_fixed_small_and_does_not_count_as_a_draw() -> None:
    a, b = noise(3), CounterNoise(0, torch.arange(50, 70))
    assert a.seed == a.seed == b.seed and 0 <= a.seed < 2**31
    assert len({noise(3, seed).seed for seed in range(100)} | {a.stream(i).seed for i in range(100)}) == 200
    assert torch.equal(a.uniform(torch.zeros(3, 2)), noise(3).uniform(torch.zeros(3, 2)))


def test_generator_noise_is_the_generator() -> None:
    x = torch.zeros(4, 3)
    source, rng = GeneratorNoise(torch.Generator().manual_seed(1), 4), torch.Generator().manual_seed(1)
    assert torch.equal(source.uniform(x), torch.rand(4, 3, generator=rng))
    assert torch.equal(source.stream("any").normal(x), torch.randn(4, 3, generator=rng))
    assert torch.equal(source.randint(2, 9), torch.randint(2, 9, (4,), generator=rng))
    assert source.rows(torch.tensor([True, False, True, True])).randint(0, 2).shape == (3,)
    assert source.rows(torch.tensor([0, 2])).randint(0, 2).shape == (2,)
    assert source.seed != source.seed
    with pytest.raises(ValueError, match="without the number of samples"):
        GeneratorNoise(rng).randint(0, 2)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    draws(noise(3), torch.zeros(3, 2))
    draws(GeneratorNoise(torch.Generator(), 3), torch.zeros(3, 2))
    assert torch.equal(torch.get_rng_state(), state)
