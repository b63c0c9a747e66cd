"""The contract itself: everything installed passes it, and a part that breaks a promise is caught by the check of that promise."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import rtbench
import rtbench.testing
from rtbench import Attack, Attacked, Data, Measure, OneOf, Range, Split, Threat, UserError, batches, declare, keep_top, prunable, take
from rtbench.cli import cli
from rtbench.parts.kinds import Unstackable, knobs
from rtbench.plugins import Catalogue, Part, catalogue
from rtbench.testing import KINDS, Result, architectures, attacks, datasets, declared, objectives, probes, pruners, reports, trainers
from rtbench.testing.lab import data, trained

INSTALLED = catalogue()


def results(kind: str, name: str, found: Catalogue = INSTALLED, **given: Any) -> list[Result]:
    return [result for result in rtbench.check(name, found, given or None) if result.kind == kind]


def tried(kind: str, function: Callable[..., Any], name: str = "under-test", **given: Any) -> list[Result]:
    """What the contract says of a part that nobody installed."""
    part = Part(kind, name, function, "tests", "0")
    found = dataclasses.replace(INSTALLED, parts={**INSTALLED.parts, (kind, name): part})
    return results(kind, name, found, **given)


def caught(kind: str, function: Callable[..., Any], check: Callable[..., Any], reason: str = "", name: str = "under-test") -> None:
    """Asserts that exactly this check, or it among others, refuses the part, with this reason."""
    failed = {result.text: result.reason for result in tried(kind, function, name) if not result.ok}
    text = (check.__doc__ or "").rstrip(".")
    assert text in failed, failed
    assert reason in failed[text]


@pytest.mark.parametrize(("kind", "name"), sorted(INSTALLED.parts), ids=str)
def test_everything_installed_keeps_its_contract(kind: str, name: str) -> None:
    found = results(kind, name)
    assert [f"{result}: {result.reason}" for result in found if not result.ok] == []
    assert len(found) > len(declared.CHECKS)  # a part that was only looked at, not run, says why
    if INSTALLED.parts[kind, name].owner == "rtbench" and kind not in ("dataset", "pruner", "probe"):
        assert not [result for result in found if result.skipped]


@pytest.mark.parametrize(("kind", "name"), sorted(key for key, part in INSTALLED.parts.items() if part.owner == "rtbench"), ids=str)
def test_every_knob_of_a_built_in_part_is_explained(kind: str, name: str) -> None:
    assert [knob.name for knob in knobs(kind, INSTALLED.parts[kind, name].function).values() if not knob.help] == []


def test_checks_have_texts_of_their_own() -> None:
    for kind, module in KINDS.items():
        texts = [inspect.getdoc(check) or "" for check in (*declared.CHECKS, *module.CHECKS)]
        assert len(set(texts)) == len(texts) > 6, kind
        assert all(text.endswith(".") and "\n" not in text for text in texts), kind


def test_the_network_that_parts_are_tried_on_is_good_but_not_perfect() -> None:
    split = data().test
    assert split is not None
    x, y = take(split, torch.arange(len(split)))
    assert 0.7 < float((trained().eval()(x).argmax(1) == y).double().mean()) < 0.97


# What every part declares.


def quiet(board: Any, path: Any, **rest: Any) -> None:
    Path(path).write_text(str(board))


def report(**kwargs: Any) -> Callable[..., Any]:
    """A report with these knobs: name -> (annotation, default)."""

    def write(board: Any, path: Any, **rest: Any) -> None:
        """Writes."""
        Path(path).write_text(str(board.records()))

    words = [inspect.Parameter(word, inspect.Parameter.POSITIONAL_OR_KEYWORD) for word in ("board", "path")]
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=a) for name, (a, d) in kwargs.items()]
    write.__signature__ = inspect.Signature([*words, *own])  # type: ignore[attr-defined]
    write.__annotations__ = {name: annotation for name, (annotation, _) in kwargs.items()}
    return write


HALF = Annotated[float, Range("(0, 1)")]


@pytest.mark.parametrize("annotation, default", [
    (HALF, 0.5), (HALF | None, None), (Annotated[list[int], Range("[0, inf)")], [1]), (list[HALF], [0.5]), (dict[str, HALF], {}),
    (Annotated[Fraction | None, Range("(0, inf)")], None), (bool, True), (Literal[1, 2], 1), (str, "a"), (Attack, "none"),
    (dict[str, bool | int | float | str], {}), (tuple[str, ...], ()), (Annotated[float, Range("(-inf, inf)")], 0.0),
    (Annotated[dict[str, float], Range("[0, 1]")], {}), (tuple[HALF, HALF], (0.1, 0.2)),
    (Annotated[tuple[int, int], Range("[1, 3]")], (1, 3)),
])  # fmt: skip
def test_sound_knobs_pass(annotation: Any, default: Any) -> None:
    assert [result.reason for result in tried("report", report(knob=(annotation, default))) if not result.ok] == []


@pytest.mark.parametrize("annotation, default, check, reason", [
    (int, 1, declared.bounded, "int without a Range"),
    (float | None, None, declared.bounded, "float without a Range"),
    (Fraction, Fraction(1), declared.bounded, "Fraction without a Range"),
    (list[int], [], declared.bounded, "int without a Range"),
    (tuple[HALF, float], (0.1, 0.2), declared.bounded, "float without a Range"),
    (dict[str, float], {}, declared.bounded, "float without a Range"),
    (Annotated[int, Range("[1, 5]")] | int, 1, declared.bounded, "int without a Range"),
    (Any, 1, declared.bounded, "annotate it"),
    (HALF, 1.0, declared.sound_defaults, "outside (0, 1)"),
    (Annotated[list[int], Range("[1, 3]")], [1, 4], declared.sound_defaults, "outside [1, 3]"),
    (Literal["a", "b"], "c", declared.sound_defaults, 'no choice "c"'),
    (int, 1.5, declared.sound_defaults, "not a whole number"),
    (Attack, "pgdd", declared.sound_defaults, 'did you mean "pgd"'),
    (Annotated[int, Range("[1, 5]")] | int, 1, declared.refusing, "accepts 0"),
    (Annotated[float, Range("[0, inf)")] | float, 1.0, declared.refusing, "accepts -1.0"),
])  # fmt: skip
def test_knobs_that_do_not_say_what_they_take_are_caught(annotation: Any, default: Any, check: Any, reason: str) -> None:
    caught("report", report(knob=(annotation, default)), check, reason)


def test_names_docstrings_and_words_are_checked() -> None:
    caught("report", report(), declared.well_named, name="My_Report")
    caught("report", quiet, declared.documented)
    caught("report", quiet, declared.known_words, "may not take")

    def colourful(board: Any, path: Any, colour: Any) -> None:
        """Writes in colour."""

    caught("report", colourful, declared.known_words, "asks for colour")


# Datasets.


def dataset(change: Callable[[Data], Any]) -> Callable[..., Any]:
    def load() -> Any:
        """Random images."""
        rng = torch.Generator().manual_seed(0)
        x, y = torch.rand(60, 1, 8, 8, generator=rng), torch.arange(60) % 3
        split = Split(x, y, torch.arange(60))
        at = torch.arange
        whole = Data(split.subset(at(40)), split.subset(at(40, 50)), split.subset(at(50, 60)), None, (1, 8, 8), 3)
        return change(whole)

    return load


def of(split: Any, **changes: Any) -> Any:
    return dataclasses.replace(split, **changes)


@pytest.mark.parametrize("change, check, reason", [
    (lambda d: d._replace(test=None), datasets.complete, "no test split"),
    (lambda d: d._replace(valid=d.valid.subset(torch.arange(0))), datasets.complete, "no valid split"),
    (lambda d: (d.train, d.valid), datasets.complete, "tuple"),
    (lambda d: d._replace(valid=of(d.valid, x=d.valid.x * 255)), datasets.images, "valid images have values"),
    (lambda d: d._replace(test=of(d.test, x=d.test.x / 0)), datasets.images, "test images have values"),
    (lambda d: d._replace(shape=(8, 8, 1)), datasets.images, "not (8, 8, 1)"),
    (lambda d: d._replace(classes=2), datasets.labels, "from 0 to 2"),
    (lambda d: d._replace(train=of(d.train, y=d.train.y - 1)), datasets.labels, "from -1"),
    (lambda d: d._replace(valid=of(d.valid, ids=torch.arange(35, 45))), datasets.apart, "share 5 ids"),
    (lambda d: d._replace(test=of(d.test, ids=torch.zeros(10, dtype=torch.int64))), datasets.apart, "test has ids that occur twice"),
    (lambda d: d._replace(test=of(d.test, x=torch.rand(10, 1, 8, 8))), datasets.repeatable, "digests"),
    (lambda d: d._replace(test=of(d.test, ids=torch.randint(2**60, (10,)))), datasets.repeatable, "test different ids"),
])  # fmt: skip
def test_broken_datasets_are_caught(change: Any, check: Any, reason: str) -> None:
    caught("dataset", dataset(change), check, reason)


def test_a_dataset_that_is_not_here_is_skipped_and_one_that_crashes_is_not() -> None:
    def absent(d: Data) -> Data:
        raise UserError("there is no such file")

    def crashing(d: Data) -> Data:
        raise FileNotFoundError("there is no such file")

    assert all(result.ok for result in tried("dataset", dataset(lambda d: d)))
    last = tried("dataset", dataset(absent))[-1]
    assert last.ok and last.skipped and last.text == "skipped: there is no such file"
    caught("dataset", dataset(crashing), datasets.images, "FileNotFoundError: there is no such file")


def test_datasets_that_need_files_are_checked_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = numpy.random.default_rng(0).random((30, 8, 8), dtype=numpy.float32), numpy.arange(30) % 3
    numpy.savez(tmp_path / "set.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    for number, label in enumerate(y):
        (tmp_path / "images" / f"class-{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray((x[number] * 255).astype("uint8")).save(tmp_path / "images" / f"class-{label}" / f"{number}.png")
    for name, given in (("npz", {"file": "set.npz"}), ("image-folder", {"folder": "images", "size": 8, "channels": 1, "memory_mb": 0})):
        monkeypatch.setenv("RTBENCH_DATA", str(tmp_path))
        found = results("dataset", name, **given)
        assert [result.reason for result in found if not result.ok or result.skipped] == []


# Architectures.


class Plain(nn.Module):
    """A hidden layer with BatchNorm, and hooks for the ways it can be wrong."""

    head_name = "head"

    def __init__(self, shape: Any, classes: int, hidden: int = 12) -> None:
        super().__init__()
        self.inner, self.bn = nn.Linear(shape[0] * shape[1] * shape[2], hidden), nn.BatchNorm1d(hidden)
        self.head = nn.Linear(hidden, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.bn(self.inner(x.flatten(1))).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Mixing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class Unused(Plain):
    def __init__(self, shape: Any, classes: int) -> None:
        super().__init__(shape, classes)
        self.idle = nn.Linear(3, 3)


class Detached(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class Headless(Plain):
    head_name = "classifier"


class WrongHead(Plain):
    head_name = "inner"


class Growing(Plain):
    def __init__(self, shape: Any, classes: int) -> None:
        super().__init__(shape, classes, 2 * classes)


class Hiding(Plain):
    def __init__(self, shape: Any, classes: int) -> None:
        super().__init__(shape, classes)
        self.secret = torch.rand(classes)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.secret


class Remembering(Plain):
    """Keeps what it learns of images outside of its state dict."""

    def __init__(self, shape: Any, classes: int) -> None:
        super().__init__(shape, classes)
        self.seen = torch.zeros(12)

    def features(self, x: Tensor) -> Tensor:
        found = super().features(x)
        if self.training:
            self.seen = self.seen + found.detach().mean(0)
        return found - self.seen


class Sized(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., :8, :8] if x.shape[-1] > 8 else x)


def normed(shape: Any, classes: int) -> nn.Module:
    model = Plain(shape, classes)
    nn.utils.parametrizations.weight_norm(model.inner)
    return model


class Counting(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.bn.num_batches_tracked += 1
        return super().forward(x)


class InPlace(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp_(0, 1))


class Dropping(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.dropout(self.features(x)))


class Doubled(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


class Short(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 1:]


class Infinite(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0


class Raw(nn.Module):
    head_name = "head"

    def __init__(self, shape: Any, classes: int) -> None:
        super().__init__()
        self.head = nn.ParameterDict({"weight": torch.randn(shape[0] * shape[1] * shape[2], classes)})

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.head["weight"]


def architecture(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def build(shape: Any, classes: int) -> nn.Module:
        """A network."""
        return make(shape, classes)

    return build


def unseeded(shape: Any, classes: int) -> nn.Module:
    model = Plain(shape, classes)
    model.inner.weight.data += torch.rand(1, generator=fresh())
    return model


def same_for_all(shape: Any, classes: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Plain(shape, classes)


def refuse(shape: Any, classes: int) -> nn.Module:
    raise UserError("too small")


def picky(shape: Any, classes: int) -> nn.Module:
    return Plain(shape, classes) if shape == (3, 32, 32) else refuse(shape, classes)


def fresh() -> torch.Generator:
    """A generator whose seed nobody knows."""
    rng = torch.Generator()
    rng.seed()
    return rng


@pytest.mark.parametrize("make, check, reason", [
    (Short, architectures.logits, "shape (2, 9)"),
    (Doubled, architectures.logits, "not finite float32"),
    (Infinite, architectures.logits, "not finite"),
    (refuse, architectures.logits, "it takes none of the shapes"),
    (Mixing, architectures.independent, "logits differ by"),
    (unseeded, architectures.seeded, "two networks of one seed differ"),
    (same_for_all, architectures.seeded, "two seeds give the same network"),
    (Unused, architectures.differentiable, "idle.weight, idle.bias"),
    (Detached, architectures.differentiable, "the images"),
    (Headless, architectures.headed, "'classifier'"),
    (WrongHead, architectures.headed, "12] rows for 10"),
    (Growing, architectures.headed, '"inner.weight" is outside of the head'),
    (Hiding, architectures.storable, "other logits"),
    (Remembering, architectures.storable, "other logits"),
    (Sized, architectures.logits, "it is made for images (1, 28, 28), not refused"),
    (normed, architectures.has_weights, 'the weight of "inner" is computed'),
    (Counting, architectures.constant, "changes its weights or buffers"),
    (Dropping, architectures.constant, "different logits"),
    (InPlace, architectures.constant, "changes the images"),
    (Raw, architectures.has_weights, "there is none"),
])  # fmt: skip
def test_broken_architectures_are_caught(make: Any, check: Any, reason: str) -> None:
    caught("architecture", architecture(make), check, reason)


@pytest.mark.parametrize("make", [Plain, picky])
def test_sound_architectures_pass_and_may_refuse_some_shapes(make: Any) -> None:
    found = tried("architecture", architecture(make))
    assert [result.reason for result in found if not result.ok] == []


# Attacks.


def climb(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, sign: int = 1) -> Tensor:
    x_adv = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(functional.cross_entropy(model(x_adv), y), x_adv)
    return x + sign * float(threat.eps) * grad.sign()


def attack(propose: Callable[..., Any]) -> Callable[..., Any]:
    def part(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Any:
        """An attack."""
        return propose(model, x, y, threat)

    return part


def in_train_mode(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    return climb(model.train(), x, y, threat)


def by_backward(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    functional.cross_entropy(model(x), y).backward()
    return x


def with_a_hook(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    model.register_forward_hook(lambda *_: None)
    return x


def through_weights(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
    return x


def dividing(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    return x + 0.01 * float(1 / threat.eps)


def without_grad(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    torch.set_grad_enabled(False)
    return x


def refusing(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    raise UserError(f"no {threat.norm} here")


def only_l2(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    return climb(model, x, y, threat) if threat.norm == "l2" else refusing(model, x, y, threat)


@pytest.mark.parametrize("propose, check, reason", [
    (lambda m, x, y, t: x[1:], attacks.proposes, "(31, 1, 8, 8)"),
    (lambda m, x, y, t: x.double(), attacks.proposes, "torch.float64"),
    (lambda m, x, y, t: (x, y), attacks.proposes, "tuple"),
    (lambda m, x, y, t: x / 0, attacks.proposes, "not finite"),
    (lambda m, x, y, t: Attacked(x, {"inner": torch.ones(3)}), attacks.proposes, 'outcomes of "inner"'),
    (lambda m, x, y, t: x * torch.nan, attacks.admissible, "stay outside"),
    (in_train_mode, attacks.tidy, "buffers, train and eval modes"),
    (by_backward, attacks.tidy, ".grad"),
    (with_a_hook, attacks.tidy, "hooks"),
    (lambda m, x, y, t: x.mul_(0.5), attacks.tidy, "its input"),
    (lambda m, x, y, t: x + torch.rand(x.shape, generator=fresh()), attacks.repeatable, "two calls with the same noise differ"),
    (lambda m, x, y, t: climb(m, x, y, t, sign=-1), attacks.harmful, "accuracy rises"),
    (lambda m, x, y, t: x + (torch.rand(x.shape, generator=fresh()) - 0.5), attacks.judged, "two evaluations differ"),
    (through_weights, attacks.judged, "raised RuntimeError"),
    (dividing, attacks.harmless, "ZeroDivisionError"),
    (without_grad, attacks.repeatable, "torch's gradient mode"),
])  # fmt: skip
def test_broken_attacks_are_caught(propose: Any, check: Any, reason: str) -> None:
    caught("attack", attack(propose), check, reason)


def test_attacks_may_refuse_norms_but_not_all() -> None:
    assert [result.reason for result in tried("attack", attack(only_l2)) if not result.ok or result.skipped] == []
    assert tried("attack", attack(refusing))[-1].text == "skipped: it takes none of linf, l2 and l1: no linf here; no l2 here; no l1 here"
    assert torch.is_grad_enabled()


# Objectives.


def objective(losses: Callable[..., Any]) -> Callable[..., Any]:
    def part(model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Any:
        """An objective."""
        return losses(model, x, y, rng)

    return part


def ce(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), y, reduction="none")


def in_eval(model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    return ce(model.eval(), x, y)


def all_in_train(model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    model.eval()
    losses = ce(model, x, y)
    model.train()
    return losses


def head_only(model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    *body, head = model.children()
    return functional.cross_entropy(head(nn.Sequential(*body)(x).detach()), y, reduction="none")


def decaying(model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    with torch.no_grad():
        next(model.parameters()).mul_(0.99)
    return ce(model, x, y)


@pytest.mark.parametrize("losses, check, reason", [
    (lambda m, x, y, r: ce(m, x, y).mean(), objectives.per_sample, "returns shape ()"),
    (lambda m, x, y, r: ce(m, x, y).double(), objectives.per_sample, "not finite float32"),
    (lambda m, x, y, r: ce(m, x, y) / 0, objectives.per_sample, "not finite"),
    (lambda m, x, y, r: ce(m, x, y).detach(), objectives.differentiable, "do not require grad"),
    (head_only, objectives.differentiable, 'no gradient reaches "conv.weight"'),
    (in_eval, objectives.tidy, "train and eval modes"),
    (all_in_train, objectives.tidy, "train and eval modes"),
    (decaying, objectives.tidy, "weights"),
    (lambda m, x, y, r: ce(m, x.clamp_(0.1, 0.9), y), objectives.tidy, "its batch"),
    (lambda m, x, y, r: ce(m, x + 0.1 * torch.rand(x.shape, generator=fresh()), y), objectives.repeatable, "different losses"),
    (lambda m, x, y, r: 2 * ce(m, x, y).detach() - ce(m, x, y), objectives.learnable, "it goes from"),
])  # fmt: skip
def test_broken_objectives_are_caught(losses: Any, check: Any, reason: str) -> None:
    caught("objective", objective(losses), check, reason)


# Trainers.


def trainer(
    sign: float = 1.0, masked: bool = True, frozen: bool = False, seeded: bool = True, registered: bool = True, looped: bool = True,
    before: Callable[[Data], Any] = lambda data: None, after: Callable[[nn.Module, Any], Any] = lambda model, masks: None,
) -> Callable[..., Any]:  # fmt: skip
    """Adam, sound but for what is asked for."""

    def fit(model: nn.Module, masks: Any, data: Data, rng: torch.Generator, loop: Any) -> Any:
        """Trains."""
        before(data)
        if frozen:
            model.requires_grad_(True)
        opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        order = torch.randperm(len(data.train), generator=rng if seeded else fresh())
        steps = loop(range(8), state={"opt": opt} if registered else {}) if looped else range(8)
        for step in steps:
            x, y = take(data.train, order[32 * step : 32 * step + 32])
            opt.zero_grad()
            (sign * functional.cross_entropy(model(x), y)).backward()
            opt.step()
            for name, mask in masks.items():
                if masked:
                    model.get_parameter(name).data.mul_(mask)
            loop.log(step, "loss", 0.0)
        return after(model, masks)

    return fit


def overwritten(model: nn.Module, masks: Any) -> None:
    masks["conv.weight"].fill_(True)


def regrown(model: nn.Module, masks: Any) -> dict[str, Tensor]:
    """New masks under which nothing is pruned."""
    return {name: torch.ones_like(mask) for name, mask in masks.items()}


@pytest.mark.parametrize("changes, check, reason", [
    ({"sign": -1.0}, trainers.learns, "it goes from"),
    ({"sign": float("nan")}, trainers.learns, "is not finite"),
    ({"after": lambda model, masks: model.register_buffer("extra", torch.ones(1))}, trainers.learns, 'first "extra"'),
    ({"masked": False}, trainers.masked, "are not 0"),
    ({"after": lambda model, masks: {"conv.weight": masks["conv.weight"]}}, trainers.masked, "differ"),
    ({"after": overwritten}, trainers.masked, "altered the masks"),
    ({"after": lambda model, masks: 0.5}, trainers.masked, "float"),
    ({"frozen": True}, trainers.selective, "does not require grad"),
    ({"sign": 0.0}, trainers.selective, "it leaves"),
    ({"seeded": False}, trainers.repeatable, "its state differ"),
    ({"registered": False}, trainers.resumable, "after three kills its state differ"),
    ({"looped": False}, trainers.resumable, "loses all of its work"),
    ({"before": lambda data: data.train.x.mul_(0.5)}, trainers.modest, "alters the data"),
    ({"before": lambda data: len(data.test)}, trainers.modest, "TypeError"),
])  # fmt: skip
def test_broken_trainers_are_caught(changes: dict[str, Any], check: Any, reason: str) -> None:
    caught("trainer", trainer(**changes), check, reason)


def test_sound_trainers_pass_and_may_return_other_masks() -> None:
    for part in (trainer(), trainer(after=lambda model, masks: masks), trainer(after=regrown)):
        assert [result.reason for result in tried("trainer", part) if not result.ok or result.skipped] == ["it trains each network alone"]


def test_broken_stacks_are_caught() -> None:
    def idle(calls: list[dict[str, Any]], together: Any) -> None:
        pass

    def each(calls: list[dict[str, Any]], together: Any) -> None:
        for call in calls:
            part(**call)

    def late(calls: list[dict[str, Any]], together: Any) -> None:
        each(calls, together)
        raise Unstackable("only now")

    for train, reason in ((idle, "its generator has drawn otherwise"), (late, "has changed something"), (each, "")):
        part = trainer()
        stacked = declare(stacked=train)(part)
        if reason:
            caught("trainer", stacked, trainers.stackable, reason)
        else:
            assert [result.reason for result in tried("trainer", stacked) if not result.ok or result.skipped] == []


def test_a_trainer_that_cannot_train_this_network_is_skipped_visibly() -> None:
    def refuse(data: Data) -> None:
        raise UserError("it needs colour images")

    last = tried("trainer", trainer(before=refuse))[-1]
    assert last.ok and last.skipped and last.text == "skipped: it needs colour images"


@pytest.mark.parametrize("given", [
    {"schedule": "one-cycle", "momentum": 0.5, "clip": 1.0, "epochs": 2},
    {"optimizer": "adamw", "lr": 0.01, "steps": 20, "snapshots": ["step-3", "epoch-1"], "warmup": 1.0},
    {"epochs": 2, "lr": 0.05, "select": "valid", "every": 3,
     "probes": {"valid": {"use": "accuracy", "split": "valid", "attack": {"use": "pgd", "norm": "linf", "eps": "1/10", "steps": 2}}}},
    {"epochs": 2, "lr": 0.05, "objective": {"use": "robust", "attack": {"use": "pgd", "norm": "l2", "eps": 0.5, "steps": 2}}},
], ids=["schedule", "snapshots", "select", "robust"])  # fmt: skip
def test_sgd_keeps_its_contract_with_the_knobs_that_need_state(given: dict[str, Any]) -> None:
    reasons = [result.reason for result in results("trainer", "sgd", **given) if not result.ok or result.skipped]
    assert all("the norm of a gradient is clipped" in reason for reason in reasons) and bool(reasons) == ("clip" in given)


# Pruners.


def pruner(
    choose: Callable[[Any, Any, float], Any] = lambda scores, masks, keep: keep_top(scores, masks, keep=keep), seeded: bool = True,
    registered: bool = True, before: Callable[[nn.Module, Data], Any] = lambda model, data: None,
) -> Callable[..., Any]:  # fmt: skip
    """Random scores summed up in a loop, sound but for what is asked for."""

    def prune(
        model: nn.Module, masks: Any, data: Data, rng: torch.Generator, loop: Any, *, keep: Annotated[float, Range("(0, 1]")] = 0.5
    ) -> Any:
        """Prunes."""
        before(model, data)
        scores = {name: torch.zeros(mask.shape) for name, mask in masks.items()}
        for _ in loop(range(4), state=scores if registered else {}):
            for score in scores.values():
                score += torch.rand(score.shape, generator=rng if seeded else fresh())
        return choose(scores, masks, keep)

    return prune


def one_more(scores: Any, masks: Any, keep: float) -> Any:
    kept = keep_top(scores, masks, keep=keep)
    name = next(name for name in masks if bool((masks[name] & ~kept[name]).any()))
    kept[name].view(-1)[(masks[name] & ~kept[name]).view(-1).nonzero()[0]] = True
    return kept


def reviving(scores: Any, masks: Any, keep: float) -> Any:
    return keep_top(scores, {name: torch.ones_like(mask) for name, mask in masks.items()}, keep=keep)


def per_layer(scores: Any, masks: Any, keep: float) -> Any:
    return rtbench.keep_top_each(scores, masks, keep=keep)


def of_modules(model: nn.Module, masks: Any, *, keep: Annotated[float, Range("(0, 1]")] = 0.5) -> Any:
    """Masks of modules that it knows: attention has weights besides."""
    known = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    return {name: mask for name, mask in magnitude(model, masks, keep=keep).items() if name.removesuffix(".weight") in known}


def sparing(model: nn.Module, masks: Any, *, keep: Annotated[float, Range("(0, 1]")] = 0.5) -> Any:
    """Keeps the count, and all of what it does not know."""
    return magnitude(model, masks, keep=keep, exclude=[name for name in masks if "_proj_" in name])


def by_input(model: nn.Module, masks: Any, *, keep: Annotated[float, Range("(0, 1]")] = 0.5) -> Any:
    """Scores by input channel, as if every filter saw all of them."""
    scores = {name: model.get_parameter(name).detach().abs() for name in masks}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            scores[f"{name}.weight"] = scores[f"{name}.weight"] * torch.ones(1, module.in_channels, 1, 1)
    return keep_top(scores, masks, keep=keep)


def magnitude(model: nn.Module, masks: Any, *, keep: float, exclude: Any = ()) -> Any:
    return keep_top({name: model.get_parameter(name).detach().abs() for name in masks}, masks, keep=keep, exclude=exclude)


def refusing_pruner(reason: str) -> Callable[..., Any]:
    def prune(model: nn.Module, masks: Any, *, keep: Annotated[float, Range("(0, 1]")] = 0.5) -> Any:
        """Prunes by magnitude what has neither groups nor attention."""
        if any(isinstance(module, nn.MultiheadAttention) or getattr(module, "groups", 1) > 1 for module in model.modules()):
            raise UserError(reason)
        return magnitude(model, masks, keep=keep)

    return prune


def test_pruners_that_fail_on_attention_or_groups_are_caught_and_those_that_refuse_are_not() -> None:
    caught("pruner", of_modules, pruners.attention, 'masks and prunable weights differ, first in "attention.in_proj_weight"')
    caught("pruner", sparing, pruners.attention, 'prunes nothing of "attention.in_proj_weight" at any amount and does not refuse it')
    caught("pruner", by_input, pruners.grouped, "must match the size of tensor")
    caught("pruner", refusing_pruner("groups are\nnot supported"), pruners.grouped, "not one sentence")
    caught("pruner", refusing_pruner(" "), pruners.attention, "not one sentence")
    found = tried("pruner", refusing_pruner("no groups and no attention, please"))
    assert [result.reason for result in found if not result.ok] == []
    assert [result.reason for result in found if "refuses them in one sentence" in result.text] == [
        "it refuses them: no groups and no attention, please"] * 2  # fmt: skip


@pytest.mark.parametrize("changes, check, reason", [
    ({"choose": lambda s, m, k: {name: mask.float() for name, mask in m.items()}}, pruners.fitting, "torch.float32"),
    ({"choose": lambda s, m, k: {"conv.weight": m["conv.weight"]}}, pruners.fitting, "masks and prunable weights differ"),
    ({"choose": lambda s, m, k: list(m.values())}, pruners.fitting, "list, not masks"),
    ({"before": lambda model, data: model.register_buffer("scores", torch.ones(1))}, pruners.fitting, 'first "scores"'),
    ({"before": lambda model, data: model.get_parameter("fc1.bias").data.div_(0)}, pruners.fitting, '"fc1.bias" is not finite'),
    ({"choose": one_more}, pruners.exact, "it keeps 1693"),
    ({"choose": lambda s, m, k: m}, pruners.exact, "keep = 0.5 of 3384 weights promises 1692, it keeps 3384"),
    ({"choose": reviving}, pruners.lasting, "without declaring so"),
    ({"seeded": False}, pruners.repeatable, "its masks differ"),
    ({"registered": False}, pruners.resumable, "after three kills its masks differ"),
    ({"before": lambda model, data: data.train.y.zero_()}, pruners.modest, "alters the data"),
])  # fmt: skip
def test_broken_pruners_are_caught(changes: dict[str, Any], check: Any, reason: str) -> None:
    caught("pruner", pruner(**changes), check, reason)


def test_sound_pruners_pass_by_layer_and_may_declare_that_they_revive() -> None:
    for part in (pruner(), pruner(choose=per_layer)):
        assert [result.reason for result in tried("pruner", part) if not result.ok or result.skipped] == []
    found = tried("pruner", declare(revives=True)(pruner(choose=reviving)))
    assert [result.reason for result in found if not result.ok] == []
    assert [result.reason for result in found if result.skipped] == ["it declares that it revives"]


@pytest.mark.parametrize("given", [{"scope": "layer", "drop": 0.5, "last": 0.25}, {"keep": 0.3, "exclude": ["first"]}, {"count": 100}])
def test_magnitude_keeps_its_contract_with_other_knobs(given: dict[str, Any]) -> None:
    assert [result.reason for result in results("pruner", "magnitude", **given) if not result.ok] == []


# Probes.


def probe(measure: Callable[..., Any]) -> Callable[..., Any]:
    def part(model: nn.Module, masks: Any, data: Data, rng: torch.Generator, loop: Any, history: Any) -> Any:
        """Measures."""
        return measure(model, masks, data, rng, loop)

    return part


def scaling(model: nn.Module, *_: Any) -> float:
    with torch.no_grad():
        next(model.parameters()).mul_(0.5)
    return 1.0


def training(model: nn.Module, *_: Any) -> float:
    model.train()
    return 1.0


def forgetful(model: nn.Module, masks: Any, data: Any, rng: torch.Generator, loop: Any) -> float:
    """Its sum is not part of the loop's state."""
    total = 0.0
    for i in loop(range(5)):
        total += i
    return total


