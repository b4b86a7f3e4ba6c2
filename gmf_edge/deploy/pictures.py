"""What a user named as pictures -> each picture, readable: files, folders, archives and patterns, in the order given."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gmf_edge.errors import DataError

PATTERN_SIGNS = frozenset("*?[")


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: its path as given, or its path below the folder or archive that was given.
        source: what to read it from: its path, or a call that returns its bytes.
    """

    name: str
    source: Path | Callable[[], bytes]

    @property
    def content(self) -> Path | bytes:
        """For image.rgb_image: the path, or the bytes, read now.

        Raises:
            DataError: it cannot be read any more.
        """
        return self.source if isinstance(self.source, Path) else self.source()


def pictures_at(addresses: Sequence[Path], stack: ExitStack) -> list[Picture]:
    """Every picture at the addresses, none twice.

    Args:
        addresses: picture files, folders, .zip archives (or pictures.zip/folder), or patterns such as photos/**/*.jpg.
        stack: closes the archives.

    Raises:
        DataError: an address that holds no pictures, a pattern that matches nothing, or a damaged archive.
    """
    found: dict[str, Picture] = {}
    for address in addresses:
        for picture in _pictures_at(address, stack):
            found.setdefault(picture.name, picture)
    return list(found.values())


def _pictures_at(address: Path, stack: ExitStack) -> Iterator[Picture]:
    if not address.exists() and PATTERN_SIGNS & set(str(address)):
        matches = sorted(glob.glob(str(address), recursive=True))
        if not matches:
            raise DataError(f"no picture matches {address}", "check the pattern; quote it so that the shell leaves it alone")
        for match in matches:
            yield from _pictures_at(Path(match), stack)
    elif address.is_dir() or ".zip" in str(address).lower():
        from gmf_edge.imageset import ImageSet

        images = stack.enter_context(ImageSet.without_labels(address))
        yield from (Picture(f"{address}/{item.name}", item.read) for item in images.items)
    else:
        yield Picture(str(address), address)
