"""VGG networks for small images, in the two forms used by the sparse-and-robust literature."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from rtbench.builtin.architectures.common import MaxPool2d, Mean, Shape, Std, Width, kaiming_fan_out, map_size, network, scaled
from rtbench.errors import UserError

# Channels of the 3x3 convolutions; 0 is a 2x2 max pooling.
_CONFIGURATIONS = {
    2: (64, 0, 64, 0),
    4: (64, 64, 0, 128, 128, 0),
    6: (64, 64, 0, 128, 128, 0, 256, 256, 0),
    7: (64, 0, 128, 0, 256, 0, 512),
    8: (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0),
    11: (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512),
    13: (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512),
    16: (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512),
    19: (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512),
}
Head = Literal["256-256", "512"]
Pool = Literal["max", "stride"]
Init = Literal["kaiming-normal", "kaiming-uniform", "signed-constant"]


def vgg(
    shape: Shape,
    classes: int,
    *,
    depth: Literal[2, 4, 6, 7, 8, 11, 13, 16, 19] = 16,
    batch_norm: bool = True,
    head: Head = "256-256",
    pool: Pool = "max",
    width: Width = 1.0,
    init: Init = "kaiming-normal",
    mean: Mean = (),
    std: Std = (),
) -> nn.Module:
    """3x3 convolutions with ReLU and a few poolings: images (n, c, h, w) in [0, 1] to logits (n, classes).

    Convolutions have no biases (features.*), fully connected layers do (classifier.*). There is no pooling after the last convolutions
    from depth 7 on, except at depth 8. Depths 2 to 8 count convolutions, save for 7, which has four of them. For 3x32x32, 10 classes,
    vgg16 has 15,311,818 parameters with head "256-256", 14,987,722 with head "512".
    Source: Simonyan & Zisserman 2014, arXiv:1409.1556; depths 2 to 16, head "256-256" and pool "stride" of Sehwag, Wang, Mittal & Jana
    2020, arXiv:2002.10509; depths 7 and 19 and head "512" of Li et al. 2020, arXiv:2003.05733.
    Raises UserError for images too small for the poolings, pool "stride" at another depth than 4, a mean or std of the wrong length.

    depth: 2, 4, 6, 7, 8, 11, 13, 16 or 19
    batch_norm: BatchNorm after every convolution, and in head "512" after the hidden layer
    head: "256-256", on a 2x2 average-pooled map; or "512", on the averaged map: its BatchNorm2d weights start at 0.5, not 1
    pool: "max", or "stride": depth 4 with stride-2 convolutions, whose unpooled map is the classifier's input; biases unless batch_norm
    width: multiplies the width of every hidden layer
    init: of convolutions, "kaiming-normal" or "kaiming-uniform" (fan out; linear: N(0, 0.01^2)) or all "signed-constant" sqrt(2 / fan in)
    mean: subtracted from each channel, one number or one per channel; empty for 0
    std: each channel is divided by it, one number or one per channel; empty for 1
    """
    if pool == "stride" and depth != 4:
        raise UserError(f'vgg: pool = "stride" exists at depth 4 only, not at depth {depth}')
    features, channels = _features(shape[0], depth, batch_norm, pool, width)
    rows, columns = map_size(f"vgg of depth {depth}", shape, {f"features.{name}": layer for name, layer in features.named_children()})
    layers: dict[str, nn.Module] = {"features": features}
    if pool == "max":
        side = 2 if head == "256-256" else 1
        layers["pool"] = _average_pool(rows, columns, side)
        rows = columns = side
    classifier = _classifier(channels * rows * columns, classes, head, batch_norm, width)
    layers |= {"flatten": nn.Flatten(), "classifier": classifier}
    model = network(shape, layers, f"classifier.{len(classifier) - 1}", mean, std)
    _initialise(model, init, batch_norm_weight=0.5 if head == "512" else 1.0)
    return model


def _features(inputs: int, depth: int, batch_norm: bool, pool: Pool, width: float) -> tuple[nn.Sequential, int]:
    configuration = _CONFIGURATIONS[depth]
    layers: list[nn.Module] = []
    for index, channels in enumerate(configuration):
        if not channels:
            if pool == "max":
                layers.append(MaxPool2d())
            continue
        outputs = scaled(channels, width)
        strided = pool == "stride" and not configuration[index + 1]
        bias = pool == "stride" and not batch_norm
        layers.append(nn.Conv2d(inputs, outputs, 3, stride=2 if strided else 1, padding=1, bias=bias))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU())
        inputs = outputs
    return nn.Sequential(*layers), inputs


def _average_pool(rows: int, columns: int, side: int) -> nn.Module:
    """Average pooling to side x side; the adaptive kind only where it must be, as it has no deterministic gradient on GPUs."""
    if rows % side == 0 and columns % side == 0:
        return nn.AvgPool2d((rows // side, columns // side))
    return nn.AdaptiveAvgPool2d(side)


def _classifier(inputs: int, classes: int, head: Head, batch_norm: bool, width: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for units in (256, 256) if head == "256-256" else (512,):
        outputs = scaled(units, width)
        layers.append(nn.Linear(inputs, outputs))
        if batch_norm and head == "512":
            layers.append(nn.BatchNorm1d(outputs))
        layers.append(nn.ReLU())
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def _initialise(model: nn.Module, init: Init, batch_norm_weight: float) -> None:
    if init == "kaiming-normal":
        kaiming_fan_out(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, batch_norm_weight)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if init == "signed-constant":
            magnitude = (2 / module.weight[0].numel()) ** 0.5
            with torch.no_grad():  # from 0 and 1 to -magnitude and +magnitude
                module.weight.random_(0, 2).sub_(0.5).mul_(2 * magnitude)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif init == "kaiming-uniform":
            nn.init.kaiming_uniform_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
