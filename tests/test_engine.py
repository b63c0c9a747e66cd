"""Whole studies: what runs, how often, what is counted, what is recorded, what fails and what depends on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rtbench
import studies
from rtbench.commands import api
from rtbench.engine.context import Options, load_data
from rtbench.engine.state import unpack
from rtbench.evaluation.panel import FORWARDS, GRADIENTS
from rtbench.plugins import catalogue
from rtbench.running import attempt
from rtbench.storage.index import rebuild
from rtbench.storage.results import PROVENANCE, Results, sign
from rtbench.storage.store import Store
from studies import SUITE, numbers, plugin, run, stages, tree, values, write


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verbs of the stages that run, in order."""
    found: list[str] = []
    real = attempt.run_stage

    def counted(stage: Any, *rest: Any) -> None:
        found.append(stage.verb)
        real(stage, *rest)

    monkeypatch.setattr("rtbench.running.attempt.run_stage", counted)
    return found


def test_shared_prefixes_run_once(tmp_path: Path, ran: list[str]) -> None:
    board = run(write(tmp_path), tmp_path / "store")
    assert board.tally.done == len(ran) == 1 + 1 + 2 + 2 + 2 * 3 and board.tally.cached == 0
    assert (ran.count("init"), ran.count("train"), ran.count("prune"), ran.count("probe")) == (1, 3, 2, 6)
    assert len(Results(tmp_path / "store").finished()) == len(ran)
    assert not list((tmp_path / "store" / "partial").iterdir()), "nothing is left behind"


def test_what_the_caller_set_for_torch_changes_no_result(tmp_path: Path) -> None:
    suite = write(tmp_path)
    only = {"recipe": ["dense"]}
    run(suite, tmp_path / "plain", only=only)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(suite, tmp_path / "autocast", only=only)
    torch.set_default_dtype(torch.float64)
    try:
        run(suite, tmp_path / "double", only=only)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        run(suite, tmp_path / "inference", only=only)
    with torch.no_grad():
        run(suite, tmp_path / "no_grad", only=only)
    wanted = tree(tmp_path / "plain")
    assert wanted and all(tree(tmp_path / name) == wanted for name in ("autocast", "double", "inference", "no_grad"))


def test_a_second_run_asks_no_model(tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    suite, store = write(tmp_path), tmp_path / "store"
    first, before = run(suite, store), tree(store, skip=())
    ran.clear()
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_, **__: pytest.fail("a model was asked"))
    second = run(suite, store)
    assert (second.tally.done, second.tally.cached, ran) == (0, first.tally.done, [])
    assert tree(store, skip=()) == before and numbers(second) == numbers(first)
    assert numbers(rtbench.board(suite, store=store, device="cpu")) == numbers(first)


def test_one_more_probe_or_pruner_or_trial_runs_only_its_own_stages(tmp_path: Path, ran: list[str]) -> None:
    suite, store = write(tmp_path), tmp_path / "store"
    run(suite, store)
    before = tree(store, skip=())

    def more(text: str, expected: dict[str, int]) -> None:
        ran.clear()
        board = run(write(tmp_path, text), store)
        assert {verb: ran.count(verb) for verb in set(ran)} == expected and board.tally.done == sum(expected.values())
        after = tree(store, skip=())
        assert {name: after[name] for name in before} == before

    text = SUITE.replace("[parts]", 'pgd = { use = "accuracy", attack = "pgd", samples = 50, at = "last" }\n[parts]')
    more(text, {"probe": 3})
    text = text.replace("drop = [0.5, 0.9]", "drop = [0.5, 0.8, 0.9]")
    more(text, {"prune": 1, "train": 1, "probe": 3})
    text = text.replace('data = "digits"', 'data = "digits"\ntrials = 2', 1)
    more(text, {"init": 1, "train": 4, "prune": 3, "probe": 12})
    more(text, {})


