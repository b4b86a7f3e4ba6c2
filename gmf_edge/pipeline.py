"""Both halves on one machine: what `gmf-edge build` does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gmf_edge.artifact import new_folder
from gmf_edge.deploy import Result, complete
from gmf_edge.engines.choose import choose_backend
from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.prepare import refuse_foreign, resolve, write_bundle
from gmf_edge.spec import BuildSpec


def build(
    spec: BuildSpec,
    out: Path,
    *,
    use_plugin: bool = True,
    options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Result:
    """From a checkpoint to a bundle with a proved and measured engine.

    Args:
        spec: the request.
        out: folder to write; a bundle that is there is replaced whole, anything else is refused.
        use_plugin: whether the plugin form may be used.
        options: the backend's own.
        progress: told what is going on.

    Returns:
        The result; a result outside the gate is returned (and its bundle written), not raised.

    Raises:
        GmfEdgeError: see gmf_edge.errors; nothing is left behind.
    """
    refuse_foreign(out)
    choose_backend(spec.backend)  # fails here, not after minutes of export
    with ExitStack() as stack:
        subject = resolve(spec, stack, progress)
        with new_folder(out) as folder:
            bundle = write_bundle(subject, spec, folder, progress)
            result = complete(
                bundle,
                subject.images,
                backend=spec.backend,
                gate=spec.gate,
                use_plugin=use_plugin,
                options=options,
                progress=progress,
            )
    return Result(out, result.passed, result.reason, result.report)
