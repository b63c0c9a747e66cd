"""Verdicts on lottery tickets: the tests behind them, the four words, mandatory controls, and what the board shows."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import rtbench
import studies
import tiny
from boards import Made
from rtbench.commands.api import report_text
from rtbench.errors import UserError
from rtbench.plugins import catalogue
from rtbench.ranking.board import Board
from rtbench.ranking.headings import validate
from rtbench.ranking.tickets import Match, Race, boosting, lead, matches, race
from rtbench.statistics import holm, sign_flip
from rtbench.terminal.screen import board_table

PRUNED = [{"prune": "cut", "drop": 0.5}, {"rewind": "init"}, {"train": "fit"}]
START = [{"init": "net"}, {"train": "fit"}]
CHANCE = [{"init": "net"}, {"prune": "chance"}, {"train": "fit"}]
TICKETS = {
    "measure": "clean", "epochs": "converge.reached", "where": {"recipe": ["winning", "boosting"]}, "dense": {"recipe": "dense"},
    "random": {"recipe": "random"}, "fresh": {"recipe": "fresh"}, "winning": {"recipe": "winning"},
}  # fmt: skip
RAW = tiny.changed(
    {"axes": {}, "profiles": {}, "parts.loss.attack": "none", "parts.slow": {"use": "sgd", "lr": 0.01, "objective": "loss", "epochs": 3},
     "parts.chance": {"use": "random"}, "tickets": TICKETS,
     "recipes": {"dense": {"steps": START}, "winning": {"steps": [*START, *PRUNED]},
                 "boosting": {"steps": [START[0], {"train": "slow"}, *PRUNED]}, "random": {"steps": CHANCE},
                 "fresh": {"steps": [*START, PRUNED[0], {"rewind": "fresh"}, PRUNED[2]]}},
     "probes": {"clean": {"use": "accuracy", "at": "last"}, "converge": {"use": "density", "at": "last"}, "cost": {"use": "cost", "at": "last"}}},
)  # fmt: skip


def cost(history: Any) -> Any: ...


FOUND = tiny.catalogue({"probes": {"cost": cost}})


def plan(folder: Path, changes: dict[str, Any] | None = None, **given: Any) -> Any:
    return tiny.plan(folder, changes, raw=RAW, found=FOUND, **given)


def board(
    folder: Path, clean: dict[str, list[float | None]], reached: dict[str, list[Any]], flagged: dict[str, int] | None = None, **changes: Any
) -> Board:
    """The board of these accuracies and epochs, one per trial; recipes that are not named are as `dense`, "never" and None (missing).

    flagged: in how many trials a recipe is at chance level.
    """
    flagged = flagged or {}
    folder.mkdir(exist_ok=True)
    made = Made(folder / "s", {})
    trials = len(clean["dense"])
    made.plan = plan(folder, changes, trials=trials)
    for point in made.plan.points:
        accuracy = clean.get(point.recipe, clean["dense"])[point.trial]
        epochs = reached.get(point.recipe, [9.0] * trials)[point.trial]
        flags = ["chance-level"] if point.trial < flagged.get(point.recipe, 0) else []
        for name in {"clean", "late"} & point.probes.keys() if accuracy is not None else ():
            made.share(point.probes[name], accuracy, flags=flags)
        if epochs is not None:
            made.put(point.probes["converge"], {"reached": None if epochs == "never" else epochs})
        if "cost" in point.probes:
            made.put(point.probes["cost"], {"": 200.0 if point.recipe == "dense" else 300.0, "seconds": 4.0 + point.trial})
    return made.board()


def ticket(board: Board, recipe: str = "boosting") -> dict[str, Any]:
    return next(row.ticket for row in board.rows if row.recipe == recipe) or {}


# The tests


@given(st.lists(st.integers(-6, 6).map(float), max_size=9))
def test_sign_flip_counts_all_patterns(differences: list[float]) -> None:
    observed = abs(sum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    beyond = sum(abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed for signs in patterns)
    assert sign_flip(differences) == pytest.approx(beyond / len(patterns))


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=12))
def test_sign_flip_of_one_direction_is_as_small_as_n_allows(differences: list[float]) -> None:
    assert sign_flip(differences) == sign_flip([-d for d in differences]) == 2 / 2 ** len(differences)


def test_sign_flip_does_not_mind_rounding_and_is_near_normal_for_many() -> None:
    assert sign_flip([0.1, 0.2, 0.3, -0.6]) == 1.0  # a sum of 0 but for rounding
    assert sign_flip([0.3, 0.1, 0.2]) == 0.25 and sign_flip([0.0, 0.0]) == sign_flip([]) == 1.0
    many = [1.0] * 27 + [-1.0] * 13
    exact = 2 * sum(math.comb(40, k) for k in range(27, 41)) / 2**40
    assert sign_flip(many) == pytest.approx(exact)
    assert sign_flip([*many, 1.0, -1.0]) == pytest.approx(math.erfc(14 / math.sqrt(2 * 42)))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04]) and holm([0.7, 0.8]) == [1.0, 1.0] and holm([]) == []


# Their parts


def test_a_match_is_within_one_standard_deviation_of_the_other() -> None:
    dense = [0.90, 0.92, 0.94]  # sd 0.02
    assert matches([0.9, 0.9, 0.9], dense) == (True, *map(pytest.approx, (-0.02, 0.02, 0.02)), 3)
    assert matches([0.9, 0.9, 0.8999], dense).holds is False
    assert matches([0.9, None, 0.9], [0.5, 0.9, None]) == (None, pytest.approx(0.4), None, None, 1)
    assert matches([None], [0.9]) == (None, None, None, None, 0)
    assert matches([0.9, 0.9], [0.9, 0.9]).holds and not matches([0.9, 0.89], [0.9, 0.9]).holds
    assert matches([0.0, 0.0], [0.0, 0.0]).holds is False, "nothing to match"
    assert matches([0.0, 0.0, 0.0], [0.019, 0.0, 0.0]).holds is False and matches([0.02, 0.02], [0.02, 0.01]).holds is True


def test_a_dense_control_without_any_robustness_is_matched_by_nobody(tmp_path: Path) -> None:
    found = ticket(board(tmp_path, {"dense": [0.0, 0.0, 0.0], "boosting": [0.0, 0.1, 0.0]}, {}))
    assert found["verdict"] == "neither" and found["test"] == "dense is at 0 within its deviation, n = 3"


def test_a_ticket_at_chance_level_wins_nothing(tmp_path: Path) -> None:
    spread, same = [0.90, 0.92, 0.94, 0.90, 0.92, 0.94], [4] * 6
    for name, flagged, words in (
        ("a", {"boosting": 1}, ("undecided", "chance-level in 1 of 6 trials")),
        ("b", {"dense": 6, "winning": 6}, ("boosting", "winning; sign-flip p = 0.0312, n = 6")),
    ):
        found = ticket(board(tmp_path / name, {"dense": spread}, {"winning": [9] * 6, "boosting": same}, flagged))
        assert (found["verdict"], found["test"]) == words, "only what the ticket itself is at matters"
    found = ticket(board(tmp_path / "c", {"dense": [0.1, 0.14, 0.06]}, {}, {"boosting": 3}))
    assert (found["verdict"], found["test"], found["winning"]) == ("undecided", "chance-level in 3 of 3 trials", None)
    low = {"dense": spread, "boosting": [0.1] * 6}
    found = ticket(board(tmp_path / "d", low, {"winning": [9] * 6, "boosting": same}, {"boosting": 6}))
    assert found["verdict"] == "neither" and found["winning"] is False, "what is below dense stays so"


def test_never_there_outweighs_all_else_and_is_not_dropped() -> None:
    assert lead([1, 2, math.inf], [3, 3, 4]) == [-2, -1, 4]
    assert lead([1, 2, 9], [3, 3, math.inf]) == [-2, -1, -4]
    assert lead([math.inf, None, 1], [math.inf, 1, None]) == [0]
    match = Match(True, 0.0, 0.1, 0.1, 6)
    assert not race(match, [1, 1, 1, 1, 1, math.inf], [9] * 6).ahead
    assert race(match, [1] * 6, [9, 9, 9, 9, 9, math.inf]) == (match, True, 2 / 64, 6)


def test_boosting_is_corrected_over_the_board_and_open_where_n_cannot_tell() -> None:
    match = Match(True, 0.0, 0.1, 0.1, 6)
    six, eight = Race(match, True, 2 / 64, 6), Race(match, True, 2 / 256, 8)
    assert boosting([six]) == [True] and boosting([six, six]) == [None, None]
    assert boosting([eight] * 6) == [True] * 6 and boosting([eight] * 7) == [None] * 7
    assert boosting([six, eight]) == [True, True]  # 2 * 2/256, then 2/64
    assert boosting([six._replace(p=4 / 64), six._replace(ahead=False), six._replace(match=match._replace(holds=False))])[1:] == [
        False,
        False,
    ]
    assert boosting([eight._replace(p=0.5)]) == [False]
    assert boosting([six._replace(n=5, p=2 / 32)]) == [None] and boosting([six._replace(n=5, p=2 / 32, ahead=False)]) == [False]
    assert boosting([six._replace(n=1, p=1.0)]) == [None]


# Verdicts


def test_the_four_words(tmp_path: Path) -> None:
    spread = [0.90, 0.92, 0.94, 0.90, 0.92, 0.94]
    low = [value - 0.1 for value in spread]
    found = board(tmp_path / "a", {"dense": spread}, {"winning": [9] * 6, "boosting": [4] * 6})
    assert ticket(found)["verdict"] == "boosting" and ticket(found)["winning"] and ticket(found)["n"] == 6
    assert ticket(found)["p"] == ticket(found)["holm"] == 2 / 64 and ticket(found)["test"] == "winning; sign-flip p = 0.0312, n = 6"
    assert ticket(found, "winning")["verdict"] == "winning" and ticket(found, "winning")["boosting"] is None
    assert ticket(found, "winning")["test"] == "0.00 ≥ -1.79, n = 6"
    lower = board(tmp_path / "b", {"dense": spread, "winning": low, "boosting": low}, {"winning": [4] * 6, "boosting": [9] * 6})
    assert [ticket(lower, name)["verdict"] for name in ("winning", "boosting")] == ["neither", "neither"]
    assert ticket(lower)["test"] == "-10.00 < -1.79, n = 6" and ticket(lower)["boosting"] is False
    both = board(tmp_path / "c", {"dense": spread, "winning": low, "boosting": low}, {"winning": [9] * 6, "boosting": [4] * 6})
    assert ticket(both)["verdict"] == "boosting" and ticket(both)["test"].startswith("below dense; ")
    weak = board(tmp_path / "d", {"dense": spread, "boosting": low}, {"winning": [9] * 6, "boosting": [4] * 6})
    assert ticket(weak)["verdict"] == "neither" and ticket(weak)["p"] == 2 / 64
    three = board(tmp_path / "e", {"dense": spread[:3]}, {"winning": [9] * 3, "boosting": [4] * 3})
    assert ticket(three)["verdict"] == "undecided" and ticket(three)["test"] == "winning; sign-flip p = 0.25, n = 3"
    slower = board(tmp_path / "f", {"dense": spread[:3]}, {"winning": [4] * 3, "boosting": [9] * 3})
    assert ticket(slower)["verdict"] == "winning" and ticket(slower)["boosting"] is False


@pytest.mark.parametrize("n", [1, 2])
def test_few_trials(tmp_path: Path, n: int) -> None:
    found = board(tmp_path, {"dense": [0.9, 0.94][:n]}, {"winning": [9] * n, "boosting": [4] * n})
    assert ticket(found)["verdict"] == "undecided" and ticket(found)["p"] == 2 / 2**n
    assert ticket(found, "winning")["verdict"] == ("undecided" if n == 1 else "winning")
    assert ticket(found, "winning")["test"] == ("n = 1" if n == 1 else "0.00 ≥ -2.83, n = 2")


def test_ties_missing_trials_and_a_trial_that_never_gets_there(tmp_path: Path) -> None:
    six = [0.90, 0.92, 0.94, 0.90, 0.92, 0.94]
    tied = board(tmp_path / "a", {"dense": six}, {"winning": [9] * 6, "boosting": [9] * 6})
    assert ticket(tied)["verdict"] == "winning" and ticket(tied)["p"] == 1.0 and ticket(tied)["boosting"] is False
    never = board(tmp_path / "b", {"dense": six}, {"winning": [9] * 6, "boosting": [4, 4, 4, 4, 4, "never"]})
    assert ticket(never)["boosting"] is False and ticket(never)["verdict"] == "winning"
    lost = board(tmp_path / "c", {"dense": six}, {"winning": [9] * 6, "boosting": [4, 4, 4, 4, 4, None]})
    assert ticket(lost)["verdict"] == "undecided" and ticket(lost)["test"] == "winning; sign-flip p = 0.0625, n = 5"
    part = board(tmp_path / "d", {"dense": [0.9, None, 0.94], "boosting": [0.1, 0.9, None]}, {"winning": [4] * 3})
    assert ticket(part)["gaps"]["dense"]["n"] == 1 and ticket(part)["gaps"]["dense"]["gap"] == pytest.approx(-0.8)


@pytest.mark.parametrize("name", ["dense", "random", "fresh"])
def test_no_verdict_without_a_control(tmp_path: Path, name: str) -> None:
    clean: dict[str, list[float | None]] = {recipe: [0.9, 0.91] * 3 for recipe in RAW["recipes"]}
    found = board(tmp_path, {**clean, name: [None] * 6}, {"boosting": [4] * 6})
    assert ticket(found)["p"] == 2 / 64
    for recipe in ("winning", "boosting"):
        assert ticket(found, recipe)["verdict"] == "undecided" and ticket(found, recipe)["test"] == f"no {name} control yet"


def test_a_number_that_the_probe_does_not_have_decides_nothing(tmp_path: Path) -> None:
    found = board(tmp_path, {"dense": [0.9, 0.91]}, {}, **{"tickets.epochs": "converge.never-heard-of"})
    assert ticket(found)["verdict"] == "undecided" and ticket(found)["test"] == "winning; no epochs, n = 0"


# The board


def test_the_board_shows_verdicts_and_budgets(tmp_path: Path) -> None:
    found = board(tmp_path, {"dense": [0.9, 0.92], "random": [0.8, 0.84]}, {"boosting": [4, 4]})
    heads, rows = found.table()
    derived = ["clean vs dense", "ticket", "planned epochs", "passes/dense", "seconds/dense"]
    assert heads[heads.index("clean (n=400)") + 1 :][:5] == derived and "cost" in heads
    by = {row[heads.index("recipe")]: dict(zip(heads, row, strict=True)) for row in rows}
    assert by["random"]["clean vs dense"] == "-9.0 ± 1.4" and by["dense"]["clean vs dense"] == "–"
    assert by["random"]["ticket"] == "random control" and by["dense"]["ticket"] == "dense control"
    assert by["boosting"]["ticket"] == "undecided (winning; sign-flip p = 0.5, n = 2)"
    assert {name: row["planned epochs"] for name, row in by.items()} == {
        "dense": "2",
        "winning": "4",
        "boosting": "5",
        "random": "2",
        "fresh": "4",
    }
    assert by["fresh"]["passes/dense"] == "1.5" and by["fresh"]["seconds/dense"] == "1"
    console = Console(width=50, file=io.StringIO())
    console.print(board_table(found, 50))
    narrow = console.file.getvalue().split("Not shown")[0]  # type: ignore[attr-defined]
    assert "undecided " in narrow and "sign-flip p" not in narrow.split("winning:")[0], "a narrow screen keeps the word"
    assert [note.partition(":")[0] for note in found.notes] == ["winning", "boosting", "undecided"] and "converge.reached" in found.notes[1]
    flat = {record["recipe"]: record for record in found.records()}
    assert flat["boosting"]["ticket"] == "undecided" and flat["boosting"]["ticket.p"] == 0.5 and flat["dense"]["ticket"] is None
    assert flat["random"]["clean vs dense.values"] == pytest.approx([-0.1, -0.08])
    told = {row["recipe"]: row["ticket"] for row in json.loads(json.dumps(found.as_json(), allow_nan=False))["rows"]}
    assert told["boosting"]["gaps"]["random"]["gap"] == pytest.approx(0.09) and told["boosting"]["controls"]["fresh"]["recipe"] == "fresh"


def test_columns_that_the_suite_chooses_are_kept_and_the_rest_is_beside_the_accuracy(tmp_path: Path) -> None:
    chosen = {"board": {"columns": ["seconds/dense"]}}
    with pytest.raises(UserError, match=r"board\.columns\.0"):
        validate(plan(tmp_path, chosen).suite)
    found = board(tmp_path, {"dense": [0.9, 0.92]}, {}, board={"columns": ["converge.reached", "clean"]})
    assert found.columns == ["converge.reached", "clean", "clean vs dense", "planned epochs", "cost", "passes/dense", "seconds/dense"]
    timeless = board(tmp_path / "x", {"dense": [0.9, 0.92]}, {}, **{"probes.cost": ...})
    assert timeless.columns == ["converge.reached", "clean", "clean vs dense", "planned epochs"]


def test_several_tables_judge_by_numbers_of_their_own(tmp_path: Path) -> None:
    """Holm's correction is over all of them; each difference stands beside its number, the budgets after the last."""
    second = {**{name: table for name, table in TICKETS.items() if name not in ("epochs", "winning")},
              "measure": "late", "where": {"recipe": "fresh"}, "fresh": {"recipe": "boosting"}}  # fmt: skip
    tables = [{**TICKETS, "where": {"recipe": ["winning", "boosting"]}}, second]
    changes = {"tickets": tables, "probes.late": {"use": "accuracy", "samples": 100, "at": "last"}}
    found = board(tmp_path, {"dense": [0.9, 0.92], "fresh": [0.8, 0.84]}, {"boosting": [4, 4]}, **changes)
    assert {row.recipe: (row.ticket or {}).get("measure") for row in found.rows} == {
        "dense": None, "winning": "clean", "boosting": "clean", "random": None, "fresh": "late"}  # fmt: skip
    assert ticket(found, "fresh")["boosting"] is None and ticket(found, "fresh")["test"] == "late: -9.00 < -1.41, n = 2"
    assert next(row for row in found.rows if row.recipe == "fresh").probes["late vs dense"].mean == pytest.approx(-0.09)
    differences = [name for name in found.columns if name.endswith(" vs dense")]
    assert differences == ["clean vs dense", "late vs dense"]
    assert found.columns[found.columns.index("late vs dense") + 1] == "planned epochs"
    assert "of clean or, as the verdict says, late;" in found.notes[0]
    assert [note.partition(":")[0] for note in found.notes] == ["winning", "boosting", "neither", "undecided"]
    assert next(row for row in found.rows if row.recipe == "winning").probes["late vs dense"].mean == pytest.approx(0.0)


