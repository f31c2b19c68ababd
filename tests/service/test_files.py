"Files that are images, in every format and mode, and thousands that are not."
import base64
import io
import json
import random
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from tools.files import BASE, CORPUS, JPEG, PNG, chunk, exact_files, mutate, raw_png, saved
from tools.server import watch_memory
from typer.testing import CliRunner

from cifar_nb.cli import app


def post(client, content, name="x.png", kind=None):
    return client.post("/predict", files={"file": (name, content, kind or "image/png")})


def in_batches(client, files, size=32):
    "What each file alone would be answered: a prediction, or an error with its status."
    for i in range(0, len(files), size):
        reply = client.post("/predict/batch", files=[("files", ("x", data)) for data in files[i:i + size]])
        assert reply.status_code == 200, reply.text
        assert len(reply.json()) == len(files[i:i + size])
        yield from reply.json()


def is_good(answer):
    shares = answer["probabilities"]
    return abs(sum(shares.values()) - 1) < 1e-5 and answer["class_name"] in shares


def test_every_format_mode_and_way_of_writing(client):
    assert len(CORPUS) > 90
    for name, content in CORPUS.items():
        reply = post(client, content)
        assert reply.status_code == 200 and is_good(reply.json()), (name, reply.text)
    assert all(is_good(answer) for answer in in_batches(client, list(CORPUS.values())))


def test_the_same_pixels_have_the_same_answer(client):
    answers = {name: post(client, content).json()["probabilities"] for name, content in exact_files()}
    for name, found in answers.items(): assert found == pytest.approx(answers["PNG"], abs=1e-5), name


def test_the_command_line_and_every_route_see_a_large_photo_alike(client, tmp_path):
    coarse = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize((800, 600), Image.Resampling.NEAREST)
    (tmp_path / "a.jpg").write_bytes(data := saved(photo, "JPEG", quality=60))
    said = CliRunner().invoke(app, ["predict", str(tmp_path / "a.jpg"), "--json"]).stdout
    expected = pytest.approx(json.loads(said)["probabilities"], abs=1e-4)
    for path in ("/predict", "/explain"):
        assert client.post(path, files={"file": data}).json()["probabilities"] == expected