def test_a_run_of_part_of_a_suite_shares_with_the_whole(tmp_path: Path, ran: list[str]) -> None:
    suite, store = write(tmp_path), tmp_path / "store"
    run(suite, store, only={"recipe": ["dense"]})
    assert ran == ["init", "train", "probe", "probe"]
    whole = run(suite, store)
    assert whole.tally.cached == 4 and len(ran) == 12


def test_passes_are_counted_exactly(tmp_path: Path) -> None:
    text = SUITE.replace('{ use = "sgd",', '{ use = "sgd", objective = { use = "robust", attack = "pgd", mix = 0.5 },')
    text = text.replace("[parts]", 'pgd = { use = "accuracy", attack = "pgd", samples = 64, batch = 10, at = "last" }\n[parts]')
    suite, store = write(tmp_path, text), tmp_path / "store"
    run(suite, store, only={"recipe": ["dense"]})
    plan = api.plan(suite, only={"recipe": ["dense"]}, device="cpu")
    results = Results(store)
    (train,) = stages(plan, "train")
    n = len(load_data(train.data, catalogue(), Options(root="")).train)
    # Per sample and epoch: 3 attack steps, then the adversarial and the clean loss in one backward.
    assert results.record(train.key)["passes"] == {"forwards": 2 * n * (3 + 2), "gradients": 2 * n * (3 + 2)}
    for probe in stages(plan, "probe"):
        passes, attack = results.record(probe.key)["passes"], probe.part["knobs"].get("attack", {"use": ""})["use"]
        if attack == "pgd":
            right = round(64 * float(_samples(store, probe.key)["clean"].double().mean()))
            asked = 10 * 4 + 2 * 2 * 5  # of the first 10 images: four times the same, then twice beside others
            assert passes == {"forwards": 64 + right * (3 + 1) + asked + right * FORWARDS, "gradients": right * (3 + GRADIENTS)}
        elif attack == "none":
            assert passes == {"forwards": 200, "gradients": 0}
        else:
            assert passes == {"forwards": 0, "gradients": 0}


def _samples(store: Path, key: str) -> dict[str, torch.Tensor]:
    return unpack(Results(store).samples_bytes(key))[0]


def test_probes_inside_training_change_neither_weights_nor_counts(tmp_path: Path) -> None:
    suite = write(tmp_path)
    with_probes = SUITE.replace(
        "batch = 50,", 'batch = 50, probes = { v = { use = "accuracy", attack = "pgd", split = "valid" } }, every = 3,'
    )
    other = write(tmp_path, with_probes, "probed.toml")
    plans = []
    for i, path in enumerate((suite, other)):
        run(path, tmp_path / f"store{i}", only={"recipe": ["dense"]})
        plans.append(stages(api.plan(path, only={"recipe": ["dense"]}, device="cpu"), "train")[0])
    plain, probed = (Results(tmp_path / f"store{i}") for i in range(2))
    assert plans[0].key != plans[1].key and plain.state_bytes(plans[0].key) == probed.state_bytes(plans[1].key)
    assert plain.record(plans[0].key)["passes"] == probed.record(plans[1].key)["passes"]
    assert [step for step, name, _ in probed.record(plans[1].key)["records"] if name == "v"] == [3, 6, 9, 10]


def test_provenance_and_record_say_where_a_number_comes_from(tmp_path: Path) -> None:
    suite, store = write(tmp_path), tmp_path / "store"
    run(suite, store, threads=1)
    plan, results = api.plan(suite, device="cpu"), Results(store)
    for stage in plan.stages.values():
        facts, record = results.provenance(stage.key), results.record(stage.key)
        assert {"host", "processor", "device", "threads", "seconds", "started", "finished", "versions", "commit"} <= facts.keys()
        assert facts["device"] == "cpu" and facts["threads"] == 1 and facts["versions"]["torch"] == torch.__version__
        assert facts["seconds"] > 0 and facts["started"] <= facts["finished"]
        assert facts["commit"] is None or len(facts["commit"].rstrip("+")) == 40
        assert facts["plugins"] == {"rtbench": rtbench.__version__} and facts["plugin"]["version"] == rtbench.__version__
        for name, digest in record["files"].items():
            content = (results.folder(stage.key) / name).read_bytes()
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (digest, record["sizes"][name])
        if stage.inputs:
            assert facts["weights"] == results.record(stage.inputs["weights"])["files"]["state.safetensors"]
        assert record["stage"] == stage.described()
    text = "".join((results.folder(stage.key) / "record.json").read_text() for stage in plan.stages.values())
    assert all(word not in text for word in ("seconds", str(tmp_path), results.provenance(plan.points[0].key)["host"] + '"'))


