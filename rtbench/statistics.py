"""What a number over samples and trials is worth: intervals and spread."""

from __future__ import annotations

import math
from collections.abc import Iterable

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


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
