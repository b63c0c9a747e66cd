"""What parts are tried on: a small network with BatchNorm, scikit-learn's digits, masks; and what was left changed."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from rtbench.builtin.architectures.common import network as named_layers
from rtbench.builtin.datasets.embedded import digits
from rtbench.data.splits import Data, Split, take
from rtbench.evaluation.guard import own_randomness, same, tensors
from rtbench.parts.masks import Masks, apply_, ones

SHAPE, CLASSES = (1, 8, 8), 10


@lru_cache(maxsize=1)
def _digits() -> Data:
    return digits()


def data(test: bool = True) -> Data:
    """Digits: 256 augmented training samples, 64 valid, 128 test, 64 extra; a new copy at each call."""
    whole, at = _digits(), torch.arange
    train = whole.train.subset(at(256))
    assert isinstance(train, Split) and whole.test is not None
    held = whole.test.subset(at(128)) if test else None
    extra = whole.train.subset(at(256, 320))
    return Data(replace(train, augment="pad-crop-flip"), whole.valid.subset(at(64)), held, extra, SHAPE, CLASSES)


def network(seed: int = 0) -> nn.Module:
    """Fresh: a normalisation, a convolution with BatchNorm, two linear layers; 3,578 parameters."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Identity(), bn=nn.BatchNorm2d(8), relu=nn.ReLU(), pool=nn.MaxPool2d(2), flatten=nn.Flatten(),
        fc1=nn.Identity(), relu1=nn.ReLU(), fc2=nn.Identity(),
    )  # fmt: skip
    with own_randomness(seed):
        layers |= {"conv": nn.Conv2d(1, 8, 3, padding=1, bias=False), "fc1": nn.Linear(128, 24), "fc2": nn.Linear(24, CLASSES)}
        return named_layers(SHAPE, layers, "fc2", (0.3,), (0.4,))


@lru_cache(maxsize=1)
def _trained() -> nn.Module:
    model, train = network(), _digits().train
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(45):
        x, y = take(train, torch.arange(16 * step, 16 * step + 16))
        loss = nn.functional.cross_entropy(model(x), y)
        for parameter, grad in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            parameter.grad = grad
        opt.step()
    model.zero_grad()
    return model


def trained() -> nn.Module:
    """The network after 45 steps: right on about nine digits of ten and easily attacked; a new copy at each call, in train mode."""
    return copy.deepcopy(_trained())


def pruned(model: nn.Module, keep: float = 0.6) -> Masks:
    """Masks that keep about this share at random, applied to the model."""
    rng = torch.Generator().manual_seed(1)
    masks = {name: torch.rand(mask.shape, generator=rng) < keep for name, mask in ones(model).items()}
    apply_(model, masks)
    return masks


def portrait(model: nn.Module) -> dict[str, Any]:
    """All that a part which only looks must leave alone. Call it twice and compare with `changes`."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "train and eval modes": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        ".grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks]
        + [len(p._backward_hooks or ()) for p in model.parameters()],
        "modules": [name for name, _ in model.named_modules()],
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what differs between two portraits."""
    return [name for name in before if not alike(before[name], after[name])]


def alike(a: Any, b: Any) -> bool:
    """Equality of nested lists and dicts, bit-wise for tensors; NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and same(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b) or (a != a and b != b)


def generators() -> list[Any]:
    """The states of torch's, NumPy's and Python's global generators."""
    kind, words, *rest = numpy.random.get_state()
    return [torch.get_rng_state(), kind, torch.from_numpy(numpy.asarray(words).astype("int64")), rest, random.getstate()]


def columns(found: Data) -> list[Any]:
    """Copies of everything a part might alter in the data it is given."""
    splits = [split for split in found[:4] if isinstance(split, Split)]
    return [[split.x.clone(), split.y.clone(), split.ids.clone()] for split in splits]


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, those outside the state dict included."""
    return {name: tensor.detach().clone() for name, tensor in tensors(model)}
