"""Runs one stage: rebuild the model, load the inputs, apply the masks, call the part, store what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rtbench.bind import Binder, as_measure
from rtbench.data import Data, data_digest
from rtbench.errors import UserError
from rtbench.evaluation.guard import Changed, frozen, own_randomness
from rtbench.evaluation.meter import metered
from rtbench.keys import canonical
from rtbench.kinds import asks_for
from rtbench.loop import SECONDS, Loop
from rtbench.masks import Masks, apply_, ones, prunable
from rtbench.plan import Stage
from rtbench.plugins import Catalogue
from rtbench.provenance import provenance
from rtbench.state import check_masks, fill, masks_of, pack, read_checkpoint, renamed, unpack
from rtbench.store import Store


class StageFailure(Exception):
    """What a part returned or did is not what its kind promises."""


@dataclass(frozen=True)
class Options:
    """How stages are run: none of it changes what a stage means, so none of it is in a key."""

    root: str
    device: str = "cpu"
    threads: int | None = None
    checkpoint_seconds: float = SECONDS
    deadline: float | None = None


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


@dataclass
class Context:
    """All that a verb needs of the stage it runs."""

    stage: Stage
    store: Store
    catalogue: Catalogue
    options: Options
    data: Data
    rng: torch.Generator
    loop: Loop
    counts: dict[str, int]

    def build(self) -> nn.Module:
        """A fresh network for the stage's data, drawn from the stage's seed."""
        with own_randomness(self.stage.seed):
            return build(self.catalogue, self.stage.net, self.data, self.rng).to(self.options.device)

    def load(self) -> tuple[nn.Module, Masks]:
        """The network with the inputs' weights and masks; masks are ones where nothing was pruned yet."""
        model = self.build()
        weights, masks = self.state("weights")
        model.load_state_dict(weights)
        if "masks" in self.stage.inputs:
            _, masks = self.state("masks")
        if masks:
            check_masks(model, masks, f"the masks of stage {self.stage.inputs.get('masks', self.stage.inputs['weights'])}")
        # In the model's order, whatever the file's: what a part draws or breaks ties by must not depend on it.
        masks = {name: masks[name].to(self.options.device) for name in prunable(model)} if masks else ones(model)
        apply_(model, masks)
        return model, masks

    def state(self, role: str) -> tuple[dict[str, Tensor], Masks]:
        return unpack(self.store.state_bytes(self.stage.inputs[role]))

    def binder(self, history: tuple[Any, ...] = ()) -> Binder:
        return Binder(self.catalogue, self.stage.seed, self.rng, self.data, history, self.counts)


def build(catalogue: Catalogue, net: dict[str, Any], data: Data, rng: torch.Generator) -> nn.Module:
    """The network of an architecture part for the shape and classes of `data`, checked to give logits (n, classes)."""
    model: nn.Module = Binder(catalogue, 0, rng).part("architecture", net)(shape=data.shape, classes=data.classes)
    return model


def run_stage(
    stage: Stage, store: Store, catalogue: Catalogue, options: Options, progress: Callable[[int, int], None] | None = None
) -> None:
    """Runs the stage, continuing where a killed run of it stopped, and puts its result into the store.

    Raises StageFailure, AttackFailure or whatever the part raised; Missing or Corrupt where an input is not there as recorded.
    """
    started = time.time()
    rng = torch.Generator().manual_seed(stage.seed)
    counts = {"forwards": 0, "gradients": 0}
    loop = Loop(file=store.work(stage.key) / "loop.pt", rng=rng, seconds=options.checkpoint_seconds, progress=progress,
                deadline=options.deadline, counts=counts)  # fmt: skip
    data = load_data(stage.data, catalogue, options).to(options.device)
    context = Context(stage, store, catalogue, options, data, rng, loop, counts)
    clock = time.monotonic()
    with own_randomness(stage.seed):
        result = VERBS[stage.verb](context)
    seconds = time.monotonic() - clock + loop.spent
    files = {} if result.weights is None else {"state.safetensors": pack(result.weights, result.masks)}
    files.update({f"state.{name}.safetensors": pack(state, result.masks) for name, state in loop.kept.items()})
    if result.samples:
        files["samples.safetensors"] = pack(result.samples)
    final = [[0, name, value] for name, value in (result.numbers or {}).items()]
    record = {
        "stage": stage.described(), "records": [[step, name, _number(value)] for step, name, value in loop.records + final],
        "flags": sorted(result.flags), "about": result.about or {}, "passes": counts,
    }  # fmt: skip
    facts = provenance(stage, catalogue, options.device, started, seconds)
    facts["timings"] = result.timings or {}
    store.put(stage.key, record, facts, files)


def _init(context: Context) -> Result:
    model = context.build()
    check_network(model, context.data, context.options.device)
    return Result(model.state_dict())


def _load(context: Context) -> Result:
    knobs = context.stage.part["knobs"]
    what = f'checkpoint "{context.stage.files[knobs["sha256"]]}"'
    tensors, masks = read_checkpoint(Path(context.stage.files[knobs["sha256"]]))
    model = context.build()
    report = fill(model, renamed(tensors, knobs["rename"]), knobs["strict"], what)
    masks = masks_of(model, renamed(masks, knobs["rename"]), knobs["masks"], what)
    return Result(model.state_dict(), masks, about={"mismatch": report} if report else {})


