"""The built-in data sets, on small files in the true formats; on the real files only where RTBENCH_DATA names their folder."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import inspect
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from rtbench.builtin.datasets import common, embedded, q75, rtbench_datasets
from rtbench.builtin.datasets.download import DOWNLOADS, download
from rtbench.builtin.datasets.images import decode_image
from rtbench.data import vision
from rtbench.data.splits import Data, Split, Stream, batches, data_digest, take
from rtbench.errors import UserError
from rtbench.parts import kinds
from rtbench.parts.knobs import check_all

SETS = rtbench_datasets()
REAL = Path(os.environ.get("RTBENCH_DATA") or "/nonexistent")


def pixels(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


# What they share


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_is_a_part_with_checked_and_explained_knobs(name: str) -> None:
    kinds.validate("dataset", name, SETS[name])
    knobs = kinds.knobs("dataset", SETS[name])
    assert {"valid", "valid_rule", "split_seed", "share", "share_rule", "augment"} <= set(knobs)
    assert [knob.name for knob in knobs.values() if not knob.help] == []
    needed = {knob.name: 8 if knob.annotation is not str and knob.name == "size" else "x" for knob in knobs.values() if knob.required}
    check_all(knobs, needed, name, lambda *_: None)
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"valid": 0}, {"valid_rule": "middle"}, {"augment": "mixup"}):
        with pytest.raises(UserError):
            check_all(knobs, needed | wrong, name, lambda *_: None)
    assert inspect.signature(SETS[name]).return_annotation is Data


def loaded(n: int = 40, **more: Any) -> common.Loaded:
    x = torch.from_numpy(pixels(n, 1, 4, 4))
    split = Split(x, torch.arange(n) % 4, torch.arange(n))
    return common.Loaded(split, split.subset(torch.arange(5)), 4, **more)


def test_finish_holds_out_first_and_then_keeps_a_share() -> None:
    data = common.finish(loaded(), valid=10, valid_rule="first", share=0.5, share_rule="first", augment="pad-crop-flip")
    assert data.valid.ids.tolist() == list(range(10))
    assert data.train.ids.tolist() == list(range(10, 25))
    assert (data.shape, data.classes) == ((1, 4, 4), 4)
    assert data.test is not None
    assert [split.augment for split in (data.train, data.valid, data.test)] == ["pad-crop-flip", "none", "none"]


def test_the_split_seed_moves_both_choices_and_nothing_else() -> None:
    a, b, c = (common.finish(loaded(), valid=10, valid_rule="random", share=0.5, split_seed=seed) for seed in (0, 0, 1))
    assert data_digest(a) == data_digest(b) != data_digest(c)
    assert a.valid.ids.tolist() != c.valid.ids.tolist()
    assert not set(a.train.ids.tolist()) & set(a.valid.ids.tolist())
    d, e = (common.finish(loaded(), valid=10, share=0.5, split_seed=seed) for seed in (0, 1))
    assert d.valid.ids.tolist() == e.valid.ids.tolist()
    assert d.train.ids.tolist() != e.train.ids.tolist()


def test_a_set_with_its_own_validation_split_uses_it_or_refuses_another() -> None:
    own = loaded(7).train
    data = common.finish(loaded(valid=own, extra=own), augment="pad-crop-flip")
    assert (len(data.train), len(data.valid)) == (40, 7)
    assert data.extra is not None and data.extra.augment == "pad-crop-flip"
    assert len(common.finish(loaded()).valid) == 4
    with pytest.raises(UserError, match="its own validation split of 7 samples"):
        common.finish(loaded(valid=own), valid=3)


def test_finish_refuses_impossible_data() -> None:
    good = loaded()
    with pytest.raises(UserError, match="cannot hold out 40 of 40"):
        common.finish(good, valid=40)
    with pytest.raises(UserError, match="the test split is empty"):
        common.finish(good._replace(test=good.test.subset(torch.arange(0))))
    with pytest.raises(UserError, match="the train split has labels from 0 to 3, but there are 3 classes"):
        common.finish(good._replace(classes=3))
    other = Split(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    with pytest.raises(UserError, match=r"the test images have shape \(3, 4, 4\) and the train images \(1, 4, 4\)"):
        common.finish(good._replace(test=other))


# digits


def test_digits_are_all_of_scikit_learns_split_by_class_proportions() -> None:
    from sklearn.datasets import load_digits

    data, source = SETS["digits"](), load_digits()
    assert data.test is not None
    assert [len(split) for split in (data.train, data.valid, data.test)] == [1200, 200, 397]
    ids = torch.cat([data.train.ids, data.valid.ids, data.test.ids])
    assert sorted(ids.tolist()) == list(range(1797))
    for split in (data.train, data.valid, data.test):
        assert torch.equal(split.x[:, 0], torch.from_numpy(source.images[split.ids] / 16).float())
        assert split.y.tolist() == source.target[split.ids].tolist()
        shares = torch.bincount(split.y) / len(split) - torch.bincount(torch.cat([data.train.y, data.valid.y, data.test.y])) / 1797
        assert shares.abs().max() * len(split) < 2
    assert data.test.ids.max() > 1790 and data.test.ids.min() < 10  # from all writers, not from the last


def test_digits_never_change() -> None:
    assert data_digest(SETS["digits"]()) == "9656446feeba8ef9d0db67011771e73161954bd061b6d435b412aa36f675708e"


def test_digits_are_the_same_from_scikit_learns_own_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    direct = embedded.read_digits()
    monkeypatch.setattr(embedded, "find_spec", lambda _: SimpleNamespace(origin="/nonexistent/sklearn/__init__.py"))
    assert all(torch.equal(a, b) for a, b in zip(direct, embedded.read_digits(), strict=True))


# MNIST and Fashion-MNIST


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape) + values.tobytes()


def write_mnist(root: Path, kind: str = "MNIST", packed: bool = False) -> dict[str, np.ndarray]:
    folder = root / kind / "raw"
    folder.mkdir(parents=True)
    arrays = {}
    for prefix, n in (("train", 50), ("t10k", 20)):
        arrays[f"{prefix}-images-idx3-ubyte"] = pixels(n, 28, 28, seed=n)
        arrays[f"{prefix}-labels-idx1-ubyte"] = pixels(n, seed=n) % 10
    for name, values in arrays.items():
        content = idx(values)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return arrays


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name, kind", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_files_are_read_as_torchvision_reads_them(tmp_path: Path, name: str, kind: str, packed: bool) -> None:
    arrays = write_mnist(tmp_path, kind, packed)
    data = SETS[name](tmp_path, valid=10)
    assert data.test is not None
    assert (data.shape, data.classes) == ((1, 28, 28), 10)
    assert data.valid.ids.tolist() == list(range(40, 50))
    assert np.array_equal(torch.cat([data.train.x, data.valid.x])[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert data.test.y.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    if not packed:
        theirs = getattr(vision.torchvision().datasets, kind)(str(tmp_path), train=False)
        assert torch.equal(theirs.data, data.test.x[:, 0]) and torch.equal(theirs.targets, data.test.y)


def test_a_missing_mnist_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        SETS["mnist"](tmp_path)
    text = str(error.value)
    for words in ("train-images-idx3-ubyte", str(tmp_path / "MNIST" / "raw"), "`rtbench data mnist --download`", "RTBENCH_DATA"):
        assert words in text
    assert "\n" not in text


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "html": (lambda content: b"<!DOCTYPE html><html>not found</html>", "is not an idx file"),
    "short": (lambda content: content[:-1], "its header promises 39,200"),
    "long": (lambda content: content + b"\0", "its header promises 39,200"),
    "header": (lambda content: content[:9], "is not an idx file"),
    "empty": (lambda content: b"", "is not an idx file"),
    "labels": (lambda content: idx(pixels(50) % 10), "with 3 dimensions"),
    "floats": (lambda content: b"\0\0\x0d" + content[3:], "is not an idx file"),
    "none": (lambda content: idx(pixels(0, 28, 28)), "is empty"),
    "fewer": (lambda content: idx(pixels(49, 28, 28)), "has 49 train images and 50 train labels"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_mnist_file_is_named(tmp_path: Path, case: str) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    damage, message = DAMAGE[case]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        SETS["mnist"](tmp_path, valid=10)
    assert str(path.parent) in str(error.value) and (case == "fewer" or path.name in str(error.value))


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-200], lambda content: b"<html>", lambda content: content[:30] + b"\xff" * 40 + content[70:]]
)
def test_a_damaged_gz_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_mnist(tmp_path, packed=True)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz cannot be read"):
        SETS["mnist"](tmp_path, valid=10)


# CIFAR and SVHN


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path, np.ndarray, list[int]]:
    """(name, folder, training images (n, 3, 32, 32), labels) of a small set in CIFAR's format, its checksums being the published ones."""
    small, labels_key = request.param == "cifar10", {"cifar10": "labels", "cifar100": "fine_labels"}[request.param]
    kind = getattr(vision.torchvision().datasets, request.param.upper())
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    classes = 10 if small else 100
    images: list[np.ndarray] = []
    labels: list[int] = []
    listed: dict[str, list[list[str]]] = {}
    for kept, n in (("train_list", 24), ("test_list", 10)):
        listed[kept] = []
        for i, (file, _) in enumerate(getattr(kind, kept)):
            batch, y = pixels(n, 3072, seed=n + i), [(7 * i + j) % classes for j in range(n)]
            (folder / file).write_bytes(pickle.dumps({"data": batch, labels_key: y, "batch_label": file}))
            listed[kept].append([file, md5(folder / file)])
            if kept == "train_list":
                images.append(batch)
                labels += y
    meta = dict(kind.meta)
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: [str(i) for i in range(classes)]}))
    for name, value in {**listed, "meta": {**meta, "md5": md5(folder / meta["filename"])}}.items():
        monkeypatch.setattr(kind, name, value)
    return request.param, folder, np.concatenate(images).reshape(-1, 3, 32, 32), labels


