"""A native attack in several processes: the same bits as in one, and whatever ends a process is that attack's failure."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import rtbench
from attacks import one_thread as one_thread
from rtbench import UserError
from rtbench.cli import cli
from rtbench.evaluation.outcome import Outcome, woven
from rtbench.evaluation.witness import ROWS, Shelf, unpacked
from rtbench.live.checkpoint import evaluate_checkpoint


class Dies(nn.Linear):
    """Ends any process but the one that made it."""

    def __init__(self, how: signal.Signals | None) -> None:
        super().__init__(64, 10)
        self.home, self.how = os.getpid(), how

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.home:
            if self.how is None:
                os._exit(7)
            os.kill(os.getpid(), self.how)
        return super().forward(x.flatten(1))


def trained() -> nn.Sequential:
    """A digits network of one hidden layer, as the architecture `mlp` names its parts."""
    x, y = digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / 8)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.tensor(found.images / 16, dtype=torch.float32)[:, None], torch.tensor(found.target)


@pytest.mark.parametrize(("attack", "norm", "eps"), [("autoattack", "linf", "1/8"), ("fmn", "l2", "1/2")])
def test_the_same_bits_as_in_one_process(attack: str, norm: str, eps: str) -> None:
    model, (x, y) = trained(), digits()
    knobs = {"steps": 60} if attack == "fmn" else {}
    one, three = (
        rtbench.evaluate(model, x, y, attack, norm, eps, samples=99, batch=32, knobs=knobs, workers=workers) for workers in (1, 3)
    )
    assert one.failures == three.failures == {} and 0 < one.accuracy < one.clean
    for name, bits in one.outcomes.items():
        assert torch.equal(bits, three.outcomes[name])
    first, other = one.attacks[attack], three.attacks[attack]
    assert first.attribution == other.attribution and first.flags == other.flags
    robust = one.outcomes["robust"]
    for name, passes in first.per_sample.items():  # of others some tries may have been under way when one of them broke the sample
        assert torch.equal(passes[robust], other.per_sample[name][robust])
    assert other.passes["forwards"] >= int(other.per_sample["forwards"].sum()) > 0


def test_a_checkpoint_with_its_evidence(tmp_path: Path) -> None:
    weights = {name.replace("1.", "fc1.").replace("3.", "fc2."): value for name, value in trained().state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    how = {"knobs": ["hidden=[32]"], "attack_knobs": ["steps=10"], "norm": "linf", "eps": "1/5"}
    one, two = (
        evaluate_checkpoint(
            str(tmp_path / "w.safetensors"), "mlp", "digits", "apgd", workers=n, witness=str(tmp_path / f"{n}"), batch=64, **how
        )
        for n in (1, 2)
    )  # fmt: skip
    assert {**one, "seconds": 0, "passes": 0, "witness": 0} == {**two, "seconds": 0, "passes": 0, "witness": 0}
    ids = [load_file(tmp_path / f"{n}")["ids"] for n in (1, 2)]
    assert torch.equal(ids[0].sort().values, ids[1].sort().values) and len(ids[0]) > ROWS  # a chunk is full
    arguments = [
        "evaluate",
        str(tmp_path / "w.safetensors"),
        "--arch",
        "mlp",
        "--knob",
        "hidden=[32]",
        "--dataset",
        "digits",
        "--attack",
        "apgd",
    ]
    arguments += ["--attack-knob", "steps=10", "--norm", "linf", "--eps", "1/5", "--batch", "64", "--workers", "2"]
    done = CliRunner().invoke(cli, [*arguments, "--witness", str(tmp_path / "e"), "--output", str(tmp_path / "r.json"), "--format", "json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["bits"] == one["bits"]
    checked = CliRunner().invoke(cli, ["verify", str(tmp_path / "r.json")])
    assert checked.exit_code == 0, checked.output
    both = CliRunner().invoke(cli, [*arguments, "--threads", "2"])
    assert isinstance(both.exception, UserError) and "--threads and --workers" in str(both.exception)


def test_what_ends_a_process_is_a_failure_and_no_robust_sample() -> None:
    x, y = digits()
    for how, said in ((signal.SIGKILL, "was killed by SIGKILL (out of memory?)"), (None, "exited with code 7")):
        found = rtbench.evaluate(Dies(how), x, y, "apgd", "linf", "1/10", samples=80, workers=2)
        assert found.worst == "incomplete" and found.accuracy is None
        assert found.failures == {"apgd": f"one of the attack's processes {said}"}


def test_mistakes_are_told_as_in_one_process() -> None:
    model, (x, y) = trained(), digits()
    with pytest.raises(UserError, match="takes linf and l2"):
        rtbench.evaluate(model, x, y, "apgd", "l1", 1, samples=80, workers=2)
    with pytest.raises(UserError, match=r"workers: 0 is not a whole number from 1"):
        rtbench.evaluate(model, x, y, "apgd", "linf", "1/10", workers=0)

    class Local(nn.Sequential):
        """Cannot be found by another process."""

    with pytest.raises(UserError, match=r"model: it cannot be sent to another process .*Local.*use workers=1"):
        rtbench.evaluate(Local(*model), x, y, "apgd", "linf", "1/10", workers=2)
    Local.__qualname__ = "Elsewhere"
    globals()["Elsewhere"] = Local  # it can be sent, as a class of a notebook can, but the other side lacks it
    with pytest.raises(UserError, match=r"another process cannot rebuild it .*Elsewhere.*use workers=1"):
        rtbench.evaluate(Local(*model), x, y, "apgd", "linf", "1/10", samples=80, workers=2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_is_dealt_out_comes_together_again(count: int) -> None:
    n = 1100
    rng = torch.Generator().manual_seed(count)
    x = torch.rand(n, 1, 2, 2, generator=rng)
    near = (x + 0.1 * torch.rand(x.shape, generator=rng)).clamp(0, 1)
    bits, numbers = torch.rand(n, generator=rng) < 0.5, torch.rand(n, generator=rng)
    ids = torch.randperm(5000, generator=rng)[:n]
    inner, passes = {"a": ~bits, "b": bits}, {"forwards": ids + 1}
    whole = Outcome(ids, ids % 10, bits, ~bits, numbers, -numbers, inner, passes, ["x", "y"], points=near)
    parts = []
    for part in range(count):
        here = torch.arange(part, n, count)
        shelf = Shelf()
        shelf.add(ids[here], x[here], near[here])
        columns = {name: value[here] for name, value in vars(whole).items() if isinstance(value, Tensor)}
        tables = {name: {key: value[here] for key, value in getattr(whole, name).items()} for name in ("inner", "passes")}
        parts.append(replace(whole, **columns, **tables, flags=["x"] if part else ["x", "y"], shelf=shelf))
    found = woven(parts)
    for name, value in vars(whole).items():
        if isinstance(value, Tensor):
            assert torch.equal(value, getattr(found, name)), name
    assert all(torch.equal(value, found.inner[name]) for name, value in inner.items()) and found.flags == ["x", "y"]
    assert torch.equal(found.passes["forwards"], passes["forwards"])
    position = {int(id_): at for at, id_ in enumerate(ids)}
    seen = 0
    assert found.shelf is not None
    for there, points in unpacked(found.shelf.tensors(), lambda wanted: torch.stack([x[position[int(i)]] for i in wanted])):
        assert torch.equal(points, torch.stack([near[position[int(i)]] for i in there]))
        seen += len(there)
    assert seen == n == len(set(found.shelf.ids.tolist()))
