"What is fuzzed: for each reader its first inputs, its ways to damage one, and what it may answer."
import asyncio
import hashlib
import json
import os
import random
import re
import struct
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from tools.files import CORPUS, JPEG, PNG, chunk, mutate

from cifar_nb.core import ImageError, ModelError
from cifar_nb.modelfile import load_model, read_card, read_model, save_model
from cifar_nb.models import create_model
from cifar_nb.photos import image_pixels
from cifar_nb.requests import read_files, read_request


@dataclass(frozen=True)
class Target:
    seeds: Callable  # () to the inputs that the others are made of
    damage: Callable  # (rng, input, another input) to a damaged input
    read: Callable  # (input) to what was found, or raises
    allowed: tuple  # What it may raise
    seconds: float  # Processor time that one input may take
    megabytes: int  # Memory that one input may take


NUMBERS = (0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fffffff, 0x80000000,
           0xffffffff)


def put_number(rng, data):
    "Write a number at the edge of its range over some bytes: most lengths, sizes and counts are such."
    size, code = rng.choice(((1, "B"), (2, "H"), (4, "I")))
    if len(data) <= size: return data
    at = rng.randrange(min(len(data), rng.choice((64, 400, 10**9))) - size + 1)
    number = rng.choice(NUMBERS) & (256**size - 1)
    return data[:at] + struct.pack(rng.choice("<>") + code, number) + data[at + size:]


def cut(rng, data): return data[:rng.randrange(len(data) + 1)]


def join(rng, data, other): return cut(rng, data) + other[rng.randrange(len(other) + 1):]


def rearrange(rng, parts, others):
    "Repeat, leave out, swap, or take over a part of a file."
    parts = list(parts)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(parts))
        change = rng.randrange(5)
        if change == 0: parts[at:at] = [parts[at]] * rng.choice((1, 2, 10, 200))
        elif change == 1 and len(parts) > 1: del parts[at]
        elif change == 2: parts.insert(rng.randrange(len(parts)), parts.pop(at))
        elif change == 3 and others: parts.insert(at, rng.choice(others))
        else: parts[at] = put_number(rng, parts[at])
    return parts


# The decoder

def png_parts(data):
    "The chunks of a PNG, without lengths and checksums."
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at:at + 4], "big")
        yield data[at + 4:at + 8 + length]
        at += 12 + length


def from_png_parts(parts): return PNG[:8] + b"".join(chunk(part[:4], part[4:]) for part in parts)


def jpeg_parts(data):
    "The segments of a JPEG, without lengths; the last one is the data of the image."
    at = 2
    while at + 4 <= len(data) and data[at] == 0xff and data[at + 1] != 0xda:
        length = int.from_bytes(data[at + 2:at + 4], "big")
        yield data[at + 1:at + 2] + data[at + 4:at + 2 + length]
        at += 2 + length
    yield data[at:]


def from_jpeg_parts(parts):
    *segments, image = parts
    def told(part): return b"\xff" + part[:1] + struct.pack(">H", min(len(part) + 1, 65_535)) + part[1:]
    return b"\xff\xd8" + b"".join(map(told, segments)) + image


def webp_parts(data):
    "The chunks of a WebP, without lengths."
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4:at + 8], "little")
        yield data[at:at + 4] + data[at + 8:at + 8 + length]
        at += 8 + length + length % 2


def from_webp_parts(parts):
    body = b"".join(part[:4] + struct.pack("<I", len(part) - 4) + part[4:] + b"\0" * (len(part) % 2)
                    for part in parts)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


FORMATS = {b"\x89PNG": (png_parts, from_png_parts), b"\xff\xd8\xff": (jpeg_parts, from_jpeg_parts),
           b"RIFF": (webp_parts, from_webp_parts)}


def rearrange_image(rng, data, other):
    "The same format with its parts in another order, and with lengths and checksums that fit again."
    for start, (apart, together) in FORMATS.items():
        if not data.startswith(start): continue
        parts = list(apart(data))
        others = list(apart(other)) if other.startswith(start) else []
        if parts: return together(rearrange(rng, parts, others))
    return put_number(rng, data)


# Where width and height are, and how they are written
SIZES = ((rb"\x89PNG.{12}", ">II"), (rb"GIF8..", "<HH"), (rb"BM.{16}", "<ii"),
         (rb"\xff\xd8.*?\xff[\xc0-\xc2].{3}", ">HH"), (rb"....ftyp.*?ispe....", ">II"))


def put_size(rng, data):
    "Claim another size; the order of the two numbers does not matter here."
    size = rng.choice(((1, 50_000_000), (7071, 7071), (3999, 3999), (2**16, 2**16), (65_535, 763), (40, 40)))
    for start, code in SIZES:
        found = re.match(start, data, re.DOTALL)
        if not found: continue
        most = 65_535 if "H" in code else 2**31 - 1
        written = struct.pack(code, *(min(side, most) for side in size))
        return data[:found.end()] + written + data[found.end() + len(written):]
    return data


