"""Pictures, archives and class folders that must be refused."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from fault_harness import BadInput, Material, bad
from PIL import Image

from gmf_edge.imageset import MAX_FILE_BYTES

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".bmp": "BMP", ".ppm": "PPM", ".webp": "WEBP", ".tif": "TIFF", ".gif": "GIF"}


def picture(suffix: str, rng: random.Random, size: tuple[int, int] = (80, 60)) -> bytes:
    """A good picture of noise."""
    target = io.BytesIO()
    pixels = np.frombuffer(rng.randbytes(3 * size[0] * size[1]), np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(pixels).save(target, FORMATS[suffix])
    return target.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, colour: int = 2) -> bytes:
    """A PNG with this header and these chunks, their check sums right."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def pictures(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """One picture for `predict`."""

    def given(content: bytes, name: str) -> Callable[[Path], Sequence[object]]:
        def make(here: Path) -> Sequence[object]:
            (here / name).write_bytes(content)
            return ["predict", material.bundle, here / name]

        return make

    for suffix in FORMATS:
        good = picture(suffix, rng)
        for share in (0.001, 0.01, 0.1, 0.2, 0.3, 0.45, 0.6):
            size = max(1, int(share * len(good)))
            yield bad(f"{suffix} cut at {size} of {len(good)}", given(good[:size], f"a{suffix}"))
        yield bad(f"empty {suffix}", given(b"", f"a{suffix}"))
        yield bad(f"random {suffix}", given(rng.randbytes(3000), f"a{suffix}"))
        yield bad(f"{suffix} with its first bytes gone", given(good[4:], f"a{suffix}"))
        yield bad(f"{suffix} of zeros", given(bytes(len(good)), f"a{suffix}"))
    for width, height in ((60000, 60000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (2**20, 2**12), (0, 5), (5, 0)):
        yield bad(f"a PNG that says {width} x {height}", given(png(width, height), "a.png"))
    for width, height in ((1, 90_000), (90_000, 1), (2, 200_000)):
        yield bad(f"a strip of {width} x {height}", given(picture(".png", rng, (width, height)), "a.png"))
    for depth, colour in ((3, 2), (8, 1), (16, 3), (255, 255)):
        yield bad(f"a PNG of depth {depth}, colour {colour}", given(png(8, 8, depth=depth, colour=colour), "a.png"))
    for kind, start in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0")):
        yield bad(f"a bomb in {kind!r}", _text_bomb(material, kind, start))
    for form in ("PNG", "TIFF"):
        yield bad(f"144 million black pixels in a small {form}", _pixel_bomb(material, form))
    headers = {
        "a.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
        "b.ppm": b"P6 100000 100000 255\n",
        "c.ppm": b"P6 -5 5 255\n" + bytes(75),
        "d.pgm": b"P5 5 5 99999999\n" + bytes(75),
        "e.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0),
        "f.webp": b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff\xff\xff" * 2,
    }
    for name, content in headers.items():
        yield bad(f"a header that lies, {name}", given(content, name))
    good = bytearray(picture(".jpg", rng))
    frame = good.find(b"\xff\xc0")
    good[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    yield bad("a JPEG that says 65500 x 65500", given(bytes(good), "a.jpg"))
    for mode in ("I", "F"):
        target = io.BytesIO()
        Image.new(mode, (40, 40)).save(target, "TIFF")
        yield bad(f"32-bit pixels, {mode}", given(target.getvalue(), "a.tif"))
    good = bytearray(picture(".png", rng))
    for offset in range(8, 33, 2):
        damaged = bytearray(good)
        damaged[offset] ^= 0x11
        yield bad(f"byte {offset} of a PNG's header", given(bytes(damaged), "a.png"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch code-was-run) (r) file\nshowpage\n"
    for name, content in {
        "a.eps": eps,
        "eps.png": eps,
        "a.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "a.pdf": b"%PDF-1.4\n",
        "a.psd": b"8BPS\0\1" + bytes(40),
        "a.txt": b"text\n" * 99,
        "a.html": b"<html></html>",
        "a.npy": b"\x93NUMPY\1\0" + bytes(80),
        "a.ico": b"\0\0\1\0" + bytes(40),
        "a.zip": b"PK\3\4" + bytes(60),
    }.items():
        yield bad(f"{name} instead of a picture", given(content, name))
    yield from _picture_places(material)


def _text_bomb(material: Material, kind: bytes, start: bytes) -> Callable[[Path], Sequence[object]]:
    def make(here: Path) -> Sequence[object]:
        (here / "a.png").write_bytes(png(8, 8, (kind, start + zlib.compress(bytes(64 * 2**20), 1))))
        return ["predict", material.bundle, here / "a.png"]

    return make


def _pixel_bomb(material: Material, form: str) -> Callable[[Path], Sequence[object]]:
    def make(here: Path) -> Sequence[object]:
        options = {"compression": "tiff_deflate"} if form == "TIFF" else {"compress_level": 1}
        Image.new("L", (12000, 12000)).save(here / "bomb", form, **options)
        return ["predict", material.bundle, here / "bomb"]

    return make


def _picture_places(material: Material) -> Iterator[BadInput]:
    def pipe(here: Path) -> Sequence[object]:
        os.mkfifo(here / "a.png")
        return ["predict", material.bundle, here / "a.png"]

    def loop(here: Path) -> Sequence[object]:
        (here / "a.png").symlink_to(here / "a.png")
        return ["predict", material.bundle, here / "a.png"]

    def empty_folder(here: Path) -> Sequence[object]:
        (here / "none").mkdir()
        return ["predict", material.bundle, here / "none"]

    def undecodable_name(here: Path) -> Sequence[object]:
        path = os.fsdecode(os.fsencode(here) + b"/\xff\xfe.png")
        Path(path).write_bytes(b"x")
        return ["predict", material.bundle, path]

    def line_feed_in_name(here: Path) -> Sequence[object]:
        (here / "a\nerror: b\x1b[31m.png").write_bytes(b"x")
        return ["predict", material.bundle, here / "a\nerror: b\x1b[31m.png"]

    def save_over_files(here: Path) -> Sequence[object]:
        (here / "mine").mkdir()
        (here / "mine" / "thesis.txt").write_text("years of work")
        return ["predict", material.bundle, material.bundle / "none.png", "--save", here / "mine"]

    for make in (pipe, loop, empty_folder, undecodable_name, line_feed_in_name):
        yield bad(make.__name__, make)
    yield bad("save_over_files", save_over_files, 2)
    for path in ("none.png", "/dev/zero", "/dev/null", "/proc/self/mem", "x*/[.png", "none/*.jpg", "a" * 5000, "/etc/passwd/a.png"):
        yield bad(f"the path {path[:20]!r}", lambda here, path=path: ["predict", material.bundle, path])  # type: ignore[misc]


Layout = Mapping[str, bytes]


def layouts(material: Material, rng: random.Random) -> Iterator[tuple[str, Layout]]:
    """Sets of pictures that are none for a model of ten digits, by path."""
    good = dict(material.pictures)
    yield "no files", {}
    yield "no pictures", {"readme.txt": b"x", "0/notes.md": b"y"}
    yield "hidden ones only", {"__MACOSX/0/._1.png": b"x", ".hidden/0/1.png": b"x"}
    yield "a picture beside class folders", {**good, "loose.png": good["0/0.png"]}
    yield "nested deeper", {f"a/{name}": content for name, content in good.items()} | {"b/c/d/1.png": b"x"}
    for names in (("train", "val"), ("train", "test"), ("Training", "Validation")):
        yield (
            f"splits {names}",
            {f"{split}/{name.replace('/', '-')}": content for split in names for name, content in good.items()},
        )
    for count in (1, 2, 5, 9):
        kept = {name: content for name, content in good.items() if int(name[0]) < count}
        yield f"{count} of ten classes", {f"set/{name}": content for name, content in kept.items()} | kept
    yield "eleven classes", {**good, "99/0.png": good["0/0.png"]}
    yield "other class names", {f"digit {name}": content for name, content in good.items()}
    yield "a class name with a line feed", {(f"0\n{name}" if name < "1" else name): content for name, content in good.items()}
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".ppm", ".tif"):
        whole = picture(suffix, rng)
        for kind, content in (("cut", whole[: len(whole) // 3]), ("empty", b""), ("random", rng.randbytes(500))):
            yield f"one {kind} {suffix}", {**good, f"{rng.randrange(10)}/bad{suffix}": content}
    yield "one bomb", {**good, "3/bomb.png": png(60000, 60000)}
    yield "one strip", {**good, "3/strip.png": picture(".png", rng, (1, 90_000))}
    yield "all broken", dict.fromkeys(good, b"\x89PNG broken")


def class_folders(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """Folders for --eval-data and --calibration-data."""

    def write(here: Path, layout: Layout) -> Path:
        for name, content in layout.items():
            (here / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (here / "set" / name).write_bytes(content)
        (here / "set").mkdir(exist_ok=True)
        return here / "set"

    def evaluation(layout: Layout, change: Callable[[Path], object] = lambda folder: None) -> Callable[[Path], Sequence[object]]:
        def make(here: Path) -> Sequence[object]:
            change(write(here, layout))
            return ["export", "--fp16", "--eval-data", here / "set", "--output", here / "out"]

        return make

    def calibration(layout: Layout, *options: str) -> Callable[[Path], Sequence[object]]:
        def make(here: Path) -> Sequence[object]:
            return ["export", "--int8", "--calibration-data", write(here, layout), *options, "--output", here / "out"]

        return make

    good = dict(material.pictures)
    for name, layout in layouts(material, rng):
        yield bad(name, evaluation(layout))
        if "one " not in name and "class" not in name:
            yield bad(f"calibration: {name}", calibration(layout))
    yield bad("an empty class", evaluation(good, lambda folder: (folder / "empty").mkdir()))
    yield bad("a pipe", evaluation(good, lambda folder: os.mkfifo(folder / "0" / "pipe.png")))
    yield bad("a dead link", evaluation(good, lambda folder: (folder / "0" / "dead.png").symlink_to("nowhere")))
    yield bad("folders that link in a circle", evaluation(good, lambda folder: (folder / "0" / "back").symlink_to(folder)))

    def large_file(folder: Path) -> None:
        with (folder / "0" / "large.png").open("wb") as file:
            file.truncate(MAX_FILE_BYTES + 1)

    yield bad("a file that is too large", evaluation(good, large_file))
    for count in (0, 1, 31):
        yield bad(f"calibration on {count}", calibration(good, "--calibration-images", str(count)), 2)
    yield bad("too few to calibrate on", calibration(good))
    noise = {f"{i % 10}/{i}.png": picture(".png", rng) for i in range(40)}
    yield bad("noise to calibrate on", calibration(noise))
    yield bad("one picture forty times", calibration({f"{i % 10}/{i}.png": good["0/0.png"] for i in range(40)}))
    for path in ("none", "/dev/zero", "/dev/null", "/etc/passwd", "/proc/self/mem", "none.zip/val", "/etc/passwd/x", "a" * 5000):
        for option, precision in (("--eval-data", "--fp16"), ("--calibration-data", "--int8")):
            yield bad(
                f"{option} {path[:20]}",
                lambda here, option=option, precision=precision, path=path: [  # type: ignore[misc]
                    "export",
                    precision,
                    option,
                    path,
                    "--output",
                    here / "out",
                ],
            )


def archives(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """Zips for --eval-data."""

    def given(content: bytes, inside: str = "") -> Callable[[Path], Sequence[object]]:
        def make(here: Path) -> Sequence[object]:
            (here / "set.zip").write_bytes(content)
            return ["export", "--fp16", "--eval-data", here / "set.zip" / inside, "--output", here / "out"]

        return make

    def packed(layout: Layout, method: int = zipfile.ZIP_STORED) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", method) as archive:
            for name, content in layout.items():
                archive.writestr(name, content)
        return target.getvalue()

    pictures = dict(material.pictures)
    good = packed(pictures)
    for name, layout in layouts(material, rng):
        yield bad(name, given(packed(layout, zipfile.ZIP_DEFLATED)))
    for _ in range(20):
        size = rng.randrange(1, len(good) - 22)
        yield bad(f"cut at {size} of {len(good)}", given(good[:size]))
    for _ in range(5):
        yield bad("random bytes", given(rng.randbytes(4000)))
    for unsafe in ("/etc/0.png", "../0.png", "0/../../1.png", "C:/0.png", "..\\0.png", "0/../1.png", "//host/0.png"):
        yield bad(f"the entry {unsafe}", given(packed({**pictures, unsafe: b"x"})))
    yield bad("one entry twice", given(packed({**pictures, "0\\0.png": b"x"})))
    for inside in ("val", "0/deeper", "..", "0/0.png"):
        yield bad(f"the folder {inside}", given(good, inside))
    for _ in range(12):
        damaged = bytearray(good)
        start = good.find(rng.choice(list(pictures.values())))
        damaged[start + rng.randrange(20, 60)] ^= 0x5A
        yield bad("a byte of a picture", given(bytes(damaged)))
    listing, last = good.find(b"PK\x01\x02"), good.rfind(b"PK\x05\x06")
    for field, value in {
        "encrypted": (8, b"\1\0"),
        "a method that nobody knows": (10, b"\x63\0"),
        "compressed, it says": (10, b"\x08\0"),
        "a size that is too large": (24, struct.pack("<I", MAX_FILE_BYTES + 1)),
        "a size that is too small": (24, struct.pack("<I", 3)),
        "a place that is none": (42, struct.pack("<I", 2**31)),
        "another check sum": (16, b"abcd"),
    }.items():
        offset, content = value
        damaged = bytearray(good)
        damaged[listing + offset : listing + offset + len(content)] = content
        yield bad(field, given(bytes(damaged)))
    # Python does without the numbers of disks and of entries, which are between these
    for offset in (0, 1, 2, 3, 12, 13, 14, 16, 17, 18):
        damaged = bytearray(good)
        damaged[last + offset] ^= 0xFF
        yield bad(f"byte {offset} of the last record", given(bytes(damaged)))

    def zeros(here: Path) -> Sequence[object]:
        content = packed({**pictures, "0/zeros.png": bytes(MAX_FILE_BYTES + 1)}, zipfile.ZIP_DEFLATED)
        return given(content)(here)

    yield bad("a picture of zeros that packs a thousand to one", zeros)
    yield bad("an archive in an archive", given(packed({"inner.zip": good})))
