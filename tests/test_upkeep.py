"""Merging, dropping weights, exporting: no record is ever lost, no number ever changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rtbench.commands import api
from rtbench.commands.upkeep import clean, exported, gc, merge, resolve
from rtbench.engine.state import unpack
from rtbench.errors import UserError
from rtbench.storage.results import Results
from rtbench.storage.store import Store
from studies import SUITE, numbers, run, stages, tree, values, write

MORE = SUITE.replace("density = {", 'loss = { use = "loss", at = "last" }\ndensity = {')


def weights(store: Path) -> dict[str, int]:
    """The weights that are kept, with their sizes in bytes."""
    return {path.parent.name: path.stat().st_size for path in (store / "results").glob("*/state*.safetensors")}


def records(store: Path) -> dict[str, str]:
    return {name: digest for name, digest in tree(store).items() if not name.endswith(".safetensors") or "samples" in name}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[Any]]:
    folder = tmp_path_factory.mktemp("whole")
    suite = write(folder)
    return suite, folder / "store", numbers(run(suite, folder / "store"))


Whole = tuple[str, Path, list[Any]]


@pytest.mark.parametrize("keep", ["measured", "none"])
def test_only_what_is_to_be_kept_stays_and_numbers_do_not_change(whole: Whole, tmp_path: Path, keep: str) -> None:
    suite, complete, right = whole
    store = tmp_path / "store"
    board = run(suite, store, keep=keep)
    plan = api.plan(suite, device="cpu")
    assert weights(store).keys() == ({point.key for point in plan.points} if keep == "measured" else set())
    assert records(store) == records(complete) and numbers(board) == right
    again = run(suite, store, keep=keep)
    assert (again.tally.done, again.tally.cached) == (0, len(plan.stages)) and numbers(again) == right


def test_disk_is_bounded_while_it_runs(tmp_path: Path) -> None:
    """A chain of rounds never keeps more weights than those in use: what the last round left, the round at hand, where it rewinds to."""
    from rtbench.hookspecs import hookimpl

    rounds = '[{ init = "net" }, { train = "fit" }, { repeat = 5, steps = [{ prune = "cut", drop = 0.2 }, { rewind = "init" }, { train = "fit" }] }]'
    text = (
        SUITE[: SUITE.index("[axes]")]
        + f"[recipes.ticket]\nsteps = {rounds}\n"
        + SUITE[SUITE.index("[probes]") :].replace(', at = "last"', "")
    )
    store, most, kept = tmp_path / "store", [0], []

    class Listener:
        @hookimpl
        def rtbench_stage_done(self, stage: Any) -> None:
            kept.append(len(weights(store)))
            most[0] = max(most[0], kept[-1])

    suite = write(tmp_path, text)
    board = run(suite, store, keep="none", listener=Listener())
    assert board.tally.done == 1 + 6 + 5 + 12 and not board.tally.failed
    assert most[0] <= 4 and not weights(store)
    assert numbers(board) == numbers(run(suite, tmp_path / "all"))


def test_a_probe_added_after_dropping_remakes_what_it_needs(whole: Whole, tmp_path: Path) -> None:
    _, _, right = whole
    suite, store = write(tmp_path), tmp_path / "store"
    run(suite, store, keep="none")
    kept = records(store)
    more = run(write(tmp_path, MORE), store, keep="none")
    assert more.tally.done == 6 + 3 and more.tally.cached == 6, "all weights anew, three losses, nothing else"
    assert records(store).items() >= kept.items() and not weights(store)
    run(write(tmp_path, MORE), tmp_path / "all")
    assert records(store) == records(tmp_path / "all")
    assert [row[2]["clean"] for row in numbers(more)] == [row[2]["clean"] for row in right]


def test_what_a_failed_stage_needs_is_not_dropped(tmp_path: Path) -> None:
    from studies import plugin

    code = """
    def fragile(masks):
        if not os.path.exists(__file__ + ".fixed"):
            raise ValueError("broken")
        return masks

    @hookimpl
    def rtbench_pruners():
        return {"fragile": fragile}
    """
    text = SUITE.replace('{ prune = "cut", drop = "$drop" }', '{ prune = "$how" }').replace(
        "drop = [0.5, 0.9]", 'how = ["fragile", "a", "b", "c"]'
    )
    text = text.replace(
        "cut    =",
        'a = { use = "magnitude", drop = 0.1 }\nb = { use = "random", drop = 0.1 }\nc = { use = "random", drop = 0.2 }\ncut    =',
    )
    suite, store, plugins = write(tmp_path, text), tmp_path / "store", [plugin(tmp_path, code)]
    board = run(suite, store, keep="none", plugins=plugins)
    assert len(board.tally.failed) == 4 and len(weights(store)) == 2, "the trained network, and where it rewinds to"
    (tmp_path / "parts.py.fixed").touch()
    healed = run(suite, store, keep="none", plugins=plugins)
    assert not healed.tally.failed and healed.tally.done == 4 and not weights(store)


def test_gc_keeps_what_is_still_needed(whole: Whole, tmp_path: Path) -> None:
    suite, complete, right = whole
    plan, more = api.plan(suite, device="cpu"), api.plan(write(tmp_path, MORE), device="cpu")
    store = Store(shutil.copytree(complete, tmp_path / "store"))
    before, sizes = records(store.path), weights(store.path)
    dropped, freed = gc(store, [plan], "measured")
    measured = {point.key for point in plan.points}
    assert dropped == 6 - 3 and weights(store.path).keys() == measured
    assert freed == sum(size for key, size in sizes.items() if key not in measured)
    assert gc(store, [plan, more], "none") == (0, 0), "the losses are still to be measured"
    assert gc(store, [plan], "none")[0] == 3 and not weights(store.path) and records(store.path) == before
    assert numbers(run(suite, store.path)) == right


def test_gc_of_a_half_finished_run_lets_it_continue_without_repeating(tmp_path: Path) -> None:
    suite, store = write(tmp_path), tmp_path / "store"
    plan = api.plan(suite, device="cpu")
    run(suite, store, only={"recipe": ["dense"]})
    gc(Store(store), [plan], "none")
    assert len(weights(store)) == 2
    assert run(suite, store).tally.done == len(plan.stages) - 4


def test_clean_removes_what_finished_stages_left_and_nothing_else(whole: Whole, tmp_path: Path) -> None:
    _, complete, _ = whole
    store = Store(shutil.copytree(complete, tmp_path / "store"))
    done, unfinished = store.finished()[0], "f" * 24
    for key in (done, unfinished):
        (store.work(key) / "loop.pt").write_bytes(b"x" * 1000)
        (store.partial / f"{key}.abcd").mkdir()
        (store.partial / f"{key}.abcd" / "state.safetensors").write_bytes(b"x" * 500)
    with store.claim(store.finished()[1]) as mine:
        assert mine and (store.work(store.finished()[1]) / "loop.pt").write_bytes(b"x") and clean(store) == 2000
        assert (store.partial / store.finished()[1] / "loop.pt").exists(), "another process is at it"
    assert (store.partial / unfinished / "loop.pt").exists() and not (store.partial / done).exists()
    assert not list(store.partial.glob("*.abcd"))


def test_merging_two_stores(whole: Whole, tmp_path: Path) -> None:
    suite, complete, right = whole
    one, other = tmp_path / "one", tmp_path / "other"
    run(suite, one, only={"recipe": ["dense"]})
    run(suite, other, only={"recipe": ["sparse"], "drop": ["0.5"]})
    assert merge(Store(one), Store(other, create=False)) == (4, 2, [])
    assert merge(Store(one), Store(other, create=False)) == (0, 6, [])
    board = run(suite, one)
    assert board.tally.done == len(api.plan(suite, device="cpu").stages) - 8 and numbers(board) == right
    assert tree(one) == tree(complete) and not list((one / "partial").iterdir())
    empty = tmp_path / "empty"
    assert merge(Store(empty), Store(one, create=False)) == (12, 0, [])
    assert tree(empty, skip=()) == tree(one, skip=()), "provenance and all"
    assert run(suite, empty).tally.done == 0
    assert merge(Store(empty), Store(empty)) == (0, 12, [])


def test_merging_leaves_damaged_results_out_and_mends_with_sound_ones(whole: Whole, tmp_path: Path) -> None:
    suite, complete, _ = whole
    source, target = (Store(shutil.copytree(complete, tmp_path / name)) for name in ("source", "target"))
    plan = api.plan(suite, device="cpu")
    probe = next(stage.key for stage in stages(plan, "probe") if stage.part["use"] == "accuracy")
    train, init, prune = (stages(plan, verb)[0].key for verb in ("train", "init", "prune"))
    content = bytearray((source.folder(train) / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (source.folder(train) / "state.safetensors").write_bytes(content)
    (source.folder(probe) / "samples.safetensors").unlink()
    (source.folder(init) / "record.json").write_text("{}")
    (source.folder(init) / "own").mkdir()
    (source.folder(prune) / "own").mkdir()
    source.drop_state(stages(plan, "prune")[1].key)
    (target.folder(prune) / "record.json").write_text("{}")
    target.drop_state(stages(plan, "train")[1].key)
    for key in (train, probe):
        shutil.rmtree(target.folder(key))
    assert merge(target, source) == (2, 12 - 3 - 2, sorted([train, probe, init]))
    assert target.sound(prune) and target.complete(stages(plan, "train")[1].key) and not target.has(train) and not target.has(probe)
    assert not (target.folder(prune) / "own").exists()
    run(suite, target.path)
    assert {name: digest for name, digest in tree(target.path).items() if "superseded" not in name} == tree(complete)


def test_export(whole: Whole, tmp_path: Path) -> None:
    suite, complete, _ = whole
    plan = api.plan(suite, device="cpu")
    store = Store(shutil.copytree(complete, tmp_path / "store"))
    ticket, probe = stages(plan, "train")[-1].key, stages(plan, "probe")[0].key
    state, masks = unpack(exported(store, ticket, with_masks=True))
    assert (state.keys(), masks.keys()) == ({"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}, {"fc1.weight", "fc2.weight"})
    assert unpack(exported(store, ticket[:12], with_masks=False))[1] == {}
    for ref, reason in (
        (probe, "is a probe and has no weights"), (f"{ticket}/best", 'kept no state "best"'), ("zzz", 'no stage "zzz"'), ("", "beginning of 12 keys"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=reason):
            exported(store, ref, with_masks=False)
    path = store.folder(ticket) / "state.safetensors"
    content = path.read_bytes()
    for damage, reason in ((lambda: path.write_bytes(content[:-1] + b"?"), "does not match"), (path.unlink, "was dropped")):
        damage()
        with pytest.raises(UserError, match=f"{reason}.*run its suite again"):
            exported(store, ticket, with_masks=False)
    (store.folder(ticket) / "record.json").write_text("{")
    with pytest.raises(UserError, match="damaged; run its suite again"):
        exported(store, ticket, with_masks=False)


def test_a_key_is_named_by_its_beginning(whole: Whole, tmp_path: Path) -> None:
    _, complete, _ = whole
    store = Store(shutil.copytree(complete, tmp_path / "store"))
    for key in store.finished():
        assert resolve(store, key) == key == resolve(store, key[:20])
    store.put_failure("abcdef" * 4, "too warm", "")
    with pytest.raises(UserError, match=r'no stage "abcdef" in store ".*"; it failed: too warm'):
        resolve(store, "abcdef")
    (store.results / f"{'abcdef' * 4}.failed" / "reason.json").write_text("{")
    for odd in ("abcdef", "/etc", "[", "*", "../x", ".."):
        with pytest.raises(UserError, match="no stage"):
            resolve(store, odd)


def test_the_cost_of_a_remade_network_is_counted_once(tmp_path: Path) -> None:
    text = SUITE.replace("density = {", 'cost = { use = "cost", at = "last" }\ndensity = {')
    run(write(tmp_path), tmp_path / "store", keep="none", only={"recipe": ["dense"]})
    run(write(tmp_path, text), tmp_path / "store", keep="none", only={"recipe": ["dense"]})
    plan = api.plan(write(tmp_path, text), device="cpu", only={"recipe": ["dense"]})
    (cost,) = (stage.key for stage in stages(plan, "probe") if stage.part["use"] == "cost")
    (train,) = stages(plan, "train")
    passes = Results(tmp_path / "store").record(train.key)["passes"]
    gradients = {"": passes["gradients"], "before": 0, "last": passes["gradients"]}
    assert values(tmp_path / "store", cost) == {**gradients, "forwards": passes["forwards"]}
