"""Hostile attacks, as plugin files: every one is contained, the other rows are there, and none makes a network look more robust."""

from __future__ import annotations

import functools
import gc
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from test_judge import split

from rtbench.commands import api
from rtbench.data.splits import Split
from rtbench.engine.loop import Loop
from rtbench.engine.state import unpack
from rtbench.evaluation.judge import AttackFailure, Judged, Outcome
from rtbench.evaluation.process import same_process
from rtbench.parts.threats import Threat
from rtbench.plugins import catalogue
from rtbench.storage.results import Results
from studies import SUITE, python, run, stages, write

FILE = str(Path(__file__).parent / "hostile.py")
FAILS = {
    "raises": "raised IndexError: off by one", "raises-out-of-budget": "raised OutOfBudget", "raises-store-error": "the disk is full, honestly",
    "recurses": "raised RecursionError", "sys-exit": "raised SystemExit: 0", "eats-memory": "memory", "nan": "not finite",
    "infinite": "not finite", "shape": "not images of shape", "short": "not images of shape", "meta": "raised NotImplementedError",
    "nothing": "returned NoneType", "lazy": "returned Lazy", "liar": "returned Liar", "odd-outcomes": "not one bit per sample",
    "changes-images": "changed its input", "changes-labels": "changed its input", "changes-weights": "changed head.weight of the model",
    "changes-statistics": "changed norm.", "doubles-the-model": "changed norm", "changes-class": "changed the network",
    "patches-call": "left Net.__call__ changed", "patches-argmax": "argmax", "patches-eq": "left Tensor.__eq__ changed",
    "patches-builtins": "left builtins.bool changed", "patches-the-judge": "left rtbench.evaluation.judge.correct changed",
    "leaves-a-mode": "left Always changed", "raises-stop-iteration": "raised StopIteration", "raises-generator-exit": "raised GeneratorExit",
    "sparse": "raised NotImplementedError", "patches-a-class-of-the-judge": "left Proposer.admit changed",
    "patches-a-base-class": "left _BatchNorm.forward changed", "patches-fractions": "left Fraction.__float__ changed",
}  # fmt: skip
"""Why each of these fails."""
DIES = {
    "hangs": "gave no sign of life", "stops-itself": "gave no sign of life", "forks-and-hangs": "gave no sign of life",
    "os-exit": "exited with code 0", "kills-itself": "was killed by SIGKILL", "segfaults": "was killed by SIGSEGV",
    "raises-keyboard-interrupt": "exited with code 1",
}  # fmt: skip
"""Likewise, of those that take the worker with them."""
IDLE = ("clean", "view")
HONEST = (
    "honest", "far", "double", "requires-grad", "parameter", "changes-forward", "leaves-hooks", "leaves-train-mode", "leaves-gradients",
    "leaves-seeds", "leaves-settings", "leaves-another-device", "prints", "changes-folder", "closes-streams",
    "inference", "leaves-hooks-on-all-modules", "leaves-hooks-on-weights", "leaves-limits", "leaves-an-alarm",
)  # fmt: skip
"""What these leave behind is put back, and their points are judged as those of an honest attack."""
ONLY_APART = ("leaves-a-thread", "forks-a-double", "forks-a-sleeper", "deletes-files")
"""Likewise, but only a worker contains them."""
HOWS = (*FAILS, *DIES, *IDLE, *HONEST, *ONLY_APART)


def probes() -> str:
    head = 'use = "accuracy", samples = 30, at = "last"'
    lines = [f'h-{how} = {{ {head}, attack = {{ use = "hostile", norm = "linf", eps = 0.1, how = "{how}" }} }}' for how in HOWS]
    return "\n".join([*lines, f"h-plain = {{ {head} }}", ""])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], dict[str, float | None], dict[str, str]]:
    """(folder, reasons of failed probes, means, keys): the whole of them in one suite, with what they leave in a folder."""
    folder = tmp_path_factory.mktemp("hostile")
    text = SUITE.replace("[probes]", f"[probes]\n{probes()}").replace('"mlp", hidden = [16]', '"normed"')
    os.environ["RTBENCH_HOSTILE"] = str(folder)
    choices: dict[str, Any] = {"plugins": [FILE], "only": {"recipe": ["dense"]}}
    try:
        path = write(folder, text)
        board = run(path, folder / "store", timeout=4.0, **choices)
        plan = api.plan(path, device="cpu", **choices)
    finally:
        del os.environ["RTBENCH_HOSTILE"]
    keys = {stage.part["knobs"]["attack"]["knobs"].get("how", "plain"): stage.key for stage in stages(plan, "probe")
            if stage.part["use"] == "accuracy" and stage.part["knobs"]["samples"] == 30}  # fmt: skip
    reasons = {how: board.tally.failed[key] for how, key in keys.items() if key in board.tally.failed}
    (row,) = board.rows
    return folder, reasons, {how: row.probes[f"h-{how}"].mean if f"h-{how}" in row.probes else None for how in keys}, keys


def test_every_hostile_attack_fails_for_its_reason_or_is_judged(ran: Any) -> None:
    _, reasons, means, _ = ran
    assert set(means) == {*HOWS, "plain"} and set(reasons) == FAILS.keys() | DIES.keys()
    for how, why in {**FAILS, **DIES}.items():
        assert why in reasons[how] and means[how] is None, f"{how}: {reasons[how]}"


