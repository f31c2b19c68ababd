"""Image files of at most 9.9 MB that cost a careless reader far more time or memory than they should.

    python tests/tools/hostile.py            list the names
    python tests/tools/hostile.py NAME > FILE

`HOSTILE` maps each name to a function that makes the file, in a second or two. Most files hold 32 x 32
pixels, or one colour. They are of five kinds: notes that take long to read, canvases that unpack to far more
than they were, scans that go through the image again and again, animations with far too many frames, and data
that never ends but draws nothing."""
import io
import struct
import sys
import zlib

import numpy as np
from PIL import Image

LIMIT = 9_900_000  # Bytes of one file: a little less than a request may have
SIDE = 7071  # Of a square that has almost 50 million pixels, the most that was ever accepted
WEBP_SIZE = 16_383, 3050  # The same for WebP, which has a largest width
HOSTILE = {}


def hostile(make):
    HOSTILE[make.__name__] = make
    return make


def saved(image, kind, **how):
    image.save(file := io.BytesIO(), kind, **how)
    return file.getvalue()


def filled(start, part, end=b""):
    "As many copies of a part as fit between start and end."
    return start + part * ((LIMIT - len(start) - len(end)) // len(part)) + end


# Parts of PNG files

def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_around(*chunks):
    "A small PNG with these chunks after its header."
    whole = saved(Image.new("RGB", (32, 32)), "PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


def png_filled(part):
    "A small PNG with as many copies of a chunk as fit."
    whole = png_around()
    return filled(whole[:33], part, whole[33:])


def png_of_rows(size, depth, colour, *, rows, interlaced=0):
    "A PNG of rows that are all zero: pairs of their length and their number."
    packer, packed = zlib.compressobj(9), []
    for length, n in rows:
        left = (1 + length) * n
        packed += [packer.compress(bytes(min(2**24, left - i))) for i in range(0, left, 2**24)]
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    data = b"".join(packed) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND")


def adam7_rows(width, height, bits):
    "Length and number of the rows in each of the seven passes of an interlaced PNG."
    for x, y, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
                         (0, 1, 1, 2)):
        yield (-(-(width - x) // dx) * bits + 7) // 8, -(-(height - y) // dy)


# Parts of JPEG files

def segment(marker, data=b""):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg_around(*segments):
    "A small JPEG with these segments before all others."
    whole = saved(Image.new("RGB", (32, 32)), "JPEG")
    return whole[:2] + b"".join(segments) + whole[2:]


def jpeg_filled(part):
    "A small JPEG with as many copies of a segment as fit."
    whole = jpeg_around()
    return filled(whole[:2], part, whole[2:])


def frame_header(kind, components, size=(SIDE, SIDE)):
    "Start of frame: 0xc0 baseline, 0xc2 progressive, 0xc9 and 0xca the same with arithmetic coding."
    parts = b"".join(bytes([i, 0x11, 0]) for i in range(1, components + 1))
    return segment(kind, b"\x08" + struct.pack(">HH", *size[::-1]) + bytes([components]) + parts)


def scan(components, first, last, bits=0):
    "Start of a scan of the coefficients from `first` to `last`."
    chosen = b"".join(bytes([c, 0]) for c in components)
    return segment(0xda, bytes([len(components)]) + chosen + bytes([first, last, bits]))


QUANTISATION = segment(0xdb, b"\0" + b"\1" * 64)


def jpeg_of_scans(kind, components, *parts):
    "A large JPEG from its scans; `parts` come as they are."
    return b"\xff\xd8" + QUANTISATION + frame_header(kind, components) + b"".join(parts) + b"\xff\xd9"


# Parts of WebP files

def webp(size, flags, *chunks):
    "An extended WebP file."
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in size)
    body = b"WEBP" + webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + canvas) + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunk(kind, data=b""):
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp_pixels(side=8):
    "The chunk that holds the pixels of a small WebP."
    return saved(Image.new("RGB", (side, side)), "WEBP", lossless=True)[12:]


def webp_around(flag, *chunks):
    "A small WebP with these chunks behind its pixels."
    return webp((8, 8), flag, webp_pixels(), *chunks)


# Parts of AVIF files

def box(kind, data=b""): return struct.pack(">I", 8 + len(data)) + kind + data


def avif_around(*tables):
    "Some tables about images, where a decoder looks for them."
    start = box(b"ftyp", b"avif\0\0\0\0avifmif1miaf")
    handler = box(b"hdlr", bytes(8) + b"pict" + bytes(13))
    return start + box(b"meta", bytes(4) + handler + box(b"pitm", bytes(4) + b"\0\1") + b"".join(tables))


# Parts of TIFF files

def table(*entries, after=0):
    "A table of a TIFF: tag, type, count and value."
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + rows + struct.pack("<I", after)


def tiff_of(size, *entries, after=0, data=b"\1" * 4096):
    "A TIFF of grey pixels. Where the value of an entry is None, it is the place of the data."
    known = {256: (4, 1, size[0]), 257: (4, 1, size[1]), 258: (3, 1, 8), 262: (3, 1, 1), 273: (4, 1, None),
             277: (3, 1, 1), 278: (4, 1, size[1]), 279: (4, 1, len(data))}
    known |= {tag: rest for tag, *rest in entries}
    place = 8 + 2 + 12 * len(known) + 4
    rows = [(tag, kind, n, place if value is None else value)
            for tag, (kind, n, value) in sorted(known.items())]
    return b"II*\0\x08\0\0\0" + table(*rows, after=after) + data


# EXIF

def ifd(*entries):
    "A table of EXIF: tag, type, count, and the value or where it is."
    rows = [struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries]
    return struct.pack(">H", len(rows)) + b"".join(rows) + bytes(4)


def tiff(*entries, blob=b"", n=1):
    "EXIF with one table. A value of None means the `blob`, `n` of which follow the table."
    at = struct.pack(">I", 8 + 2 + 12 * len(entries) + 4)
    told = [(*entry[:3], at if entry[3] is None else entry[3]) for entry in entries]
    return b"MM\0*\0\0\0\x08" + ifd(*told) + blob * n


SHORT, LONG, RATIONAL, SRATIONAL = 3, 4, 5, 10
TURNED = (0x112, SHORT, 1, b"\0\6\0\0")  # Orientation 6: a quarter turn
THIRDS = struct.pack(">II", 7, 3)


def shared_rationals(n=1_190_000):
    "EXIF of four tables that all say that the same million rationals are theirs."
    def at(place): return struct.pack(">I", place)
    main, exif, gps = 8, 8 + 54, 8 + 54 + 30
    other = gps + 18
    blob = at(other + 18)
    return (b"MM\0*" + at(main)
            + ifd((0x111, RATIONAL, n, blob), TURNED, (0x8769, LONG, 1, at(exif)), (0x8825, LONG, 1, at(gps)))
            + ifd((0x829a, RATIONAL, n, blob), (0xa005, LONG, 1, at(other)))
            + ifd((2, RATIONAL, n, blob)) + ifd((0x111, RATIONAL, n, blob)) + THIRDS * n)


def jpeg_exif(data, size=65_500):
    "A small JPEG whose EXIF is spread over as many segments as it needs."
    return jpeg_around(*(segment(0xe1, b"Exif\0\0" + data[i:i + size]) for i in range(0, len(data), size)))


def rotated():
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


# Notes that take long to read

@hostile
def png_exif_shared(): return png_around(chunk(b"eXIf", shared_rationals()))


@hostile
def webp_exif_shared(): return webp_around(8, webp_chunk(b"EXIF", shared_rationals()))


@hostile
def jpeg_exif_shared(): return jpeg_exif(shared_rationals())


@hostile
def png_exif_long_orientation():
    "The orientation itself is a list of more than a million fractions."
    n = 1_200_000
    fraction = struct.pack(">II", 777_777_777, 1_333_333_333)
    return png_around(chunk(b"eXIf", tiff((0x112, SRATIONAL, n, None), blob=fraction, n=n)))


@hostile
def png_exif_all_tags():
    "Every tag there is, each of which says that it is far longer than the file."
    tags = [(tag, SHORT, 60_000_000, b"\0\0\0\1") for tag in range(65_535)]
    return png_around(chunk(b"eXIf", tiff(*tags)))


@hostile
def png_exif_chunks(): return png_filled(chunk(b"eXIf"))


@hostile
def png_exif_in_hexadecimal():
    return png_filled(chunk(b"tEXt", b"Raw profile type exif\0\n\n\n" + b"45\n" * 3_200_000))


@hostile
def png_profiles():
    "Thousands of colour profiles, each of which unpacks to a megabyte."
    return png_filled(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**20 - 10), 9)))


