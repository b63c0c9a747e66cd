"""The loop alone: resumed at every border it gives the same bytes; what is damaged starts over."""

from __future__ import annotations

import copy
import errno
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from rtbench.engine.loop import Loop, OutOfBudget
from rtbench.errors import StoreError
from rtbench.evaluation.guard import own_randomness
from rtbench.parts.masks import Masks, ones


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power here, and threads only get in each other's way."""
    torch.set_num_threads(1)
    monkeypatch.setattr("os.fsync", lambda handle: None)


class Killed(BaseException):
    """Stands for SIGKILL."""


class Mortal(Loop):
    """Saves at every border and dies after a number of them."""

    def __init__(self, *given: Any, lives: float = float("inf"), **named: Any) -> None:
        super().__init__(*given, seconds=-1.0, **named)
        self.lives = lives

    def _border(self, *given: Any) -> None:
        super()._border(*given)
        self.lives -= 1
        if self.lives <= 0:
            raise Killed


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.ReLU(), nn.Linear(5, 3))


Part = Callable[[nn.Module, Masks, torch.Generator, Loop], Any]
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


def trainer(optimizer: str) -> Part:
    """Two loops with code between them; draws from the stage's generator and from all global ones."""

    def train(model: nn.Module, masks: Masks, rng: torch.Generator, loop: Loop) -> Any:
        opt, total, best, seen = OPTIMIZERS[optimizer](model.parameters()), torch.zeros(()), dict[str, Any](), list[int]()
        scheduler = torch.optim.lr_scheduler.StepLR(opt, 3)
        model.train()
        for step in loop(range(7), state={"opt": opt, "total": total, "best": best, "seen": seen, "schedule": scheduler}):
            x = torch.randn(8, 6, generator=rng) + torch.randn(6) + random.random() + float(numpy.random.rand())
            value = model(x).square().mean()
            opt.zero_grad()
            value.backward()
            opt.step()
            scheduler.step()
            total += value.detach()
            seen.append(step)
            if not best or float(value.detach()) < best["value"]:
                best.update(value=float(value.detach()), state=copy.deepcopy(model.state_dict()))
            loop.log(step, "loss", float(value.detach()))
            if step == 4:
                loop.keep("four")
        masks["0.weight"].copy_(model.get_parameter("0.weight").detach().abs() > model.get_parameter("0.weight").detach().abs().median())
        model.get_parameter("4.bias").data += torch.rand(3, generator=rng)
        loop.log(7, "between", float(total))
        scores = torch.zeros(5)
        for i in loop([3, 1, 4], state={"scores": scores}):
            scores[i] += model.get_parameter("4.weight").detach().abs().sum() * torch.rand(()) + masks["0.weight"].float().mean()
            model.get_parameter("4.weight").data *= 1.1
            loop.counts["forwards"] = loop.counts.get("forwards", 0) + i
        for _ in loop([]):
            raise AssertionError
        for i in loop(range(5), state={}):
            if i == 2:
                break
            loop.log(i, "early", float(scores[i]))
        for i in loop(range(2)):
            loop.log(i, "last", float(torch.rand(())))
        return total, best, seen, scores, opt.state_dict(), scheduler.state_dict()

    return train


def stage(part: Part, file: Path | None, lives: float = float("inf")) -> list[Any]:
    """Everything that a stage leaves behind."""
    model = network()
    masks, rng = ones(model), torch.Generator().manual_seed(5)
    loop = Mortal(model, masks, rng, file, counts={}, lives=lives)
    with own_randomness(9):
        returned = part(model, masks, rng, loop)
        draws = [torch.rand(2), torch.rand(2, generator=rng), random.random(), numpy.random.rand()]
    return [returned, model.state_dict(), masks, loop.records, loop.kept, loop.counts, draws]


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return bool(a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_killed_at_each_border_it_ends_the_same(tmp_path: Path, optimizer: str) -> None:
    part = trainer(optimizer)
    whole, borders = stage(part, None), 7 + 3 + 2 + 2
    for lives in range(1, borders + 1):
        file = tmp_path / f"{lives}.pt"
        with pytest.raises(Killed):
            stage(part, file, lives)
        assert alike(stage(part, file), whole), f"killed at border {lives}"
    file = tmp_path / "every.pt"
    for _ in range(borders - 1):  # killed again and again, one item further each time
        with pytest.raises(Killed):
            stage(part, file, 1)
    assert alike(stage(part, file), whole)


def test_saving_changes_nothing(tmp_path: Path) -> None:
    assert alike(stage(trainer("adam"), tmp_path / "loop.pt"), stage(trainer("adam"), None))


def test_what_is_not_whole_starts_over(tmp_path: Path) -> None:
    part, file = trainer("adam"), tmp_path / "loop.pt"
    whole = stage(part, None)
    with pytest.raises(Killed):
        stage(part, file, 9)
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    for damage in (content[:-1], content[:40], content[:10], b"", bytes(flipped), b"\0" * 500, content + b"x"):
        file.write_bytes(damage)
        assert alike(stage(part, file), whole)
    file.unlink()
    file.mkdir()
    loop = Loop(network(), file=file, seconds=1e9)
    assert list(loop(range(3))) == [0, 1, 2]


def test_what_a_killed_save_left_behind_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".loop.pt.4711").write_bytes(b"half")
    Loop(file=tmp_path / "loop.pt")
    assert not list(tmp_path.iterdir())


