"""Damaged, lost and foreign files: the next run mends what they were, the board never shows a wrong number, nothing else is lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rtbench
from rtbench.commands import api
from rtbench.planning.plan import Plan
from rtbench.running.schedule import usable
from rtbench.storage.results import Corrupt, Missing, Results
from rtbench.storage.store import Store
from studies import SUITE, numbers, run, stages, tree, write

TEXT = SUITE.replace("drop = [0.5, 0.9]", "drop = [0.5]").replace("epochs = 2", 'steps = 6, snapshots = ["step-2"]')
CHOICES: dict[str, Any] = {"only": {"recipe": ["sparse"]}}


class Whole:
    """A finished study: its suite, plan, board and files."""

    def __init__(self, folder: Path) -> None:
        self.suite, self.store = write(folder, TEXT), folder / "whole"
        self.board = run(self.suite, self.store, **CHOICES)
        self.plan: Plan = api.plan(self.suite, device="cpu", **CHOICES)
        self.tree, self.numbers = tree(self.store), numbers(self.board)

    def copy(self, folder: Path, index: bool) -> Path:
        """The same with its index up to date, or without one."""
        shutil.copytree(self.store, folder, copy_function=shutil.copy2)
        if not index:
            (folder / "index.sqlite").unlink()
        return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


def half(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def delete(path: Path, other: Path) -> None:
    path.unlink()


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def garbage(path: Path, other: Path) -> None:
    path.write_text('{"digest": "x", "records": [NaN], "stage": 3, "a": "\\ud800"}')


def deep(path: Path, other: Path) -> None:
    path.write_text("[" * 100_000)


def foreign(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


Damage = Callable[[Path, Path], None]
DAMAGES: list[Damage] = [half, flip, delete, empty, folder, garbage, deep, foreign]
TARGETS = [
    ("train", "record.json"), ("train", "state.safetensors"), ("train", "state.step-2.safetensors"), ("prune", "record.json"),
    ("prune", "state.safetensors"), ("probe", "record.json"), ("probe", "samples.safetensors"), ("probe", "provenance.json"),
]  # fmt: skip


def target(plan: Plan, verb: str, name: str) -> tuple[str, str]:
    """The key of a stage of this verb, and of another that has a file of this name."""
    found = [stage for stage in stages(plan, verb) if verb != "probe" or stage.part["use"] == "accuracy"]
    others = [
        stage for stage in plan.stages.values() if stage.key != found[0].key and (stage.verb != "probe") == name.startswith("state.s")
    ]
    return found[0].key, others[-1].key


def within(found: list[Any], expected: list[Any]) -> bool:
    """Whether every number is the right one, or is not there."""
    cells = zip(found, expected, strict=True)
    return all(
        value in (None, right[2][name][i]) for row, right in cells for name, values in row[2].items() for i, value in enumerate(values)
    )


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_mended_by_the_next_run(whole: Whole, tmp_path: Path, damage: Damage, index: bool) -> None:
    for i, (verb, name) in enumerate(TARGETS):
        store = whole.copy(tmp_path / str(i), index)
        key, other = target(whole.plan, verb, name)
        source = store / "results" / other / name
        damage(store / "results" / key / name, source if source.exists() else store / "results" / key / "record.json")
        seen = rtbench.board(whole.suite, store=store, device="cpu", **CHOICES)
        assert within(numbers(seen), whole.numbers), (verb, name)
        board = run(whole.suite, store, **CHOICES)
        assert not board.tally.failed and board.tally.done <= 1, (verb, name)
        assert numbers(board) == whole.numbers, (verb, name)
        after = {path: digest for path, digest in tree(store).items() if ".corrupt-" not in path}
        dropped = {f"{key}/{name}"} if name.startswith("state.") and damage is delete else set()
        assert after == {path: digest for path, digest in whole.tree.items() if path not in dropped}, (verb, name)
        moved = list((store / "results").glob(f"{key}.corrupt-*"))
        assert len(moved) == (not dropped and name != "provenance.json"), (verb, name)
        assert run(whole.suite, store, **CHOICES).tally.done == 0


def test_large_weights_that_changed_are_read_and_those_new_to_an_index_only_measured(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtbench.storage.results.SMALL", 100)
    for damage, index, noticed in ((half, True, True), (flip, True, True), (half, False, True), (flip, False, False)):
        store = whole.copy(tmp_path / f"{damage.__name__}{index}", index)
        key = stages(whole.plan, "prune")[0].key
        damage(store / "results" / key / "state.safetensors", store)
        assert run(whole.suite, store, **CHOICES).tally.done == noticed
        if not noticed:
            with pytest.raises(Corrupt, match="does not match its record"):
                Results(store).state_bytes(key)


def test_a_damaged_provenance_takes_its_times_off_the_board_and_nothing_else(whole: Whole, tmp_path: Path) -> None:
    text = TEXT.replace("density = {", 'cost = { use = "cost", at = "last" }\ndensity = {')
    suite, store = write(tmp_path, text), whole.copy(tmp_path / "store", True)
    board = run(suite, store, **CHOICES)
    (row,) = board.rows
    assert row.probes["cost.seconds"].mean is not None
    key = row.keys["cost"][0]
    (provenance, other) = (store / "results" / k / "provenance.json" for k in (key, row.keys["density"][0]))
    content = json.loads(provenance.read_text())
    for damaged in (
        json.dumps({**content, "timings": {"seconds": 1e9}}), json.dumps({"timings": 5, "seconds": [1]}), "[]", "\0", other.read_text(),
    ):  # fmt: skip
        provenance.write_text(damaged)
        (store / "index.sqlite").unlink()
        again = run(suite, store, **CHOICES)
        assert again.tally.done == 0 and Results(store).provenance(key) == {}
        assert again.rows[0].probes["cost"].values == row.probes["cost"].values
        assert "cost.seconds" not in again.rows[0].probes
    provenance.write_text(json.dumps(content))
    assert Results(store).provenance(key)["timings"] == content["timings"]


def test_unknown_times_are_not_counted_as_none(whole: Whole, tmp_path: Path) -> None:
    store = whole.copy(tmp_path / "store", True)
    train = stages(whole.plan, "train")[0].key
    (store / "results" / train / "provenance.json").unlink()
    text = TEXT.replace("density = {", 'cost = { use = "cost", at = "last" }\ndensity = {')
    (row,) = run(write(tmp_path, text), store, **CHOICES).rows
    assert row.probes["cost"].mean is not None and "cost.seconds" not in row.probes and "cost.seconds.prune" in row.probes


def unnoticed(path: Path) -> None:
    """Bit rot: another byte, the same size and times."""
    stat = path.stat()
    flip(path, path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("workers", [1, 2])
def test_damage_that_only_reading_can_find_is_mended_when_it_is_read(whole: Whole, tmp_path: Path, workers: int) -> None:
    """Both inputs of a stage are rotten, and so is the input of one of these."""
    store = whole.copy(tmp_path / "store", True)
    first, second = stages(whole.plan, "train")
    (prune,) = stages(whole.plan, "prune")
    for key in (second.key, first.key, prune.key, second.inputs["weights"]):
        unnoticed(store / "results" / key / "state.safetensors")
    shutil.rmtree(store / "results" / second.key)
    board = run(whole.suite, store, workers=workers, **CHOICES)
    assert not board.tally.failed and board.tally.done == 4 and board.tally.cached == len(whole.plan.stages) - 4
    assert numbers(board) == whole.numbers
    assert {path: digest for path, digest in tree(store).items() if ".corrupt-" not in path} == whole.tree
    assert len(list((store / "results").glob("*.corrupt-1"))) == 3


def test_a_lost_snapshot_is_made_again_where_it_is_needed(whole: Whole, tmp_path: Path) -> None:
    text = TEXT.replace('{ rewind = "init" }', '{ rewind = "begun/step-2" }').replace(
        '{ train = "fit" }, { prune', '{ train = "fit", as = "begun" }, { prune'
    )
    suite, store = write(tmp_path, text), whole.copy(tmp_path / "store", True)
    first = stages(whole.plan, "train")[0].key
    (store / "results" / first / "state.step-2.safetensors").unlink()
    board = run(suite, store, **CHOICES)
    assert not board.tally.failed and board.tally.done == 1 + 1 + 2
    assert tree(store).items() >= whole.tree.items()


def test_folders_that_are_no_results(whole: Whole, tmp_path: Path) -> None:
    store = whole.copy(tmp_path / "store", True)
    key = stages(whole.plan, "train")[0].key
    results = store / "results"
    (results / "notes").mkdir()
    (results / "notes" / "mine.txt").write_text("keep this")
    (results / ".DS_Store").write_bytes(b"\0")
    (results / ("0" * 24)).mkdir()
    (results / f"{key}.failed").mkdir()
    shutil.rmtree(results / key)
    (results / key).write_text("a file in its place")
    board = run(whole.suite, store, **CHOICES)
    assert board.tally.done == 1 and numbers(board) == whole.numbers
    assert (results / "notes" / "mine.txt").read_text() == "keep this" and (results / ".DS_Store").exists()
    assert (results / f"{key}.corrupt-1").read_text() == "a file in its place"
    assert (results / f"{'0' * 24}.corrupt-1").is_dir()


def test_damage_of_one_stage_twice_moves_both_aside(whole: Whole, tmp_path: Path) -> None:
    store = whole.copy(tmp_path / "store", True)
    key = stages(whole.plan, "probe")[0].key
    for n in (1, 2):
        half(store / "results" / key / "record.json", store)
        assert run(whole.suite, store, **CHOICES).tally.done == 1
        assert (store / "results" / f"{key}.corrupt-{n}").is_dir()


def test_what_another_process_has_mended_meanwhile_is_left_alone(whole: Whole, tmp_path: Path) -> None:
    store = Store(whole.copy(tmp_path / "store", True))
    mended, broken = store.finished()[:2]
    half(store.folder(broken) / "record.json", store.path)
    done = set(store.finished()) - {mended, broken}
    assert usable(store, done, [mended, broken]) == done | {mended}
    assert store.has(mended) and not store.folder(broken).exists()


def test_interrupted_work_that_is_damaged_starts_over(whole: Whole, tmp_path: Path) -> None:
    for i, content in enumerate((b"", b"\0" * 100, b"half")):
        store = tmp_path / str(i)
        run(whole.suite, store, budget=0.0, **CHOICES)
        for key in whole.plan.stages:
            (store / "partial" / key).mkdir(exist_ok=True)
            (store / "partial" / key / "loop.pt").write_bytes(content)
            (store / "partial" / f"{key}.abcd").mkdir()
        assert not run(whole.suite, store, **CHOICES).tally.failed
        assert tree(store) == whole.tree and not list((store / "partial").iterdir())


def test_what_is_read_says_what_is_wrong(whole: Whole, tmp_path: Path) -> None:
    store = Results(whole.copy(tmp_path / "store", True))
    train, probe = stages(whole.plan, "train")[0].key, target(whole.plan, "probe", "samples.safetensors")[0]
    with pytest.raises(Missing, match='kept no state "nothing"'):
        store.state_bytes(f"{train}/nothing")
    with pytest.raises(Missing, match="has no weights"):
        store.state_bytes(probe)
    with pytest.raises(Missing, match="has no samples"):
        store.samples_bytes(train)
    with pytest.raises(Missing, match="there is no result"):
        store.record("f" * 24)
    (store.folder(train) / "state.safetensors").unlink()
    assert not store.complete(train) and store.sound(train), "weights may be dropped"
    with pytest.raises(Missing, match="was dropped"):
        store.state_bytes(train)
    (store.folder(probe) / "samples.safetensors").unlink()
    assert not store.sound(probe), "samples may not"