def test_every_report_names_the_plugins_behind_its_numbers_also_those_of_pruners_and_attacks(tmp_path: Path) -> None:
    files = {
        "pruning.py": "def whole(masks):\n    return masks\n@hookimpl\ndef rtbench_pruners():\n    return {'whole': whole}\n",
        "attacking.py": "def still(model, x, y, threat, noise):\n    return x\n@hookimpl\ndef rtbench_attacks():\n    return {'still': still}\n",
    }
    text = SUITE.replace('prune = "cut", drop = "$drop"', 'prune = "whole"').replace("[axes]\ndrop = [0.5, 0.9]\n", "")
    text = text.replace("samples = 200", 'samples = 50, attack = { use = "still", norm = "linf", eps = 0.1 }')
    given = {"plugins": [plugin(tmp_path, code, name) for name, code in files.items()]}
    board = run(write(tmp_path, text), tmp_path / "store", **given)
    expected = ["attacking.py", "pruning.py", f"rtbench {rtbench.__version__}"]
    assert board.plugins == board.as_json()["plugins"] == expected and board.meta["plugins"] == ", ".join(expected)
    for format_ in ("json", "markdown", "latex", "html"):
        shown = api.report_text(board, catalogue(given["plugins"]), format_)
        assert all(name.replace("_", r"\_") in shown or name in shown for name in expected), format_
    results = Results(tmp_path / "store")
    for key in results.finished():  # an earlier rtbench
        facts = {name: fact for name, fact in results.provenance(key).items() if name != "parts"}
        (results.folder(key) / PROVENANCE).write_text(json.dumps(sign({**facts, "stage": key})))
    rebuild(Store(tmp_path / "store"))
    assert api.board(str(tmp_path / "tiny.toml"), store=tmp_path / "store", **given).plugins == expected


def test_provenance_tells_the_threads_of_each_run_in_one_process(tmp_path: Path) -> None:
    suite = write(tmp_path)
    for threads in (1, 2):
        run(suite, tmp_path / str(threads), threads=threads, only={"recipe": ["dense"]})
        results = Results(tmp_path / str(threads))
        assert {results.provenance(key)["threads"] for key in results.finished()} == {threads}
    torch.set_num_threads(1)


BROKEN = '''
def broken(model, masks, data, loop, *, drop: float = 0.5):
    """drop: is ignored"""
    for i in loop(range(4)):
        if i == 2 and not os.path.exists(FLAG):
            raise ZeroDivisionError("no flag\\nis up")
        with torch.no_grad():
            for p in model.parameters():
                p += 1 if os.path.exists(FLAG) else 0.25
    return masks

@hookimpl
def rtbench_pruners():
    return {"broken": broken}
'''


