"""Worker processes: what kills one is the failure of its stage alone; the rest ends as in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rtbench.commands import api
from rtbench.ranking.board import Board
from studies import SUITE, interruptible, numbers, plugin, run, stages, tree, write

DEADLY = '''
def deadly(model, data, loop, *, how: str):
    """how: what it does"""
    for i in loop(range(3)):
        if i == 1 and how == "exit":
            os._exit(3)
        if i == 1 and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if i == 1 and how == "memory":
            raise MemoryError("cannot allocate 9 TiB")
        if i == 1 and how == "leave":
            raise SystemExit(0)
        if i == 1 and how == "sleep":
            time.sleep(1000)
        time.sleep(0.1)
    return 1.0

@hookimpl
def rtbench_probes():
    return {"deadly": deadly}
'''
HOWS = ("exit", "kill", "memory", "leave", "sleep", "nothing")


def suite(folder: Path) -> tuple[str, dict[str, Any]]:
    probes = "".join(f'p{i} = {{ use = "deadly", how = "{how}", at = "last" }}\n' for i, how in enumerate(HOWS))
    return write(folder, SUITE.replace("density = {", f"{probes}density = {{")), {
        "plugins": [plugin(folder, DEADLY)],
        "only": {"recipe": ["dense"]},
    }


def reasons(board: Board, path: str, choices: dict[str, Any]) -> dict[str, str]:
    """Why a probe failed, by what it was told to do."""
    plan = api.plan(path, device="cpu", **choices)
    keys = {stage.key: stage.part["knobs"]["how"] for stage in stages(plan, "probe") if stage.part["use"] == "deadly"}
    return {keys[key]: reason for key, reason in board.tally.failed.items()}


def test_whatever_kills_a_worker_is_the_failure_of_its_stage(tmp_path: Path) -> None:
    path, choices = suite(tmp_path)
    board = run(path, tmp_path / "store", workers=2, timeout=2.0, **choices)
    found = reasons(board, path, choices)
    assert found.pop("sleep").startswith("its worker process gave no sign of life for ")
    assert found == {
        "exit": "its worker process exited with code 3",
        "kill": "its worker process was killed by SIGKILL (out of memory?)",
        "memory": "MemoryError: cannot allocate 9 TiB",
        "leave": "SystemExit: 0",
    }
    assert board.tally.done == 5, "the others finish, in workers that replace the dead"
    (row,) = board.rows
    assert row.probes["p5"].mean == 1.0 and row.probes["clean"].mean is not None and len(row.reasons) == 5
    again = run(path, tmp_path / "store", workers=2, timeout=2.0, **choices)
    assert again.tally.done == 0 and again.tally.cached == 5 and reasons(again, path, choices).keys() == found.keys() | {"sleep"}


def test_many_workers_give_the_same_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, SUITE.replace('data = "digits"', 'data = "digits"\ntrials = 2', 1))
    one, two = (run(path, tmp_path / str(workers), workers=workers) for workers in (1, 2))
    isolated = run(path, tmp_path / "isolated", isolate=True)
    assert tree(tmp_path / "1") == tree(tmp_path / "2") == tree(tmp_path / "isolated")
    assert numbers(one) == numbers(two) == numbers(isolated) and two.tally.done == one.tally.done == isolated.tally.done
    assert run(path, tmp_path / "2", workers=2).tally.done == 0


def test_a_plugin_that_cannot_be_loaded_in_a_worker_is_no_hang(tmp_path: Path) -> None:
    code = "if os.path.exists(__file__ + '.broken'): raise ImportError('no')\n" + DEADLY
    path, choices = suite(tmp_path)
    choices["plugins"] = [plugin(tmp_path, code, "fragile.py")]
    what = api.study(path, device="cpu", **choices)
    (tmp_path / "fragile.py.broken").touch()
    board = api.run_study(what, tmp_path / "store", api.How(workers=2, threads=1, timeout=60))
    assert len(board.tally.failed) == len(what.plan.stages) and any("exited with code 1" in why for why in board.tally.failed.values())


def test_a_worker_that_starts_slowly_is_not_taken_for_dead(tmp_path: Path) -> None:
    code = "import multiprocessing\nif multiprocessing.current_process().name != 'MainProcess': time.sleep(2.5)\n" + DEADLY
    path, choices = suite(tmp_path)
    choices["plugins"] = [plugin(tmp_path, code, "slow.py")]
    choices["set"] = [f'probes.p{i}.how="nothing"' for i in range(len(HOWS))]
    assert not run(path, tmp_path / "store", isolate=True, timeout=0.9, **choices).tally.failed


SLOW = """
def slow(model, data, loop):
    for i in loop(range(40)):
        time.sleep(0.05)
        open(os.environ["SEEN"], "a").write("x")
    return 1.0

