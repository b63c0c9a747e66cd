"""Built-in data sets: f(root, knobs) -> Data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtbench.builtin.datasets.arrays import npz
from rtbench.builtin.datasets.embedded import digits
from rtbench.builtin.datasets.folder import image_folder
from rtbench.builtin.datasets.idx import fashion_mnist, mnist
from rtbench.builtin.datasets.photos import cifar10, cifar100, svhn
from rtbench.builtin.datasets.q75 import cifar10_q75
from rtbench.hookspecs import hookimpl


@hookimpl
def rtbench_datasets() -> dict[str, Callable[..., Any]]:
    return {
        "digits": digits,
        "mnist": mnist,
        "fashion-mnist": fashion_mnist,
        "cifar10": cifar10,
        "cifar100": cifar100,
        "cifar10-q75": cifar10_q75,
        "svhn": svhn,
        "image-folder": image_folder,
        "npz": npz,
    }