def test_a_failing_part_skips_only_what_needs_it_and_is_tried_again(tmp_path: Path) -> None:
    flag, store = tmp_path / "flag", tmp_path / "store"
    text = SUITE.replace('{ prune = "cut", drop = "$drop" }', '{ prune = "$pruner", drop = 0.5 }')
    suite = write(tmp_path, text.replace("drop = [0.5, 0.9]", 'pruner = ["cut", "broken"]'))
    choices: dict[str, Any] = {"plugins": [plugin(tmp_path, f"FLAG = {str(flag)!r}\n{BROKEN}")], "checkpoint_seconds": 0.0}
    board = run(suite, store, **choices)
    plan = api.plan(suite, plugins=choices["plugins"], device="cpu")
    (broken,) = (stage for stage in stages(plan, "prune") if stage.part["use"] == "broken")
    assert board.tally.done == 8 and len(board.tally.failed) == 4
    assert board.tally.failed[broken.key] == "ZeroDivisionError: no flag is up"
    assert all("failed" in reason for key, reason in board.tally.failed.items() if key != broken.key)
    why = json.loads((store / "results" / f"{broken.key}.failed" / "reason.json").read_text())
    assert why["reason"] == board.tally.failed[broken.key] and "raise ZeroDivisionError" in why["traceback"]
    rows = {row.cell.get("pruner"): row for row in board.rows}
    assert rows["broken"].status == "failed" and rows["cut"].status == rows[None].status == "done"
    assert run(suite, store, **choices).tally.failed == board.tally.failed, "tried again, in vain"
    flag.touch()
    healed = run(suite, store, **choices)
    assert (healed.tally.done, healed.tally.cached, healed.tally.failed) == (4, 8, {})
    assert not list((store / "results").glob("*.failed")) and not list((store / "partial").iterdir())
    run(suite, tmp_path / "other", **choices)
    assert tree(store) == tree(tmp_path / "other"), "what the faulty part had saved is in nothing that the corrected one made"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise rtbench.UserError('take another one')", "take another one"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise MemoryError", "MemoryError"),
        ("return None", 'pruner "odd" returned NoneType, not masks'),
        ("return {n: m.float() for n, m in masks.items()}", "is torch.float32"),
        ("return {n: m.tolist() for n, m in masks.items()}", "is list, not a bool tensor of shape (16, 64)"),
        ("return {n: m[:1] for n, m in masks.items()}", "torch.bool (1, 64), not a bool tensor of shape (16, 64)"),
        ("return dict(list(masks.items())[:1])", 'differ, first in "fc2.weight"'),
        ("return {**masks, 'fc1.bias': masks['fc1.weight']}", 'differ, first in "fc1.bias"'),
        ("model.fc1 = torch.nn.utils.parametrizations.weight_norm(model.fc1); return masks", "other tensors than it had"),
        ("model.fc1.weight.data[0, 0] = torch.inf; return masks", '"fc1.weight" is not finite after prune "odd": it diverged'),
    ],
)
def test_what_a_pruner_may_not_do_is_its_failure(tmp_path: Path, code: str, reason: str) -> None:
    source = f"import rtbench\ndef odd(model, masks):\n    {code}\n@hookimpl\ndef rtbench_pruners():\n    return {{'odd': odd}}\n"
    suite = write(tmp_path, SUITE.replace('{ prune = "cut", drop = "$drop" }', '{ prune = "odd" }'))
    board = run(suite, tmp_path / "store", plugins=[plugin(tmp_path, source)])
    assert board.tally.done == 4 and len(board.tally.failed) == 4
    assert any(reason in text for text in board.tally.failed.values()), board.tally.failed


def test_a_pruner_that_revives_without_saying_so_fails(tmp_path: Path) -> None:
    source = '''
    def ones(masks):
        for mask in masks.values():
            mask.fill_(True)
        return masks
    def quiet(masks): """Revives."""; return ones(masks)
    @declare(revives=True)
    def open(masks): """Revives."""; return ones(masks)
    @hookimpl
    def rtbench_pruners():
        return {"quiet": quiet, "open": open}
    '''
    steps = '{ prune = "cut", drop = 0.5 }, { prune = "$second" }'
    text = SUITE.replace('{ prune = "cut", drop = "$drop" }', steps).replace("drop = [0.5, 0.9]", 'second = ["quiet", "open"]')
    board = run(write(tmp_path, text), tmp_path / "store", plugins=[plugin(tmp_path, source)])
    failed = [reason for reason in board.tally.failed.values() if "needs" not in reason]
    assert failed == ['pruner "quiet" revived weights of "fc1.weight" without declaring so']


