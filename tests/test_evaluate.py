"""`rtbench.evaluate`: exact on linear models, the same bits as the command line's, models as before, mistakes in one sentence."""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

import rtbench
from rtbench import UserError
from rtbench.evaluation.panel import FORWARDS, GRADIENTS
from rtbench.live.bar import bar
from rtbench.live.checkpoint import evaluate_checkpoint
from rtbench.parts.flags import meaning
from rtbench.statistics import wilson

FAST = {"attack": "apgd", "knobs": {"steps": 20}}


def linear(seed: int = 0, classes: int = 5, pixels: int = 16) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(pixels, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, pixels, generator=generator))
        layer.bias.copy_(0.1 * torch.randn(classes, generator=generator))
    return nn.Sequential(nn.Flatten(), layer).eval()


def points(model: nn.Module, n: int = 60, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images away from the box's faces, most of them labelled as the model does."""
    x = 0.4 + 0.2 * torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 5
    return x, y


def distances(model: nn.Sequential, x: Tensor, y: Tensor, dual: float) -> Tensor:
    """The exact distance to the nearest other class, negative where it is wrong, in float64."""
    w, b = model[1].weight.detach().double(), model[1].bias.detach().double()
    logits = x.double().flatten(1) @ w.T + b
    gaps = logits.gather(1, y[:, None]) - logits
    norms = torch.linalg.vector_norm(w[y][:, None] - w, ord=dual, dim=2)
    return (gaps / norms.clamp_min(1e-30)).masked_fill(torch.arange(w.shape[0]) == y[:, None], torch.inf).min(1).values


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("seed", range(3))
def test_linear_models_are_judged_as_the_closed_form_says(norm: str, dual: float, seed: int) -> None:
    model = linear(seed)
    x, y = points(model, seed=seed)
    exact = distances(model, x, y, dual)
    eps = Fraction(round(float(exact[exact > 0].median()) * 255), 255)
    found = rtbench.evaluate(model, x, y, norm=norm, eps=eps, attack="apgd", knobs={"loss": "dlr-targeted", "steps": 40})
    assert found.eps == str(eps) and (exact - float(eps)).abs().min() > 1e-6
    assert torch.equal(found.outcomes["clean"], exact > 0)
    assert torch.equal(found.outcomes["robust"], exact > float(eps)) and 0 < found.accuracy < found.clean
    assert found.accuracy == found.worst == float((exact > float(eps)).double().mean())
    assert found.interval == wilson(found.accuracy, len(x))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd", "fab", "deepfool", "fmn", "cw"])
def test_a_slope_that_is_infinite_where_pixels_are_black_is_no_defence(attack: str, norm: str) -> None:
    """The roots of all pixels have to add up to a half more; less than 1/100 in each of the eight black ones does that."""
    x, y = torch.full((40, 1, 4, 4), 0.5), torch.zeros(40, dtype=torch.int64)
    x[:, :, :2] = 0

    def model(x: Tensor) -> Tensor:
        score = x.sqrt().sum((1, 2, 3)) - 8 * 0.5**0.5 - 0.5
        return torch.stack([-score, score], 1)

    knobs = {"steps": 30} if attack not in ("fgsm", "deepfool") else {}
    found = rtbench.evaluate(model, x, y, attack, norm, 0.1 if norm == "linf" else 0.3, knobs=knobs)
    assert bool(found.outcomes["clean"].all()) and found.attacks[attack].accuracy == 0


def test_autoattack_in_one_line_credits_each_of_its_attacks() -> None:
    model = linear(classes=5)
    x, y = points(model, 12)
    eps = float(distances(model, x, y, 1).clamp_min(0).median())
    found = rtbench.evaluate(model, x, y, eps=eps, attack="autoattack")
    entries = found.attribution["autoattack"]
    assert [entry.attack for entry in entries] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    left = int(found.outcomes["clean"].sum())
    for entry in entries:
        left -= entry.broke
        assert entry.left == left == int(found.outcomes[f"autoattack.{entry.attack}"].sum())
    assert left == int(found.outcomes["robust"].sum()) and found.accuracy == left / 12


def test_attribution_of_plain_ensembles_never_counts_a_sample_twice() -> None:
    from rtbench.live.result import Judgement

    clean, robust = torch.tensor([1, 1, 1, 1, 0]).bool(), torch.tensor([0, 0, 0, 1, 0]).bool()
    inner = {"a": torch.tensor([0, 1, 1, 1, 0]).bool(), "b": torch.tensor([0, 0, 1, 1, 0]).bool()}
    entries = Judgement("both", {}, clean, robust, inner).attribution
    assert [tuple(entry) for entry in entries] == [("a", 1, 3), ("b", 1, 2), ("both", 1, 1)]


def test_the_bits_are_those_of_the_command(tmp_path: Path) -> None:
    from rtbench.engine.run import Options, load_data
    from rtbench.planning.resolve import Resolver
    from rtbench.plugins import catalogue

    torch.manual_seed(0)
    data = load_data(Resolver({}, catalogue())("dataset", "digits", "-"), catalogue(), Options(root=str(tmp_path)))
    model = catalogue().get("architecture", "mlp").function(data.shape, data.classes, hidden=[16])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train.x), data.train.y).backward()
        optimizer.step()
    next(p for p in model.parameters() if p.dim() == 2).data[:, :20] = 0
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    for attack, knobs in (("pgd", {"steps": 5}), ("apgd", {"steps": 10}), ("none", {})):
        threat = {} if attack == "none" else {"norm": "linf", "eps": "1/20"}
        told = evaluate_checkpoint(
            str(tmp_path / "model.safetensors"), "mlp", "digits", attack, knobs=["hidden=[16]"], samples=100, seed=3, device="cpu",
            attack_knobs=[f"{name}={value}" for name, value in knobs.items()], **threat,
        )  # fmt: skip
        test = data.test
        found = rtbench.evaluate(
            model, test.x, test.y, attack, knobs=knobs, samples=100, seed=3, ids=test.ids, eps=threat.get("eps"), progress=False
        )
        assert told["bits"] == found.as_json()["bits"]["robust"] and told["ids"] == found.ids.tolist()
        assert (told["clean"], told["robust"], told["interval"], told["nonzero"]) == (
            found.clean, found.accuracy, found.interval, found.nonzero["all"],
        )  # fmt: skip
        assert told["passes"] == {word: found.passes[word] for word in ("forwards", "gradients")}
        assert told["flags"] == sorted(set(found.flags) - {"train-mode"}) and "train-mode" in found.flags
        assert told["protocol"]["knobs"]["attack"] == found.protocol["attacks"][attack]


