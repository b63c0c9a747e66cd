"""Native attacks: every method of an ensemble over every sample it has to break, with all slots busy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rtbench.errors import UserError
from rtbench.evaluation.findings import masked
from rtbench.evaluation.ladder import Ladder
from rtbench.evaluation.margins import margins
from rtbench.evaluation.queue import Source
from rtbench.evaluation.sparse import sparse
from rtbench.evaluation.tries import Tries
from rtbench.evaluation.witness import Shelf
from rtbench.parts.kinds import Attacked
from rtbench.parts.slots import Native, missed
from rtbench.parts.threats import Threat

Build = Callable[[Threat, int, tuple[int, ...]], Native]
"""A native attack with its knobs bound: called with threat, number of classes and shape (c, h, w) of an image."""
MASKED_GRADIENT = "masked-gradient"


class Run:
    """One native attack on samples 0..n-1 of `source`; `step` until it says False. All that it knows survives in its state_dict.

    like: (1, c, h, w), says shape and device. keep: also adversarial examples. shelf: takes those of samples that are right clean.
    Of each sample it keeps bits, counts and margins; images are held only for the slots, unless `keep`.
    """

    def __init__(
        self, model: nn.Module, source: Source, n: int, threat: Threat, build: Build, seed: int, batch: int,
        like: Tensor, keep: bool = False, shelf: Shelf | None = None,
    ) -> None:  # fmt: skip
        self.model, self.source, self.n, self.threat, self.seed, self.like = model, source, n, threat, seed, like
        self.shelf = shelf
        self.ladder = Ladder(model, like, batch)
        classes = self._logits(like).shape[1]
        self.native = build(threat, classes, tuple(like.shape[1:]))
        self.dtype = torch.bfloat16 if self.native.precision == "bf16" else torch.float32
        self.search = _in_bfloat16(model, like) if self.native.precision == "bf16" else sparse(model, like)
        if self.search is not model:
            self.ladder.also(self.search, self.dtype)
        whole, bits = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)
        ranks = 1 + max((method.targets for method in self.native.methods), default=0)  # classes by clean logit: the label and the targets
        self.found: dict[str, Tensor] = {
            "ids": whole, "y": whole.clone(), "clean": bits, "robust": bits.clone(), "forwards": whole.clone(), "gradients": whole.clone(),
            "ranks": torch.zeros(n, ranks, dtype=torch.int16), "clean_margin": torch.zeros(n), "margin": torch.zeros(n),
        }  # fmt: skip
        self.inner: dict[str, Tensor] = {}
        self.best = torch.zeros(n, *like.shape[1:], device=like.device) if keep else None
        self.flags = list(self.native.flags)
        self.done = self.rows = self.busy = 0
        """Samples whose clean output is known; rows passed through the model in steps, those of empty slots included; and without."""
        self.tries: Tries | None = None

    @property
    def occupancy(self) -> float:
        """The share of rows passed through the model that belonged to a try, of methods that are done."""
        return self.busy / max(1, self.rows)

    @property
    def steps(self) -> int:
        """No fewer steps than it can take."""
        size = self.ladder.batch
        return -(-self.n // size) + sum(m.steps * -(-self.n * m.tries // size) + 1 for m in self.native.methods) + 2

    def step(self) -> bool:
        """One batch of clean outputs, or one step of the method at hand; False when all is judged."""
        if self.done < self.n:
            self._clean()
            return True
        if self.tries is None:
            if len(self.inner) == len(self.native.methods):
                return False
            self.tries = self._begin()
        if not self.tries.step():
            self._finish(self.tries)
        return True

    def _clean(self) -> None:
        here = torch.arange(self.done, min(self.done + self.ladder.batch, self.n))
        x, y, ids = self.source(here)
        logits = self._logits(x)
        right = ~missed(logits, y)
        found = self.found
        found["ids"][here], found["y"][here], found["clean"][here] = ids.cpu(), y.cpu(), right.cpu()
        found["robust"][here] = right.cpu()
        found["clean_margin"][here] = found["margin"][here] = margins(logits, y).cpu()
        found["forwards"][here] += 1
        found["ranks"][here] = logits.argsort(dim=1, descending=True, stable=True)[:, : found["ranks"].shape[1]].short().cpu()
        if self.best is not None:
            self.best[here.to(x.device)] = x
        self.done += len(here)

    @torch.no_grad()
    def _logits(self, x: Tensor) -> Tensor:
        """Of no more rows than the batch has, which is filled up."""
        logits: Tensor = self.model(torch.cat([x, x[:1].expand(self.ladder.batch - len(x), *x.shape[1:])]))
        return logits[: len(x)]

    def _raise(self, flags: list[str]) -> None:
        self.flags += [flag for flag in flags if flag not in self.flags]

    def _begin(self) -> Tries:
        todo = self.found["robust"].nonzero().squeeze(1)
        method = self.native.methods[len(self.inner)]
        return Tries(
            self.model, self.search, self.source, self.threat, method, self.seed, todo, self.found["ranks"], self.ladder, self.like,
            self.found["margin"], self.best, self.dtype, self.shelf,
        )  # fmt: skip

    def _finish(self, tries: Tries) -> None:
        self.found["robust"] = tries.alive.clone()
        self.inner[tries.method.name] = tries.alive.clone()
        self.found["forwards"] += tries.steps * tries.method.forwards
        self.found["gradients"] += tries.steps * tries.method.gradients
        self.rows, self.busy = self.rows + tries.slots.asked, self.busy + tries.busy
        self._raise(tries.flags)
        if len(self.inner) == len(self.native.methods) and masked(self.inner):
            self._raise([MASKED_GRADIENT])
        self.tries = None

    def state_dict(self) -> dict[str, Any]:
        kept: dict[str, Any] = {} if self.best is None else {"best": self.best}
        kept |= {} if self.shelf is None else {"shelf": self.shelf.state_dict()}
        return {
            "found": dict(self.found), "inner": dict(self.inner), "kept": kept, "flags": list(self.flags),
            "numbers": [self.done, self.rows, self.busy], "ladder": self.ladder.state_dict(),
            "tries": {} if self.tries is None else self.tries.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.found, self.inner = dict(saved["found"]), dict(saved["inner"])
        self.done, self.rows, self.busy = saved["numbers"]
        self.flags = list(saved["flags"])
        if "ladder" in saved:  # an earlier rtbench did not save it
            self.ladder.load_state_dict(saved["ladder"])
        if self.best is not None:
            self.best.copy_(saved["kept"]["best"])
        if self.shelf is not None:
            self.shelf.load_state_dict(saved["kept"]["shelf"])
        self.tries = None
        if saved["tries"]:
            self.tries = self._begin()
            self.tries.load_state_dict(saved["tries"])


@torch.no_grad()
def _in_bfloat16(model: nn.Module, like: Tensor) -> nn.Module:
    """A copy to search with; UserError where the network cannot be copied, or asked, in bfloat16."""
    try:
        found = copy.deepcopy(model).bfloat16()
        found(like.bfloat16())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(f'precision "bf16" needs a copy of the network that answers in bfloat16 ({text}); use "exact"') from error
    return found


def plain(build: Build, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Any) -> Attacked:
    """A native attack on a batch in memory, as a plain one: adversarial examples, or the closest points, of all samples.

    Samples that the model gets wrong already stay as they are. The model has to be in eval mode.
    """
    ids = torch.arange(len(x), device=x.device)

    def source(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        here = rows.to(x.device)
        return x[here], y[here], ids[here]

    run = Run(model, source, len(x), threat, build, noise.seed, len(x), x[:1], keep=True)
    while run.step():
        pass
    assert run.best is not None
    return Attacked(run.best, dict(run.inner), tuple(run.flags))
