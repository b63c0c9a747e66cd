"""Masks of dead BatchNorm channels: found against architectures known by hand, and nothing but constants removed."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtbench.builtin.architectures.resnet import resnet, resnet_cifar
from rtbench.builtin.architectures.vgg import vgg
from rtbench.builtin.architectures.wrn import wrn
from rtbench.builtin.pruners.channels import with_channels
from rtbench.builtin.pruners.filters import filters
from rtbench.builtin.pruners.scores import normalised_magnitude
from rtbench.parts.masks import NORM, Masks, apply_, normalisation, ones
from rtbench.parts.meter import metered

SHAPE = (3, 32, 32)
Reached = dict[str, Tensor]


def rows(mask: Tensor, reached: Tensor) -> Tensor:
    """The outputs of a layer that a kept weight connects to a reached input."""
    matrix = mask.flatten(2).any(2) if mask.dim() == 4 else mask
    return matrix[:, reached.repeat_interleave(matrix.shape[1] // len(reached))].any(1)  # a flattened map has several inputs per channel


def of_vgg(model: nn.Module, masks: Masks) -> Reached:
    found, reached = {}, torch.ones(3, dtype=torch.bool)
    for name, module in model.named_modules():
        if isinstance(module, NORM):
            found[name] = reached
        elif f"{name}.weight" in masks:
            reached = rows(masks[f"{name}.weight"], reached)
    return found


def of_resnet(model: nn.Module, masks: Masks) -> Reached:
    """Every BatchNorm follows its own convolution; sums of two paths lie behind them."""
    reached = rows(masks["conv1.weight"], torch.ones(3, dtype=torch.bool))
    found = {"bn1": reached}
    for name, block in model.named_modules():
        if type(block).__name__ != "Basic":
            continue
        first = found[f"{name}.bn1"] = rows(masks[f"{name}.conv1.weight"], reached)
        second = found[f"{name}.bn2"] = rows(masks[f"{name}.conv2.weight"], first)
        if f"{name}.downsample.0.weight" in masks:
            reached = found[f"{name}.downsample.1"] = rows(masks[f"{name}.downsample.0.weight"], reached)
        elif type(block.downsample).__name__ == "PaddedIdentity":
            reached = torch.cat([reached, torch.zeros(len(second) - len(reached), dtype=torch.bool)])
        reached = second | reached
    return found


def of_wrn(model: nn.Module, masks: Masks) -> Reached:
    """The bn1 of a block is fed by the sum before it, not by the convolution before it."""
    reached = rows(masks["conv1.weight"], torch.ones(3, dtype=torch.bool))
    found = {}
    for name, block in model.named_modules():
        if type(block).__name__ != "PreActivation":
            continue
        found[f"{name}.bn1"] = reached
        inner = found[f"{name}.bn2"] = rows(masks[f"{name}.conv1.weight"], reached)
        short = rows(masks[f"{name}.convShortcut.weight"], reached) if block.projects else reached
        reached = rows(masks[f"{name}.conv2.weight"], inner) | short
    return found | {"bn1": reached}


NETS: dict[str, tuple[Any, Any]] = {
    "vgg": (lambda: vgg(SHAPE, 10, depth=11, width=0.1), of_vgg),
    "vgg-512": (lambda: vgg(SHAPE, 10, depth=7, width=0.1, head="512", mean=(1.0, 1.0, 1.0), std=(0.2, 0.2, 0.2)), of_vgg),
    "resnet": (lambda: resnet(SHAPE, 10, depth=18, width=6), of_resnet),
    "resnet-a": (lambda: resnet_cifar(SHAPE, 10, depth=20, width=6), of_resnet),
    "wrn": (lambda: wrn(SHAPE, 10, depth=16, width=1), of_wrn),
}


def randomise(model: nn.Module, seed: int) -> None:
    """A network as after training: nothing about BatchNorm is 0 or 1 any more."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, NORM):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0.2, 0.5)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)


