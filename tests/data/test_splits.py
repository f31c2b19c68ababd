"""The split of a folder, end to end: an image that was trained on never becomes a test image.

Small folders are written, split by `load_dataset` or `split_by_hash`, changed in the ways in which people
change them, and split again. The files differ from seed to seed, and also between versions of Pillow and
zlib, so each statement holds for any hashes: where a class was moved by force, the exception is counted.
"""
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_nb.core import DatasetError
from cifar_nb.datasets import (
    content_key,
    count_trained,
    hash_positions,
    image_keys,
    split_by_hash,
    training_keys,
)
from cifar_nb.folders import load_dataset
from cifar_nb.images import synthetic

SEEDS = range(6)


def write(path, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = rng.integers(6, 14, 2)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)


@pytest.fixture(params=SEEDS)
def rng(request): return np.random.default_rng(request.param)


@pytest.fixture
def zoo(tmp_path, rng):
    "Three classes of 10 to 30 images, so that a class on one side only is rare, but happens."
    root = tmp_path / "zoo"
    for kind in ("ant", "bee", "cow"):
        for i in range(rng.integers(10, 31)): write(root / kind / f"{i}.png", rng)
    return root


def keys(images): return set(image_keys(images).tolist())


def sides(root, size=32):
    "Keys of the training and of the test images."
    data = load_dataset(str(root), size)
    train, test = keys(data.train), keys(data.test)
    assert not train & test
    for images in (data.train, data.test):
        assert set(images.labels.tolist()) == set(range(len(images.classes)))
    return train, test


def forced(root):
    "Classes whose images were all on one side of the threshold by themselves, so that one had to move."
    data = load_dataset(str(root))
    found = set()
    for label, name in enumerate(data.train.classes):
        mine = [image_keys(part)[part.labels == label] for part in (data.train, data.test)]
        below = hash_positions(torch.cat(mine), "test") < .2
        if below.all() or not below.any(): found.add(name)
    return found


def files(root): return sorted(root.rglob("*.png"))


def test_the_size_does_not_matter(zoo):
    assert sides(zoo, 32) == sides(zoo, 64) == sides(zoo, 8)


def test_the_order_of_the_listing_does_not_matter(zoo, rng):
    before = sides(zoo)
    images = load_dataset(str(zoo)).train
    names = [f"{n:04}.png" for n in rng.permutation(1000)]
    for path, name in zip(files(zoo), names, strict=False): path.rename(path.with_name("new " + name))
    assert sides(zoo) == before
    order = torch.from_numpy(rng.permutation(len(images)))
    held = [keys(split_by_hash(part, .2, salt="validation")[1]) for part in (images, images[order])]
    assert held[0] == held[1]


def test_deeper_folders_and_another_place_do_not_matter(zoo, tmp_path):
    before = sides(zoo)
    for path in files(zoo)[::3]:
        (path.parent / "new" / "ones").mkdir(parents=True, exist_ok=True)
        path.rename(path.parent / "new" / "ones" / path.name)
    shutil.move(zoo, tmp_path / "elsewhere")
    assert sides(tmp_path / "elsewhere") == before


def test_growth_moves_no_training_image_into_the_test_set(zoo, rng):
    for _ in range(4):
        train, test = sides(zoo)
        moved_by_force = forced(zoo)
        for kind in ("ant", "bee", "cow"):
            for _ in range(rng.integers(0, 12)): write(zoo / kind / f"{rng.integers(10**12)}.png", rng)
        train_after, test_after = sides(zoo)
        assert not train & test_after
        # The other direction is harmless, and only an image that was moved by force may go back
        assert len(test - test_after) <= len(moved_by_force)


def test_a_new_class_changes_nothing_in_the_others(zoo, rng):
    train, test = sides(zoo)
    for i in range(12): write(zoo / "aardvark" / f"{i}.png", rng)  # the labels of all others change
    train_after, test_after = sides(zoo)
    assert train < train_after and test < test_after


def test_images_moved_to_another_class_stay_on_their_side(zoo, rng):
    train, test = sides(zoo)
    before = forced(zoo)
    for path in rng.permutation(files(zoo / "ant"))[:5]: path.rename(zoo / "bee" / f"moved {path.name}")
    train_after, test_after = sides(zoo)
    assert len(train & test_after) + len(test & train_after) <= len(before) + len(forced(zoo))


def test_two_classes_merged_stay_on_their_sides(zoo):
    train, test = sides(zoo)
    before = forced(zoo)
    for path in files(zoo / "ant"): path.rename(zoo / "bee" / f"ant {path.name}")
    (zoo / "ant").rmdir()
    train_after, test_after = sides(zoo)
    assert train_after | test_after == train | test
    assert not train & test_after
    assert len(test & train_after) <= len(before)


