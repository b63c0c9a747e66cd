"""The probe convergence on histories written by hand, and in a suite whose training stops early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rtbench
import studies
from rtbench.builtin.probes.convergence import check, convergence
from rtbench.errors import UserError
from rtbench.storage.results import Results
from rtbench.storage.store import Store


def history(*records: tuple[int, str, float | None]) -> tuple[dict[str, Any], ...]:
    part = {"use": "sgd", "knobs": {"probes": {"valid": {"use": "accuracy"}, "valid-loss": {"use": "loss"}}}}
    older = {"verb": "train", "part": {"use": "sgd"}, "records": [[1, "epoch", 1.0], [1, "loss", 0.0]]}
    last = {"verb": "train", "part": part, "records": [list(record) for record in records]}
    return {"verb": "init", "part": {}, "records": []}, older, last, {"verb": "prune", "part": {}, "records": []}


CURVE = history(
    (5, "epoch", 0.5), (5, "valid", 0.6), (5, "valid-loss", 1.0),
    (10, "epoch", 1.0), (10, "loss", 2.0), (10, "valid", 0.7), (10, "valid-loss", 0.4),
    (20, "epoch", 2.0), (20, "loss", 1.0), (20, "valid", 0.9), (20, "valid-loss", 0.4),
    (30, "epoch", 3.0), (30, "loss", 0.5), (30, "valid", 0.8), (30, "valid-loss", 0.5), (30, "odd", None),
)  # fmt: skip


def test_the_early_stop_epoch_is_the_first_of_the_best_of_the_last_training() -> None:
    found = convergence(CURVE, by="valid-loss").numbers
    assert (found[""], found["step"], found["at.valid"], found["at.loss"]) == (1.0, 10.0, 0.7, 2.0)
    assert convergence(CURVE, by="valid").numbers[""] == convergence(CURVE, by="valid", best="max").numbers[""] == 2.0
    assert convergence(CURVE, by="valid", best="min").numbers[""] == 0.5
    assert convergence(CURVE).numbers["at.valid"] == 0.8  # by the trainer's own loss
    assert convergence(CURVE, by="odd").numbers[""] is None, "a value that is not there is no best one"


def test_levels_are_reached_at_the_first_epoch_or_never() -> None:
    found = convergence(CURVE, reach={"valid": 0.7}).numbers
    assert found["reached.valid"] == 1.0
    assert convergence(CURVE, reach={"valid": 0.95}).numbers["reached.valid"] is None


def test_values_at_steps_and_epochs_or_nothing_where_none_was_measured() -> None:
    found = convergence(CURVE, after=("epoch-1", "step-20", "epoch-7")).numbers
    assert (found["epoch-1.valid"], found["step-20.valid"], found["epoch-7.valid"]) == (0.7, 0.9, None)
    assert "epoch-1.epoch" not in found and "at.epoch" not in found


def test_what_it_cannot_tell_is_said() -> None:
    with pytest.raises(UserError, match='by: "accuracy" is nothing that training logged; there is'):
        convergence(CURVE, by="accuracy")
    with pytest.raises(UserError, match='reach: "valid-loss" is a loss'):
        convergence(CURVE, reach={"valid-loss": 0.5})
    with pytest.raises(UserError, match="nothing was trained"):
        convergence(CURVE[:1])
    with pytest.raises(UserError, match='logs no "epoch"'):
        convergence(history((1, "loss", 0.1)))
    with pytest.raises(ValueError, match='"5" is not of the form'):
        check({"after": ["5"]})


def test_a_guard_that_saw_robustness_collapse_raises_the_flag() -> None:
    assert convergence(CURVE).flags == ()
    collapsed = history((1, "epoch", 1.0), (1, "loss", 0.1), (1, "collapsed", 0.0))
    assert convergence(collapsed).flags == ("catastrophic-overfitting",)
    assert convergence((*collapsed, *CURVE)).flags == ("catastrophic-overfitting",), "in the search for the mask"


SUITE = """
name = "early"
data = "digits"
[recipes.dense]
steps = [{ init = "net" }, { train = "fit" }]
[probes]
stop = { use = "convergence", by = "v", at = "last", after = ["epoch-1"], reach = { a = 0.05 } }
[parts]
digits = { use = "digits", share = 0.2 }
net    = { use = "mlp", hidden = [16] }
fit    = { use = "sgd", lr = 1.0, batch = 50, epochs = 40, probes = { v = { use = "loss", split = "valid" }, a = { use = "accuracy", split = "valid" } }, select = "v", best = "min", patience = 2 }
[board]
columns = ["stop", "stop.at.v", "stop.at.a", "stop.epoch-1.a", "stop.reached.a"]
[[published]]
probe = "stop.epoch-1.a"
value = 0.5
source = "nowhere"
[[figures]]
kind = "curve"
x = "epoch"
y = "v"
"""


def test_in_a_suite_it_agrees_with_what_the_trainer_logged(tmp_path: Path) -> None:
    board = studies.run(studies.write(tmp_path, SUITE), tmp_path / "store")
    (row,) = board.rows
    records = Results(tmp_path / "store").record(row.state[0])["records"]
    curve = {step: value for step, name, value in records if name == "v"}
    best = min(curve, key=lambda step: curve[step])
    assert any(name == "stopped" for _, name, _ in records) and max(curve) < 40 * 6
    assert row.probes["stop.step"].mean == best and row.probes["stop.at.v"].mean == curve[best]
    assert row.probes["stop"].mean == next(value for step, name, value in records if (step, name) == (best, "epoch"))
    ((drawn,),) = (panel.lines for panel in board.figures[0].panels)
    assert board.accuracies == ["stop.at.a", "stop.epoch-1.a"], "in percent, as all accuracies, and neither losses nor epochs"
    first = row.probes["stop.epoch-1.a"].mean
    assert first is not None and f"50.0 ({100 * (first - 0.5):+.1f})" in board.table()[1][0]
    assert [point.x for point in drawn.points] == [float(epoch) for epoch in range(1, len(curve) + 1)], "not stretched to 40 epochs"


def test_accuracies_are_in_percent_before_anything_is_measured(tmp_path: Path) -> None:
    Store(tmp_path / "store")  # empty
    board = rtbench.board(studies.write(tmp_path, SUITE), store=tmp_path / "store")
    assert board.accuracies == ["stop.at.a", "stop.epoch-1.a"] and "50.0" in board.table()[1][0]
