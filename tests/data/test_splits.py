"""The split: stratified, the same everywhere, hashed; what is said of small and uneven sets."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.data.splits import (CIFAR10_STATISTICS, CLASSES, Split, Splits, as_split,
                                channel_statistics, class_weights, divide)
from common.errors import InputError

THREE = ("ant", "bee", "cow")


def pool(*sizes: int) -> Split:
    """One-pixel images of classes of these sizes; each pixel is the image's place."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images = np.repeat(np.arange(len(labels)).astype(np.uint8), 3).reshape(-1, 3, 1, 1)
    return as_split(images, labels)


def split_of(labels: np.ndarray, classes: tuple[str, ...] = CLASSES, **sizes: int | None) -> Splits:
    """The split of one-pixel images whose value tells their place, modulo 256."""
    images = np.repeat((np.arange(len(labels)) % 256).astype(np.uint8), 3).reshape(-1, 3, 1, 1)
    whole = as_split(images, labels.astype(np.int64))
    return divide({"train": whole, "test": whole.take(slice(10))}, classes, "test", **sizes)


def fifty_thousand() -> np.ndarray:
    """5,000 labels of each of ten classes in an order that no generator decides."""
    i = np.arange(50_000)
    return (7 * i + i // 10) % 10


def test_a_tenth_is_held_out_stratified_disjoint_and_complete() -> None:
    labels = fifty_thousand()
    splits = split_of(labels)
    assert torch.bincount(splits.val.labels).tolist() == [500] * 10
    assert torch.bincount(splits.train.labels).tolist() == [4500] * 10
    assert sorted([*splits.train.index.tolist(), *splits.val.index.tolist()]) == list(range(50_000))
    for split in (splits.train, splits.val):
        assert np.array_equal(split.labels, labels[split.index])
        assert torch.equal(split.images[:, 0, 0, 0], split.index % 256)
    middle = splits.val.index.float().mean()
    assert middle == pytest.approx(25_000, rel=0.05), "not spread over the source"


def test_the_split_is_the_same_everywhere() -> None:
    splits = split_of(fifty_thousand())
    assert splits.split_hash == "19e85c48ec6b7931"
    assert split_of(fifty_thousand(), train_limit=1000).split_hash == "7d29f168e577429f"
    assert splits.val.index[:8].tolist() == [2, 13, 29, 30, 31, 46, 49, 63]


def test_the_hash_tells_splits_apart() -> None:
    labels = np.arange(200) % 10
    swapped = labels.copy()
    swapped[[0, 1]] = labels[[1, 0]]
    names = (*CLASSES[:9], "lorry")
    others = [split_of(labels, val_size=30), split_of(labels, train_limit=50), split_of(swapped),
              split_of(labels[:190]), split_of(labels, names)]
    assert len({splits.split_hash for splits in (split_of(labels), *others)}) == 6


@pytest.mark.parametrize("limit", [10, 1234, 45_000])
def test_a_limit_takes_a_balanced_part_of_train_and_leaves_val_alone(limit: int) -> None:
    whole, part = split_of(fifty_thousand()), split_of(fifty_thousand(), train_limit=limit)
    assert torch.equal(whole.val.index, part.val.index) and len(part.test) == len(whole.test)
    larger = split_of(fifty_thousand(), train_limit=min(45_000, 2 * limit))
    kept = set(part.train.index.tolist())
    assert len(part.train) == limit and kept <= set(whole.train.index.tolist())
    assert kept <= set(larger.train.index.tolist()), "a larger limit does not hold a smaller one"
    counts = torch.bincount(part.train.labels, minlength=10)
    assert counts.max() - counts.min() <= 1 and counts.min() >= 1


@pytest.mark.parametrize("seed", range(30))
def test_any_labels_split_in_proportion_with_every_class_on_both_sides(seed: int) -> None:
    rng = np.random.RandomState(seed)
    k = rng.randint(2, 15)
    sizes = np.maximum(2, (rng.pareto(0.7, k) * 5).clip(max=5000).astype(int))
    labels = rng.permutation(np.repeat(np.arange(k), sizes))
    val_size = int(rng.choice([k, rng.randint(k, len(labels) - k + 1), len(labels) - k]))
    splits = split_of(labels, tuple(map(str, range(k))), val_size=val_size)
    val, train = (np.bincount(part.labels, minlength=k) for part in (splits.val, splits.train))
    assert len(splits.val) == val_size and np.array_equal(val + train, sizes)
    assert min(val.min(), train.min()) >= 1
    exact = sizes * val_size / len(labels)
    if ((exact >= 1) & (exact <= sizes - 1)).all():
        assert np.abs(val - exact).max() < 1


@pytest.mark.parametrize(("sizes", "total", "held"), [
    ((50, 30, 20), 13, [6, 4, 3]),      # shares 6.5, 3.9, 2.6: the two left over go to 3.9 and 2.6
    ((10, 10, 10), 4, [2, 1, 1]),       # a tie goes to the first
    ((97, 2, 2), 3, [1, 1, 1]),         # the large class gives up what the small ones need
    ((97, 2, 2), 98, [96, 1, 1]),       # and every class keeps one
])
def test_held_out_counts_by_largest_remainder(sizes: tuple[int, ...], total: int,
                                              held: list[int]) -> None:
    splits = split_of(np.repeat(np.arange(3), sizes), ("ant", "bee", "cow"), val_size=total)
    assert torch.bincount(splits.val.labels).tolist() == held


@pytest.mark.parametrize(("sizes", "flag", "most"), [
    ({"val_size": 9}, "--val-size 9", 190), ({"val_size": 191}, "--val-size 191", 190),
    ({"train_limit": 9}, "--train-limit 9", 180), ({"train_limit": 181}, "--train-limit 181", 180),
    ({"val_size": 100, "train_limit": 101}, "--train-limit 101", 100)])
def test_a_size_that_the_data_cannot_give_is_named(sizes: dict[str, int], flag: str,
                                                   most: int) -> None:
    with pytest.raises(InputError, match=f"{flag} must lie between 10 .one a class. and {most}"):
        split_of(np.arange(200) % 10, **sizes)


def test_what_the_source_does_not_hold_apart_is_cut_from_train_class_by_class() -> None:
    flat = divide({"train": pool(100, 50, 10)}, THREE, "flat")
    for split, share in ((flat.test, 0.2), (flat.val, 0.1), (flat.train, 0.7)):
        assert torch.bincount(split.labels).tolist() == [100 * share, 50 * share, 10 * share]
        assert torch.equal(split.images[:, 0, 0, 0], split.index), "images and places do not agree"
        assert split.names == tuple(map(str, split.index.tolist()))
    index = torch.cat([flat.train.index, flat.val.index, flat.test.index])
    assert torch.equal(index.sort().values, torch.arange(160))
    assert flat.notes[0].startswith("split here, class by class, the same in every run: "
                                    f"{len(flat.test):,} test images")
    assert flat.split_hash == "4998c67ba260a812"


def test_a_val_folder_is_val_and_none_is_cut_from_train() -> None:
    val = pool(4, 4, 4)
    two = {"train": pool(20, 20, 20), "val": val}
    splits = divide(two, THREE, "train and val")
    assert splits.val is val and [len(splits.train), len(splits.test)] == [48, 12]
    whole = divide({**two, "test": val}, THREE, "all three", train_limit=6)
    assert torch.bincount(whole.train.labels).tolist() == [2, 2, 2] and whole.val is val
    assert not any("split here" in note for note in whole.notes)
    with pytest.raises(InputError, match="--val-size 5 has no effect: the data has a val folder"):
        divide(two, THREE, "", val_size=5)


@pytest.mark.parametrize("sizes", [(50, 1, 50), (50, 50, 2), (2, 2, 2)])
@pytest.mark.parametrize("val_size", [None, 3])
def test_a_class_too_small_to_cut_is_named(sizes: tuple[int, ...], val_size: int | None) -> None:
    name = THREE[sizes.index(min(sizes))]
    with pytest.raises(InputError, match=f"^{name} has too few images"):
        divide({"train": pool(*sizes)}, THREE, "flat", val_size)


def test_images_that_are_in_two_parts_are_counted() -> None:
    train, test = pool(100, 100), pool(3, 2)  # the first five images are those of train
    whole = divide({"train": train, "test": test}, THREE[:2], "")
    assert whole.notes == ("test images that are in train or val, too, pixel for pixel: 5 of 5; "
                           "that part of the test tells nothing",)
    images = test.images.clone()
    images[1:] += 210
    part = divide({"train": train, "test": replace(test, images=images)}, THREE[:2], "")
    assert "pixel for pixel: 1 of 5;" in part.notes[0]


def test_cifar_10_is_known_by_its_pixels() -> None:
    """Images of its number, size and statistics; a step away in any of these they are others."""
    mean, std = np.array(CIFAR10_STATISTICS)[:, :, None, None] * 255
    signs = np.where(np.indices((32, 32)).sum(0) % 2, 1, -1)
    # Rounded at random, or the mean would be a third of a step off.
    tile = (mean + std * signs + np.random.RandomState(0).rand(32, 32)).astype(np.uint8)

    def made(tile: np.ndarray, n: int = 50_000, tested: int = 10_000,
             names: tuple[str, ...] = CLASSES) -> Splits:
        images, labels = np.broadcast_to(tile, (n, *tile.shape)).copy(), np.arange(n) % 10
        whole = as_split(images, labels)
        return divide({"train": whole, "test": whole.take(slice(tested))}, names, "a folder",
                      train_limit=100, val_size=20)

    known = made(tile)
    assert known.is_cifar10 and known.source == "CIFAR-10, a folder"
    for other in (made(tile + 1), made(tile, n=49_990), made(tile, tested=9_990),
                  made(tile, names=(*CLASSES[:9], "lorry"))):
        assert not other.is_cifar10 and other.source == "a folder"


def test_small_and_uneven_sets_are_said_in_sentences() -> None:
    test = as_split(np.full((4, 3, 1, 1), 255, np.uint8), np.array([0, 0, 1, 1]))
    small = divide({"train": pool(10, 9), "test": test}, THREE[:2], "")
    assert small.notes == ("val has only 2 images, each 50 % of its accuracy: small differences "
                           "mean nothing",)
    uneven = divide({"train": pool(200, 19), "test": test}, THREE[:2], "")
    assert uneven.notes == ("bee has 17 training images, ant 181: --class-weights gives both the "
                            "same say",)
    even = divide({"train": pool(150, 100), "test": test}, THREE[:2], "")
    assert even.notes == ()


def test_class_weights_are_inverse_to_the_classes_and_one_in_the_mean() -> None:
    labels = pool(60, 30, 10).labels
    weights = class_weights(labels, 3)
    assert weights.dtype is torch.float32 and weights[labels].mean().item() == pytest.approx(1)
    assert (weights / weights[0]).tolist() == pytest.approx([1, 2, 6])


def test_the_identity_is_that_of_pixels_labels_and_names_in_every_split() -> None:
    sizes = {"train": pool(30, 30, 30), "val": pool(4, 4, 4), "test": pool(5, 5, 5)}
    whole = divide(sizes, THREE, "")
    seen = {whole.identity}
    for part, split in sizes.items():
        images = split.images.clone()
        images[-1, 2, 0, 0] += 1
        changed = divide({**sizes, part: replace(split, images=images)}, THREE, "")
        assert changed.split_hash == whole.split_hash, "old checkpoints know the split by it"
        seen.add(changed.identity)
        labels = split.labels.clone()
        labels[0] = 1
        seen.add(divide({**sizes, part: replace(split, labels=labels)}, THREE, "").identity)
    seen.add(divide(sizes, ("ant", "bee", "cat"), "").identity)
    assert len(seen) == 8 and divide(sizes, THREE, "elsewhere").identity == whole.identity


def test_statistics_are_numpys_in_float64_and_of_train_alone(splits: Splits) -> None:
    pixels = splits.train.images.numpy().astype(np.float64) / 255
    assert splits.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-6)
    assert splits.std == pytest.approx(pixels.std((0, 2, 3)), abs=1e-6)
    _, std = channel_statistics(torch.full((8, 3, 1, 1), 255, dtype=torch.uint8))
    assert std == [1, 1, 1], "a constant channel is divided by 1"
