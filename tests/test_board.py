"""The board: what is joined, averaged, ordered and said about it."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

import boards
from boards import ACCURACY, DENSITY, Made, attacked
from rtbench.errors import UserError
from rtbench.ranking.headings import validate
from rtbench.ranking.rows import attack_of
from rtbench.ranking.table import positions
from rtbench.ranking.wording import compact, radius, words
from rtbench.statistics import spread, wilson

PROBES = {"density": DENSITY, "clean": ACCURACY, "pgd": attacked("pgd", "8/255"), "aa": attacked("autoattack", "8/255")}


@given(st.integers(1, 3000), st.floats(0, 1))
def test_interval_is_wilsons(n: int, share: float) -> None:
    k = round(share * n)
    expected = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(k / n, n) == pytest.approx([expected.low, expected.high], abs=1e-9)


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=8))
def test_spread_is_the_sample_standard_deviation_of_what_is_there(values: list[float | None]) -> None:
    there = [value for value in values if value is not None]
    mean, sd, n = spread(values)
    assert n == len(there)
    assert mean == (pytest.approx(statistics.mean(there), rel=1e-9, abs=1e-6) if there else None)
    assert sd == (pytest.approx(statistics.stdev(there), rel=1e-6, abs=1e-6) if n > 1 else None)


def test_spread_of_equal_values_is_exactly_zero() -> None:
    assert spread([0.488, 0.488, 0.488]) == (0.488, 0.0, 3)


def test_trials_are_joined_in_order_with_null_where_one_is_missing(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", PROBES, trials=3)
    points = [made.state("sparse", {}, trial, probes=["clean", "pgd"]) for trial in (2, 0, 1)]
    for point, value in zip(points[:2], (0.6, 0.5), strict=True):
        made.share(point.probes["pgd"], value, samples=200)
    (row,) = made.board().as_json()["rows"]
    assert row["probes"]["pgd"] == {
        "mean": 0.55, "sd": pytest.approx(0.1 / math.sqrt(2)), "n": 2, "values": [0.5, None, 0.6],
        "interval": pytest.approx(wilson(0.55, 200)), "split": "test", "samples": 200, "attack": "pgd", "norm": "linf", "eps": "8/255",
        "flags": [], "missing": [], "over": (),
    }  # fmt: skip
    assert row["probes"]["clean"] is None, "nothing is known of it"
    assert row["status"] == "partial"
    assert row["keys"]["pgd"] == [points[1].probes["pgd"], points[2].probes["pgd"], points[0].probes["pgd"]]


def test_the_json_has_exactly_the_promised_keys(tmp_path: Path) -> None:
    found = json.loads(json.dumps(boards.quick(tmp_path / "s").board().as_json(), allow_nan=False))
    assert list(found) == ["schema", "suite", "rank", "plugins", "rows"]
    assert (found["schema"], found["suite"], found["rank"]) == (1, "quick", ["aa", "pgd"])
    promised = {"recipe", "cell", "step", "round", "probes", "flags", "group", "published", "status"}
    for row in found["rows"]:
        assert set(row) == promised | {"keys", "state", "reasons"}
        for name, probe in row["probes"].items():
            words = {"mean", "sd", "n", "values", "interval", "split", "samples", "attack", "norm", "eps", "flags", "missing", "over"}
            assert set(probe) == words
            assert (probe["interval"] is None) == name.startswith("density")


def test_one_trial_has_no_standard_deviation(tmp_path: Path) -> None:
    row = boards.quick(tmp_path / "s", trials=1).board().rows[0]
    assert {probe.sd for probe in row.probes.values()} == {None}


def test_numbers_of_a_probe_are_named_after_it_and_layers_stay_out_of_tables(tmp_path: Path) -> None:
    board = boards.quick(tmp_path / "s").board()
    best = board.rows[0]
    assert {"density", "density.all", "density.layer.0.weight", "aa", "aa.apgd-ce"} <= set(best.probes)
    assert not any("layer" in head for head in board.table()[0])
    assert not any("layer" in name for name in board.records()[0])
    assert best.probes["aa.apgd-ce"].interval is not None


def test_records_name_the_stages_behind_every_number(tmp_path: Path) -> None:
    board = boards.quick(tmp_path / "s").board()
    for row, record in zip(board.rows, board.records(), strict=True):
        assert record["state.keys"] == row.state and record["density.all.keys"] == row.keys["density"]
        for probe, keys in row.keys.items():
            assert record[f"{probe}.keys"] == keys and len(keys) == row.trials
        assert all(f"{name.removesuffix('.mean')}.keys" in record for name in row.probes if "layer" not in name)
        assert "aa" in row.keys or record["aa.keys"] == [], "not measured there"


def test_rows_are_ordered_by_the_first_rank_probe_they_have(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", PROBES, axes={"a": [0, 1, 2, 3, 4, 5]}, board={"rank": ["aa", "pgd"]})
    numbers = {0: (0.2, None), 1: (0.9, None), 2: (0.1, 0.3), 3: (0.0, 0.4), 5: (0.95, 0.95)}
    for a in range(6):
        point = made.state("sparse", {"a": a}, 0, probes=["pgd", "aa"] if a in (2, 3, 4, 5) else ["pgd"])
        pgd, aa = numbers.get(a, (None, None))
        flags = ["chance-level"] if a == 5 else []
        if pgd is not None:
            made.share(point.probes["pgd"], pgd, flags=flags)
        if aa is not None:
            made.share(point.probes["aa"], aa, flags=flags)
    board = made.board()
    assert [row.cell["a"] for row in board.rows] == [3, 2, 1, 0, 4, 5]
    assert [row.status for row in board.rows] == ["done"] * 4 + ["partial", "done"]
    assert [cells[0] for cells in board.table()[1]] == ["1", "2", "3", "4", "–", "–"]


def test_equal_rows_share_a_rank(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"pgd": PROBES["pgd"]}, axes={"a": [0, 1, 2]})
    for a, value in enumerate((0.5, 0.7, 0.5)):
        made.share(made.state("sparse", {"a": a}, 0).probes["pgd"], value)
    board = made.board()
    assert [row.cell["a"] for row in board.rows] == [1, 0, 2]
    assert positions(board.rows, board.rank) == [1, 2, 2]


def test_a_row_that_is_not_finished_is_ordered_but_has_no_rank(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"pgd": PROBES["pgd"]}, axes={"a": [0, 1]}, trials=2)
    for a, trial in ((0, 0), (1, 0), (1, 1)):
        made.share(made.state("sparse", {"a": a}, trial).probes["pgd"], 0.9 - a / 10)
    made.state("sparse", {"a": 0}, 1)
    board = made.board()
    assert [row.cell["a"] for row in board.rows] == [0, 1]
    assert positions(board.rows, board.rank) == [None, 1]
    assert board.table()[1][0][-2:] == ["1/2", "partial"]


def test_numbers_outside_of_zero_to_one_are_no_accuracies(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"radius": DENSITY}, trials=2)
    for trial, value in enumerate((0.5, 1.7)):
        made.share(made.state("sparse", {}, trial).probes["radius"], value)
    board = made.board()
    assert board.rows[0].probes["radius"].interval is None
    assert board.table()[1][0][1] == "1.1 ± 0.85"


def test_rank_is_by_default_the_last_probe_with_an_attack(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"pgd": PROBES["pgd"], "aa": PROBES["aa"], "clean": ACCURACY})
    made.state("sparse", {}, 0)
    assert made.board().as_json()["rank"] == "aa"
    made = Made(tmp_path / "t", {"clean": ACCURACY, "density": DENSITY})
    made.state("sparse", {}, 0)
    assert made.board().rank == ["clean"]


def test_a_failure_reaches_every_row_below_it_and_names_its_stage(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", PROBES, axes={"a": [0, 1, 2]})
    broken, fine, waiting = (made.state("sparse", {"a": a}, 0, probes=["pgd"]) for a in range(3))
    init = made.plan.stages[broken.key].inputs["weights"]
    made.store.put_failure(init, "it is too warm", "")
    made.store.put_failure(broken.key, "needs init, which failed", "")
    made.put(fine.key, {})
    made.share(fine.probes["pgd"], 0.5)
    made.store.put_failure(fine.key, "a failure of a stage that is done, for another process did it", "")
    rows = {row.cell["a"]: row for row in made.board().rows}
    assert [rows[a].status for a in range(3)] == ["failed", "done", "partial"]
    assert rows[0].reasons == dict.fromkeys((broken.key, broken.probes["pgd"]), f"it is too warm [{init}]")
    assert not rows[1].reasons
    assert not rows[2].reasons
    assert waiting.key in rows[2].state


def test_flags_are_counted_over_trials(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", PROBES, trials=3)
    for trial in range(3):
        point = made.state("sparse", {}, trial, probes=["clean", "pgd"])
        made.share(point.probes["clean"], 0.5, flags=["chance-level"] if trial else [])
        made.share(point.probes["pgd"], 0.5, flags=["chance-level", "zero-gradient"] if trial else ["zero-gradient"])
    board = made.board()
    assert board.rows[0].flags == {"zero-gradient": 3, "chance-level": 2}
    assert board.as_json()["rows"][0]["flags"] == ["zero-gradient", "chance-level"]
    assert "zero-gradient, chance-level 2/3" in board.table()[1][0]
    assert list(board.legend()) == ["zero-gradient", "chance-level"]


def test_published_numbers_stand_beside_the_rows_they_belong_to(tmp_path: Path) -> None:
    board = boards.tickets(tmp_path / "s", trials=1, rounds=5).board()
    matching = [row for row in board.rows if row.published]
    assert [(row.cell, row.round) for row in matching] == [({"adversary": "pgd", "strategy": "init"}, 3)]
    assert matching[0].published == {"pgd": {"value": 0.894, "source": "arXiv:1912.02386, Fig. 2", "caveat": "read off a plot"}}
    headers, cells = board.table()
    text = cells[board.rows.index(matching[0])][headers.index("pgd published (difference)")]
    measured = matching[0].probes["pgd"].mean
    assert measured is not None
    assert text == f"89.4 ({100 * (measured - 0.894):+.1f})"


def test_a_published_accuracy_is_in_percent_before_anything_is_measured(tmp_path: Path) -> None:
    published = [{"probe": "clean", "value": 0.894, "source": "somewhere"}]
    made = Made(tmp_path / "s", {"clean": ACCURACY}, published=published)
    made.state("sparse", {}, 0)
    assert "89.4" in made.board().table()[1][0]


def test_columns_of_states_appear_only_where_they_tell_rows_apart(tmp_path: Path) -> None:
    headers, _ = boards.tickets(tmp_path / "s", trials=1, rounds=3).board().table()
    assert headers[:5] == ["#", "adversary", "strategy", "round", "sparsity"]
    headers, _ = boards.quick(tmp_path / "t", trials=1).board().table()
    assert headers[:6] == ["#", "recipe", "net", "adversary", "pruner", "drop"]
    made = Made(tmp_path / "v", {"pgd": PROBES["pgd"]}, axes={"a": [0, 1]})
    for a in range(2):
        made.state("sparse", {"a": a}, 0, round=a)
    assert made.board().table()[0][:3] == ["#", "a", "pgd"]
    made = Made(tmp_path / "u", {"pgd": PROBES["pgd"]})
    steps: tuple[int | str, ...] = (1, "final")
    for order, step in enumerate(steps):
        made.state("sparse", {}, 0, order, step=step, round=0)
    assert made.board().table()[0][:2] == ["#", "step"]


def test_show_last_leaves_each_runs_end_to_tables_and_everything_to_json(tmp_path: Path) -> None:
    made = boards.tickets(tmp_path / "s", trials=1, rounds=4)
    made.plan.suite.board["show"] = "last"
    board = made.board()
    assert len(board.as_json()["rows"]) == len(board.records()) == 36
    assert len(board.table()[1]) == 9
    assert {row.round for row in board.shown()} == {3}
    assert [cells[0] for cells in board.table()[1]] == [str(i) for i in range(1, 10)]


def test_heads_say_what_the_attack_was_and_how_many_samples_it_saw(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", PROBES, axes={"a": [0, 1]}, board={"columns": ["aa", "pgd", "clean"]})
    for a in range(2):
        point = made.state("sparse", {"a": a}, 0)
        made.share(point.probes["pgd"], 0.5, samples=100 + a)
        made.share(point.probes["aa"], 0.5, samples=64)
    headers, _ = made.board().table()
    assert headers[2:5] == ["aa linf 8/255 (n=64)", "pgd linf 8/255 (n=100–101)", "clean"]


def test_plain_numbers_are_not_shown_as_percent(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"macs": DENSITY, "loss": DENSITY, "clean": ACCURACY}, trials=2)
    for trial in range(2):
        point = made.state("sparse", {}, trial)
        made.put(point.probes["macs"], {"": 266_200.0})
        made.put(point.probes["loss"], {"": 0.25 + trial / 10})
        made.share(point.probes["clean"], 0.9 + trial / 100)
    assert made.board().table()[1][0][1:4] == ["266k", "0.3 ± 0.071", "90.5 ± 0.7"]


def test_a_number_that_some_finished_trials_do_not_have_says_of_how_many_it_is(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"stop": DENSITY, "clean": ACCURACY}, trials=3, board={"columns": ["stop.reached", "clean"]})
    for trial, epoch in enumerate([4.0, None, None]):
        point = made.state("sparse", {}, trial)
        made.put(point.probes["stop"], {"": 9.0, "reached": epoch})
        made.share(point.probes["clean"], 0.9)
    row = made.board().table()[1][0]
    assert row[1:3] == ["4 (1 of 3)", "90.0 ± 0.0"]


def test_records_are_flat_and_keep_clashing_axes_apart(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"pgd": PROBES["pgd"]}, axes={"pgd": [1, 2], "net": ["mlp"]})
    for value in (1, 2):
        made.share(made.state("sparse", {"pgd": value, "net": "mlp"}, 0).probes["pgd"], value / 10, samples=100)
    first, second = made.board().records()
    assert (first["axis.pgd"], first["pgd"], first["net"], first["pgd.n"]) == (2, 0.2, "mlp", 1)
    assert [first["pgd.low"], first["pgd.high"]] == wilson(0.2, 100)
    assert list(first) == list(second)


def test_a_column_named_twice_is_one(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", PROBES, board={"columns": ["pgd", "clean", "pgd"]})
    made.share(made.state("sparse", {}, 0).probes["pgd"], 0.5, samples=100)
    assert made.board().columns == ["pgd", "clean"]


@pytest.mark.parametrize(("config", "message"), [
    ({"rows": ["nett"]}, 'board.rows.0: no axis "nett"; did you mean "net"?'),
    ({"columns": ["clean", "pgf"]}, 'board.columns.1: no probe "pgf"; did you mean "pgd"?'),
    ({"rank": "pgdd"}, 'board.rank: no probe "pgdd"; did you mean "pgd"?'),
    ({"rank": ["pgd", "cleen"]}, 'board.rank.1: no probe "cleen"; did you mean "clean"?'),
    ({"show": "lst"}, 'board.show: no choice "lst"; did you mean "last"?'),
    ({"rows": [3]}, 'board.rows.0: no axis "3"'),
])  # fmt: skip
def test_names_that_the_suite_lacks_are_refused_with_their_path(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        validate(boards.suite(PROBES, axes={"net": ["mlp"]}, board=config))
    assert str(error.value).startswith(message)


def test_names_that_the_suite_has_are_accepted() -> None:
    config = {"rows": ["net", "recipe", "round"], "columns": ["aa", "aa.apgd-ce"], "rank": ["aa", "pgd"], "show": "last"}
    validate(boards.suite(PROBES, axes={"net": ["mlp"]}, board=config))


@pytest.mark.parametrize(("part", "expected"), [
    (ACCURACY, (None, None, None)),
    (PROBES["pgd"], ("pgd", "linf", "8/255")),
    ({"use": "x", "knobs": {"attack": {"use": "patch", "knobs": {"size": 3}}}}, ("patch", None, None)),
    ({"use": "worst", "knobs": {"attacks": [attacked("a", "1/10")["knobs"]["attack"], attacked("b", "0.1")["knobs"]["attack"]]}},
     ("a + b", "linf", "1/10")),
    ({"use": "worst", "knobs": {"inner": {"x": attacked("a", "1/10", "l2"), "y": attacked("b", "1/10")}}}, ("a + b", None, None)),
    (DENSITY, (None, None, None)),
])  # fmt: skip
def test_the_attack_of_a_probe_is_found_in_its_part(part: dict[str, object], expected: tuple[object, ...]) -> None:
    assert attack_of(part) == expected


@given(st.floats(1e-6, 1e14))
def test_compact_keeps_three_digits(value: float) -> None:
    text = compact(value)
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)
    assert float(text.rstrip("kMGT")) * scale == pytest.approx(value, rel=5.1e-3)
    assert len(text) <= 9


def test_texts_of_values() -> None:
    assert [compact(value) for value in (0, 1, 999.6, 266_200, 1e6, 0.016777)] == ["0", "1", "1k", "266k", "1M", "0.0168"]
    assert [radius(eps) for eps in ("8/255", "4/85", "1/10", "3/10", "2", "1/3")] == ["8/255", "12/255", "0.1", "0.3", "2", "1/3"]
    assert words({"use": "sgd", "lr": 0.1, "nesterov": True}) == "sgd lr=0.1 nesterov=true"
    assert words([300, 100]) == "300 100"
