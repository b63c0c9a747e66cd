"""MNIST and Fashion-MNIST, read from the idx files in torchvision's folder layout.

Read here and not through torchvision because importing torchvision takes longer than reading the files, and because torchvision does
not notice a file that was cut short.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from rtbench.builtin.datasets.common import Loaded, damaged, missing, with_split
from rtbench.data.splits import Split
from rtbench.errors import UserError


@with_split(valid=10_000)
def mnist(root: Path) -> Loaded:
    """MNIST: handwritten digits, 60,000 and 10,000 images of shape (1, 28, 28), 10 classes, from `MNIST/raw`.

    Source: LeCun, Bottou, Bengio & Haffner 1998, Gradient-based learning applied to document recognition.
    """
    return _load("mnist", root / "MNIST" / "raw")


@with_split(valid=10_000)
def fashion_mnist(root: Path) -> Loaded:
    """Fashion-MNIST: articles of clothing, 60,000 and 10,000 images of shape (1, 28, 28), 10 classes, from `FashionMNIST/raw`.

    Source: Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747.
    """
    return _load("fashion-mnist", root / "FashionMNIST" / "raw")


def _load(name: str, folder: Path) -> Loaded:
    return Loaded(_read_split(name, folder, "train"), _read_split(name, folder, "t10k"), 10)


def _read_split(name: str, folder: Path, prefix: str) -> Split:
    images = read_idx(name, folder / f"{prefix}-images-idx3-ubyte", 3)
    labels = read_idx(name, folder / f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise UserError(f"{name}: {folder} has {len(images)} {prefix} images and {len(labels)} {prefix} labels")
    return Split(images.unsqueeze(1), labels.long(), torch.arange(len(images)))


def read_idx(name: str, path: Path, dims: int) -> Tensor:
    """The uint8 tensor with `dims` dimensions in an idx file, or in the file packed beside it as .gz; UserError if missing or damaged.

    The format: two zero bytes, 8 for uint8, the number of dimensions, each dimension as four bytes, big-endian, then the values.
    """
    packed = path.with_name(f"{path.name}.gz")
    source = path if path.is_file() or not packed.is_file() else packed
    try:
        content = bytearray(gzip.decompress(source.read_bytes()) if source == packed else source.read_bytes())
    except FileNotFoundError:
        raise missing(name, path, name) from None
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(name, source, f"cannot be read ({error})") from error
    start = 4 + 4 * dims
    if content[:4] != bytes([0, 0, 8, dims]) or len(content) < start:
        raise damaged(name, source, f"is not an idx file of bytes with {dims} dimension{'s' if dims > 1 else ''}")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) - start != math.prod(shape):
        raise damaged(name, source, f"has {len(content) - start:,} bytes of data where its header promises {math.prod(shape):,}")
    if not math.prod(shape):
        raise damaged(name, source, "is empty")
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).view(shape)
