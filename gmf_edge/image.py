"""picture -> RGB -> short side resized (bicubic) -> centre crop -> (x / 255 - mean) / std: float32 [3, H, W].

This is the only preprocessing: calibration, parity, golden data and prediction all come through here. It follows, number for
number, what upstream evaluates with, and upstream evaluates with torchvision on Pillow images:

step            source
RGB             torchvision ImageFolder's loader: Pillow's convert("RGB"). Alpha is dropped, not blended; the EXIF orientation is
                NOT applied, because the training and evaluation pictures never had it applied; prediction, which meets
                photographs as cameras and phones write them, asks for `upright`. One departure: 16-bit grey is
                scaled to 8 bits (its high byte, as Pillow itself reads 16-bit colour), where convert would clip it to white.
size            scale = floor(H / crop_pct), timm's rule, and at 0.875 upstream's int(256 / 224 * H): 64 -> 73, 224 -> 256.
resize, H == W  torchvision Resize(int): short side = scale, long side = int(scale * long / short).
resize, H != W  timm's rule for inputs that are not square: both sides shrink by the same factor min(h / scale_h, w / scale_w),
                rounded, so that the picture covers (scale_h, scale_w); bicubic like the rest.
centre crop     torchvision CenterCrop: top = round((h - H) / 2), ties to even; what is smaller than the crop is padded with black.
normalise       torchvision ToTensor and Normalize, in float32.

B batch, H and W of the model's input, h and w of a picture, all in pixels.
"""

from __future__ import annotations

import io
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gmf_edge.errors import DataError, EnvironmentProblem, SpecError

if TYPE_CHECKING:
    from PIL import Image

Float32Array = npt.NDArray[np.float32]

# a picture of more pixels is refused before it is decoded; Pillow's own line for a decompression bomb: 256 MiB of RGB
MAX_PIXELS = 1024**3 // 4 // 3
# what ImageSet takes by its suffixes, and GIF; Pillow knows formats (EPS) for which it would start another program
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# modes whose pixels Pillow's convert("RGB") would clip at 255
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a model input; the module says by which rules.

    Attributes:
        image_size: (H, W) of the model's input in pixels.
        crop_pct: share of the resized short side that the centre crop keeps; upstream evaluates with 224 / 256 = 0.875.
        mean, std: per channel (R, G, B) on the 0..1 scale.
        interpolation: of the resize; "bicubic" alone is known.

    Raises:
        SpecError: a value that no preprocessing can have.
    """

    image_size: tuple[int, int]
    crop_pct: float = 0.875
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if len(self.image_size) != 2 or any(side < 1 for side in self.image_size):
            problem = f"image size {self.image_size} is not (height, width) in pixels"
            raise SpecError(problem, "give two positive integers, such as (224, 224)")
        # written so that NaN is refused too
        if not 0 < self.crop_pct <= 1:
            raise SpecError(f"--crop-pct is {self.crop_pct}", "give a share above 0 and at most 1, such as 0.875")
        if self.interpolation != "bicubic":
            raise SpecError(f"interpolation {self.interpolation!r} is not known", "use bicubic")
        if len(self.mean) != 3 or not all(math.isfinite(value) for value in self.mean):
            raise SpecError(f"mean {self.mean} is not three finite numbers", "use ImageNet's 0.485, 0.456, 0.406")
        if len(self.std) != 3 or not all(0 < value < math.inf for value in self.std):
            raise SpecError(f"std {self.std} is not three positive numbers", "use ImageNet's 0.229, 0.224, 0.225")

    @property
    def scale_size(self) -> tuple[int, int]:
        """(H, W) before the centre crop: floor of each side over crop_pct."""
        height, width = self.image_size
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for a manifest."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of to_json.

        Raises:
            SpecError: a field is missing or nonsense.
        """
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**fields)
        except TypeError as error:
            raise SpecError(f"not a preprocessing spec: {error}", "the file was written by another version or edited") from error


def _require_pillow() -> None:
    """Only pictures need Pillow: a device that proves its engine on golden data does without it.

    Raises:
        EnvironmentProblem: Pillow is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(f"reading pictures needs Pillow: {error}", "pip install pillow") from error


def rgb_image(source: Path | bytes, name: str | None = None, *, upright: bool = False) -> Image.Image:
    """The picture, decoded whole, as 8-bit RGB.

    Args:
        source: a file, or the bytes of one.
        name: what error messages call it; the path itself by default.
        upright: turn it as its EXIF orientation says, as a viewer does. For a user's own photographs; see the module.

    Raises:
        DataError: not a picture, a broken or truncated one, one of more than MAX_PIXELS, or one whose pixels have no defined range.
    """
    _require_pillow()
    from PIL import Image, UnidentifiedImageError

    name = name or ("the picture" if isinstance(source, bytes) else str(source))
    try:
        if isinstance(source, Path) and source.exists() and not (source.is_file() or source.is_dir()):
            raise DataError(f"{name} is not a regular file", "name a picture file")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            _refuse_too_large(image.width, image.height, f"{name} has")
            rgb = _as_rgb(image, name)
            return _turned(rgb, _orientation(image)) if upright else rgb
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not a picture that Pillow can read", "replace it with a JPEG or PNG, or remove it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(f"{name} has more pixels than can be decoded safely") from error
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist", "check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{name} is a folder, not a picture", "name one picture file") from error
    except PermissionError as error:
        raise DataError(f"{name} may not be read", "give yourself read permission on it") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        # Pillow's decoders end a truncated or damaged file with any of these
        raise DataError(f"{name} is broken or truncated ({error})", "copy it again from its source, or remove it") from error


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    """convert("RGB"), except for 16-bit grey, which is scaled; see the module."""
    from PIL import Image

    # Pillow reads 16-bit PNG and PGM as mode I in some versions and as I;16 in others; mode I of a TIFF is really 32-bit
    if image.mode in SIXTEEN_BIT_MODES or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # in the type that Pillow gives, 16 or 32 bits: a large picture is there several times already
        high_byte = (np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)  # [h, w]
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(f"{name} has 32-bit pixels, whose range is not defined", "save it with 8 bits a channel")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1, upright, where there is none or the EXIF data are damaged."""
    from PIL import ExifTags

    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's EXIF reader ends damaged data with many kinds of error, and the picture itself is whole
        return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as its EXIF orientation wants it seen. Source: EXIF 2.32, tag 274."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _too_large(problem: str) -> DataError:
    return DataError(problem, f"scale it down to at most {MAX_PIXELS // 10**6} million pixels, or remove it")


