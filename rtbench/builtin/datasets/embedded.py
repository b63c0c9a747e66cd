"""The 8x8 digits that come with scikit-learn: a data set that needs no download."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rtbench.builtin.datasets.common import Loaded, seeded, with_split
from rtbench.data.splits import Split, interleave

TEST = 397


@with_split(valid=200)
def digits() -> Loaded:
    """scikit-learn's digits: 1,797 images of shape (1, 8, 8), values 0..16 divided by 16, 10 classes; 1,200 train, 200 valid, 397 test.

    The original order goes writer by writer, so its tail holds writers that its head lacks. Here each class is shuffled once and for
    all and the classes are spread evenly: every run of samples, and so every split by `first` or `last`, has the class proportions of
    the whole. The test set is the last 397 of this order; ids are positions in scikit-learn's order. pad-crop-flip pads by one pixel.
    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
    """
    x, y = read_digits()
    shuffled = torch.randperm(len(y), generator=seeded("digits"))
    order = shuffled[interleave(y[shuffled])]
    whole = Split(x, y, torch.arange(len(y)), pad=1).subset(order)
    places = torch.arange(len(y))
    return Loaded(whole.subset(places[:-TEST]), whole.subset(places[-TEST:]), 10)


def read_digits() -> tuple[Tensor, Tensor]:
    """x float32 (1797, 1, 8, 8) in [0, 1], y int64 (1797,), in scikit-learn's order.

    Reads the table inside the installed package directly where it has its usual place: importing sklearn.datasets takes a second.
    """
    spec = find_spec("sklearn")
    folder = Path(spec.origin or "").parent if spec else Path()
    table = folder / "datasets" / "data" / "digits.csv.gz"
    if table.is_file():
        with gzip.open(table, "rt") as lines:
            rows = np.loadtxt(lines, delimiter=",", dtype=np.float32)
        values, labels = rows[:, :-1], rows[:, -1]
    else:
        from sklearn.datasets import load_digits

        values, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(np.asarray(values, dtype=np.float32)).view(-1, 1, 8, 8)
    return x / 16, torch.from_numpy(np.asarray(labels, dtype=np.int64))
