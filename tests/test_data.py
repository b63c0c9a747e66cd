"""Splits, streams, augmentation and the choice of samples."""

from __future__ import annotations

import random
import time
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rtbench.data.augment import pad_crop, pad_crop_flip, shift_flip
from rtbench.data.sampling import portion
from rtbench.data.splits import Data, Split, Stream, batches, carve, choose, data_digest, fraction, interleave, take
from rtbench.errors import UserError

few = settings(max_examples=40, deadline=None)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(n: int = 20, shape: tuple[int, int, int] = (3, 6, 5), classes: int = 4, **how: object) -> Split:
    rng = seeded(n)
    x = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=rng)
    return Split(x, torch.randint(0, classes, (n,), generator=rng), torch.arange(n) + 100, **how)  # type: ignore[arg-type]


def labelled(labels: list[int]) -> Split:
    return Split(torch.zeros(len(labels), 1, 1, 1), torch.tensor(labels, dtype=torch.int64), torch.arange(len(labels)))


def read_npy(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path))


def write_stream(split: Split, folder: Path, workers: int = 2) -> Stream:
    names = tuple(f"part/{i:04}.npy" for i in range(len(split)))
    (folder / "part").mkdir(parents=True)
    for name, image in zip(names, split.x, strict=True):
        np.save(folder / name, image.numpy())
    return Stream(folder, names, split.y, split.ids, split.shape, read_npy, split.augment, split.pad, workers)


