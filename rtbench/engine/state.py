"""A stage's state as safetensors bytes: weights and buffers under their own names, masks as "mask:NAME"; and foreign checkpoints."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor, nn

from rtbench.errors import UserError, unknown
from rtbench.parts.masks import Masks, apply_, normalisation, prunable

MASK = "mask:"


def pack(weights: Mapping[str, Tensor], masks: Masks | None = None) -> bytes:
    """Deterministic bytes: tensors in sorted order, on the CPU, no metadata."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    tensors.update({MASK + name: mask.cpu().contiguous() for name, mask in (masks or {}).items()})
    return serialise({name: tensors[name] for name in sorted(tensors)})


def unpack(content: bytes) -> tuple[dict[str, Tensor], Masks]:
    """The weights and the masks of packed bytes."""
    tensors = parse(content)
    masks = {name.removeprefix(MASK): tensor for name, tensor in tensors.items() if name.startswith(MASK)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(MASK)}, masks


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], Masks]:
    """Weights and masks of a safetensors file or of a torch checkpoint that holds only tensors; nothing in it is executed.

    UserError, one sentence: a web page, a truncated file, pickled code, no tensors.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f'checkpoint "{file}": {error.strerror}') from None
    head = content[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f'checkpoint "{file}" is a web page, not weights: the download went wrong')
    if not content:
        raise UserError(f'checkpoint "{file}" is empty')
    if file.suffix == ".safetensors":
        try:
            return unpack(content)
        except (SafetensorError, ValueError) as error:
            raise UserError(f'checkpoint "{file}" is truncated or no safetensors file: {error}') from None
    return _from_torch(_load_torch(file, content), file)


def _load_torch(file: Path, content: bytes) -> Any:
    if content[:2] == b"PK" and not zipfile.is_zipfile(io.BytesIO(content)):
        raise UserError(f'checkpoint "{file}" is truncated')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickle protocols; what matters is said below
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        pickled = content[:2] == b"PK" or content[:1] == b"\x80"  # torch's two formats; anything else is no checkpoint at all
        if pickled and ("weights_only" in str(error) or "Unsupported" in str(error)):
            raise UserError(
                f'checkpoint "{file}" holds pickled code, which is never executed; save its state_dict with safetensors'
            ) from None
        raise UserError(f'checkpoint "{file}" is damaged or no checkpoint: {" ".join(str(error).split())[:120]}') from None


def _from_torch(found: Any, file: Path) -> tuple[dict[str, Tensor], Masks]:
    """Finds the state dict: the object itself, or under one of the names in common use."""
    for name in ("state_dict", "model_state_dict", "model", "net", "weights"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise UserError(f'checkpoint "{file}" holds no tensors by name')
    masks = {name.removeprefix(MASK): t.bool() for name, t in tensors.items() if name.startswith(MASK)}
    return {name: t for name, t in tensors.items() if not name.startswith(MASK)}, masks


def renamed(tensors: Mapping[str, Tensor], rename: Mapping[str, str]) -> dict[str, Tensor]:
    """DataParallel's prefix stripped, then every pattern replaced in every name; UserError on a bad pattern or a collision."""
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rename.items():
            try:
                name = re.sub(pattern, replacement, name)
            except re.error as error:
                raise UserError(f'rename: "{pattern}" is no regular expression: {error}') from None
        if name in result:
            raise UserError(f'rename: two tensors would both be called "{name}"')
        result[name] = tensor
    return result


def fill(model: nn.Module, tensors: Mapping[str, Tensor], strict: bool, what: str) -> list[str]:
    """Loads tensors into the model. UserError on other shapes, and if strict on missing or surplus names, else these are returned."""
    own = model.state_dict()
    wrong = [name for name in tensors if name in own and tensors[name].shape != own[name].shape]
    if wrong:
        name = wrong[0]
        raise UserError(f'{what}: "{name}" has shape {tuple(tensors[name].shape)}, the model wants {tuple(own[name].shape)}')
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if strict and surplus:
        raise UserError(f"{what}: {unknown('tensor of the model', surplus[0], own)} ({len(surplus)} such; strict = false ignores them)")
    if strict and missing:
        raise UserError(f'{what}: the model\'s "{missing[0]}" is not in it ({len(missing)} such; strict = false keeps fresh values)')
    if not own.keys() & tensors.keys():
        raise UserError(f"{what}: not one tensor fits this model")
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in own}, strict=False)
    return [f"missing {name}" for name in missing] + [f"surplus {name}" for name in surplus]


def masks_of(model: nn.Module, given: Masks, rule: str, what: str) -> Masks:
    """Masks for loaded weights. rule: "file" (those in it, none if it has none), "nonzero" (where weights are not 0), "ones"."""
    names = prunable(model)
    if rule == "nonzero":
        return {name: model.get_parameter(name).detach() != 0 for name in names}
    if rule == "ones" or not given:
        return {}
    check_masks(model, given, what)
    apply_(model, given)
    return given


def check_masks(model: nn.Module, masks: Masks, what: str) -> None:
    """UserError unless there is one bool mask of the right shape for every prunable weight, and none but those and BatchNorm's."""
    names = set(prunable(model))
    odd = (names - masks.keys()) | (masks.keys() - names - set(normalisation(model)))
    if odd:
        raise UserError(f'{what}: masks and prunable weights differ, first in "{min(odd)}"')
    for name in masks:
        mask, shape = masks[name], tuple(model.get_parameter(name).shape)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != shape:
            found = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise UserError(f'{what}: the mask of "{name}" is {found}, not a bool tensor of shape {shape}')
