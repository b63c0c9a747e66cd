"""Trainings made as one: stages that differ by seed and weights alone, by a trainer that can train several networks together."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rtbench.engine.context import Options
from rtbench.engine.run import begun, ended
from rtbench.engine.saved import Pace
from rtbench.engine.verbs import StageFailure, to_train, trained
from rtbench.evaluation.guard import own_randomness
from rtbench.evaluation.process import usual
from rtbench.keys import canonical
from rtbench.parts.kinds import asks_for, stacked
from rtbench.parts.meter import metered
from rtbench.parts.noise import Generators
from rtbench.planning.plan import Stage
from rtbench.plugins import Catalogue
from rtbench.storage.store import Store


def alike(stage: Stage, catalogue: Catalogue) -> str:
    """The same text for stages that may be trained as one; empty for a stage that is run alone."""
    if stage.verb != "train" or stacked(catalogue.get("trainer", stage.part["use"]).function) is None:
        return ""
    return canonical([stage.part, stage.data, stage.net])


@usual()
def run_stack(
    stages: list[Stage], store: Store, catalogue: Catalogue, options: Options, progress: Callable[[Stage, int, int], None]
) -> None:
    """Trains the networks of stages that are `alike` as one, and puts their results into the store.

    Each continues where it was saved, alone or in a stack, and what is saved any of them can continue alone. Of the time that all take
    each is said to have taken its share. Raises Unstackable where only each alone will do, or whatever a part raised.
    """
    started, pace = time.time(), Pace(options.checkpoint_seconds)
    contexts = [begun(stage, store, catalogue, options, functools.partial(progress, stage)) for stage in stages]
    for context in contexts:
        context.loop.pace, context.loop.share = pace, 1 / len(stages)
    part = stages[0].part
    function = catalogue.get("trainer", part["use"]).function
    train = stacked(function)
    assert train is not None
    binders = [context.binder() for context in contexts]

    def together(numbers: list[int]) -> dict[str, Any]:
        return replace(binders[0], rng=Generators(contexts[number].rng for number in numbers)).values("trainer", part)

    with own_randomness(stages[0].seed), contextlib.ExitStack() as meters:
        given = [to_train(context) for context in contexts]
        for context, words in zip(contexts, given, strict=True):
            meters.enter_context(metered(words["model"], context.counts))
        asked = [{word: words[word] for word in asks_for(function)} for words in given]
        calls = [{**words, **binder.values("trainer", part)} for words, binder in zip(asked, binders, strict=True)]
        train(calls, together)
    for context, words in zip(contexts, given, strict=True):
        with contextlib.suppress(StageFailure):  # one that diverged: run alone, it fails in its own name
            ended(context, trained(context, words), started, stack=len(stages))