def _transfer(context: Context) -> Result:
    """A complete state for the new data: everything but the head is taken over, the head is fresh and unpruned."""
    model = context.build()
    weights, masks = context.state("weights")
    head = f"{model.head_name}."
    own = model.state_dict()
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(head)}
    for name, tensor in kept.items():
        if name not in own or own[name].shape != tensor.shape:
            raise UserError(f'transfer: "{name}" of shape {tuple(tensor.shape)} does not fit a network for {context.data.shape} images')
    model.load_state_dict({**own, **kept})
    if masks:
        masks = {name: torch.ones_like(mask) if name.startswith(head) else mask for name, mask in ones(model).items()} | {
            name: mask for name, mask in masks.items() if not name.startswith(head)
        }
    return Result(model.state_dict(), masks)


def _train(context: Context) -> Result:
    model, masks = context.load()
    loop = context.loop
    loop.model, loop.masks = model, masks
    part = context.binder().part("trainer", context.stage.part)
    with metered(model, context.counts):
        returned = part(model=model, masks=masks, data=context.data._replace(test=None), rng=context.rng, loop=loop)
    masks = masks if returned is None else returned
    return _finished(context, model, masks)


def _prune(context: Context) -> Result:
    model, masks = context.load()
    loop = context.loop
    loop.model, loop.masks = model, {name: mask.clone() for name, mask in masks.items()}
    part = context.binder().part("pruner", context.stage.part)
    with metered(model, context.counts):
        new = part(model=model, masks=loop.masks, data=context.data._replace(test=None), rng=context.rng, loop=loop)
    use = context.stage.part["use"]
    if not isinstance(new, dict):
        raise StageFailure(f'pruner "{use}" returned {type(new).__name__}, not masks')
    check_masks(model, new, f'pruner "{use}"')
    if not getattr(context.catalogue.get("pruner", use).function, "revives", False):
        for name, mask in new.items():
            if bool((mask & ~masks[name]).any()):
                raise StageFailure(f'pruner "{use}" revived weights of "{name}" without declaring so')
    return _finished(context, model, new)


def _finished(context: Context, model: nn.Module, masks: Masks) -> Result:
    """Pruned weights exactly 0, everything finite; masks that prune nothing are not stored."""
    check_masks(model, masks, context.stage.part["use"])
    apply_(model, masks)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StageFailure(f'"{name}" is not finite after {context.stage.verb} "{context.stage.part["use"]}": it diverged')
    return Result(model.state_dict(), masks if any(not bool(mask.all()) for mask in masks.values()) else {})


def _probe(context: Context) -> Result:
    model, masks = context.load()
    loop = context.loop
    part = context.binder().part("probe", context.stage.part)
    use = context.stage.part["use"]
    asked = "history" in asks_for(context.catalogue.get("probe", use).function)
    history = ancestry(context.store, context.stage) if asked else ()
    try:
        with frozen(model), metered(model, context.counts):
            returned = part(model=model, masks=masks, data=context.data, rng=context.rng, loop=loop, history=history)
    except Changed as error:
        raise StageFailure(f'probe "{use}": {error}') from error
    measured = as_measure(returned)
    return Result(None, None, measured.numbers, measured.samples, measured.flags, measured.timings, measured.about)


VERBS: dict[str, Callable[[Context], Result]] = {
    "init": _init, "load": _load, "transfer": _transfer, "train": _train, "prune": _prune, "probe": _probe,
}  # fmt: skip


def check_network(model: nn.Module, data: Data, device: str) -> None:
    """StageFailure unless the network gives finite logits (n, classes) and names its classifier."""
    with frozen(model), torch.no_grad():
        logits = model(torch.rand(2, *data.shape, generator=torch.Generator().manual_seed(0)).to(device))
    if logits.shape != (2, data.classes) or not bool(torch.isfinite(logits).all()):
        raise StageFailure(f"the network gives {tuple(logits.shape)} for 2 images, not finite logits (2, {data.classes})")
    head = getattr(model, "head_name", None)
    if not isinstance(head, str) or head not in dict(model.named_modules()):
        raise StageFailure("the network does not name its classifier in `head_name`")


def ancestry(store: Store, stage: Stage) -> tuple[dict[str, Any], ...]:
    """The stages that led to the measured weights, oldest first: verb, part, forwards, gradients, seconds."""
    found: dict[str, dict[str, Any]] = {}

    def visit(ref: str) -> None:
        key = ref.split("/")[0]
        if key not in found:
            record = store.record(key)
            for parent in record["stage"]["inputs"].values():
                visit(parent)
            found[key] = {"key": key, "verb": record["stage"]["verb"], "part": record["stage"]["part"], **record["passes"],
                          "seconds": store.provenance(key).get("seconds", 0.0)}  # fmt: skip

    for ref in stage.inputs.values():
        visit(ref)
    return tuple(found.values())


_data: dict[str, Data] = {}


def load_data(part: dict[str, Any], catalogue: Catalogue, options: Options) -> Data:
    """The data of a resolved dataset part; the last two stay in memory. UserError if it is not what was planned."""
    plain = {name: value for name, value in part.items() if name != "digest"}
    name = canonical([plain, options.root, catalogue.files])
    if name not in _data:
        bound = Binder(catalogue, 0, torch.Generator()).part("dataset", plain)
        if len(_data) > 1:
            del _data[next(iter(_data))]
        _data[name] = bound(root=Path(options.root))
    data = _data[name]
    if part.get("digest") not in (None, data_digest(data)):
        raise UserError(f'the files of dataset "{part["use"]}" changed since the suite was planned')
    return data


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