@hookimpl
def rtbench_probes():
    return {"slow": slow}
"""


def interrupted(folder: Path, workers: int, number: int) -> tuple[str, Path, dict[str, Any]]:
    """A run, by a script without a main guard, that a signal ended in the middle of a probe."""
    path = write(folder, SUITE.replace("density = {", 'slow = { use = "slow", at = "last" }\ndensity = {'))
    choices = {"plugins": [plugin(folder, SLOW)], "only": {"recipe": ["dense"]}}
    call = f"rtbench.run({path!r}, store={str(folder / 'store')!r}, workers={workers}, threads=1, device='cpu', checkpoint_seconds=0.1, **{choices!r})"
    (folder / "script.py").write_text(f"import rtbench\nprint('begun', flush=True)\n{call}\n")
    seen = folder / "seen"
    process = subprocess.Popen(
        [sys.executable, str(folder / "script.py")], env={**os.environ, "SEEN": str(seen)}, start_new_session=True, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=interruptible,
    )  # fmt: skip
    while not (seen.exists() and seen.stat().st_size > 8):
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as the terminal does
    else:
        process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode != 0 and out == "begun\n", "the script ran once, to where it was interrupted"
    return path, folder / "store", choices


def gone(store: Path) -> None:
    """Waits until no process holds a claim."""
    from rtbench.storage.disk import try_lock

    for lock in (store / "partial").glob("*.lock"):
        for _ in range(100):
            if (handle := try_lock(lock)) is not None:
                os.close(handle)
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"{lock} is still held")


def test_interrupts_end_the_run_and_its_workers_and_it_continues(tmp_path: Path, monkeypatch: Any) -> None:
    for name, workers, number in (("ctrl-c", 2, signal.SIGINT), ("kill", 2, signal.SIGKILL)):
        path, store, choices = interrupted(tmp_path / name, workers, number)
        gone(store)
        seen = tmp_path / name / "seen"
        before = seen.stat().st_size
        time.sleep(0.3)
        assert seen.stat().st_size == before, "nobody goes on with it"
        monkeypatch.setenv("SEEN", str(seen))
        board = run(path, store, **choices)
        assert not board.tally.failed and board.tally.done >= 1
        assert 40 <= seen.stat().st_size < before + 40, "it went on where it was"
        assert not list((store / "partial").iterdir())


def test_threads_are_a_share_of_the_cores_or_what_the_environment_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtbench.engine.processes.cores", lambda: 8)
    for said, threads in (("", 4), ("1", 1), ("3", 3), ("64", 4), ("0", 4), ("4,2", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert api.How(workers=2).settled("cpu").threads == threads
    assert api.How(workers=2, threads=5).settled("cpu").threads == 5
    assert api.How(workers=16).settled("cpu").threads == 1


def test_a_budget_ends_workers_too(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole, late = run(path, tmp_path / "whole"), 0
    while run(path, tmp_path / "store", workers=2, budget=0.05 * 1.25**late).tally.late:  # how much gets anywhere, the machine says
        late += 1
        assert late < 50
    assert late
    assert tree(tmp_path / "store") == tree(tmp_path / "whole") and not whole.tally.late
