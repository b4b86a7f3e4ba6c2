"""What people open: report.html, and reproduce.sh. From what a bundle holds; without torch, onnx or a network.

measurements   measurements.npz: what the figures are drawn from
thumbnails     small pictures of flipped images, for it
commands       a request as plain values and as a command line
reproduce      reproduce.sh (reproduction: what it asks when it runs)
sections       what stands on the page; side_by_side: its engines (figures: numbers for people; charts: geometry)
page           the page itself, from templates/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmf_edge.artifact import read_json
from gmf_edge.bundle import MEASUREMENTS, PAGE, REPRODUCE, Bundle, Manifest, open_bundle, replace_file, seal
from gmf_edge.errors import BundleError, DataError, EnvironmentProblem
from gmf_edge.report.measurements import Measurements
from gmf_edge.report.page import INSTALL_JINJA, NO_JINJA, missing, report_page
from gmf_edge.report.reproduce import reproduce_script
from gmf_edge.scratch import write_atomically

__all__ = ["Measurements", "missing", "seal_with_page", "write_report_page", "write_script"]

# the "kind" of what `gmf-edge bench --output` writes
BENCH_KIND = "gmf-edge bench"


def write_report_page(folder: Path, output: Path | None = None, bench: Path | None = None) -> Path:
    """Make report.html again from what a bundle holds; what `gmf-edge report` does.

    Args:
        folder: a bundle that was deployed.
        output: file to write; None for report.html in the bundle, which is sealed again.
        bench: what `gmf-edge bench --output` wrote of the same model, for its baselines.

    Returns:
        The file that was written.

    Raises:
        BundleError: damaged, or not deployed.
        DataError: `bench` was not written by `gmf-edge bench`, or is of another model.
        EnvironmentProblem: Jinja2 is not installed, or the file cannot be written.
    """
    if missing() is not None:
        raise EnvironmentProblem(NO_JINJA, INSTALL_JINJA)
    bundle = open_bundle(folder)
    report = bundle.report
    if report is None:
        raise BundleError(f"{folder} has nothing to report yet: it was not deployed", "run 'gmf-edge deploy' on it")
    measured = None if bench is None else _bench_of(bench, bundle.manifest)
    content = report_page(bundle.manifest, report, _measurements(folder), measured).encode("utf-8", "replace")
    if output is None:
        replace_file(bundle, PAGE, content)
        return bundle.path(PAGE)
    write_atomically(output, content)
    return output


def seal_with_page(folder: Path, manifest: Manifest, report: Mapping[str, Any]) -> Bundle:
    """Write reproduce.sh and report.html into a bundle's folder and seal it; the last step of a deployment.

    Where Jinja2 is missing there is no page, and the notes of `report` should say so (missing).
    """
    (folder / PAGE).unlink(missing_ok=True)
    write_script(folder, manifest, report)
    bundle = seal(folder, manifest)
    if missing() is not None:
        return bundle
    return replace_file(bundle, PAGE, report_page(bundle.manifest, report, _measurements(folder)).encode("utf-8", "replace"))


def write_script(folder: Path, manifest: Manifest, report: Mapping[str, Any] | None) -> None:
    """Write reproduce.sh into a bundle's folder that is being made; nothing where the request is not known."""
    if manifest.request:
        path = folder / REPRODUCE
        path.write_text(reproduce_script(manifest, report), encoding="utf-8")
        path.chmod(0o755)


def _measurements(folder: Path) -> Measurements:
    path = folder / MEASUREMENTS
    return Measurements.load(path) if path.is_file() else Measurements()


def _bench_of(path: Path, manifest: Manifest) -> dict[str, Any]:
    values = read_json(path, DataError, "give a file that 'gmf-edge bench --output' wrote")
    if not isinstance(values, dict) or values.get("kind") != BENCH_KIND:
        raise DataError(f"{path} was not written by 'gmf-edge bench --output'", "give such a file")
    made = values["made"]
    if (made["weights"]["sha256"], made["precision"], made["model"]) != (
        manifest.weights.sha256,
        manifest.precision.value,
        manifest.model.to_json(),
    ):
        raise DataError(f"{path} was measured on another model or precision", "run 'gmf-edge bench' on this bundle")
    return values