def test_diverged_training_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    board = run(write(tmp_path), tmp_path / "store", set=["parts.fit.lr=1e30"], only={"recipe": ["dense"]})
    failed = [reason for reason in board.tally.failed.values() if "needs" not in reason]
    assert len(failed) == 1 and failed[0].endswith('is not finite after train "sgd": it diverged')
    assert all(m.mean is None for row in board.rows for m in row.probes.values())


IN_PLACE = """
import torch
class Centred(torch.nn.Module):
    head_name = "fc"
    def __init__(self, size, classes):
        super().__init__()
        self.fc = torch.nn.Linear(size, classes)
    def forward(self, x):
        if not KEEPS:
            x.data.sub_(0.5)
        return self.fc(x.flatten(1))
def centred(shape, classes):
    return Centred(shape[0] * shape[1] * shape[2], classes)
@hookimpl
def rtbench_architectures():
    return {"centred": centred}
"""


def test_a_network_that_changes_its_input_is_refused_before_it_is_measured(tmp_path: Path) -> None:
    """Also one that was trained already."""
    text = SUITE.replace('mlp", hidden = [16]', 'centred"')
    said = "model: its forward changes its input in place; write x = x - mean, not x -= mean"

    def failed(store: str, keeps: bool, samples: int) -> list[str]:
        suite, code = write(tmp_path, text.replace("200", str(samples))), plugin(tmp_path, f"KEEPS = {keeps}\n{IN_PLACE}")
        return list(run(suite, tmp_path / store, only={"recipe": ["dense"]}, plugins=[code]).tally.failed.values())

    assert failed("old", True, 200) == [] and failed("old", False, 201) == [said] and said in failed("new", False, 200)


def test_a_network_without_a_named_classifier_is_told_which_it_may_be(tmp_path: Path) -> None:
    code = plugin(tmp_path, "KEEPS = True\n" + IN_PLACE.replace('head_name = "fc"', ""))
    board = run(write(tmp_path, SUITE.replace('mlp", hidden = [16]', 'centred"')), tmp_path / "store", plugins=[code])
    said = 'the network does not name its classifier: where it is made, set `model.head_name`, to "fc" for instance'
    assert said in board.tally.failed.values()


ODD_NETWORKS = """
from torch import nn
class Two(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)), x
class More(nn.Linear):
    def get_extra_state(self):
        return {"epoch": 1}
    def set_extra_state(self, state):
        pass
KINDS = {"two": lambda: Two(64, 10), "more": lambda: More(64, 10), "lazy": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
         "normed": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.utils.parametrizations.weight_norm(nn.Linear(16, 10)))}
def odd(shape, classes, *, kind: str):
    model = KINDS[kind]()
    model.head_name = ""
    return model
@hookimpl
def rtbench_architectures():
    return {"odd": odd}
"""


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("two", "the network gives tuple for 2 images, not finite logits (2, 10)"),
        ("more", '"_extra_state" of its state dict is no tensor'),
        ("lazy", '"1.weight" has no shape yet: pass an image through it where it is made'),
        ("normed", 'the weight of "2" is computed of other tensors (weight_norm'),
    ],
)
def test_a_network_that_cannot_be_worked_with_is_told_why(tmp_path: Path, kind: str, reason: str) -> None:
    suite = write(tmp_path, SUITE.replace('mlp", hidden = [16]', f'odd", kind = "{kind}"'))
    board = run(suite, tmp_path / "store", plugins=[plugin(tmp_path, ODD_NETWORKS)])
    assert any(reason in text for text in board.tally.failed.values()), board.tally.failed


