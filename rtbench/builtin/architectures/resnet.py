"""Residual networks: for small images, He et al.'s thin ones for CIFAR, and ImageNet's, with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from rtbench.builtin.architectures.common import Mean, Shape, Std, kaiming_fan_out, network
from rtbench.parts.knobs import Range

Depth = Literal[18, 34, 50, 101, 152]
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Basic(nn.Module):
    """Two 3x3 convolutions, the first of them strided, added to the shortcut: (n, inputs, h, w) to (n, channels, h / s, w / s)."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.downsample(x))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, strided 3x3 and 1x1 convolutions added to the shortcut: (n, inputs, h, w) to (n, 4 * channels, h / s, w / s)."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.downsample = shortcut
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + self.downsample(x))  # type: ignore[no-any-return]


class PaddedIdentity(nn.Module):
    """Every stride-th pixel, and `extra` channels of zeros behind the others: the shortcut without parameters (option A)."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The shortcut with a strided 1x1 convolution and BatchNorm (option B)."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _padded(inputs: int, outputs: int, stride: int) -> nn.Module:
    return PaddedIdentity(stride, outputs - inputs)


def _stages(
    block: type[Basic] | type[Bottleneck],
    counts: tuple[int, ...],
    width: int,
    classes: int,
    shortcut: Callable[[int, int, int], nn.Module] = projection,
) -> dict[str, nn.Module]:
    """layer1, layer2, ...: each has twice the channels of the one before at half the size; then the averaged map's classifier fc."""
    layers: dict[str, nn.Module] = {}
    inputs = width
    for number, count in enumerate(counts):
        channels = width * 2**number
        outputs = channels * block.expansion
        blocks: list[nn.Module] = []
        for index in range(count):
            stride = 2 if number and not index else 1
            plain = stride == 1 and inputs == outputs
            blocks.append(block(inputs, channels, stride, nn.Identity() if plain else shortcut(inputs, outputs, stride)))
            inputs = outputs
        layers[f"layer{number + 1}"] = nn.Sequential(*blocks)
    return layers | {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(inputs, classes)}


def _stem(channels: int, width: int, kernel: int, stride: int) -> dict[str, nn.Module]:
    return {
        "conv1": nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False),
        "bn1": nn.BatchNorm2d(width),
        "relu": nn.ReLU(),
    }


def resnet(
    shape: Shape,
    classes: int,
    *,
    depth: Depth = 18,
    width: Annotated[int, Range("[1, 1024]")] = 64,
    init: Literal["kaiming-normal", "default"] = "kaiming-normal",
    mean: Mean = (),
    std: Std = (),
) -> nn.Module:
    """ResNet for small images, 3x3 stem without pooling: images (n, c, h, w) in [0, 1], any h and w, to logits (n, classes).

    ResNet-18 has 11,173,962 parameters for 3 channels and 10 classes. Deeper than 34: bottleneck blocks with the stride in the 3x3
    convolution. Source: He, Zhang, Ren & Sun 2015, arXiv:1512.03385, with the stem that adversarial training on CIFAR-10 uses.
    Raises UserError for a mean or std of the wrong length.

    depth: 18, 34, 50, 101 or 152
    width: channels of the stem and the first stage; later stages have 2, 4 and 8 times as many
    init: of convolutions, "kaiming-normal" (fan out) or PyTorch's "default", which the linear layer always has
    mean: subtracted from each channel, one number or one per channel; empty for 0
    std: each channel is divided by it, one number or one per channel; empty for 1
    """
    block = Basic if depth < 50 else Bottleneck
    layers = _stem(shape[0], width, 3, 1) | _stages(block, _BLOCKS[depth], width, classes)
    model = network(shape, layers, "fc", mean, std)
    if init == "kaiming-normal":
        kaiming_fan_out(model)
    return model


def resnet_cifar(
    shape: Shape,
    classes: int,
    *,
    depth: Literal[20, 32, 44, 56, 110] = 20,
    width: Annotated[int, Range("[1, 1024]")] = 16,
    shortcut: Literal["identity", "projection"] = "identity",
    mean: Mean = (),
    std: Std = (),
) -> nn.Module:
    """The thin 6n+2-layer ResNets made for CIFAR-10: images (n, c, h, w) in [0, 1], any h and w, to logits (n, classes).

    Three stages of 16, 32 and 64 channels; ResNet-20 has 269,722 parameters for 3 channels and 10 classes. Convolutions start from
    N(0, 2 / (k * k * out)). Source: He, Zhang, Ren & Sun 2015, section 4.2, arXiv:1512.03385.
    Raises UserError for a mean or std of the wrong length.

    depth: 20, 32, 44, 56 or 110
    width: channels of the stem and the first stage; later stages have 2 and 4 times as many
    shortcut: where the size changes, "identity" with zero channels added (option A) or a 1x1 "projection" (option B)
    mean: subtracted from each channel, one number or one per channel; empty for 0
    std: each channel is divided by it, one number or one per channel; empty for 1
    """
    counts = ((depth - 2) // 6,) * 3
    make = projection if shortcut == "projection" else _padded
    model = network(shape, _stem(shape[0], width, 3, 1) | _stages(Basic, counts, width, classes, make), "fc", mean, std)
    kaiming_fan_out(model)
    return model


def imagenet_resnet(shape: Shape, classes: int, *, depth: Depth = 50, mean: Mean = (), std: Std = ()) -> nn.Module:
    """ResNet v1.5 for ImageNet, 7x7 stem with pooling: images (n, c, h, w) in [0, 1], any h and w, to logits (n, classes).

    Names and shapes of parameters are those of torchvision's resnet18 to resnet152, so its checkpoints load. ResNet-50 has
    25,557,032 parameters for 1000 classes. Convolutions start from N(0, 2 / (k * k * out)).
    Source: He, Zhang, Ren & Sun 2015, arXiv:1512.03385; v1.5 strides in the 3x3 instead of the first 1x1 convolution.
    Raises UserError for a mean or std of the wrong length.

    depth: 18, 34, 50, 101 or 152
    mean: subtracted from each channel, one number or one per channel; empty for 0. ImageNet's is [0.485, 0.456, 0.406]
    std: each channel is divided by it, one number or one per channel; empty for 1. ImageNet's is [0.229, 0.224, 0.225]
    """
    block = Basic if depth < 50 else Bottleneck
    stem = _stem(shape[0], 64, 7, 2) | {"maxpool": nn.MaxPool2d(3, 2, 1)}
    model = network(shape, stem | _stages(block, _BLOCKS[depth], 64, classes), "fc", mean, std)
    kaiming_fan_out(model)
    return model
