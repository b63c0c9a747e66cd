"""What a stage runs with: its data, generator and loop, the network rebuilt and its inputs loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rtbench.data.splits import Data, data_digest
from rtbench.engine.bind import Binder
from rtbench.engine.loop import SECONDS, Loop
from rtbench.engine.state import check_masks, unpack
from rtbench.errors import UserError
from rtbench.evaluation.guard import own_randomness
from rtbench.keys import canonical
from rtbench.parts.masks import Masks, apply_, normalisation, ones, prunable
from rtbench.planning.plan import Stage
from rtbench.plugins import Catalogue
from rtbench.storage.store import Store


@dataclass(frozen=True)
class Options:
    """How stages are run: none of it changes what a stage means, so none of it is in a key."""

    root: str
    device: str = "cpu"
    threads: int | None = None
    checkpoint_seconds: float = SECONDS
    deadline: float | None = None
    witness: bool = False
    """Probes keep the adversarial examples that their attacks find."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Digests of the code of parts, read when the run began: a file that is edited meanwhile is not what runs."""
    places: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The rows that each stage is run for, as `Plan.places` says."""


@dataclass
class Result:
    """What a verb made. weights and masks None: nothing to keep but numbers."""

    weights: dict[str, Tensor] | None = None
    masks: Masks | None = None
    numbers: dict[str, float | None] | None = None
    samples: dict[str, Tensor] | None = None
    flags: tuple[str, ...] = ()
    timings: dict[str, float] | None = None
    about: dict[str, Any] | None = None
    witness: dict[str, Tensor] | None = None


@dataclass
class Context:
    """All that a verb needs of the stage it runs.

    inputs: SHA-256 of the weights, masks and samples that were read, by role. names: the tensors of the network as it was loaded.
    """

    stage: Stage
    store: Store
    catalogue: Catalogue
    options: Options
    data: Data
    rng: torch.Generator
    loop: Loop
    counts: dict[str, int]
    inputs: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def build(self) -> nn.Module:
        """A fresh network for the stage's data, drawn from the stage's seed."""
        with own_randomness(self.stage.seed):
            return build(self.catalogue, self.stage.net, self.data, self.rng).to(self.options.device)

    def load(self) -> tuple[nn.Module, Masks]:
        """The network with the inputs' weights and masks; masks are ones where nothing was pruned yet."""
        model = self.build()
        self.names = list(model.state_dict())
        weights, masks = self.inherited()
        model.load_state_dict(weights)
        if masks:
            check_masks(model, masks, f"the masks of stage {self.stage.inputs.get('masks', self.stage.inputs['weights'])}")
        # In the model's order, whatever the file's: what a part draws or breaks ties by must not depend on it.
        names = [name for name in (*prunable(model), *normalisation(model)) if name in masks]
        masks = {name: masks[name].to(self.options.device) for name in names} or ones(model)
        apply_(model, masks)
        return model, masks

    def inherited(self) -> tuple[dict[str, Tensor], Masks]:
        """The inputs' weights, and their masks, which a rewind may have left elsewhere than the weights; {} if nothing was pruned."""
        weights, masks = self.state("weights")
        return (weights, self.state("masks")[1]) if "masks" in self.stage.inputs else (weights, masks)

    def state(self, role: str) -> tuple[dict[str, Tensor], Masks]:
        self.inputs[role] = self.store.state_digest(self.stage.inputs[role])
        return unpack(self.store.state_bytes(self.stage.inputs[role]))

    def samples(self, role: str) -> dict[str, Tensor]:
        """The per-sample tensors that another probe kept, on the CPU."""
        key = self.stage.inputs[role]
        self.inputs[role] = self.store.samples_digest(key)
        return unpack(self.store.samples_bytes(key))[0]

    def borrowed(self) -> dict[str, Any]:
        """What a probe that borrows is given: `source`, all `sources` by name, its `own`; see `rtbench.hookspecs`."""
        held = {role: self.samples(role) for role in self.stage.borrowed()}
        sources = {role.removeprefix("source."): samples for role, samples in held.items() if role.startswith("source.")}
        return {"sources": sources, **{role: samples for role, samples in held.items() if role in ("source", "own")}}

    def binder(self, history: tuple[Any, ...] = ()) -> Binder:
        return Binder(self.catalogue, self.stage.seed, self.rng, self.data, history, self.counts, self.options.witness)


def build(catalogue: Catalogue, net: dict[str, Any], data: Data, rng: torch.Generator) -> nn.Module:
    """The network of an architecture part for the shape and classes of `data`."""
    model: nn.Module = Binder(catalogue, 0, rng).part("architecture", net)(shape=data.shape, classes=data.classes)
    return model


_data: dict[str, Data] = {}


def load_data(part: dict[str, Any], catalogue: Catalogue, options: Options) -> Data:
    """The data of a resolved dataset part on the device; the last two stay there. UserError if it is not what was planned."""
    plain = {name: value for name, value in part.items() if name != "digest"}
    name = canonical([plain, options.root, options.device, catalogue.files])
    if name not in _data:
        bound = Binder(catalogue, 0, torch.Generator()).part("dataset", plain)
        if len(_data) > 1:
            del _data[next(iter(_data))]
        loaded: Data = bound(root=Path(options.root))
        data_digest(loaded)  # computed here, where the bytes are, and kept by the splits
        _data[name] = loaded.to(options.device)
    data = _data[name]
    if part.get("digest") not in (None, data_digest(data)):
        raise UserError(f'the files of dataset "{part["use"]}" changed since the suite was planned')
    return data
