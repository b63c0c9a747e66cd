"""The program as its users run it: commands, output, exit codes, one sentence for every mistake."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from rtbench.cli import COMMANDS, main
from rtbench.commands.estimate import _seconds as fastest
from rtbench.commands.estimate import estimate
from rtbench.commands.study import chosen, study
from rtbench.errors import UserError
from rtbench.storage.store import Store
from studies import interruptible

SUITE = """
name = "tiny"
trials = 2
data = "digits"
[axes]
pruner = ["magnitude", "random"]
drop = [0.5, 0.9]
[recipes.dense]
steps = [{ init = "net" }, { train = "fit" }]
[recipes.sparse]
steps = [{ init = "net" }, { train = "fit" }, { prune = "$pruner", drop = "$drop" }, { rewind = "init" }, { train = "fit", as = "final" }]
[probes]
sparsity = { use = "sparsity", at = "last" }
clean = { use = "accuracy", at = "last" }
pgd = { use = "accuracy", attack = "weak", at = "last", samples = 60 }
cost = { use = "cost", at = "last" }
[parts]
net = { use = "mlp", hidden = [16] }
weak = { use = "pgd", norm = "linf", eps = "1/10", steps = 3 }
fit = { use = "sgd", lr = 0.5, batch = 100, steps = 30 }
[board]
rank = "pgd"
[[published]]
where = { recipe = "dense" }
probe = "pgd"
value = 0.5
source = "arXiv:0000.00000"
"""
PGD = ["--attack", "pgd", "--norm", "linf", "--eps", "8/255"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def rtbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Calls the program in this process."""

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["rtbench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return Ran(int(stopped.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "tiny.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module")
def store(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the tiny suite has run to its end."""
    path = tmp_path_factory.mktemp("store") / "store"
    done = subprocess.run(
        [sys.executable, "-m", "rtbench.cli", "run", suite, "--store", path, "--workers", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return path


def board(rtbench: Callable[..., Ran], suite: Path, store: Path, *more: object) -> dict[str, Any]:
    ran = rtbench("board", suite, "--store", store, "--format", "json", *more)
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def test_a_finished_suite_runs_nothing_again_and_shows_its_board(rtbench: Callable[..., Ran], suite: Path, store: Path) -> None:
    ran = rtbench("run", suite, "--store", store, "--workers", 1)
    assert ran.code == 0
    assert "0 stages run" in ran.out and "tiny.html" in ran.out
    assert "pgd" in ran.out and "n=60" in ran.out and "sparsity" in ran.out
    assert "\x1b[" not in ran.out and "\x1b[" not in ran.err
    html = (store / "tiny.html").read_text()
    assert "<table" in html and "<svg" in html and 'src="http' not in html


def test_board_json_is_the_promised_object(rtbench: Callable[..., Ran], suite: Path, store: Path) -> None:
    found = board(rtbench, suite, store)
    assert {"schema": 1, "suite": "tiny", "rank": "pgd"}.items() <= found.items()
    assert len(found["rows"]) == 5
    for row in found["rows"]:
        assert {"recipe", "cell", "step", "round", "probes", "flags", "group", "published", "status"} <= row.keys()
        assert row["status"] == "done" and (row["group"] is None) == ("chance-level" in row["flags"])
        pgd = row["probes"]["pgd"]
        assert (pgd["n"], pgd["samples"], pgd["split"], pgd["attack"], pgd["norm"], pgd["eps"]) == (2, 60, "test", "pgd", "linf", "1/10")
        assert pgd["mean"] == pytest.approx(sum(pgd["values"]) / 2) and 0 <= pgd["interval"][0] <= pgd["mean"] <= pgd["interval"][1] <= 1
        assert pgd["sd"] == pytest.approx(abs(pgd["values"][0] - pgd["values"][1]) / 2**0.5)
    means = [row["probes"]["pgd"]["mean"] for row in found["rows"] if "chance-level" not in row["flags"]]
    assert means == sorted(means, reverse=True)
    dense = next(row for row in found["rows"] if row["recipe"] == "dense")
    assert dense["cell"] == {} and dense["step"] == 1 and dense["round"] == 0
    assert dense["published"]["pgd"] == {"value": 0.5, "source": "arXiv:0000.00000"}
    sparse = next(row for row in found["rows"] if row["cell"] == {"pruner": "random", "drop": 0.9})
    assert sparse["step"] == "final" and sparse["round"] == 1
    assert sparse["probes"]["sparsity"]["mean"] == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("format_", ["csv", "markdown", "latex", "html", "json", "terminal"])
def test_board_formats_go_to_the_terminal_and_to_a_file(
    rtbench: Callable[..., Ran], suite: Path, store: Path, tmp_path: Path, format_: str
) -> None:
    shown = rtbench("board", suite, "--store", store, "--format", format_)
    assert shown.code == 0 and "magnitude" in shown.out
    written = rtbench("board", suite, "--store", store, "--format", format_, "--output", tmp_path / "sub" / "board")
    assert written.code == 0 and (tmp_path / "sub" / "board").stat().st_size > 100
    if format_ == "csv":
        assert len(list(csv.reader(io.StringIO(shown.out)))) == 6
        key = next(csv.DictReader(io.StringIO(shown.out)))["pgd.keys"].split(";")[1]
        assert "probe accuracy under pgd" in rtbench("explain", key, "--store", store, "--format", "markdown").out


def test_a_narrow_terminal_and_no_color_are_respected(suite: Path, store: Path) -> None:
    environment = {**os.environ, "COLUMNS": "60", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "rtbench.cli", "board", suite, "--store", store]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "\x1b[" not in shown


def test_one_more_pruner_computes_only_its_own_stages(rtbench: Callable[..., Ran], suite: Path, store: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "odd.py"
    plugin.write_text(
        "from rtbench import hookimpl, keep_top\n"
        "def odd(model, masks, *, drop: float = 0.5):\n"
        "    '''Keeps the smallest weights.'''\n"
        "    return keep_top({n: -model.get_parameter(n).detach().abs() for n in masks}, masks, drop=drop)\n"
        "@hookimpl\n"
        "def rtbench_pruners():\n"
        "    return {'odd': odd}\n"
    )
    more = ["--set", "axes.pruner+=odd", "--plugin", plugin]
    ran = rtbench("run", suite, "--store", store, "--workers", 1, *more)
    # 2 trials x 2 drop rates x (prune, train, 4 probes)
    assert ran.code == 0 and "24 stages run" in ran.out
    assert {row["cell"].get("pruner") for row in board(rtbench, suite, store, *more)["rows"]} == {None, "magnitude", "random", "odd"}


def test_only_and_trials_choose_what_runs(rtbench: Callable[..., Ran], suite: Path, tmp_path: Path) -> None:
    chosen = ["--only", "recipe=sparse, drop=0.9", "--only", "pruner=random", "--trials", 1]
    assert rtbench("run", suite, "--store", tmp_path / "s", "--workers", 1, *chosen).code == 0
    rows = board(rtbench, suite, tmp_path / "s", *chosen)["rows"]
    assert [row["cell"] for row in rows] == [{"pruner": "random", "drop": 0.9}] and rows[0]["probes"]["pgd"]["sd"] is None
    statuses = {row["status"] for row in board(rtbench, suite, tmp_path / "s")["rows"]}
    assert statuses == {"partial"}


def test_a_budget_ends_with_a_partial_board_and_the_next_run_goes_on(rtbench: Callable[..., Ran], suite: Path, tmp_path: Path) -> None:
    ran = rtbench("run", suite, "--store", tmp_path / "s", "--workers", 1, "--budget", "0s")
    assert ran.code == 0 and "budget" in ran.out
    assert rtbench("run", suite, "--store", tmp_path / "s", "--workers", 1).code == 0
    assert {row["status"] for row in board(rtbench, suite, tmp_path / "s")["rows"]} == {"done"}


def test_a_failing_stage_is_exit_code_1_and_shown_on_the_board(rtbench: Callable[..., Ran], suite: Path, tmp_path: Path) -> None:
    ran = rtbench(
        "run", suite, "--store", tmp_path / "s", "--workers", 1, "--set", "parts.fit.lr=1e38", "--only", "recipe=dense", "--trials", 1
    )
    assert ran.code == 1 and "failed" in ran.err and "Traceback" not in ran.err
    row = board(rtbench, suite, tmp_path / "s", "--set", "parts.fit.lr=1e38", "--only", "recipe=dense", "--trials", 1)["rows"][0]
    assert row["status"] == "failed"


def test_plan_counts_shared_cached_and_to_do(rtbench: Callable[..., Ran], suite: Path, store: Path, tmp_path: Path) -> None:
    fresh = rtbench("plan", suite, "--store", tmp_path / "none")
    assert fresh.code == 0 and not (tmp_path / "none").exists()
    assert re.search(r"train\s+10\s+0\s+10", fresh.out) and "forwards" in fresh.out
    assert re.search(r"train\s+10\s+10\s+0", rtbench("plan", suite, "--store", store).out)


def test_plan_expects_of_another_trial_what_those_before_it_took(rtbench: Callable[..., Ran], suite: Path, tmp_path: Path) -> None:
    assert rtbench("run", suite, "--store", tmp_path / "s", "--only", "recipe=dense", "--workers", 1).code == 0
    took = sum(Store(tmp_path / "s").provenance(key)["seconds"] for key in study(str(suite), only=["recipe=dense"]).plan.stages)
    assert estimate(study(str(suite), only=["recipe=dense"], trials=3), tmp_path / "s")["seconds"] == pytest.approx(took / 2)


def test_a_table_can_do_without_columns(rtbench: Callable[..., Ran], suite: Path, store: Path) -> None:
    options = ["--columns", "clean", "--without", "#, trials", "--caption", 'Five "rows", a = b', "--label", "tab:five"]
    ran = rtbench("board", suite, "--store", store, "--format", "markdown", *options)
    assert ran.code == 0, ran.err
    caption, _, heads, *_ = ran.out.splitlines()
    assert caption == 'Five "rows", a = b' and heads.startswith("| recipe | pruner | drop | clean") and "trials" not in heads
    wrong = rtbench("board", suite, "--store", store, "--without", "prunr")
    assert wrong.code == 2 and wrong.err.strip().endswith('board.without.0: no column "prunr"; did you mean "pruner"?')
    one = rtbench("board", suite, "--store", store, "--columns", "worst.linf.1/9")
    assert one.code == 2 and one.err.strip().endswith('board.columns.0: no column "worst.linf.1/9"')
    some = rtbench("board", suite, "--store", store, "--columns", "worst.linf.1/9", "--only", "recipe=dense")
    assert some.code == 0  # what is left out may have it
    for option in ("--columns", "--without"):
        assert f"board.{option[2:]}.0: no " in rtbench("board", suite, "--store", store, option, "").err
    assert "no label of LaTeX" in rtbench("board", suite, "--store", store, "--label", "a b").err


def test_the_speed_is_that_of_the_least_interrupted_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which the first ten calls take 20 ms each, and one of the next 1 ms."""
    now, calls = [0.0], [0]

    def call() -> None:
        calls[0] += 1
        now[0] += 0.001 if calls[0] == 9 else 0.02

    monkeypatch.setattr("rtbench.commands.estimate.time.perf_counter", lambda: now[0])
    assert fastest(call, "cpu") == pytest.approx(0.001) and calls[0] < 15


def test_compare_pairs_two_rows(rtbench: Callable[..., Ran], suite: Path, store: Path) -> None:
    rows = {row["recipe"] + str(row["cell"]): row for row in board(rtbench, suite, store)["rows"]}
    sparse = rows["sparse{'pruner': 'magnitude', 'drop': 0.5}"]
    ran = rtbench("compare", suite, "recipe=dense", sparse["state"][1][:10], "--store", store, "--format", "json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["one"]["recipe"], found["other"]["drop"]) == ("dense", 0.5)
    pgd = next(pair for pair in found["columns"] if pair["column"] == "pgd")
    dense = rows["dense{}"]["probes"]["pgd"]
    assert pgd["difference"] == pytest.approx(dense["mean"] - sparse["probes"]["pgd"]["mean"])
    assert (pgd["only_one"] - pgd["only_other"]) / (2 * 60) == pytest.approx(pgd["difference"])
    shown = rtbench("compare", suite, "recipe=dense", "pruner=magnitude,drop=0.5", "--store", store)
    assert shown.code == 0 and "A is recipe dense" in shown.out and "with 2 trials it is 0.5 at least" in shown.out
    wrong = rtbench("compare", suite, "recipe=dense", "pruner=magnitude", "--store", store)
    assert wrong.code == 2 and wrong.err.strip() == 'rtbench: "pruner=magnitude" is 2 rows; choose by drop too'


def test_show_names_the_whole_chain_and_diff_what_differs(rtbench: Callable[..., Ran], suite: Path, store: Path) -> None:
    rows = board(rtbench, suite, store)["rows"]
    dense = next(row for row in rows if row["recipe"] == "dense")
    cell = next(row for row in rows if row["cell"] == {"pruner": "random", "drop": 0.9})
    shown = rtbench("show", cell["keys"]["pgd"][0][:10], "--store", store)
    assert shown.code == 0
    for word in ("init mlp", "train sgd", "prune random", "drop=0.9", "probe accuracy", "sha256", "gradients"):
        assert word in shown.out, word
    chain = json.loads(rtbench("show", cell["keys"]["pgd"][0], "--store", store, "--format", "json").out)
    assert [stage["verb"] for stage in chain] == ["init", "train", "prune", "train", "probe"]
    assert rtbench("diff", dense["state"][0], dense["state"][0], "--store", store).out.strip() == "no difference"
    other = next(row for row in rows if row["cell"] == {"pruner": "random", "drop": 0.5})
    differing = rtbench("diff", cell["state"][0], other["state"][0], "--store", store)
    assert differing.code == 0 and "0.9" in differing.out and "0.5" in differing.out


def test_export_and_evaluate_agree_with_the_board(rtbench: Callable[..., Ran], suite: Path, store: Path, tmp_path: Path) -> None:
    row = next(row for row in board(rtbench, suite, store)["rows"] if row["cell"] == {"pruner": "magnitude", "drop": 0.9})
    file = tmp_path / "m.safetensors"
    assert rtbench("export", row["state"][0], "--output", file, "--with-masks", "--store", store).code == 0
    tensors = load_file(file)
    zeros = sum(int((tensors[n] == 0).sum()) for n in tensors if n.startswith("mask:"))
    assert zeros == sum(int((tensors[n.removeprefix("mask:")] == 0).sum()) for n in tensors if n.startswith("mask:")) > 0
    ran = rtbench("evaluate", file, "--arch", "mlp", "--knob", "hidden=[16]", "--dataset", "digits", "--attack", "none", "--format", "json")
    found = json.loads(ran.out)
    assert found["clean"] == found["robust"] == pytest.approx(row["probes"]["clean"]["values"][0])
    assert len(found["bits"]) == len(found["ids"]) == 397 and found["bits"].count("1") == round(397 * found["robust"])
    attacked = json.loads(rtbench("evaluate", file, "--arch", "mlp", "--knob", "hidden=[16]", "--dataset", "digits", "--attack", "pgd",
                                  "--norm", "linf", "--eps", "1/10", "--samples", 50, "--format", "json").out)  # fmt: skip
    assert attacked["robust"] < attacked["clean"] and {"interval", "flags", "seconds"} <= attacked.keys()
    assert rtbench("evaluate", file, "--arch", "mlp", "--knob", "hidden=[16]", "--dataset", "digits", "--attack", "none").code == 0


def _checkpoints(folder: Path, good: dict[str, torch.Tensor]) -> dict[str, tuple[Path, str]]:
    """Files that must not load, with what the sentence has to say."""
    folder.mkdir(exist_ok=True)

    def put(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(folder / "executed"),))

    save_file(good, folder / "whole.safetensors")
    whole = (folder / "whole.safetensors").read_bytes()
    torch.save(good, folder / "whole.pt")
    torch.save({"a": Evil()}, folder / "evil.pt")
    other = {name: torch.zeros(3, 3) for name in good}
    save_file(other, folder / "shapes.safetensors")
    save_file({"something": torch.zeros(3)}, folder / "names.safetensors")
    return {
        "html": (put("page.pt", b"<!DOCTYPE html><html>Sign in</html>"), "web page"),
        "empty": (put("empty.pt", b""), "empty"),
        "truncated": (put("cut.safetensors", whole[:-100]), "truncated"),
        "truncated torch": (put("cut.pt", (folder / "whole.pt").read_bytes()[:-200]), "truncated"),
        "garbage": (put("noise.pt", bytes(range(256)) * 4), "damaged"),
        "pickled code": (folder / "evil.pt", "pickled code"),
        "raw pickle": (put("raw.pt", pickle.dumps({"a": Evil()})), "pickled code"),
        "shapes": (folder / "shapes.safetensors", "shape"),
        "names": (folder / "names.safetensors", "tensor"),
        "missing": (folder / "nothing.safetensors", "No such file"),
    }


def test_checkpoints_that_are_none_are_one_sentence_and_execute_nothing(rtbench: Callable[..., Ran], tmp_path: Path) -> None:
    good = {"fc1.weight": torch.zeros(16, 64), "fc1.bias": torch.zeros(16), "fc2.weight": torch.zeros(10, 16), "fc2.bias": torch.zeros(10)}
    arguments = ["--arch", "mlp", "--knob", "hidden=[16]", "--dataset", "digits", "--attack", "none"]
    for what, (file, word) in _checkpoints(tmp_path / "files", good).items():
        ran = rtbench("evaluate", file, *arguments)
        assert ran.code == 2 and word in ran.err and ran.err.count("\n") == 1 and str(file) in ran.err, (what, ran)
    assert not (tmp_path / "files" / "executed").exists()
    for seed in (-1, 2**63):
        ran = rtbench("evaluate", tmp_path / "files" / "whole.pt", *arguments, "--seed", seed)
        assert ran.code == 2 and ran.err == f"rtbench: seed: {seed} is not a whole number from 0, below 2**63\n"
    for file in ("whole.safetensors", "whole.pt"):
        ran = rtbench("evaluate", tmp_path / "files" / file, *arguments, "--format", "json")
        assert ran.code == 0 and "chance-level" in json.loads(ran.out)["flags"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--attack", "none", "--eps", "8/255"], '--eps: the attack "none" has no such knob; leave it out'),
        (["--attack", "none", "--norm", "l2"], '--norm: the attack "none" has no such knob; leave it out'),
        (["--attack", "none", "--witness", "w.safetensors"], '--witness: the attack "none" makes no adversarial examples; leave it out'),
        ([*PGD, "--attack-knob", "eps=1/255"], '"eps=1/255": give it as --eps'),
        ([*PGD, "--attack-knob", "use=fgsm"], '"use=fgsm": give it as --attack'),
        ([*PGD, "--knob", "use=lenet"], '"use=lenet": give it as --arch'),
        (["--attack", "apgd", "--norm", "l1", "--eps", "1"], '--norm: apgd takes linf and l2, not "l1"'),
    ],
)
def test_what_would_be_ignored_is_refused(
    options: list[str], said: str, rtbench: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"fc1.weight": torch.randn(10, 64), "fc1.bias": torch.zeros(10)}, "linear.safetensors")
    ran = rtbench("evaluate", "linear.safetensors", "--arch", "mlp", "--knob", "hidden=[]", "--dataset", "digits", "--threads", 1, *options)
    assert ran.code == 2 and ran.err == f"rtbench: {said}\n"