@hostile
def png_packed_texts():
    "As many packed texts as Pillow's limit of 64 MB lets pass."
    packed = zlib.compress(bytes(2**20 - 10), 9)
    return png_around(*(chunk(b"zTXt", b"%x\0\0" % i + packed) for i in range(63)))


@hostile
def png_packed_texts_without_a_key():
    "They do not count towards that limit."
    return png_filled(chunk(b"zTXt", b"\0\0" + zlib.compress(bytes(2**20 - 10), 9)))


@hostile
def png_texts_not_in_utf8():
    "They do not count either: the last byte of each is damaged."
    packed = zlib.compress(bytes(2**20 - 10) + b"\xff", 9)
    return png_filled(chunk(b"iTXt", b"x\0\1\0\0\0" + packed))


@hostile
def png_exif_in_a_packed_text():
    "A megabyte of hexadecimal digits, as ImageMagick writes EXIF."
    digits = b"\nexif\n  499990\n" + b"0" * 999_980
    return png_around(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(digits, 9)))


@hostile
def png_plain_texts():
    return png_around(*(chunk(b"tEXt", b"%x\0" % i) for i in range(520_000)))


@hostile
def png_xmp():
    return png_filled(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'tiff:Orientation="' * 520_000))


@hostile
def png_unknown_chunks(): return png_filled(chunk(b"abCd"))


