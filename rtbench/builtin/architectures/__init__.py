"""Architectures: functions of the images' shape and the number of classes that build a network giving logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtbench.builtin.architectures.cnn import large_cnn, small_cnn
from rtbench.builtin.architectures.lenet import lenet, lenet5
from rtbench.builtin.architectures.mlp import mlp
from rtbench.builtin.architectures.resnet import imagenet_resnet, resnet, resnet_cifar
from rtbench.builtin.architectures.vgg import vgg
from rtbench.builtin.architectures.wrn import wrn
from rtbench.hookspecs import hookimpl


@hookimpl
def rtbench_architectures() -> dict[str, Callable[..., Any]]:
    return {
        "imagenet-resnet": imagenet_resnet,
        "large-cnn": large_cnn,
        "lenet": lenet,
        "lenet5": lenet5,
        "mlp": mlp,
        "resnet": resnet,
        "resnet-cifar": resnet_cifar,
        "small-cnn": small_cnn,
        "vgg": vgg,
        "wrn": wrn,
    }
