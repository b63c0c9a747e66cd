"""What a number over samples and trials is worth: intervals, spread and tests."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""
EXACT = 40
"""Pairs up to which a sign-flip test goes through all patterns."""


def wilson(p: float, n: int) -> list[float]:
    """95 % score interval of a share p of n (Wilson 1927).

    n is the number of test samples, however many trials p averages over: all trials are tested on the same samples, so counting
    them again for every trial would overstate what is known. Spread over trials is what `sd` tells.
    """
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def student(sd: float, n: int) -> float:
    """Half the width of the 95 % t-interval of the mean of n values with sample standard deviation sd; n >= 2 (Student 1908)."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)


def spread(values: Iterable[float | None]) -> tuple[float | None, float | None, int]:
    """Mean, sample standard deviation (n - 1) and count of the values that are there."""
    there = [value for value in values if value is not None]
    n = len(there)
    if not n:
        return None, None, 0
    mean = there[0] if len(set(there)) == 1 else math.fsum(there) / n  # equal values have a spread of exactly 0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in there) / (n - 1)) if n > 1 else None, n


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p-value of a sign-flip permutation test that paired differences are symmetric around 0; the statistic is their sum.

    Exact over all 2^n sign patterns up to 40 pairs (both halves are enumerated and met by bisection), by the normal approximation beyond.
    It cannot be below 2 / 2^n, and is 1 without any difference (Fisher 1935; Pesarin & Salmaso 2010).
    """
    total, size = abs(math.fsum(differences)), math.fsum(abs(value) for value in differences)
    if not size:
        return 1.0
    if len(differences) > EXACT:
        return math.erfc(total / math.sqrt(2 * math.fsum(value * value for value in differences)))
    edge = total - 1e-9 * size  # as far out, give or take the rounding of sums in another order
    half = len(differences) // 2
    left, right = _signed_sums(differences[:half]), sorted(_signed_sums(differences[half:]))
    above = sum(len(right) - bisect_left(right, edge - value) for value in left)
    return min(1.0, 2 * above / 2 ** len(differences)) if edge > 0 else 1.0


def least_p(n: int) -> float:
    """The smallest p-value that a sign-flip test of n pairs can have."""
    return min(1.0, 2.0 ** (1 - n))


def _signed_sums(values: Sequence[float]) -> list[float]:
    sums = [0.0]
    for value in values:
        sums = [start + sign for start in sums for sign in (value, -value)]
    return sums


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted so that rejecting those at most alpha makes any false rejection at most alpha likely (Holm 1979)."""
    adjusted, highest = [0.0] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, values[i] * (len(values) - place)))
        adjusted[i] = highest
    return adjusted
