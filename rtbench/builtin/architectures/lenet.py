"""LeNets: two convolutions with pooling, then fully connected layers."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from rtbench.builtin.architectures.common import MaxPool2d, Mean, Shape, Std, map_size, network
from rtbench.parts.knobs import Range


def lenet(
    shape: Shape,
    classes: int,
    *,
    channels: Annotated[tuple[int, ...], Range("[1, 10000]")] = (20, 50),
    hidden: Annotated[int, Range("[1, 100000]")] = 500,
    kernel: Annotated[int, Range("[1, 64]")] = 5,
    padding: Annotated[int, Range("[0, 64]")] = 0,
    bias: bool = True,
    mean: Mean = (),
    std: Std = (),
) -> nn.Module:
    """Caffe's LeNet, the usual "LeNet-5" of the pruning literature: images (n, c, h, w) in [0, 1] to logits (n, classes).

    Each convolution is followed by ReLU and 2x2 max pooling, then come two fully connected layers with ReLU between them: 431,080
    parameters for 1x28x28 and 10 classes. Layers conv1, conv2, fc1, fc2; PyTorch's default initialisation. For small images such as
    1x8x8: channels [8, 16], hidden 32, kernel 3, padding 1. Source: LeCun, Bottou, Bengio & Haffner 1998 as changed by Caffe.
    Raises UserError if no pixel is left before the fully connected layers, or for a mean or std of the wrong length.

    channels: of each convolution, one after the other
    hidden: width of the hidden fully connected layer
    kernel: height and width of the convolutions
    padding: zeros added on each side before each convolution
    bias: whether convolutions and fully connected layers have biases
    mean: subtracted from each channel, one number or one per channel; empty for 0
    std: each channel is divided by it, one number or one per channel; empty for 1
    """
    layers: dict[str, nn.Module] = {}
    inputs = shape[0]
    for number, outputs in enumerate(channels, start=1):
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=bias)
        layers[f"convrelu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = MaxPool2d()
        inputs = outputs
    height, width = map_size("lenet", shape, layers)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(inputs * height * width, hidden, bias=bias)
    layers["relu1"] = nn.ReLU()
    layers["fc2"] = nn.Linear(hidden, classes, bias=bias)
    return network(shape, layers, "fc2", mean, std)


def lenet5(shape: Shape, classes: int, *, mean: Mean = (), std: Std = ()) -> nn.Module:
    """LeNet-5 with ReLU and 2x2 max pooling, 6-16-120-84-classes: images (n, c, h, w) in [0, 1] to logits (n, classes).

    61,706 parameters for 10 classes on 1x32x32, and on 1x28x28, where the first convolution pads by 2, as it does for every image
    smaller than 32x32. Layers conv1, conv2, fc1, fc2, fc3; PyTorch's default initialisation.
    Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition", there with tanh,
    trained subsampling and a Gaussian output layer.
    Raises UserError for images too small for two 5x5 convolutions with pooling, or for a mean or std of the wrong length.

    mean: subtracted from each channel, one number or one per channel; empty for 0
    std: each channel is divided by it, one number or one per channel; empty for 1
    """
    features: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(shape[0], 6, 5, padding=2 if min(shape[1:]) < 32 else 0),
        "convrelu1": nn.ReLU(),
        "pool1": MaxPool2d(),
        "conv2": nn.Conv2d(6, 16, 5),
        "convrelu2": nn.ReLU(),
        "pool2": MaxPool2d(),
    }
    height, width = map_size("lenet5", shape, features)
    classifier: dict[str, nn.Module] = {
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(16 * height * width, 120),
        "relu1": nn.ReLU(),
        "fc2": nn.Linear(120, 84),
        "relu2": nn.ReLU(),
        "fc3": nn.Linear(84, classes),
    }
    return network(shape, features | classifier, "fc3", mean, std)
