"""Evidence: margins, adversarial examples kept with every bit, and the page that explains a number."""

from __future__ import annotations

import json
import shlex
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rtbench.builtin.attacks.apgd import apgd
from rtbench.builtin.attacks.pgd import pgd
from rtbench.cli import cli
from rtbench.commands.upkeep import merge, resolve
from rtbench.data.splits import Split
from rtbench.engine.loop import Loop
from rtbench.engine.state import unpack
from rtbench.evaluation.judge import Judged, Outcome
from rtbench.evaluation.margins import margins
from rtbench.evaluation.native import Run
from rtbench.evaluation.witness import ROWS, Shelf, unpacked
from rtbench.evidence.explain import page
from rtbench.parts.slots import Native
from rtbench.parts.threats import Threat, inside
from rtbench.storage.results import PROVENANCE, RECORD, WITNESS, Results, sign
from rtbench.storage.store import Store
from studies import SUITE, plugin, run, tree, write

N, SHAPE, CLASSES = 90, (1, 3, 3), 4
BALL = Threat("linf", Fraction(1, 10))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def split() -> Split:
    rng = torch.Generator().manual_seed(0)
    return Split(torch.rand(N, *SHAPE, generator=rng), torch.randint(0, CLASSES, (N,), generator=rng), torch.arange(N) * 7 + 3)


def network() -> nn.Module:
    """Right about most of `split`."""
    torch.manual_seed(1)
    data, model = split(), nn.Sequential(nn.Flatten(), nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.x), data.y).backward()
        optimizer.step()
    return model.eval()


def brief(threat: Threat, classes: int, shape: tuple[int, ...]) -> Native:
    return Native((apgd("apgd-ce", "ce", steps=3), apgd("apgd-t", "dlr-targeted", steps=10, targets=3)))


