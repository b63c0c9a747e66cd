"""Wide residual networks."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

from torch import Tensor, nn

from rtbench.builtin.architectures.common import Mean, Shape, Std, kaiming_fan_out, network
from rtbench.errors import UserError
from rtbench.parts.knobs import Range


class PreActivation(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice, added to the shortcut: (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.projects = inputs != outputs
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if self.projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out = self.dropout(self.relu2(self.bn2(self.conv1(active))))
        # A projection sees the activated input, an identity the raw one.
        return self.conv2(out) + self.convShortcut(active if self.projects else x)  # type: ignore[no-any-return]


def wrn(
    shape: Shape,
    classes: int,
    *,
    depth: Annotated[int, Range("[10, 1000]")] = 28,
    width: Annotated[int, Range("[1, 100]")] = 10,
    dropout: Annotated[float, Range("[0, 1)")] = 0.0,
    mean: Mean = (),
    std: Std = (),
) -> nn.Module:
    """Pre-activation wide ResNet, WRN-depth-width: images (n, c, h, w) in [0, 1], any h and w, to logits (n, classes).

    Three groups of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels; WRN-28-10 has 36,479,194 parameters for 3
    channels and 10 classes. Convolutions start from N(0, 2 / (k * k * out)), the last bias from 0. Parameters are named as in the
    public TRADES, HYDRA and RobustBench checkpoints, but the unused extra block that some of those carry is not here.
    Source: Zagoruyko & Komodakis 2016, arXiv:1605.07146.
    Raises UserError for a depth other than 6n + 4, or a mean or std of the wrong length.

    depth: number of layers, 6n + 4: 10, 16, 22, 28, 34, 40, ...
    width: widening factor of the channels
    dropout: probability of zeroing a value between the two convolutions of a block, in training
    mean: subtracted from each channel, one number or one per channel; empty for 0
    std: each channel is divided by it, one number or one per channel; empty for 1
    """
    if depth % 6 != 4:
        raise UserError(f"wrn: depth {depth} is not 6n + 4; the nearest are {depth - (depth - 4) % 6} and {depth + 6 - (depth - 4) % 6}")
    layers: dict[str, nn.Module] = {"conv1": nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False)}
    inputs = 16
    for number in (1, 2, 3):
        outputs = 8 * 2**number * width
        layers[f"block{number}"] = _group((depth - 4) // 6, inputs, outputs, 1 if number == 1 else 2, dropout)
        inputs = outputs
    fc = nn.Linear(inputs, classes)
    layers |= {"bn1": nn.BatchNorm2d(inputs), "relu": nn.ReLU(), "avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": fc}
    model = network(shape, layers, "fc", mean, std)
    kaiming_fan_out(model)
    nn.init.zeros_(fc.bias)
    return model


def _group(count: int, inputs: int, outputs: int, stride: int, dropout: float) -> nn.Module:
    blocks = [PreActivation(inputs, outputs, stride, dropout)]
    blocks += [PreActivation(outputs, outputs, 1, dropout) for _ in range(count - 1)]
    return nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks)))
