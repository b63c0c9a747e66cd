"""Killed at any instant, out of budget, or run by two processes at once: the same bytes as an uninterrupted run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import studies
from PIL import Image
from studies import SUITE, numbers, plugin, run, tree, write

from rtbench import api
from rtbench.results import Results

HARD = """
name = "hard"
data = "images"
[axes]
fit = ["adam", "momentum"]
[recipes.ticket]
steps = [
  { init = "net" }, { train = "$fit", as = "begun" }, { prune = "cut" }, { rewind = "begun/step-2" }, { train = "$fit" },
]
[probes]
clean = { use = "accuracy" }
pgd   = { use = "accuracy", attack = "strong", samples = 60, batch = 7, rule = "stratified" }
loss  = { use = "loss", objective = "adversarial", samples = 60, batch = 16 }
cost  = { use = "cost" }
[parts]
images   = { use = "digits", share = 0.1, augment = "pad-crop-flip" }
net      = { use = "mlp", hidden = [12] }
pgd      = { use = "pgd", norm = "linf", eps = 0.1, steps = 2 }
strong   = { use = "pgd", norm = "l2", eps = 0.5, steps = 2, restarts = 2 }
cut      = { use = "random", drop = 0.6 }
adversarial = { use = "robust", attack = "pgd", mix = 0.5, smooth = 0.1 }
watch    = { use = "accuracy", attack = "pgd", split = "valid", samples = 30 }
adam     = { use = "sgd", objective = "adversarial", optimizer = "adam", lr = 0.01, batch = 30, epochs = 3, schedule = "milestones", milestones = [1, 2], snapshots = ["step-2", "epoch-1"], probes = { v = "watch" }, every = 3, select = "v" }
momentum = { use = "sgd", objective = "adversarial", optimizer = "sgd", nesterov = true, lr = 0.1, batch = 30, steps = 9, schedule = "one-cycle", warmup = 1.0, clip = 1.0, decay = 1e-4, drop_last = true, snapshots = ["step-0", "step-2"] }
"""

KILLER = """
import itertools, json, os, random, shutil, signal, sys, time, traceback
import torch._dynamo
import studies
from rtbench import api

suite, folder, choices, seed = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
api.study(suite, device="cpu", **choices)  # everything imported, the data in memory


def start(store, arm=None, seconds=0.0):
    pid = os.fork()
    if pid:
        return pid
    code = 4
    try:
        arm() if arm else None
        tally = studies.run(suite, store, checkpoint_seconds=seconds, **choices).tally
        print(tally, file=sys.stderr) if tally.failed or tally.late else None
        code = 3 if tally.failed or tally.late else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end(pid):
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, status
    return False


def same(store):
    one, other = studies.tree(store), studies.tree(folder + "/whole")
    odd = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    assert not odd, odd
    assert not os.listdir(store + "/partial"), os.listdir(store + "/partial")
    shutil.rmtree(store)
"""

RANDOMLY = """
calm = lambda: setattr(os, "fsync", lambda handle: None)
started = time.monotonic()
assert not end(start(folder + "/whole", calm))
whole, draw = time.monotonic() - started, random.Random(seed)
kills, lives = 0, 0
while kills < int(sys.argv[5]):
    store, alive = f"{folder}/killed{lives}", True
    while alive:
        pid = start(store, calm)
        time.sleep(draw.uniform(0, whole / 5))
        os.kill(pid, signal.SIGKILL)
        alive = end(pid)
        kills += alive
        if kills >= 40:
            alive = end(start(store, calm))
    same(store)
    lives += 1
print(kills)
"""

AT_EVERY_WRITE = """
CALLS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "open")


def arm(n):
    calls = itertools.count(1)

    def deadly(real):
        def call(*given, **named):
            if next(calls) == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)
        return call

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))


assert not end(start(folder + "/whole", lambda: arm(0), 1e-9))
for n in itertools.count(1):
    store = f"{folder}/killed{n}"
    killed = end(start(store, lambda: arm(n), 1e-9))
    if killed:
        assert not end(start(store, lambda: arm(0)))
    same(store)
    if not killed:
        break
