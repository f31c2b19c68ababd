"Drawn photos of metal parts, good and defective, as somebody's own folder may hold them."
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

KINDS = "scratch", "dent", "stain"
# How the files of a folder are written in turn: ending, mode, options of Pillow
WAYS = (
    (".jpg", "RGB", dict(quality=92)), (".png", "RGB", dict(compress_level=1)),
    (".jpg", "L", dict(quality=92)), (".bmp", "RGB", {}), (".tif", "RGB", {}), (".png", "I;16", {}),
    (".jpg", "CMYK", dict(quality=92)), (".png", "RGBA", {}), (".gif", "P", {}),
    (".jpeg", "turned", dict(quality=92)),
)
BROKEN = "broken_truncated.jpg", "broken_empty.png", "broken_letter.jpg"


def surface(rng, width, height):
    "Brushed metal or gravel, grey."
    if rng.random() < .6:
        rows = 150 + 14 * rng.standard_normal((height, 1), np.float32)
        grey = rows + 6 * rng.standard_normal((height, width), np.float32)
    else:
        coarse = 135 + 30 * rng.standard_normal((height // 8 + 1, width // 8 + 1))
        grey = np.asarray(Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((width, height)))
        grey = grey + 5 * rng.standard_normal((height, width), np.float32)
    slope = np.linspace(-1, 1, width, dtype=np.float32) * rng.uniform(-15, 15)
    tint = rng.uniform(.97, 1.03, 3).astype(np.float32)
    return Image.fromarray(((grey + slope)[..., None] * tint).clip(0, 255).astype(np.uint8))


def draw_defect(image, rng, kind, center):
    "A scratch, a dent or a stain, about a fifth of the shorter side across."
    side = min(image.size)
    r = side * rng.uniform(.1, .16)
    mask = Image.new("L", image.size)
    pen = ImageDraw.Draw(mask)
    x, y = center
    if kind == "scratch":
        turn = rng.uniform(0, np.pi)
        dx, dy = 1.8 * r * np.cos(turn), 1.8 * r * np.sin(turn)
        pen.line((x - dx, y - dy, x + dx, y + dy), fill=255, width=max(int(.25 * r), 3))
        color = (245, 245, 250)
    else:
        wide = r * rng.uniform(.8, 1.3)
        pen.ellipse((x - wide, y - r, x + wide, y + r), fill=240)
        color = (25, 25, 30) if kind == "dent" else (110, 60, 20)
    mask = mask.filter(ImageFilter.GaussianBlur(side / 100))
    image.paste(Image.new("RGB", image.size, color), mask=mask)


def part(rng, *, defect, size=None, at=None, kind=None):
    """One photo. `size` is (width, height), else 120 to 300 pixels each. A defect is near the middle, or `at`
    these fractions of width and height."""
    width, height = size or rng.integers(120, 301, 2)
    image = surface(rng, int(width), int(height))
    if not defect: return image
    # Within the largest centred square
    dx, dy = rng.uniform(-.28, .28, 2) * min(width, height)
    center = (width / 2 + dx, height / 2 + dy) if at is None else (at[0] * width, at[1] * height)
    draw_defect(image, rng, kind or KINDS[rng.integers(3)], center)
    return image


def write(image, stem, number):
    "The file of one photo, in one of the ways in which people's files are written; its path."
    ending, mode, how = WAYS[number % len(WAYS)]
    path = stem.with_name(stem.name + ending)
    if mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # the viewer turns it clockwise
        image, how = image.transpose(Image.Transpose.ROTATE_90), dict(how, exif=exif)
    elif mode == "I;16":
        grey = np.asarray(image.convert("L")).astype("<u2") * 257
        image = Image.frombytes("I;16", image.size, grey.tobytes())
    elif mode != "RGB": image = image.convert(mode)
    image.save(path, **how)
    return path


def parts_folder(root, *, ok=304, defect=40, seed=0, plain=False, broken=False, size=None):
    """A folder with `OK` and `defect` parts; its path. Another seed draws other photos of the same kind.

    Unless `plain`: many formats and modes, umlauts and blanks in names, and files that systems leave behind.
    `broken` adds three files to OK that are no images."""
    rng = np.random.default_rng(seed)
    for name, n in (("OK", ok), ("defect", defect)):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            image = part(rng, defect=name == "defect", size=size)
            label = f"part {i:04}" if i % 5 == 3 else f"mikroskop_ü_{i:04}" if i % 5 == 1 else f"img{i:04}"
            if plain: image.save(folder / f"{i:04}.png", compress_level=1)
            else: write(image, folder / label, i)
        if not plain:
            for junk in ("Thumbs.db", ".DS_Store"): (folder / junk).write_bytes(bytes(64))
    if not plain: (root / "notes.txt").write_text("camera 2, ring light\n", encoding="utf-8")
    if broken:
        whole = (root / "OK" / "broken_truncated.jpg")
        part(rng, defect=False).save(whole, quality=92)
        whole.write_bytes(whole.read_bytes()[:900])
        (root / "OK" / "broken_empty.png").write_bytes(b"")
        (root / "OK" / "broken_letter.jpg").write_text("Dear colleague,\n", encoding="utf-8")
    return root