def plain(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Tensor:
    return pgd(model, x, y, threat, noise, steps=5, step=0.03)


def outcome(native: bool, keep: bool = True, batch: int = 32, threat: Threat | None = BALL) -> Outcome:
    judged = Judged(plain, threat, 5, "it", brief if native else None, witnesses=keep)
    return judged(network(), split(), torch.arange(N), Loop(), batch)


def images(ids: Tensor) -> Tensor:
    return split().x[(ids - 3) // 7]


@given(st.integers(2, 6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_margin_is_the_label_s_logit_minus_the_highest_other_one(k: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits, y = torch.randn(7, k, generator=rng), torch.randint(0, k, (7,), generator=rng)
    for row, label, margin in zip(logits.tolist(), y.tolist(), margins(logits, y).tolist(), strict=True):
        assert margin == pytest.approx(row[label] - max(value for at, value in enumerate(row) if at != label), abs=1e-6)
    for odd in (torch.nan, torch.inf, -torch.inf):
        logits[2, 0] = odd
        assert margins(logits, y)[2] == -torch.inf


@pytest.mark.parametrize("native", [False, True], ids=["plain", "native"])
def test_margins_are_those_of_the_points_where_the_verdicts_were_given(native: bool) -> None:
    found, model, data = outcome(native), network(), split()
    with torch.no_grad():
        assert torch.allclose(found.clean_margin, margins(model(data.x), data.y), atol=1e-5)
    broken = found.clean & ~found.robust
    assert 5 < int(broken.sum()) < N - 5 and int(found.robust.sum()) > 5
    assert bool((found.margin[broken] <= 0).all()) and bool((found.margin[found.robust] >= 0).all())
    assert torch.equal(found.margin[~found.clean], found.clean_margin[~found.clean])
    assert found.shelf is not None
    seen = 0
    for ids, x_adv in unpacked(found.shelf.tensors(), images):
        at = (ids - 3) // 7
        with torch.no_grad():
            assert torch.allclose(margins(model(x_adv), data.y[at]), found.margin[at], atol=1e-5)
        assert bool(inside(x_adv, data.x[at], BALL).all()) and bool(broken[at].all())
        seen += len(ids)
    assert seen == int(broken.sum())


def test_under_native_attacks_a_robust_sample_has_the_margin_of_its_clean_image() -> None:
    found = outcome(True)
    assert int(found.robust.sum()) > 5 and torch.equal(found.margin[found.robust], found.clean_margin[found.robust])


def test_keeping_changes_no_verdict_and_is_off_by_default() -> None:
    for native in (False, True):
        kept, not_kept = outcome(native), outcome(native, keep=False)
        assert not_kept.shelf is None and torch.equal(kept.robust, not_kept.robust) and torch.equal(kept.margin, not_kept.margin)
    assert outcome(False, threat=None).shelf is None


@given(st.lists(st.integers(1, 300), max_size=5), st.integers(0, 10**6), st.none() | st.integers(0, 3))
@settings(max_examples=25, deadline=None)
@example([2], 0, 1)
def test_every_bit_survives_the_shelf_however_it_came_in(sizes: list[int], seed: int, odd: int | None) -> None:
    """odd: so many pixels change as no other does, the rest alike; None where all change at random."""
    rng = torch.Generator().manual_seed(seed)
    shelf, whole = Shelf(), Shelf()
    x = torch.rand(sum(sizes), 1, 2, 2, generator=rng)
    x_adv = torch.randint(-(2**31), 2**31 - 1, x.shape, generator=rng).int().view(torch.float32)  # any bits, NaN among them
    if odd is not None:
        x_adv.view(-1)[odd:] = (x.view(torch.int32) + 7).view(torch.float32).view(-1)[odd:]
    ids = torch.randperm(len(x), generator=rng)
    for part in torch.split(torch.arange(len(x)), sizes) if sizes else ():
        shelf.add(ids[part], x[part], x_adv[part])
        assert len(shelf.moved) < ROWS
        again = Shelf()
        again.load_state_dict(shelf.state_dict())
        shelf = again
    whole.add(ids, x, x_adv) if len(x) else None
    assert all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in shelf.tensors().items())
    place = ids.argsort()
    found = list(unpacked(shelf.tensors(), lambda wanted: x[place[wanted]]))
    assert torch.equal(torch.cat([torch.zeros(0).long(), *(wanted for wanted, _ in found)]), ids)
    bits = [points.view(torch.int32) for _, points in found]
    assert torch.equal(torch.cat([torch.zeros(0, 1, 2, 2, dtype=torch.int32), *bits]), x_adv.view(torch.int32))


def test_what_is_no_shelf_is_refused_before_it_fills_the_memory() -> None:
    shelf = Shelf()
    shelf.add(torch.arange(3), torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2))
    good = shelf.tensors()
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(10**7))), dtype=torch.uint8)
    bad: list[dict[str, Tensor]] = [
        {**good, "bytes": bomb, "ends": torch.tensor([len(bomb)])}, {**good, "ends": torch.tensor([1])}, {**good, "more": good["ids"]},
        {**good, "ids": good["ids"].int()}, {**good, "bytes": good["bytes"].flip(0)}, {**good, "ids": torch.arange(2)},
    ]  # fmt: skip
    for tensors in bad:
        with pytest.raises(ValueError, match=r"it|its|chunk"):
            list(unpacked(tensors, lambda ids: torch.zeros(len(ids), 1, 2, 2)))


