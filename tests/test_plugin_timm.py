"""plugins/rtbench-timm: networks of timm with their own names, fresh weights, our normalisation, and nothing from the network."""

from __future__ import annotations

import copy
import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rtbench import UserError, torchvision
from rtbench.parts.kinds import knobs, validate
from rtbench.parts.knobs import check_all
from rtbench.parts.masks import prunable

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)
FILE = Path(__file__).parents[1] / "plugins" / "rtbench-timm" / "rtbench_timm.py"
spec = importlib.util.spec_from_file_location("rtbench_timm", FILE)
assert spec is not None and spec.loader is not None
rtbench_timm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rtbench_timm)


def network(name: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, seed: int = 0, **knobs: Any) -> Any:
    torch.manual_seed(seed)
    return rtbench_timm.timm_network(shape, classes, name=name, **knobs)


def plain(name: str, **options: Any) -> nn.Module:
    torchvision()
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **options)
    return model


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options"),
    [
        ("resnet18", (3, 32, 32), 10, {}),
        ("test_resnet", (1, 28, 28), 7, {}),
        ("test_vit", (3, 32, 32), 10, {"patch_size": 8}),
        ("test_convnext", (3, 32, 32), 4, {"drop_path_rate": 0.1}),
        ("mobilenetv3_small_050", (1, 32, 32), 3, {}),
        ("deit_tiny_distilled_patch16_224", (3, 32, 32), 5, {"depth": 2}),
        ("efficientvim_m1", (3, 64, 64), 5, {}),
    ],
)
def test_any_network_takes_our_images_and_classes(name: str, shape: tuple[int, int, int], classes: int, options: dict[str, Any]) -> None:
    model = network(name, shape, classes, options=options)
    assert all(module.training for module in model.modules())
    logits = model.eval()(torch.rand(2, *shape))
    assert logits.shape == (2, classes) and bool(torch.isfinite(logits).all())
    sides = [p.shape[0] for p in model.get_submodule(model.head_name).parameters() if p.dim() > 1]
    assert sides and set(sides) == {classes}
    assert prunable(model)


def test_the_head_is_the_one_the_configuration_names() -> None:
    assert network("resnet18").head_name == "fc"
    assert network("mobilenetv3_small_050").head_name == "classifier"
    assert network("efficientvim_m1", (3, 64, 64)).head_name == "heads"  # four of them, in one list
    assert network("deit_tiny_distilled_patch16_224", options={"depth": 1}).head_name == "head"


def test_names_and_weights_are_those_of_timm() -> None:
    ours, theirs = network("resnet18", mean=(0.5,), std=(0.2,)), plain("resnet18", num_classes=10)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    theirs.load_state_dict(ours.state_dict())


def test_normalisation_is_inside_and_is_no_state() -> None:
    x, mean, std = torch.rand(4, 3, 32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    bare, ours = network("test_resnet").eval(), network("test_resnet", mean=mean, std=std).eval()
    column = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    assert torch.equal(ours(x), bare((x - column[0]) / column[1]))
    assert torch.equal(network("test_resnet", mean=(0.5,)).eval()(x), bare(x - 0.5))
    assert torch.equal(copy.deepcopy(ours)(x), ours(x))
    assert torch.equal(torch.func.functional_call(ours, dict(ours.named_parameters()), x), ours(x))
    assert ours.to(torch.float64)(x.double()).dtype == torch.float64
    for wrong in ({"mean": (0.1, 0.2)}, {"std": (1.0,) * 4}):
        with pytest.raises(UserError, match="give one, or one per channel"):
            network("test_resnet", **wrong)


def test_the_global_seed_decides_the_weights() -> None:
    first, again, other = (network("test_vit", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r'no timm network "resnet81"; did you mean "resnet'),
        ("resnet18.a1_in1k", 'did you mean "resnet'),
        ("hf-hub:timm/resnet18", "no timm network"),
        ("local-dir:/tmp", "no timm network"),
        ("qwen3_vit_88m_enc", "has no classifier"),
    ],
)
def test_only_names_of_classifiers(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        network(name)


@pytest.mark.parametrize("option", sorted(rtbench_timm.FIXED))
def test_what_rtbench_says_is_no_option(option: str) -> None:
    with pytest.raises(UserError, match=f'"{option}" is no option'):
        network("resnet18", options={option: 1})


def test_what_a_network_does_not_take_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r'"resnet18" cannot take .* 3x32x32: .*no_such_option'):
        network("resnet18", options={"no_such_option": 1})
    with pytest.raises(UserError, match=r'"test_vit" cannot take .* 3x30x32'):
        network("test_vit", (3, 30, 32), options={"patch_size": 16, "strict_img_size": True})


def test_the_part_is_valid() -> None:
    parts = rtbench_timm.rtbench_architectures()
    validate("architecture", "timm", parts["timm"])
    declared = knobs("architecture", parts["timm"])
    assert all(knob.help for knob in declared.values())
    given = {"options": {"drop_rate": "1/10", "depths": [2, 2], "act_layer": "gelu", "bias": True}, "mean": [0.5]}
    values = check_all(declared, given, "parts.net", lambda *_: None)
    assert values["options"] == {"drop_rate": 0.1, "depths": [2, 2], "act_layer": "gelu", "bias": True}
    for wrong in ({"mean": [2]}, {"std": [0]}, {"options": {"depths": {}}}, {"pretrained": True}):
        with pytest.raises(UserError, match=r"parts\.net"):
            check_all(declared, wrong, "parts.net", lambda *_: None)
