"""Networks of the layers that pruners forget: grouped and depthwise convolutions, attention projections. Fresh, for 8x8 images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from rtbench.builtin.architectures.common import network as named_layers
from rtbench.evaluation.guard import own_randomness
from rtbench.testing.lab import CLASSES, SHAPE

GROUPED = ("grouped.weight", "depthwise.weight")
ATTENTION = ("attention.in_proj_weight", "cross.k_proj_weight", "qkv.weight")
"""The weights that a pruner has to cope with. qkv is timm's form: one linear layer that makes queries, keys and values."""
WIDTH, WIDER = 16, 24


def grouped() -> nn.Module:
    """A convolution, one in four groups and a depthwise one with BatchNorm behind each, and a linear layer."""
    with own_randomness(0):
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(1, 16, 3, stride=2, padding=1), bn=nn.BatchNorm2d(16), relu=nn.ReLU(),
            grouped=nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False), bn1=nn.BatchNorm2d(16), relu1=nn.ReLU(),
            depthwise=nn.Conv2d(16, 32, 3, padding=1, groups=16, bias=False), bn2=nn.BatchNorm2d(32), relu2=nn.ReLU(),
            pool=nn.AvgPool2d(4), flatten=nn.Flatten(), head=nn.Linear(32, CLASSES),
        )  # fmt: skip
        return named_layers(SHAPE, layers, "head", (0.3,), (0.4,))


class Attentive(nn.Module):
    """Four tokens of an image through torch's attention, attention over wider keys, and attention in timm's form."""

    head_name = "head"

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 4, stride=4)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.widen = nn.Linear(WIDTH, WIDER)
        self.cross = nn.MultiheadAttention(WIDTH, 2, kdim=WIDER, vdim=WIDER, batch_first=True)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        seen = self.norm(tokens)
        tokens = tokens + self.attention(seen, seen, seen, need_weights=False)[0]
        wide = torch.relu(self.widen(tokens))
        tokens = tokens + self.cross(tokens, wide, wide, need_weights=False)[0]
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        tokens = tokens + self.proj(nn.functional.scaled_dot_product_attention(query, key, value))
        logits: Tensor = self.head(tokens.mean(1))
        return logits


def attentive() -> nn.Module:
    with own_randomness(0):
        return Attentive()