class Counting(nn.Module):
    """With BatchNorm and Dropout, frozen parameters among others, and gradients lying about."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 5))
        self.body[0].weight.requires_grad_(False)
        self.body[5].weight.grad = torch.ones_like(self.body[5].weight)
        self.body[1].eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd", "square"])
def test_the_model_and_the_generators_are_as_before(attack: str) -> None:
    model = Counting().train()
    model.body[1].eval()
    x, y = torch.rand(20, 1, 4, 4), torch.arange(20) % 5
    before, kept = copy.deepcopy(model.state_dict()), (x.clone(), y.clone())
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    knobs = {"queries": 20} if attack == "square" else {"steps": 5} if attack != "fgsm" else None
    found = rtbench.evaluate(model, x, y, attack, eps=0.1, knobs=knobs)
    assert "train-mode" in found.flags and "eval mode" in meaning("train-mode")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert torch.equal(model.body[5].weight.grad, torch.ones_like(model.body[5].weight)) and model.body[5].bias.grad is None
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.random.get_state()[1].tolist() == states[1] and torch.equal(x, kept[0]) and torch.equal(y, kept[1])
    assert not model._forward_hooks


def test_a_model_in_train_mode_gets_the_numbers_of_eval_mode_and_only_it_the_flag() -> None:
    model = Counting()
    x, y = torch.rand(30, 1, 4, 4), torch.arange(30) % 5
    train = rtbench.evaluate(model.train(), x, y, **FAST, eps=0.1)
    quiet = rtbench.evaluate(model.eval(), x, y, **FAST, eps=0.1)
    assert train.as_json()["bits"] == quiet.as_json()["bits"] and set(train.flags) - set(quiet.flags) == {"train-mode"}


def test_numpy_uint8_floats_and_callables_give_the_same_bits() -> None:
    model = linear()
    x, y = points(model, 40)
    x = (x * 255).round() / 255
    kinds: list[tuple[Any, Any, Any]] = [
        (model, x, y), (model, x.numpy(), y.numpy()), (model, x.numpy().astype(np.float64), y.tolist()),
        (model, (x * 255).round().byte(), y.int()), (lambda images: model(images), x, y),
    ]  # fmt: skip
    found = [rtbench.evaluate(net, images, labels, **FAST, eps="8/255").as_json() for net, images, labels in kinds]
    assert {each["bits"]["robust"] for each in found} == {found[0]["bits"]["robust"]}
    assert any("callable" in note for note in found[-1]["notes"]) and not found[-1]["nonzero"]
    assert all("not contained" in " ".join(each["notes"]) for each in found)


def test_the_seed_and_the_ids_key_the_randomness() -> None:
    model = linear(classes=5)
    x, y = points(model, 100)
    knobs: dict[str, Any] = {"attack": "pgd", "knobs": {"steps": 1, "step": "1/255"}, "eps": "30/255"}
    first = rtbench.evaluate(model, x, y, **knobs).outcomes["robust"]
    assert torch.equal(first, rtbench.evaluate(model, x, y, **knobs).outcomes["robust"])
    assert not torch.equal(first, rtbench.evaluate(model, x, y, seed=1, **knobs).outcomes["robust"])
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    shuffled = rtbench.evaluate(model, x[order], y[order], ids=order, batch=17, **knobs)
    assert torch.equal(shuffled.outcomes["robust"], first[order]) and torch.equal(shuffled.ids, order)


def test_sparsity_is_that_of_the_weights_in_use() -> None:
    from torch.nn.utils import prune

    model = linear()
    x, y = points(model, 10)
    assert rtbench.evaluate(model, x, y, "none").nonzero == {"all": 1.0, "prunable": 1.0}
    prune.l1_unstructured(model[1], "weight", amount=60)
    assert rtbench.evaluate(model, x, y, "none").nonzero["prunable"] == 20 / 80
    prune.remove(model[1], "weight")
    assert rtbench.evaluate(model, x, y, "none").nonzero == {"all": 25 / 85, "prunable": 0.25}


HOSTILE = """
from rtbench import hookimpl

