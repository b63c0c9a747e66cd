"""The manual for plugin authors: every hook, what to return, what it is called with.

A plugin is a module with functions named as below, each marked `@hookimpl`. The first eight return `{name: function}`; names are
lower case with dashes. rtbench calls a part with the subset of the words it asks for, by name; the part's keyword-only parameters
are its knobs, checked against their annotations when a suite is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from rtbench.planning.plan import Stage

hookspec = pluggy.HookspecMarker("rtbench")
hookimpl = pluggy.HookimplMarker("rtbench")

Parts = Mapping[str, Callable[..., Any]]


@hookspec
def rtbench_datasets() -> Parts:  # type: ignore[empty-body]
    """f(root) -> Data. root: the data folder. Images (n, c, h, w) read as [0, 1], unnormalised; y int64 (n,)."""


@hookspec
def rtbench_architectures() -> Parts:  # type: ignore[empty-body]
    """f(shape, classes) -> torch.nn.Module giving logits (n, classes) from images (n, *shape) in [0, 1].

    It normalises inside, names its classifier in `head_name`, and may draw from torch's global generator, which is seeded.
    """


@hookspec
def rtbench_attacks() -> Parts:  # type: ignore[empty-body]
    """f(model, x, y, threat, noise) -> x_adv of x's shape, or Attacked(x_adv, outcomes, flags).

    It takes those of these that it needs, threat in any case. The model is in eval mode, float32; threat has norm and exact eps;
    noise.uniform(x), .normal(x), .randint(low, high) are bound to the sample ids. The harness moves x_adv into the ball and the box and
    judges it: an attack proposes.
    A native attack is f(threat, classes, shape) -> rtbench.parts.slots.Native: methods that update a fixed-size batch of slots step by
    step, which the engine fills, judges at every query and empties; it asks for none of model, x, y, noise.
    """


@hookspec
def rtbench_objectives() -> Parts:  # type: ignore[empty-body]
    """f(model, x, y, rng, progress) -> losses (n,). progress has step, steps, epoch, epochs.

    An `Attack` knob is called as attack(model, x, y, rng) -> x_adv. No .item(), no branch on a tensor's value.
    """


@hookspec
def rtbench_trainers() -> Parts:  # type: ignore[empty-body]
    """f(model, masks, data, rng, loop) -> None, or masks where training grows or shrinks them.

    Optimises exactly the parameters that require grad and leaves pruned weights at 0, and what masks of BatchNorm there are. data.test is
    None. An `Objective` knob is called as objective(model, x, y, progress) -> losses (n,). `for step in loop(range(n), state={...})`
    survives a kill. One that can train several networks as one says how: `@declare(stacked=...)`, see `rtbench.parts.kinds.Stacked`.
    """


@hookspec
def rtbench_pruners() -> Parts:  # type: ignore[empty-body]
    """f(model, masks, data, rng, loop) -> masks. Keeps exactly the count its knobs keep, drop or count promise.

    Never revives a weight unless marked `@declare(revives=True)`; as near to the count as whole rows of weights allow if marked
    `@declare(structured=True)`. May change the model (BatchNorm, scores folded back into weights). It is given masks of prunable weights
    alone, and may return masks of weights and biases of BatchNorm besides, which no amount counts: they stay in later rounds.
    """


@hookspec
def rtbench_probes() -> Parts:  # type: ignore[empty-body]
    """f(model, masks, data, rng, loop, history, source, sources, own) -> a number, {name: number}, or Measure; leaves the model unchanged.

    An `Attack` knob is called as attack(model, split, positions, loop) -> Outcome, already judged. history lists the stages that
    led to the model: verb, part, records (step, name, value), forwards, gradients, seconds.
    A probe marked `@declare(sources="craft")` borrows what the probe `craft`, or whichever it names, kept per sample on the states that
    the suite selects with `from`: tables of CPU tensors, "ids" among them. It asks for `source`, one of them, and is measured once for
    each, as "probe.NAME"; or for `sources`, all by name. own: the same of the measured state. It has all the knobs of the probe it names,
    and "source_NAME" where one is to differ on the sources.
    `attack.proposing(ids, points)` is the attack that proposes stored points, `attack(..., keep=True).points` are those to be stored.
    """


@hookspec
def rtbench_reports() -> Parts:  # type: ignore[empty-body]
    """f(board, path) -> None: writes the board, rows of text and numbers, to the file `path`, or several files to a folder there.

    board.figures are the figures that the suite declares, with their numbers; see `rtbench.ranking.figures`.
    """


@hookspec
def rtbench_progress(stage: Stage, done: int, total: int) -> None:
    """Inside a stage, at most a few times a second: `done` of `total` items of its loop."""


@hookspec
def rtbench_stage_done(stage: Stage, records: list[list[Any]], seconds: float, cached: bool) -> None:
    """A stage is in the store; records are [step, name, value]. cached: it was there already, and records is empty."""


@hookspec
def rtbench_stage_failed(stage: Stage, reason: str) -> None:
    """A stage failed, or was skipped because one it needs failed; reason is one sentence."""
