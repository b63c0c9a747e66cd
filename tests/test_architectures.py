"""Architectures: published parameter counts, peers and functional references as oracles, and what every network promises."""

from __future__ import annotations

import inspect
import json
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rtbench.builtin.architectures import rtbench_architectures
from rtbench.builtin.architectures.common import MaxPool2d
from rtbench.errors import UserError
from rtbench.parts.kinds import validate
from rtbench.parts.knobs import check_all, knobs_of

PARTS = rtbench_architectures()
DIGITS, MNIST, MNIST32, CIFAR, IMAGENET = (1, 8, 8), (1, 28, 28), (1, 32, 32), (3, 32, 32), (3, 224, 224)

# name, image shape, classes, knobs, parameters, weights of convolutions and linear layers (None where no source gives them)
COUNTS: list[tuple[str, tuple[int, int, int], int, dict[str, Any], int, int | None]] = [
    ("mlp", MNIST, 10, {"bias": False}, 266_200, 266_200),
    ("mlp", MNIST, 10, {}, 266_610, 266_200),
    ("mlp", MNIST, 10, {"hidden": []}, 7_850, 7_840),
    ("lenet", MNIST, 10, {}, 431_080, 430_500),
    ("lenet5", MNIST, 10, {}, 61_706, 61_470),
    ("lenet5", MNIST32, 10, {}, 61_706, 61_470),
    ("small-cnn", CIFAR, 10, {}, 214_918, 214_760),
    ("large-cnn", CIFAR, 10, {}, 2_466_858, 2_465_632),
    ("small-cnn", MNIST, 10, {}, 166_406, 166_248),
    ("large-cnn", MNIST, 10, {}, 1_974_762, 1_973_536),
    ("vgg", CIFAR, 10, {"depth": 2}, 173_002, None),
    ("vgg", CIFAR, 10, {"depth": 4}, 460_234, None),
    ("vgg", CIFAR, 10, {"depth": 6}, 1_477_066, None),
    ("vgg", CIFAR, 10, {"depth": 8}, 5_280_202, None),
    ("vgg", CIFAR, 10, {"depth": 11}, 9_816_138, None),
    ("vgg", CIFAR, 10, {"depth": 13}, 10_000_842, None),
    ("vgg", CIFAR, 10, {"depth": 16}, 15_311_818, 15_302_848),
    ("vgg", CIFAR, 10, {"depth": 16, "batch_norm": False}, 15_311_818 - 2 * 4_224, 15_302_848),
    ("vgg", CIFAR, 10, {"depth": 16, "head": "512"}, 14_987_722, None),
    ("vgg", CIFAR, 10, {"depth": 4, "pool": "stride", "batch_norm": False}, 2_425_930, 2_425_024),
    ("resnet", CIFAR, 10, {}, 11_173_962, 11_164_352),
    ("resnet-cifar", CIFAR, 10, {"depth": 20}, 269_722, None),
    ("resnet-cifar", CIFAR, 10, {"depth": 32}, 464_154, None),
    ("resnet-cifar", CIFAR, 10, {"depth": 44}, 658_586, None),
    ("resnet-cifar", CIFAR, 10, {"depth": 56}, 853_018, None),
    ("resnet-cifar", CIFAR, 10, {"depth": 110}, 1_727_962, None),
    ("imagenet-resnet", IMAGENET, 1000, {}, 25_557_032, 25_502_912),
    ("imagenet-resnet", IMAGENET, 10, {}, 23_528_522, None),
    ("imagenet-resnet", IMAGENET, 100, {}, 23_712_932, None),
    ("wrn", CIFAR, 10, {"depth": 34, "width": 10}, 46_160_474, 46_138_032),
    ("wrn", CIFAR, 10, {"depth": 34, "width": 8}, 29_551_578, None),
    ("wrn", CIFAR, 10, {"depth": 34, "width": 5}, 11_554_074, None),
    ("wrn", CIFAR, 10, {"depth": 34, "width": 2}, 1_855_578, None),
    ("wrn", CIFAR, 10, {"depth": 34, "width": 1}, 466_714, None),
    ("wrn", CIFAR, 10, {"depth": 28, "width": 10}, 36_479_194, 36_461_232),
    ("wrn", CIFAR, 10, {"depth": 28, "width": 4}, 5_849_050, 5_841_840),
    ("wrn", CIFAR, 10, {"depth": 28, "width": 1}, 369_498, 367_664),
    ("wrn", CIFAR, 10, {"depth": 40, "width": 2}, 2_243_546, 2_238_128),
    ("wrn", CIFAR, 10, {"depth": 22, "width": 10}, 26_797_914, None),
    ("wrn", CIFAR, 10, {"depth": 16, "width": 10}, 17_116_634, None),
    ("wrn", CIFAR, 10, {"depth": 10, "width": 10}, 7_435_354, None),
]

