"""The contract of architectures: f(shape, classes) -> a network giving logits, on its default knobs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from rtbench.engine.state import pack, unpack
from rtbench.errors import UserError
from rtbench.evaluation.guard import own_randomness, tensors
from rtbench.parts.masks import computed, prunable
from rtbench.testing.lab import alike, everything
from rtbench.testing.result import Broken, need
from rtbench.testing.sample import Subject

Shape = tuple[int, int, int]
SHAPES: tuple[tuple[Shape, int], ...] = (((1, 8, 8), 10), ((1, 28, 28), 10), ((3, 32, 32), 7))
"""Image shapes and numbers of classes, the smallest first. A part may refuse some, not all."""
LARGE: tuple[Shape, int] = ((3, 224, 224), 10)


def build(subject: Subject, shape: Shape, classes: int, seed: int = 0) -> nn.Module:
    """A fresh network drawn from this seed, as the engine builds it."""
    part = subject.binder(seed).part("architecture", subject.resolve())
    with own_randomness(seed):
        model: nn.Module = part(shape=shape, classes=classes)
    return model


def random_images(n: int, shape: Shape) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(n))


def _smallest(subject: Subject) -> tuple[nn.Module, Shape, int]:
    """The network for the smallest images it takes; treat as read-only."""
    return subject.once("smallest", lambda: _find(subject))


def _other(subject: Subject) -> nn.Module:
    """The same network from another seed; treat as read-only."""
    _, shape, classes = _smallest(subject)
    return subject.once("other", lambda: build(subject, shape, classes, seed=1))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(tensors(model))


def _find(subject: Subject) -> tuple[nn.Module, Shape, int]:
    reason = ""
    for shape, classes in (*SHAPES, LARGE):
        try:
            return build(subject, shape, classes).eval(), shape, classes
        except UserError as error:
            reason = str(error)
    raise Broken(f"it takes none of the shapes {', '.join(str(shape) for shape, _ in (*SHAPES, LARGE))}: {reason}")


@torch.no_grad()
def logits(subject: Subject) -> None:
    """It gives finite float32 logits (n, classes) for every shape of images it takes."""
    first, smallest, _ = _smallest(subject)
    for shape, classes in (*SHAPES, LARGE):
        try:
            model = first if shape == smallest else build(subject, shape, classes).eval() if shape != LARGE[0] else None
        except UserError:
            continue
        if model is not None:
            try:
                found = model(random_images(2, shape))
            except RuntimeError as error:
                raise Broken(f"it is made for images {shape}, not refused by a UserError, and then cannot take them: {error}") from error
            need(isinstance(found, Tensor), f"for images {shape} it gives {type(found).__name__}")
            need(found.shape == (2, classes), f"for 2 images {shape} and {classes} classes it gives shape {tuple(found.shape)}")
            need(found.dtype == torch.float32 and bool(torch.isfinite(found).all()), f"for images {shape} they are not finite float32")


@torch.no_grad()
def independent(subject: Subject) -> None:
    """In eval mode an image gets the same logits alone as in a batch, to 1e-4 of their size."""
    model, shape, _ = _smallest(subject)
    x = random_images(4, shape)
    together = model(x)
    for i in range(len(x)):
        alone = model(x[i : i + 1])[0]
        far = float((alone - together[i]).abs().max() / together.abs().max().clamp_min(1e-30))
        need(far <= 1e-4, f"logits differ by {far:.2g} of their size")


def seeded(subject: Subject) -> None:
    """The same seed draws the same network, another seed another one."""
    model, shape, classes = _smallest(subject)
    need(alike(tensors_of(model), tensors_of(build(subject, shape, classes))), "two networks of one seed differ")
    need(not alike(tensors_of(model), tensors_of(_other(subject))), "two seeds give the same network")


def differentiable(subject: Subject) -> None:
    """Gradients reach the images and every parameter that requires them."""
    model, shape, _ = _smallest(subject)
    model = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # what starts at zero may block gradients, and does not stay there
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.01)
    blocked = _blocked(model.train(), shape)
    # In front of BatchNorm a bias has no gradient in train mode.
    blocked = [name for name in blocked if name in _blocked(model.eval(), shape)] if blocked else []
    need(not blocked, f"no gradient reaches {', '.join(blocked[:3])}{' and more' if len(blocked) > 3 else ''}")


def _blocked(model: nn.Module, shape: Shape) -> list[str]:
    """Names of the trainable parameters, and "the images", that a random linear function of the logits does not depend on."""
    x = random_images(8, shape).requires_grad_()
    named = {"the images": x, **{name: p for name, p in model.named_parameters() if p.requires_grad}}
    found = model(x)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    need(found.requires_grad, "its logits do not require grad")
    grads = torch.autograd.grad((found * weight).sum(), list(named.values()), allow_unused=True)
    return [name for name, grad in zip(named, grads, strict=True) if grad is None or not bool(grad.any())]


def headed(subject: Subject) -> None:
    """head_name names its classifier: one row of weights per class, and nothing outside depends on the number of classes."""
    model, shape, classes = _smallest(subject)
    head = getattr(model, "head_name", None)
    need(isinstance(head, str) and head in dict(model.named_modules()), f"head_name is {head!r}, not the name of one of its modules")
    rows = [model.get_parameter(name).shape[0] for name in prunable(model) if name.startswith(f"{head}.")]
    need(rows, f'"{head}" has no weights')
    need(all(n == classes for n in rows), f'"{head}" has weights of {rows} rows for {classes} classes')
    other = build(subject, shape, classes + 3).state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith(f"{head}."):
            need(name in other and other[name].shape == tensor.shape, f'"{name}" is outside of the head and changes with the classes')


@torch.no_grad()
def storable(subject: Subject) -> None:
    """Its state dict is all there is to it: loaded into a network of another seed it gives the same logits, trained ones too."""
    model, shape, _ = _smallest(subject)
    model = copy.deepcopy(model).train()
    model(random_images(8, shape))  # what training moves has to be in it, too
    model.eval()
    state, _ = unpack(pack(model.state_dict()))
    need(alike(state, dict(model.state_dict())), "its state dict is not the same after packing and unpacking")
    other = copy.deepcopy(_other(subject)).eval()
    other.load_state_dict(state)
    x = random_images(2, shape)
    need(torch.equal(model(x), other(x)), "a network with its state gives other logits")


@torch.no_grad()
def constant(subject: Subject) -> None:
    """In eval mode it draws nothing and leaves images, weights and buffers as they are."""
    model, shape, _ = _smallest(subject)
    before, x = everything(model), random_images(2, shape)
    version = x._version
    first, second = model(x), model(x)
    need(
        x._version == version and torch.equal(x, random_images(2, shape)),
        "a forward pass changes the images; write x = x - mean, not x -= mean",
    )
    need(torch.equal(first, second), "two passes over the same images give different logits")
    need(alike(before, everything(model)), "a forward pass changes its weights or buffers")


def has_weights(subject: Subject) -> None:
    """It has weights to prune: of Conv or Linear layers, or attention projections."""
    model = _smallest(subject)[0]
    unreached = computed(model)
    need(not unreached, f'the weight of "{unreached[0] if unreached else ""}" is computed of other tensors, so it cannot be pruned')
    need(prunable(model), "there is none")


CHECKS = (logits, independent, seeded, differentiable, headed, storable, constant, has_weights)
