"""Multi-layer perceptrons."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from torch import nn

from rtbench.builtin.architectures.common import Mean, Shape, Std, network
from rtbench.parts.knobs import Range

Init = Literal["glorot-uniform", "kaiming-normal", "default"]


def mlp(
    shape: Shape,
    classes: int,
    *,
    hidden: Annotated[tuple[int, ...], Range("[1, 100000]")] = (300, 100),
    bias: bool = True,
    init: Init = "glorot-uniform",
    mean: Mean = (),
    std: Std = (),
) -> nn.Module:
    """Fully connected layers fc1, fc2, ... with ReLU between them: images (n, c, h, w) in [0, 1] to logits (n, classes).

    Without biases the default has 266,200 weights on 1x28x28 with 10 classes.
    Source: LeNet-300-100 of LeCun, Bottou, Bengio & Haffner 1998; without biases, Cosentino, Zaiter, Pei & Zhu 2019, arXiv:1912.02386.
    Raises UserError for a mean or std of the wrong length.

    hidden: width of each hidden layer; none makes a linear model
    bias: whether the layers have biases, which start at 0 unless init is "default"
    init: "glorot-uniform", "kaiming-normal" (fan in) or PyTorch's "default"
    mean: subtracted from each channel, one number or one per channel; empty for 0
    std: each channel is divided by it, one number or one per channel; empty for 1
    """
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    sides = [math.prod(shape), *hidden, classes]
    for number, (inputs, outputs) in enumerate(pairwise(sides), start=1):
        if number > 1:
            layers[f"relu{number - 1}"] = nn.ReLU()
        layers[f"fc{number}"] = _initialised(nn.Linear(inputs, outputs, bias=bias), init)
    return network(shape, layers, f"fc{len(sides) - 1}", mean, std)


def _initialised(layer: nn.Linear, init: Init) -> nn.Linear:
    if init == "default":
        return layer
    if init == "glorot-uniform":
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
