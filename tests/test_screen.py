"""The terminal: tables that fit, plain text for pipes, progress that costs nothing and says what failed."""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pluggy
import pytest
from rich.cells import cell_len
from rich.console import Console

import boards
from boards import Made
from rtbench import hookspecs
from rtbench.parts.flags import MARKS
from rtbench.planning.plan import Stage
from rtbench.ranking.board import Board
from rtbench.terminal.planned import plan_table
from rtbench.terminal.progress import describe, duration
from rtbench.terminal.remaining import Running, remaining
from rtbench.terminal.screen import Screen, board_table, show_table
from rtbench.terminal.waiting import waiting

NUMBER = re.compile(rf"\d+\.\d ± \d+\.\d[{MARKS}]*")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return boards.quick(tmp_path_factory.mktemp("quick") / "s").board()


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return boards.tickets(tmp_path_factory.mktemp("tickets") / "s", rounds=6).board()


def drawn(board: Board, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(board_table(board, width))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", ["quick", "tickets"])
def test_a_table_fits_and_no_number_is_broken(name: str, width: int, request: pytest.FixtureRequest) -> None:
    board: Board = request.getfixturevalue(name)
    lines = drawn(board, width)
    assert all(cell_len(line) <= width for line in lines)
    body = lines[next(i for i, line in enumerate(lines) if line.startswith("──")) + 1 :]
    ranked = [i for i, column in enumerate(board.layout()) if column.name in board.rank and column.kind == "probe"]
    for cells, line in zip(board.text(), body, strict=False):
        # Whatever is on a line is the whole of some cell, and what the board is ranked by is always there.
        assert set(NUMBER.findall(line)) <= set(cells)
        assert all(cells[i] in line for i in ranked)
        assert line.split()[0] == cells[0]


def test_a_wide_table_hides_nothing_and_a_narrow_one_says_what(quick: Board) -> None:
    assert not any("Not shown" in line for line in drawn(quick, 200))
    text = " ".join(" ".join(drawn(quick, 60)).split())
    assert "Not shown for lack of width: density, flags, clean, fgsm, trials." in text
    kept = drawn(quick, 80)
    assert any(line.rstrip().endswith(" 1") and "random" in line for line in kept), "a flag leaves at least its count"


def test_flags_and_failures_are_explained(quick: Board, tickets: Board) -> None:
    assert "chance-level: The network is right about as often" in " ".join(drawn(quick, 200))
    text = " ".join(" ".join(drawn(tickets, 200)).split())
    assert 'failed: trainer "sgd" raised ValueError: the loss is not finite at step 120 [' in text


def test_a_pipe_gets_plain_lines_at_full_width(quick: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    file = io.StringIO()
    show_table(board_table(quick), file)
    lines = file.getvalue().splitlines()
    assert "\x1b" not in file.getvalue()
    headers, rows = quick.table()
    assert re.split(r"  +", lines[1].strip()) == headers
    for row, line in zip(rows, lines[3:], strict=False):
        assert re.split(r"  +", line.strip()) == [cell for cell in row if cell]


def test_ascii_output_gets_ascii(quick: Board) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    show_table(board_table(quick), file)
    text = raw.getvalue().decode("ascii")
    assert "94.2 +-0.4" in text
    assert "?" not in text


def test_no_color_is_respected(quick: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    console.print(board_table(quick, 200))
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", console.file.getvalue())  # type: ignore[attr-defined]


def test_the_plan_says_what_is_to_do_and_what_it_costs() -> None:
    stages = {"train": {"total": 40, "cached": 10, "todo": 30}, "probe": {"total": 100, "cached": 0, "todo": 100}}
    summary = {"suite": "quick", "stages": stages, "asked": 300, "seconds": 3723.0, "bytes": 123_456_789, "unknown": 2,
               "stored": 20, "measured": 108, "device": "cpu", "passes": {"forwards": 1.2e9, "gradients": 2e7}}  # fmt: skip
    file = io.StringIO()
    show_table(plan_table(summary), file)
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert {"train 40 10 30", "probe 100 0 100", "all 140 10 130", "disk: 123 MB", "passes: 1.2 G forwards, 20 M gradients"} <= set(lines)
    assert "300 stages if runs shared nothing; 160 are shared" in lines
    assert "time: about 1 h 2 min in one process, and 2 stages of unknown length" in lines
    assert "of that, 20 stages as long as like ones in the store; 108 by their passes, timed just now on cpu as busy as it is" in lines


def test_a_plan_with_nothing_to_do_says_so() -> None:
    file = io.StringIO()
    show_table(plan_table({"stages": {"init": {"total": 1, "cached": 1, "todo": 0}}, "asked": 1, "seconds": None, "bytes": 0}), file)
    assert "Nothing to do." in file.getvalue()


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path / "s", {"clean": boards.ACCURACY, "pgd": boards.attacked("pgd", "1/10")}, trials=2)
    for trial in range(2):
        made.state("sparse", {}, trial)
    return made


@pytest.fixture
def manager() -> Iterator[pluggy.PluginManager]:
    manager = pluggy.PluginManager("rtbench")
    manager.add_hookspecs(hookspecs)
    yield manager


def quiet() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def play(made: Made, manager: pluggy.PluginManager, console: Console, cached: int = 0) -> str:
    """The first trial works, in the second the train stage fails and its probes are skipped."""
    stages = list(made.plan.stages.values())
    with Screen(made.plan, console) as screen:
        manager.register(screen)
        for stage in stages[:cached]:
            manager.hook.rtbench_stage_done(stage=stage, records=[], seconds=0.0, cached=True)
        for stage in stages[cached:4]:
            manager.hook.rtbench_progress(stage=stage, done=1, total=2)
            manager.hook.rtbench_stage_done(stage=stage, records=[], seconds=1.0, cached=False)
        manager.hook.rtbench_stage_done(stage=stages[4], records=[], seconds=0.0, cached=True)
        for stage in stages[5:]:
            manager.hook.rtbench_stage_failed(stage=stage, reason="the loss is\nnot finite")
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_the_table_says_how_to_see_what_is_behind_its_first_number(tmp_path: Path) -> None:
    board = boards.quick(tmp_path / "s", trials=1).board()
    key = board.shown()[0].keys[board.rank[0]][0]
    assert str(board_table(board, 100).caption).splitlines()[-1] == f"Behind {board.rank[0]} of the first row: rtbench explain {key[:8]}"


def test_without_a_terminal_there_is_a_line_per_failure_and_one_at_the_end(made: Made, manager: pluggy.PluginManager) -> None:
    lines = play(made, manager, quiet(), cached=1).splitlines()
    train = list(made.plan.stages)[5]
    assert lines[0] == f"train sgd (mlp, images) failed: the loss is not finite [{train}]"
    assert re.fullmatch(r"stages: 3 run, 2 already there, 1 failed, 2 skipped because of that, in \d+\.\d s", lines[1])
    assert len(lines) == 2


def test_without_a_terminal_there_is_a_line_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, console = [100.0], quiet()
    monkeypatch.setattr("rtbench.terminal.progress.time.monotonic", lambda: now[0])
    made = Made(tmp_path / "s", {})
    for trial in range(10):
        made.state("sparse", {}, trial)
    with Screen(made.plan, console) as screen:
        for stage in made.plan.stages.values():
            now[0] += 25.0
            screen.rtbench_stage_done(stage, [], 25.0, False)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "stages: 3/20, about 7 min 5 s left"
    assert len(lines) == 7 and lines[-1] == "stages: 20 run, in 8 min 20 s"


def test_a_terminal_shows_bars_and_keeps_the_failures(made: Made, manager: pluggy.PluginManager) -> None:
    text = play(made, manager, Console(file=io.StringIO(), force_terminal=True, width=100))
    assert "stages" in text
    assert "train sgd (mlp, images) failed: the loss is not finite [" in text
    assert "skipped because" not in text


def test_bars_follow_stages_that_run_at_once(made: Made) -> None:
    screen = Screen(made.plan, Console(file=io.StringIO(), force_terminal=True, width=100))
    stages = list(made.plan.stages.values())
    for stage in stages[:2]:
        screen.rtbench_progress(stage, 3, 10)
    shown = [task for task in screen.progress.tasks if task.visible]
    assert [(task.description, task.completed, task.total) for task in shown[1:]] == [(describe(stage), 3, 10) for stage in stages[:2]]
    screen.rtbench_stage_done(stages[0], [], 1.0, False)
    screen.rtbench_stage_done(stages[0], [], 1.0, False)
    screen.rtbench_progress(stages[0], 4, 10)
    shown = [task for task in screen.progress.tasks if task.visible]
    assert [task.description for task in shown] == ["stages", describe(stages[1])]
    assert (shown[0].completed, shown[0].total, screen.counts["run"]) == (1, len(stages), 1)


def test_more_stages_at_once_than_bars_do_no_harm(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"clean": boards.ACCURACY}, trials=20)
    for trial in range(20):
        made.state("sparse", {}, trial)
    screen = Screen(made.plan, Console(file=io.StringIO(), force_terminal=True, width=100))
    for stage in made.plan.stages.values():
        screen.rtbench_progress(stage, 1, 2)
    for stage in made.plan.stages.values():
        screen.rtbench_stage_done(stage, [], 0.1, False)
    assert [task.visible for task in screen.progress.tasks].count(True) == 1
    assert screen.progress.tasks[0].completed == len(made.plan.stages)


def test_the_time_left_comes_from_stages_of_the_same_sort(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("rtbench.terminal.progress.time.monotonic", lambda: now[0])
    screen = Screen(made.plan, quiet())
    assert screen.remaining() is None
    inits, trains = ([stage for stage in made.plan.stages.values() if stage.verb == verb] for verb in ("init", "train"))
    for stage, seconds in ((inits[0], 1.0), (inits[1], 2.0), (trains[0], 60.0)):
        screen.rtbench_stage_done(stage, [], seconds, False)
    now[0] += 63.0
    left = 60.0 + 4 * math.sqrt(1.5 * 60.0)  # the other train stage, and four probes of which nothing is known yet
    assert screen.remaining() == pytest.approx(left)
    now[0] -= 31.5  # two at a time so far
    assert screen.remaining() == pytest.approx(left / 2)


def test_the_time_left_is_right_from_the_first_training_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four at a time: four trainings of 100 s, 200 probes of 1 s, of which one is done."""
    now = [0.0]
    monkeypatch.setattr("rtbench.terminal.progress.time.monotonic", lambda: now[0])
    probes = {f"p{i}": boards.attacked("pgd", f"1/{i + 2}") for i in range(50)}
    made = Made(tmp_path / "s", probes, trials=4)
    for trial in range(4):
        made.state("sparse", {}, trial)
    screen = Screen(made.plan, quiet())
    inits, trains, measured = ([stage for stage in made.plan.stages.values() if stage.verb == verb] for verb in ("init", "train", "probe"))
    for stage in inits:
        screen.rtbench_stage_done(stage, [], 0.01, False)
    for stage in trains:
        screen.rtbench_progress(stage, 0, 100)
    now[0] = 25.0
    for stage in trains:
        screen.rtbench_progress(stage, 25, 100)
    early = screen.remaining()
    assert early is not None and 75 <= early <= 75 + 50 * 1.5, "before any training is done, and not 200 probes as long as a training"
    now[0] = 100.0
    screen.rtbench_stage_done(trains[0], [], 100.0, False)
    for stage in trains[1:]:
        screen.rtbench_progress(stage, 99, 100)
    now[0] = 101.0
    screen.rtbench_stage_done(measured[0], [], 1.0, False)
    assert screen.remaining() == pytest.approx((len(measured) - 1) / 4, rel=0.05)


def test_a_resumed_stage_counts_what_it_did_since(tmp_path: Path) -> None:
    run = Running(("train",), 100.0, 0.5, 0.75)
    assert remaining({("train",): 1}, {}, [run], 110.0, 10.0) == pytest.approx(10.0)
    assert remaining({("train",): 1}, {}, [run._replace(share=0.5)], 110.0, 10.0) is None


def test_thousands_of_events_cost_little(tmp_path: Path) -> None:
    data, net = {"use": "d"}, {"use": "n"}
    stages = [Stage("probe", {"use": "accuracy", "knobs": {}}, data, net, seed, {}) for seed in range(4000)]
    made = Made(tmp_path / "s", {"clean": boards.ACCURACY})
    for stage in stages:
        made.plan.add(stage)
    with Screen(made.plan, Console(file=io.StringIO(), force_terminal=True, width=100)) as screen:
        started = time.process_time()
        for stage in stages:
            screen.rtbench_progress(stage, 1, 2)
            screen.rtbench_stage_done(stage, [], 0.01, False)
        assert time.process_time() - started < 2.0


@pytest.mark.parametrize(("seconds", "text"), [
    (0.44, "0.4 s"), (42.3, "42 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (3 * 86400 + 4 * 3600, "3 d 4 h"),
])  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_stages_are_described_by_what_runs_on_what() -> None:
    def stage(verb: str, part: dict[str, Any]) -> Stage:
        return Stage(verb, part, {"use": "mnist"}, {"use": "mlp"}, 0, {})

    against = {"objective": {"use": "robust", "knobs": boards.attacked("fgsm", "1/10")["knobs"]}}
    assert describe(stage("train", {"use": "sgd", "knobs": {}})) == "train sgd (mlp, mnist)"
    assert describe(stage("train", {"use": "sgd", "knobs": against})) == "train sgd under fgsm (mlp, mnist)"
    assert describe(stage("probe", boards.attacked("pgd", "1/10"))) == "probe accuracy under pgd (mlp, mnist)"
    assert describe(stage("probe", boards.ACCURACY)) == "probe accuracy (mlp, mnist)"
    assert describe(stage("transfer", {})) == "transfer (mlp, mnist)"


def test_waiting_is_seen_on_a_terminal_only() -> None:
    seen, unseen = Console(file=io.StringIO(), force_terminal=True, width=80), quiet()
    for console in (seen, unseen):
        with pytest.raises(KeyError), waiting("planning", console):
            raise KeyError
    text = seen.file.getvalue()  # type: ignore[attr-defined]
    assert "planning" in text and text.endswith("\x1b[2K") and "\x1b[?25h" in text  # wiped, and the cursor is back
    assert unseen.file.getvalue() == ""  # type: ignore[attr-defined]
