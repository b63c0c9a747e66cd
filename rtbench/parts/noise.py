"""Random numbers for attacks.

In evaluation they are counter-based: a sample's numbers depend on the seed, its id, the stream and how many draws it has had, and
on nothing else: not on the batch it is in, its order or size, nor on the device (normal numbers up to the device's rounding of
logarithm and cosine). In training they come straight from a generator.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rtbench import keys


class Noise(Protocol):
    """What an attack draws from; every call is a new draw."""

    def uniform(self, x: Tensor) -> Tensor:
        """Numbers in [0, 1), never 1, in x's shape (n, ...), dtype and device."""

    def normal(self, x: Tensor) -> Tensor:
        """Standard normal numbers in x's shape (n, ...), dtype and device."""

    def randint(self, low: int, high: int) -> Tensor:
        """int64 (n,): a whole number in [low, high) per sample."""

    def stream(self, name: str | int) -> Noise:
        """An independent source for the same samples, the same one for the same name."""

    def rows(self, index: Tensor) -> Noise:
        """The noise of some of the samples, bool (n,) or int64 (m,); their draws count as draws of the whole."""

    @property
    def seed(self) -> int:
        """A number in [0, 2**31) to seed a library with."""


GOLDEN = 0x9E3779B97F4A7C15 - 2**64
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def mix(state: Tensor) -> Tensor:
    """The output function of SplitMix64 on int64 (Steele, Lea & Flood 2014), in place; products wrap around."""
    state.bitwise_xor_(_shift(state, 30)).mul_(FIRST)
    state.bitwise_xor_(_shift(state, 27)).mul_(SECOND)
    return state.bitwise_xor_(_shift(state, 31))


def _shift(bits: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign of an int64."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


class CounterNoise:
    """Noise of samples `ids`, int64 (n,), under `seed`, any int."""

    def __init__(self, seed: int, ids: Tensor) -> None:
        self._seed = seed
        self._ids = ids.long()
        self._draws = torch.zeros_like(self._ids)  # of every sample, shared with all rows of it
        self._rows = torch.arange(len(ids), device=ids.device)
        self._origin = keys.seed("noise", seed)

    def uniform(self, x: Tensor) -> Tensor:
        digits = {torch.float64: 53, torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}[x.dtype]
        return _shift(self._bits(x), 64 - digits).to(x.dtype).mul_(2.0**-digits)

    def normal(self, x: Tensor) -> Tensor:
        bits = self._bits(x)  # Box-Muller on the two halves of 64 bits: magnitudes up to 6.66
        far = _shift(bits, 32).add_(1).double().mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = bits.bitwise_and_(2**32 - 1).double().mul_(2.0**-32 * 2 * torch.pi)
        return far.mul_(angle.cos_()).to(x.dtype)

    def randint(self, low: int, high: int) -> Tensor:
        return (_shift(self._bits(self._ids[self._rows]), 32) * (high - low) >> 32) + low

    def stream(self, name: str | int) -> CounterNoise:
        return CounterNoise(keys.seed("stream", self._seed, name), self._ids[self._rows])

    def rows(self, index: Tensor) -> CounterNoise:
        part = CounterNoise(self._seed, self._ids)
        part._draws, part._rows = self._draws, self._rows[index.to(self._rows.device)]
        return part

    @property
    def ids(self) -> Tensor:
        """The sample id of each row, int64 (n,)."""
        return self._ids[self._rows]

    @property
    def seed(self) -> int:
        return self._origin >> 32

    def _bits(self, x: Tensor) -> Tensor:
        """64 random bits per element of x, int64; one draw of every sample of this object."""
        if len(x) != len(self._rows):
            raise ValueError(f"this is noise of {len(self._rows)} samples, and x has {len(x)}; that of some of them is noise.rows(index)")
        state = mix(self._ids[self._rows].mul(GOLDEN).add_(self._origin))
        state = mix(state.add_(self._draws[self._rows].add_(1).mul_(GOLDEN)))
        self._draws[self._rows] += 1
        elements = torch.arange(1, x[0:1].numel() + 1, device=x.device).mul_(GOLDEN)
        return mix(state.to(x.device)[:, None] + elements).view(x.shape)


class GeneratorNoise:
    """Noise straight from a generator, for training. n: how many samples there are, which only `randint` asks for."""

    def __init__(self, rng: torch.Generator, n: int | None = None) -> None:
        self._rng, self._n = rng, n

    def uniform(self, x: Tensor) -> Tensor:
        return torch.rand(x.shape, generator=self._rng, dtype=x.dtype, device=self._rng.device).to(x.device)

    def normal(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self._rng, dtype=x.dtype, device=self._rng.device).to(x.device)

    def randint(self, low: int, high: int) -> Tensor:
        if self._n is None:
            raise ValueError("this noise was made without the number of samples, which randint needs")
        return torch.randint(low, high, (self._n,), generator=self._rng, device=self._rng.device)

    def stream(self, name: str | int) -> GeneratorNoise:
        return self  # what a generator gives next is independent of all that came before

    def rows(self, index: Tensor) -> GeneratorNoise:
        return GeneratorNoise(self._rng, int(index.count_nonzero()) if index.dtype == torch.bool else len(index))

    @property
    def seed(self) -> int:
        return int(torch.randint(2**31, (), generator=self._rng, device=self._rng.device))


class Generators(tuple[torch.Generator, ...]):
    """Of networks trained as one, each one's own, in order; in place of a generator."""


class StackedNoise:
    """Noise of samples of several networks, an equal share of the rows for each, drawn from its own generator as if it were alone."""

    def __init__(self, rngs: Generators, n: int) -> None:
        self._each = [GeneratorNoise(rng, n // len(rngs)) for rng in rngs]

    def uniform(self, x: Tensor) -> Tensor:
        return torch.cat([noise.uniform(part) for noise, part in zip(self._each, x.chunk(len(self._each)), strict=True)])

    def normal(self, x: Tensor) -> Tensor:
        return torch.cat([noise.normal(part) for noise, part in zip(self._each, x.chunk(len(self._each)), strict=True)])

    def randint(self, low: int, high: int) -> Tensor:
        return torch.cat([noise.randint(low, high) for noise in self._each])

    def stream(self, name: str | int) -> StackedNoise:
        return self

    def rows(self, index: Tensor) -> StackedNoise:
        raise ValueError("networks trained as one are asked about all of their samples at once")

    @property
    def seed(self) -> int:
        raise ValueError("networks trained as one have no one seed")


def training_noise(rng: torch.Generator | Generators, n: int) -> Noise:
    """Noise for n samples in training."""
    return StackedNoise(rng, n) if isinstance(rng, Generators) else GeneratorNoise(rng, n)