def test_cifar_is_read_in_its_order(cifar: tuple[str, Path, np.ndarray, list[int]]) -> None:
    name, folder, images, labels = cifar
    data = SETS[name](folder.parent, valid=4)
    assert data.test is not None
    assert (data.shape, data.classes, len(data.test)) == ((3, 32, 32), 10 if name == "cifar10" else 100, 10)
    assert np.array_equal(torch.cat([data.train.x, data.valid.x]).numpy(), images)
    assert torch.cat([data.train.y, data.valid.y]).tolist() == labels


def test_a_cifar_file_that_fails_its_checksum_is_named_before_anything_is_unpickled(
    cifar: tuple[str, Path, np.ndarray, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder, _, _ = cifar
    path = next(folder / file for file in ("data_batch_3", "train") if (folder / file).is_file())
    path.write_bytes(b"<html>" + path.read_bytes()[6:])
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(UserError, match="does not have the published checksum") as error:
        SETS[name](folder.parent, valid=4)
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=f"there is no {path.name} in .*`rtbench data {name} --download`"):
        SETS[name](folder.parent, valid=4)


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    listed, images = {}, {}
    for part, n in (("train", 30), ("test", 12), ("extra", 15)):
        images[part] = pixels(n, 3, 32, 32, seed=n)
        path = root / f"{part}_32x32.mat"
        y = np.arange(n)[:, None] % 10
        scipy.io.savemat(path, {"X": images[part].transpose(2, 3, 1, 0), "y": np.where(y == 0, 10, y).astype(np.uint8)})
        listed[part] = ["", path.name, md5(path)]
    monkeypatch.setattr(vision.torchvision().datasets.SVHN, "split_list", listed)
    return images


def test_svhn_is_read_with_digit_0_as_class_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_svhn(tmp_path, monkeypatch)
    data = SETS["svhn"](tmp_path, valid=5)
    assert data.test is not None and data.extra is None
    assert np.array_equal(data.test.x.numpy(), images["test"])
    assert torch.cat([data.train.y, data.valid.y]).tolist() == [i % 10 for i in range(30)]
    more = SETS["svhn"](tmp_path, valid=5, extra=True)
    assert more.extra is not None and np.array_equal(more.extra.x.numpy(), images["extra"])
    assert len(more.train) == 25


def test_svhn_names_a_missing_or_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path, monkeypatch)
    (tmp_path / "extra_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"no extra_32x32\.mat in .*`rtbench data svhn-extra --download`"):
        SETS["svhn"](tmp_path, valid=5, extra=True)
    (tmp_path / "test_32x32.mat").write_bytes(b"short")
    with pytest.raises(UserError, match=r"test_32x32\.mat does not have the published checksum"):
        SETS["svhn"](tmp_path, valid=5)


# Image folders


def write_images(folder: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8)) -> None:
    for c, (name, n) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(pixels(n, *size, 3, seed=c)):
            Image.fromarray(image).save(folder / name / f"{i:03}.png")


