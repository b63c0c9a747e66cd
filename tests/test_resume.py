"""Killed at any instant, out of budget, or run by two processes at once: the same bytes as an uninterrupted run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

import studies
from rtbench.commands import api
from rtbench.storage.results import Results
from studies import SUITE, numbers, plugin, run, tree, write

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
apgd  = { use = "accuracy", attack = { use = "apgd", norm = "linf", eps = 0.05, steps = 6, restarts = 2 }, samples = 20, batch = 8, at = "last" }
square = { use = "accuracy", attack = { use = "square", norm = "l2", eps = 0.5, queries = 15 }, samples = 20, batch = 8, at = "last" }
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

BOTH = '''
def both(model, data, loop, *, attack: Attack = "none"):
    """attack: the attack"""
    one = attack(model, data.test, torch.arange(20), loop, 5)
    two = attack(model, data.test, torch.arange(20, 40), loop, 5)
    return {"one": one.accuracy, "two": two.accuracy}

@hookimpl
def rtbench_probes():
    return {"both": both}
'''

KILLER = """
import itertools, json, os, random, shutil, signal, sys, time, traceback
import studies
from rtbench.commands import api

api._foreign = lambda what: False  # kills are planted in this process, so that is where the parts have to run
folder, jobs = sys.argv[1], json.loads(sys.argv[2])
for job in jobs:  # a child of a warm process is warm
    studies.run(job["suite"], f"{folder}/warm{job['name']}", **job["choices"])


def start(job, store, arm=None, seconds=0.0):
    pid = os.fork()
    if pid:
        return pid
    code = 4
    try:
        arm() if arm else None
        tally = studies.run(job["suite"], store, checkpoint_seconds=seconds, **job["choices"]).tally
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


def same(store, whole):
    one, other = studies.tree(store), studies.tree(whole)
    odd = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    assert not odd, odd
    assert not os.listdir(store + "/partial"), os.listdir(store + "/partial")
    shutil.rmtree(store)
"""

RANDOMLY = """
calm = lambda: setattr(os, "fsync", lambda handle: None)
for job in jobs:
    whole, started, draw, kills = f"{folder}/whole{job['name']}", time.monotonic(), random.Random(job["name"]), 0
    assert not end(start(job, whole, calm))
    seconds = time.monotonic() - started
    for life in itertools.count():
        store = f"{folder}/{job['name']}{life}"
        for tries in itertools.count():
            pid = start(job, store, calm)
            if tries < 30:
                time.sleep(draw.uniform(0, seconds / 5))
                os.kill(pid, signal.SIGKILL)
            if not end(pid):
                break
            kills += 1
        same(store, whole)
        if kills >= job["kills"]:
            break
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


(job,) = jobs
assert not end(start(job, folder + "/whole", lambda: arm(0)))
for n in itertools.count(1):
    store = f"{folder}/killed{n}"
    killed = end(start(job, store, lambda: arm(n)))
    if killed:
        assert not end(start(job, store, lambda: arm(0)))
    same(store, folder + "/whole")
    if not killed:
        break
print(n)
"""


def kill(tmp_path: Path, how: str, *jobs: dict[str, Any]) -> list[int]:
    done = studies.python(KILLER + how, tmp_path, json.dumps(jobs))
    assert done.returncode == 0, done.stderr[-3000:]
    return [int(word) for word in done.stdout.split()]


def streamed(folder: Path) -> str:
    """A suite on images that are decoded while they are used."""
    draw = numpy.random.default_rng(0)
    for split, n in (("train", 20), ("valid", 4), ("test", 8)):
        for name in ("cat", "dog"):
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(n):
                image = draw.integers(0, 255 if name == "cat" else 128, (8, 8), dtype=numpy.uint8)
                Image.fromarray(image).save(folder / "images" / split / name / f"{i}.png")
    images = f'{{ use = "image-folder", folder = "{folder}/images", size = 8, channels = 1, memory_mb = 0, workers = 2, augment = "pad-crop-flip" }}'
    text = SUITE.replace('{ use = "digits", share = 0.2 }', images).replace("samples = 200", "samples = 16, batch = 3")
    return write(folder, text.replace("batch = 50", "batch = 8"), "streamed.toml")


def test_killed_at_random_instants(tmp_path: Path) -> None:
    """Adam and momentum, adversarial training with random starts, augmentation, probes and selection on the way, snapshots, a probe
    of two attacks, streamed images."""
    hard = HARD.replace("[parts]", 'both  = { use = "both", attack = "strong" }\n[parts]')
    choices = {"plugins": [plugin(tmp_path, BOTH)]}
    jobs: list[dict[str, Any]] = [
        {"name": "hard", "suite": write(tmp_path, hard), "choices": choices, "kills": 20},
        {"name": "streamed", "suite": streamed(tmp_path), "choices": {"only": {"recipe": ["dense"]}}, "kills": 8},
    ]
    assert all(kills >= job["kills"] for kills, job in zip(kill(tmp_path, RANDOMLY, *jobs), jobs, strict=True))


def test_killed_before_each_call_to_the_disk(tmp_path: Path) -> None:
    text = SUITE.replace("epochs = 2", "steps = 2").replace("samples = 200,", "samples = 60, batch = 40,")
    text = text.replace('density = { use = "density", at = "last" }\n', "")
    job = {"name": "each", "suite": write(tmp_path, text), "choices": {"only": {"recipe": ["dense"]}}}
    (calls,) = kill(tmp_path, AT_EVERY_WRITE, job)
    assert calls > 60


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


TWO = """
import sys, studies
board = studies.run(sys.argv[1], sys.argv[2], checkpoint_seconds=0.0, only={"fit": ["momentum"]}, trials=2)
assert not board.tally.failed and not board.tally.late
print(board.tally.done, board.tally.cached)
"""


def test_two_processes_fill_one_store_and_run_each_stage_once(tmp_path: Path) -> None:
    suite, store = write(tmp_path, HARD), tmp_path / "store"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(studies.TESTS)!r})\n{TWO}", suite, str(store)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [process.communicate(timeout=600) for process in both]
    assert all(process.returncode == 0 for process in both), ends
    counts = [[int(word) for word in out.split()] for out, _ in ends]
    stages = api.plan(suite, only={"fit": ["momentum"]}, trials=2, device="cpu").stages
    assert all(sum(pair) == len(stages) for pair in counts), "what another process ran was there"
    assert sum(done for done, _ in counts) == len(stages) == len(Results(store).finished()), counts
    run(suite, tmp_path / "alone", only={"fit": ["momentum"]}, trials=2)
    assert tree(store) == tree(tmp_path / "alone") and not list((store / "partial").iterdir())
