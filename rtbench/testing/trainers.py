"""The contract of trainers: f(model, masks, data, rng, loop) -> None or masks, for a few steps on digits."""

from __future__ import annotations

import torch
from torch import nn

from rtbench.data.splits import take
from rtbench.engine.state import check_masks
from rtbench.errors import UserError
from rtbench.parts.masks import Masks, ones
from rtbench.testing.lab import alike, data, network, pruned
from rtbench.testing.result import Broken, Skip, need
from rtbench.testing.sample import Subject
from rtbench.testing.stacks import stackable
from rtbench.testing.stages import Done, differing, intact, resumes, run


def prepare(subject: Subject) -> None:
    """Skip where it says that it cannot train this network or on these data."""
    try:
        _dense(subject)
    except UserError as error:
        raise Skip(str(error)) from None


def _make_dense() -> tuple[nn.Module, Masks]:
    model = network()
    return model, ones(model)


def _make_sparse() -> tuple[nn.Module, Masks]:
    model = network()
    return model, pruned(model)


def _make_partly_frozen() -> tuple[nn.Module, Masks]:
    model, masks = _make_sparse()
    model.get_parameter("fc1.weight").requires_grad_(False)
    return model, masks


def _dense(subject: Subject) -> Done:
    return subject.once("dense", lambda: run(subject, subject.resolve(), _make_dense))


def _sparse(subject: Subject) -> Done:
    return subject.once("sparse", lambda: run(subject, subject.resolve(), _make_sparse))


@torch.no_grad()
def _loss(done: Done, state: str) -> float:
    """Mean cross-entropy on the training samples, in eval mode."""
    model, found = network().eval(), data().train
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.copy_(getattr(done, state)[name])
    x, y = take(found, torch.arange(len(found)))
    return float(nn.functional.cross_entropy(model(x), y))


def learns(subject: Subject) -> None:
    """It lowers the cross-entropy on its training samples within a few steps."""
    done = _dense(subject)
    intact(done)
    before, after = _loss(done, "begun"), _loss(done, "state")
    need(after < before, f"it goes from {before:.4f} to {after:.4f}")


def masked(subject: Subject) -> None:
    """Pruned weights are exactly 0 afterwards; masks it returns fit the network."""
    done = _sparse(subject)
    intact(done)
    need(done.returned is None or isinstance(done.returned, dict), f"it returns {type(done.returned).__name__}, neither None nor masks")
    try:
        check_masks(network(), done.masks, "it")
    except UserError as error:
        raise Broken(str(error)) from None
    if done.returned is None:
        need(alike(done.old, done.masks), "it returns None, but altered the masks")
    for name, mask in done.masks.items():
        alive = int(done.state[name][~mask].count_nonzero())
        need(not alive, f'{alive} pruned weights of "{name}" are not 0')


def selective(subject: Subject) -> None:
    """It trains exactly the parameters that require grad."""
    done = run(subject, subject.resolve(), _make_partly_frozen)
    need(torch.equal(done.begun["fc1.weight"], done.state["fc1.weight"]), "it changes a weight that does not require grad")
    whole = _sparse(subject)
    for name, parameter in network().named_parameters():
        need(not torch.equal(whole.begun[name], whole.state[name]), f'it leaves "{name}" as it was, which requires grad')
        need(parameter.shape == whole.state[name].shape, f'it gives "{name}" another shape')


def repeatable(subject: Subject) -> None:
    """Run again it is the same, bit for bit: weights, buffers, masks, records, kept states."""
    difference = differing(_sparse(subject), run(subject, subject.resolve(), _make_sparse))
    need(not difference, difference)


def resumable(subject: Subject) -> None:
    """Killed at the first, the middle and the last item of its loop and resumed, it ends the same, bit for bit."""
    whole = _sparse(subject)
    need(whole.borders, "it never comes to an item of `loop`, so a kill loses all of its work")
    resumes(subject, subject.resolve(), _make_sparse, whole)


def modest(subject: Subject) -> None:
    """It does without a test split and leaves the data as they are."""
    need(not _dense(subject).touched and not _sparse(subject).touched, "it alters the data")


CHECKS = (learns, masked, selective, repeatable, resumable, modest, stackable)