def test_accuracy_never_rises(ran: Any) -> None:
    means = ran[2]
    clean, honest = means["plain"], means["honest"]
    assert honest < clean, "the attack works"
    assert {how: means[how] for how in IDLE} == dict.fromkeys(IDLE, clean)
    assert {how: means[how] for how in (*HONEST, *ONLY_APART)} == dict.fromkeys((*HONEST, *ONLY_APART), honest)


def test_sample_by_sample_too(ran: Any) -> None:
    folder, _, means, keys = ran
    results = Results(folder / "store")
    bits = {how: unpack(results.samples_bytes(keys[how]))[0] for how, mean in means.items() if mean is not None}
    for how in (*HONEST, *ONLY_APART):
        assert all(torch.equal(bits[how][name], bits["honest"][name]) for name in ("ids", "clean", "robust")), how


@pytest.mark.parametrize("name", ["sleeper", "orphan"])
def test_what_an_attack_forked_does_not_survive(ran: Any, name: str) -> None:
    folder = ran[0]
    child = int((folder / name).read_text())
    for _ in range(50):
        status = Path(f"/proc/{child}/status")
        if not status.exists() or "\nState:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    pytest.fail("it still runs")


def known() -> Split:
    """Images whose labels the network knows."""
    x = split().x
    with torch.no_grad():
        return Split(x, network().eval()(x).argmax(1), torch.arange(len(x)))


def in_process(how: str, model: Any, data: Split) -> Outcome:
    attack = functools.partial(catalogue([FILE]).get("attack", "hostile").function, how=how)
    return Judged(attack, Threat("linf", Fraction(1, 10)), 5, "hostile")(model, data, torch.arange(len(data)), Loop())


def network() -> Any:
    torch.manual_seed(0)
    return catalogue([FILE]).get("architecture", "normed").function((1, 3, 3), 10)


@pytest.mark.parametrize("how", [how for how in FAILS if how != "eats-memory"])
def test_in_this_process_a_failure_leaves_model_and_process_alone(how: str) -> None:
    torch.set_num_threads(1)
    model, data = network(), known()
    kind, before = type(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    patched = (torch.argmax, torch.Tensor.argmax, torch.Tensor.__eq__, torch.nn.Module.__call__, bool)
    with pytest.raises(AttackFailure, match=FAILS[how]):
        in_process(how, model, data)
    assert type(model) is kind and patched == (torch.argmax, torch.Tensor.argmax, torch.Tensor.__eq__, torch.nn.Module.__call__, bool)
    assert all(tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (
        torch._C._len_torch_function_stack() == 0
        and in_process("clean", model, data).accuracy == in_process("view", network(), data).accuracy
    )


@pytest.mark.parametrize("name", ["_spaces", "_put_back"])
def test_an_interrupt_leaves_no_file_open(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    before = len(os.listdir("/dev/fd"))
    monkeypatch.setattr(f"rtbench.evaluation.process.{name}", interrupted)
    with pytest.raises(KeyboardInterrupt), same_process(network()):
        pass
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("how", [how for how in HONEST if how != "closes-streams"])
def test_in_this_process_what_is_left_is_put_back(how: str) -> None:
    torch.set_num_threads(1)

    def world() -> list[Any]:
        return [
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
            torch.is_autocast_enabled("cpu"), torch.get_float32_matmul_precision(), torch.get_default_device(), dict(os.environ), os.getcwd(),
            torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(), threading.active_count(), os.fstat(1).st_ino,
            sys.getrecursionlimit(), list(warnings.filters), gc.isenabled(), numpy.geterr(), sys.getprofile(),
            resource.getrlimit(resource.RLIMIT_NOFILE), signal.getsignal(signal.SIGTERM), len(torch.nn.modules.module._global_forward_hooks),
            os.umask(0o77), os.umask(0o22), [p._backward_hooks for p in model.parameters() if p._backward_hooks],
        ]  # fmt: skip

    model, timer = network(), signal.getitimer(signal.ITIMER_REAL)[0]
    os.umask(0o22)
    before = world()
    found = in_process(how, model, known())
    assert (
        world() == before
        and (timer or not signal.getitimer(signal.ITIMER_REAL)[0])
        and torch.equal(found.robust, in_process("honest", network(), known()).robust)
    )


def test_streams_that_an_attack_closed_are_open_again() -> None:
    code = """
    import sys
    from test_hostile import in_process, known, network
    in_process("closes-streams", network(), known())
    print("out")
    print("err", file=sys.stderr)
    """
    done = python(code)
    assert done.returncode == 0 and done.stdout == "out\n" and done.stderr.endswith("err\n")


def test_parts_that_are_not_built_in_run_in_a_worker_whatever_is_said(tmp_path: Path) -> None:
    """Nested ones too; with built-in parts one worker is this process."""
    text = SUITE.replace(
        "density = {",
        'who = { use = "accuracy", samples = 9, attack = { use = "hostile", norm = "linf", eps = 0.1, how = "os-exit" }, at = "last" }\ndensity = {',
    )
    board = run(write(tmp_path, text), tmp_path / "store", plugins=[FILE], only={"recipe": ["dense"]})
    assert list(board.tally.failed.values()) == ["its worker process exited with code 0"] and board.tally.done == 4