@pytest.fixture(params=["split", "stream"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Split, Split | Stream]:
    """The same images as a Split, and once more as what is being tested."""
    split = make(augment="pad-crop-flip", pad=2)
    return split, split if request.param == "split" else write_stream(split, tmp_path)


# Reading


def test_every_byte_is_divided_by_255_and_rounded_once() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    got, _ = take(Split(x, torch.zeros(256, dtype=torch.int64), torch.arange(256)), torch.arange(256))
    expected = [np.float32(i) / np.float32(255) for i in range(256)]
    assert got.dtype == torch.float32
    assert got.flatten().tolist() == [float(value) for value in expected]
    assert torch.equal(got, x.float() / 255)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reads_the_same_floats_and_has_the_same_digest() -> None:
    split = make(300, augment="pad-crop-flip")
    there = split.to("cuda")
    positions = torch.randperm(300, generator=seeded())
    assert torch.equal(take(split, positions)[0], take(there, positions)[0].cpu())
    pairs = zip(batches(split, 64, positions, True, seeded(1)), batches(there, 64, positions, True, seeded(1)), strict=True)
    assert all(torch.equal(a[0], b[0].cpu()) for a, b in pairs)
    assert Split(there.x, there.y, there.ids).digest() == split.digest()


def test_take_gives_the_positions_asked_for_in_that_order(both: tuple[Split, Split | Stream]) -> None:
    split, tested = both
    positions = torch.tensor([7, 0, 7, 19])
    x, y = take(tested, positions)
    assert torch.equal(x, split.x[positions].float() / 255)
    assert torch.equal(y, split.y[positions])
    assert take(tested, torch.arange(0))[0].shape == (0, 3, 6, 5)


def test_floats_are_given_unchanged_and_as_a_copy() -> None:
    x = torch.rand(4, 1, 2, 2, generator=seeded())
    split = Split(x.clone(), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    got, _ = take(split, torch.arange(4))
    assert torch.equal(got, x)
    got.zero_()
    next(batches(split, 4))[0].zero_()
    assert torch.equal(split.x, x)


@pytest.mark.parametrize(
    "size, drop_last, sizes", [(6, False, [6, 6, 6, 2]), (6, True, [6, 6, 6]), (20, True, [20]), (50, True, []), (50, False, [20])]
)
def test_batches_follow_the_order(both: tuple[Split, Split | Stream], size: int, drop_last: bool, sizes: list[int]) -> None:
    split, tested = both
    order = torch.randperm(20, generator=seeded())
    got = list(batches(tested, size, order, drop_last=drop_last))
    assert [len(y) for _, y in got] == sizes
    x, y = take(split, order[: sum(sizes)])
    assert torch.equal(torch.cat([x[:0]] + [b[0] for b in got]), x)
    assert torch.equal(torch.cat([y[:0]] + [b[1] for b in got]), y)


def test_batches_without_an_order_are_in_order_and_of_an_empty_order_none(both: tuple[Split, Split | Stream]) -> None:
    split, tested = both
    assert torch.equal(torch.cat([x for x, _ in batches(tested, 7)]), take(split, torch.arange(20))[0])
    assert list(batches(tested, 7, torch.arange(0))) == []


def test_only_augment_augments_and_only_a_split_that_says_so(both: tuple[Split, Split | Stream]) -> None:
    split, tested = both
    plain = take(split, torch.arange(20))[0]
    assert not torch.equal(next(batches(tested, 20, augment=True, rng=seeded()))[0], plain)
    assert torch.equal(next(batches(tested, 20, augment=False, rng=seeded()))[0], plain)
    assert torch.equal(next(batches(make(), 20, augment=True))[0], plain)


def test_augmented_batches_depend_on_the_generator_alone(both: tuple[Split, Split | Stream]) -> None:
    split, tested = both
    a, b = (torch.cat([x for x, _ in batches(s, 6, augment=True, rng=seeded(5))]) for s in (split, tested))
    c = torch.cat([x for x, _ in batches(tested, 6, augment=True, rng=seeded(6))])
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_generator_is_never_ahead_of_the_batches(both: tuple[Split, Split | Stream]) -> None:
    split, tested = both
    rng, reference = seeded(), seeded()
    half = batches(tested, 4, augment=True, rng=rng)
    got = [next(half)[0], next(half)[0]]
    rest = batches(tested, 4, torch.arange(8, 20), augment=True, rng=rng)  # as after a kill: a fresh iterator, the restored generator
    whole = [x for x, _ in batches(split, 4, augment=True, rng=reference)]
    assert torch.equal(torch.cat(got + [x for x, _ in rest]), torch.cat(whole))
    before = rng.get_state()
    list(batches(tested, 4, rng=rng))
    assert torch.equal(rng.get_state(), before)


def test_mistakes_in_a_call_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="a batch of 0 samples"):
        batches(make(), 0)
    with pytest.raises(ValueError, match="needs a generator"):
        batches(make(augment="pad-crop-flip"), 4, augment=True)


@pytest.mark.parametrize(
    "x, y",
    [
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 1, 1), torch.zeros(2)),
        (torch.zeros(2, 1, 1, 1), torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_a_split_refuses_tensors_of_another_kind(x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError):
        Split(x, y, torch.arange(len(y)))


def test_subset_takes_ids_along(both: tuple[Split, Split | Stream]) -> None:
    split, tested = both
    part = tested.subset(torch.tensor([3, 1])).subset(torch.tensor([1, 0, 0]))
    assert part.ids.tolist() == [101, 103, 103]
    assert part.y.tolist() == split.y[[1, 3, 3]].tolist()
    assert torch.equal(take(part, torch.arange(3))[0], take(split, torch.tensor([1, 3, 3]))[0])
    assert (part.augment, part.pad, part.shape, len(part)) == ("pad-crop-flip", 2, (3, 6, 5), 3)


# Digests


def test_a_digest_is_over_dtype_shape_and_every_byte() -> None:
    split = make()
    digests = {split.digest()}
    for position in (0, 777, split.x.numel() - 1):
        x = split.x.clone()
        x.view(-1)[position] ^= 1
        digests.add(Split(x, split.y, split.ids).digest())
    y = split.y.clone()
    y[-1] += 1
    digests.add(Split(split.x, y, split.ids).digest())
    digests.add(Split(split.x.float(), split.y, split.ids).digest())
    digests.add(Split(split.x.view(20, 3, 5, 6), split.y, split.ids).digest())
    digests.add(split.subset(torch.arange(0)).digest())
    assert len(digests) == 8


def test_a_digest_does_not_depend_on_layout_device_or_use() -> None:
    split = make()
    strided = Split(split.x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), split.y, split.ids + 5, augment="pad-crop-flip")
    assert strided.digest() == split.digest()
    list(batches(split, 4))
    assert split.to("cpu").digest() == Split(split.x, split.y, split.ids).digest() == split.subset(torch.arange(20)).digest()
    assert split.to("meta").digest() == split.digest()  # known before the move, so the pixels need not come back


def test_a_digest_of_data_tells_the_splits_apart() -> None:
    a, b = make(10), make(11)
    variants = [(a, b, None, None), (b, a, None, None), (a, b, a, None), (a, b, None, a), (a, b, b, None)]
    assert len({data_digest(Data(*splits, a.shape, 4)) for splits in variants}) == 5
    assert data_digest(Data(a, b, None, None, a.shape, 4)) == data_digest(Data(make(10), make(11), None, None, a.shape, 4))


def test_data_moves_every_split_even_an_empty_one() -> None:
    empty = make().subset(torch.arange(0))
    moved = Data(make(), empty, make(), None, (3, 6, 5), 4).to("meta")
    assert [split.device.type for split in moved[:3] if split is not None] == ["meta"] * 3
    assert moved.extra is None


# Augmentation


def windows(image: np.ndarray, pad: int, top: int, left: int, flip: bool) -> np.ndarray:
    h, w = image.shape[1:]
    out = np.zeros_like(image)
    for i in range(h):
        for j in range(w):
            row, column = i + top - pad, (w - 1 - j if flip else j) + left - pad
            if 0 <= row < h and 0 <= column < w:
                out[:, i, j] = image[:, row, column]
    return out


@few
@given(st.data())
def test_shift_flip_is_what_a_loop_over_pixels_does(data: st.DataObject) -> None:
    n, c, h, w, pad = (data.draw(st.integers(1, high)) for high in (4, 3, 6, 6, 4))
    x = make(n, (c, h, w)).x
    corner = st.lists(st.integers(0, 2 * pad), min_size=n, max_size=n)
    top, left, flip = data.draw(corner), data.draw(corner), data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    got = shift_flip(x, pad, torch.tensor(top), torch.tensor(left), torch.tensor(flip))
    expected = np.stack([windows(image, pad, t, u, f) for image, t, u, f in zip(x.numpy(), top, left, flip, strict=True)])
    assert np.array_equal(got.numpy(), expected)


def test_no_shift_and_no_flip_is_the_identity() -> None:
    x = make().x
    middle = torch.full((20,), 4)
    assert torch.equal(shift_flip(x, 4, middle, middle, torch.zeros(20, dtype=torch.bool)), x)


@pytest.mark.parametrize(("augment", "mirrored"), [(pad_crop_flip, (False, True)), (pad_crop, (False,))])
def test_every_window_occurs_equally_often_and_half_are_mirrored_or_none(augment: Any, mirrored: tuple[bool, ...]) -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 3, 3)
    lookup = {windows(image.numpy(), 1, *how).tobytes(): how for how in product(range(3), range(3), mirrored)}
    changed = augment(image.expand(9000, 1, 3, 3), 1, seeded())
    counts: dict[tuple[int, int, bool], int] = {}
    for window in changed:
        found = lookup[window.numpy().tobytes()]  # KeyError: not a window of the padded image
        counts[found] = counts.get(found, 0) + 1
    assert len(counts) == len(lookup)
    assert all(abs(count - 9000 / len(lookup)) < 6 * 32 for count in counts.values())


