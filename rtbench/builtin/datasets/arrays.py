"""Any data set in one NumPy archive."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rtbench.builtin.datasets.common import Loaded, with_split
from rtbench.data.splits import Split
from rtbench.errors import UserError

SPLITS = ("train", "test", "valid", "extra")


@with_split(valid=None)
def npz(root: Path, *, file: str) -> Loaded:
    """Arrays x_train, y_train, x_test, y_test in one .npz file, and x_valid, y_valid, x_extra, y_extra if there are any.

    x: (n, c, h, w) or (n, h, w), uint8 0..255 or floats in [0, 1]. y: whole numbers (n,) from 0 to the number of classes less one,
    which is that of the highest training label. extra: more training samples, such as pseudo-labelled ones. Nothing is unpickled.

    file: the .npz file, absolute or inside the data folder
    """
    path = root / file
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"npz: there is no file {path}; a relative one is looked for in the data folder, set RTBENCH_DATA") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"npz: {path} is not an archive of plain NumPy arrays ({error})") from error
    splits = {}
    for name in SPLITS:
        given = [kind for kind in "xy" if f"{kind}_{name}" in arrays]
        if len(given) == 2:
            splits[name] = _split(arrays[f"x_{name}"], arrays[f"y_{name}"], f"{path}: x_{name}", f"{path}: y_{name}")
        elif given or name in ("train", "test"):
            lacking = " and ".join(f"{kind}_{name}" for kind in "xy" if kind not in given)
            raise UserError(f"npz: {path} has no {lacking}, only {', '.join(sorted(arrays)) or 'nothing'}")
    classes = int(splits["train"].y.max()) + 1 if len(splits["train"]) else 0
    return Loaded(splits["train"], splits["test"], classes, splits.get("valid"), splits.get("extra"))


def _split(x: Any, y: Any, x_name: str, y_name: str) -> Split:
    """Images and labels as a Split; UserError naming the array whose shape, type or values are impossible."""
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4 or (x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3)):
        raise UserError(f"{x_name} has shape {x.shape}; images are (n, c, h, w), channels before height and width, or (n, h, w)")
    if not np.issubdtype(y.dtype, np.integer) or y.shape != (len(x),):
        raise UserError(f"{y_name} is {y.dtype} of shape {y.shape}; labels are whole numbers of shape ({len(x)},)")
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating):
            raise UserError(f"{x_name} is {x.dtype}; images are uint8 from 0 to 255 or floats from 0 to 1")
        low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
        if not (low >= 0 and high <= 1):  # false for NaN as well
            raise UserError(f"{x_name} has values from {low:g} to {high:g}; floats must lie in 0 to 1, without normalisation")
        x = x.astype(np.float32)
    labels = torch.from_numpy(y.astype(np.int64))
    return Split(torch.from_numpy(np.ascontiguousarray(x)), labels, torch.arange(len(x)))
