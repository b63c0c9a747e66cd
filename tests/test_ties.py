"""Rank groups: equals tie, what is told apart is, errors are controlled, chance in training counts, and boards show it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from boards import ACCURACY, Made, attacked
from rtbench.ranking.table import positions
from rtbench.ranking.ties import ALPHA, NOTE, resampled
from rtbench.ranking.ties import told_apart as told_apart_of

PROBES = {"clean": ACCURACY, "pgd": attacked("pgd", "1/10"), "aa": attacked("autoattack", "1/10")}


def told_apart(bits: np.ndarray) -> list[int]:
    """Of a board of these rows alone."""
    return told_apart_of(bits, max(1, len(bits) - 1))


def drawn(means: list[list[float]], samples: int, seed: int = 0) -> np.ndarray:
    """Independent verdicts: a mean for each row and trial; rows by falling mean."""
    rng = np.random.default_rng(seed)
    bits = (rng.random((len(means), len(means[0]), samples)) < np.array(means)[:, :, None]).astype(np.uint8)
    return bits[np.argsort(-bits.mean((1, 2)), kind="stable")]


def test_equal_rows_tie_and_far_ones_do_not() -> None:
    one = drawn([[0.5, 0.5]], 300)
    tied = told_apart(np.concatenate([one, one, one]))
    assert tied == [1, 1, 1] and json.dumps(tied) == "[1, 1, 1]", "numbers of the board's JSON"
    assert told_apart(drawn([[0.9, 0.9], [0.5, 0.5], [0.1, 0.1]], 300)) == [1, 2, 3]
    assert told_apart(one) == [1]


@pytest.mark.parametrize(("samples", "comparisons", "apart"), [(1, 1, False), (5, 1, False), (6, 1, True), (6, 2, False), (7, 2, True)])
def test_a_few_samples_tell_no_more_than_an_exact_test(samples: int, comparisons: int, apart: bool) -> None:
    """All right against all wrong: drawn anew they never stray, and the sign test gives 2 / 2**samples."""
    rows = np.repeat(np.array([1, 0], np.uint8)[:, None, None], samples, 2)
    assert (told_apart_of(rows, comparisons) == [1, 2]) == apart == (2 / 2**samples < ALPHA / comparisons)


def test_pairs_tell_what_intervals_of_single_rows_cannot() -> None:
    """40 of 1,000 samples lost and none won: McNemar's exact test gives 2**-39, while both 95 % intervals are 6 points wide."""
    best = drawn([[0.5]], 1000)
    worse = best.copy()
    worse[0, 0, np.flatnonzero(best[0, 0])[:40]] = 0
    assert told_apart(np.concatenate([best, worse])) == [1, 2]
    other = best.copy()
    other[0, 0, np.flatnonzero(best[0, 0])[:240]] = 0  # the same gap of 40, out of 240 lost and 200 won
    other[0, 0, np.flatnonzero(best[0, 0] == 0)[:200]] = 1
    assert told_apart(np.concatenate([best, other])) == [1, 1]


def test_a_group_is_led_by_its_best_row() -> None:
    """Each row is hardly below the one before it, but the fourth is well below the first."""
    best, rng, rows = drawn([[0.6]], 2000), np.random.default_rng(1), []
    right, wrong = np.flatnonzero(best[0, 0]), np.flatnonzero(best[0, 0] == 0)
    for lost in (0, 20, 40, 90):  # and 200 exchanged, so that a gap of 20 is one standard error
        row = best.copy()
        if lost:
            row[0, 0, rng.choice(right, 200 + lost, replace=False)] = 0
            row[0, 0, rng.choice(wrong, 200, replace=False)] = 1
        rows.append(row)
    assert told_apart(np.concatenate(rows)) == [1, 1, 1, 2]


def test_chance_in_training_counts() -> None:
    """The same means, from trials that agree and from trials that do not."""
    steady = drawn([[0.5] * 4, [0.44] * 4], 4000)
    shaky = drawn([[0.7, 0.3, 0.55, 0.45], [0.3, 0.64, 0.4, 0.42]], 4000)
    assert told_apart(steady) == [1, 2] and told_apart(shaky) == [1, 1]


@pytest.mark.parametrize("trials", [2, 3, 8])
def test_the_variance_between_trials_is_unbiased(trials: int) -> None:
    """All samples alike, so that a draw's variance is that of a mean over trials: sample variance / trials."""
    rng = np.random.default_rng(trials)
    values = (rng.random(trials) < 0.5).astype(np.uint8)
    values[:2] = 0, 1
    bits = np.repeat(values[None, :, None], 50, 2)
    assert np.isclose(resampled(bits).var(), values.var(ddof=1) / trials, rtol=0.1)


def test_of_equal_rows_hardly_a_board_is_split() -> None:
    """Six rows of one accuracy, 200 boards: the share of boards with any gap found is no more than the level allows, give or take."""
    split = sum(max(told_apart(drawn([[0.6] * 5] * 6, 200, seed))) > 1 for seed in range(200))
    assert split / 200 < ALPHA + 0.04


def test_power_does_not_end_with_the_draws() -> None:
    """300 rows are 299 comparisons at 0.00017, less than one draw in 2,000."""
    bits = drawn([[0.8]] * 150 + [[0.5]] * 150, 1500)
    found = told_apart(bits)
    assert found[:150] == [1] * 150 and min(found[150:]) > 1


def test_the_board_gives_equal_ranks_to_a_group(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", PROBES, axes={"a": [0, 1, 2]}, trials=2, board={"rank": ["aa"]})
    ids = list(range(400))
    for a, right in ((0, 300), (1, 296), (2, 100)):
        for trial in range(2):
            point = made.state("sparse", {"a": a}, trial)
            made.verdicts(point.probes["aa"], ids, [int(i < right) for i in ids])
            for name in ("clean", "pgd"):
                made.share(point.probes[name], 0.9)
    board = made.board()
    assert [row.cell["a"] for row in board.rows] == [0, 1, 2]
    groups = [row.group for row in board.rows]
    assert groups[0] == 1 and groups[2] == max(groups) > 1
    assert positions(board.rows, board.rank)[0] == 1 and positions(board.rows, board.rank)[2] == 3
    assert [row["group"] for row in json.loads(json.dumps(board.as_json()))["rows"]] == groups
    assert NOTE in board.caption()


def test_without_verdicts_there_are_no_groups(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", PROBES, axes={"a": [0, 1]}, board={"rank": ["aa"]})
    for a in (0, 1):
        point = made.state("sparse", {"a": a}, 0)
        for name in PROBES:
            made.share(point.probes[name], 0.5 + a / 10)
    board = made.board()
    assert [row.group for row in board.rows] == [None, None] and NOTE not in board.caption()
    assert positions(board.rows, board.rank) == [1, 2]
