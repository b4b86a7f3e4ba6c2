"""What reproduce.sh asks: `python -m gmf_edge.report.reproduction WHAT ...`

versions BUNDLE                        which installed versions are others than those that made the bundle; only said
file VARIABLE PATH SHA256              whether a file is the one that was used
images VARIABLE ADDRESS N SEED SHA256  whether the images drawn from there are those that were used
compare BUNDLE OTHER                   whether graphs and weights of two bundles are the same to the byte, and what else differs
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gmf_edge import __version__
from gmf_edge.artifact import digest_of, library_versions, read_json, sha256_of, source_digest
from gmf_edge.bundle import MANIFEST, MEASUREMENTS, PAGE, REPORT, REPRODUCE, WEIGHTS
from gmf_edge.errors import BundleError, DataError, GmfEdgeError, SpecError
from gmf_edge.imageset import ImageSet

# what was measured, when and where: never the same twice
_MEASURED = {REPORT, PAGE, MEASUREMENTS, REPRODUCE}


def check_file(variable: str, path: Path, sha256: str) -> None:
    """A file is the one that was used.

    Raises:
        DataError: it is not there, or another one.
    """
    if not path.is_file():
        raise DataError(f"{variable} is {path}, which is no file", f"set {variable} to the file with SHA-256 {sha256}")
    found = sha256_of(path)
    if found != sha256:
        raise DataError(f"{variable} is {path} with SHA-256 {found}", f"set it to the file with SHA-256 {sha256}")


def check_images(variable: str, address: str, count: int, seed: int, sha256: str) -> None:
    """The images that are drawn from an address are those that were used: names, classes and contents.

    Raises:
        DataError: there are fewer, or others.
    """
    with ImageSet.open(address) as images:
        if len(images) < count:
            raise DataError(f"{variable} is {address} with {len(images)} images", f"{count} were used; set it to the same set")
        drawn = images if len(images) == count else images.spread(count, seed)
        # the manifest has the digest of a digest for the evaluation images, the set's own for the calibration images
        if sha256 not in (drawn.sha256, digest_of(drawn.sha256)):
            raise DataError(
                f"{variable} is {address}, whose {count} images are not those that were used", "set it to the same set of images"
            )


def other_versions(manifest: Mapping[str, Any]) -> list[str]:
    """One phrase for each version that is another here: "torch 2.13.0 -> 2.14.0"."""
    here = {"gmf-edge": __version__, **library_versions()}
    made: Mapping[str, str] = manifest["versions"]
    changed = [
        f"{name} {version} -> {here.get(name, 'not installed')}" for name, version in made.items() if here.get(name) != version
    ]
    source = manifest["request"].get("source_sha256")
    if source is not None and source != source_digest():
        changed.append("gmf-edge's own source")
    return changed


def differing_files(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of the files that are not the same to the byte, of those that are made and not measured."""
    measured = {*_MEASURED, *before["engine_files"], *after["engine_files"]}
    names = (set(before["files"]) | set(after["files"])) - measured
    return sorted(name for name in names if _sha256(before, name) != _sha256(after, name))


def _sha256(manifest: Mapping[str, Any], name: str) -> str | None:
    entry = manifest["files"].get(name)
    return None if entry is None else str(entry["sha256"])


def compare(bundle: Path, other: Path) -> tuple[bool, list[str]]:
    """(whether graphs and weights are the same, what to say about it, a line each)."""
    before, after = (read_manifest(folder) for folder in (bundle, other))
    differing = differing_files(before, after)
    decisive = {*before["graphs"].values(), *after["graphs"].values(), WEIGHTS}
    same = [name for name in sorted(decisive) if name not in differing]
    lines = [f"same: {', '.join(same)}"] if same else []
    lines += [f"differs: {name}: {_sha256(before, name)} -> {_sha256(after, name)}" for name in differing]
    if before["precision"] != after["precision"]:
        lines.append(
            f"delivered {before['precision']} -> {after['precision']}: which one is decided by the speed that was measured"
        )
    if differing:
        changed = other_versions(before)
        lines.append(f"made with other versions: {', '.join(changed)}" if changed else "made with the same versions")
        if not decisive & set(differing):
            lines.append("graphs and weights are the same; what differs was computed, and rounds in another way on another CPU")
    return not decisive & set(differing), lines


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a bundle.

    Raises:
        BundleError: there is none.
    """
    values: dict[str, Any] = read_json(folder / MANIFEST, BundleError, "give the folder of a bundle")
    return values


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 where all is the same."""
    try:
        what, *rest = arguments or [""]
        if what == "versions" and len(rest) == 1:
            changed = other_versions(read_manifest(Path(rest[0])))
            if changed:
                print(f"note: other versions than those that made the bundle: {', '.join(changed)}")
        elif what == "file" and len(rest) == 3:
            check_file(rest[0], Path(rest[1]), rest[2])
        elif what == "images" and len(rest) == 5:
            check_images(rest[0], rest[1], int(rest[2]), int(rest[3]), rest[4])
        elif what == "compare" and len(rest) == 2:
            same, lines = compare(Path(rest[0]), Path(rest[1]))
            print("\n".join(lines))
            print("REPRODUCED" if same else "NOT REPRODUCED: graphs or weights differ")
            return 0 if same else 1
        else:
            raise SpecError(f"cannot read {' '.join(arguments)!r}", "run reproduce.sh, which knows how to ask")
    except GmfEdgeError as error:
        print(f"error: {error.problem}\nwhat to do: {error.remedy}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
