"""The child of plugin_trial: `python -m gmf_edge.deploy.plugin_process FOLDER` does the job that lies there and leaves its answer."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gmf_edge.bench.compare import compare_engines, refused
from gmf_edge.deploy.plugin_trial import ANSWER, JOB, NAMES, PLUGIN_MARGIN, PROGRESS, TrialJob
from gmf_edge.engines.choose import backend_named
from gmf_edge.engines.protocol import Progress
from gmf_edge.errors import GmfEdgeError
from gmf_edge.verify.proof import golden_failure


def plugin_answer(job: TrialJob, progress: Progress) -> dict[str, Any]:
    """Build the plugin engine, prove it, and time it against the one without: {"files", "comparison"}.

    Raises:
        GmfEdgeError: it cannot be built or run.
    """
    backend = backend_named(job.backend)
    files = backend.build(job.request, job.out, progress)
    profile = job.request.profile
    with ExitStack() as stack:
        engine = stack.enter_context(backend.open(job.request, job.out, files))
        failure = golden_failure(engine, job.golden, profile.sizes, job.gate, progress)
        if failure is not None:
            return {"files": files, "comparison": refused(NAMES, f"{NAMES[0]} is wrong {failure}", PLUGIN_MARGIN).to_json()}
        portable = stack.enter_context(backend.open(job.portable_request, job.portable_folder, job.portable_files))
        comparison = compare_engines(
            engine,
            portable,
            names=NAMES,
            profile=profile,
            image_size=job.request.image_size,
            margin=PLUGIN_MARGIN,
            progress=progress,
        )
    return {"files": files, "comparison": comparison.to_json()}


def main(arguments: Sequence[str]) -> int:
    """Do the job in the folder that is given; 0 where an answer was left, whatever it says."""
    folder = Path(arguments[0])
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def progress(fraction: float | None, message: str) -> None:
        with (folder / PROGRESS).open("a") as file:
            file.write(json.dumps([fraction, message]) + "\n")

    try:
        answer = plugin_answer(TrialJob.from_json(json.loads((folder / JOB).read_text())), progress)
    except GmfEdgeError as error:
        answer = {"problem": str(error)}
    except MemoryError:
        answer = {"problem": "out of memory"}
    unfinished = folder / f"{ANSWER}.part"
    unfinished.write_text(json.dumps(answer))
    unfinished.replace(folder / ANSWER)
    return 0


def _end_with_parent() -> None:
    """A build that nobody waits for any more must not keep the GPU: the parent holds the other end of standard input."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
