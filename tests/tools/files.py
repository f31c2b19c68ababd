"Image files of every kind that the service shall accept, and ways to break them."
import io
import random
import struct
import zlib
from contextlib import suppress

import numpy as np
from PIL import Image

from cifar_nb.imagefile import WEB_FORMATS
from cifar_nb.images import synthetic

BASE = Image.fromarray(synthetic("test").pixels[7].permute(1, 2, 0).numpy()).resize((61, 47))
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV",
         "I", "F", "I;16", "I;16L", "I;16B")
# What a camera would have written under each orientation
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def two_classes(root):
    "A folder of dark and brighter noise, as the classes birch and oak; its path."
    rng = np.random.default_rng(0)
    for k, kind in enumerate(("birch", "oak")):
        (root / kind).mkdir(parents=True)
        for i in range(60):
            noise = rng.integers(60 * k, 160 + 60 * k, (12 + i % 5, 14, 3), np.uint8)
            Image.fromarray(noise).save(root / kind / f"{i}.png")
    return root


def saved(image, kind, **how):
    image.save(file := io.BytesIO(), kind, **how)
    return file.getvalue()


def noise(side):
    "An image that compression does not make small: about three bytes per pixel."
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    return saved(Image.fromarray(pixels), "PNG")


def in_mode(mode):
    grey = np.asarray(BASE.convert("L"))
    if mode.startswith("I;16"):
        order = ">u2" if mode.endswith("B") else "<u2"
        return Image.frombytes(mode, BASE.size, (grey.astype(order) * 257).tobytes())
    if mode == "PA": return BASE.convert("P").convert("PA")
    if mode == "RGBa": return BASE.convert("RGBA").convert(mode)
    if mode == "La": return BASE.convert("LA").convert(mode)
    if mode == "LAB": return Image.frombytes(mode, BASE.size, np.asarray(BASE).tobytes())
    if mode == "I": return BASE.convert("L").convert("I").point(lambda v: v * 257)
    return BASE.convert(mode)


def chunk(kind, data=b""):
    "Of a PNG file."
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(rows, size, *, depth=8, colour=2, interlaced=0, before=b""):
    "A PNG file that Pillow does not write."
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND"))


def adam7(pixels):
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2))
    for x, y, dx, dy in passes:
        yield from (b"\0" + row[x::dx].tobytes() for row in pixels[y::dy])


def turned():
    "The base image under each EXIF orientation, such that a reader that applies it sees the same pixels."
    for n, turn in TURNED.items():
        exif = Image.Exif()
        exif[0x0112] = n
        yield n, BASE.transpose(turn), exif


def icc(space, tags, name=b"a test profile"):
    "A colour profile. The tags that every profile has are added."
    said = b"desc" + struct.pack(">4xI", len(name) + 1) + name + bytes(1 + 12 + 67)
    tags = {b"desc": said, b"cprt": b"text" + bytes(5), b"wtpt": xyz(.9642, 1, .8249)} | tags
    at, table, body = 132 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">4x4sI4s4s4s12x4s28x", b"test", 0x02400000, b"mntr", space, b"XYZ ", b"acsp")
    head += struct.pack(">3I", 0xf6d6, 0x10000, 0xd32d)
    whole = head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole) + 4) + whole


def xyz(*values): return b"XYZ " + struct.pack(">4x3i", *(round(65_536 * v) for v in values))


def curve(gamma): return b"curv" + struct.pack(">4xIHxx", 1, round(256 * gamma))


def rgb_profile(gamma, red, green, blue):
    "Of a screen: its gamma, and the XYZ of its primaries under D50."
    primaries = {b"rXYZ": xyz(*red), b"gXYZ": xyz(*green), b"bXYZ": xyz(*blue)}
    return icc(b"RGB ", primaries | {tag: curve(gamma) for tag in (b"rTRC", b"gTRC", b"bTRC")})