@pytest.mark.parametrize("option", ["--output", "--witness"])
def test_a_result_that_could_not_be_written_is_not_computed(option: str, rtbench: Callable[..., Ran], tmp_path: Path) -> None:
    """The checkpoint is not even looked for."""
    for file in (tmp_path, tmp_path / "nowhere" / "file"):
        ran = rtbench("evaluate", "nothing.pt", "--arch", "mlp", "--dataset", "digits", *PGD, option, file)
        assert ran.code == 2 and f'"{file}" cannot be written' in ran.err and option in ran.err and ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_dataparallel_prefixes_renames_and_leniency(rtbench: Callable[..., Ran], tmp_path: Path) -> None:
    good = {"fc1.weight": torch.randn(16, 64), "fc1.bias": torch.zeros(16), "fc2.weight": torch.randn(10, 16), "fc2.bias": torch.zeros(10)}
    arguments = ["--arch", "mlp", "--knob", "hidden=[16]", "--dataset", "digits", "--attack", "none", "--format", "json"]
    save_file(good, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in good.items()}, "epoch": 3}, tmp_path / "b.pt")
    save_file({name.replace("fc2", "head"): tensor for name, tensor in good.items()}, tmp_path / "c.safetensors")
    bits = {json.loads(rtbench("evaluate", tmp_path / "a.safetensors", *arguments).out)["bits"]}
    bits.add(json.loads(rtbench("evaluate", tmp_path / "b.pt", *arguments).out)["bits"])
    bits.add(json.loads(rtbench("evaluate", tmp_path / "c.safetensors", *arguments, "--rename", "^head=fc2").out)["bits"])
    assert len(bits) == 1
    strict = rtbench("evaluate", tmp_path / "c.safetensors", *arguments)
    assert strict.code == 2 and "head" in strict.err
    assert rtbench("evaluate", tmp_path / "c.safetensors", *arguments, "--lenient").code == 0