def mindful(model: nn.Module, masks: Any, data: Any, rng: torch.Generator, loop: Any) -> Measure:
    total = torch.zeros(())
    for i in loop(range(5), state={"total": total}):
        total += i
    return Measure({"": float(total), "none": None}, {"ids": data.test.ids, "label": data.test.y}, timings={"seconds": time.time()})


@pytest.mark.parametrize("measure, check, reason", [
    (lambda *_: float("nan"), probes.numeric, "nan"),
    (lambda *_: {"a": float("inf")}, probes.numeric, '"a" is inf'),
    (lambda *_: "high", probes.numeric, "str"),
    (lambda *_: None, probes.numeric, "NoneType"),
    (lambda *_: {}, probes.numeric, "no number"),
    (lambda *_: Measure({"": 1.0}, {"robust": torch.ones(3)}), probes.sampled, '"ids"'),
    (lambda *_: Measure({"": 1.0}, {"ids": torch.arange(3), "robust": torch.ones(4)}), probes.sampled, '"robust" is not a tensor of 3'),
    (lambda *_: Measure({"": 1.0}, {"ids": torch.zeros(3, dtype=torch.int64)}), probes.sampled, "not different whole numbers"),
    (scaling, probes.tidy, "changed conv.weight"),
    (training, probes.tidy, "train and eval modes"),
    (lambda *_: float(torch.rand(1)), probes.tidy, "global generator"),
    (lambda m, masks, d, r, loop: float(masks["conv.weight"].fill_(True).sum()), probes.tidy, "the masks"),
    (lambda m, masks, d, r, loop: float(d.test.y.zero_().sum()), probes.tidy, "the data"),
    (lambda *_: float(torch.rand(1, generator=fresh())), probes.repeatable, "its numbers differ"),
    (lambda *_: Measure({"": 1.0}, {"ids": torch.randperm(9, generator=fresh())}), probes.repeatable, "its samples differ"),
    (forgetful, probes.resumable, "after a kill its numbers differ"),
])  # fmt: skip
def test_broken_probes_are_caught(measure: Any, check: Any, reason: str) -> None:
    caught("probe", probe(measure), check, reason)


