"Common layouts of data sets: parts are never taken for classes in silence, and what an error shows works."
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from cifar_nb.core import DatasetError, DatasetUnavailable, Settings
from cifar_nb.datasets import split_by_hash
from cifar_nb.experiment import dataset_name
from cifar_nb.folders import FolderParts, load_dataset
from cifar_nb.layout import find_parts

BOTH = ("cat", "dog")


@pytest.fixture
def write():
    rng = np.random.default_rng(0)

    def one(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(path)
    return one


def build(root, write, folders, n=6):
    for folder in folders:
        for i in range(n): write(root / folder / f"{i}.png")


def inside(*parts, classes=BOTH):
    "Class folders inside each part; `a/b` nests."
    return [f"{part}/{name}" for part in parts for name in classes]


def commands(error):
    return [shlex.split(text)[-1] for text in re.findall(r"`(cifar-nb train --data [^`]+)`", str(error))]


READ = {  # Layouts that are read without asking
    "classes": (BOTH, dict(classes=[""])),
    "train, test": (inside("train", "test"), dict(train=["train"], test=["test"])),
    "train, val, test": (inside("train", "val", "test"), dict(train=["train"], valid=["val"], test=["test"])),
    "train, valid, test": (inside("train", "valid", "test"),
                           dict(train=["train"], valid=["valid"], test=["test"])),
    "train, validation, test": (inside("train", "validation", "test"),
                                dict(train=["train"], valid=["validation"], test=["test"])),
    "train, validate, test": (inside("train", "validate", "test"),
                              dict(train=["train"], valid=["validate"], test=["test"])),
    "train, dev, test": (inside("train", "dev", "test"),
                         dict(train=["train"], valid=["dev"], test=["test"])),
    "train, val": (inside("train", "val"), dict(train=["train"], valid=["val"])),
    "Training, Testing": (inside("Training", "Testing"), dict(train=["Training"], test=["Testing"])),
    "train alone": (inside("train"), dict(train=["train"])),
    "train in train": (inside("train/train", "test/test"),
                       dict(train=["train/train"], test=["test/test"])),
    "train, test, pred": ([*inside("train", "test"), "pred"],
                          dict(train=["train"], test=["test"])),
    "train, test, unlabeled": ([*inside("train", "test"), "unlabeled"],
                               dict(train=["train"], test=["test"])),
    "subfolders": (["cat/old", "dog/old", "dog/new"], dict(classes=[""])),
    "train as a class": (["bus", "train"], dict(classes=[""])),
    "words for parts in names": (["test_tube", "train_station"], dict(classes=[""])),
    "kinds of trains": (["freight_train", "passenger_train"], dict(classes=[""])),
    "masks on faces": (["mask", "no_mask"], dict(classes=[""])),
    "numbers": (["1", "2", "10"], dict(classes=[""])),
}

ASK = {  # Layouts that are not; and the parts that the first command names
    "training_set": (inside("training_set", "test_set"), dict(train=1, test=1)),
    "training_set nested": (inside("training_set/training_set", "test_set/test_set"), dict(train=1, test=1)),
    "training_set with a prediction": ([*inside("training_set", "test_set"), "single_prediction"],
                                       dict(train=1, test=1)),
    "seg": ([*inside("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred"],
            dict(train=1, test=1)),
    "train_set": (inside("train_set", "test_set"), dict(train=1, test=1)),
    "train_data": (inside("train_data", "test_data"), dict(train=1, test=1)),
    "train_images": (inside("train_images", "test_images"), dict(train=1, test=1)),
    "train_images flat": (["train_images", "test_images"], dict(train=1, test=1)),
    "Train_Data": (inside("Train_Data", "Valid_Data"), dict(train=1, valid=1)),
    "TrainData": (inside("TrainData", "ValData", "TestData"), dict(train=1, valid=1, test=1)),
    "trainset": (inside("trainset", "testset"), dict(train=1, test=1)),
    "train1": (inside("train1", "train2"), dict(train=2)),
    "train2017": (inside("train2017", "val2017"), dict(train=1, valid=1)),
    "train2017 flat": (["train2017", "val2017"], dict(train=1, valid=1)),
    "folds": (inside("fold1", "fold2", "fold3"), dict(train=2, test=1)),
    "folds flat": (["fold1", "fold2", "fold3"], dict(train=2, test=1)),
    "images and masks": (["images", "masks"], dict(train=1)),
    "train, holdout": (inside("train", "holdout"), dict(train=1, test=1)),
    "train, test, extra": (inside("train", "test", "extra"), dict(train=1, test=1)),
    "two sites": (inside("Berlin", "Paris"), dict(train=2)),
    "two sites, one class missing": ([*inside("Berlin", "Paris"), "Rome/cat"], dict(train=3)),
}


@pytest.mark.parametrize("case", READ)
def test_a_clear_layout_is_read(tmp_path, write, case):
    folders, parts = READ[case]
    build(tmp_path, write, folders)
    found = {part: [str(path.relative_to(tmp_path)) for path in paths]
             for part, paths in find_parts(str(tmp_path)).items()}
    assert found == {part: [path or "." for path in paths] for part, paths in parts.items()}
    assert len(load_dataset(str(tmp_path), 8).train.classes) == 2 + (case == "numbers")


@pytest.mark.parametrize("case", ASK)
def test_an_unclear_layout_is_an_error_whose_commands_work(tmp_path, write, case):
    folders, parts = ASK[case]
    build(tmp_path / "my pets", write, folders)
    with pytest.raises(DatasetError, match="look like parts of one data set") as error:
        load_dataset(str(tmp_path / "my pets"), 8)
    assert "\n" not in str(error.value)
    as_parts, as_classes = commands(error.value)
    assert {part: len(paths) for part, paths in find_parts(as_parts).items()} == parts
    if all("/" in folder for folder in folders if "pred" not in folder):
        data = load_dataset(as_parts, 8)
        assert data.train.classes == BOTH and len(data.test)
    top = {folder.partition("/")[0] for folder in folders}
    assert set(load_dataset(as_classes, 8).train.classes) == top


def test_one_part_inside_of_each_folder_is_named(tmp_path, write):
    build(tmp_path, write, inside("set_a/train", "set_b/train"))
    with pytest.raises(DatasetError, match="set_a, set_b contain train"): load_dataset(str(tmp_path))


def test_parts_inside_of_classes_are_named(tmp_path, write):
    build(tmp_path, write, inside("cat", "dog", classes=("train", "test")))
    said = r"cat, dog contain test, train, .* outer folders \(test/cat\)"
    with pytest.raises(DatasetError, match=said) as error: load_dataset(str(tmp_path))
    assert load_dataset(*commands(error.value), 8).train.classes == BOTH


@pytest.mark.parametrize("flat", ["test", "val"])
def test_a_part_without_classes_is_an_error_whose_command_works(tmp_path, write, flat):
    build(tmp_path, write, [*inside("train"), flat])
    data = load_dataset(str(tmp_path), 8)
    with pytest.raises(DatasetError, match=f"{flat} has no class folders") as error: _ = data.valid, data.test
    again = load_dataset(*commands(error.value), 8)
    assert again.valid is None and len(again.test) and again.train.classes == BOTH


def test_validation_is_never_the_test_set(tmp_path, write):
    build(tmp_path, write, inside("a", "b"), n=20)
    data = load_dataset(f"train={tmp_path}/a,val={tmp_path}/b", 8)
    sets = [set(images.file_keys.tolist()) for images in (data.train, data.valid, data.test)]
    assert [len(keys) > 3 for keys in sets] == [True] * 3
    assert len(set.union(*sets)) == sum(map(len, sets)) == 80


def test_folders_of_a_part_are_put_together(tmp_path, write):
    build(tmp_path, write, ["a/cat", "b/cat", "b/dog", "c/dog"])
    data = load_dataset(f"train={tmp_path}/a,train={tmp_path}/b,test={tmp_path}/c", 8)
    assert data.train.labels.bincount().tolist() == [12, 6] and data.test.labels.bincount().tolist() == [0, 6]


@pytest.mark.parametrize("name, said", [
    ("valid={root}/a", "use train=DIR with"),
    ("train={root}/a,classes={root}/a", "use train=DIR with"),
    ("train=", "there is no folder ''"),
    ("train={root}/a,test={root}/nowhere", "there is no folder .*nowhere' for test"),
])
def test_a_wrong_name_says_so(tmp_path, write, name, said):
    build(tmp_path, write, inside("a"))
    with pytest.raises(DatasetError, match=said): load_dataset(name.format(root=tmp_path))


def test_a_card_does_not_hold_the_place(tmp_path):
    name = dataset_name(f"train={tmp_path}/pets/training,set,test={tmp_path}/pets/x")
    assert name == "train=training,set,test=x"


def test_a_class_may_be_absent_from_a_part(tmp_path, write, caplog):
    build(tmp_path, write, ["train/ant", "train/bee", "train/cow", "val/bee", "val/ant", "test/cow"])
    (tmp_path / "test" / "bee").mkdir()
    data = load_dataset(str(tmp_path), 8)
    assert data.test.classes == data.valid.classes == data.train.classes == ("ant", "bee", "cow")
    assert set(data.test.labels.tolist()) == {2} and set(data.valid.labels.tolist()) == {0, 1}
    assert any("the test part has no images of ant, bee" in line for line in caplog.messages)
    assert any("the valid part has no images of cow" in line for line in caplog.messages)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_that_training_does_not_have_is_named(tmp_path, write, part):
    build(tmp_path, write, [*inside("train", part), f"{part}/emu"])
    data = load_dataset(str(tmp_path), 8)
    with pytest.raises(DatasetError, match=f"{part}/emu: the training images have no class 'emu'"):
        _ = data.valid, data.test


@pytest.mark.parametrize("one, other", [
    ("caf\u00e9", "cafe\u0301"), ("cat", "Cat"), ("cat", "cat "), ("cat", "\u0441at"), ("fish", "\ufb01sh")])
def test_names_that_look_alike(tmp_path, write, one, other):
    build(tmp_path / "pets", write, [one, other, "emu"])
    if len(list((tmp_path / "pets").iterdir())) < 3: pytest.skip("this file system cannot tell them apart")
    with pytest.raises(DatasetError, match="look like one"): _ = load_dataset(str(tmp_path / "pets")).train
    build(tmp_path / "parts", write, [f"train/{one}", f"test/{other}", "train/emu", "test/emu"])
    data = load_dataset(str(tmp_path / "parts"), 8)
    assert data.test.labels.bincount().tolist() == [6, 6] and one in data.train.classes


def test_letters_are_classes(tmp_path, write):
    build(tmp_path, write, ["a", "A", "b"])
    if len(list(tmp_path.iterdir())) == 3: assert len(load_dataset(str(tmp_path), 8).train.classes) == 3


@pytest.mark.parametrize("name", ["a\nb", "a\u202eb", "a\x1b[2J"])
def test_a_name_that_cannot_be_shown_is_refused(tmp_path, write, name):
    build(tmp_path, write, [name, "emu"])
    with pytest.raises(DatasetError, match="a class cannot be called") as error:
        _ = load_dataset(str(tmp_path)).train
    assert name not in str(error.value)


def test_a_link_to_another_class_is_named(tmp_path, write):
    build(tmp_path, write, BOTH)
    (tmp_path / "kitty").symlink_to(tmp_path / "cat")
    with pytest.raises(DatasetError, match="'cat' and 'kitty' look like one"):
        _ = load_dataset(str(tmp_path)).train


DEBRIS = ["__MACOSX", "lost+found", "@eaDir", ".thumbnails", "#recycle", "$RECYCLE.BIN", "__pycache__",
          "System Volume Information", "@Recycle", "@__thumb", ".Trash-1000"]


@pytest.mark.parametrize("name", [*DEBRIS, "thumbs", "_thumbs", "Thumbnails"])
def test_folders_of_other_programs_are_left_out_with_one_line(tmp_path, write, caplog, name):
    build(tmp_path, write, BOTH)
    shutil.copytree(tmp_path / "cat", tmp_path / "cat" / name / "1")
    if name in DEBRIS: shutil.copytree(tmp_path / "cat" / name, tmp_path / name)
    data = load_dataset(str(tmp_path), 8)
    assert len(data.train) + len(data.test) == 12 and data.train.classes == BOTH
    lines = [line for line in caplog.messages if "left out" in line]
    assert len(lines) == 1 and name in lines[0]


def test_debris_next_to_the_parts_is_named(tmp_path, write, caplog):
    build(tmp_path, write, [*inside("train", "test"), "__MACOSX"])
    data = load_dataset(str(tmp_path), 8)
    assert len(data.train) == len(data.test) == 12
    assert [line for line in caplog.messages if "left out" in line and "__MACOSX" in line]


def test_an_empty_test_folder_is_named(tmp_path, write, caplog):
    build(tmp_path, write, inside("train"))
    (tmp_path / "test" / "cat").mkdir(parents=True)
    data = load_dataset(str(tmp_path), 8)
    assert len(data.train) + len(data.test) == 12 and f"{tmp_path / 'test'} is empty" in caplog.messages


@pytest.mark.parametrize("name", ["backup", "old", "copy", "duplicates", "rejected"])
def test_other_subfolders_belong_to_their_class(tmp_path, write, name):
    build(tmp_path, write, [*BOTH, f"cat/{name}"])
    assert len(FolderParts(str(tmp_path)).files("train").paths) < 18
    data = load_dataset(str(tmp_path), 8)
    assert len(data.train) + len(data.test) == 18


@pytest.mark.parametrize("name", ["New folder", "models", "labels"])
def test_a_folder_without_an_image_is_named(tmp_path, write, caplog, name):
    build(tmp_path, write, BOTH)
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("no image")
    assert load_dataset(str(tmp_path), 8).train.classes == BOTH
    assert any("without an image (" in line and name in line for line in caplog.messages)


@pytest.mark.parametrize("suffix", ["", ".download", ".jpg_large", ".dog2", ".jpg?w=100", " "])
def test_the_first_bytes_decide(tmp_path, write, suffix):
    build(tmp_path, write, BOTH)
    for path in (tmp_path / "dog").iterdir(): path.rename(path.with_name(path.stem + suffix))
    data = load_dataset(str(tmp_path), 8)
    assert len(data.train) + len(data.test) == 12


def test_what_is_not_an_image_is_counted_in_one_line(tmp_path, write, caplog):
    build(tmp_path, write, BOTH)
    for i in range(5): (tmp_path / "cat" / f"{i}.txt").write_text("BMW")
    (tmp_path / "dog" / "archive.zip").write_bytes(b"PK\3\4")
    _ = load_dataset(str(tmp_path), 8).train
    lines = [line for line in caplog.messages if "left out" in line]
    assert len(lines) == 1 and "6 not an image (cat/0.txt, " in lines[0]


def test_all_broken_images_are_named_in_one_run(tmp_path, write, caplog):
    build(tmp_path, write, inside("train", "test"), n=9)
    broken = ["train/cat/1.png", "train/dog/3.png", "test/cat/4.png"]
    for name in broken: (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:70])
    (tmp_path / "train/cat/2.png").write_text("<html>")
    (tmp_path / "train/cat/gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"^5 images cannot be read.*--skip-broken"):
        _ = load_dataset(str(tmp_path), 8).train
    said = "\n".join(caplog.messages)
    assert all(name in said for name in [*broken, "train/cat/2.png", "train/cat/gone.png"])
    data = load_dataset(str(tmp_path), 8, Settings(skip_broken=True))
    assert len(data.train) == 15 and len(data.test) == 17


def test_nothing_but_broken_images_is_an_error_in_any_case(tmp_path):
    for kind in BOTH:
        (tmp_path / kind).mkdir()
        for i in range(4): (tmp_path / kind / f"{i}.png").write_text(f"{kind} {i}")
    with pytest.raises(DatasetError, match="images cannot be read"):
        _ = load_dataset(str(tmp_path), 8, Settings(skip_broken=True)).train


def test_the_same_image_in_two_classes_is_mentioned(tmp_path, write, caplog):
    build(tmp_path, write, inside("train", "test"))
    shutil.copy(tmp_path / "train/cat/1.png", tmp_path / "train/dog/copy.png")
    _ = load_dataset(str(tmp_path), 8).train
    assert any("1 image of cat, dog is in several classes" in line for line in caplog.messages)


def test_copies_are_on_one_side_of_every_split(tmp_path, write):
    "Twenty images, each five times: no image that is held out is also learned from."
    build(tmp_path, write, BOTH, n=20)
    for path in list(tmp_path.rglob("*.png")):
        for i in range(4): shutil.copy(path, path.with_name(f"{path.stem} ({i}).png"))
    data = load_dataset(str(tmp_path), 8)
    train, valid = split_by_hash(data.train, .2, salt="validation")
    sets = [set(images.file_keys.tolist()) for images in (train, valid, data.test)]
    assert len(set.union(*sets)) == sum(map(len, sets)) == 40


@pytest.mark.parametrize("build_it, said", [
    (lambda p, write: (build(p, write, [""]), (p / "labels.csv").write_text("0.png,cat")),
     "6 images that are in no class folder.*we do not read labels.csv"),
    (lambda p, write: [write(p / f"{kind}.{i}.jpg") for kind in BOTH for i in range(3)],
     r"6 images that are in no class folder.*by their names \(cat, dog\)"),
    (lambda p, write: build(p, write, ["train", "test"]), "if train is a class, use `cifar-nb .* classes="),
    (lambda p, write: build(p, write, [""]), "is one of the classes, name the folder above it"),
    (lambda p, write: build(p, write, inside("PetImages")), "PetImages has several folders: is that"),
    (lambda p, write: build(p, write, inside("a/b/c")), "a/b/c has several folders: is that the one"),
    (lambda p, write: write(p / "cifar-10-batches-py" / "1.png"), "files of CIFAR: use --data cifar10"),
])
def test_one_step_away_is_said(tmp_path, write, build_it, said):
    build_it(tmp_path, write)
    with pytest.raises(DatasetError, match=said): _ = load_dataset(str(tmp_path)).train


@pytest.mark.parametrize("given", ["there/cifar-10-batches-py", "."])
def test_the_official_files_may_be_one_folder_away(tmp_path, monkeypatch, given):
    (tmp_path / "there" / "cifar-10-batches-py").mkdir(parents=True)
    monkeypatch.setattr("cifar_nb.datasets.on_disk", lambda archive, root: root == tmp_path / "there")
    monkeypatch.setattr("cifar_nb.datasets.fetch_cifar", lambda *args: pytest.fail("a download was tried"))
    with pytest.raises(DatasetUnavailable, match=f"use --data-dir {tmp_path / 'there'}"):
        _ = load_dataset("cifar10", settings=Settings(data_dir=tmp_path / given)).train
