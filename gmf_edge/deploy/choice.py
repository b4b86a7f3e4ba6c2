"""The fastest of several engines that may be delivered: all are built, held against the gate on the golden images, and timed in turn.

Nothing is chosen by name. The engine that is chosen still has to pass parity at every batch size and on the evaluation images; where it
does not, the next one is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gmf_edge.bench.compare import rank_engines
from gmf_edge.bundle import GOLDEN, Bundle
from gmf_edge.deploy.build import BuiltEngine
from gmf_edge.engines.protocol import Backend, Engine, EngineRequest, Progress
from gmf_edge.errors import GmfEdgeError
from gmf_edge.spec import Gate, MapGate
from gmf_edge.verify.proof import golden_failure


def engines_by_speed(
    contenders: Sequence[tuple[Backend, EngineRequest]], bundle: Bundle, gate: Gate | MapGate, scratch: Path, progress: Progress
) -> tuple[list[BuiltEngine], dict[str, Any]]:
    """Build them all, the fastest within the gate first.

    Args:
        contenders: who builds and from what, at least one; the preferred one first, where speed does not tell them apart.
        bundle: whose golden data say which are right.
        gate: that they must be within, at the largest batch size.
        scratch: folder for their files; exists and is empty.
        progress: told what is going on.

    Returns:
        The engines that can be delivered, in the order in which to try them (one that is outside the gate is last), and for the
        report {"reason", "delivered": the first one's name, "engines": a row each, "comparisons": Comparison.to_json of each pair,
        "notes"}.

    Raises:
        GmfEdgeError: of the first one, where none can be built.
    """
    built: dict[str, BuiltEngine] = {}
    opened: list[tuple[str, Engine]] = []
    rows: dict[str, dict[str, Any]] = {}
    errors: list[GmfEdgeError] = []
    profile = bundle.manifest.profile
    with ExitStack() as stack:
        for number, (backend, request) in enumerate(contenders):
            name = _name(backend, request, contenders)
            folder = scratch / str(number)
            folder.mkdir()
            rows[name] = {"backend": backend.name, "version": None, "right": False, "reason": None}
            rows[name] |= {"median_ms": None, "relative_time": None}
            try:
                files = backend.build(request, folder, progress)
                engine = stack.enter_context(backend.open(request, folder, files))
                failure = golden_failure(engine, bundle.path(GOLDEN), [profile.max], gate, progress)
                facts = engine.facts
            except GmfEdgeError as error:
                errors.append(error)
                rows[name]["reason"] = str(error)
                progress(None, f"{name} cannot be used: {error}")
                continue
            built[name] = BuiltEngine(backend, request, folder, files, name)
            rows[name] |= {"version": facts.version, "precision_shares": dict(facts.precision_shares), "notes": list(facts.notes)}
            if failure is None:
                opened.append((name, engine))
                rows[name] |= {"right": True, "reason": "within the gate at the largest batch size"}
            else:
                rows[name]["reason"] = f"outside the gate: {failure}"
        if not built:
            raise errors[0]
        order, comparisons, reason = tuple(built), [], f"no engine is within the gate, {next(iter(built))} is delivered"
        if opened:
            ranking = rank_engines(opened, profile=profile, image_size=bundle.manifest.model.image_size, progress=progress)
            order, comparisons, reason = ranking.order, [found.to_json() for found in ranking.comparisons], ranking.reason
            for name, relative in ranking.relative.items():
                rows[name] |= {"relative_time": relative, "median_ms": ranking.median_ms.get(name)}
    reason = "; ".join([reason, *(f"not {name}: {row['reason']}" for name, row in rows.items() if not row["right"])])
    progress(None, reason)
    behind = [name for name in built if name not in order]
    report = {"reason": reason, "delivered": order[0], "engines": rows, "comparisons": comparisons, "notes": []}
    return [built[name] for name in (*order, *behind)], report


def _name(backend: Backend, request: EngineRequest, contenders: Sequence[tuple[Backend, EngineRequest]]) -> str:
    """The backend's, with what is its own where it comes more than once."""
    of_it = [other for candidate, other in contenders if candidate.name == backend.name]
    if len(of_it) == 1:
        return backend.name
    own = {name: value for name, value in request.options.items() if any(other.options.get(name) != value for other in of_it)}
    return f"{backend.name} ({', '.join(f'{name} {value}' for name, value in own.items()) or 'as it is'})"
