"""CIFAR-10, CIFAR-100 and SVHN, read from existing files by torchvision's classes, checksums included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rtbench.builtin.datasets.common import Loaded, damaged, missing, with_split
from rtbench.data.splits import Split
from rtbench.data.vision import torchvision
from rtbench.errors import UserError


@with_split(valid=5_000)
def cifar10(root: Path) -> Loaded:
    """CIFAR-10: photographs, 50,000 and 10,000 images of shape (3, 32, 32), 10 classes, from `cifar-10-batches-py`.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    return _cifar("cifar10", torchvision().datasets.CIFAR10, root, 10)


@with_split(valid=5_000)
def cifar100(root: Path) -> Loaded:
    """CIFAR-100: photographs, 50,000 and 10,000 images of shape (3, 32, 32), 100 classes, from `cifar-100-python`.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    return _cifar("cifar100", torchvision().datasets.CIFAR100, root, 100)


@with_split(valid=5_000)
def svhn(root: Path, *, extra: bool = False) -> Loaded:
    """SVHN: house numbers, 73,257 and 26,032 images of shape (3, 32, 32), 10 classes (digit 0 is class 0), from `*_32x32.mat`.

    extra: also reads the 531,131 easier images of `extra_32x32.mat` as additional training samples
    Source: Netzer, Wang, Coates, Bissacco, Wu & Ng 2011, Reading Digits in Natural Images with Unsupervised Feature Learning.
    """
    kind, splits = torchvision().datasets.SVHN, {}
    for part in ("train", "test", "extra") if extra else ("train", "test"):
        _, file, md5 = kind.split_list[part]
        loaded = _open("svhn", kind, root, [(root / file, md5)], "svhn-extra" if part == "extra" else "svhn", split=part)
        splits[part] = _split(loaded.data, loaded.labels)
    return Loaded(splits["train"], splits["test"], 10, extra=splits.get("extra"))


def _cifar(name: str, kind: Any, root: Path, classes: int) -> Loaded:
    listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    files = [(root / kind.base_folder / file, md5) for file, md5 in listed]
    train, test = (_open(name, kind, root, files, name, train=part) for part in (True, False))
    return Loaded(_split(train.data.transpose(0, 3, 1, 2), train.targets), _split(test.data.transpose(0, 3, 1, 2), test.targets), classes)


def _open(name: str, kind: Any, root: Path, files: list[tuple[Path, str]], download: str, **which: Any) -> Any:
    """torchvision's data set; it checks the files' checksums before it reads them, and UserError then names the file that fails."""
    for path, _ in files:
        if not path.is_file():
            raise missing(name, path, download)
    try:
        return kind(str(root), download=False, **which)
    except RuntimeError as error:
        intact = torchvision().datasets.utils.check_integrity
        for path, md5 in files:
            if not intact(path, md5):
                raise damaged(name, path, "does not have the published checksum") from error
        raise UserError(f"{name}: torchvision cannot read the files in {root} ({error})") from error


def _split(images: Any, labels: Any) -> Split:
    x = torch.from_numpy(np.ascontiguousarray(images))
    return Split(x, torch.as_tensor(labels, dtype=torch.int64), torch.arange(len(x)))
