"""Getting data sets, through torchvision's classes and against their published checksums."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import Any

from rtbench.data.vision import torchvision
from rtbench.errors import UserError, unknown

DOWNLOADS: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "mnist": ("MNIST", ({},)),
    "fashion-mnist": ("FashionMNIST", ({},)),
    "cifar10": ("CIFAR10", ({},)),
    "cifar100": ("CIFAR100", ({},)),
    "svhn": ("SVHN", ({"split": "train"}, {"split": "test"})),
    "svhn-extra": ("SVHN", ({"split": "extra"},)),
}
"""Name -> torchvision's class and the arguments it is called with, once for each file it gets on its own."""


def download(name: str, root: Path) -> None:
    """Puts the files of a data set under `root`, where its part looks for them; UserError if unknown or if it cannot be got.

    Files that are there and have the right checksum are not fetched again.
    """
    if name not in DOWNLOADS:
        raise unknown("data set to download", name, DOWNLOADS)
    kind, calls = DOWNLOADS[name]
    dataset = getattr(torchvision().datasets, kind)
    try:
        root.mkdir(parents=True, exist_ok=True)
        for arguments in calls:
            dataset(str(root), download=True, **arguments)
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} could not be downloaded to {root}: {reason}") from error