# One small network of every kind, and the variants whose code differs.
SMALL: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {
    "linear": ("mlp", DIGITS, {"hidden": []}),
    "mlp": ("mlp", DIGITS, {"hidden": [16, 8], "bias": False}),
    "lenet": ("lenet", DIGITS, {"channels": [8, 16], "hidden": 32, "kernel": 3, "padding": 1}),
    "lenet5": ("lenet5", MNIST, {}),
    "small-cnn": ("small-cnn", DIGITS, {}),
    "large-cnn": ("large-cnn", DIGITS, {"width": 0.25}),
    "vgg": ("vgg", CIFAR, {"depth": 11, "width": 0.125}),
    "vgg-plain": ("vgg", DIGITS, {"depth": 2, "width": 0.25, "batch_norm": False, "head": "512"}),
    "vgg-512": ("vgg", (3, 20, 28), {"depth": 7, "width": 0.125, "head": "512"}),
    "vgg-stride": ("vgg", DIGITS, {"depth": 4, "width": 0.25, "pool": "stride"}),
    "vgg-odd": ("vgg", (1, 28, 28), {"depth": 6, "width": 0.125}),
    "resnet": ("resnet", (3, 9, 12), {"width": 4}),
    "resnet50": ("resnet", DIGITS, {"depth": 50, "width": 2}),
    "resnet-cifar": ("resnet-cifar", (3, 15, 12), {"width": 4}),
    "resnet-cifar-b": ("resnet-cifar", DIGITS, {"width": 4, "shortcut": "projection"}),
    "imagenet-resnet": ("imagenet-resnet", CIFAR, {"depth": 18}),
    "wrn": ("wrn", (3, 11, 16), {"depth": 10, "width": 1, "dropout": 0.3}),
    "wrn-wide": ("wrn", DIGITS, {"depth": 16, "width": 2}),
}
every_small = pytest.mark.parametrize("case", SMALL)


def build(name: str, shape: tuple[int, int, int] = CIFAR, classes: int = 10, *, seed: int = 0, **knobs: Any) -> Any:
    """As the engine does: knobs checked first, then the global generator seeded around the call."""
    resolved = check_all(knobs_of(PARTS[name]), knobs, name, lambda *_: None)
    torch.manual_seed(seed)
    return PARTS[name](shape, classes, **resolved)


def small(case: str, *, classes: int = 7, seed: int = 0, **more: Any) -> Any:
    name, shape, knobs = SMALL[case]
    return build(name, shape, classes, seed=seed, **knobs, **more)


def images(shape: tuple[int, int, int], n: int = 3) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def stir(model: nn.Module) -> Any:
    """Random BatchNorm statistics and affine parameters, so that an oracle sees where they are used; in eval mode."""
    rng = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
    return model.eval()