@hostile
def png_palettes(): return png_filled(chunk(b"PLTE", bytes(768)))


@hostile
def jpeg_exif_bytes():
    "Almost a million EXIF segments of one byte; joining them copies the whole each time."
    return jpeg_filled(segment(0xe1, b"Exif\0\0x"))


@hostile
def jpeg_exif_kilobytes(): return jpeg_filled(segment(0xe1, b"Exif\0\0" + b"x" * 1000))


@hostile
def jpeg_exif_resolution():
    "The resolution, which is read when a JPEG is opened, is a million fractions."
    n = 1_190_000
    return jpeg_exif(tiff((0x11a, RATIONAL, n, None), (0x128, SHORT, 1, b"\0\2\0\0"), blob=THIRDS, n=n))


@hostile
def jpeg_comments(): return jpeg_filled(segment(0xfe))


@hostile
def jpeg_profiles(): return jpeg_filled(segment(0xe2, b"ICC_PROFILE\0\1\1"))


@hostile
def jpeg_photoshop():
    resource = b"8BIM\0\1\0\0\0\0\0\0"
    return jpeg_filled(segment(0xed, b"Photoshop 3.0\0" + resource * 5000))


@hostile
def jpeg_list_of_images():
    "A list of 2,600 further images (MPF), none of which is there."
    n = 2600
    entries = (0xb001, LONG, 1, struct.pack(">I", n)), (0xb002, 7, 16 * n, None)
    return jpeg_around(segment(0xe2, b"MPF\0" + tiff(*entries, blob=bytes(16), n=n)))


@hostile
def jpeg_fill_bytes(): return jpeg_filled(b"\xff")


@hostile
def webp_exif_chunks(): return webp_around(8, webp_chunk(b"EXIF") * 1_200_000)


@hostile
def webp_unknown_chunks(): return webp_around(0, webp_chunk(b"abcd") * 1_200_000)


@hostile
def webp_xmp(): return webp_around(4, webp_chunk(b"XMP ", b'tiff:Orientation="' * 520_000))


@hostile
def gif_comments():
    whole = saved(Image.new("P", (32, 32)), "GIF")
    i = whole.index(b",")
    return filled(whole[:i] + b"!\xfe", b"\1x", b"\0" + whole[i:])