def _refuse_too_large(width: int, height: int, subject: str) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(f"{subject} {width} x {height} pixels")


def resized_size(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """(h, w) of a picture of (height, width) after the resize; both at least image_size. The module gives the two rules."""
    scale_h, scale_w = preprocess.scale_size
    if preprocess.image_size[0] == preprocess.image_size[1]:
        short, long = sorted((height, width))
        long = int(scale_h * long / short)
        return (scale_h, long) if height <= width else (long, scale_h)
    factor = min(height / scale_h, width / scale_w)
    return round(height / factor), round(width / factor)


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle (height, width) of a picture, padded with black where the picture is smaller.

    Source: torchvision.transforms.functional.center_crop.
    """
    from PIL import Image

    pad_h, pad_w = max(height - image.height, 0), max(width - image.width, 0)
    if pad_h or pad_w:
        padded = Image.new(image.mode, (image.width + pad_w, image.height + pad_h))
        # the odd pixel of padding goes to the bottom and to the right
        padded.paste(image, (pad_w // 2, pad_h // 2))
        image = padded
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))


def input_array(image: Image.Image, preprocess: Preprocess, name: str = "the picture") -> Float32Array:
    """The model input of one RGB picture: float32 [3, H, W], contiguous.

    Raises:
        DataError: the picture is so long and narrow that it would have more than MAX_PIXELS after the resize.
    """
    from PIL import Image

    height, width = resized_size(image.height, image.width, preprocess)
    _refuse_too_large(width, height, f"{name} is {image.width} x {image.height}; resized it would have")
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(center_crop(image, *preprocess.image_size))  # uint8 [H, W, 3]
    unit = pixels.astype(np.float32) / np.float32(255)
    normal = (unit - np.asarray(preprocess.mean, np.float32)) / np.asarray(preprocess.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))  # [3, H, W]


def input_from_file(
    source: Path | bytes, preprocess: Preprocess, name: str | None = None, *, upright: bool = False
) -> Float32Array:
    """rgb_image, then input_array: float32 [3, H, W].

    Raises:
        DataError: see rgb_image and input_array.
    """
    name = name or ("the picture" if isinstance(source, bytes) else str(source))
    return input_array(rgb_image(source, name, upright=upright), preprocess, name)


def default_workers() -> int:
    """Threads that decode at once: the CPU cores this process may use, at most eight."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def input_batches(
    sources: Iterable[Callable[[], Float32Array]], batch_size: int, workers: int | None = None
) -> Iterator[Float32Array]:
    """Batches in the order of the sources: float32 [batch_size, 3, H, W], the last one shorter.

    Pictures are read and decoded in threads (Pillow releases the lock) that run ahead of the consumer by 2 * workers pictures and
    no more, so that memory stays at one batch and those few, whatever the number of sources. An iterator that is dropped early
    stops its threads.

    Args:
        sources: one call each that returns a picture's input, [3, H, W]; see input_from_file.
        batch_size: pictures a batch.
        workers: threads; default_workers() where None.

    Raises:
        SpecError: batch_size or workers below 1.
        DataError: of the first source, in their order, that fails.
    """
    workers = default_workers() if workers is None else workers
    if batch_size < 1 or workers < 1:
        raise SpecError(f"a batch of {batch_size} pictures by {workers} threads", "give at least one of each")
    return _batches_in_order(iter(sources), batch_size, workers)


def _batches_in_order(sources: Iterator[Callable[[], Float32Array]], batch_size: int, workers: int) -> Iterator[Float32Array]:
    with ThreadPoolExecutor(workers, thread_name_prefix="pictures") as pool:
        ahead: deque[Future[Float32Array]] = deque(pool.submit(source) for source in islice(sources, 2 * workers))
        try:
            while ahead:
                first = ahead[0].result()
                batch = np.empty((batch_size, *first.shape), np.float32)  # [B, 3, H, W]
                filled = 0
                while ahead and filled < batch_size:
                    batch[filled] = ahead.popleft().result()
                    filled += 1
                    ahead.extend(pool.submit(source) for source in islice(sources, 1))
                yield batch[:filled]
        finally:
            for future in ahead:
                future.cancel()