def test_an_image_folder_with_its_own_splits(tmp_path: Path) -> None:
    for part, n in (("train", 6), ("val", 2), ("test", 3)):
        write_images(tmp_path / "pets" / part, {"cat": n, "dog": n + 1})
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "pets" / "train" / ".cache").mkdir()
    data = SETS["image-folder"](tmp_path, folder="pets", size=8)
    assert data.test is not None
    assert [len(split) for split in (data.train, data.valid, data.test)] == [13, 5, 7]
    assert (data.shape, data.classes) == ((3, 8, 8), 2)
    assert data.valid.y.tolist() == [1, 0, 1, 0, 1]
    assert np.array_equal(data.valid.x[1].permute(1, 2, 0).numpy(), pixels(2, 8, 8, 3, seed=0)[0])
    with pytest.raises(UserError, match="has its own test folder; leave out the knob test"):
        SETS["image-folder"](tmp_path, folder="pets", size=8, test=0.5)


@pytest.mark.parametrize("rule", ["first", "last", "random"])
def test_an_image_folder_without_splits_is_split_by_rule(tmp_path: Path, rule: str) -> None:
    write_images(tmp_path, {"a": 20, "b": 40})
    (tmp_path / "a" / "inner").mkdir()
    (tmp_path / "a" / "000.png").rename(tmp_path / "a" / "inner" / "z.PNG")
    data = SETS["image-folder"](tmp_path / "elsewhere", folder=str(tmp_path), size=8, test=0.25, test_rule=rule, valid=6)
    assert data.test is not None
    assert [len(split) for split in (data.train, data.valid, data.test)] == [39, 6, 15]
    assert len({*data.train.ids.tolist(), *data.valid.ids.tolist(), *data.test.ids.tolist()}) == 60
    if rule != "random":
        assert torch.bincount(data.test.y).tolist() == [5, 10]
    again = SETS["image-folder"](tmp_path, folder=".", size=8, test=0.25, test_rule=rule, valid=6)
    assert data_digest(again) == data_digest(data)
    other = SETS["image-folder"](tmp_path, folder=".", size=8, test=0.25, test_rule=rule, valid=6, split_seed=1)
    assert (data_digest(other) == data_digest(data)) == (rule != "random")