def test_sound_probes_pass_and_may_time_themselves() -> None:
    for measure in (mindful, lambda *_: 0.5, lambda *_: {"a": 1, "b": 2.0}):
        assert [result.reason for result in tried("probe", probe(measure)) if not result.ok] == []
    assert not [result for result in tried("probe", probe(mindful)) if result.skipped]


# Reports.


def writer(write: Callable[[Any, Path], Any]) -> Callable[..., None]:
    def part(board: Any, path: Any) -> None:
        """Writes."""
        write(board, Path(path))

    return part


def sideways(board: Any, path: Path) -> None:
    path.write_text(str(board.records()))
    Path("log.txt").write_text("done")


def relabelling(board: Any, path: Path) -> None:
    board.rows.reverse()
    path.write_text(str(board.records()))


@pytest.mark.parametrize("write, check, reason", [
    (lambda board, path: None, reports.writes, "no file"),
    (lambda board, path: path.touch(), reports.writes, "the file is empty"),
    (lambda board, path: path.with_suffix(".txt").write_text("x"), reports.writes, "no file"),
    (lambda board, path: path.write_text(f"{max(row.probes['pgd_2'].mean for row in board.rows):.2f}"), reports.writes, "KeyError"),
    (lambda board, path: path.write_text(f"{time.time_ns()} {board.records()}"), reports.repeatable, "differ"),
    (lambda board, path: path.write_text(board.suite), reports.telling, "does not depend on the numbers"),
    (sideways, reports.modest, "cwd/log.txt"),
    (relabelling, reports.modest, "alters the board"),
])  # fmt: skip
def test_broken_reports_are_caught(write: Any, check: Any, reason: str) -> None:
    caught("report", writer(write), check, reason)


