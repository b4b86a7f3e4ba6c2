"""A folder for a Jetson: what the device needs to build, prove and measure its engine, and nothing else.

DIR/bundle/       the bundle without engines and reports of other machines, and without graphs for TensorRT 8
DIR/wheels/       gmf-edge's wheel; wheels of its dependencies may be put beside it for a device without a network
DIR/plugins/      the TensorRT plugin's library for the device, where it was given
DIR/install.sh    checks JetPack, Python and TensorRT, makes an environment, deploys, verifies, benches
DIR/README.md     one page
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path
from typing import Any

import gmf_edge
from gmf_edge import __version__
from gmf_edge.bundle import MEASUREMENTS, PAGE, REPORT, REPRODUCE, Bundle, Manifest, seal
from gmf_edge.engines.protocol import Progress
from gmf_edge.errors import EnvironmentProblem, PackageError
from gmf_edge.package.delivered import PackageRequest, copy_template, template
from gmf_edge.spec import OPSET_OLD

BUNDLE, WHEELS, PLUGINS, INSTALL = "bundle", "wheels", "plugins", "install.sh"
# ELF header: bytes 18 and 19 are e_machine, little-endian; EM_AARCH64 (System V ABI)
_ELF, _AARCH64 = b"\x7fELF", 183

# hatchling, which ends when its standard input does: this process holds the other end, and a killed one must not leave a writer behind
_HATCHLING = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_module("hatchling", run_name="__main__", alter_sys=True)
"""


def write_jetson(bundle: Bundle, request: PackageRequest, out: Path, progress: Progress) -> tuple[str, ...]:
    """Write the folder into `out`; notes for the user.

    Raises:
        PackageError: a wheel of another package or version, or a plugin library for another processor.
        EnvironmentProblem: there is neither a wheel nor what builds one.
    """
    progress(None, "copying the bundle")
    _copy_bundle(bundle, out / BUNDLE)
    (out / WHEELS).mkdir()
    if request.wheel is not None:
        _require_this_package(request.wheel)
        shutil.copyfile(request.wheel, out / WHEELS / request.wheel.name)
    else:
        progress(None, "building the wheel")
        _build_wheel(out / WHEELS)
    plugin = ""
    if request.plugin_library is not None:
        _require_aarch64(request.plugin_library)
        (out / PLUGINS).mkdir()
        shutil.copyfile(request.plugin_library, out / PLUGINS / request.plugin_library.name)
        plugin = f"{PLUGINS}/{request.plugin_library.name}"
    copy_template(f"jetson/{INSTALL}", out / INSTALL)
    (out / INSTALL).chmod(0o755)
    manifest = bundle.manifest
    text = template("jetson/README.md").substitute(
        about=f"{manifest.model.variant} {manifest.model.image_size[0]}x{manifest.model.image_size[1]}, {manifest.precision.value}",
        version=__version__,
        weights=manifest.weights.statement,
        plugin=f"The plugin's library `{plugin}` is tried, and used where it is right and faster." if plugin else "",
    )
    (out / "README.md").write_text(text, encoding="utf-8")
    notes = []
    if plugin and "plugin" in {key.split("/")[0] for key in manifest.graphs} and not manifest.lowering.get("kernels"):
        notes.append("the bundle carries no GPU kernels, so the plugin has nothing to run: export with --plugin-arch sm_87 (Orin)")
    return tuple(notes)


def _copy_bundle(bundle: Bundle, folder: Path) -> None:
    """JetPack 6 and 7 have TensorRT 10 or newer; engines and reports of other machines say nothing of this one."""
    manifest = bundle.manifest
    graphs = {key: name for key, name in manifest.graphs.items() if int(key.split("/")[1]) != OPSET_OLD}
    left_out = {
        REPORT,
        MEASUREMENTS,
        PAGE,
        REPRODUCE,
        *manifest.engine_files,
        *(set(manifest.graphs.values()) - set(graphs.values())),
    }
    folder.mkdir()
    for name in manifest.files:
        if name not in left_out:
            shutil.copyfile(bundle.path(name), folder / name)
    lowering: dict[str, Any] = dict(manifest.lowering)
    if isinstance(lowering.get("parsers"), Mapping):
        lowering["parsers"] = {name: found for name, found in lowering["parsers"].items() if name not in left_out}
    changed = {**manifest.to_json(), "graphs": graphs, "engine_files": [], "lowering": lowering}
    seal(folder, Manifest.from_json(changed))


def _build_wheel(folder: Path) -> None:
    """Of the source tree that this program runs from.

    Raises:
        EnvironmentProblem: it was installed from a wheel, or hatchling is missing.
    """
    source = Path(gmf_edge.__file__).parents[1]
    remedy = f"give --wheel: 'pip wheel --no-deps gmf-edge=={__version__}' or 'pip wheel --no-deps SOURCE' makes one"
    if not (source / "pyproject.toml").is_file():
        raise EnvironmentProblem("gmf-edge runs from an installed wheel here, from which none can be built", remedy)
    alive, held = os.pipe()
    try:
        built = subprocess.run(
            [sys.executable, "-c", _HATCHLING, "build", "-t", "wheel", "-d", str(folder)],
            cwd=source,
            env={**os.environ, "TMPDIR": str(folder)},  # so that what an interrupted build leaves goes with the folder
            stdin=alive,
            capture_output=True,
            text=True,
        )
    finally:
        os.close(alive)
        os.close(held)
    if built.returncode != 0 or not list(folder.glob("*.whl")):
        reason = (built.stderr.strip().splitlines() or ["no output"])[-1]
        raise EnvironmentProblem(f"the wheel cannot be built: {reason}", f"pip install hatchling, or {remedy}")


def _require_this_package(wheel: Path) -> None:
    """The bundle's code and the device's must be of one version.

    Raises:
        PackageError: another package, another version, or no wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA")]
            metadata = Parser().parsestr(archive.read(name).decode())
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise PackageError(f"{wheel} is not a wheel", "'pip wheel --no-deps SOURCE' makes one") from error
    if metadata["Name"] != "gmf-edge" or metadata["Version"] != __version__:
        raise PackageError(f"{wheel} is {metadata['Name']} {metadata['Version']}, not gmf-edge {__version__}", "give that wheel")


def _require_aarch64(library: Path) -> None:
    """Raises PackageError for what no Jetson can load."""
    head = library.open("rb").read(20)
    if head[:4] != _ELF or int.from_bytes(head[18:20], "little") != _AARCH64:
        raise PackageError(f"{library} is not a library for aarch64", "build the plugin on the Jetson, or with a cross compiler")