@hostile
def gif_extensions():
    whole = saved(Image.new("P", (32, 32)), "GIF")
    i = whole.index(b",")
    return filled(whole[:i], b"!\xff\1x\0", whole[i:])


@hostile
def gif_other_bytes():
    "Bytes that are not the beginning of a block."
    whole = saved(Image.new("P", (32, 32)), "GIF")
    i = whole.index(b",")
    return filled(whole[:i], b"x", whole[i:])


@hostile
def gif_blank_then_blocks():
    "A first frame that shows nothing, so that a reader looks for the next one, through blocks of one byte."
    whole = saved(Image.new("P", (32, 32)), "GIF")
    return filled(whole[:-1] + whole[whole.index(b","):][:10] + b"\2", b"\1x", b"\0;")


@hostile
def avif_exif_shared():
    "The orientation has another name while Pillow writes the file, because Pillow would look into the rest."
    turned, other = b"\x01\x12\0\3", b"\x01\x13\0\3"
    exif = b"Exif\0\0" + shared_rationals().replace(turned, other)
    return saved(Image.new("RGB", (32, 32)), "AVIF", exif=exif).replace(other, turned)


@hostile
def avif_items():
    "A table of images that are not there; a decoder that compares each with all others never ends."
    n = 400_000
    places = b"".join(struct.pack(">I", i) + bytes(4) for i in range(n))
    return avif_around(box(b"iloc", b"\2\0\0\0\0\0" + struct.pack(">I", n) + places))


@hostile
def avif_boxes(): return filled(avif_around(), box(b"free"))


@hostile
def avif_nested(): return avif_around(*[box(b"meta", bytes(4))] * 800_000)


@hostile
def jpeg_profile():
    "A colour profile of almost three megabytes: a table of 31 steps for each of four inks."
    lut = b"mft1" + bytes(4) + bytes([4, 3, 31, 0]) + bytes(36 + 4 * 256 + 31**4 * 3 + 3 * 256)
    size = struct.pack(">I", 144 + len(lut))
    head = size + struct.pack(">4xI4s4s4s12x4s", 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp")
    table = struct.pack(">I4sII", 1, b"A2B0", 144, len(lut))
    return saved(Image.new("CMYK", (32, 32)), "JPEG", icc_profile=head.ljust(128, b"\0") + table + lut)


@hostile
def tiff_rationals():
    "The resolution is more than a million fractions."
    n = 1_190_000
    return tiff_of((32, 32), (282, RATIONAL, n, None), data=struct.pack("<II", 7, 3) * n)


@hostile
def tiff_exif_shared():
    "Its EXIF tables say that the same million fractions are theirs."
    n, at = 1_190_000, 8 + 2 + 12 * 10 + 4
    inner = [(tag, RATIONAL, n, at + 1000) for tag in (0x829a, 0x829d, 0x9201, 0x9202, 0x920a)]
    data = table(*inner).ljust(1000, b"\0") + struct.pack("<II", 7, 3) * n
    return tiff_of((32, 32), (34665, LONG, 1, at), (34853, LONG, 1, at), data=data)


@hostile
def tiff_texts_shared():
    "A thousand texts, each of which is the whole file."
    return tiff_of((32, 32), *((40_000 + i, 7, 9_000_000, 8) for i in range(1000)), data=bytes(9_000_000))


@hostile
def tiff_big_table():
    "A BigTIFF with half a million entries."
    start = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 490_000)
    return start + b"".join(struct.pack("<HHQQ", i & 0xffff, 4, 1, 8) for i in range(490_000))