def bad(model, x, y, threat, noise):
    raise RuntimeError("boom & <b>")

def far(model, x, y, threat, noise):
    return x * float("nan")

@hookimpl
def rtbench_attacks():
    return {"bad": bad, "far": far}
"""


def test_a_failed_attack_makes_the_worst_case_incomplete_and_has_no_number(tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text(HOSTILE)
    model = linear()
    x, y = points(model, 20)
    plugins = [str(tmp_path / "hostile.py")]
    found = rtbench.evaluate(model, x, y, ["fgsm", "bad", "far"], eps=0.01, plugins=plugins)
    assert found.worst == "incomplete" and found.accuracy is None and found.interval is None and found.robust is None
    assert list(found.failures) == ["bad", "far"] and "boom" in found.failures["bad"] and "not finite" in found.failures["far"]
    assert "robust" not in found.outcomes and found.attacks["bad"].accuracy is None and found.attacks["fgsm"].accuracy is not None
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert told["worst"] == "incomplete" and told["accuracy"] is None and told["attacks"]["far"]["bits"] is None
    assert "incomplete" in found.flags and "incomplete" in repr(found) and "boom" in repr(found)
    assert "boom &amp; &lt;b&gt;" in found._repr_html_() and "<b>&quot;" not in found._repr_html_()
    alone = rtbench.evaluate(model, x, y, "bad", eps=0.01, plugins=plugins)
    assert alone.accuracy is None and alone.clean == found.clean


class Rounding(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = (x * 8).round() / 8
        return super().forward(x)


def test_a_network_without_gradients_is_judged_by_square_alone() -> None:
    model = Rounding(*linear())
    x, y = points(model)
    attacks = ["autoattack", "pgd", {"use": "square", "queries": 60}]
    found = rtbench.evaluate(model, x, y, attacks, "linf", "1/2", progress=False)
    assert found.worst == "incomplete" and set(found.failures) == {"autoattack", "pgd"}
    assert all('use attack = "square", which needs none' in reason for reason in found.failures.values())
    square = found.attacks["square"].accuracy
    assert square is not None and 0 <= square < 1 and "zero-gradient" in found.flags


def test_the_worst_case_is_what_withstood_every_attack() -> None:
    model = Counting().eval()
    x, y = torch.rand(60, 1, 4, 4), torch.zeros(60, dtype=torch.int64)
    with torch.no_grad():
        y = model(x).argmax(1)
    attacks = ["fgsm", {"use": "pgd", "steps": 3}, {"use": "pgd", "steps": 7, "loss": "ce"}]
    found = rtbench.evaluate(model, x, y, attacks, eps=0.05)
    assert list(found.attacks) == ["fgsm", "pgd", "pgd-3"]
    kept = torch.stack([found.outcomes[name] for name in found.attacks]).all(0)
    assert torch.equal(found.outcomes["robust"], kept) and found.worst == float(kept.double().mean())
    assert found.worst <= min(each.accuracy for each in found.attacks.values())


def test_passes_are_counted_in_total_and_per_sample() -> None:
    model = linear()
    x, y = points(model, 30)
    found = rtbench.evaluate(model, x, y, "fgsm", eps=0.01)
    right = int(found.outcomes["clean"].sum())
    # One clean pass, one for the step, one to judge; the last two only of samples that were right.
    # And what the judge asks of every model: four times the same images, then twice half of them beside others; and the panel.
    forwards, gradients = 30 + 2 * right + 4 * 30 + 2 * 30 + right * FORWARDS, right + right * GRADIENTS
    assert found.passes == {"forwards": forwards, "gradients": gradients, "forwards_per_sample": forwards / 30,
                            "gradients_per_sample": gradients / 30}  # fmt: skip
    slots = rtbench.evaluate(model, x, y, **FAST, eps=1e-5).attacks["apgd"]
    alive = slots.robust
    assert slots.per_sample["gradients"][alive].unique().tolist() == [21] and int(slots.per_sample["gradients"][~slots.clean].sum()) == 0
    assert slots.passes["gradients"] >= int(slots.per_sample["gradients"].sum())


def test_the_result_prints_and_is_json() -> None:
    model = linear()
    x, y = points(model, 30)
    found = rtbench.evaluate(model.train(), x, y, ["fgsm", "apgd"], eps="8/255")
    for text in (repr(found), str(found), found._repr_html_()):
        for word in ("clean", "fgsm", "apgd", "worst", "8/255", "30 samples", "train-mode", "not contained", f"{100 * found.accuracy:.1f}"):
            assert word in text, word
    assert found._repr_html_().count("<tr") == found._repr_html_().count("</tr>") == 6
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert (
        told["protocol"]["seed"] == 0 and told["protocol"]["versions"]["torch"] and told["protocol"]["threads"] == torch.get_num_threads()
    )
    assert told["protocol"]["attacks"]["apgd"]["knobs"]["steps"] == 100 and told["flags"]["train-mode"] == meaning("train-mode")
    assert len(told["bits"]["clean"]) == len(told["ids"]) == 30


class Leaky(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor) -> Any:
        return self.give(x)


X, Y = points(linear())
OFF = torch.full_like(X, torch.nan)
IN_PLACE = "model: its forward changes its input in place; write x = x - mean"
MEAN, CLAMPED = Leaky(lambda x: x.sub_(0.5).flatten(1)), Leaky(lambda x: x.clamp_(0, 1).flatten(1))
HIDDEN = Leaky(lambda x: (x.data.sub_(0.5), x.flatten(1))[1])
"""No version of the tensor tells."""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": linear().double()}, "model: has weights or buffers in float64, but verdicts are in float32; pass model.float()"),
        ({"model": linear().half()}, "float16"),
        ({"model": nn.Linear}, "Linear is a class"),
        ({"model": {"weight": 1}}, "rtbench evaluate"),
        ({"model": 3}, "neither a torch module nor callable"),
        ({"model": nn.Linear(7, 3)}, "model: raised RuntimeError on images of shape (2, 1, 4, 4)"),
        ({"model": Leaky(lambda x: (x, x))}, "gives tuple"),
        ({"model": Leaky(lambda x: x)}, "gives shape (2, 1, 4, 4)"),
        ({"model": Leaky(lambda x: x.flatten(1)[:, :1])}, "gives 1 logit"),
        ({"model": Leaky(lambda x: x.flatten(1) * torch.nan)}, "no finite logit"),
        ({"model": Leaky(lambda x: x.flatten(1).long())}, "model: gives logits in int64; give floats"),
        *[
            ({"model": model, "attack": attack}, IN_PLACE)
            for model in (MEAN, HIDDEN, CLAMPED)
            for attack in ("pgd", "apgd", ["none", "pgd"])
        ],
        ({"x": X * 255}, "divide by 255"),
        ({"x": X * 4 - 2}, "normalise inside the model"),
        ({"x": OFF}, "not finite, first in sample 0"),
        ({"x": X.long()}, "x: is int64"),
        ({"x": X.numpy().astype(complex)}, "x: a numpy array of complex128"),
        ({"x": X.flatten(1)}, "x: has shape (60, 16), not (n, c, h, w)"),
        ({"x": X[:0], "y": Y[:0]}, "holds nothing"),
        ({"x": X.tolist()}, "x: list"),
        ({"y": Y[:-1]}, "y: has shape (59,) for 60 images"),
        ({"y": Y.float()}, "y: is float32"),
        ({"y": nn.functional.one_hot(Y)}, "y.argmax(1)"),
        ({"y": Y + 5}, "the model gives 5 classes, 0 to 4"),
        ({"y": Y - 5}, "has label -"),
        ({"y": object()}, "y: object"),
        ({"eps": 8}, 'eps: 8 exceeds the range [0, 1] of a pixel; did you mean "8/255"?'),
        ({"eps": None}, "eps: is missing"),
        ({"eps": "eight"}, "eps: 'eight' is not a number"),
        ({"eps": -0.1}, "eps: "),
        ({"norm": "inf"}, "norm: "),
        ({"attack": "pgdd"}, 'did you mean "pgd"'),
        ({"attack": []}, "attack: none is named"),
        ({"attack": 3}, "attack"),
        ({"attack": ["pgd", {"use": "pgd", "eps": 0.1}]}, "attack.1.eps: is one for all attacks"),
        ({"attack": ["pgd", {"use": "pgd", "stepz": 1}]}, 'attack.1.stepz: no knob "stepz"'),
        ({"attack": ["pgd", "fgsm"], "knobs": {"steps": 1}}, "knobs: go with one attack"),
        ({"attack": "pgd", "knobs": {"stepz": 1}}, 'knobs.stepz: no knob "stepz"; did you mean "step"?'),
        ({"attack": "fgsm", "precision": "bf16"}, 'precision: the attack "fgsm" has no such knob; leave it out'),
        ({"attack": ["fgsm", "pgd"], "precision": "bf16"}, 'precision: the attack "fgsm" and "pgd" has no such knob'),
        ({"attack": "apgd", "knobs": {"precision": "exact"}, "precision": "bf16"}, "precision: is given twice"),
        ({"attack": "none"}, 'eps: the attack "none" has no such knob; leave it out'),
        ({"attack": ["none"], "eps": None, "norm": "linf"}, 'norm: the attack "none" has no such knob; leave it out'),
        ({"knobs": {"eps": "1/255"}}, "knobs.eps: is an argument of its own; give it as eps="),
        ({"knobs": {"norm": "l2"}}, "knobs.norm: is an argument of its own; give it as norm="),
        ({"knobs": {"use": "pgd"}}, "knobs.use: is an argument of its own; give it as attack="),
        ({"knobs": ["steps"]}, "knobs: ['steps'] is no table"),
        ({"attack": "apgd", "precision": "bf17"}, "precision: "),
        ({"attack": "apgd", "precision": "bf16", "model": lambda x: x.flatten(1)}, "precision: bf16 needs a torch module"),
        ({"attack": "apgd", "knobs": {"precision": "bf16"}, "model": lambda x: x.flatten(1)}, "precision: bf16 needs a torch module"),
        ({"attack": "autoattack", "norm": "l1"}, "autoattack takes linf and l2"),
        ({"batch": 0}, "batch: 0 is outside"),
        ({"samples": 0}, "samples: 0 is outside"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": 2**63}, "seed: 9223372036854775808 is not"),
        ({"x": X.numpy().astype("longdouble")}, "x: a numpy array of "),
        ({"ids": ["a"] * 60}, "ids: list is no tensor"),
        ({"device": "cuda:77"}, 'device: "cuda:77" is not available'),
        ({"ids": torch.zeros(60).long()}, "ids: not 60 different"),
        ({"plugins": "nowhere.py"}, "nowhere.py"),
    ],
)
def test_every_mistake_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        rtbench.evaluate(**{"model": linear(), "x": X, "y": Y, "eps": "8/255", "attack": "fgsm", **changes})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_only_some_of_the_attacks_take_goes_to_these() -> None:
    found = rtbench.evaluate(linear(), X, Y, ["none", "fgsm", {"use": "apgd", "steps": 2}], eps="8/255", precision="bf16")
    assert found.attacks["none"].accuracy == found.clean and (found.norm, found.eps) == ("linf", "8/255")
    knobs = {name: each["knobs"] for name, each in found.protocol["attacks"].items()}
    assert knobs["none"] == {} and "precision" not in knobs["fgsm"] and knobs["apgd"]["precision"] == "bf16"
    assert rtbench.evaluate(linear(), X, Y, "none").norm is None


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    own, numpys = (
        rtbench.evaluate(linear(), X, Y, "pgd", eps=0.1, seed=of(3), batch=of(7), samples=of(20), workers=of(1)) for of in (int, np.int32)
    )
    assert torch.equal(own.outcomes["robust"], numpys.outcomes["robust"]) and json.dumps(numpys.as_json())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_torchscript_is_one_sentence() -> None:
    with pytest.raises(UserError, match="model: is TorchScript, which takes no hooks"):
        rtbench.evaluate(torch.jit.script(linear()), X, Y, "pgd", eps=0.1)


def test_what_the_caller_set_for_torch_changes_nothing() -> None:
    names = ["pgd", "apgd", "fab", "fmn", "cw", "square"]
    model, attacks = linear(), [{"use": name, "queries" if name == "square" else "steps": 20} for name in names]

    def found() -> list[Any]:
        told = rtbench.evaluate(model, X, Y, attacks, eps="1/20", samples=20).as_json()
        return [told["bits"], told["worst"], told["passes"], told["failures"]]

    wanted = found()
    torch.set_default_dtype(torch.float64)
    try:
        assert found() == wanted and torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        assert found() == wanted and torch.is_inference_mode_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert found() == wanted and torch.is_autocast_enabled("cpu")
    assert not wanted[-1]


def test_labels_may_be_a_view_of_an_array() -> None:
    model = linear()
    own, other = (rtbench.evaluate(model, x, y, "fgsm", eps=0.1) for x, y in ((X.flip(0), Y.flip(0)), (X.numpy()[::-1], Y.numpy()[::-1])))
    assert own.protocol["data"] == other.protocol["data"] and torch.equal(own.outcomes["robust"], other.outcomes["robust"])


def test_the_byte_order_of_arrays_does_not_matter() -> None:
    model = linear()
    own, other = (
        rtbench.evaluate(model, X.numpy().astype(f"{order}f4"), Y.numpy().astype(f"{order}i8"), "fgsm", eps=0.1) for order in "<>"
    )
    assert own.protocol["data"] == other.protocol["data"] and torch.equal(own.outcomes["robust"], other.outcomes["robust"])


def test_a_model_that_counts_in_eval_mode_is_put_back() -> None:
    class Ticking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ticks", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.ticks += 1
            return x.flatten(1)[:, :5]

    model = Ticking()
    with pytest.raises(UserError, match="ticks"):
        rtbench.evaluate(model, X, Y, "fgsm", eps=0.1)
    assert float(model.ticks) == 0


def test_bfloat16_search_is_a_knob() -> None:
    model = linear()
    found = rtbench.evaluate(model, X, Y, **FAST, eps="8/255", precision="bf16")
    assert found.protocol["attacks"]["apgd"]["knobs"]["precision"] == "bf16"
    assert not bool((found.outcomes["robust"] & (distances(model, X, Y, 1) <= 0)).any())


def test_a_network_that_refuses_bfloat16_is_one_sentence() -> None:
    shifted = nn.Sequential(nn.Flatten(), Leaky(lambda x: x - torch.zeros(16)), linear())
    with pytest.raises(UserError, match=r'precision "bf16" needs a copy of the network that answers in bfloat16 \(.*\); use "exact"$'):
        rtbench.evaluate(shifted, X, Y, "apgd", eps=0.1, precision="bf16")


def test_progress_is_shown_where_it_can_be_seen() -> None:
    screen, pipe = io.StringIO(), io.StringIO()
    for wanted, terminal, file in ((None, True, screen), (None, False, pipe)):
        with bar("pgd on 10 samples", wanted, Console(file=file, force_terminal=terminal, width=100)) as report:
            assert (report is not None) is terminal
            if report:
                report(3, 10)
    assert "pgd on 10 samples" in screen.getvalue() and "30%" in screen.getvalue() and pipe.getvalue() == ""
    with bar("x", False, Console(file=screen, force_terminal=True)) as report:
        assert report is None


def test_the_name_is_the_function_whatever_was_imported() -> None:
    import importlib

    for module in ("rtbench.live", "rtbench.live.checkpoint", "rtbench.commands.api"):
        importlib.import_module(module)
    assert callable(rtbench.evaluate) and rtbench.evaluate.__name__ == "evaluate"