def damage_image(rng, data, other):
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.randrange(11)
        if change == 10: data = put_size(rng, data)
        elif change < 4: data = rearrange_image(rng, data, other)
        elif change < 6: data = put_number(rng, data)
        elif change < 7: data = cut(rng, data)
        elif change < 8: data = join(rng, data, other)
        else: data = mutate(rng, data, other or b"\0")
    return data[:10_000_000]  # as much as a request may have


def image_seeds():
    "Each format in each way of writing, and files whose notes are worth damaging."
    packed = zlib.compress(bytes(1000))
    exif = b"MM\0*\0\0\0\x08\0\2" + struct.pack(">HHIHHHHII", 0x112, 3, 1, 6, 0, 0x11a, 5, 1, 38) + bytes(12)
    notes = ((b"iCCP", b"x\0\0" + packed), (b"zTXt", b"x\0\0" + packed), (b"iTXt", b"x\0\1\0\0\0" + packed),
             (b"eXIf", exif), (b"tEXt", b"Raw profile type exif\0\nexif\n4\n45786966"),
             (b"acTL", struct.pack(">II", 2, 0)), (b"tRNS", bytes(6)))
    for kind, data in notes: yield PNG[:33] + chunk(kind, data) + PNG[33:]
    for kind, data in ((0xe1, b"Exif\0\0" + exif), (0xe2, b"ICC_PROFILE\0\1\1"), (0xed, b"Photoshop 3.0\0"),
                       (0xdd, b"\0\1"), (0xe2, b"MPF\0" + exif)):
        yield JPEG[:2] + b"\xff" + bytes([kind]) + struct.pack(">H", len(data) + 2) + data + JPEG[2:]
    yield from CORPUS.values()


def read_image(data):
    pixels = image_pixels(data, 32)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8


# The request reader. An input is the header Content-Type, a line end, and the body

BOUNDARY = b"multipart/form-data; boundary=x\n"


def part(name, data, more=b"", filename=b'; filename="a.png"'):
    head = b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n%b\r\n' % (name, filename, more)
    return head + data + b"\r\n"


def request_seeds():
    yield BOUNDARY + part(b"file", PNG[:300]) + b"--x--\r\n"
    yield BOUNDARY + part(b"image", JPEG[:300], b"Content-Type: image/jpeg\r\n") + b"--x--\r\n"
    yield BOUNDARY + part(b"files", b"1") + part(b"files", b"2") + part(b"files", b"") + b"--x--\r\n"
    yield BOUNDARY + part(b"file", b"1") + part(b"top_k", b"3", filename=b"") + b"--x--\r\n"
    yield b'multipart/form-data; charset="utf-8"; boundary="x"\npreamble\r\n' + part(b"file", b"1") + b"--x--"
    encoded = b'Content-Transfer-Encoding: base64\r\nX-Odd: "a\\"b"; c*=utf-8\'\'%e4\r\n'
    yield BOUNDARY + part(b"file", b"MQ==", encoded, b"; filename*=utf-8''%E2%82%AC") + b"--x--\r\n"
    for body in (b'{"image_base64": "aGFsbG8="}',
                 b'{"image_base64": "data:image/png;base64,aGFsbG8=", "top_k": 3}',
                 b'{"top_k": 1e3, "image_base64": "\\u0061\\ud83d\\ude00"}',
                 b'{"image_base64": "", "x": [[{"y": null}], -0.5e-7, true]}',
                 b'[1, 2]', b'""', b'\xef\xbb\xbf{}', b"[" * 3000, b'{"a":' * 2000):
        yield b"application/json\n" + body


WORDS = (b"--x", b"--x--", b"\r\n", b"\r\n\r\n", b'"', b"\\", b";", b"=", b"{", b"}", b"[", b"]", b",", b":",
         b"null", b"1e999", b"-", b"\\ud800", b"\0", b"\xff", b"name=", b"filename=", b"filename*=",
         b"boundary=", b"charset=", b"content-disposition: form-data", b"image_base64", b"top_k", b"data:,",
         b"=" * 50, b"9" * 5000)


def put_word(rng, data):
    at = rng.randrange(len(data) + 1)
    words = rng.choice(WORDS) * rng.choice((1, 1, 1, 3, 100))
    return data[:at] + words + data[at + rng.choice((0, 0, 1, 4)):]


def damage_request(rng, data, other):
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        change = rng.randrange(6)
        if change < 3: data = put_word(rng, data)
        elif change < 4: data = join(rng, data, other)
        else: data = mutate(rng, data, other or b"\0")
    return data[:100_000]


CONTROLS = bytes({*range(32), 127} - {9})  # The server's parser refuses them in headers


def request_of(data):
    "The request as the server would hand it over, its body in pieces."
    kind, _, body = data.partition(b"\n")
    kind = kind.translate(None, CONTROLS)
    rng = random.Random(zlib.crc32(data))
    pieces = []
    while body or not pieces:
        n = rng.choice((1, 7, 100, 10_000, 10**6))
        pieces.append(body[:n])
        body = body[n:]
    sent = iter(pieces)

    async def receive():
        piece = next(sent, b"")
        return {"type": "http.request", "body": piece, "more_body": piece is not pieces[-1]}
    headers = [(b"content-type", kind)]
    scope = dict(type="http", app=None, method="POST", path="/", query_string=b"", headers=headers)
    return Request(scope, receive)


