"""Copies of pictures with their classes written below them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gmf_edge.deploy.pictures import Picture
from gmf_edge.errors import SpecError
from gmf_edge.scratch import new_folder, write_failure

if TYPE_CHECKING:
    from PIL import Image

# a copy is for looking at: no longer than this, and wide enough for a line of text
LONGEST_SIDE_PIXELS, NARROWEST_PIXELS = 1024, 320
TEXT_PIXELS, MARGIN_PIXELS = 18, 8


def require_new(folder: Path) -> None:
    """Refuse a place where something is already.

    Raises:
        SpecError: it is a file, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"--save {folder} exists already", "name a new folder, or remove this one")


def save_captioned(pictures: Sequence[Picture], captions: Sequence[Sequence[str]], folder: Path) -> None:
    """Write a PNG of each picture that has a caption into a new folder.

    Args:
        pictures: in the order of the captions.
        captions: the lines below each; no lines for a picture that could not be read.
        folder: see require_new.

    Raises:
        EnvironmentProblem: the folder cannot be written.
    """
    from gmf_edge.image import rgb_image

    width = len(str(len(pictures)))
    with new_folder(folder, replace=False) as temporary:
        for number, (picture, lines) in enumerate(zip(pictures, captions, strict=True), start=1):
            if not lines:
                continue
            image = captioned(rgb_image(picture.content, picture.name, upright=True), lines)
            # numbered, because pictures of two folders may have one name
            stem = re.sub(r"[^\w.-]+", "_", Path(picture.name).stem)[:80]
            path = temporary / f"{number:0{width}}-{stem}.png"
            try:
                image.save(path)
            except OSError as error:
                raise write_failure(folder, error) from error


def captioned(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The RGB picture, scaled down where it is large, over lines of text."""
    from PIL import Image, ImageDraw, ImageFont

    image = image.copy()
    image.thumbnail((LONGEST_SIDE_PIXELS, LONGEST_SIDE_PIXELS))
    try:
        font = ImageFont.load_default(TEXT_PIXELS)
    except (TypeError, ImportError):  # Pillow before 10.1, or without FreeType: its one small font
        font = ImageFont.load_default()
    line_pixels = TEXT_PIXELS + MARGIN_PIXELS // 2
    width = max(image.width, NARROWEST_PIXELS)
    page = Image.new("RGB", (width, image.height + 2 * MARGIN_PIXELS + line_pixels * len(lines)), "white")
    page.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        text = line if isinstance(font, ImageFont.FreeTypeFont) else line.encode("latin-1", "replace").decode("latin-1")
        draw.text((MARGIN_PIXELS, image.height + MARGIN_PIXELS + row * line_pixels), text, fill="black", font=font)
    return page