def test_each_file_cut_at_every_tenth(client):
    tenths = [(name, data, i) for name, data in CORPUS.items() for i in range(10)]
    cuts = [(f"{name}, {i}/10", data[:len(data) * i // 10]) for name, data, i in tenths]
    for (name, _), answer in zip(cuts, in_batches(client, [data for _, data in cuts])):
        if "probabilities" in answer: assert is_good(answer), (name, answer)
        else: assert answer["status"] in (400, 415, 422) and answer["detail"], (name, answer)
    for name, data in cuts[::20]: assert post(client, data).status_code in (200, 400, 415, 422), name


def test_two_thousand_damaged_files(client):
    rng, files = random.Random(0), list(CORPUS.values())
    broken = [mutate(rng, files[i % len(files)], rng.choice(files)) for i in range(2000)]
    said = [answer.get("status", 200) for answer in in_batches(client, broken)]
    assert set(said) <= {200, 400, 413, 415, 422} and {200, 415, 422} <= set(said)
    for data, status in list(zip(broken, said))[::20]: assert post(client, data).status_code == status


def test_polyglots_are_images_and_no_more(client):
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as z: z.writestr("evil.js", "alert(1)")
    gif = b"GIF89a/*" + CORPUS["GIF RGB"][8:] + b"*/=1;alert(1)//"  # the width opens a comment
    for content in (gif, JPEG + zipped.getvalue(), PNG + b"<html><script>alert(1)</script>", JPEG + PNG):
        reply = post(client, content, "x.html", "text/html")
        assert reply.status_code == 200 and is_good(reply.json()) and "alert" not in reply.text
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-content-type-options"] == "nosniff"


def webp_of(width, height):
    "A canvas of any size around a small image."
    inside = saved(BASE, "WEBP")[12:]
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas + inside
    return b"RIFF" + struct.pack("<I", len(body)) + body


def avif_of(width, height, whole=None):
    "An image with another size in its box `ispe`."
    whole = whole or saved(BASE, "AVIF", speed=10)
    at = whole.index(b"ispe") + 8
    return whole[:at] + struct.pack(">II", width, height) + whole[at + 8:]


def gif_of(width, height):
    content = bytearray(CORPUS["GIF RGB"])
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def jpeg_of_a_huge_size():
    return re.sub(rb"(\xff\xc0\0\x11\x08)....", lambda m: m[1] + b"\xff" * 4, JPEG, flags=re.DOTALL)


def too_large():
    "Files that claim more pixels than are accepted."
    frame = b"\x2c\0\0\0\0"
    bmp = CORPUS["BMP RGB"]
    yield "PNG of 400 million pixels", saved(Image.new("1", (20_000, 20_000)), "PNG"), {413}
    yield "PNG that claims all there are", raw_png(b"", (2**31 - 1, 2**31 - 1)), {413}
    yield "GIF of a huge canvas", gif_of(65535, 65535), {413}
    yield "GIF of a huge frame", CORPUS["GIF RGB"].replace(
        frame + struct.pack("<HH", *BASE.size), frame + b"\xff\xff\xff\xff"), {413, 422}
    yield "WebP of a huge canvas", webp_of(16_384, 16_384), {413, 422}
    yield "WebP of the largest canvas", webp_of(2**24, 255), {413, 422}
    yield "BMP of a huge size", bmp[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + bmp[26:], {413}
    yield "JPEG of a huge size", jpeg_of_a_huge_size(), {413}
    yield "TIFF of a huge size", saved(Image.new("1", (20_000, 20_000)), "TIFF", compression="group4"), {413}
    yield "AVIF of a huge size", avif_of(32_768, 32_768), {413, 422}
    large = saved(Image.new("L", (3000, 3000)), "AVIF", speed=10)
    yield "AVIF of more pixels than it says", avif_of(32, 32, large), {200, 413, 422}


def decompression_bombs():
    "Small files with parts that grow to hundreds of megabytes when they are read."
    row, either = b"\0" + bytes(61 * 3), {200, 413, 422}
    for layers in (1, 3):
        bomb = bytes(300_000_000)
        for _ in range(layers): bomb = zlib.compress(bomb, 9)
        parts = {b"iCCP": b"x\0\0", b"zTXt": b"x\0\0", b"iTXt": b"x\0\1\0\0\0"}
        for kind, start in parts.items():
            before = chunk(kind, start + bomb)
            yield f"PNG with {kind} in {layers} layers", raw_png(row * 47, BASE.size, before=before), either
    text = zlib.compress(bytes(1_000_000), 9)
    texts = b"".join(chunk(b"zTXt", b"%d\0\0" % i + text) for i in range(1000))
    yield "PNG with a thousand texts of a megabyte", raw_png(row * 47, BASE.size, before=texts), either
    yield "PNG with a thousand times the pixels it names", raw_png(row * 1_000_000, BASE.size), either


@pytest.mark.parametrize("bombs", [too_large, decompression_bombs])
def test_bombs_do_not_go_off(server, client, bombs):
    for name, content, statuses in bombs():
        with watch_memory(server) as grown: reply = post(client, content)
        assert reply.status_code in statuses, (name, reply.text)
        assert grown[-1] < 200_000_000, (name, grown[-1])


def other_files():
    "Files that are not accepted, and a word about each that the answer contains."
    yield "PPM", saved(BASE, "PPM"), "PPM"
    yield "JPEG 2000", saved(BASE, "JPEG2000"), "JPEG 2000"
    yield "ICO", saved(BASE, "ICO"), "icon"
    for kind in ("TGA", "SGI", "DDS"): yield kind, saved(BASE, kind), "not an image"
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as z: z.writestr("cat.png", PNG)
    yield "zip", zipped.getvalue(), "archive"
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    preview = struct.pack("<4sIHHHII4x", b"II*\0", 8, 1, 254, 4, 1, 1)
    yield from [
        ("SVG", svg, "SVG"),
        ("SVG with a prolog", b"<?xml version='1.0'?><svg/>", "SVG"),
        ("SVG with a comment", b"\n<!-- made by hand -->\n<svg/>", "SVG"),
        ("SVG behind a byte-order mark", b"\xef\xbb\xbf<svg/>", "SVG"),
        ("XHTML", b'<?xml version="1.0"?>\n<html>', "web page"),
        ("PDF", b"%PDF-1.7", "PDF"),
        ("EPS", b"%!PS-Adobe", "PostScript"),
        ("WAVE", b"RIFF\x24\0\0\0WAVEfmt ", "not an image"),
        ("AVI", b"RIFF\x24\0\0\0AVI LIST", "video"),
        ("MP4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "video"),
        ("WebM", b"\x1aE\xdf\xa3", "video"),
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC: save it as JPEG (on an iPhone"),
        ("raw file of Canon", b"II*\0\x10\0\0\0CR\2\0", "raw file"),
        ("newer raw file of Canon", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw file"),
        ("raw file with a preview", preview, "raw file"),
        ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        ("PSD", b"8BPS\0\1", "Photoshop"),
        ("GIF of the future", b"GIF9000", "not an image"),
        ("HTML", b"<!doctype html><img src=x>", "web page"),
        ("HTML with a drawing", b"<HTML><svg>", "web page"),
        ("Git LFS", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("base64", base64.b64encode(PNG), "base64"),
        ("data URL", b"data:image/png;base64,", "base64"),
        ("text", b"cat", "not an image"),
        ("zeros", b"", "not an image"),
        ("late PNG", b"\n" + PNG, "behind other bytes"),
        ("late JPEG", b"\xef\xbb\xbf" + JPEG, "behind other bytes")]


def test_other_files_are_named_and_not_accepted(client):
    for name, content, word in other_files():
        for called in ("cat.png", "cat.jpg"):
            reply = post(client, content + bytes(100), called)
            detail = reply.json()["detail"]
            assert reply.status_code == 415 and word in detail, (name, detail)
            assert "send JPEG, PNG, GIF, WebP, BMP, AVIF or TIFF" in detail, name


def test_a_declared_type_that_lies_does_not_matter(client):
    lies = (("cat.exe", "application/x-msdownload"), ("cat.svg", "image/svg+xml"), ("x" * 1000, "nonsense"),
            ("../../etc/passwd", "image/jpeg"), ("a\r\nb\0", "text/plain; charset=\xff"))
    for name, kind in lies:
        reply = post(client, PNG, name, kind)
        assert reply.status_code == 200 and is_good(reply.json())


@pytest.mark.parametrize("kind, status", [
    ("image/png", 200), ("application/json", 422), ("multipart/form-data", 400),
    ("multipart/form-data; boundary=x", 400)])
def test_a_body_that_is_not_what_it_says(client, kind, status):
    assert client.post("/predict", content=PNG, headers={"content-type": kind}).status_code == status


def test_an_empty_image(client):
    assert post(client, b"").status_code == 400
    assert client.post("/predict_base64", json={"image_base64": ""}).status_code == 400
    batch = client.post("/predict/batch", files=[("files", b""), ("files", PNG)])
    assert batch.json()[0]["status"] == 400
    assert client.post("/predict").status_code == client.post("/predict/batch").status_code == 422
