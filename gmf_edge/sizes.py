"""Image sizes (H, W) in pixels: which ones the model takes, and a range of them that one engine takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gmf_edge.errors import SpecError

# the stem halves twice and three of the four stages halve once: 32 in all
SIZE_MULTIPLE = 32
# beyond it a request is a slip of the keyboard, and an error is kinder than a machine without memory
MOST_PIXELS_A_SIDE = 4096


def check_size(image_size: tuple[int, int]) -> None:
    """Refuse an image size (H, W) in pixels that the model has no maps for.

    Raises:
        SpecError: a side that is no multiple of 32, or longer than MOST_PIXELS_A_SIDE.
    """
    for side, pixels in zip(("height", "width"), image_size, strict=True):
        if pixels > MOST_PIXELS_A_SIDE:
            raise SpecError(f"image {side} {pixels} is too large", f"give --image-size at most {MOST_PIXELS_A_SIDE}")
        if pixels < SIZE_MULTIPLE or pixels % SIZE_MULTIPLE:
            below = max(SIZE_MULTIPLE, pixels // SIZE_MULTIPLE * SIZE_MULTIPLE)
            above = below if pixels < SIZE_MULTIPLE else below + SIZE_MULTIPLE
            near = f"{below}" if below == above else f"{below} or {above}"
            raise SpecError(
                f"image {side} {pixels} is not a multiple of {SIZE_MULTIPLE}",
                f"give --image-size a multiple of {SIZE_MULTIPLE}, such as {near}",
            )


@dataclass(frozen=True)
class SizeRange:
    """Image sizes (H, W) in pixels that one engine takes: it accepts min..max in each axis, in steps of 32, and is tuned for opt.

    Raises:
        SpecError: no multiples of 32, or out of order.
    """

    min: tuple[int, int]
    opt: tuple[int, int]
    max: tuple[int, int]

    def __post_init__(self) -> None:
        for size in (self.min, self.opt, self.max):
            check_size(size)
        if not all(low <= opt <= high for low, opt, high in zip(self.min, self.opt, self.max, strict=True)):
            listed = ", ".join(f"{name} {words_of_size(getattr(self, name))}" for name in ("min", "opt", "max"))
            raise SpecError(f"image sizes {listed} are out of order", "give min <= opt <= max in height and in width")

    def includes(self, image_size: tuple[int, int]) -> bool:
        """Whether an engine of this range takes images of that size."""
        rows = zip(self.min, image_size, self.max, strict=True)
        return all(low <= pixels <= high and pixels % SIZE_MULTIPLE == 0 for low, pixels, high in rows)

    @property
    def proved(self) -> tuple[tuple[int, int], ...]:
        """Sizes at which parity is proved: opt, both ends, and one that is as flat and wide as can be: height and width mixed up show."""
        return tuple(dict.fromkeys((self.opt, self.min, self.max, (self.min[0], self.max[1]))))

    def to_json(self) -> dict[str, list[int]]:
        """Plain lists, for a manifest."""
        return {name: list(getattr(self, name)) for name in ("min", "opt", "max")}

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> SizeRange | None:
        """The inverse of to_json; None of None. KeyError, TypeError or SpecError where it is not one."""
        if values is None:
            return None
        low, opt, high = ((int(height), int(width)) for height, width in (values[name] for name in ("min", "opt", "max")))
        return cls(low, opt, high)


def words_of_size(image_size: tuple[int, int]) -> str:
    """(512, 768) -> "512x768"."""
    return f"{image_size[0]}x{image_size[1]}"


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) of "224" or "256x192".

    Raises:
        SpecError: neither form.
    """
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() for part in parts):
        raise SpecError(f"cannot read the image size {text!r}", "give --image-size as 224, or as HxW such as 256x192")
    return int(parts[0]), int(parts[-1])


def parse_range(text: str, image_size: tuple[int, int] | None) -> SizeRange:
    """Image sizes of "256..512" or "256x256..512x768", tuned for image_size, or for the largest where that is None.

    Raises:
        SpecError: another form, no multiples of 32, or out of order.
    """
    low, dots, high = text.partition("..")
    if not dots:
        raise SpecError(f"cannot read the image sizes {text!r}", "write them as MIN..MAX, such as 256..512 or 256x256..512x768")
    smallest, largest = parse_size(low), parse_size(high)
    return SizeRange(smallest, image_size or largest, largest)