# The primaries of sRGB, of Display P3, and those of sRGB in another order
SRGB = (.4361, .2225, .0139), (.3851, .7169, .0971), (.1431, .0606, .7141)
P3 = (.5151, .2412, -.0011), (.2920, .6922, .0419), (.1571, .0666, .7841)
SWAPPED = SRGB[1], SRGB[2], SRGB[0]


def grey_profile(): return icc(b"GRAY", {b"kTRC": curve(1.)})


def ink_profile():
    "Of a press whose every ink is a green one: the darkness is the sum of the four."
    ramp = bytes(range(256))
    numbers = [inks.bit_count() for inks in range(16)]
    table = b"".join(bytes([255 - 60 * n, 128 - 20 * n, 128]) for n in numbers)
    matrix = struct.pack(">9i", *(65_536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + table + 3 * ramp
    profile = icc(b"CMYK", {b"A2B0": lut})
    return profile[:12] + b"prtr" + profile[16:20] + b"Lab " + profile[24:]


PNG_WITH_A_DAMAGED_NOTE = saved(BASE, "PNG")
PNG_WITH_A_DAMAGED_NOTE = (
    PNG_WITH_A_DAMAGED_NOTE[:33] + chunk(b"tEXt", b"a\0b")[:-1] + b"?" + PNG_WITH_A_DAMAGED_NOTE[33:])


def exact_files():
    "Files of the same pixels, without loss."
    pixels = np.asarray(BASE)
    wide = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2") * 257)
    yield "PNG", saved(BASE, "PNG")
    yield "BMP", saved(BASE, "BMP")
    yield "WebP", saved(BASE, "WEBP", lossless=True)
    yield "PNG interlaced", raw_png(b"".join(adam7(pixels)), BASE.size, interlaced=1)
    yield "PNG RGB of 16 bits", raw_png(wide, BASE.size, depth=16)
    yield "PNG opaque", saved(BASE.convert("RGBA"), "PNG")
    yield "WebP opaque", saved(BASE.convert("RGBA"), "WEBP", lossless=True)
    for way in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield f"TIFF {way}", saved(BASE, "TIFF", compression=way)
    yield "TIFF of many strips", saved(BASE, "TIFF", compression="tiff_lzw", tiffinfo={278: 1})
    yield "BigTIFF", saved(BASE, "TIFF", big_tiff=True)
    yield "PNG with a damaged note", PNG_WITH_A_DAMAGED_NOTE
    for n, image, exif in turned():
        yield f"PNG orientation {n}", saved(image, "PNG", exif=exif)
        yield f"WebP orientation {n}", saved(image, "WEBP", exif=exif, lossless=True)
        yield f"TIFF orientation {n}", saved(image, "TIFF", exif=exif)


def every_mode():
    for kind in WEB_FORMATS:
        how = {"speed": 10} if kind == "AVIF" else {}
        for mode in MODES:
            with suppress(OSError, ValueError, KeyError):  # Pillow does not write it
                yield f"{kind} {mode}", saved(in_mode(mode), kind, **how)
        for size in ((1, 1), (10_000, 1), (1, 10_000)):
            yield f"{kind} {size}", saved(BASE.resize(size), kind, **how)


def transparent_files():
    for bits in (1, 2, 4):
        yield f"PNG palette of {bits} bits", saved(BASE.quantize(2**bits), "PNG", bits=bits)
    for kind in ("PNG", "GIF"):
        yield f"{kind} palette with transparency", saved(BASE.quantize(8), kind, transparency=3)
    yield "PNG palette with alpha", saved(BASE.quantize(8), "PNG", transparency=bytes(range(0, 256, 32)))
    for mode, clear in (("L", 7), ("RGB", (1, 2, 3))):
        yield f"PNG {mode} with a transparent colour", saved(BASE.convert(mode), "PNG", transparency=clear)
    half = BASE.copy()
    half.putalpha(100)
    for kind, how in (("PNG", {}), ("WEBP", {}), ("WEBP", dict(lossless=True))):
        yield f"{kind} half transparent {how}", saved(half, kind, **how)
    turning = [half.rotate(10 * i).convert("RGB") for i in range(5)]
    frames = dict(save_all=True, append_images=turning, duration=50, loop=0)
    for kind in ("GIF", "WEBP", "PNG", "AVIF"):
        yield f"{kind} animated", saved(BASE, kind, **frames)
        yield f"{kind} that begins with nothing", saved(Image.new("RGB", BASE.size, "white"), kind, **frames)
    yield from color_keys()


def color_keys():
    "PNG files with a transparent colour, of every depth."
    for bits in (1, 2, 4):
        rows = b"".join(b"\0" + bytes([27] * -(-61 * bits // 8)) for _ in range(47))
        before = chunk(b"tRNS", struct.pack(">H", 2**bits - 1))
        how = dict(depth=bits, colour=0, before=before)
        yield f"PNG grey of {bits} bits with a key", raw_png(rows, BASE.size, **how)
    for colour, n in ((0, 1), (2, 3)):
        row = b"\0" + np.arange(61, dtype=">u2").repeat(n).tobytes()
        before = chunk(b"tRNS", bytes(range(2 * n)))
        yield f"PNG of {n} times 16 bits with a key", raw_png(row * 47, BASE.size, depth=16, colour=colour,
                                                              before=before)


def jpeg_files():
    ways = (dict(progressive=True), dict(optimize=True), dict(subsampling=0), dict(subsampling=2, quality=5),
            dict(quality=100), dict(restart_marker_blocks=1), dict(comment=b"x" * 60_000))
    for how in ways: yield f"JPEG {how}"[:60], saved(BASE, "JPEG", **how)
    yield "JPEG CMYK progressive", saved(BASE.convert("CMYK"), "JPEG", progressive=True)
    for n, image, exif in turned(): yield f"JPEG orientation {n}", saved(image, "JPEG", exif=exif)
    yield "JPEG without its end", saved(BASE, "JPEG")[:-2]
    for name, profile in (("P3", rgb_profile(2.2, *P3)), ("damaged", b"acsp" * 99)):
        yield f"JPEG with a profile, {name}", saved(BASE, "JPEG", icc_profile=profile)
    yield "JPEG with a profile of inks", saved(BASE.convert("CMYK"), "JPEG", icc_profile=ink_profile())
    yield "JPEG with a profile of greys", saved(BASE.convert("L"), "JPEG", icc_profile=grey_profile())


def all_files():
    "One file for each format, mode and way of writing."
    yield from exact_files()
    yield from every_mode()
    yield from transparent_files()
    yield "GIF interlaced", saved(BASE, "GIF", interlace=1)
    yield from jpeg_files()


CORPUS = dict(all_files())
PNG = CORPUS["PNG"]
JPEG = CORPUS["JPEG RGB"]


def change_byte(rng, data, i): data[i] = rng.randrange(256)


def flip_bit(rng, data, i): data[i] ^= 1 << rng.randrange(8)


def leave_out(rng, data, i): del data[i:i + rng.choice((1, 1, 2, 4, 30))]


def double(rng, data, i): data[i:i] = data[i:i + rng.choice((1, 1, 2, 4, 30))]


def fill(rng, data, i):
    n = rng.choice((1, 1, 2, 4, 30))
    data[i:i + n] = rng.choice((b"\0", b"\xff")) * n


def mutate(rng: random.Random, data, other):
    "A file with some of its bytes changed, left out, doubled, filled, or taken from another file."
    data = bytearray(data)
    change = rng.choice((change_byte, flip_bit, leave_out, double, fill, None))
    only_header = rng.random() < .2
    for _ in range(rng.choice((1, 1, 3, 10, 40))):
        if not data: break
        i = rng.randrange(min(len(data), 60) if only_header else len(data))
        if change: change(rng, data, i)
        else: data[i:i + 4] = other[i % len(other):][:4]
    return bytes(data)