def prunable(model: nn.Module) -> list[Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize(("name", "shape", "classes", "knobs", "parameters", "weights"), COUNTS)
def test_counts(name: str, shape: tuple[int, int, int], classes: int, knobs: dict[str, Any], parameters: int, weights: int | None) -> None:
    with torch.device("meta"):
        model = build(name, shape, classes, **knobs)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert weights is None or sum(w.numel() for w in prunable(model)) == weights


def test_every_part_is_valid_and_every_knob_is_explained_in_order() -> None:
    for name, part in PARTS.items():
        validate("architecture", name, part)
        knobs = knobs_of(part)
        assert check_all(knobs, {}, name, lambda *_: None).keys() == knobs.keys()
        assert all(knob.help for knob in knobs.values()), name
        json.dumps(check_all(knobs, {}, name, lambda *_: None))
        assert list(knobs)[-2:] == ["mean", "std"]
        assert "Source: " in str(inspect.getdoc(part))


@every_small
def test_logits_and_gradients(case: str) -> None:
    model = small(case)
    x = images(SMALL[case][1]).requires_grad_()
    logits = model(x)
    assert logits.shape == (3, 7) and logits.dtype == torch.float32
    logits.logsumexp(1).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@every_small
def test_eval_mode_is_deterministic_and_treats_samples_alone(case: str) -> None:
    model, x = small(case).double().eval(), images(SMALL[case][1]).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(x)
    assert torch.equal(logits, model(x))
    torch.testing.assert_close(model(x[1:2]), logits[1:2])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@every_small
def test_the_seed_decides_the_weights(case: str) -> None:
    first, second, other = (small(case, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(not torch.equal(value, other[name]) for name, value in first.items() if value.ndim > 1)


@every_small
def test_normalisation_inside_equals_normalisation_outside(case: str) -> None:
    shape = SMALL[case][1]
    mean, std = [0.1, 0.2, 0.3][: shape[0]], [0.5, 0.25, 0.75][: shape[0]]
    x = images(shape).double()
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(shape[0])], dim=1)
    plain, inside = small(case).eval(), small(case, mean=mean, std=std).eval()
    assert list(plain.state_dict()) == list(inside.state_dict())
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in inside.named_parameters()]
    torch.testing.assert_close(inside.double()(x), plain.double()(by_hand), rtol=1e-5, atol=1e-6)


def test_one_number_serves_all_channels_and_either_may_be_left_out() -> None:
    x = images(CIFAR)
    plain = build("mlp", hidden=[]).eval()
    cases: list[tuple[dict[str, Any], Tensor]] = [
        ({"mean": [0.5], "std": [0.25]}, (x - 0.5) / 0.25),
        ({"mean": [0.5]}, x - 0.5),
        ({"std": [0.25]}, x / 0.25),
    ]
    for knobs, expected in cases:
        torch.testing.assert_close(build("mlp", hidden=[], **knobs)(x), plain(expected))
    assert not any("normal" in name for name, _ in plain.named_modules())