def test_an_image_folder_beyond_the_memory_is_streamed_and_reads_the_same(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 9, "b": 11}, (12, 10))
    knobs: dict[str, Any] = {"folder": ".", "size": 7, "shorter": 9, "valid": 4, "share": 0.5, "augment": "pad-crop-flip"}
    small, large = (SETS["image-folder"](tmp_path, memory_mb=mb, workers=2, **knobs) for mb in (1, 0))
    for a, b in zip(small[:3], large[:3], strict=True):
        assert isinstance(a, Split) and isinstance(b, Stream)
        assert torch.equal(a.ids, b.ids) and torch.equal(a.y, b.y) and a.shape == b.shape
        everything = torch.arange(len(a))
        assert torch.equal(take(a, everything)[0], take(b, everything)[0])
        changed = [torch.cat([x for x, _ in batches(split, 2, augment=True, rng=torch.Generator())]) for split in (a, b)]
        assert torch.equal(*changed)
    assert len(large.train) == 6 and large.train.augment == "pad-crop-flip"


def test_mistakes_in_an_image_folder_are_one_sentence(tmp_path: Path) -> None:
    read = SETS["image-folder"]
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        read(tmp_path, folder="nowhere", size=8)
    with pytest.raises(UserError, match="a shorter side of 4 pixels is less than the size 8"):
        read(tmp_path, folder=".", size=8, shorter=4)
    with pytest.raises(UserError, match="has 0 subfolders"):
        read(tmp_path, folder=".", size=8)
    write_images(tmp_path / "set" / "test", {"cat": 2, "dog": 2})
    with pytest.raises(UserError, match="has a folder test, but none named train"):
        read(tmp_path, folder="set", size=8)
    write_images(tmp_path / "set" / "train", {"cats": 2, "dog": 2})
    with pytest.raises(UserError, match='no class "cat"; did you mean "cats"'):
        read(tmp_path, folder="set", size=8)
    (tmp_path / "set" / "test" / "cat").rename(tmp_path / "set" / "test" / "cats")
    (tmp_path / "set" / "train" / "emu").mkdir()
    with pytest.raises(UserError, match=r"emu has no images \(\.jpg"):
        read(tmp_path, folder="set", size=8)
    (tmp_path / "set" / "train" / "emu" / "1.jpg").write_text("<html>")
    with pytest.raises(UserError, match=r"1\.jpg cannot be decoded as an image"):
        read(tmp_path, folder="set", size=8, valid=1)