def test_without_tickets_nothing_is_said(tmp_path: Path) -> None:
    found = board(tmp_path, {"dense": [0.9, 0.92]}, {}, tickets=...)
    assert "ticket" not in found.table()[0] and not found.notes and "ticket" not in found.as_json()["rows"][0]
    assert not any("dense" in name for row in found.rows for name in row.probes)


# Plans


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tickets.random": ...}, r"tickets\.random: is missing"),
        ({"tickets.dense": ...}, r"tickets\.dense: is missing"),
        ({"tickets.fresh": ...}, r"tickets\.fresh: is missing"),
        ({"tickets.wining": {}}, r'tickets\.wining: no entry "wining".*winning'),
        ({"tickets.random.recipe": "randon"}, r'tickets\.random\.recipe: no value "randon".*random'),
        ({"tickets.measure": "claen"}, r'tickets\.measure: no probe "claen".*clean'),
        ({"tickets.epochs": ...}, r"tickets\.epochs: is missing"),
        ({"tickets.winning": ...}, r"tickets\.winning: is missing"),
        ({"tickets.schedule": "other"}, r'tickets\.schedule: no choice "other"'),
        ({"tickets.dense.at": "midle"}, r'tickets\.dense\.at: no point "midle"'),
        ({"tickets.dense.as": "x"}, r"tickets\.dense\.as: a control is called"),
        ({"tickets.dense.recipe": ["dense", "fresh"]}, r"tickets\.dense: means 2 states"),
        ({"tickets.dense.at": "train", "recipes.dense.steps": [*START, START[1]]}, r"tickets\.dense: is several states"),
        ({"tickets.dense": {"recipe": "winning"}}, r"tickets\.dense: .*winning.* would be its own control"),
        ({"tickets.dense": {"recipe": "fresh"}}, r"tickets\.dense: the state 2 of .*fresh.* was pruned"),
        ({"tickets.random": {"recipe": "dense"}}, r"tickets\.random: the state 1 of .*dense.* was never pruned"),
        ({"tickets.dense.at": "init", "probes.clean.at": ["init", "last"]}, r"tickets\.dense: the state 0 of .* is not left by a training"),
        ({"tickets.where.recipe": "dense"}, r"tickets\.where: no network that was pruned and then trained"),
        ({"probes.clean.where": {"recipe": ["winning", "boosting"]}}, r'tickets\.dense: "clean" does not measure the state 1 of'),
        ({"probes.converge.where": {"recipe": "boosting"}}, r'tickets\.winning: "converge" does not measure the state 2 of recipe "winning"'),
        ({"probes.converge.where": {"recipe": "winning"}}, r'tickets\.epochs: "converge" does not measure the state 2 of recipe "boosting"'),
        ({"recipes.dense.steps": [START[0], {"train": "slow"}]}, r"tickets\.dense: .* schedule of .*: lr is 0.01, not 0.1;"),
        ({"parts.other": {"use": "plain", "smooth": 0.1},
          "recipes.fresh.steps": [*START, PRUNED[0], {"rewind": "fresh"}, {"train": "fit", "objective": "other"}]},
         r"tickets\.fresh: .*: objective is plain, not robust"),
        ({"recipes.random.data": {"use": "images", "valid": 20}}, r"tickets\.random: .* has another data"),
        ({"tickets": [TICKETS, {**TICKETS, "measure": "claen"}]}, r'tickets\.1\.measure: no probe "claen".*clean'),
        ({"tickets": [TICKETS, {**TICKETS, "where": {"recipe": "boosting"}}]},
         r'tickets\.1\.where: recipe "boosting" is judged by tickets\.0 already'),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_anything_runs(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        plan(tmp_path, changes, digests=lambda part, where: str(part))


def test_another_schedule_is_never_silent(tmp_path: Path) -> None:
    changes = {"recipes.dense.steps": [START[0], {"train": "slow"}], "tickets.schedule": "differs"}
    found = board(tmp_path, {"dense": [0.9, 0.92]}, {}, **changes)
    assert found.notes[-1] == "schedules differ from the tickets': dense: lr is 0.01, not 0.1; dense: epochs is 3, not 2"
    assert ticket(found)["differs"] == ["dense: lr is 0.01, not 0.1", "dense: epochs is 3, not 2"]


def test_only_keeps_the_controls(tmp_path: Path) -> None:
    assert {point.recipe for point in plan(tmp_path, only={"recipe": ["boosting"]}).points} == set(RAW["recipes"])
    assert {point.recipe for point in plan(tmp_path, only={"recipe": ["dense"]}).points} == {"dense"}
    assert plan(tmp_path).asked == plan(tmp_path, only={"recipe": ["boosting"]}).asked == plan(tmp_path, {"tickets": ...}).asked


def test_rounds_and_cells_are_paired(tmp_path: Path) -> None:
    """Random of the same round and cell, dense of the first round of the same run; an axis of probes alone is as in the ticket."""
    rounds = [*START, {"repeat": 2, "steps": [{"prune": "$how", "drop": 0.5}, {"rewind": "$to"}, START[1]]}]
    changes = {
        "axes": {"how": ["cut", "chance"], "to": ["init", "fresh"], "adversary": ["none", "pgd"], "seen": ["none", "pgd"]},
        "parts.loss.attack": "$adversary", "recipes": {"imp": {"steps": rounds}},
        "probes": {"clean": {"use": "accuracy", "attack": "$seen", "at": "train"}},
        "tickets": {"measure": "clean", "where": {"how": "cut", "to": "init"}, "dense": {"at": 0}, "random": {"how": "chance", "at": "same round"},
                    "fresh": {"to": "fresh", "at": "same round"}},
    }  # fmt: skip
    found = plan(tmp_path, changes)
    assert len(found.claims) == 2 * 2 * 2
    for claim in found.claims:
        for name, (run, order) in claim.controls.items():
            mine, its = claim.run.cell, run.cell
            assert all(mine[axis] == its[axis] for axis in ("adversary", "seen")), "not the same cell"
            assert run.states[order].round == (0 if name == "dense" else claim.run.states[claim.order].round)
            assert (its["how"], its["to"]) == {"dense": ("cut", "init"), "random": ("chance", "init"), "fresh": ("cut", "fresh")}[name]


SUITE = """
name = "lottery"
data = "digits"
trials = 2
[recipes]
dense    = { steps = [{ init = "net" }, { train = "fit" }] }
winning  = { steps = [{ init = "net" }, { train = "fit" }, { prune = "cut" }, { rewind = "init" }, { train = "fit" }] }
boosting = { steps = [{ init = "net" }, { train = "fit", lr = 0.02 }, { prune = "cut" }, { rewind = "init" }, { train = "fit" }] }
random   = { steps = [{ init = "net" }, { train = "fit" }, { prune = "chance" }, { rewind = "init" }, { train = "fit" }] }
fresh    = { steps = [{ init = "net" }, { train = "fit" }, { prune = "cut" }, { rewind = "fresh" }, { train = "fit" }] }
[tickets]
measure = "clean"
epochs  = "cost"
where   = { recipe = ["winning", "boosting"] }
dense   = { recipe = "dense" }
random  = { recipe = "random" }
fresh   = { recipe = "fresh" }
winning = { recipe = "winning" }
[probes]
clean = { use = "accuracy", samples = 200, at = "last" }
cost  = { use = "cost", at = "last" }
[board]
show = "last"
[parts]
digits = { use = "digits" }
net    = { use = "mlp", hidden = [8] }
fit    = { use = "sgd", lr = 0.2, batch = 50, epochs = 1 }
cut    = { use = "magnitude", drop = 0.5 }
chance = { use = "random", drop = 0.5 }
"""


def test_a_whole_study_says_so_everywhere(tmp_path: Path) -> None:
    found = studies.run(studies.write(tmp_path, SUITE), tmp_path / "store")
    assert found.tally is not None and not found.tally.failed
    told = {row["recipe"]: row["ticket"] for row in found.as_json()["rows"]}
    assert told["winning"]["verdict"] in ("winning", "neither") and told["winning"]["n"] == 2 and told["dense"]["control"] == "dense"
    shown = {row.recipe: row for row in found.rows}
    gap = [a - b for a, b in zip(shown["winning"].probes["clean"].values, shown["dense"].probes["clean"].values, strict=True)]
    assert shown["winning"].probes["clean vs dense"].values == pytest.approx(gap)
    assert shown["winning"].probes["passes/dense"].mean == pytest.approx(2.0) and shown["winning"].probes["planned epochs"].mean == 2
    again = rtbench.board(studies.write(tmp_path, SUITE), store=tmp_path / "store")
    assert [row.ticket for row in again.rows] == [row.ticket for row in found.rows]
    for kind in ("csv", "json", "markdown", "latex", "html"):
        text = report_text(found, catalogue(), kind)
        assert told["winning"]["verdict"] in text and (kind in ("csv", "json") or "matches the winning ticket" in text)
    console = Console(width=200, file=io.StringIO())
    console.print(board_table(found, 200))
    shown_text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert f"{told['winning']['verdict']} ({told['winning']['test']})" in shown_text and "matches the winning ticket" in shown_text
