"""The verbs: what a stage does with the network, its masks and its part, and what it may not do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rtbench import keys
from rtbench.data.splits import Data
from rtbench.engine.bind import as_measure
from rtbench.engine.context import Context, Result
from rtbench.engine.state import check_masks, fill, masks_of, read_checkpoint, renamed
from rtbench.errors import UserError
from rtbench.evaluation.guard import Changed, frozen, input_kept, own_randomness
from rtbench.parts.kinds import asks_for
from rtbench.parts.masks import Masks, apply_, computed, of_weights, ones
from rtbench.parts.meter import metered
from rtbench.planning.plan import Stage
from rtbench.storage.store import Store


class StageFailure(Exception):
    """What a part returned or did is not what its kind promises."""


def _init(context: Context) -> Result:
    model = context.build()
    check_network(model, context.data, context.options.device)
    return Result(model.state_dict())


def _load(context: Context) -> Result:
    knobs = context.stage.part["knobs"]
    file = Path(context.stage.files[knobs["sha256"]])
    what = f'checkpoint "{file}"'
    tensors, masks = read_checkpoint(file)
    if keys.file_digest(file) != knobs["sha256"]:
        raise UserError(f"{what} changed since the suite was planned")
    model = context.build()
    report = fill(model, renamed(tensors, knobs["rename"]), knobs["strict"], what)
    masks = masks_of(model, renamed(masks, knobs["rename"]), knobs["masks"], what)
    return Result(model.state_dict(), masks, about={"mismatch": report} if report else {})


def _transfer(context: Context) -> Result:
    """A complete state for the new data: everything but the head is taken over, the head is fresh and unpruned."""
    model = context.build()
    weights, masks = context.inherited()
    head = f"{model.head_name}."
    own = model.state_dict()
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(head)}
    for name, tensor in kept.items():
        if name not in own or own[name].shape != tensor.shape:
            raise UserError(f'transfer: "{name}" of shape {tuple(tensor.shape)} does not fit a network for {context.data.shape} images')
    model.load_state_dict({**own, **kept})
    if masks:
        masks = ones(model) | {name: mask.to(context.options.device) for name, mask in masks.items() if not name.startswith(head)}
        check_masks(model, masks, "transfer")
        apply_(model, masks)
    return Result(model.state_dict(), masks)


def _train(context: Context) -> Result:
    given = to_train(context)
    part = context.binder().part("trainer", context.stage.part)
    with metered(given["model"], context.counts):
        returned = part(**given)
    return trained(context, given, returned)


def to_train(context: Context) -> dict[str, Any]:
    """What a trainer is called with, knobs aside."""
    model, masks = context.load()
    context.loop.model, context.loop.masks = model, masks
    return {"model": model, "masks": masks, "data": context.data._replace(test=None), "rng": context.rng, "loop": context.loop}


def trained(context: Context, given: dict[str, Any], returned: Any = None) -> Result:
    """What became of it."""
    new = given["masks"] if returned is None else returned
    _check_masks(context, given["model"], new)
    return _finished(context, given["model"], given["masks"] | new)


def _prune(context: Context) -> Result:
    model, masks = context.load()
    if unreached := computed(model):
        raise UserError(
            f'the weight of "{unreached[0]}" is computed of other tensors (weight_norm, spectral_norm or another parametrization), '
            "so nothing of it can be pruned; make the network without"
        )
    loop = context.loop
    weights = of_weights(model, masks)
    loop.model, loop.masks = model, {name: mask.clone() for name, mask in weights.items()}
    part = context.binder().part("pruner", context.stage.part)
    with metered(model, context.counts):
        new = part(model=model, masks=loop.masks, data=context.data._replace(test=None), rng=context.rng, loop=loop)
    _check_masks(context, model, new)
    use = context.stage.part["use"]
    if not getattr(context.catalogue.get("pruner", use).function, "revives", False):
        for name, mask in weights.items():
            if bool((new[name] & ~mask).any()):
                raise StageFailure(f'pruner "{use}" revived weights of "{name}" without declaring so')
        # Pruners neither see nor count masks of BatchNorm; those of earlier rounds stay, and new ones come on top.
        new = new | {name: mask & new.get(name, mask) for name, mask in masks.items() if name not in weights}
    return _finished(context, model, new)


def _check_masks(context: Context, model: nn.Module, masks: Any) -> None:
    """StageFailure unless the network has the tensors it had, and these are masks for it."""
    kind = "trainer" if context.stage.verb == "train" else "pruner"
    what, names = f'{kind} "{context.stage.part["use"]}"', set(model.state_dict())
    # Their order is no matter: torch's own removal of a pruning or a parametrization puts a weight behind its bias.
    if odd := sorted(names.symmetric_difference(context.names)):
        raise StageFailure(f'{what} left the network with other tensors than it had, first "{odd[0]}"')
    if not isinstance(masks, dict):
        raise StageFailure(f"{what} returned {type(masks).__name__}, not masks")
    check_masks(model, masks, what)


def _finished(context: Context, model: nn.Module, masks: Masks) -> Result:
    """Pruned weights exactly 0, everything finite; masks that prune nothing are not stored."""
    use = context.stage.part["use"]
    apply_(model, masks)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StageFailure(f'"{name}" is not finite after {context.stage.verb} "{use}": it diverged')
    return Result(model.state_dict(), masks if any(not bool(mask.all()) for mask in masks.values()) else {})


def _probe(context: Context) -> Result:
    model, masks = context.load()
    masks = of_weights(model, masks)
    loop = context.loop
    part = context.binder().part("probe", context.stage.part)
    use = context.stage.part["use"]
    asked = "history" in asks_for(context.catalogue.get("probe", use).function)
    history = ancestry(context.store, context.stage) if asked else ()
    try:
        _answers(model, context.data, context.options.device)  # a network that was loaded was not asked before
        with frozen(model), metered(model, context.counts):
            returned = part(model=model, masks=masks, data=context.data, rng=context.rng, loop=loop, history=history, **context.borrowed())
    except Changed as error:
        raise StageFailure(f'probe "{use}": {error}') from error
    measured = as_measure(returned)
    return Result(None, None, measured.numbers, measured.samples, measured.flags, measured.timings, measured.about, measured.witness)


VERBS: dict[str, Callable[[Context], Result]] = {
    "init": _init, "load": _load, "transfer": _transfer, "train": _train, "prune": _prune, "probe": _probe,
}  # fmt: skip


def check_network(model: nn.Module, data: Data, device: str) -> None:
    """StageFailure unless the network gives finite logits (n, classes) and names its classifier; UserError if it changes its input."""
    if lazy := [name for name, parameter in model.named_parameters() if is_lazy(parameter)]:
        raise UserError(f'"{lazy[0]}" has no shape yet: pass an image through it where it is made, `model(torch.zeros(1, *shape))`')
    if odd := [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]:
        raise StageFailure(f'"{odd[0]}" of its state dict is no tensor, and nothing else is kept of a network')
    logits = _answers(model, data, device)
    if not isinstance(logits, Tensor):
        raise StageFailure(f"the network gives {type(logits).__name__} for 2 images, not finite logits (2, {data.classes})")
    if logits.shape != (2, data.classes) or not logits.is_floating_point() or not bool(torch.isfinite(logits).all()):
        raise StageFailure(f"the network gives {tuple(logits.shape)} for 2 images, not finite logits (2, {data.classes})")
    head, layers = getattr(model, "head_name", None), dict(model.named_modules())
    if not isinstance(head, str) or head not in layers:
        last = next((name for name, layer in reversed(layers.items()) if isinstance(layer, nn.Linear)), "fc")
        raise StageFailure(f'the network does not name its classifier: where it is made, set `model.head_name`, to "{last}" for instance')


def _answers(model: nn.Module, data: Data, device: str) -> Tensor:
    """Logits of two random images. UserError if the forward changes them."""
    x = torch.rand(2, *data.shape, generator=torch.Generator().manual_seed(0)).to(device)
    with own_randomness(0), frozen(model), torch.no_grad(), input_kept(x):
        logits: Tensor = model(x)
    return logits


def ancestry(store: Store, stage: Stage) -> tuple[dict[str, Any], ...]:
    """The stages that led to the measured weights, oldest first: verb, part, records, forwards, gradients, seconds (None if lost)."""
    found: dict[str, dict[str, Any]] = {}

    def visit(ref: str) -> None:
        key = ref.split("/")[0]
        if key not in found:
            record = store.record(key)
            for parent in record["stage"]["inputs"].values():
                visit(parent)
            found[key] = {"key": key, "verb": record["stage"]["verb"], "part": record["stage"]["part"],
                          "records": record["records"], **record["passes"],
                          "seconds": store.provenance(key).get("seconds")}  # fmt: skip

    for ref in stage.states():
        visit(ref)
    return tuple(found.values())