def test_a_killed_search_ends_with_the_same_witnesses_and_margins() -> None:
    data, model = split(), network()

    def fresh() -> Run:
        def source(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return data.x[rows], data.y[rows], data.ids[rows]

        return Run(model, source, N, BALL, brief, 5, 32, data.x[:1], shelf=Shelf())

    whole = fresh()
    while whole.step():
        pass
    for stop in (1, 4, 9, 30):
        first, second = fresh(), fresh()
        for _ in range(stop):
            first.step()
        second.load_state_dict(first.state_dict())
        while second.step():
            pass
        assert whole.shelf is not None and second.shelf is not None
        assert torch.equal(second.found["margin"], whole.found["margin"])
        assert all(torch.equal(tensor, whole.shelf.tensors()[name]) for name, tensor in second.shelf.tensors().items())


STUDY = SUITE.replace("[parts]", 'pgd = { use = "accuracy", attack = "pgd", samples = 60, at = "last" }\n'
                      'apgd = { use = "accuracy", attack = "strong", samples = 40, batch = 32, at = "last" }\n[parts]\n'
                      'strong = { use = "apgd", norm = "linf", eps = "1/20", steps = 10 }').replace("epochs = 2", "epochs = 10")  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("study")
    suite = write(folder, STUDY)
    return suite, folder / "store", run(suite, folder / "store", only={"recipe": ["dense"]}, witness=True)


def test_merging_brings_witnesses_to_a_store_without(study: tuple[str, Path, Any], tmp_path: Path) -> None:
    suite, witnessed, _ = study
    run(suite, tmp_path / "store", only={"recipe": ["dense"]})
    target, source = Store(tmp_path / "store"), Store(witnessed)
    copied, present, damaged = merge(target, source)
    assert copied > 0 and not damaged and tree(target.path) == tree(witnessed)
    assert merge(target, source) == (0, copied + present, [])


def test_a_finished_store_gets_its_witnesses_by_running_its_attacks_again(study: tuple[str, Path, Any], tmp_path: Path) -> None:
    suite, store, board = study
    without = run(suite, tmp_path / "store", only={"recipe": ["dense"]})
    assert not list((tmp_path / "store").rglob(WITNESS)) and without.as_json()["rows"] == board.as_json()["rows"]
    again = run(suite, tmp_path / "store", only={"recipe": ["dense"]}, witness=True)
    assert again.tally.done == 2 and len(list((tmp_path / "store").rglob(WITNESS))) == 2  # not clean accuracy, not density
    assert tree(tmp_path / "store") == tree(store)
    assert run(suite, tmp_path / "store", only={"recipe": ["dense"]}, witness=True).tally.done == 0


def test_a_probe_that_comes_out_otherwise_fails_and_replaces_nothing(study: tuple[str, Path, Any], tmp_path: Path) -> None:
    suite, _, _ = study
    board = run(suite, tmp_path / "store", only={"recipe": ["dense"]})
    (row,) = board.as_json()["rows"]
    key, results = row["keys"]["pgd"][0], Results(tmp_path / "store")
    record = results.record(key)
    record["records"][0][2] = 0.5
    (results.folder(key) / RECORD).write_text(json.dumps(sign(record)))
    again = run(suite, tmp_path / "store", only={"recipe": ["dense"]}, witness=True)
    assert "came out otherwise: records" in again.tally.failed[key] and results.record(key)["records"][0][2] == 0.5
    assert not (results.folder(key) / WITNESS).exists()


def test_stored_columns_hold_margins_and_passes(study: tuple[str, Path, Any]) -> None:
    _, store, board = study
    (row,) = board.as_json()["rows"]
    results = Results(store)
    tensors = {name: unpack(results.samples_bytes(row["keys"][name][0]))[0] for name in ("clean", "pgd", "apgd")}
    assert set(tensors["clean"]) == set(tensors["pgd"]) == {"ids", "robust", "clean", "margin", "clean.margin"}
    assert set(tensors["apgd"]) == {*tensors["pgd"], "robust.apgd-ce", "forwards", "gradients"}
    assert torch.equal(tensors["clean"]["margin"], tensors["clean"]["clean.margin"])
    held = tensors["apgd"]["robust"].bool()
    assert held.any() and bool((tensors["apgd"]["forwards"][held] == 12).all()) and bool((tensors["apgd"]["gradients"][held] == 11).all())


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(cli, list(arguments), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.mark.parametrize("probe", ["pgd", "apgd"])
def test_the_page_explains_a_row_and_its_commands_make_it_again(
    probe: str, study: tuple[str, Path, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    _, store, board = study
    (row,) = board.as_json()["rows"]
    key = row["keys"][probe][0]
    text = page(Store(store), key)
    stage, record = Results(store).record(key)["stage"], Results(store).record(key)
    attack = stage["part"]["knobs"]["attack"]
    assert all(f"| {name} | " in text for name in attack["knobs"]) and stage["data"]["digest"][:16] in text and str(stage["seed"]) in text
    assert f"{row['probes'][probe]['mean']:.2%}" in text and f"are kept, {record['sizes'][WITNESS]} bytes" in text
    assert f"| {record['passes']['forwards']} | {record['passes']['gradients']} |" in text
    bits = unpack(Results(store).samples_bytes(key))[0]
    name = "apgd-ce" if probe == "apgd" else "the attack"
    assert f"| broken by {name} | {int(bits['clean'].sum() - bits['robust'].sum())} |" in text
    assert ("masked-gradient" in text) == (probe == "apgd")  # nobody looked for it under a plain attack
    monkeypatch.chdir(tmp_path)
    lines = text.split("```sh\n")[1].split("\n```")[0].splitlines()
    for line in lines[:-1]:
        invoke(*shlex.split(line)[1:])

    made = json.loads(invoke(*shlex.split(lines[-1])[1:], "--format", "json"))
    assert made["ids"] == bits["ids"].tolist() and made["bits"] == "".join(map(str, bits["robust"].tolist()))


def test_the_page_of_a_state_lists_what_measured_it_and_fits_the_terminal(study: tuple[str, Path, Any]) -> None:
    _, store, board = study
    (row,) = board.as_json()["rows"]
    text = page(Store(store), row["state"][0])
    assert all(trials[0][:8] in text for trials in row["keys"].values())
    shown = invoke("explain", row["state"][0][:10], "--store", str(store))
    assert max(map(len, shown.splitlines())) <= 100 and resolve(Store(store), row["state"][0][:10])[:8] in shown


SIDE = """
def side(model, x, y, threat, noise):
    return x + float(threat.eps)

@hookimpl
def rtbench_attacks():
    return {"side": side}
"""


def test_the_page_names_the_rows_and_the_plugin_file_that_its_commands_need(tmp_path: Path, monkeypatch: Any) -> None:
    text = STUDY.replace('attack = "pgd"', 'attack = { use = "side", norm = "linf", eps = 0.1 }')
    text = text.replace("[axes]\ndrop = [0.5, 0.9]", "trials = 2\n[axes]\ndrop = [0.5]")
    files, store = [plugin(tmp_path, SIDE, "my parts.py")], tmp_path / "store"
    board = run(write(tmp_path, text), store, plugins=files)
    row = next(row for row in board.as_json()["rows"] if row["recipe"] == "sparse")
    found = page(Store(store), row["keys"]["pgd"][1])
    assert "Made for suite tiny: recipe sparse, drop = 0.5, step 2, round 1, trial 2 of 2." in found
    assert "say where `my parts.py` lies" in found
    monkeypatch.chdir(tmp_path)
    lines = found.split("```sh\n")[1].split("\n```")[0].splitlines()
    assert [line.split()[1] for line in lines if line.endswith("--plugin 'my parts.py'")] == ["verify", "evaluate"]
    for line in lines:
        shown = invoke(*shlex.split(line)[1:])
    bits = unpack(Results(store).samples_bytes(row["keys"]["pgd"][1]))[0]
    assert f"robust   {float(bits['robust'].double().mean()):7.2%}" in shown
    built_in = page(Store(store), row["keys"]["clean"][1])
    assert "--plugin" not in built_in and "lies" not in built_in and "To be installed" not in built_in
    state = page(Store(store), row["state"][0])
    assert "trial 1 of 2" in state and "recipe dense" not in state
    facts = Results(store).provenance(row["keys"]["clean"][0])
    (Results(store).folder(row["keys"]["clean"][0]) / PROVENANCE).write_text(
        json.dumps(sign({**{name: fact for name, fact in facts.items() if name not in ("rows", "parts")},
                         "plugins": {"rtbench": "0.1.0", "rtbench-snip": "0.2"}, "stage": row["keys"]["clean"][0]})))  # fmt: skip
    old = page(Store(store), row["keys"]["clean"][0])
    assert "Made for" not in old and "To be installed: rtbench-snip 0.2." in old