MISTAKES = [
    (["rum"], 'did you mean "run"'),
    (["run", "quik"], 'did you mean "quick"'),
    (["run", "nowhere/x.toml"], "no suite file"),
    (["run", "quick", "--set", "parts.fit.lrr=1"], 'parts.fit.lrr: no knob "lrr"; did you mean "lr"'),
    (["run", "quick", "--set", "parts.fit.epochs=0"], "parts.fit.epochs"),
    (["run", "quick", "--set", "parts.pgd.eps=8/0"], "parts.pgd.eps"),
    (["run", "quick", "--set", "parts.pgd.norm=linff"], "linf"),
    (["run", "quick", "--set", "axes.drop=[1.2]"], "drop"),
    (["run", "quick", "--profile", "smok"], 'no profile "smok"'),
    (["run", "quick", "--only", "recipe=dens"], 'did you mean "dense"'),
    (["run", "quick", "--only", "x"], "--only"),
    (["run", "quick", "--plugin", "nothing.py"], "nothing.py"),
    (["run", "quick", "--budget", "soon"], "soon"),
    (["run", "quick", "--device", "cuda:77"], "cuda:77"),
    (["run", "quick", "--workers", "0"], "workers"),
    (["run", "cosentino2019", "--data", "/nonexistent"], "mnist"),
    (["board", "quick", "--store", "/nonexistent/store"], "no store"),
    (["parts", "magnitud"], 'did you mean "magnitude"'),
    (["show", "abc", "--store", "/nonexistent/store"], "no store"),
    (["plan", "quick", "--set", "parts.aa.norm=l1"], 'parts.aa.norm: autoattack takes linf and l2, not "l1"'),
    (["evaluate", "x.pt", "--arch", "mpl", "--dataset", "digits", "--attack", "none"], 'did you mean "mlp"'),
    (["evaluate", "x.pt", "--arch", "mlp", "--dataset", "digits", "--attack", "pgd"], "norm"),
    (["check", "magnitud"], 'did you mean "magnitude"'),
    (["data", "minst"], 'did you mean "mnist"'),
]