# Asking for checks.


def test_parts_are_found_by_name_by_kind_and_by_the_plural_of_a_kind() -> None:
    kinds = {result.kind for result in rtbench.check("report", INSTALLED)}
    assert kinds == {"report"} == {result.kind for result in rtbench.check("reports", INSTALLED)}
    assert {result.name for result in rtbench.check("csv", INSTALLED)} == {"csv"}
    with pytest.raises(UserError, match='no kind or part "pdg"; did you mean "pgd"'):
        rtbench.check("pdg", INSTALLED)


def test_results_come_one_by_one() -> None:
    found = rtbench.check(None, INSTALLED)
    assert isinstance(found, Iterator)
    first = next(found)
    assert first.kind == "dataset" and str(first) == f"dataset {first.name}: {first.text}"


@pytest.mark.parametrize("name, given, message", [
    (None, {"keep": 0.5}, "one part at a time"),
    ("pruner", {"keep": 0.5}, "one part at a time"),
    ("magnitude", {"kep": 0.5}, 'no knob "kep"; did you mean "keep"'),
    ("magnitude", {"keep": 1.5}, r"outside \(0, 1\]"),
    ("magnitude", {"keep": 0.5, "drop": 0.5}, "give exactly one of"),
])  # fmt: skip
def test_knobs_are_given_for_one_part_and_have_to_be_its_own(name: str | None, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rtbench.check(name, INSTALLED, given)


def test_sample_knobs_are_valid_and_short() -> None:
    def needy(
        model: nn.Module, masks: Any, data: Data, rng: torch.Generator, loop: Any, *,
        rounds: Annotated[int, Range("[2, inf)")], share: Annotated[float, Range("(0, 0.2]")], kind: Literal["a", "b"],
        layers: Annotated[tuple[int, ...], Range("[1, 9]")], exact: bool, attack: Attack, epochs: Annotated[int, Range("[1, inf)")] = 200,
        keep: Annotated[float | None, Range("(0, 1]"), OneOf("amount")] = None,
        drop: Annotated[float | None, Range("[0, 1)"), OneOf("amount")] = None,
    ) -> Any:  # fmt: skip
        """Prunes."""
        assert (rounds, kind, layers, exact, epochs) == (3, "a", (5,), False, 2) and abs(share - 0.1) < 1e-9
        x, y = next(batches(data.train, 8))
        assert not torch.equal(attack(model, x, y, rng), x)
        scores = {name: torch.rand(masks[name].shape, generator=rng) for name in prunable(model)}
        return keep_top(scores, masks, keep=keep, drop=drop)

    assert [result.reason for result in tried("pruner", needy) if not result.ok] == []


def test_a_part_whose_knobs_cannot_be_guessed_is_skipped_visibly() -> None:
    def from_file(model: nn.Module, *, file: str) -> float:
        """Reads."""
        return len(file)

    last = tried("probe", from_file)[-1]
    assert last.ok and last.skipped and 'the knob "file" has no default' in last.reason
    assert all(result.ok for result in tried("probe", from_file, file="a"))
    assert not [result for result in tried("probe", from_file, file="a") if result.text.startswith("skipped")]


def test_a_name_claimed_twice_fails() -> None:
    found = dataclasses.replace(INSTALLED, clashes={("report", "csv"): 'report "csv" is claimed by "a" and "b"'})
    (result,) = rtbench.check("csv", found)
    assert not result.ok and result.reason == 'report "csv" is claimed by "a" and "b"'
    assert [result.ok for result in rtbench.check("report", found)].count(False) == 1


BAD_PLUGIN = '''
import rtbench

def loud(model, *, volume: int = 3):
    """How loud it is."""
    return float("nan")

@rtbench.hookimpl
def rtbench_probes():
    return {"loud": loud}
'''


def test_the_command_prints_every_check_with_reasons_and_fails_if_one_does(tmp_path: Path) -> None:
    fine = CliRunner().invoke(cli, ["check", "csv"], standalone_mode=False)
    assert fine.return_value == 0 and "ok      report csv: Equal boards give equal bytes\n" in fine.output
    assert fine.output.rstrip().splitlines()[-1].startswith("10 ok, 0 skipped, 0 failed")
    (tmp_path / "bad.py").write_text(BAD_PLUGIN)
    bad = CliRunner().invoke(cli, ["check", "loud", "--plugin", str(tmp_path / "bad.py")], standalone_mode=False)
    assert bad.return_value == 1
    assert 'FAILED  probe loud: Every knob that is a number has a Range\n        the knob "volume" is int' in bad.output
    assert "FAILED  probe loud: It returns a number" in bad.output and '"" is nan' in bad.output
    assert "skipped probe loud: Tensors it keeps per sample" in bad.output


def test_the_example_of_the_docstring_works(tmp_path: Path) -> None:
    example = inspect.cleandoc((rtbench.testing.__doc__ or "").split("three lines:")[1].split("Parts are run")[0])
    (tmp_path / "test_mine.py").write_text(example.replace("my-pruner", "random"))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "test_mine.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    assert "test_contract[pruner random: It revives no pruned weight" in run.stdout