def read_both(data):
    async def read():
        image, top_k = await read_request(request_of(data))
        assert isinstance(image, bytes) and (top_k is None or 1 <= top_k <= 1000)
    async def read_many():
        found = await read_files(request_of(data), 32)
        assert 1 <= len(found) <= 32 and all(isinstance(one, bytes) for one in found)
    return [refusal(read), refusal(read_many)]


LOOP = asyncio.Runner()


def refusal(read):
    "Why a request was refused, or None."
    try: LOOP.run(read())
    except (ImageError, RequestValidationError) as e: return str(e)
    except HTTPException as e:
        assert 400 <= e.status_code < 500, e
        return e.detail


# The model-file reader

def model_seeds():
    "Two small networks, one with weights of 16 bits and keys of training images."
    _, card = load_model("simple")
    ways = (("simple_cnn", dict(n_classes=2, size=8), False, None),
            ("speed_net", dict(n_classes=2, size=16, widths=[2, 2, 2], depth=2), True, torch.arange(20)))
    for architecture, arguments, half, keys in ways:
        told = dict(architecture=architecture, arguments=arguments, classes=("a", "b"), recipe={},
                    input_size=arguments["size"], trained_on={})
        model = create_model(architecture, **arguments)
        with tempfile.TemporaryDirectory() as folder:
            file = save_model(model, card.model_copy(update=told), Path(folder) / "m.safetensors", half=half,
                              trained_keys=keys)
            yield file.read_bytes()


HEAD = b'{"__metadata__":{"sha256":"'
TEXTS = ("", "a", "a" * 100_000, "\0\x1b", "\ud800", "simple_cnn", "speed_net", "resnet18", "enhanced_cnn",
         "se_resnet", "F32", "F16", "BF16", "F64", "I64", "U8", "BOOL")
NESTED = ([], [0], [1, 2, 3], [2**40, 2**40], list(range(1000)), {}, {"a": {}})
VALUES = (None, True, 0, 1, -1, 2, 7, 2**31, 2**63, 10**30, .5, 1e308, float("nan"), float("inf"), *TEXTS,
          *NESTED)


def change_json(rng, value):
    "Exchange, repeat or leave out one value somewhere inside."
    if not isinstance(value, dict | list) or not value or rng.random() < .1: return rng.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(keys)
    changed = dict(value) if isinstance(value, dict) else list(value)
    chance = rng.random()
    if chance < .1: del changed[key]
    elif chance < .2 and isinstance(value, dict): changed[rng.choice(("trained_on", "x", ""))] = value[key]
    else: changed[key] = change_json(rng, value[key])
    return changed


def sealed(header, body):
    "A model file of any header, with the right checksum."
    text = header.encode("utf-8", "surrogatepass")
    data = len(text).to_bytes(8, "little") + text + body
    start = 8 + len(HEAD)
    digest = hashlib.sha256(data[:start] + data[start + 64:]).hexdigest().encode()
    return data[:start] + digest + data[start + 64:]


def damage_header(rng, data):
    "Another card, or other places of the tensors, and a checksum that fits."
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        layout = json.loads(data[8:end])
        metadata = layout.pop("__metadata__")
        card = json.loads(metadata["card"])
    except (ValueError, LookupError, TypeError, AttributeError): return data
    if rng.random() < .6: card = change_json(rng, card)
    if rng.random() < .5: layout = change_json(rng, layout)
    if not isinstance(layout, dict): layout = {"x": layout}
    whole = dict(__metadata__=dict(sha256="0" * 64, card=json.dumps(card)), **layout)
    return sealed(json.dumps(whole, separators=(",", ":")), data[end:])


def damage_model(rng, data, other):
    for _ in range(rng.choice((1, 1, 2, 4))):
        change = rng.randrange(8)
        if change < 5: data = damage_header(rng, data)
        elif change < 6: data = put_number(rng, data)
        elif change < 7: data = join(rng, data, other)
        else: data = mutate(rng, data, other or b"\0")
    return data


def read_both_ways(data):
    "The card alone, and the whole file."
    path = Path(tempfile.gettempdir()) / f"cifar_nb_fuzz_{os.getpid()}.safetensors"
    path.write_bytes(data)
    try:
        with suppress(ModelError): read_card(path)
        read_model(path)
    finally: path.unlink()


TARGETS = {
    "decoder": Target(image_seeds, damage_image, read_image, (ImageError,), seconds=4, megabytes=400),
    "request": Target(request_seeds, damage_request, read_both, (), seconds=1, megabytes=100),
    "model": Target(model_seeds, damage_model, read_both_ways, (ModelError,), seconds=4, megabytes=1200),
}