def emptied(model: nn.Module, share: float, seed: int) -> Masks:
    """Masks that lack this share of all rows, and half of the other weights; a few of them, chosen like the rest, span all layers."""
    torch.manual_seed(seed)
    masks = ones(model)
    for name, mask in masks.items():
        gone = torch.rand(len(mask)) < share
        gone[0] = name.endswith("conv2.weight")
        masks[name] = mask & (torch.rand(mask.shape) < 0.5) & ~gone.view(-1, *[1] * (mask.dim() - 1))
    apply_(model, masks)
    return masks


def without_constants(model: nn.Module, dead: Masks) -> nn.Module:
    """The network whose dead channels give 0: their constant inputs are subtracted, nothing is multiplied by 0."""
    model = copy.deepcopy(model).eval()
    for name, module in model.named_modules():
        if isinstance(module, NORM) and f"{name}.bias" in dead:

            def before(module: nn.Module, inputs: tuple[Tensor, ...], off: Tensor = ~dead[f"{name}.bias"]) -> None:
                x = inputs[0].transpose(0, 1)[off].flatten(1)
                if len(x):
                    assert (x == x[:, :1]).all(), "the input of a masked channel varies"
                    module.running_mean[off], module.bias.data[off] = x[:, 0], 0.0

            module.register_forward_pre_hook(before)
    return model


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("share", "seed"), [(0.0, 0), (0.3, 1), (0.6, 2), (0.9, 3)])
def test_dead_are_exactly_the_channels_that_no_path_reaches(name: str, share: float, seed: int) -> None:
    make, known = NETS[name]
    model = make()
    randomise(model, seed)
    weights = emptied(model, share, seed)
    masks, reached = with_channels(model, weights, SHAPE), known(model, weights)
    assert {layer for layer, module in model.named_modules() if isinstance(module, NORM)} == set(reached)
    for layer, flags in reached.items():
        everything = torch.ones_like(flags)
        for field in ("weight", "bias"):
            assert torch.equal(masks.get(f"{layer}.{field}", everything), flags), layer
            assert (f"{layer}.{field}" in masks) == (not flags.all())
    assert all(torch.equal(masks[layer], mask) for layer, mask in weights.items())
    assert share == 0 or len(masks) > len(weights)


@pytest.mark.parametrize("name", NETS)
def test_the_network_loses_its_dead_constants_and_nothing_else(name: str) -> None:
    model = NETS[name][0]().double()
    randomise(model, 4)
    masks = with_channels(model, emptied(model, 0.4, 4), SHAPE)
    masked = copy.deepcopy(model).eval()
    apply_(masked, masks)
    images = torch.rand(4, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        found, expected, whole = (net(images) for net in (masked, without_constants(model, masks), model.eval()))
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 1e-9 * scale
    assert float((found - whole).abs().max()) > 1e-3 * scale, "there were constants to lose"


def test_a_channel_fed_by_the_residual_path_alone_is_alive() -> None:
    """Every second convolution of a wide ResNet is empty: what bn1 of the next block gets comes by the identity."""
    model = wrn(SHAPE, 10, depth=16, width=1)
    masks = {name: mask & (not name.endswith("conv2.weight")) for name, mask in ones(model).items()}
    assert with_channels(model, masks, SHAPE).keys() == masks.keys()
    masks["block2.layer.0.convShortcut.weight"][:] = False
    found = with_channels(model, masks, SHAPE)
    dead = {name for name in found.keys() - masks.keys() if not found[name].any()}
    assert "block2.layer.1.bn1.weight" in dead and "bn1.bias" in dead and "block2.layer.0.bn1.weight" not in found


class Odd(nn.Module):
    """Conv, then something that is no BatchNorm, a BatchNorm without use, and one that is used twice."""

    def __init__(self, between: nn.Module, bias: bool = False) -> None:
        super().__init__()
        self.conv, self.between, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=bias), between, nn.BatchNorm2d(4)
        self.idle, self.plain = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.between(self.conv(x)))
        out: Tensor = self.head(self.norm(self.plain(x)).mean((2, 3)))
        return out