def test_state_is_restored_in_place_and_nothing_else_is_accepted(tmp_path: Path) -> None:
    for wrong in (3, 0.5, "text", (1, 2), {1, 2}, None):
        with pytest.raises(TypeError, match=r'loop state "it" of type .* cannot be restored in place'):
            next(iter(Loop()(range(2), state={"it": wrong})))
    tensor, numbers, table = torch.zeros(2, dtype=torch.int16), [0], {"a": torch.zeros(1)}
    alias = tensor
    loop = Mortal(file=tmp_path / "loop.pt", lives=2)
    with pytest.raises(Killed):
        for i in loop(range(3), state={"t": tensor, "n": numbers, "d": table}):
            tensor += i + 1
            numbers.append(i)
            table[f"x{i}"] = torch.full((2,), i)
    tensor.zero_()
    numbers[:] = [9]
    table.clear()
    for _ in Loop(file=tmp_path / "loop.pt")(range(3), state={"t": tensor, "n": numbers, "d": table}):
        break
    assert alias.tolist() == [3, 3] and numbers == [0, 0, 1] and list(table) == ["a", "x0", "x1"]


def test_state_that_could_not_be_read_again_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    class Own:
        pass

    for own in (Own(), Path(), numpy.float64(1)):
        loop = Loop(file=tmp_path / "loop.pt", seconds=-1.0)
        with pytest.raises(TypeError, match="may hold tensors, numbers, texts"):
            for _ in loop(range(2), state={"it": {"own": own}}):
                pass
        assert not list(tmp_path.iterdir())


def test_loops_do_not_nest() -> None:
    loop = Loop()
    with pytest.raises(RuntimeError, match="follow each other"):
        for _ in loop(range(2)):
            for _ in loop(range(2)):
                pass


def test_out_of_budget_saves_and_continues(tmp_path: Path) -> None:
    part, file, seen = trainer("momentum"), tmp_path / "loop.pt", 0
    whole = stage(part, None)

    def late(**named: Any) -> list[Any]:
        model = network()
        masks, rng = ones(model), torch.Generator().manual_seed(5)
        loop = Loop(model, masks, rng, file, seconds=1e9, counts={}, **named)
        with own_randomness(9):
            returned = part(model, masks, rng, loop)
            draws = [torch.rand(2), torch.rand(2, generator=rng), random.random(), numpy.random.rand()]
        return [returned, model.state_dict(), masks, loop.records, loop.kept, loop.counts, draws]

    while True:
        try:
            result = late(deadline=time.monotonic() - 1)
            break
        except OutOfBudget:
            seen += 1
    assert seen == 6 + 2 + 2 + 1, "one item per try; the last item of a loop needs no try of its own"
    assert alike(result, whole)


def test_a_part_that_catches_everything_does_not_swallow_the_end_of_the_budget(tmp_path: Path) -> None:
    loop = Loop(file=tmp_path / "loop.pt", deadline=time.monotonic() - 1)
    with pytest.raises(OutOfBudget):
        try:
            for _ in loop(range(3)):
                pass
        except Exception:
            pytest.fail("it was caught")


def test_no_deadline_is_kept_where_nothing_can_be_saved() -> None:
    assert list(Loop()(range(3))) == [0, 1, 2]


def test_time_of_earlier_tries_counts(tmp_path: Path) -> None:
    loop = Mortal(file=tmp_path / "loop.pt", lives=1)
    with pytest.raises(Killed):
        for _ in loop(range(2)):
            time.sleep(0.05)
    again = Loop(file=tmp_path / "loop.pt")
    assert again.spent == 0 and list(again(range(2))) == [1] and again.spent >= 0.05


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="is full"):
        for _ in Loop(file=tmp_path / "loop.pt", seconds=-1.0)(range(2)):
            pass
    assert not list(tmp_path.iterdir())


def test_names_of_kept_states_stay_inside_the_folder() -> None:
    loop = Loop(network())
    loop.keep("best-clean")
    for name in ("../x", "a/b", "", ".hidden", "a b"):
        with pytest.raises(ValueError, match="cannot be called"):
            loop.keep(name)
    assert list(loop.kept) == ["best-clean"]


def test_progress_is_told_at_most_a_few_times_a_second() -> None:
    told: list[tuple[int, int]] = []
    loop = Loop(progress=lambda done, total: told.append((done, total)))
    started = time.monotonic()
    for i in loop(range(300)):
        time.sleep(0.25 if i in (100, 200) else 0)
    assert 2 <= len(told) <= (time.monotonic() - started) / 0.2 and all(total == 300 for _, total in told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
