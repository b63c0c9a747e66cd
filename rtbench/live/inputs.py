"""What people hand over from Python, checked: a model, images, labels. Every mistake is one UserError that says what to do."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rtbench.data.splits import Split, take
from rtbench.errors import UserError
from rtbench.evaluation.guard import frozen, input_kept, own_randomness, tensors

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Plain(nn.Module):
    """A callable as a module; what is inside of it is out of reach."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def whole(value: Any) -> Any:
    """A whole number of numpy's as Python's; anything else as it is."""
    return int(value) if isinstance(value, np.integer) else value


def seeded(seed: Any) -> torch.Generator:
    """A generator of that seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError(f"seed: {seed!r} is not a whole number from 0, below 2**63")
    return torch.Generator().manual_seed(seed)


def network(model: Any, device: str | torch.device | None) -> tuple[nn.Module, torch.device | None]:
    """The model as a module, and where it is: None where it has no parameters. On another `device` than its own it is a copy."""
    if isinstance(model, type):
        raise UserError(f"model: {model.__name__} is a class, give an instance of it")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("model: is TorchScript, which takes no hooks; pass the module it was made of, or lambda x: model(x)")
    if not isinstance(model, nn.Module):
        if not callable(model):
            hint = "; `rtbench evaluate` attacks the weights in a file" if isinstance(model, dict | str) else ""
            raise UserError(f"model: {type(model).__name__} is neither a torch module nor callable{hint}")
        return Plain(model), None if device is None else _device(device)
    here = {tensor.device for _, tensor in tensors(model)}
    odd = {_dtype(tensor.dtype) for _, tensor in tensors(model) if tensor.is_floating_point()} - {"float32"}
    if odd:
        raise UserError(f"model: has weights or buffers in {sorted(odd)[0]}, but verdicts are in float32; pass model.float()")
    if len(here) > 1:
        raise UserError(f"model: is spread over {', '.join(sorted(map(str, here)))}; it has to be on one device")
    own = next(iter(here), None)
    if device is None or (own is not None and own == _device(device)):
        return model, own
    return copy.deepcopy(model).to(_device(device)), _device(device)


def _device(name: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(f'device: "{name}" is not available: {str(error).splitlines()[0]}') from None


def images(x: Any) -> Tensor:
    """x as float32 in [0, 1] or uint8, (n, c, h, w), where it is; other floats are rounded to float32."""
    with contextlib.suppress(TypeError):  # what torch has no type for stays what it is
        x = torch.from_numpy(np.ascontiguousarray(_native(x))) if isinstance(x, np.ndarray) and x.dtype.kind in "fiub" else x
    if not isinstance(x, Tensor):
        raise UserError(f"x: {_kind(x)} is no tensor or numpy array of numbers (n, c, h, w)")
    pixels: Tensor = x.detach()
    shape = tuple(pixels.shape)
    _check_pixels(pixels, shape)
    return pixels if pixels.dtype == torch.uint8 else pixels.float()


def _native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same numbers in this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_pixels(x: Tensor, shape: tuple[int, ...]) -> None:
    if x.dim() != 4:
        raise UserError(f"x: has shape {shape}, not (n, c, h, w)")
    if x.numel() == 0:
        raise UserError(f"x: has shape {shape} and so holds nothing")
    if x.dtype == torch.uint8:
        return
    if x.dtype not in FLOATS:
        raise UserError(f"x: is {_dtype(x.dtype)}; give floats in [0, 1], or uint8 from 0 to 255")
    if not bool(torch.isfinite(x).all()):
        raise UserError(f"x: holds values that are not finite, first in sample {_first(~torch.isfinite(x).flatten(1).all(1))}")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        cure = "divide by 255" if low >= 0 and 2 < high <= 255 else "leave the images as they are and normalise inside the model"
        raise UserError(f"x: its values reach from {low:.4g} to {high:.4g}, outside of [0, 1], where eps is measured; {cure}")


def labels(y: Any, n: int) -> Tensor:
    """y as int64 (n,)."""
    try:
        found = torch.as_tensor(np.array(_native(np.asarray(y)), order="C") if isinstance(y, list | tuple | np.ndarray) else y)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"y: {_kind(y)} is no tensor, numpy array or list of labels") from None
    if found.dim() == 2 and len(found) == n and found.shape[1] > 1:
        raise UserError(f"y: has shape {tuple(found.shape)}; give one label a sample, as y.argmax(1) does")
    if found.shape != (n,):
        raise UserError(f"y: has shape {tuple(found.shape)} for {n} images, not ({n},)")
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise UserError(f"y: is {_dtype(found.dtype)}; give whole numbers, the classes")
    return found.detach().long()


def split_of(x: Tensor, y: Tensor, ids: Any, device: torch.device | None) -> Split:
    """The samples as a split on `device`; ids: int64 (n,), what randomness is keyed by, 0..n-1 if None."""
    where = x.device if device is None else device
    try:
        known = torch.arange(len(x)) if ids is None else torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"ids: {_kind(ids)} is no tensor, numpy array or list of whole numbers") from None
    if known.shape != (len(x),) or known.dtype != torch.int64 or len(set(known.tolist())) < len(known):
        raise UserError(f"ids: not {len(x)} different whole numbers, int64")
    return Split(x.to(where), y.to(where), known.to(where))


def classes(model: nn.Module, split: Split) -> int:
    """How many classes the model gives for the first images; UserError if it does not give logits, or if labels lie beyond them."""
    x, _ = take(split, torch.arange(min(2, len(split))))
    try:
        with own_randomness(0), frozen(model), torch.no_grad(), input_kept(x):
            logits = model(x)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model: raised {type(error).__name__} on images of shape {tuple(x.shape)}: {_line(error)}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"model: gives {found} for {len(x)} images, not logits ({len(x)}, classes)")
    if not logits.is_floating_point():
        raise UserError(f"model: gives logits in {_dtype(logits.dtype)}; give floats")
    count = logits.shape[1]
    if count < 2:
        raise UserError("model: gives 1 logit; give one for each of the two classes, as torch.cat([-z, z], 1) does")
    if not bool(torch.isfinite(logits).any()):
        raise UserError("model: gives no finite logit for the first images")
    wrong = (split.y < 0) | (split.y >= count)
    if bool(wrong.any()):
        label = int(split.y[wrong][0])
        raise UserError(f"y: sample {_first(wrong)} has label {label}, but the model gives {count} classes, 0 to {count - 1}")
    return count


def _first(rows: Tensor) -> int:
    return int(rows.nonzero()[0, 0])


def _kind(value: Any) -> str:
    return f"a numpy array of {value.dtype}" if isinstance(value, np.ndarray) else f"{type(value).__name__}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