print(n)
"""


def kill(tmp_path: Path, suite: str, how: str, *arguments: object, choices: dict[str, Any] | None = None) -> int:
    done = studies.python(KILLER + how, suite, tmp_path, json.dumps(choices or {}), *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("fit", ["adam", "momentum"])
def test_killed_at_random_instants(tmp_path: Path, fit: str) -> None:
    assert kill(tmp_path, write(tmp_path, HARD), RANDOMLY, len(fit), 15, choices={"only": {"fit": [fit]}}) >= 15


def test_killed_before_each_call_to_the_disk(tmp_path: Path) -> None:
    text = SUITE.replace("epochs = 2", "steps = 3").replace("samples = 200,", "samples = 60, batch = 25,")
    assert kill(tmp_path, write(tmp_path, text), AT_EVERY_WRITE, 0, choices={"only": {"recipe": ["dense"]}}) > 60


def test_killed_while_images_are_streamed(tmp_path: Path) -> None:
    draw = numpy.random.default_rng(0)
    for split, n in (("train", 20), ("valid", 4), ("test", 8)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(n):
                image = draw.integers(0, 255 if name == "cat" else 128, (8, 8), dtype=numpy.uint8)
                Image.fromarray(image).save(tmp_path / "images" / split / name / f"{i}.png")
    images = f'{{ use = "image-folder", folder = "{tmp_path}/images", size = 8, channels = 1, memory_mb = 0, workers = 2, augment = "pad-crop-flip" }}'
    text = SUITE.replace('{ use = "digits", share = 0.2 }', images).replace("samples = 200", "samples = 16, batch = 3").replace("batch = 50", "batch = 8")
    assert kill(tmp_path, write(tmp_path, text), RANDOMLY, 3, 8, choices={"only": {"recipe": ["dense"]}}) >= 8


def test_a_small_budget_ends_late_and_resumes(tmp_path: Path) -> None:
    suite, store, late = write(tmp_path, HARD), tmp_path / "store", 0
    choices: dict[str, Any] = {"only": {"fit": ["adam"]}}
    whole = run(suite, tmp_path / "whole", **choices)
    nothing = run(suite, store, budget=0.0, **choices)
    assert nothing.tally.late and nothing.tally.done == 0 and not nothing.tally.failed
    total = 0
    while (board := run(suite, store, budget=0.02, **choices)).tally.late:
        late, total = late + 1, total + board.tally.done
        assert not board.tally.failed and late < 1000
    assert late > 3 and total + board.tally.done == whole.tally.done
    assert tree(store) == tree(tmp_path / "whole") and numbers(board) == numbers(whole)
    assert not list((store / "partial").iterdir())


def test_a_probe_of_two_attacks_killed_in_the_second_keeps_the_first(tmp_path: Path) -> None:
    code = '''
    def both(model, data, loop, *, attack: Attack = "none"):
        """attack: the attack"""
        one = attack(model, data.test, torch.arange(20), loop, 5)
        two = attack(model, data.test, torch.arange(20, 40), loop, 5)
        return {"one": one.accuracy, "two": two.accuracy}

    @hookimpl
    def rtbench_probes():
        return {"both": both}
    '''
    text = SUITE.replace("density = {", 'both = { use = "both", at = "last", attack = "pgd" }\ndensity = {')
    choices: dict[str, Any] = {"only": {"recipe": ["dense"]}, "plugins": [plugin(tmp_path, code)]}
    assert kill(tmp_path, write(tmp_path, text), RANDOMLY, 1, 12, choices=choices) >= 12


TWO = """
import sys, studies
board = studies.run(sys.argv[1], sys.argv[2], checkpoint_seconds=0.0, workers=int(sys.argv[3]), only={"fit": ["momentum"]}, trials=2)
assert not board.tally.failed and not board.tally.late
print(board.tally.done, board.tally.cached)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_two_processes_fill_one_store_and_run_each_stage_once(tmp_path: Path, workers: int) -> None:
    import subprocess
    import sys

    suite, store = write(tmp_path, HARD), tmp_path / "store"
    head = f"import sys; sys.path.insert(0, {str(studies.TESTS)!r})\n"
    command = [sys.executable, "-c", head + TWO, suite, str(store), str(workers)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [process.communicate(timeout=120) for process in both]
    assert all(process.returncode == 0 for process in both), ends
    counts = [[int(word) for word in out.split()] for out, _ in ends]
    stages = api.plan(suite, only={"fit": ["momentum"]}, trials=2, device="cpu").stages
    assert all(sum(pair) == len(stages) for pair in counts), "what another process ran was there"
    assert sum(done for done, _ in counts) == len(stages) == len(Results(store).finished()), counts
    if workers == 1:
        run(suite, tmp_path / "alone", only={"fit": ["momentum"]}, trials=2)
        assert tree(store) == tree(tmp_path / "alone")
    assert not list((store / "partial").iterdir())
