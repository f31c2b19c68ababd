"The cache of decoded images: it notices every change, no accident changes a pixel, it is never in the way."
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

import cifar_nb.cache
from cifar_nb.cache import CachingReader, FileCache, open_reader
from cifar_nb.check import check_data
from cifar_nb.core import Settings
from cifar_nb.experiment import run_recipe
from cifar_nb.folders import FileReader, decode_files, load_dataset
from cifar_nb.photos import image_pixels
from cifar_nb.recipes import find_recipe

N = 12


def write_image(path, number, size=(40, 30), mode="RGB"):
    rng = np.random.default_rng(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    image.convert(mode).save(path)
    return path


def settle(): time.sleep(.08)  # A file that has just been written is not trusted


@pytest.fixture
def paths(tmp_path):
    written = [write_image(tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i}.png", i) for i in range(N)]
    settle()
    return written


@pytest.fixture
def database(tmp_path): return tmp_path / "data" / "decoded.sqlite"


@contextmanager
def counted():
    "A list of the files that are decoded."
    seen = []

    def decode(data, *args):
        seen.append(data)
        return image_pixels(data, *args)
    with patch("cifar_nb.folders.image_pixels", decode): yield seen


def reader_of(database): return open_reader(Settings(data_dir=database.parent))


def read(paths, database=None, size=16):
    "Pixels and keys with the cache, and how many files were decoded; equal to those without it."
    with counted() as seen:
        reader = reader_of(database)
        keys = [*reader.keys(paths)]
        decoded, broken = decode_files(paths, size, reader)
    plain, plain_broken = decode_files(paths, size)
    assert keys == [*FileReader().keys(paths)]
    assert {path: str(e) for path, e in broken.items()} == {path: str(e) for path, e in plain_broken.items()}
    for ours, theirs in zip(decoded, plain, strict=True):
        assert (ours is None) == (theirs is None)
        if ours: assert torch.equal(ours[0], theirs[0]) and ours[1] == theirs[1]
    return len(seen)


def dates_kept(path):
    "Other content of the same length under the old date, as a copying tool leaves it."
    before = path.stat()
    data = path.read_bytes()
    other = write_image(path.with_name("other.bmp"), 99)
    Image.open(other).save(other.with_suffix(".png"))
    new = other.with_suffix(".png").read_bytes()
    path.write_bytes(new + b"\0" * (len(data) - len(new)) if len(new) <= len(data) else new)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for extra in (other, other.with_suffix(".png")): extra.unlink()


def replaced(path): os.replace(write_image(path.with_name("new.png"), 77), path)


@pytest.mark.parametrize("change, again", [
    (lambda path: None, 0), (lambda path: write_image(path, 50), 1), (dates_kept, 1), (replaced, 1),
    (lambda path: path.touch(), 1), (lambda path: os.utime(path, (1, 1)), 1),
])
def test_a_changed_file_is_decoded_again(paths, database, change, again):
    assert (read(paths, database), read(paths, database)) == (N, 0)
    change(paths[3])
    settle()
    assert (read(paths, database), read(paths, database)) == (again, 0)


def test_added_removed_and_renamed_files(paths, database):
    read(paths, database)
    paths.append(write_image(paths[0].with_name("added.png"), 60))
    paths.pop(2).unlink()
    paths[4] = paths[4].rename(paths[4].with_name("renamed.png"))
    settle()
    assert (read(paths, database), read(paths, database)) == (2, 0)
    # Two files change places: each name has another content, of another date
    paths[0].rename(paths[0].with_name("x"))
    paths[2].rename(paths[0])
    paths[0].with_name("x").rename(paths[2])
    settle()
    assert read(paths, database) == 2


def test_the_target_of_a_link_counts(paths, database, tmp_path):
    link = tmp_path / "link.png"
    link.symlink_to(paths[0])
    assert (read([link], database), read([link], database)) == (1, 0)
    link.unlink()
    link.symlink_to(paths[1])
    assert read([link], database) == 1


def test_a_relative_name_is_the_same_file(paths, database, monkeypatch):
    read(paths, database)
    monkeypatch.chdir(paths[0].parent)
    assert read([Path(paths[0].name)], database) == 0
    monkeypatch.chdir(paths[1].parent)
    assert read([write_image(Path(paths[0].name), 5)], database) == 1


def test_a_file_that_changes_while_it_is_read_is_not_kept(paths, database):
    def decode(data, *args):
        if data == first: write_image(paths[0], 80)
        return image_pixels(data, *args)
    first = paths[0].read_bytes()
    with patch("cifar_nb.folders.image_pixels", decode): decode_files(paths, 16, reader_of(database))
    settle()
    assert read(paths, database) == 1


def test_a_file_that_was_written_just_now_is_not_kept(paths, database):
    late = max(path.stat().st_ctime_ns for path in paths)
    with patch("cifar_nb.cache.time.time_ns", lambda: late + 1_000_000):
        decode_files(paths[-1:], 16, reader_of(database))
    assert read(paths[-1:], database) == 1


@pytest.mark.parametrize("mode, suffix", [
    ("RGB", "jpg"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "jpg"), ("1", "tif"), ("I", "tif")])
def test_any_kind_of_image_and_size(database, tmp_path, mode, suffix):
    path = write_image(tmp_path / f"a b ü.{suffix}", 3, (50, 90), mode)
    settle()
    for size in (8, 33, 64): assert (read([path], database, size), read([path], database, size)) == (1, 0)


def test_names_that_are_not_text(database, tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"\xff\xfe.png")
    try: shutil.copy(write_image(tmp_path / "x.png", 1), name)
    except OSError: pytest.skip("this file system takes text only")
    settle()
    path = Path(os.fsdecode(name))
    assert (read([path], database), read([path], database)) == (1, 0)


def test_broken_files_are_reported_each_time_and_found_once_repaired(paths, database):
    whole = paths[5].read_bytes()
    paths[5].write_bytes(whole[:60])
    paths[6].unlink()
    settle()
    for n in (N - 1, 1): assert read(paths, database) == n
    paths[5].write_bytes(whole)
    write_image(paths[6], 6)
    settle()
    assert (read(paths, database), read(paths, database)) == (2, 0)


def test_another_preprocessing_decodes_again(paths, database):
    read(paths, database)
    real = cifar_nb.cache.features.version
    for change in (dict(pil="99.0"), dict(libjpeg_turbo="0.1")):
        def version(name, change=change): return change.get(name) or real(name)
        cifar_nb.cache.pixels_version.cache_clear()
        with patch("cifar_nb.cache.features.version", version): assert read(paths, database) == N
    cifar_nb.cache.pixels_version.cache_clear()
    assert read(paths, database) == 0


def test_the_version_depends_on_our_code(tmp_path):
    versions = set()
    for changed in ("", *cifar_nb.cache._MODULES):
        for name in cifar_nb.cache._MODULES:
            text = (Path(cifar_nb.cache.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
            (tmp_path / f"{name}.py").write_text(text + "# better" * (name == changed), encoding="utf-8")
        cifar_nb.cache.pixels_version.cache_clear()
        with patch("cifar_nb.cache.files", lambda package: tmp_path):
            versions.add(cifar_nb.cache.pixels_version())
    cifar_nb.cache.pixels_version.cache_clear()
    assert len(versions) == 1 + len(cifar_nb.cache._MODULES)


def spoil(database, seed):
    "Damage of a kind that the seed chooses."
    rng = random.Random(seed)
    data = bytearray(database.read_bytes())
    kind = seed % 4
    if kind == 0: data = data[:rng.randrange(1, len(data))]
    if kind == 1: data[:] = rng.randbytes(len(data))
    if kind == 2:
        for _ in range(20): data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if kind == 3:
        at = rng.randrange(len(data))
        data[at:at + 5000] = bytes(len(data[at:at + 5000]))
    database.write_bytes(data)


@pytest.mark.parametrize("seed", range(16))
def test_a_damaged_cache_is_made_again_with_one_line(paths, database, caplog, seed):
    read(paths, database)
    spoil(database, seed)
    assert not caplog.messages
    n = read(paths, database)
    assert len(caplog.messages) <= 1
    if caplog.messages: assert n and "was damaged and is deleted: images are decoded again" in caplog.text
    caplog.clear()
    # Where the damage hit nothing that was read, all is there
    assert read(paths, database) == 0 and not caplog.messages
    assert {p.name for p in database.parent.iterdir()} == {database.name}


def test_pixels_that_were_changed_in_the_database_are_noticed(paths, database, caplog):
    read(paths, database)
    db = sqlite3.connect(database)
    db.execute("UPDATE results SET value = zeroblob(length(value)) WHERE path = ?", (os.fsencode(paths[0]),))
    db.commit()
    db.close()
    assert read(paths, database) == N and "was damaged" in caplog.text


def test_a_foreign_database_is_replaced(paths, database, caplog):
    database.parent.mkdir()
    db = sqlite3.connect(database)
    db.execute("CREATE TABLE results(other)")
    db.close()
    assert (read(paths, database), read(paths, database)) == (N, 0)
    assert len(caplog.messages) == 1


READ = """
import sys
from pathlib import Path
import cifar_nb.cache as cache
from cifar_nb.core import Settings
from cifar_nb.folders import decode_files
cache._CHUNK = 2
paths = [Path(line) for line in sys.stdin.read().splitlines()]
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    reader = cache.open_reader(Settings(data_dir=sys.argv[1]))
    reader.keys(paths)
    decoded, broken = decode_files(paths, 16, reader)
assert not broken
print(sum(int(pixels.sum()) for pixels, _ in decoded))
"""


def start(paths, database, times=1):
    process = subprocess.Popen([sys.executable, "-c", READ, str(database.parent), str(times)], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write("\n".join(map(str, paths)))
    process.stdin.close()
    return process


def test_two_processes_at_once(paths, database):
    processes = [start(paths, database, times=3) for _ in range(2)]
    answers = {(p.stdout.read(), p.stderr.read(), p.wait(120)) for p in processes}
    assert len(answers) == 1 and {rest[1:] for rest in answers} == {("", 0)}
    assert read(paths, database) == 0


def test_a_process_that_is_killed_leaves_a_sound_cache(paths, database, caplog):
    for delay in (0, .03):
        process = start(paths, database, times=1000)
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        for stream in (process.stdout, process.stderr): stream.close()
    read(paths, database)
    assert read(paths, database) == 0 and not caplog.messages


def test_what_was_read_before_an_interruption_is_kept(paths, database):
    with patch("cifar_nb.cache._CHUNK", 4):
        results = reader_of(database).decode(paths, 16)
        for _ in range(9): next(results)
        results.close()
    assert read(paths, database) == N - 8


def test_a_place_that_cannot_be_written(paths, tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "decoded.sqlite").mkdir(parents=True)
    for place in ("file", "folder"):
        assert read(paths, tmp_path / place / "decoded.sqlite") == N
        assert len(caplog.messages) == 1 and "cannot be used, so images are decoded each time" in caplog.text
        caplog.clear()


def test_a_cache_that_may_only_be_read_is_used(paths, database, caplog):
    read(paths, database)

    def only_read(self): return sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
    with patch.object(FileCache, "_connect", only_read):
        assert read(paths, database) == 0 and not caplog.messages
        write_image(paths[0], 70)
        settle()
        assert read(paths, database) == 1
    assert len(caplog.messages) == 1 and "readonly" in caplog.text


def test_a_full_disk(paths, database, caplog):
    def small(self):
        self.path.parent.mkdir(exist_ok=True)
        db = sqlite3.connect(self.path, isolation_level="IMMEDIATE")
        db.execute("PRAGMA max_page_count = 5")
        return db
    with patch.object(FileCache, "_connect", small): assert read(paths, database) == N
    assert len(caplog.messages) == 1 and "full" in caplog.text


def cache_of(database, max_bytes, since):
    cache = FileCache(database, max_bytes)
    cache.since = since
    return CachingReader(cache)


def test_the_size_is_bounded_and_the_oldest_go_first(database, tmp_path, caplog):
    limit = 600_000
    folders = [[write_image(tmp_path / f"{k}" / f"{i}.png", 10 * k + i) for i in range(10)] for k in range(8)]
    settle()
    for second, some in enumerate(folders):
        for chosen in (folders[0], some):  # the first one is used each time
            with patch("cifar_nb.cache.time.time", lambda second=second: 1000 + second):
                decode_files(chosen, 64, cache_of(database, limit, 1000 + second))
        assert database.stat().st_size <= limit
    with counted() as seen:
        decode_files(folders[0] + folders[-1], 64, cache_of(database, limit, 2000))
        assert not seen
        decode_files(folders[1], 64, cache_of(database, limit, time.time() + 10))
        assert len(seen) == 10
    assert not caplog.messages


def test_a_folder_larger_than_the_cache_is_found_in_part(database, tmp_path, caplog):
    paths = [write_image(tmp_path / f"{i}.png", i) for i in range(40)]
    settle()
    with patch("cifar_nb.cache._CHUNK", 4):
        for run in range(3):
            with counted() as seen: decode_files(paths, 64, CachingReader(FileCache(database, 300_000)))
            assert len(seen) == 40 if run == 0 else 10 < len(seen) < 30
    assert len(caplog.messages) == 3 and "CIFAR_NB_CACHE_MB" in caplog.text


def test_off(paths, database, monkeypatch):
    monkeypatch.setenv("CIFAR_NB_CACHE_MB", "0")
    for _ in range(2): assert read(paths, database) == N
    assert not database.parent.exists()


def test_training_twice_decodes_once_and_leaves_the_folder_alone(paths, database):
    root = database.parent.parent / "pets"
    before = sorted(root.rglob("*"))
    recipe = find_recipe("simple", data=str(root), epochs=1, batch_size=2, held_out=.3, precision="float32",
                         architecture="speed_net", model=dict(widths=(8, 8)))
    cards = []
    for n in (N, 0):
        with counted() as seen:
            card, _ = run_recipe(recipe, root.parent / f"{n}.safetensors",
                                 Settings(device="cpu", data_dir=database.parent))
        assert len(seen) == n
        cards.append(card.model_dump(exclude={"date", "seconds", "created"}))
    assert cards[0]["mean"] == cards[1]["mean"] and cards[0]["test_accuracy"] == cards[1]["test_accuracy"]
    assert sorted(root.rglob("*")) == before
    if os.name == "posix": assert database.stat().st_mode & 0o077 == 0


def test_the_parts_of_a_folder_are_the_same_with_and_without(paths, database):
    root = str(database.parent.parent / "pets")
    plain = load_dataset(root, 16)
    for _ in range(2):
        kept = load_dataset(root, 16, reader=reader_of(database))
        for part in ("train", "test"):
            ours, theirs = getattr(kept, part), getattr(plain, part)
            assert torch.equal(ours.pixels, theirs.pixels) and torch.equal(ours.labels, theirs.labels)
            assert torch.equal(ours.file_keys, theirs.file_keys)


def test_several_threads_give_the_same(paths):
    before = torch.get_num_threads()
    results = []
    for n in (1, 4):
        torch.set_num_threads(n)
        results.append([*FileReader().decode(paths, 16)])
    torch.set_num_threads(before)
    for one, other in zip(*results, strict=True): assert torch.equal(one[0], other[0]) and one[1] == other[1]


def test_the_check_of_a_folder_decodes_only_what_has_changed(tmp_path):
    root, settings = tmp_path / "pets", Settings(data_dir=tmp_path / "data")
    for i in range(8): write_image(root / "cat" / f"{i}.png", i)
    for i in range(8, 14): write_image(root / "dog" / f"{i}.png", i)
    write_image(root / "dog" / "as bmp.bmp", 9)
    (root / "cat" / "damaged.png").write_bytes((root / "cat" / "1.png").read_bytes()[:300])
    settle()
    decoded = []

    def decode(data, *words, **more):
        decoded.append(1)
        return image_pixels(data, *words, **more)

    def check():
        decoded.clear()
        return check_data(str(root), 16, settings, reader=open_reader(settings)).as_dict()

    with patch("cifar_nb.folders.image_pixels", decode):
        first = check()
        assert len(decoded) == 16 and len(first["broken"]) == 1
        assert [len(group) for groups in first["copies"].values() for group in groups] == [2]
        assert check() == first and len(decoded) == 1  # errors are not kept
        write_image(root / "cat" / "0.png", 99, size=(80, 60))
        settle()
        third = check()
        assert len(decoded) == 2 and list(third["sizes"]["largest"]) == [80, 60]
    assert third == check_data(str(root), 16).as_dict()
