"""By how much one row beats another, number by number: differences are paired, as all rows share trials and samples.

An interval is the bootstrap's standard error (of draws as in `ties`, over trials and samples) times a quantile of Student's t: with a
few trials the variance between them is itself known poorly, and the quantile has Satterthwaite's 1946 degrees of freedom for that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from rtbench.ranking import ties
from rtbench.ranking.rows import Measured, Row
from rtbench.ranking.worst import Verdicts
from rtbench.statistics import least_p, sign_flip, spread, student

if TYPE_CHECKING:
    import numpy as np

BOTH, SAMPLES, TRIALS = "trials and samples", "samples", "trials"


class Pair(NamedTuple):
    """One number of two rows, on the trials and samples that both have; difference: the one minus the other.

    interval: 95 %, over what `over` says: of one trial over its samples, and where there is no outcome per sample over the trials; None
    of one trial without outcomes. p: sign-flip test, over the trials, of one over its samples; least: the smallest that so many allow.
    only_one, only_other: over all trials, how many samples are robust in that row alone.
    """

    column: str
    one: float
    other: float
    difference: float
    interval: list[float] | None
    over: str
    trials: int
    samples: int | None
    p: float | None
    least: float | None
    only_one: int | None
    only_other: int | None


def pair(name: str, one: Row, other: Row, verdicts: Verdicts) -> Pair | str:
    """The number called `name` of two rows of one board, or why there is no comparing it."""
    first, second = one.probes[name], other.probes[name]
    if first.split != second.split:
        return f"measured on the {first.split} and on the {second.split} samples"
    if lost := [*first.missing, *second.missing]:
        return f"incomplete without {', '.join(dict.fromkeys(lost))}"
    both = zip(first.values, second.values, strict=True)
    trials = [trial for trial, values in enumerate(both) if None not in values]
    if not trials:
        return "no trial of both has it"
    bits = ties.bits([ties.keys(row, name, trials) for row in (one, other)], verdicts)
    cut = [_cut(measured, trials) for measured in (first, second)]
    if bits is not None and ties.are_means(bits, cut):
        return _sampled(name, bits)
    if None not in (first.samples, second.samples) and first.samples != second.samples:
        return f"measured on {first.samples} and on {second.samples} samples, without an outcome for each"
    return _told(name, cut)


def _cut(measured: Measured, trials: list[int]) -> Measured:
    """The same number of some trials."""
    values = [measured.values[trial] for trial in trials]
    mean, sd, n = spread(values)
    return measured._replace(mean=mean, sd=sd, n=n, values=values)


def _told(name: str, cut: list[Measured]) -> Pair:
    """Of numbers alone: a t-interval of the paired differences."""
    differences = [a - b for a, b in zip(*(measured.values for measured in cut), strict=True) if a is not None and b is not None]
    mean, sd, n = spread(differences)
    one, other = (measured.mean or 0.0 for measured in cut)
    half = None if sd is None else student(sd, n)
    interval = None if half is None else [(mean or 0.0) - half, (mean or 0.0) + half]
    p, least = (sign_flip(differences), least_p(n)) if n > 1 else (None, None)
    return Pair(name, one, other, mean or 0.0, interval, TRIALS, n, None, p, least, None, None)


def _sampled(name: str, bits: np.ndarray) -> Pair:
    """Of one bit per trial and sample: (2, trials, samples)."""
    _, trials, samples = bits.shape
    gap = bits[0].astype(int) - bits[1]
    won, lost = int((gap > 0).sum()), int((gap < 0).sum())
    one, other = bits.mean((1, 2), dtype=float).tolist()
    half = _half(bits, gap)
    difference = (won - lost) / gap.size
    if trials > 1:
        p, least = sign_flip(gap.mean(1).tolist()), least_p(trials)
    else:
        p, least = sign_flip([1.0] * won + [-1.0] * lost), least_p(won + lost)  # samples without a difference have no say
    interval = [max(-1.0, difference - half), min(1.0, difference + half)]
    return Pair(name, one, other, difference, interval, BOTH if trials > 1 else SAMPLES, trials, samples, p, least, won, lost)


def _half(bits: np.ndarray, gap: np.ndarray) -> float:
    """Half the width of the interval."""
    from scipy.special import stdtrit

    means = ties.resampled(bits)
    total, (trials, samples) = float((means[0] - means[1]).var()), gap.shape
    if not total or samples < 2:
        return 0.0
    between = float(gap.mean(1).var(ddof=1)) / trials if trials > 1 else 0.0
    within = max(0.0, total - between)
    freedom = total**2 / (between**2 / max(1, trials - 1) + within**2 / (samples - 1))
    return float(stdtrit(max(1.0, freedom), 0.975)) * math.sqrt(total)