def test_images_are_scaled_by_their_shorter_side_and_cut_in_the_middle(tmp_path: Path) -> None:
    image = pixels(1, 20, 30, 3)[0]
    Image.fromarray(image).save(tmp_path / "1.png")
    got = decode_image(tmp_path / "1.png", 10, shorter=20)
    assert np.array_equal(got.permute(1, 2, 0).numpy(), image[5:15, 10:20])
    plain = torch.zeros(40, 80, 3, dtype=torch.uint8)
    plain[:, 20:60] = 200
    Image.fromarray(plain.numpy()).save(tmp_path / "2.png")
    assert (decode_image(tmp_path / "2.png", 10)[:, :, 1:-1] == 200).all()
    assert decode_image(tmp_path / "2.png", 10, channels=1).shape == (1, 10, 10)
    assert decode_image(tmp_path / "1.png", 50).shape == (3, 50, 50)
    jpeg = io.BytesIO()
    Image.fromarray(image).save(jpeg, "JPEG")
    for content in (jpeg.getvalue()[:-300], b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 40):
        with pytest.raises(UserError, match="the file cannot be decoded as an image"):
            decode_image(io.BytesIO(content), 10, name="the file")
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        decode_image(tmp_path / "deep.png", 8)


# NumPy archives


def arrays(**change: Any) -> dict[str, Any]:
    whole = {"x_train": pixels(30, 3, 4, 4), "y_train": np.arange(30) % 5, "x_test": pixels(8, 3, 4, 4, seed=1), "y_test": np.arange(8) % 5}
    return {name: values for name, values in {**whole, **change}.items() if values is not None}


