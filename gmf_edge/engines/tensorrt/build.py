"""ONNX graph -> TensorRT engine bytes, on every supported version.

    network  = parse_graph(graph, version, log)                  trt.INetworkDefinition
    pinned   = pin_fp32_islands(network, ...)                   8.6 only: what the graph says must stay FP32, told to the builder
    config   = builder_config(...)                               profile, workspace, kernel times, flags
    content  = builder.build_serialized_network(network, config)

TensorRT 10 and 11 build strongly typed: the types in the graph are the types of the engine. 8.6 builds weakly typed: FP16 and
INT8 are allowed by flags, and layers that the graph computes in FP32 between casts are pinned with ILayer.precision and
OBEY_PRECISION_CONSTRAINTS, since a weakly typed builder may otherwise remove the casts.

A build that fails is repeated only where repeating can help: with less workspace where the GPU ran out of memory, twice at most, and with
PREFER_PRECISION_CONSTRAINTS where 8.6 has no implementation for a pinned type. Kernel times that were measured are kept in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gmf_edge.engines.protocol import Progress
from gmf_edge.engines.tensorrt.config import Attempt, BuildJob, builder_config
from gmf_edge.engines.tensorrt.islands import pin_fp32_islands
from gmf_edge.engines.tensorrt.log import (
    OUT_OF_MEMORY_PATTERN,
    TOO_LITTLE_WORKSPACE_PATTERN,
    UNOBEYABLE_PATTERN,
    BuildLog,
)
from gmf_edge.engines.tensorrt.plugins import PLUGIN_OP, load_plugin_library
from gmf_edge.engines.tensorrt.progress import BuildProgress
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import EngineError, EnvironmentProblem, GmfEdgeError
from gmf_edge.scratch import write_atomically, write_failure
from gmf_edge.spec import Precision

if TYPE_CHECKING:
    import tensorrt as trt

# below this a build that ran out of memory is not tried again: some layers need more than that to run at all
LEAST_WORKSPACE_MIB = 64
# of the first workspace, for the attempts after one that ran out of GPU memory; each attempt may take minutes
SMALLER_WORKSPACES = (1 / 4, 1 / 16)


@dataclass(frozen=True)
class BuiltEngine:
    """What a build gives.

    Attributes:
        content: the engine's raw bytes.
        workspace_mib: the limit that it was built with.
        notes: what the user should know, one sentence each.
    """

    content: bytes
    workspace_mib: int
    notes: tuple[str, ...]


class FailedAttempt(Exception):
    """The builder gave no engine; the log tells why, the kernel times that were measured are worth keeping."""

    def __init__(self, log: BuildLog, timings: bytes | None) -> None:
        super().__init__(log.last_errors)
        self.log = log
        self.timings = timings


def parse_graph(
    graph: Path, version: TensorRTVersion, log: BuildLog, plugin_library: str | None = None
) -> tuple[trt.Builder, trt.INetworkDefinition, trt.OnnxParser]:
    """A builder, the network of an ONNX file, and the parser, which owns the weights until the engine is built.

    Raises:
        EngineError: TensorRT does not take the graph.
        EnvironmentProblem: TensorRT cannot start on this machine.
    """
    import tensorrt as trt

    try:
        builder = trt.Builder(log.logger)
    except TypeError as error:  # pybind11's way to say that the factory returned a null pointer
        raise EnvironmentProblem(
            f"TensorRT {version.text} cannot start: {log.last_errors}", "check the GPU driver with 'nvidia-smi'"
        ) from error
    flags = 0
    if version.has_explicit_batch_flag:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if not version.has_weak_typing:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    if plugin_library is not None:
        load_plugin_library(plugin_library, builder.get_plugin_registry(), version, log)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log.logger)
    # by path, not bytes: the weights lie in a file beside it
    if not parser.parse_from_file(str(graph)):
        problems = [parser.get_error(index) for index in range(parser.num_errors)]
        listed = " | ".join(f"{problem.desc()} (node {problem.node()})" for problem in problems) or log.last_errors
        raise EngineError(
            f"TensorRT {version.text} does not take {graph.name}: {listed}",
            f"export the bundle again for this version (opset {version.target.opset}); "
            f"where the node is {PLUGIN_OP}, give the plugin library or use the portable graph",
        )
    return builder, network, parser


def build_engine(job: BuildJob, free_memory_mib: int, progress: Progress) -> BuiltEngine:
    """Build the engine of an ONNX graph; see the head of this file.

    Args:
        free_memory_mib: what the GPU has free now, in MiB; half of it is the default workspace.

    Raises:
        EngineError: TensorRT does not take the graph, cannot build it, or ran out of memory with the smallest workspace.
        EnvironmentProblem: TensorRT cannot start, or the timing cache cannot be written.
    """
    if job.timing_cache is not None:
        check_timing_cache(job.timing_cache)
    first_mib = job.options.workspace_mib or max(LEAST_WORKSPACE_MIB, free_memory_mib // 2)
    smaller_mib = [max(LEAST_WORKSPACE_MIB, int(first_mib * share)) for share in SMALLER_WORKSPACES]
    attempt = Attempt(first_mib, timings=_kept_timings(job.timing_cache))
    notes: list[str] = []

    def again(note: str, next_attempt: Attempt) -> Attempt:
        notes.append(note)
        progress(None, note)
        return next_attempt

    while True:
        try:
            content, timings, unmatched = _build_once(job, attempt, progress)
            break
        except FailedAttempt as failed:
            log = failed.log
            timings = failed.timings or attempt.timings
            workspace_mib = attempt.workspace_mib
            needs_more = log.failed_by(TOO_LITTLE_WORKSPACE_PATTERN)
            if attempt.constraints != "prefer" and job.version.has_weak_typing and log.failed_by(UNOBEYABLE_PATTERN):
                attempt = again(
                    f"TensorRT {job.version.text} cannot keep every FP32 island in FP32 ({log.last_errors}): the build was repeated "
                    "with the islands as a preference, and parity is what judges it",
                    replace(attempt, constraints="prefer", timings=timings),
                )
            elif log.failed_by(OUT_OF_MEMORY_PATTERN) and not needs_more:
                less_mib = next((mib for mib in smaller_mib if mib < workspace_mib), None)
                if less_mib is None:
                    raise log.error(
                        f"TensorRT ran out of GPU memory even with a workspace of {workspace_mib} MiB",
                        f"lower --max-batch (now {job.profile.max}) or the optimization level, and close other programs; "
                        "on a Jetson also add swap and stop the desktop",
                    ) from None
                attempt = again(
                    f"the build ran out of GPU memory with a workspace of {workspace_mib} MiB and was repeated with {less_mib} MiB",
                    replace(attempt, workspace_mib=less_mib, timings=timings),
                )
            else:
                raise log.error(
                    f"TensorRT {job.version.text} could not build {job.graph.name}",
                    f"give more workspace than {workspace_mib} MiB"
                    if needs_more
                    else "see TensorRT's messages; 'gmf-edge inspect BUNDLE' shows the graph",
                ) from None
    if unmatched:
        more = f" and {len(unmatched) - 5} more" if len(unmatched) > 5 else ""
        notes.append(f"FP32 islands that are no layer of this network: {', '.join(unmatched[:5])}{more}")
    notes += [note for note in (_keep_timings(job.timing_cache, timings), _advice(job)) if note]
    return BuiltEngine(content, attempt.workspace_mib, tuple(notes))


def _build_once(job: BuildJob, attempt: Attempt, show: Progress) -> tuple[bytes, bytes | None, tuple[str, ...]]:
    """One attempt: (engine bytes, kernel times, island names that match no layer).

    Raises:
        FailedAttempt: the builder gave no engine.
        EngineError, EnvironmentProblem: see parse_graph and builder_config.
    """
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    log = BuildLog()
    # the parser owns the weights until the engine is built
    builder, network, parser = parse_graph(job.graph, job.version, log, job.options.plugin_library)
    pinned: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    if job.precision is not Precision.FP32 and not job.as_trtexec:
        pinned, unmatched = pin_fp32_islands(network, job.version, job.precision, job.fp32_islands)
    if pinned and attempt.constraints is None:
        attempt = replace(attempt, constraints="obey")
    progress = BuildProgress(show)
    if not job.version.has_progress_monitor:
        show(None, f"building the TensorRT engine (TensorRT {job.version.text} does not tell its progress)")
    try:
        # our own words go to the user; Polygraphy's are for its command line
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            config = builder_config(job, builder, network, attempt, progress)
    except PolygraphyException as error:
        raise EngineError(f"TensorRT {job.version.text} does not take these options: {error}", "leave some of them out") from error
    serialized = builder.build_serialized_network(network, config)
    del parser
    if progress.stopped_by is not None:
        raise progress.stopped_by
    log.raise_interrupt()
    timings = _timings_of(config)
    if serialized is None:
        raise FailedAttempt(log, timings)
    return bytes(serialized), timings, unmatched


def check_timing_cache(path: Path) -> None:
    """Make the folder of a timing cache, before minutes of building rather than after them.

    Raises:
        EnvironmentProblem: the file could not be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        probe = path.with_name(path.name + ".probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise write_failure(path, error) from error


def _kept_timings(path: Path | None) -> bytes | None:
    if path is None or not path.is_file():
        return None
    try:
        return path.read_bytes() or None
    except OSError:
        return None  # it only saves time


def _timings_of(config: trt.IBuilderConfig) -> bytes | None:
    """The kernel times of a build, also of one that failed; None where TensorRT has none."""
    cache = config.get_timing_cache()
    if cache is None:
        return None
    return bytes(cache.serialize()) or None


def _keep_timings(path: Path | None, timings: bytes | None) -> str | None:
    """Write the kernel times; the sentence to tell where that failed, which costs time in the next build and nothing else."""
    if path is None or timings is None:
        return None
    try:
        write_atomically(path, timings)
    except GmfEdgeError as error:
        return f"kernel times could not be kept for the next build: {error.problem}"
    return None


def _advice(job: BuildJob) -> str | None:
    """What is known of a version and a request that the user would want to know."""
    if job.version.has_weak_typing and job.precision is Precision.INT8 and job.profile.min != job.profile.max:
        return (
            f"TensorRT {job.version.text} leaves out INT8 optimisations where the batch size may vary: "
            "give --min-batch, --opt-batch and --max-batch the same value for the fastest INT8 engine"
        )
    if job.options.refit and (11, 0) <= job.version.numbers < (11, 4):
        return (
            f"TensorRT {job.version.text} may compute wrong numbers in refittable engines (NVIDIA's release notes of 11.3); "
            "parity was measured on this engine, but leave out --refit where you can"
        )
    return None
