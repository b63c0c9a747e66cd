"""Which of the stages that can be run are run next: one, or a stack of trainings whose networks are trained as one."""

from __future__ import annotations

from collections.abc import Callable

from rtbench.engine.stacks import alike
from rtbench.planning.plan import Plan
from rtbench.plugins import Catalogue


class Stacks:
    """Forms stacks of up to `size` trainings. apart: keys of those that are run alone all the same."""

    def __init__(self, plan: Plan, catalogue: Catalogue, size: int) -> None:
        self.size, self.apart = size, set[str]()
        self.kind = {key: alike(stage, catalogue) for key, stage in plan.stages.items()} if size > 1 else {}

    def take(self, ready: list[str], runnable: Callable[[str], bool]) -> list[str]:
        """Takes one stage, or a stack of them, off the end of `ready`; nothing where none of it can be run any more.

        Trainings that can be stacked wait until nothing else is ready, so that as many as possible are; then the most of a kind go.
        """
        if self.size == 1:
            key = ready.pop()
            return [key] if runnable(key) else []
        ready[:] = list(dict.fromkeys(key for key in ready if runnable(key)))
        kinds: dict[str, list[str]] = {}
        for key in reversed(ready):
            kinds.setdefault("" if key in self.apart else self.kind[key], []).append(key)
        alone = kinds.pop("", [])[:1]
        job = alone or max(kinds.values(), key=len, default=[])[: self.size]
        ready[:] = [key for key in ready if key not in job]
        return job
