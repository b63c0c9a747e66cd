"""Two rows, paired: differences, intervals and tests against closed forms, which rows are meant, and what cannot be paired."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, t, ttest_rel

from boards import ACCURACY, DENSITY, Made, attacked
from rtbench.builtin.reports.text import csv, markdown
from rtbench.commands.compare import compare
from rtbench.commands.comparison import Comparison
from rtbench.errors import UserError
from rtbench.ranking.board import make
from rtbench.ranking.worst import Verdicts
from rtbench.statistics import sign_flip
from rtbench.storage.index import Index
from rtbench.terminal.compared import compared_table

PROBES = {"density": DENSITY, "clean": ACCURACY, "pgd": attacked("pgd", "1/10")}


def paired(made: Made, one: str, other: str) -> Comparison:
    index = Index(made.store)
    try:
        keys = [key for point in made.plan.points for key in point.probes.values()]
        return compare(make(made.plan, made.store, index), made.plan, one, other, Verdicts(index, keys))
    finally:
        index.close()


def two(path: Path, bits: np.ndarray, ids: tuple[list[int], list[int]] | None = None) -> Made:
    """Rows a=0 and a=1. bits: (2, trials, samples) of pgd; clean and density are numbers alone."""
    made = Made(path / "s", PROBES, axes={"a": [0, 1]}, trials=bits.shape[1], board={"rank": "pgd"})
    for a, trial in itertools.product(range(2), range(bits.shape[1])):
        point = made.state("sparse", {"a": a}, trial)
        made.verdicts(point.probes["pgd"], ids[a] if ids else list(range(bits.shape[2])), bits[a, trial].tolist())
        made.share(point.probes["clean"], 0.9 - 0.1 * a + 0.01 * trial * (1 + a))
        made.put(point.probes["density"], {"": 0.1 * (a + 1)})
    return made


def of(found: Comparison, column: str) -> Any:
    return next(pair for pair in found.pairs if pair.column == column)


def drawn(trials: int, samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((2, trials, samples)) < np.array([0.7, 0.6])[:, None, None]).astype(np.uint8)


def test_numbers_alone_get_the_paired_t_interval_over_the_trials(tmp_path: Path) -> None:
    pair = of(paired(two(tmp_path, drawn(4, 50)), "a=0", "a=1"), "clean")
    ours, theirs = ([0.9 + 0.01 * i for i in range(4)], [0.8 + 0.02 * i for i in range(4)])
    expected = ttest_rel(ours, theirs).confidence_interval()
    assert pair.interval == pytest.approx([expected.low, expected.high]) and pair.over == "trials" and pair.samples is None
    assert (pair.one, pair.other, pair.difference) == pytest.approx((np.mean(ours), np.mean(theirs), 0.085))
    flipped = [sum(s * (a - b) for s, a, b in zip(signs, ours, theirs, strict=True)) for signs in itertools.product((1, -1), repeat=4)]
    assert pair.p == sum(abs(value) >= 0.34 - 1e-9 for value in flipped) / 16 == pair.least == 2 / 16


def test_of_one_trial_the_samples_speak_as_in_an_exact_paired_test(tmp_path: Path) -> None:
    bits = drawn(1, 400)
    pair = of(paired(two(tmp_path, bits), "a=0", "a=1"), "pgd")
    won, lost = int((bits[0] > bits[1]).sum()), int((bits[0] < bits[1]).sum())
    assert (pair.only_one, pair.only_other, pair.over, pair.trials, pair.samples) == (won, lost, "samples", 1, 400)
    assert pair.difference == pytest.approx((won - lost) / 400) == pytest.approx(bits[0].mean() - bits[1].mean())
    error = math.sqrt((won + lost - (won - lost) ** 2 / 400) / 400**2)
    assert pair.interval == pytest.approx([pair.difference - 1.966 * error, pair.difference + 1.966 * error], rel=0.05)
    assert sign_flip([1.0] * 9 + [-1.0] * 2) == pytest.approx(binomtest(9, 11).pvalue), "up to 40 pairs it is McNemar's exact test"
    assert pair.p == pytest.approx(binomtest(won, won + lost).pvalue, rel=0.25)


@pytest.mark.parametrize("trials", [2, 3, 8])
def test_where_trials_are_all_the_chance_there_is_the_interval_is_students(trials: int, tmp_path: Path) -> None:
    """Samples of a trial all alike, so that a trial's difference is 0 or 1."""
    values = np.arange(trials) % 2
    bits = np.repeat(np.stack([values, np.zeros_like(values)]).astype(np.uint8)[:, :, None], 60, 2)
    pair = of(paired(two(tmp_path, bits), "a=0", "a=1"), "pgd")
    half = t.ppf(0.975, trials - 1) * values.std(ddof=1) / math.sqrt(trials)
    assert pair.over == "trials and samples"
    assert pair.interval == pytest.approx([max(-1, values.mean() - half), min(1, values.mean() + half)], rel=0.1, abs=0.03)


def test_equal_trials_leave_the_chance_of_samples(tmp_path: Path) -> None:
    bits = np.repeat(drawn(1, 500), 3, 1)
    pair = of(paired(two(tmp_path, bits), "a=0", "a=1"), "pgd")
    error = (bits[0, 0].astype(float) - bits[1, 0]).std() / math.sqrt(500)
    assert pair.interval[1] - pair.difference == pytest.approx(1.965 * error, rel=0.06)
    assert pair.p == pair.least == 0.25 and pair.only_one == 3 * int((bits[0, 0] > bits[1, 0]).sum())
    mirrored = of(paired(two(tmp_path / "mirrored", bits[::-1]), "a=0", "a=1"), "pgd")
    assert mirrored.interval == pytest.approx([-edge for edge in pair.interval[::-1]]) and mirrored.only_other == pair.only_one


