"""Searching with a pruned network's zeros left out: the same answers but for rounding, and every claim judged by the network itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_minimal import nearest
from test_native import L2, LINF, QUICK, Fragile, Killed, Linear, attacked, built, exactly, joined
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from attacks import judged
from attacks import one_thread as one_thread
from rtbench.engine.loop import Loop
from rtbench.evaluation import sparse as module
from rtbench.evaluation.ladder import Ladder
from rtbench.evaluation.sparse import KEPT, LEAST, THREADS, SparseLinear, sparse
from rtbench.parts.threats import Threat

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch multiplies no sparse matrices here")
LIKE = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(5))


def kept(*shape: int, share: float = 0.1, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng) * (torch.rand(*shape, generator=rng) < share) / max(1, share * shape[-1]) ** 0.5


def layer(rows: int, columns: int, share: float = 0.1, bias: bool = True) -> nn.Linear:
    found = nn.Linear(columns, rows, bias=bias)
    found.weight.data = kept(rows, columns, share=share)
    return found


def network(share: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), layer(80, 256, share), nn.ReLU(), nn.Linear(80, 5)).eval().requires_grad_(False)


X = torch.rand(120, 1, 16, 16, generator=torch.Generator().manual_seed(1))
Y = network()(X).argmax(1)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every product that left zeros out."""
    asked: list[int] = []
    product = module._Product.apply
    monkeypatch.setattr(module._Product, "apply", lambda x, *matrices: (asked.append(len(x)), product(x, *matrices))[1])
    return asked


def compressed(dense: nn.Linear) -> SparseLinear:
    found: Any = copy.deepcopy(dense)
    found.__class__ = SparseLinear
    found.compress()
    return found


def rounded(a: Tensor, b: Tensor) -> bool:
    """Whether a is b but for float32's rounding, of sums whose terms may cancel."""
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 5), max_size=3), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.05, 1.0]), st.booleans())
def test_answers_and_slopes_are_those_of_the_layer(shape: list[int], i: int, o: int, share: float, bias: bool) -> None:
    dense = layer(o, i, share, bias).requires_grad_(False)
    x = torch.randn(*shape, i).requires_grad_()
    found, wanted = compressed(dense)(x), dense(x)
    assert found.shape == wanted.shape and rounded(found, wanted)
    slopes = [torch.autograd.grad(answer.square().sum(), x, create_graph=True)[0] for answer in (found, wanted)]
    assert rounded(*slopes)
    seconds = [torch.autograd.grad(slope.pow(3).sum(), x, allow_unused=True)[0] for slope in slopes]
    assert rounded(*seconds)


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 700])
def test_images_beyond_one_product(n: int) -> None:
    dense = layer(80, 256).requires_grad_(False)
    x = torch.randn(n, 256)
    assert torch.allclose(compressed(dense)(x), dense(x), atol=1e-5)


def test_the_copy_shares_weights_and_leaves_the_network_alone(rows: list[int]) -> None:
    model = network()
    found = sparse(model, LIKE)
    assert found is not model and type(found[1]) is SparseLinear and type(model[1]) is nn.Linear and type(found[3]) is nn.Linear  # type: ignore[index]
    assert found[1].weight is model[1].weight and not rows.clear()  # type: ignore[index]
    assert torch.allclose(found(X), model(X), atol=1e-5) and rows == [120]


@pytest.mark.parametrize("change", [
    lambda weight: weight.mul_(2),
    lambda weight: weight.set_(torch.ones_like(weight)),
    lambda weight: weight.requires_grad_(True),
])  # fmt: skip
def test_weights_that_change_are_asked_whole(change: Callable[[Tensor], Any], rows: list[int]) -> None:
    model = network()
    found: Any = sparse(model, LIKE)
    rows.clear()
    with torch.no_grad():
        change(model[1].weight)  # type: ignore[arg-type]
    assert torch.equal(found(X), model(X)) and not rows


def test_other_precisions_are_asked_whole(rows: list[int]) -> None:
    model, found = network(), sparse(network(), LIKE)
    rows.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found(X), model(X))
    assert torch.equal(found.double()(X.double()), model.double()(X.double())) and not rows


class Other(nn.Linear):
    """A layer of its own kind."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Decoy(nn.Sequential):
    """Brings its own copying."""

    def __deepcopy__(self, memo: Any) -> Any:
        return nn.Sequential(*self)


class Stated(nn.Sequential):
    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))


class Uncopied(nn.Sequential):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.steps = (step for step in range(3))  # nothing copies a generator


class Random(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


class Mapped(nn.Sequential):
    """Asks its layers in a way that a product of compressed rows does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(super().forward)(x[:, None])[:, 0]


def hooked() -> nn.Module:
    """Its weight is computed anew before every forward."""
    return prune.l1_unstructured(layer(80, 256, share=1.0), "weight", 0.95)


HEAD = nn.Flatten(), layer(80, 256), nn.Linear(80, 5)