@hostile
def tiff_chain():
    "As many images as fit, one after the other."
    one = len(table((256, 4, 1, 1)))
    tables = b"".join(table((256, 4, 1, 1), after=8 + one * (i + 1)) for i in range(LIMIT // one - 1))
    return b"II*\0\x08\0\0\0" + tables


@hostile
def tiff_strips():
    "Two million strips of one row, each at the same place."
    n = 1_200_000
    places = (273, LONG, n, None), (278, LONG, 1, 1), (279, LONG, n, None)
    return tiff_of((8, n), *places, data=struct.pack("<I", 8) * n)


@hostile
def tiff_tile():
    "One tile that is much larger than the image."
    tile = ((322, LONG, 1, 60_000), (323, LONG, 1, 60_000), (324, LONG, 1, None), (325, LONG, 1, 4096))
    return tiff_of((32, 32), (259, 3, 1, 8), *tile)


@hostile
def tiff_canvas_lzw(): return saved(Image.new("L", (SIDE, SIDE)), "TIFF", compression="tiff_lzw")


@hostile
def tiff_canvas_deflate():
    "16 million pixels, the most that are accepted, in one strip."
    image = Image.new("RGBA", (4000, 4000))
    return saved(image, "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: 4000}, exif=rotated())


@hostile
def tiff_canvas_fax(): return saved(Image.new("1", (SIDE, SIDE)), "TIFF", compression="group4")


@hostile
def tiff_jpeg_scans():
    "The scans of `jpeg_arithmetic_scans`, inside a TIFF."
    data = jpeg_arithmetic_scans()
    data = data.replace(struct.pack(">HH", SIDE, SIDE), struct.pack(">HH", 4000, 4000))
    return tiff_of((4000, 4000), (259, 3, 1, 7), (258, 3, 1, 8), data=data)


# Canvases that unpack to far more than they were

@hostile
def webp_canvas():
    "Some 40 bytes."
    return saved(Image.new("RGBA", WEBP_SIZE, (1, 2, 3, 128)), "WEBP", lossless=True, method=0)


@hostile
def webp_canvas_rotated():
    image = Image.new("RGBA", WEBP_SIZE, (1, 2, 3, 128))
    return saved(image, "WEBP", lossless=True, method=0, exif=rotated())


@hostile
def webp_canvas_lossy(): return saved(Image.new("RGB", WEBP_SIZE), "WEBP", method=0)


@hostile
def webp_noise():
    "Nine honest megabytes, and slow to read."
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1500, 4), np.uint8)
    return saved(Image.fromarray(pixels), "WEBP", lossless=True, method=0)


@hostile
def png_column(): return png_of_rows((1, 50_000_000), 1, 0, rows=[(1, 50_000_000)])


@hostile
def png_row(): return saved(Image.new("1", (50_000_000, 1)), "PNG")


@hostile
def png_one_bit(): return saved(Image.new("1", (SIDE, SIDE)), "PNG")


@hostile
def png_one_bit_interlaced():
    return png_of_rows((SIDE, SIDE), 1, 0, rows=adam7_rows(SIDE, SIDE, 1), interlaced=1)


@hostile
def png_16_bit_interlaced():
    return png_of_rows((SIDE, SIDE), 16, 6, rows=adam7_rows(SIDE, SIDE, 64), interlaced=1)


@hostile
def png_16_bit(): return png_of_rows((SIDE, SIDE), 16, 6, rows=[(8 * SIDE, SIDE)])


@hostile
def png_16_bit_grey(): return saved(Image.new("I;16", (SIDE, SIDE)), "PNG")


@hostile
def png_rgba_rotated(): return saved(Image.new("RGBA", (SIDE, SIDE)), "PNG", exif=rotated())


@hostile
def png_transparent_colour_rotated():
    return saved(Image.new("RGB", (SIDE, SIDE)), "PNG", exif=rotated(), transparency=(1, 2, 3))


@hostile
def png_palette_rotated():
    return saved(Image.new("P", (SIDE, SIDE)), "PNG", exif=rotated(), transparency=bytes(range(256)))


@hostile
def gif_canvas(): return saved(Image.new("P", (SIDE, SIDE)), "GIF")


@hostile
def bmp_one_bit(): return saved(Image.new("1", (SIDE, SIDE)), "BMP")


@hostile
def jpeg_canvas(): return saved(Image.new("RGB", (SIDE, SIDE)), "JPEG")


@hostile
def jpeg_canvas_cmyk(): return saved(Image.new("CMYK", (SIDE, SIDE)), "JPEG")


# Scans that go through the image again and again

@hostile
def jpeg_progressive(): return saved(Image.new("RGB", (SIDE, SIDE)), "JPEG", progressive=True)


@hostile
def jpeg_progressive_cmyk(): return saved(Image.new("CMYK", (SIDE, SIDE)), "JPEG", progressive=True)


@hostile
def jpeg_progressive_scans():
    "Ninety scans of a code that says: nothing in the next 32,767 blocks."
    blocks = (-(-SIDE // 8))**2
    run = ("0" + "1" * 14) * (blocks // 32_767 + 2)
    run += "1" * (-len(run) % 8)
    nothing = int(run, 2).to_bytes(len(run) // 8, "big").replace(b"\xff", b"\xff\0")
    tables = b"".join(segment(0xc4, bytes([which, 1]) + bytes(15) + bytes([code]))
                      for which, code in ((0, 0), (0x10, 0xe0)))
    start = scan([1], 0, 0) + bytes(blocks // 8 + 2)
    return jpeg_of_scans(0xc2, 1, tables, start, (scan([1], 1, 63) + nothing) * 90)


@hostile
def jpeg_arithmetic_scans():
    "Some 1.5 kB: 99 scans without data, which the arithmetic decoder reads as zeros."
    return jpeg_of_scans(0xc9, 4, (scan([1], 0, 63) + bytes(4)) * 99)


@hostile
def jpeg_arithmetic_progressive():
    return jpeg_of_scans(0xca, 1, scan([1], 0, 0) + bytes(4), (scan([1], 1, 63) + bytes(4)) * 98)


@hostile
def jpeg_arithmetic_restarts():
    "A restart after each block, and no data."
    return jpeg_of_scans(0xc9, 4, segment(0xdd, b"\0\1"), scan([1, 2, 3, 4], 0, 63) + bytes(4))


# Animations with far too many frames

@hostile
def png_frames():
    whole = saved(Image.new("RGB", (8, 8)), "PNG")
    i = whole.index(b"IDAT")
    data = whole[i + 4:i + 4 + int.from_bytes(whole[i - 4:i], "big")]
    n = 90_000
    parts = [whole[:33], chunk(b"acTL", struct.pack(">II", n, 0))]
    for k in range(n):
        frame = struct.pack(">IIIIIHHBB", max(0, 2 * k - 1), 8, 8, 0, 0, 1, 10, 0, 0)
        moved = chunk(b"fdAT", struct.pack(">I", 2 * k) + data) if k else chunk(b"IDAT", data)
        parts += [chunk(b"fcTL", frame), moved]
    return b"".join([*parts, chunk(b"IEND")])


@hostile
def gif_frames():
    whole = saved(Image.new("P", (8, 8)), "GIF")
    i = whole.index(b",")
    return filled(whole[:i], whole[i:-1], b";")


@hostile
def webp_frames():
    size = (7).to_bytes(3, "little")
    frame = webp_chunk(b"ANMF", bytes(6) + size * 2 + (10).to_bytes(3, "little") + b"\0" + webp_pixels())
    return webp((8, 8), 2, webp_chunk(b"ANIM", bytes(6)), frame * (LIMIT // len(frame) - 1))


# Data that never ends but draws nothing

@hostile
def gif_clear_codes():
    "A canvas of 50 million pixels, and nine megabytes of the code that empties the table."
    size = struct.pack("<HH", SIDE, SIDE)
    start = b"GIF89a" + size + b"\x80\0\0" + b"\0\0\0\1\1\1" + b"," + bytes(4) + size + b"\0\2"
    return filled(start, b"\xff" + b"\x24\x49\x92" * 85, b"\0;")


@hostile
def bmp_empty_runs():
    "A run-length BMP whose lines end before they begin."
    whole = bytearray(saved(Image.new("P", (1000, 1000)), "BMP")[:54 + 1024])
    whole[30:34] = struct.pack("<I", 1)
    return filled(bytes(whole), b"\0\0")


@hostile
def png_empty_data_chunks(): return png_filled(chunk(b"IDAT"))


if __name__ == "__main__":
    if len(sys.argv) < 2: print(*HOSTILE, sep="\n")
    else: sys.stdout.buffer.write(HOSTILE[sys.argv[1]]())