@pytest.mark.parametrize("augment", ["pad-crop", "pad-crop-flip"])
def test_bytes_and_floats_are_augmented_alike(augment: str) -> None:
    split = make(augment=augment)
    floats = Split(split.x.float() / 255, split.y, split.ids, augment)
    for a, b in zip(batches(split, 8, augment=True, rng=seeded()), batches(floats, 8, augment=True, rng=seeded()), strict=True):
        assert torch.equal(a[0], b[0])


# Choosing samples


@few
@given(st.integers(2, 60), st.data())
def test_carve_holds_out_exactly_n(total: int, data: st.DataObject) -> None:
    n, seed = data.draw(st.integers(1, total - 1)), data.draw(st.integers(0, 9))
    rule: Any = data.draw(st.sampled_from(["first", "last", "random"]))
    split = make(total, (1, 1, 1))
    rest, held = carve(split, n, rule, seed)
    places = {"first": list(range(n)), "last": list(range(total - n, total))}
    ids = [i - 100 for i in held.ids.tolist()]
    assert ids == places.get(rule, sorted(ids))
    assert len(ids) == n
    assert rest.ids.tolist() == [i for i in split.ids.tolist() if i not in held.ids.tolist()]
    assert torch.equal(held.x, split.x[ids])
    assert torch.equal(held.y, split.y[ids])
    assert carve(split, n, rule, seed)[1].ids.tolist() == held.ids.tolist()


