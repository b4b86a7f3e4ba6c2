"""NVIDIA's own Python bindings of each supported TensorRT, loaded without TensorRT and without a GPU, and what they offer.

The bindings wheels hold one extension module that links to libnvinfer, libnvinfer_plugin and libnvonnxparser (8.6: also
libnvparsers). Stub libraries that define just the symbols which the module imports satisfy the loader; every class, enum and
pybind11 signature is then there to read. Nothing can be built with them: each stub function returns a null pointer.

    dump("10.3.0")  -> {"version", "classes": {name: {"members", "methods", "properties", ...}}, "functions", "constants"}

Everything is kept under $GMF_EDGE_TEST_CACHE (else $XDG_CACHE_HOME/gmf-edge, else ~/.cache/gmf-edge): the index is asked once.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

DUMPER = Path(__file__).with_name("dump_bindings.py")


@dataclass(frozen=True)
class Bindings:
    """One release of the bindings: its version and the packages that carry it, the first that has a fitting wheel is taken."""

    version: str
    packages: tuple[str, ...]


SUPPORTED = (
    Bindings("8.6.1", ("tensorrt-bindings",)),
    Bindings("10.3.0", ("tensorrt-cu12-bindings",)),
    Bindings("10.13.3.9", ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings")),
    Bindings("11.4.0.106", ("tensorrt-cu13-bindings",)),
)
VERSIONS = tuple(bindings.version for bindings in SUPPORTED)

# what pip says when it cannot talk to an index, as opposed to an index that has no such wheel
UNREACHABLE = re.compile(
    r"connection error|timed out|NewConnectionError|ConnectTimeout|ReadTimeout|Connection (?:refused|reset|aborted|broken)|"
    r"Temporary failure in name resolution|Name or service not known|Network is unreachable|No route to host|"
    r"ProxyError|SSLError|Ignoring indexes|--no-index",
)


class IndexUnreachable(Exception):
    """The package index did not answer: the oracle cannot be asked, which is a reason to skip and never to pass."""


def cache_folder() -> Path:
    """Where wheels, unpacked bindings and dumps are kept, also between test runs (which have a $GMF_EDGE_CACHE of their own)."""
    kept = os.environ.get("GMF_EDGE_TEST_CACHE")
    base = Path(kept) if kept else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gmf-edge"
    return base / "tensorrt-api"


@lru_cache(maxsize=1)
def interpreters() -> tuple[tuple[str, str], ...]:
    """(version such as "3.11", path) of every CPython here: the running one first, then those on PATH."""
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    for minor in (11, 10, 12, 13):
        path = shutil.which(f"python3.{minor}")
        if path and f"3.{minor}" not in found:
            # a version manager's shim may stand on PATH for a Python that is not installed
            probe = subprocess.run([path, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
            if probe.returncode == 0:
                found[f"3.{minor}"] = probe.stdout.strip()
    return tuple(found.items())


def download(package: str, version: str, python: str, into: Path) -> Path | None:
    """The wheel for that Python, or None where the index has none for it.

    Raises:
        IndexUnreachable: the index did not answer.
    """
    machine = platform.machine()
    platforms = [f"manylinux_2_{glibc}_{machine}" for glibc in (35, 34, 31, 28, 27, 24, 17)] + [f"manylinux2014_{machine}"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--retries",
        "1",
        "--no-deps",
        "--only-binary=:all:",
        "--implementation",
        "cp",
    ]
    command += ["--python-version", python, "--dest", str(into)]
    for name in platforms:
        command += ["--platform", name]
    answer = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True)
    if answer.returncode == 0:
        return next(into.glob("*.whl"))
    told = UNREACHABLE.search(answer.stdout + answer.stderr)
    if told or os.environ.get("PIP_NO_INDEX"):
        reason = told[0] if told else "PIP_NO_INDEX is set"
        _unreachable[package] = IndexUnreachable(f"the package index did not answer for {package}=={version}: {reason}")
        raise _unreachable[package]
    return None


def _build_stub_libraries(extension: Path, folder: Path) -> None:
    """One stub for each NVIDIA library that the extension module names, defining every symbol that it imports from them."""
    folder.mkdir()
    dynamic = subprocess.run(["readelf", "-d", str(extension)], capture_output=True, text=True, check=True).stdout
    libraries = [name for name in re.findall(r"NEEDED.*\[(.+?)\]", dynamic) if name.startswith("libnv")]
    imported = subprocess.run(["nm", "-D", "--undefined-only", str(extension)], capture_output=True, text=True, check=True).stdout
    # glibc's and libstdc++'s symbols carry a version (name@VERSION), Python's start with Py: what is left is NVIDIA's
    symbols = sorted(set(re.findall(r"^\s*U (\w+)$", imported, flags=re.MULTILINE)))
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in symbols if not name.startswith(("Py", "_Py"))))
    for library in libraries:
        command = ["gcc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{library}", "-o", str(folder / library), str(source)]
        subprocess.run(command, check=True, capture_output=True)


# an index that does not answer is asked once
_unreachable: dict[str, IndexUnreachable] = {}


@cache
def unpacked(version: str) -> tuple[str, Path]:
    """(path of a Python that fits, folder with `tensorrt/` and `stubs/`) for one of VERSIONS.

    Raises:
        IndexUnreachable: nothing is cached and the index did not answer.
        RuntimeError: the index has no wheel for any Python here.
    """
    bindings = next(b for b in SUPPORTED if b.version == version)
    home = cache_folder()
    for python, path in interpreters():
        folder = home / f"{version}-cp{python}-{platform.machine()}"
        if (folder / "complete").exists():
            return path, folder
    if _unreachable:
        raise next(iter(_unreachable.values()))
    home.mkdir(parents=True, exist_ok=True)
    for python, path in interpreters():
        for package in bindings.packages:
            with tempfile.TemporaryDirectory(dir=home) as scratch:
                wheel = download(package, version, python, Path(scratch))
                if wheel is None:
                    continue
                tree = Path(scratch) / "tree"
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(tree)
                (tree / "tensorrt_bindings").rename(tree / "tensorrt")
                _build_stub_libraries(tree / "tensorrt" / "tensorrt.so", tree / "stubs")
                (tree / "complete").touch()
                folder = home / f"{version}-cp{python}-{platform.machine()}"
                try:
                    tree.rename(folder)
                except OSError:  # another test process was first; its folder holds the same
                    if not (folder / "complete").exists():
                        raise
                return path, folder
    names = " or ".join(bindings.packages)
    raise RuntimeError(f"the index has no {names} {version} for any of Python {', '.join(v for v, _ in interpreters())}")


def environment(folder: Path) -> dict[str, str]:
    """os.environ with the unpacked bindings and their stub libraries in front."""
    return {**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder / "stubs")}


@cache
def dump(version: str) -> dict[str, Any]:
    """What the bindings of that version offer; see dump_bindings.

    Raises:
        IndexUnreachable: as unpacked.
        RuntimeError: the bindings did not load.
    """
    python, folder = unpacked(version)
    cached = folder / f"dump-{hashlib.sha256(DUMPER.read_bytes()).hexdigest()[:12]}.json"
    if not cached.exists():
        answer = subprocess.run([python, str(DUMPER)], capture_output=True, text=True, env=environment(folder))
        if answer.returncode:
            raise RuntimeError(f"tensorrt {version} did not load over its stub libraries: {answer.stderr[-500:]}")
        scratch = cached.with_suffix(f".{os.getpid()}")
        scratch.write_text(answer.stdout)
        scratch.replace(cached)
    described: dict[str, Any] = json.loads(cached.read_text())
    return described
