"""What all architectures share: normalisation inside the network, named layers in data order, sizes of maps, initialisation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from rtbench.errors import UserError
from rtbench.parts.knobs import Range

Shape = tuple[int, int, int]
Mean = Annotated[tuple[float, ...], Range("[0, 1]")]
Std = Annotated[tuple[float, ...], Range("(0, inf)")]
Width = Annotated[float, Range("(0, 16]")]


class Normalize(nn.Module):
    """(x - mean) / std per channel of images (n, c, h, w).

    Its numbers are recipe, not state: non-persistent buffers, absent from the state_dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class MaxPool2d(nn.MaxPool2d):
    """2x2 max pooling with stride 2, in a fraction of the time on a CPU where no gradient is wanted; the same numbers."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or (x.requires_grad and torch.is_grad_enabled()):
            pooled: Tensor = super().forward(x)
            return pooled
        # torch's kernel for a CPU goes pixel by pixel, since it also looks for where each maximum was.
        height, width = (side // 2 * 2 for side in x.shape[-2:])
        rows = torch.maximum(x[..., 0:height:2, :width], x[..., 1:height:2, :width])
        return torch.maximum(rows[..., 0::2], rows[..., 1::2])


class Network(nn.Sequential):
    """Named layers in data order; `head_name` is the dotted name of the final Linear."""

    head_name: str


def network(shape: Shape, layers: Mapping[str, nn.Module], head_name: str, mean: Sequence[float], std: Sequence[float]) -> Network:
    """The layers in the order given, after a normalisation `normalize` if mean or std asks for one.

    shape: (c, h, w) of one image. Raises UserError if mean or std has neither one number nor one per channel, or std is not positive.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (0, 1, shape[0]):
            raise UserError(f"{name} has {len(values)} numbers for images of {shape[0]} channels; give one, or one per channel")
    if any(value <= 0 for value in std):
        raise UserError(f"std must be greater than 0, not {min(std)}")
    named = OrderedDict(layers)
    if mean or std:
        named["normalize"] = Normalize(mean or [0.0], std or [1.0])
        named.move_to_end("normalize", last=False)
    model = Network(named)
    model.head_name = head_name
    return model


def map_size(part: str, shape: Shape, layers: Mapping[str, nn.Module]) -> tuple[int, int]:
    """Height and width of the map that these convolutions and poolings make of an image (c, h, w).

    Raises UserError naming `part` and the layer after which no pixel is left.
    """
    _, height, width = shape
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding = (_side(value) for value in (layer.kernel_size, layer.stride, layer.padding))
            height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
            if min(height, width) < 1:
                raise UserError(f"{part}: images of {shape[1]}x{shape[2]} pixels are too small, none is left after its layer {name}")
    return height, width


def _side(value: Any) -> int:
    # Every convolution and pooling of the built-in networks is square; PyTorch stores (k, k) for one and k for the other.
    return int(value[0] if isinstance(value, tuple) else value)


def scaled(channels: int, width: float) -> int:
    """channels * width rounded half up, at least 1."""
    return max(1, int(channels * width + 0.5))


def kaiming_fan_out(model: nn.Module) -> None:
    """Draws all convolutions from N(0, 2 / (k * k * out)) and zeroes their biases (He et al. 2015, arXiv:1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
