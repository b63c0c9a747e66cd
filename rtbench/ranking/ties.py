"""Which rows of a board can be told apart, by a hierarchical paired bootstrap over trials and samples.

Two rows are compared on the same samples and the same trials. Each of 2,000 times both are drawn anew: of n trials n - 1 with replacement,
which makes the variance between trials come out right however few there are (Rao & Wu 1988), and as many samples as there are, with
replacement. Going down the board, a row that cannot be told from the best of the group above it joins that group, and one that can begins
a new one: m rows take m - 1 comparisons, each made at 0.05 / (m - 1) (Bonferroni). With a few trials, chance in training is known poorly;
with one it is not known at all, and the groups say what the samples say. Drawing from a few samples that all say the same shows no chance
at all, so no two rows are told apart that an exact paired test (sign test) could not tell apart on so many samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rtbench.parts.flags import CHANCE
from rtbench.ranking.rows import Measured, Row
from rtbench.ranking.worst import Verdicts

if TYPE_CHECKING:
    import numpy as np

DRAWS, ALPHA, AT_ONCE = 2000, 0.05, 250
NOTE = "rows of one rank cannot be told apart (paired bootstrap over trials and samples, 5 % over the board)"


def group(rows: Sequence[Row], rank: list[str], verdicts: Verdicts) -> None:
    """Numbers the groups of rows, which are in the order of their rank, from 1; rows without verdicts for every sample have none."""
    last, comparisons = 0, max(1, sum(ranked_by(row, rank) is not None for row in rows) - 1)
    for name in rank:
        ranked = [row for row in rows if ranked_by(row, rank) == name]
        found = bits([keys(row, name) for row in ranked], verdicts)
        if found is None or not are_means(found, [row.probes[name] for row in ranked]):
            continue
        for row, number in zip(ranked, told_apart(found, comparisons), strict=True):
            row.group = last + number
        last = max((row.group or 0 for row in ranked), default=last)


def ranked_by(row: Row, rank: list[str]) -> str | None:
    """The first number of `rank` that a finished row has; None for rows that have no rank."""
    if CHANCE in row.flags or row.status != "done":
        return None
    return next((name for name in rank if name in row.probes and row.probes[name].mean is not None), None)


def keys(row: Row, name: str, trials: Iterable[int] | None = None) -> list[list[str]]:
    """For every trial, or these, the stages whose verdicts together are this number's."""
    probes = [probe for probe in row.probes[name].over or [name] if probe in row.keys]
    return [[row.keys[probe][trial] for probe in probes] for trial in (range(row.trials) if trials is None else trials)]


def bits(rows: list[list[list[str]]], verdicts: Verdicts) -> np.ndarray | None:
    """uint8 (rows, trials, samples) on the samples that all saw; None where some kept no verdicts, or trials differ in number."""
    import numpy as np

    stages = [key for trials in rows for together in trials for key in together]
    if not stages or not all(together and all(key in verdicts for key in together) for trials in rows for together in trials):
        return None
    if len({len(trials) for trials in rows}) > 1:
        return None
    robust = dict(zip(stages, verdicts.robust(stages), strict=True))
    found = np.stack([np.stack([np.bitwise_and.reduce([robust[key] for key in together]) for together in trials]) for trials in rows])
    return found if found.shape[2] else None


def are_means(bits: np.ndarray, numbers: list[Measured]) -> bool:
    """Whether the numbers are means of these verdicts, as far as they are of the same samples."""
    there = zip(numbers, bits.mean((1, 2)).tolist(), strict=True)
    return all(number.samples != bits.shape[2] or math.isclose(number.mean or 0.0, mean, abs_tol=1e-9) for number, mean in there)


def told_apart(bits: np.ndarray, comparisons: int) -> list[int]:
    """The group of each row, from 1. bits: (rows, trials, samples) of 0 and 1, rows by falling mean. comparisons: of the whole board."""
    import numpy as np

    m, _, samples = bits.shape
    means = resampled(bits)
    exact = bits.mean((1, 2), dtype=np.float64)
    groups, leader = [1] * m, 0
    for row in range(1, m):
        gap, spread = exact[leader] - exact[row], means[leader] - means[row] - (exact[leader] - exact[row])
        apart = bool(gap > 0 and max(_chance(gap, spread), 2.0 ** (1 - samples)) < ALPHA / comparisons)
        groups[row] = groups[row - 1] + apart
        leader = row if apart else leader
    return groups


def resampled(bits: np.ndarray) -> np.ndarray:
    """(rows, draws): the mean of every row in every draw, all rows by the same trials and the same samples."""
    import numpy as np

    m, n, samples = bits.shape
    rng = np.random.default_rng(0)
    trials = rng.multinomial(max(1, n - 1), np.full(n, 1 / n), DRAWS) / max(1, n - 1)
    flat, means = bits.reshape(m * n, samples).astype(np.float32), np.empty((m, DRAWS))
    for start in range(0, DRAWS, AT_ONCE):
        places = rng.integers(0, samples, (AT_ONCE, samples)) + samples * np.arange(AT_ONCE)[:, None]
        counts = np.bincount(places.ravel(), minlength=AT_ONCE * samples).reshape(AT_ONCE, samples).astype(np.float32)
        shares = (flat @ counts.T).reshape(m, n, AT_ONCE) / samples
        means[:, start : start + AT_ONCE] = np.einsum("mnd,dn->md", shares, trials[start : start + AT_ONCE])
    return means


def _chance(gap: float, spread: np.ndarray) -> float:
    """How likely a gap this wide, above 0, is between equals: the share of draws that stray so far, or the normal tail if none does."""
    import numpy as np

    beyond = int((np.abs(spread) >= gap).sum())
    share = (1 + beyond) / (1 + len(spread))
    deviation = float(spread.std())
    if beyond:
        return share
    return min(share, math.erfc(gap / (deviation * math.sqrt(2)))) if deviation else 0.0