TIDY = """
import torch
from torch.nn.utils import prune
from torch.nn.functional import cross_entropy
def tidy(model, masks):
    prune.l1_unstructured(model.fc1, "weight", 0.5)
    prune.remove(model.fc1, "weight")
    return masks | {"fc1.weight": model.fc1.weight != 0}
def featured(model, x, y):
    handle = model.register_forward_hook(lambda net, given, logits: (logits, given[0]))
    logits, _ = model(x)
    handle.remove()
    return cross_entropy(logits, y, reduction="none")
@hookimpl
def rtbench_pruners():
    return {"tidy": tidy}
@hookimpl
def rtbench_objectives():
    return {"featured": featured}
"""


def test_torchs_own_pruning_and_objectives_that_ask_for_more_than_logits_are_welcome(tmp_path: Path) -> None:
    text = SUITE.replace('{ prune = "cut", drop = "$drop" }', '{ prune = "tidy" }').replace(
        'use = "sgd"', 'use = "sgd", objective = "featured"'
    )
    board = run(write(tmp_path, text), tmp_path / "store", plugins=[plugin(tmp_path, TIDY)])
    assert board.tally.failed == {}


def test_a_trainer_may_grow_masks_but_not_return_anything_else(tmp_path: Path) -> None:
    source = """
    def grow(model, masks, data, loop):
        return {n: torch.ones_like(m) for n, m in masks.items()}
    def odd(masks):
        return 3
    @hookimpl
    def rtbench_trainers():
        return {"grow": grow, "odd": odd}
    """
    text = SUITE.replace('{ rewind = "init" }, { train = "fit" }]', '{ train = "$last" }]').replace(
        "drop = [0.5, 0.9]", 'last = ["grow", "odd"]'
    )
    suite = write(tmp_path, text.replace('drop = "$drop"', "drop = 0.5"))
    choices: dict[str, Any] = {"plugins": [plugin(tmp_path, source)]}
    board = run(suite, tmp_path / "store", **choices)
    assert [r for r in board.tally.failed.values() if "needs" not in r] == ['trainer "odd" returned int, not masks']


PROBES = '''
def probe(model, masks, data, loop, rng, *, how: str = ""):
    """how: what it does wrong"""
    x, y = take(data.test, torch.arange(20))
    if how == "train":
        model.train()
    if how == "grad":
        for p in model.parameters():
            p.requires_grad_(True)
        torch.nn.functional.cross_entropy(model(x), y).backward()
    if how == "weights":
        model.fc1.weight.data[0, 0] += 1
    if how == "swap":
        model.fc1.weight = torch.nn.Parameter(torch.zeros_like(model.fc1.weight))
    if how == "nan":
        return {"a": float("nan"), "b": None, "c": torch.tensor(0.5)}
    if how == "odd":
        return "many"
    return float((model(x).argmax(1) == y).double().mean())

@hookimpl
def rtbench_probes():
    return {"probe": probe}
'''


def test_probes_leave_the_model_or_fail(tmp_path: Path) -> None:
    hows = ["", "train", "grad", "weights", "swap", "nan", "odd"]
    probes = "\n".join(f'p{i} = {{ use = "probe", how = "{how}", at = "last" }}' for i, how in enumerate(hows))
    text = SUITE[: SUITE.index("clean ")] + probes + SUITE[SUITE.index("[parts]") - 1 :]
    choices: dict[str, Any] = {"plugins": [plugin(tmp_path, PROBES)], "only": {"recipe": ["dense"]}}
    board = run(write(tmp_path, text), tmp_path / "store", **choices)
    (row,) = board.rows
    assert row.probes["p0"].values == row.probes["p1"].values == row.probes["p2"].values != [None]
    assert (row.probes["p5.a"].mean, row.probes["p5.b"].mean, row.probes["p5.c"].mean) == (None, None, 0.5)
    reasons = sorted(board.tally.failed.values())
    assert len(reasons) == 3 and reasons[0].startswith("ValueError: could not convert string to float")
    assert reasons[1:] == ['probe "probe": it changed fc1 of the model', 'probe "probe": it changed fc1.weight of the model']