@pytest.mark.parametrize("model", [
    network(share=2 * KEPT), nn.Sequential(nn.Flatten(), layer(LEAST // 256 - 1, 256)), nn.Sequential(nn.Flatten(), Other(256, 80)),
    nn.Sequential(nn.Flatten(), hooked()), Uncopied(*HEAD), Decoy(*HEAD), Stated(*HEAD), Random(*HEAD), Mapped(*HEAD),
    nn.Sequential(nn.Flatten(), weight_norm(layer(80, 256, share=0.01))),
], ids=["few zeros", "small", "another kind", "hooked", "uncopied", "decoy", "stated", "random", "mapped", "parametrised"])  # fmt: skip
def test_other_networks_are_searched_themselves(model: nn.Module) -> None:
    model.eval().requires_grad_(False)
    assert sparse(model, LIKE) is model


def test_on_many_threads_the_network_is_searched_itself() -> None:
    model = network()
    try:
        torch.set_num_threads(THREADS + 1)
        assert sparse(model, LIKE) is model
    finally:
        torch.set_num_threads(1)
    assert sparse(model, LIKE) is not model


@pytest.mark.parametrize("threat", [Threat("linf", LINF.eps / 2), L2])
def test_robust_accuracy_is_the_exact_one(threat: Threat, rows: list[int]) -> None:
    model = Linear(kept(70, 256), torch.zeros(70)).requires_grad_(False)
    y = model(X).argmax(1)
    lead = exactly(model, X, y, threat)
    sure = lead.abs() > 1e-4
    build = joined(built("apgd"), built("apgd", loss="dlr-targeted"), built("fab"))
    robust = attacked(model, build, threat, torch.arange(120), data=(X, y)).robust
    assert len(rows) > 100 and 3 < int((lead > 0).sum()) < 117
    assert torch.equal(robust[sure], lead[sure] > 0) and sure.double().mean() > 0.98


@pytest.mark.parametrize("threat", [LINF, L2])
def test_verdicts_do_not_depend_on_order_shards_or_kills(threat: Threat, rows: list[int], tmp_path: Any) -> None:
    model = network()
    threat = Threat(threat.norm, threat.eps / 4)
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)

    def bits(order: Tensor, loop: Loop | None = None) -> dict[str, Tensor]:
        found = attacked(model, QUICK, threat, order, loop=loop, data=(X, Y))
        return {**found.inner, "robust": found.robust}

    whole, order = bits(torch.arange(120)), torch.randperm(120, generator=torch.Generator().manual_seed(1))
    mixed, parts = bits(order), [bits(torch.arange(i, 120, 3)) for i in range(3)]
    for after, late in ((2, 0), (25, 3), (30, 11)):
        with pytest.raises(Killed):
            bits(torch.arange(120), Fragile(folder / "work", after, late))
    resumed = bits(torch.arange(120), Loop(file=folder / "work"))
    assert rows and 3 < int(whole["robust"].sum()) < 117
    for name, found in whole.items():
        assert torch.equal(found[order], mixed[name]) and torch.equal(found, resumed[name]), name
        assert all(torch.equal(found[i::3], part[name]) for i, part in enumerate(parts)), name


@pytest.fixture
def astray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches ask a copy that answers otherwise, and nobody noticed."""
    monkeypatch.setattr(module, "_close", lambda *_: True)
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: linear(x, -self.weight, self.bias))
    assert not torch.equal(sparse(network(), LIKE)(X).argmax(1), Y)


def test_what_a_search_claims_is_judged_by_the_network_itself(astray: None) -> None:
    robust = attacked(network(), QUICK, Threat("linf", LINF.eps / 1000), torch.arange(120), data=(X, Y)).robust
    assert int(robust.sum()) >= 118


def test_distances_are_to_points_that_the_network_itself_misses(astray: None) -> None:
    model = Linear(kept(70, 256), torch.zeros(70)).requires_grad_(False)
    logits, w = model(X), model.layer.weight.detach()
    y = logits.argmax(1)
    lead = logits.gather(1, y[:, None]) - logits
    least = (lead / (w[y][:, None] - w).abs().sum(2)).masked_fill(torch.arange(70) == y[:, None], torch.inf).amin(1)
    found = nearest(judged("fmn", "linf", "1", steps=30), model, X, y)
    assert float(least.min()) > 0 and (found >= least.double() * (1 - 1e-4)).all()


def test_batch_sizes_are_tried_anew_where_another_rtbench_asked_one_network_alone() -> None:
    model = network()
    alone, both = Ladder(model, LIKE, 64), Ladder(model, LIKE, 64)
    both.also(sparse(model, LIKE), torch.float32)
    assert alone.fit(20) <= both.fit(20)
    fresh = Ladder(model, LIKE, 64)
    fresh.also(sparse(model, LIKE), torch.float32)
    fresh.load_state_dict(alone.state_dict())
    assert fresh.known == {64: True} and fresh.fit(20) == both.fit(20)
    again = Ladder(model, LIKE, 64)
    again.also(sparse(model, LIKE), torch.float32)
    again.load_state_dict(both.state_dict())
    assert again.known == both.known != {64: True}