def test_a_removed_file_changes_no_other(zoo, rng):
    train, test = sides(zoo)
    moved_by_force = forced(zoo)
    for path in rng.permutation(files(zoo))[:3]: path.unlink()
    train_after, test_after = sides(zoo)
    changed = (train & test_after) | (test & train_after)
    assert len(changed) <= len(moved_by_force) + len(forced(zoo))


def test_when_the_last_test_image_of_a_class_goes_the_change_can_be_counted(zoo):
    "The one case in which the rule must move an image that was trained on. `count_trained` sees it."
    data = load_dataset(str(zoo))
    known, label = training_keys(data.train), data.test.classes.index("cow")
    assert count_trained(data.test, known) == 0 and count_trained(data.train, known) == len(data.train)
    gone = set(image_keys(data.test)[data.test.labels == label].tolist())
    for path in files(zoo / "cow"):
        if content_key(path.read_bytes()) in gone: path.unlink()
    assert count_trained(load_dataset(str(zoo)).test, known) == 1


def test_copies_stay_on_one_side(zoo, rng):
    "Within a class and across classes; `sides` asserts that no key is on both."
    before, moved_by_force = sides(zoo), forced(zoo)
    for path in rng.permutation(files(zoo))[:12]:
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
        shutil.copy(path, zoo / rng.choice(["ant", "bee", "cow"]) / f"other {path.parent.name} {path.name}")
    after = sides(zoo)
    assert after[0] | after[1] == before[0] | before[1]
    assert len(before[0] & after[1]) <= len(moved_by_force) + len(forced(zoo))


def test_copies_stay_on_one_side_of_validation(zoo, rng):
    for path in rng.permutation(files(zoo))[:12]: shutil.copy(path, path.with_name(f"copy of {path.name}"))
    train, valid = split_by_hash(load_dataset(str(zoo)).train, .2, salt="validation")
    assert not keys(train) & keys(valid) and len(train) and len(valid)


def test_validation_is_another_draw_than_the_test(zoo, rng):
    "With one salt for both, every training image would be above the threshold, and none could be held out."
    for i in range(60): write(zoo / "ant" / f"more {i}.png", rng)
    train, valid = split_by_hash(load_dataset(str(zoo)).train, .2, salt="validation")
    share = len(valid) / (len(train) + len(valid))
    assert .04 < share < .4


def test_a_larger_validation_set_contains_the_smaller_one(rng):
    images = synthetic(seed=int(rng.integers(100)))[:1000]
    held = [keys(split_by_hash(images, fraction, salt="validation")[1]) for fraction in (.1, .2, .5)]
    assert held[0] < held[1] < held[2]
    assert [len(h) for h in held] == pytest.approx([100, 200, 500], abs=60)


@pytest.mark.parametrize("n", range(1, 8))
def test_tiny_classes_are_on_both_sides_or_an_error_names_them(tmp_path, rng, n):
    for i in range(n): write(tmp_path / "few" / f"{i}.png", rng)
    for i in range(9): write(tmp_path / "many" / f"{i}.png", rng)
    if n > 1:
        train, test = sides(tmp_path)
        assert len(train) + len(test) == n + 9
        return
    with pytest.raises(DatasetError, match="class 'few' has 1 different image: too few to hold out 20%"):
        _ = load_dataset(str(tmp_path)).train


def test_ten_copies_of_one_image_are_one_image(tmp_path, rng):
    for i in range(9): write(tmp_path / "many" / f"{i}.png", rng)
    write(tmp_path / "few" / "0.png", rng)
    for i in range(1, 10): shutil.copy(tmp_path / "few" / "0.png", tmp_path / "few" / f"{i}.png")
    for part in ("train", "test"):
        with pytest.raises(DatasetError, match="class 'few' has 1 different image"):
            _ = getattr(load_dataset(str(tmp_path)), part)


def test_tiny_classes_with_shared_images(tmp_path, rng):
    "The hardest folders: two to four images per class, a few of them in several classes."
    kinds = [f"kind {i}" for i in range(5)]
    for kind in kinds:
        for i in range(rng.integers(2, 5)): write(tmp_path / kind / f"{i}.png", rng)
    for path in rng.permutation(files(tmp_path))[:3]:
        shutil.copy(path, tmp_path / rng.choice(kinds) / f"shared {path.parent.name} {path.name}")
    sides(tmp_path)


def test_validation_folders_stay_out_of_both(zoo, tmp_path, rng):
    root = tmp_path / "parts"
    shutil.move(zoo, root / "train")
    for kind in ("ant", "bee", "cow"):
        for i in range(3): write(root / "val" / kind / f"{i}.png", rng)
    train, test = sides(root)
    assert not keys(load_dataset(str(root)).valid) & (train | test)
    shutil.rmtree(root / "val")
    assert sides(root / "train") == (train, test)  # and the split does not depend on them