@pytest.mark.parametrize("between", [nn.GroupNorm(1, 4), nn.LayerNorm((4, 6, 6)), nn.ReLU(), nn.GELU(), nn.Tanh(), nn.MaxPool2d(2)])
def test_what_mixes_channels_keeps_them_alive(between: nn.Module) -> None:
    torch.manual_seed(0)
    model = Odd(between)
    masks = ones(model)
    masks["conv.weight"][1] = False
    found = with_channels(model, masks, (3, 6, 6))
    mixes = isinstance(between, nn.GroupNorm | nn.LayerNorm)
    assert found.keys() - masks.keys() == (set() if mixes else {"norm.weight", "norm.bias"})
    assert mixes or found["norm.bias"].tolist() == [True, False, True, True]


def test_many_layers_without_batchnorm_neither_overflow_nor_underflow() -> None:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False)]
    for _ in range(40):
        layers += [nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(64))
    masks = ones(model)
    masks["40.weight"][::2] = False
    masks["80.weight"][5, ::2] = False
    masks["80.weight"][7] = False
    masks["80.weight"][9, 1::2] = False
    assert (~with_channels(model, masks, (3, 4, 4))["81.bias"]).nonzero().flatten().tolist() == [7]
    model[60].weight.data.abs_().neg_()  # no ReLU behind it fires, which says nothing about paths
    masks["78.weight"][::2] = False
    assert (~with_channels(model, masks, (3, 4, 4))["81.bias"]).nonzero().flatten().tolist() == [7, 9]


def test_what_only_a_dead_channel_feeds_is_dead() -> None:
    """Though the constant that it gave was seen through zero padding: that is gone with it."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
    model = nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(4))
    nn.init.ones_(model[1].bias)
    masks = ones(model)
    masks["0.weight"][2] = False
    masks["3.weight"][1, [0, 1, 3]] = False
    found = with_channels(model, masks, (3, 6, 6))
    assert found["1.bias"].tolist() == [True, True, False, True] and found["4.bias"].tolist() == [True, False, True, True]


def test_a_constant_with_a_border_is_left_alone() -> None:
    """A bias seen through zero padding differs at the border: masking it would remove more than a constant."""
    torch.manual_seed(0)
    between = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    for bias, dead in ((True, False), (False, True)):
        model = Odd(between, bias)
        masks = ones(model)
        masks["conv.weight"][:] = False
        assert ("norm.bias" in with_channels(model, masks, (3, 6, 6))) == dead
    direct = Odd(nn.Identity(), bias=True)
    assert (
        with_channels(direct, {**ones(direct), "conv.weight": torch.zeros(4, 3, 3, 3, dtype=torch.bool)}, (3, 6, 6))["norm.bias"].sum() == 0
    )


def test_the_network_is_left_as_it_was_and_its_passes_are_counted() -> None:
    model = NETS["wrn"][0]().train()
    model.bn1.eval()
    masks = emptied(model, 0.4, 0)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state, counts = torch.get_rng_state(), {}
    with metered(model, counts):
        found = with_channels(model, masks, SHAPE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()] and torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules()) and counts == {"forwards": 10, "gradients": 0}
    again = with_channels(model, {**masks, "bn1.bias": torch.arange(64) > 3}, SHAPE)
    assert torch.equal(again["bn1.bias"], found.get("bn1.bias", torch.ones(64, dtype=torch.bool)) & (torch.arange(64) > 3))


def test_pruners_mask_channels_where_asked() -> None:
    torch.manual_seed(0)
    model, data, rng = resnet(SHAPE, 10, depth=18, width=4), SimpleNamespace(shape=SHAPE), torch.Generator()
    plain = normalised_magnitude(model, ones(model), data, rng, scope="layer", keep=0.01)
    both = normalised_magnitude(model, ones(model), data, rng, scope="layer", keep=0.01, channels=True)
    extra = set(both) - set(plain)
    assert extra and extra <= set(normalisation(model)) and all(torch.equal(both[name], mask) for name, mask in plain.items())
    structured = filters(model, ones(model), data, torch.Generator(), keep=0.3, channels=True)
    for name in normalisation(model):
        conv = name.replace("bn", "conv").replace("downsample.1", "downsample.0").rpartition(".")[0] + ".weight"
        gone = ~structured[conv].flatten(1).any(1)
        assert not structured.get(name, ~gone)[gone].any()
    assert sum(int((~structured[name]).sum()) for name in structured if name in normalisation(model))