def test_several_inputs_reach_a_stage(tmp_path: Path) -> None:
    """A rewound ticket: the weights of one stage, the masks of another, pruned weights exactly 0."""
    suite, store = write(tmp_path), tmp_path / "store"
    run(suite, store)
    results = Results(store)
    for stage in stages(api.plan(suite, device="cpu"), "train"):
        if "masks" in stage.inputs:
            _, masks = unpack(results.state_bytes(stage.inputs["masks"]))
            weights, kept = unpack(results.state_bytes(stage.key))
            assert all(torch.equal(masks[name], kept[name]) and bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())
            facts = results.provenance(stage.key)
            assert facts["masks"] == results.state_digest(stage.inputs["masks"]) != facts["weights"]


def test_weights_may_be_loaded_and_a_changed_file_is_noticed(tmp_path: Path) -> None:
    text = SUITE.replace('steps = [{ init = "net" }, { train', 'steps = [{ load = "w.safetensors" }, { train', 1)
    (tmp_path / "w.safetensors").write_bytes(_initial(tmp_path))
    what = api.study(write(tmp_path, text), only={"recipe": ["dense"]}, device="cpu")
    content = bytearray((tmp_path / "w.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "w.safetensors").write_bytes(content)
    board = api.run_study(what, tmp_path / "store", api.How(workers=1, threads=1))
    assert any("changed since the suite was planned" in reason for reason in board.tally.failed.values())
    board = run(write(tmp_path, text), tmp_path / "store", only={"recipe": ["dense"]})
    assert not board.tally.failed


def _initial(folder: Path) -> bytes:
    suite, store = write(folder, name="other.toml"), folder / "loaded"
    run(suite, store, only={"recipe": ["dense"]})
    return Results(store).state_bytes(stages(api.plan(suite, device="cpu"), "init")[0].key)


def test_memory_stays_flat_over_many_stages(tmp_path: Path) -> None:
    probes = "".join(f'p{i} = {{ use = "accuracy", samples = {i + 1}, at = "last" }}\n' for i in range(300))
    suite = write(tmp_path, SUITE[: SUITE.index("clean ")] + probes + SUITE[SUITE.index("[parts]") - 1 :])
    done = studies.python(
        """
        import sys, studies
        from rtbench.hookspecs import hookimpl

        sizes = []

        class Listener:
            @hookimpl
            def rtbench_stage_done(self, stage, records, seconds, cached):
                with open("/proc/self/statm") as file:
                    sizes.append(int(file.read().split()[1]) * 4096)

        board = studies.run(sys.argv[1], sys.argv[2], only={"recipe": ["dense"]}, listener=Listener())
        assert board.tally.done == 302, board.tally
        print(max(sizes[60:]) - sizes[50])
        """,
        suite, tmp_path / "store",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 30e6


def test_numbers_are_those_of_the_stored_weights(tmp_path: Path) -> None:
    """The accuracy of the record is what plain torch gets from the stored weights."""
    suite, store = write(tmp_path), tmp_path / "store"
    run(suite, store)
    plan, results = api.plan(suite, device="cpu"), Results(store)
    found = api.study(suite, device="cpu")
    for probe in stages(plan, "probe"):
        weights, masks = unpack(results.state_bytes(probe.inputs["weights"]))
        if probe.part["use"] == "density":
            total = sum(weights[name].numel() for name in ("fc1.weight", "fc2.weight"))
            alive = sum(int(weights[name].count_nonzero()) for name in ("fc1.weight", "fc2.weight"))
            assert values(store, probe.key)[""] == alive / total
            assert not masks or alive <= sum(int(mask.sum()) for mask in masks.values())
        else:
            test = load_data(probe.data, found.catalogue, found.options).test
            assert test is not None
            x = test.x[:200].flatten(1)
            logits = torch.relu(x @ weights["fc1.weight"].T + weights["fc1.bias"]) @ weights["fc2.weight"].T + weights["fc2.bias"]
            assert values(store, probe.key)[""] == pytest.approx(float((logits.argmax(1) == test.y[:200]).double().mean()), abs=1e-12)