def test_only_samples_and_trials_of_both_count(tmp_path: Path) -> None:
    bits = drawn(2, 40)
    made = two(tmp_path, bits, (list(range(40)), list(range(20, 60))))
    found = paired(made, "a=0", "a=1")
    assert of(found, "pgd").samples == 20 and of(found, "pgd").one == pytest.approx(bits[0, :, 20:].mean())
    assert of(found, "pgd").other == pytest.approx(bits[1, :, :20].mean())
    assert "pgd: on the 20 samples that both saw, of 40 and 40" in found.notes
    lone = Made(tmp_path / "lone", PROBES, axes={"a": [0, 1]}, trials=2)
    for a, trial in itertools.product(range(2), range(2)):
        point = lone.state("sparse", {"a": a}, trial)
        lone.put(point.probes["density"], {"": 0.1})
        if trial == a:
            lone.share(point.probes["clean"], 0.9)
        if a:
            lone.share(point.probes["pgd"], 0.5)
    found = paired(lone, "a=0", "a=1")
    assert [pair.column for pair in found.pairs] == ["density"] and "clean: left out, no trial of both has it" in found.notes
    assert "pgd: left out, A has no such number" in found.notes


def test_what_cannot_be_paired_is_one_sentence(tmp_path: Path) -> None:
    made = two(tmp_path, drawn(1, 10))
    stage = made.plan.stages[made.plan.points[1].key]
    made.plan.stages[made.plan.points[1].key] = replace(stage, data={**stage.data, "use": "others"})
    with pytest.raises(UserError, match='"a=0" and "a=1" cannot be paired: the test samples of the one are images, of the other others'):
        paired(made, "a=0", "a=1")
    empty = Made(tmp_path / "empty", PROBES, axes={"a": [0, 1]})
    for a in range(2):
        empty.state("sparse", {"a": a}, 0)
    with pytest.raises(UserError, match="cannot be paired: no number is there of both"):
        paired(empty, "a=0", "a=1")


def test_rows_are_named_by_key_or_by_what_they_are(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", PROBES, axes={"a": [0, 1], "net": ["mlp", "cnn"]})
    for a, net, order in itertools.product((0, 1), ("mlp", "cnn"), (0, 1)):
        point = made.state("sparse", {"a": a, "net": net}, 0, order)
        made.share(point.probes["clean"], 0.5 + 0.2 * a + 0.1 * order)
    last = next(point for point in made.plan.points if point.cell == {"a": 1, "net": "cnn"} and point.order == 1)
    for name in (last.key, last.probes["clean"], last.key[:12], "a=1,net=cnn", "recipe=sparse,a=1,net=cnn,round=1"):
        found = paired(made, "a=0,net=mlp,round=0", name)
        assert (of(found, "clean").one, of(found, "clean").other) == pytest.approx((0.5, 0.8)), name
    for name, words in {
        "a=1": '"a=1" is 2 rows; choose by net too', "b=1": 'no axis "b"', "a=1,net=cn": 'net: no value "cn"; did you mean "cnn"',
        "zzz": 'begins no key of a row', "a=0,net=mlp,round=0": "are the same row", "=1": "is not of the form recipe=name or axis=value",
        "a=0,net=mlp,step=7": 'step: no value "7"',
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=words):
            paired(made, "a=0,net=mlp,round=0", name)


def test_a_comparison_is_a_table_in_every_format(tmp_path: Path) -> None:
    found = paired(two(tmp_path, drawn(3, 100)), "a=0", "a=1")
    markdown(found, tmp_path / "x.md")
    csv(found, tmp_path / "x.csv")
    text = (tmp_path / "x.md").read_text()
    assert "A is a 0; B is a 1; both are recipe sparse" in text and "with 3 trials it is 0.25 at least" in text
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[0].startswith("column,one,other,difference,over,trials,samples,p,least")
    assert json.loads(json.dumps(found.as_json()))["columns"][1]["column"] == "clean"
    assert compared_table(found).row_count == 3


def test_flags_stand_beside_the_numbers_they_were_raised_over(tmp_path: Path) -> None:
    """A collapsed or masked row would win or lose without a word otherwise."""
    made = Made(tmp_path / "s", PROBES, axes={"a": [0, 1]}, trials=2, board={"rank": "pgd"})
    for a, trial in itertools.product(range(2), range(2)):
        point = made.state("sparse", {"a": a}, trial)
        made.verdicts(point.probes["pgd"], [0, 1, 2], [1, a, trial], ["masked-gradient"] if a == 0 and trial == 1 else [])
        made.share(point.probes["clean"], 0.9 - 0.1 * a, flags=["chance-level"] if a else [])
        made.put(point.probes["density"], {"": 0.1})
    found = paired(made, "a=0", "a=1")
    assert list(found.marks()) == ["chance-level", "masked-gradient"]
    masked, chance = (found.marks()[flag] for flag in ("masked-gradient", "chance-level"))
    shown = {row[0]: row[1:3] for row in found.table()[1]}
    assert shown["clean"] == ["90.0", "80.0" + chance] and shown["pgd"] == ["50.0" + masked, "83.3"]
    assert f"{masked} masked-gradient: " in str(compared_table(found).caption)
    columns = {column["column"]: column for column in found.as_json()["columns"]}
    assert (columns["pgd"]["flags_one"], columns["pgd"]["flags_other"]) == (["masked-gradient"], [])
    csv(found, tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines()[2].split(",")[-4:-2] == ["", "chance-level"]
