"""Peak memory of every verb, each in a process of its own; writes the table of docs/memory.md.

python benchmarks/memory.py --variants small --output docs/memory.md
python benchmarks/memory.py --variants small large --calibration-images 32 64 128     # is calibration flat in the number of images?

Peak is the largest resident size of the child (getrusage of RUSAGE_CHILDREN, ru_maxrss), shared libraries included. Weights are
random: memory does not depend on their values. Pictures are made here, at the sizes of photographs. The page is written after each row, and
says so where the run was cut off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from gmf_edge.image import MAX_PIXELS
from gmf_edge.imageset import MAX_FILE_BYTES
from gmf_edge.spec import VARIANTS

# runs a command, hands its status on, and says how much its process took; a process a command, because the peak never falls
_CHILD = """
import json, resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"status": status.returncode, "kib": peak, "error": status.stderr[-500:]}))
"""
_ONE_PICTURE = "import sys; from pathlib import Path; from gmf_edge.image import rgb_image; rgb_image(Path(sys.argv[1]))"
_NO_PICTURE = "import numpy; from PIL import Image; Image.init(); import gmf_edge.image"


def peak_mib(command: Sequence[object]) -> float:
    """Peak of one command in MiB; ends this script where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *map(str, command)], stdout=subprocess.PIPE, text=True, check=True, env=os.environ
    )
    found = json.loads(done.stdout)
    # outside the gate is a result too: random weights are not what INT8 was made for
    if found["status"] not in (0, 3):
        raise SystemExit(f"{' '.join(map(str, command))} ended with {found['status']}: {found['error']}")
    return float(found["kib"]) / 1024


def gmf(*arguments: object) -> list[object]:
    """A command of gmf-edge."""
    return [sys.executable, "-m", "gmf_edge", *arguments]


def write_pictures(folder: Path, count: int) -> None:
    """Smooth colour pictures of 640 x 480, each another."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")


def verb_rows(variant: str, folder: Path, images: Sequence[int]) -> Iterator[tuple[str, float]]:
    """(command, MiB) of every verb on one variant, in the order in which a user runs them, calibration last."""
    model = ("--variant", variant, *(("--num-classes", 1000) if variant == "pico" else ()))
    bundle, pictures = folder / "bundle", folder / "pictures"
    write_pictures(pictures, max(images))
    yield f"export --variant {variant} --fp16", peak_mib(gmf("export", *model, "--fp16", "--output", bundle, "-q"))
    for verb, arguments in {
        "deploy": (bundle, "--backend", "onnxruntime"),
        "verify": (bundle,),
        "bench": (bundle, "--duration", 1),
        "predict": (bundle, pictures / "0.jpg"),
        "inspect": (bundle,),
    }.items():
        quiet = () if verb == "inspect" else ("-q",)
        yield f"{verb} ({variant}, FP16)", peak_mib(gmf(verb, *arguments, *quiet))
    command = gmf("build", *model, "--fp16", "--backend", "onnxruntime", "--output", folder / "built", "-q")
    yield f"build --variant {variant} --fp16", peak_mib(command)
    for count in images:
        data = ("--calibration-data", pictures, "--calibration-images", count)
        command = gmf("calibrate", *model, *data, "--output", folder / "ranges.json", "-q")
        yield f"calibrate --variant {variant}, {count} images", peak_mib(command)


def picture_rows(folder: Path) -> list[tuple[str, float]]:
    """(picture, MiB) of decoding the largest pictures that are taken, above a process that decodes none."""
    base = peak_mib([sys.executable, "-c", _NO_PICTURE])
    side = int(MAX_PIXELS**0.5)
    kinds = {
        "PNG, 8-bit RGB": ("RGB", "a.png", {}),
        "PNG, RGBA": ("RGBA", "b.png", {}),
        "PNG, 16-bit grey": ("I;16", "c.png", {}),
        "progressive JPEG": ("RGB", "d.jpg", {"progressive": True}),
        "TIFF, CMYK, deflated": ("CMYK", "e.tif", {"compression": "tiff_deflate"}),
        "GIF, animated": ("P", "f.gif", {"save_all": True}),
    }
    rows = []
    for name, (mode, file, options) in kinds.items():
        # GIF's sides end at 65,535, which MAX_PIXELS does not reach
        picture = Image.new(mode, (side, side))
        if mode == "P":
            options = {**options, "append_images": [Image.new(mode, (side, side), 1)] * 3}
        picture.save(folder / file, **options)
        del picture
        rows.append((f"{name}, {side} x {side}", peak_mib([sys.executable, "-c", _ONE_PICTURE, folder / file]) - base))
        print(f"{rows[-1][0]}: {rows[-1][1]:.0f} MiB", file=sys.stderr, flush=True)
        (folder / file).unlink()
    return rows


def page(verbs: list[tuple[str, float]], pictures: list[tuple[str, float]], seconds: float, arguments: str, whole: bool) -> str:
    """docs/memory.md; `whole` where every row was measured."""

    def table(head: str, rows: list[tuple[str, float]]) -> str:
        return "\n".join([f"| {head} | peak, MiB |", "|---|---|", *(f"| {name} | {mib:.0f} |" for name, mib in rows)])

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "onnxruntime", "numpy", "pillow"))
    worst = max(mib for _, mib in pictures)
    end = "" if whole else "; cut off there: the rows after the last one are still to be measured"
    counted = [name for name, _ in verbs if name.startswith("calibrate")]
    calibration = "\nCalibration streams its pictures: its rows show what depends on their number.\n" if len(counted) > 1 else ""
    count = len(os.sched_getaffinity(0))
    cores = f"{count} core{'s' * (count != 1)}"
    return f"""# Memory

Written by `benchmarks/memory.py {arguments}` ({seconds / 60:.0f} minutes{end}).
{platform.machine()}, {cores}, Python {platform.python_version()}, {versions}.
Peak is the largest resident size of the command's process, shared libraries included; random weights, batches up to 8, 224 x 224 pixels.
What comes after `export` finds PyTorch's export of the variant in the cache.

{table("command", verbs)}
{calibration}
## Pictures

A picture of more than {MAX_PIXELS / 1e6:.0f} million pixels is refused by name before it is decoded, and so is a file of more than
{MAX_FILE_BYTES >> 20} MiB in a set. The largest ones that are taken cost, above the process itself:

{table("picture", pictures)}

So one picture takes at most {worst:.0f} MiB here. Commands that read many decode up to twice as many ahead as there are cores (at most 16).
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["small"], choices=list(VARIANTS))
    parser.add_argument("--calibration-images", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--output", type=Path, help="Markdown file; the screen without it")
    given = parser.parse_args()
    started = time.monotonic()
    words = " ".join(["--variants", *given.variants, "--calibration-images", *map(str, given.calibration_images)])
    verbs: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="gmf-edge-memory-") as name:
        os.environ["GMF_EDGE_CACHE"] = str(Path(name) / "cache")
        pictures = picture_rows(Path(name))
        for variant in given.variants:
            folder = Path(name) / variant
            folder.mkdir()
            for row in verb_rows(variant, folder, given.calibration_images):
                print(f"{row[0]}: {row[1]:.0f} MiB", file=sys.stderr, flush=True)
                verbs.append(row)
                if given.output:
                    given.output.write_text(page(verbs, pictures, time.monotonic() - started, words, whole=False))
    text = page(verbs, pictures, time.monotonic() - started, words, whole=True)
    if given.output:
        given.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