def test_carve_by_chance_depends_on_the_seed() -> None:
    split = make(500, (1, 1, 1))
    a, b = (set(carve(split, 100, "random", seed)[1].ids.tolist()) for seed in (0, 1))
    assert 5 < len(a & b) < 40  # 20 expected


@pytest.mark.parametrize("n", [0, 20, 21, -1])
def test_carve_leaves_something_on_either_side(n: int) -> None:
    with pytest.raises(UserError, match=f"cannot hold out {n} of 20 samples"):
        carve(make(), n, "last")


@few
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_fraction_keeps_exactly_the_floor(labels: list[int], data: st.DataObject) -> None:
    share = data.draw(st.fractions(Fraction(1, len(labels)), 1, max_denominator=1000))
    rule: Any = data.draw(st.sampled_from(["random", "first", "stratified"]))
    split = labelled(labels)
    kept = fraction(split, float(share), rule, 3)
    ids = kept.ids.tolist()
    assert len(ids) == int(share * len(labels))
    assert ids == sorted(set(ids))
    assert ids == fraction(split, float(share), rule, 3).ids.tolist()
    if rule == "first":
        assert ids == list(range(len(ids)))
    if rule == "stratified":
        for label in range(5):
            exact = Fraction(len(ids) * labels.count(label), len(labels))
            assert abs(kept.y.tolist().count(label) - exact) < 1


@pytest.mark.parametrize(
    "share, total, expected", [(0.29, 100, 29), (1 / 3, 9, 3), (0.1, 10, 1), (1.0, 7, 7), (0.999, 10, 9), (2 / 7, 70_000, 20_000)]
)
def test_a_share_is_the_fraction_it_was_written_as(share: float, total: int, expected: int) -> None:
    assert portion(share, total) == expected


@pytest.mark.parametrize("share", [0.01, 1.5, 0.0])
def test_a_share_of_nothing_or_of_more_than_all_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="take between 1 and 20"):
        fraction(make(), share, "random")


@few
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_choose_gives_n_ascending_positions(labels: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(labels)))
    rule: Any = data.draw(st.sampled_from(["first", "random", "stratified"]))
    chosen = choose(labelled(labels), n, rule, seeded(2)).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == n and chosen[0] >= 0 and chosen[-1] < len(labels)
    assert chosen == choose(labelled(labels), n, rule, seeded(2)).tolist()
    if rule == "stratified":
        assert all(abs(sum(labels[i] == c for i in chosen) - Fraction(n * labels.count(c), len(labels))) < 1 for c in range(5))


def test_choose_all_too_many_and_by_an_unknown_rule() -> None:
    assert choose(make(), None, "random", seeded()).tolist() == list(range(20))
    with pytest.raises(UserError, match="cannot choose 21 of 20 samples"):
        choose(make(), 21, "first", seeded())
    with pytest.raises(UserError, match='no rule "startified"; did you mean "stratified"'):
        choose(make(), 3, "startified", seeded())  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["random", "stratified"])
def test_chance_reaches_every_sample(rule: Any) -> None:
    split, rng = labelled([0] * 12 + [1] * 8), seeded()
    counts = torch.zeros(20)
    for _ in range(600):
        counts[choose(split, 5, rule, rng)] += 1
    assert ((counts - 150).abs() < 6 * 150**0.5).all()