@every_small
def test_the_head_is_the_last_linear_layer_and_can_be_replaced(case: str) -> None:
    model = small(case)
    head = model.get_submodule(model.head_name)
    assert isinstance(head, nn.Linear) and head.out_features == 7
    assert head is [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
    head.weight, head.bias = nn.Parameter(torch.zeros(4, head.in_features)), nn.Parameter(torch.arange(4.0))
    assert torch.equal(model(images(SMALL[case][1])), torch.arange(4.0).expand(3, 4))


@every_small
def test_modules_are_registered_in_the_order_in_which_data_passes(case: str) -> None:
    model = small(case, mean=[0.5])
    leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
    ran: list[str] = []
    for name, module in leaves.items():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(images(SMALL[case][1]))
    assert ran == list(leaves)


@every_small
def test_a_saved_state_loads_strictly_and_holds_no_wrapper_names(case: str) -> None:
    source, target = small(case, seed=1, std=[0.5]), small(case, seed=2, std=[0.5])
    target.load_state_dict(source.state_dict())
    x = images(SMALL[case][1])
    assert torch.equal(source.eval()(x), target.eval()(x))
    assert not any("normalize" in name or "module" in name or "weight_" in name for name in source.state_dict())


@pytest.mark.parametrize("depth", [18, 50])
def test_imagenet_resnet_is_torchvisions(depth: int) -> None:
    peer = stir(_torchvision_resnet(depth, 11))
    model = build("imagenet-resnet", IMAGENET, 11, depth=depth).eval()
    ours, theirs = model.state_dict(), peer.state_dict()
    assert [(name, value.shape) for name, value in ours.items()] == [(name, value.shape) for name, value in theirs.items()]
    model.load_state_dict(theirs)
    x = images((3, 64, 48), 2)
    torch.testing.assert_close(model(x), peer(x))


@pytest.mark.parametrize("depth", [34, 101, 152])
def test_deeper_imagenet_resnets_have_torchvisions_names_and_shapes(depth: int) -> None:
    with torch.device("meta"):
        ours, theirs = build("imagenet-resnet", IMAGENET, 1000, depth=depth).state_dict(), _torchvision_resnet(depth, 1000).state_dict()
    assert [(name, value.shape) for name, value in ours.items()] == [(name, value.shape) for name, value in theirs.items()]


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_is_torchvisions_with_another_stem(depth: int) -> None:
    peer = _torchvision_resnet(depth, 10)
    peer.conv1, peer.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    stir(peer)
    model = build("resnet", depth=depth).eval()
    model.load_state_dict(peer.state_dict())
    torch.testing.assert_close(model(images((3, 12, 16), 2)), peer(images((3, 12, 16), 2)))


def _torchvision_resnet(depth: int, classes: int) -> Any:
    from rtbench.data.vision import torchvision

    return getattr(torchvision().models, f"resnet{depth}")(num_classes=classes)


def batch_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight, bias, mean, var = (state[f"{name}.{key}"] for key in ("weight", "bias", "running_mean", "running_var"))
    return F.batch_norm(x, mean, var, weight, bias, training=False)


def test_wrn_against_a_functional_reference() -> None:
    model = stir(build("wrn", (3, 16, 16), depth=16, width=2))
    state, x = model.state_dict(), images((3, 16, 16))
    norm = partial(batch_norm, state)
    out = F.conv2d(x, state["conv1.weight"], padding=1)
    for block, stride in ((1, 1), (2, 2), (3, 2)):
        for index in (0, 1):
            name, step = f"block{block}.layer.{index}", stride if index == 0 else 1
            active = norm(f"{name}.bn1", out).relu()
            branch = F.conv2d(active, state[f"{name}.conv1.weight"], stride=step, padding=1)
            branch = F.conv2d(norm(f"{name}.bn2", branch).relu(), state[f"{name}.conv2.weight"], padding=1)
            shortcut = F.conv2d(active, state[f"{name}.convShortcut.weight"], stride=step) if index == 0 else out
            out = branch + shortcut
    out = norm("bn1", out).relu().mean((2, 3))
    torch.testing.assert_close(model(x), F.linear(out, state["fc.weight"], state["fc.bias"]))


def test_resnet_cifar_option_a_against_a_functional_reference() -> None:
    model = stir(build("resnet-cifar", (3, 15, 12), depth=20, width=4))
    state, x = model.state_dict(), images((3, 15, 12))
    norm = partial(batch_norm, state)
    out = norm("bn1", F.conv2d(x, state["conv1.weight"], padding=1)).relu()
    for layer in (1, 2, 3):
        for index in (0, 1, 2):
            name, step = f"layer{layer}.{index}", 2 if layer > 1 and index == 0 else 1
            branch = norm(f"{name}.bn1", F.conv2d(out, state[f"{name}.conv1.weight"], stride=step, padding=1)).relu()
            branch = norm(f"{name}.bn2", F.conv2d(branch, state[f"{name}.conv2.weight"], padding=1))
            shortcut = torch.zeros_like(branch)
            shortcut[:, : out.shape[1]] = out[:, :, ::step, ::step]
            out = (branch + shortcut).relu()
    torch.testing.assert_close(model(x), F.linear(out.mean((2, 3)), state["fc.weight"], state["fc.bias"]))


@pytest.mark.parametrize("head", ["256-256", "512"])
def test_vgg_against_a_functional_reference(head: str) -> None:
    model = stir(build("vgg", depth=11, width=0.125, head=head))
    state, out = model.state_dict(), images(CIFAR)
    index = 0
    for stage, convolutions in enumerate((1, 1, 2, 2, 2)):
        if stage:
            out, index = F.max_pool2d(out, 2), index + 1
        for _ in range(convolutions):
            out = F.conv2d(out, state[f"features.{index}.weight"], padding=1)
            out, index = batch_norm(state, f"features.{index + 1}", out).relu(), index + 3
    assert out.shape[2:] == (2, 2)

    def linear(i: int, x: Tensor) -> Tensor:
        return F.linear(x, state[f"classifier.{i}.weight"], state[f"classifier.{i}.bias"])

    if head == "512":
        out = linear(3, batch_norm(state, "classifier.1", linear(0, out.mean((2, 3)))).relu())
    else:
        out = linear(4, linear(2, linear(0, out.flatten(1)).relu()).relu())
    torch.testing.assert_close(model(images(CIFAR)), out)


@pytest.mark.parametrize(("side", "depth", "left"), [(28, 6, 3), (32, 6, 4), (8, 2, 2), (16, 8, 1)])
def test_vgg_pools_any_map_to_the_size_its_head_takes(side: int, depth: int, left: int) -> None:
    x = images((1, side, side))
    model = build("vgg", (1, side, side), depth=depth, width=0.125).eval()
    features = model.features(x)
    assert features.shape[2:] == (left, left)
    torch.testing.assert_close(model(x), model.classifier(F.adaptive_avg_pool2d(features, 2).flatten(1)))


def test_plain_networks_against_functional_references() -> None:
    x = images(DIGITS)
    mlp = build("mlp", DIGITS, hidden=[5])
    torch.testing.assert_close(mlp(x), mlp.fc2(mlp.fc1(x.flatten(1)).relu()))
    lenet = build("lenet", DIGITS, channels=[8, 16], hidden=32, kernel=3, padding=1)
    out = F.max_pool2d(F.conv2d(x, lenet.conv1.weight, lenet.conv1.bias, padding=1).relu(), 2)
    out = F.max_pool2d(F.conv2d(out, lenet.conv2.weight, lenet.conv2.bias, padding=1).relu(), 2)
    torch.testing.assert_close(lenet(x), lenet.fc2(lenet.fc1(out.flatten(1)).relu()))
    cnn = build("large-cnn", DIGITS, width=0.25)
    out = x
    for layer, stride in ((cnn.conv1, 1), (cnn.conv2, 2), (cnn.conv3, 1), (cnn.conv4, 2)):
        out = F.conv2d(out, layer.weight, layer.bias, stride=stride, padding=1).relu()
    torch.testing.assert_close(cnn(x), cnn.fc3(cnn.fc2(cnn.fc1(out.flatten(1)).relu()).relu()))


def test_dropout_acts_in_training_only_and_changes_no_names() -> None:
    wet, dry = build("wrn", DIGITS, depth=10, width=1, dropout=0.5), build("wrn", DIGITS, depth=10, width=1)
    x = images(DIGITS)
    assert list(wet.state_dict()) == list(dry.state_dict())
    assert not torch.equal(wet(x), wet(x)) and torch.equal(dry(x), dry(x))
    wet.load_state_dict(dry.state_dict())
    assert torch.equal(wet.eval()(x), dry.eval()(x))


def sd(tensor: Tensor) -> float:
    return float(tensor.detach().std())


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("vgg", {"depth": 8}), ("resnet", {}), ("wrn", {"depth": 10, "width": 8}), ("imagenet-resnet", {"depth": 18}), ("large-cnn", {})],
)
def test_convolutions_start_kaiming_normal_fan_out(name: str, knobs: dict[str, Any]) -> None:
    model = build(name, **knobs)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert sd(module.weight) == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
            assert module.weight.abs().max() > 3 * sd(module.weight), "a normal distribution has tails"
            assert module.bias is None or not module.bias.any()


