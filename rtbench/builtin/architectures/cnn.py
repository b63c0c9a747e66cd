"""The small and large convolutional networks of the verified-training literature: ReLU, strides instead of pooling, no BatchNorm."""

from __future__ import annotations

from torch import nn

from rtbench.builtin.architectures.common import Mean, Shape, Std, Width, kaiming_fan_out, map_size, network, scaled


def small_cnn(shape: Shape, classes: int, *, width: Width = 1.0, mean: Mean = (), std: Std = ()) -> nn.Module:
    """Two strided convolutions and two fully connected layers: images (n, c, h, w) in [0, 1] to logits (n, classes).

    Conv 16 and 32 (4x4, stride 2), fully connected 100. Layers conv1, conv2, fc1, fc2. 166,406 parameters for 1x28x28, 214,918 for
    3x32x32, 10 classes. Convolutions start from N(0, 2 / (k * k * out)) with bias 0, the others from PyTorch's default.
    Source: Wong & Kolter 2018, arXiv:1711.00851; `mnist_model` and `cifar_model` of Wong, Schmidt, Metzen & Kolter 2018,
    arXiv:1805.12514. Raises UserError for images smaller than 4x4, or for a mean or std of the wrong length.

    width: multiplies the width of every hidden layer
    mean: subtracted from each channel, one number or one per channel; empty for 0
    std: each channel is divided by it, one number or one per channel; empty for 1
    """
    return _cnn("small-cnn", shape, classes, ((16, 4), (32, 4)), (100,), width, mean, std)


def large_cnn(shape: Shape, classes: int, *, width: Width = 1.0, mean: Mean = (), std: Std = ()) -> nn.Module:
    """Four convolutions, two of them strided, and three fully connected layers: images (n, c, h, w) in [0, 1] to logits (n, classes).

    Conv 32 (3x3), 32 (4x4, stride 2), 64 (3x3), 64 (4x4, stride 2), fully connected 512 and 512. Layers conv1 to conv4, fc1 to fc3.
    1,974,762 parameters for 1x28x28, 2,466,858 for 3x32x32, 10 classes. Initialised as `small-cnn`.
    Source: `mnist_model_large` and `cifar_model_large` of Wong, Schmidt, Metzen & Kolter 2018, arXiv:1805.12514.
    Raises UserError for images smaller than 4x4, or for a mean or std of the wrong length.

    width: multiplies the width of every hidden layer
    mean: subtracted from each channel, one number or one per channel; empty for 0
    std: each channel is divided by it, one number or one per channel; empty for 1
    """
    return _cnn("large-cnn", shape, classes, ((32, 3), (32, 4), (64, 3), (64, 4)), (512, 512), width, mean, std)


def _cnn(
    part: str,
    shape: Shape,
    classes: int,
    convs: tuple[tuple[int, int], ...],
    hidden: tuple[int, ...],
    width: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Module:
    """convs: (channels, kernel) each; a 4x4 kernel halves the map, a 3x3 kernel keeps it."""
    layers: dict[str, nn.Module] = {}
    inputs = shape[0]
    for number, (channels, kernel) in enumerate(convs, start=1):
        outputs = scaled(channels, width)
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, kernel, stride=2 if kernel == 4 else 1, padding=1)
        layers[f"convrelu{number}"] = nn.ReLU()
        inputs = outputs
    rows, columns = map_size(part, shape, layers)
    layers["flatten"] = nn.Flatten()
    inputs *= rows * columns
    for number, units in enumerate(hidden, start=1):
        outputs = scaled(units, width)
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        layers[f"relu{number}"] = nn.ReLU()
        inputs = outputs
    head = f"fc{len(hidden) + 1}"
    layers[head] = nn.Linear(inputs, classes)
    model = network(shape, layers, head, mean, std)
    kaiming_fan_out(model)
    return model