@few
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80))
def test_interleaving_spreads_every_class(labels: list[int]) -> None:
    order = interleave(torch.tensor(sorted(labels))).tolist()
    assert sorted(order) == list(range(len(labels)))
    mixed = [sorted(labels)[i] for i in order]
    for end in range(len(labels) + 1):
        for label in range(4):
            expected = end * labels.count(label) / len(labels)
            assert abs(mixed[:end].count(label) - expected) <= 2.5
    assert all(order.index(i) < order.index(i + 1) for i in range(len(labels) - 1) if sorted(labels)[i] == sorted(labels)[i + 1])


def test_interleaved_classes_of_equal_size_take_turns() -> None:
    assert interleave(torch.tensor([0, 0, 0, 1, 1, 1])).tolist() == [0, 3, 1, 4, 2, 5]


# Streams


def test_a_stream_keeps_order_when_later_images_are_decoded_first(tmp_path: Path) -> None:
    split = make(24)
    chance = random.Random(0)

    def slow(path: Path) -> Tensor:
        time.sleep(chance.random() / 200)
        return read_npy(path)

    stream = write_stream(split, tmp_path)
    stream = Stream(tmp_path, stream.names, stream.y, stream.ids, stream.shape, slow, workers=8)
    assert torch.equal(torch.cat([x for x, _ in batches(stream, 5)]), take(split, torch.arange(24))[0])


def test_a_stream_decodes_the_next_batches_meanwhile(tmp_path: Path) -> None:
    stream, seen = write_stream(make(40), tmp_path), set[str]()

    def watched(path: Path) -> Tensor:
        seen.add(path.name)
        return read_npy(path)

    stream = Stream(tmp_path, stream.names, stream.y, stream.ids, stream.shape, watched, workers=1)
    iterator = batches(stream, 4)
    next(iterator)
    deadline = time.monotonic() + 5
    while len(seen) < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen == {f"{i:04}.npy" for i in range(12)}  # the batch in use and two ahead, no more


def test_an_abandoned_stream_stops_decoding(tmp_path: Path) -> None:
    stream, seen = write_stream(make(40), tmp_path), set[str]()

    def slow(path: Path) -> Tensor:
        time.sleep(0.02)
        seen.add(path.name)
        return read_npy(path)

    iterator = batches(Stream(tmp_path, stream.names, stream.y, stream.ids, stream.shape, slow, workers=1), 8)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    after = len(seen)
    assert 8 <= after < 24
    time.sleep(0.1)
    assert len(seen) == after


def test_a_stream_digest_is_over_names_sizes_and_labels(tmp_path: Path) -> None:
    split = make()
    a, b = write_stream(split, tmp_path / "a"), write_stream(split, tmp_path / "b")
    assert a.digest() == b.digest() == b.to("cpu").digest()
    digests = {a.digest(), b.subset(torch.arange(19)).digest(), b.subset(torch.arange(20).flip(0)).digest()}
    digests.add(Stream(b.folder, b.names, b.y + 1, b.ids, b.shape, b.decode).digest())
    digests.add(Stream(b.folder, b.names, b.y, b.ids, (3, 5, 6), b.decode).digest())
    (b.folder / b.names[0]).write_bytes((b.folder / b.names[0]).read_bytes() + b"\0")
    digests.add(Stream(b.folder, b.names, b.y, b.ids, b.shape, b.decode).digest())
    assert len(digests) == 6


def test_a_stream_names_the_file_that_is_gone_or_of_another_shape(tmp_path: Path) -> None:
    stream = write_stream(make(), tmp_path)
    np.save(tmp_path / stream.names[3], np.zeros((3, 9, 9), dtype=np.uint8))
    with pytest.raises(UserError, match=r"0003\.npy was decoded to torch\.uint8 \(3, 9, 9\) instead of uint8 \(3, 6, 5\)"):
        list(batches(stream, 4))
    (tmp_path / stream.names[5]).unlink()
    with pytest.raises(UserError, match=r"0005\.npy is gone"):
        take(stream, torch.tensor([5]))