def test_vgg_initialisations() -> None:
    normal, uniform, signed = (build("vgg", depth=6, init=init) for init in ("kaiming-normal", "kaiming-uniform", "signed-constant"))
    for model in (normal, uniform):
        linear = model.classifier[0]
        assert sd(linear.weight) == pytest.approx(0.01, rel=0.03) and not linear.bias.any()
    weight = uniform.features[-4].weight.detach()
    bound = (6 / (256 * 9)) ** 0.5
    assert 0.99 * bound < float(weight.max()) <= bound and sd(weight) == pytest.approx(bound / 3**0.5, rel=0.03)
    for module in signed.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            magnitude = (2 / module.weight[0].numel()) ** 0.5
            assert sorted(set(module.weight.flatten().tolist())) == pytest.approx([-magnitude, magnitude])
            if module.weight.numel() > 20_000:
                assert abs(float(module.weight.detach().sign().mean())) < 0.03
            assert module.bias is None or not module.bias.any()


def test_vgg_batch_norm_starts_at_one_half_before_head_512_only() -> None:
    for head, start in (("256-256", 1.0), ("512", 0.5)):
        model = build("vgg", depth=2, head=head)
        assert all((m.weight == start).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert (model.classifier[1].weight == 1).all()


def test_mlp_initialisations() -> None:
    glorot, kaiming, default = (build("mlp", MNIST, init=init) for init in ("glorot-uniform", "kaiming-normal", "default"))
    bound = (6 / (784 + 300)) ** 0.5
    assert 0.99 * bound < float(glorot.fc1.weight.detach().abs().max()) <= bound
    assert sd(glorot.fc1.weight) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert sd(kaiming.fc1.weight) == pytest.approx((2 / 784) ** 0.5, rel=0.02)
    assert not glorot.fc1.bias.any() and not kaiming.fc1.bias.any()
    torch.manual_seed(0)
    assert torch.equal(default.fc1.weight, nn.Linear(784, 300).weight)


def test_resnet_default_initialisation_is_pytorchs() -> None:
    model = build("resnet", width=8, init="default")
    torch.manual_seed(0)
    assert torch.equal(model.conv1.weight, nn.Conv2d(3, 8, 3, bias=False).weight)
    assert not build("wrn", depth=10, width=1).fc.bias.any()


def test_width_scales_hidden_layers_and_nothing_else() -> None:
    wide = build("vgg", depth=2, width=1.5, head="512")
    assert [tuple(w.shape[:2]) for w in prunable(wide)] == [(96, 3), (96, 96), (768, 96), (10, 768)]
    thin = build("small-cnn", width=0.01)
    assert [tuple(w.shape[:2]) for w in prunable(thin)] == [(1, 3), (1, 1), (1, 64), (10, 1)]
    half = build("small-cnn", width=0.09375)  # 16 * 0.09375 = 1.5
    assert [w.shape[0] for w in prunable(half)] == [2, 3, 9, 10]


@pytest.mark.parametrize(
    ("name", "shape", "knobs", "words"),
    [
        ("vgg", DIGITS, {"depth": 16}, "vgg of depth 16: images of 8x8 pixels are too small"),
        ("vgg", CIFAR, {"depth": 8, "pool": "stride"}, "depth 4 only"),
        ("lenet", DIGITS, {}, "lenet: images of 8x8 pixels are too small, none is left after its layer conv2"),
        ("lenet5", DIGITS, {}, "lenet5: images of 8x8"),
        ("small-cnn", (1, 3, 9), {}, "small-cnn: images of 3x9"),
        ("wrn", CIFAR, {"depth": 30}, "28 and 34"),
        ("wrn", CIFAR, {"depth": 28, "mean": [0.1, 0.2]}, "mean has 2 numbers for images of 3 channels"),
        ("mlp", MNIST, {"std": [0.1, 0.2, 0.3]}, "std has 3 numbers for images of 1 channel"),
        ("mlp", MNIST, {"std": [0.0]}, "std.*outside"),
        ("mlp", MNIST, {"hidden": [0]}, "hidden.*outside"),
        ("vgg", CIFAR, {"depth": 5}, "depth"),
        ("wrn", CIFAR, {"dropout": 1.0}, "dropout.*outside"),
    ],
)
def test_mistakes_are_one_sentence(name: str, shape: tuple[int, int, int], knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        build(name, shape, **knobs)
    assert "\n" not in str(caught.value)


def test_a_std_of_zero_is_refused_without_the_planner_too() -> None:
    with pytest.raises(UserError, match="greater than 0"):
        PARTS["mlp"](MNIST, 10, std=(0.0,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_without_a_gradient_gives_the_numbers_of_pooling_with_one(layout: torch.memory_format) -> None:
    """Odd sides, ties, infinities and NaN among them."""
    rng = torch.Generator().manual_seed(0)
    for shape in ((3, 6, 8, 8), (2, 1, 5, 7), (2, 33, 2, 3)):
        x = torch.randint(-3, 3, shape, generator=rng).float()
        x[0, 0, 0, :2], x[1, 0, 0, 0] = torch.tensor([float("inf"), float("-inf")]), float("nan")
        x = x.to(memory_format=layout)
        expected = F.max_pool2d(x, 2)
        with torch.no_grad():
            torch.testing.assert_close(MaxPool2d()(x), expected, rtol=0, atol=0, equal_nan=True)
        asked = x.clone().requires_grad_()
        torch.testing.assert_close(MaxPool2d()(asked).detach(), expected, rtol=0, atol=0, equal_nan=True)
        assert MaxPool2d()(asked).requires_grad