def test_npz_reads_bytes_floats_and_grey_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    data = SETS["npz"](tmp_path, file="a.npz", valid=6)
    assert (data.shape, data.classes, len(data.train), len(data.valid)) == ((3, 4, 4), 5, 24, 6)
    assert np.array_equal(torch.cat([data.train.x, data.valid.x]).numpy(), pixels(30, 3, 4, 4))
    grey = {f"x_{part}": pixels(n, 4, 4) / 255 for part, n in (("train", 30), ("test", 8), ("valid", 2))}
    more = {"y_valid": np.array([0, 1], np.uint8), "x_extra": pixels(3, 4, 4) / 255, "y_extra": np.zeros(3, np.int32)}
    np.savez_compressed(tmp_path / "b.npz", **arrays(**grey, **more))
    data = SETS["npz"](tmp_path / "elsewhere", file=str(tmp_path / "b.npz"))
    assert data.shape == (1, 4, 4) and len(data.valid) == 2 and data.extra is not None and len(data.extra) == 3
    assert torch.equal(take(data.train, torch.arange(30))[0][:, 0], torch.from_numpy(pixels(30, 4, 4)).double().div(255).float())


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "absent": ({"y_test": None}, "has no y_test, only x_test, x_train, y_train"),
    "half": ({"x_valid": pixels(2, 3, 4, 4)}, "has no y_valid"),
    "nhwc": ({"x_train": pixels(30, 4, 4, 3)}, "x_train has shape (30, 4, 4, 3); images are (n, c, h, w)"),
    "flat": ({"x_test": pixels(8, 48)}, "x_test has shape (8, 48)"),
    "normalised": ({"x_test": np.full((8, 3, 4, 4), -0.5)}, "x_test has values from -0.5 to -0.5"),
    "nan": ({"x_test": np.full((8, 3, 4, 4), np.nan)}, "x_test has values from nan"),
    "unscaled": ({"x_test": pixels(8, 3, 4, 4).astype(float)}, "floats must lie in 0 to 1"),
    "ints": ({"x_test": pixels(8, 3, 4, 4).astype(np.int64)}, "x_test is int64; images are uint8"),
    "float labels": ({"y_test": np.zeros(8)}, "y_test is float64 of shape (8,)"),
    "one-hot": ({"y_test": np.eye(8, 5, dtype=int)}, "labels are whole numbers of shape (8,)"),
    "count": ({"y_test": np.zeros(7, int)}, "labels are whole numbers of shape (8,)"),
    "new class": ({"y_test": np.arange(8)}, "the test split has labels from 0 to 7, but there are 5 classes"),
    "negative": ({"y_train": np.arange(30) % 5 - 1}, "the train split has labels from -1 to 3"),
    "empty": ({"x_train": pixels(0, 3, 4, 4), "y_train": np.zeros(0, int)}, "the train split is empty"),
    "size": ({"x_test": pixels(8, 3, 5, 5)}, "the test images have shape (3, 5, 5)"),
    "objects": ({"y_test": np.array([{}] * 8)}, "is not an archive of plain NumPy arrays"),
}


@pytest.mark.parametrize("case", WRONG)
def test_npz_refuses_arrays_that_cannot_be_images_and_labels(tmp_path: Path, case: str) -> None:
    change, message = WRONG[case]
    np.savez(tmp_path / "a.npz", **arrays(**change))
    with pytest.raises(UserError) as error:
        SETS["npz"](tmp_path, file="a.npz")
    assert message in str(error.value)


def test_npz_refuses_files_that_are_no_archives(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*gone\.npz"):
        SETS["npz"](tmp_path, file="gone.npz")
    np.savez(tmp_path / "short.npz", **arrays())
    (tmp_path / "short.npz").write_bytes((tmp_path / "short.npz").read_bytes()[:-700])
    (tmp_path / "page.npz").write_text("<html>")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "single.npy", np.zeros(3))
    for file in ("short.npz", "page.npz", "empty.npz", "single.npy"):
        with pytest.raises(UserError, match=f"{file} is not an archive of plain NumPy arrays"):
            SETS["npz"](tmp_path, file=file)


