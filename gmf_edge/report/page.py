"""report.html: one file that opens offline. Jinja2 fills the template; every value is escaped, names of classes and files are anyone's.

There is no script in it, and its own content security policy forbids scripts and every request.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gmf_edge.report.sections as sections
from gmf_edge import __version__
from gmf_edge.bundle import Manifest
from gmf_edge.errors import EnvironmentProblem
from gmf_edge.report.measurements import Measurements
from gmf_edge.report.side_by_side import engines

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).parent / "templates"
NO_JINJA, INSTALL_JINJA = "report.html needs Jinja2, which is not installed", "pip install 'gmf-edge[report]'"


def missing() -> str | None:
    """Why no page can be made here, or None where one can."""
    try:
        import jinja2  # noqa: F401
    except ImportError:
        return f"{NO_JINJA}: {INSTALL_JINJA}, then 'gmf-edge report' on the bundle"
    return None


def report_page(manifest: Manifest, report: Mapping[str, Any], found: Measurements, bench: Mapping[str, Any] | None = None) -> str:
    """The page.

    Args:
        manifest: of a bundle that was deployed.
        report: what report.json says.
        found: what measurements.npz holds.
        bench: what `gmf-edge bench --output` wrote of the same model, for its baselines; None without.

    Raises:
        EnvironmentProblem: Jinja2 is not installed.
    """
    if missing():
        raise EnvironmentProblem(NO_JINJA, INSTALL_JINJA)
    return _template().render(
        version=__version__,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        summary=sections.summary(manifest, report),
        maps=sections.maps(report),
        accuracy=sections.accuracy(report, found),
        latency=sections.latency(report, found),
        engines=engines(report, bench),
        layers=sections.layers(report),
        int8=sections.int8(manifest),
        graph=sections.graph(manifest),
        environment=sections.environment(manifest, report),
        reproduction=sections.reproduction(manifest, report),
        preview=f"{manifest.model.variant} {manifest.precision.value}",
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")