@pytest.mark.parametrize(("arguments", "word"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_mistake_is_one_sentence_exit_code_2_and_nothing_written(
    rtbench: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = rtbench(*arguments)
    assert ran.code == 2 and word in ran.err, ran.err
    assert ran.err.strip().count("\n") == 0 and "Traceback" not in ran.err and ran.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_read_store_can_be_reindexed_merged_and_collected(rtbench: Callable[..., Ran], suite: Path, store: Path, tmp_path: Path) -> None:
    (store / "index.sqlite").unlink()
    count = int(re.match(r"\d+", rtbench("reindex", "--store", store).out)[0])  # type: ignore[index]
    merged = rtbench("merge", store, "--store", tmp_path / "other")
    assert merged.code == 0 and f"{count} stages copied" in merged.out
    assert "0 stages run" in rtbench("run", suite, "--store", tmp_path / "other", "--workers", 1).out
    before = board(rtbench, suite, tmp_path / "other")
    assert rtbench("gc", "--store", tmp_path / "other").code == 2
    dropped = rtbench("gc", suite, "--keep", "none", "--store", tmp_path / "other")
    assert dropped.code == 0 and not list((tmp_path / "other" / "results").glob("*/state*.safetensors"))
    assert board(rtbench, suite, tmp_path / "other") == before
    gone = rtbench("export", before["rows"][0]["state"][0], "--output", tmp_path / "x", "--store", tmp_path / "other")
    assert gone.code == 2 and "dropped" in gone.err


def test_parts_lists_explains_and_doctor_reports(rtbench: Callable[..., Ran]) -> None:
    listed = rtbench("parts")
    assert listed.code == 0 and all(word in listed.out for word in ("magnitude", "vgg", "pgd", "digits", "accuracy"))
    assert "wrn" not in rtbench("parts", "pruner").out
    explained = rtbench("parts", "pgd").out
    assert "restarts" in explained and "arXiv:1706.06083" in explained and "required" in explained
    assert "digits" in rtbench("doctor").out
    assert "1200 train" in rtbench("data", "digits").out


def test_check_passes_a_sound_part(rtbench: Callable[..., Ran]) -> None:
    ran = rtbench("check", "random")
    assert ran.code == 0 and "0 failed" in ran.out


def test_help_names_every_command_without_importing_torch() -> None:
    code = "import sys\nfrom rtbench.cli import cli\ncli.main(['--help'], standalone_mode=False)\nassert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in COMMANDS)


def test_the_shell_completes_commands_and_suites() -> None:
    environment = {**os.environ, "_RTBENCH_COMPLETE": "bash_complete", "COMP_WORDS": "rtbench run qu", "COMP_CWORD": "2"}
    code = "from rtbench.cli import cli; cli(prog_name='rtbench')"
    assert "quick" in subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout


def test_ctrl_c_is_130_and_the_store_goes_on(suite: Path, tmp_path: Path, rtbench: Callable[..., Ran]) -> None:
    command = [
        sys.executable,
        "-m",
        "rtbench.cli",
        "run",
        suite,
        "--store",
        tmp_path / "s",
        "--set",
        "parts.fit.steps=400",
        "--workers",
        "2",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=interruptible,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list((tmp_path / "s").glob("results/*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "again to continue" in err and "Traceback" not in err
    ran = rtbench("run", suite, "--store", tmp_path / "s", "--set", "parts.fit.steps=400", "--workers", 1)
    assert ran.code == 0 and not re.search(r"\b0 already there", ran.out)


def test_a_bug_keeps_its_traceback(tmp_path: Path, suite: Path) -> None:
    code = "import rtbench.commands.study as a, sys\na.study = lambda *x, **y: 1 / 0\nsys.argv = ['rtbench', 'plan', 'quick']\nfrom rtbench.cli import main\nmain()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1 and "ZeroDivisionError" in ran.stderr


def test_only_takes_several_values_of_one_name() -> None:
    assert chosen(["recipe=dense,winning, net=mlp", "hidden=[64, 32],[8]", "recipe=fresh"]) == {
        "recipe": ["dense", "winning", "fresh"], "net": ["mlp"], "hidden": ["[64, 32]", "[8]"],
    }  # fmt: skip
    with pytest.raises(UserError, match="not of the form"):
        chosen(["recipe=dense", "winning"])