# cifar10-q75


def write_q75(path: Path, train: int = 4, test: int = 2) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for part, n in (("train", train), ("test", test)):
            for c, word in enumerate(q75.CLASSES):
                for i in range(n):
                    content = io.BytesIO()
                    Image.new("RGB", (32, 32), (20 * c, 10 * i, 100 if part == "test" else 0)).save(content, "JPEG", quality=95)
                    archive.writestr(f"cifar10-q75/{part}/{word}/{i:04}.jpg", content.getvalue())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RTBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_q75_takes_the_classes_in_turn_and_decodes_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_q75(tmp_path / "cifar10-q75.zip")
    data = SETS["cifar10-q75"](tmp_path, valid=20)
    assert data.test is not None
    assert (data.shape, data.classes, len(data.train), len(data.valid), len(data.test)) == ((3, 32, 32), 10, 20, 20, 20)
    assert data.train.y.tolist() == [*range(10)] * 2 and data.valid.y.tolist() == [*range(10)] * 2
    colours = data.valid.x.float().mean((2, 3))
    expected = torch.tensor([[20.0 * (i % 10), 10.0 * (2 + i // 10), 0.0] for i in range(20)])
    assert (colours - expected).abs().max() < 4
    assert sorted(path.suffix for path in cache.iterdir()) == [".npy", ".npy"]
    monkeypatch.setattr(q75, "decode_image", lambda *_, **__: pytest.fail("decoded twice"))
    assert data_digest(SETS["cifar10-q75"](tmp_path, valid=20)) == data_digest(data)
    assert [path.name for path in tmp_path.iterdir() if path != cache] == ["cifar10-q75.zip"]


def test_q75_repairs_a_damaged_cache_and_notices_another_archive(tmp_path: Path, cache: Path) -> None:
    write_q75(tmp_path / "cifar10-q75.zip")
    first = data_digest(SETS["cifar10-q75"](tmp_path, valid=20))
    empty, short = cache.iterdir()
    empty.write_bytes(b"")
    short.write_bytes(short.read_bytes()[:-500])
    assert data_digest(SETS["cifar10-q75"](tmp_path, valid=20)) == first
    write_q75(tmp_path / "cifar10-q75.zip", train=5)
    assert len(SETS["cifar10-q75"](tmp_path, valid=20).train) == 30


def test_q75_explains_what_is_amiss(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cifar10-q75.zip"
    with pytest.raises(UserError, match=r"there is no cifar10-q75\.zip in .*; set RTBENCH_DATA") as error:
        SETS["cifar10-q75"](tmp_path)
    assert "--download" not in str(error.value)
    path.write_text("<html>")
    with pytest.raises(UserError, match=r"cifar10-q75\.zip is not an intact zip archive"):
        SETS["cifar10-q75"](tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cifar10-q75/train/cat/1.jpg", b"")
    with pytest.raises(UserError, match="does not have images of the ten classes"):
        SETS["cifar10-q75"](tmp_path)
    write_q75(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xd8") + 300] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not an intact zip archive"):
        SETS["cifar10-q75"](tmp_path)
    write_q75(path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RTBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set RTBENCH_CACHE to a folder that can be written"):
        SETS["cifar10-q75"](tmp_path)
    assert not cache.exists()


# Downloads


@pytest.mark.parametrize("name", DOWNLOADS)
def test_download_calls_torchvision_with_the_root(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    kind, arguments = DOWNLOADS[name]
    monkeypatch.setattr(vision.torchvision().datasets, kind, lambda root, **how: calls.append((root, how)))
    download(name, tmp_path / "new")
    assert calls == [(str(tmp_path / "new"), {"download": True, **more}) for more in arguments]


def test_every_data_set_that_promises_a_download_has_one(tmp_path: Path) -> None:
    for name in ("mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"):
        with pytest.raises(UserError, match=f"`rtbench data {name} --download`"):
            SETS[name](tmp_path)
        assert name in DOWNLOADS


@pytest.mark.parametrize("name", DOWNLOADS)
def test_a_failing_network_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError, match=f"^{name} could not be downloaded to .*no route to host") as error:
        download(name, tmp_path)
    assert "\n" not in str(error.value)


def test_an_unknown_download_has_a_near_miss(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no data set to download "mnits"; did you mean "mnist"'):
        download("mnits", tmp_path)


# torchvision


def test_torchvision_imports_and_is_the_same_module_every_time() -> None:
    module = vision.torchvision()
    assert module is vision.torchvision() is importlib.import_module("torchvision")
    assert module.transforms.functional.hflip(torch.tensor([[[1, 2]]])).tolist() == [[[2, 1]]]
    if not module.extension._has_ops():
        with pytest.raises((NotImplementedError, RuntimeError)):
            module.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def test_operators_are_declared_only_when_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    declared: list[bool] = []
    fake = ModuleType("fake")
    monkeypatch.setattr(vision, "_declare_operators", lambda: declared.append(True))
    monkeypatch.setattr(importlib, "import_module", lambda _: fake)
    assert vision.torchvision() is fake and not declared
    for failure, expected in (
        (RuntimeError("another failure"), RuntimeError),
        (ModuleNotFoundError("No module named 'torchvision'"), UserError),
    ):

        def fail(_: str, failure: Exception = failure) -> None:
            raise failure

        monkeypatch.setattr(importlib, "import_module", fail)
        with pytest.raises(expected, match=r"another failure|torchvision is not installed"):
            vision.torchvision()
    assert not declared


def test_small_sets_load_without_slow_imports(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    lines = (
        "import sys; from pathlib import Path; from rtbench.builtin.datasets import rtbench_datasets as sets",
        f"sets()['mnist'](Path({str(tmp_path)!r}), valid=10); sets()['digits']()",
        "print({'torchvision', 'sklearn', 'scipy'} & set(sys.modules))",
    )
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=100)
    assert (result.stdout, result.returncode) == ("set()\n", 0), result.stderr


# The real files


@pytest.mark.parametrize("name, kind, mean, sd", [("mnist", "MNIST", 0.1307, 0.3081), ("fashion-mnist", "FashionMNIST", 0.2860, 0.3530)])
def test_the_real_files_have_the_published_mean_and_spread(name: str, kind: str, mean: float, sd: float) -> None:
    if not (REAL / kind / "raw").is_dir():
        pytest.skip(f"RTBENCH_DATA names no folder with {kind}")
    data = SETS[name](REAL)
    assert [len(split) for split in data[:3]] == [50_000, 10_000, 10_000]
    train = torch.cat([data.train.x, data.valid.x])
    values = torch.bincount(train.view(-1).long(), minlength=256).double()
    levels = torch.arange(256).double() / 255
    average = (values * levels).sum() / values.sum()
    assert average.item() == pytest.approx(mean, abs=5e-5)
    assert ((values * (levels - average) ** 2).sum() / values.sum()).sqrt().item() == pytest.approx(sd, abs=5e-5)


def test_the_real_mnist_is_bit_exact() -> None:
    folder = REAL / "MNIST" / "raw"
    if not folder.is_dir():
        pytest.skip("RTBENCH_DATA names no folder with MNIST")
    assert md5(folder / "t10k-images-idx3-ubyte").startswith("2646ac64")
    data = SETS["mnist"](REAL)
    theirs = vision.torchvision().datasets.MNIST(str(REAL), train=True)
    assert torch.equal(theirs.data[:50_000], data.train.x[:, 0]) and torch.equal(theirs.targets[50_000:], data.valid.y)
