"""Networks of timm as an rtbench architecture: by name, untrained, nothing downloaded, no checkpoint read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from rtbench import Range, UserError, hookimpl, torchvision, unknown

Option = bool | int | float | str | list[int] | list[float]
FIXED = {
    "num_classes": "the data say it", "in_chans": "the data say it", "img_size": "the data say it",
    "pretrained": "use the step word load", "checkpoint_path": "use the step word load", "pretrained_cfg": "nothing is downloaded",
    "pretrained_cfg_overlay": "nothing is downloaded", "cache_dir": "nothing is downloaded",
    "features_only": "a classifier is needed", "out_indices": "a classifier is needed",
    "scriptable": "rtbench runs plain modules", "exportable": "rtbench runs plain modules", "no_jit": "rtbench runs plain modules",
    "device": "rtbench moves the network", "dtype": "rtbench works in float32",
}  # fmt: skip
"""Arguments of timm.create_model that are no options, and why."""


def timm_network(
    shape: tuple[int, int, int],
    classes: int,
    *,
    name: str = "resnet18",
    options: dict[str, Option] | None = None,
    mean: Annotated[tuple[float, ...], Range("[0, 1]")] = (),
    std: Annotated[tuple[float, ...], Range("(0, inf)")] = (),
) -> nn.Module:
    """The timm network `name` with fresh weights: images (n, c, h, w) in [0, 1] to logits (n, classes).

    Parameters are named as in timm, so its checkpoints load. Where a network has several classifiers (distilled ones), `head_name` is the
    module that holds them all, or else the first. Raises UserError for an unknown name, one without classifier, options the network
    does not take, images it cannot take, a mean or std of the wrong length.
    Source: Wightman 2019, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.

    name: a model name of timm without a tag: "resnet18", "vit_tiny_patch16_224", ...; image size and classes are those of the data
    options: keyword arguments of that network, such as { drop_path_rate = 0.1 }; none for its own defaults
    mean: subtracted from each channel, one number or one per channel; empty for 0
    std: each channel is divided by it, one number or one per channel; empty for 1
    """
    torchvision()  # timm imports it, which on a CPU build of torch only works this way
    import timm

    if name not in (names := timm.list_models()):
        raise unknown("timm network", name, names)
    for option in options or {}:
        if option in FIXED:
            raise UserError(f'timm: "{option}" is no option of "{name}" here: {FIXED[option]}')
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.classifier:
        raise UserError(f'timm: "{name}" has no classifier')
    arguments: dict[str, Any] = {"num_classes": classes, "in_chans": shape[0], **(options or {})}
    if config.fixed_input_size:
        arguments["img_size"] = shape[1:]
    model: nn.Module = _attempt(name, shape, lambda: timm.create_model(name, **arguments))
    model.head_name = _head(config.classifier, model)  # type: ignore[assignment]
    _normalise(model, shape[0], mean, std)
    _attempt(name, shape, lambda: _try(model, shape))
    return model


def _attempt(name: str, shape: tuple[int, int, int], step: Callable[[], Any]) -> Any:
    """What the step returns; UserError where timm or the network rejects the options or the images."""
    try:
        return step()
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f'timm: "{name}" cannot take these options or images of {"x".join(map(str, shape))}: {reason}') from error


@torch.no_grad()
def _try(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """A network may be built for images that it then cannot read; in eval mode one image changes nothing and draws nothing."""
    model.eval()
    model(torch.zeros(1, *shape))
    model.train()


def _head(classifier: str | tuple[str, ...], model: nn.Module) -> str:
    """The dotted name of the classifier, or of the module around all of them, or of the first."""
    heads = [classifier] if isinstance(classifier, str) else list(classifier)
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*(head.split(".") for head in heads), strict=False))
    found = ".".join(names[0] for names in shared) or heads[0]
    model.get_submodule(found)
    return found


def _normalise(model: nn.Module, channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Puts (x - mean) / std before the network's forward, without a wrapper, so that parameters keep timm's names."""
    for knob, values in (("mean", mean), ("std", std)):
        if len(values) not in (0, 1, channels):
            raise UserError(f"timm: {knob} has {len(values)} numbers for images of {channels} channels; give one, or one per channel")
    if mean or std:
        model.register_buffer("input_mean", torch.tensor(mean or (0.0,)).view(-1, 1, 1), persistent=False)
        model.register_buffer("input_std", torch.tensor(std or (1.0,)).view(-1, 1, 1), persistent=False)
        model.register_forward_pre_hook(_standardised)


def _standardised(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, *rest = inputs
    return ((x - model.input_mean) / model.input_std, *rest)  # type: ignore[operator]


@hookimpl
def rtbench_architectures() -> dict[str, Callable[..., Any]]:
    return {"timm": timm_network}
