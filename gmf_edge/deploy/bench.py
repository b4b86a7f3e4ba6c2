"""A bundle's engine measured by itself, and in turn with what a user would do without this project.

open the engine -> latency at each batch size -> throughput of several streams -> baselines in turn, each with its parity
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gmf_edge import __version__
from gmf_edge.bench.baselines import BaselineRequest, open_baseline
from gmf_edge.bench.calls import seeded_images
from gmf_edge.bench.in_turn import InTurn, TurnPlan, time_in_turn
from gmf_edge.bench.latency import BenchPlan, Latency, Throughput, measure_latency, measure_throughput
from gmf_edge.bench.load import machine_facts
from gmf_edge.bench.plain_model import PlainModel
from gmf_edge.bench.trtexec_files import inspector_layers_json, layers_json, profile_json, times_json
from gmf_edge.bundle import Bundle, open_bundle
from gmf_edge.cpu import engine_threads
from gmf_edge.deploy.engine import open_or_build
from gmf_edge.deploy.parity import evaluation_images, parity_of
from gmf_edge.deploy.summary import accuracy_of, bundle_summary
from gmf_edge.engines.choose import choose_backend
from gmf_edge.engines.protocol import Engine, EngineFacts, Progress, silent
from gmf_edge.engines.trace import InspectableEngine, LayerRuns, ProfiledEngine
from gmf_edge.errors import CheckpointError, GmfEdgeError, SpecError
from gmf_edge.report import BENCH_KIND
from gmf_edge.scratch import write_atomically
from gmf_edge.spec import Task
from gmf_edge.verify.judge import judge

SCHEMA = 1
# what our engine is called among the baselines
OURS = "gmf-edge"
PROFILED_RUNS = 10
TENSORRT = "tensorrt"


@dataclass(frozen=True)
class BenchRequest:
    """What is measured and how.

    Attributes:
        batches: batch sizes; none for those of the bundle's profile.
        backend: "auto" is the one that the bundle was deployed with, where it was.
        plan: how long, and trtexec's modes.
        streams: inferences at a time for the throughput that is measured beside the latency; 1 for none.
        cuda_graph: TensorRT: None for what the engine was built with.
        options: of the backend, such as threads, over those that the bundle was deployed with. Several streams share the threads.
        against: names of bench.baselines.BASELINES.
        turn: how engines are timed in turn.
        checkpoint: the file that the bundle was made from, for baselines of a bundle made from one.
        eval_data: labelled images, for the accuracy of each engine; None for the golden images.
        export_times, export_profile, export_layers: files to write, as trtexec writes them.
    """

    batches: tuple[int, ...] = ()
    backend: str = "auto"
    plan: BenchPlan = field(default_factory=BenchPlan)
    streams: int = 1
    cuda_graph: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    against: tuple[str, ...] = ()
    turn: TurnPlan = field(default_factory=TurnPlan)
    checkpoint: Path | None = None
    eval_data: Path | str | None = None
    export_times: Path | None = None
    export_profile: Path | None = None
    export_layers: Path | None = None

    def __post_init__(self) -> None:
        if self.streams < 1 or any(batch < 1 for batch in self.batches):
            raise SpecError("streams or a batch size are out of range", "give at least one stream, and batch sizes of at least 1")


@dataclass(frozen=True)
class Contender:
    """An engine among those timed in turn.

    Attributes:
        facts: what it is.
        accuracy: deploy.summary.ACCURACY of its parity with FP32 PyTorch.
        within_gate: whether that is within the bundle's gate.
        reason: why, with figures and limits.
    """

    facts: EngineFacts
    accuracy: Mapping[str, Any]
    within_gate: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        flips = len(self.accuracy["flips"])
        return {
            **_facts_json(self.facts),
            "accuracy": {**self.accuracy, "flips": flips},
            "within_gate": self.within_gate,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Baselines:
    """Our engine and the baselines.

    Attributes:
        contenders: name -> what it is and whether it is right; ours is the first, called OURS.
        not_run: name -> why.
        batches: batch size -> times in turn.
        plan: how they were timed.
    """

    contenders: Mapping[str, Contender]
    not_run: Mapping[str, str]
    batches: Mapping[int, InTurn]
    plan: TurnPlan

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "plan": asdict(self.plan),
            "engines": {name: contender.to_json() for name, contender in self.contenders.items()},
            "not_run": dict(self.not_run),
            "batches": {
                str(batch): {
                    "measure": found.measure,
                    "rounds": found.rounds,
                    "engines": {name: part.to_json() for name, part in found.engines.items()},
                }
                for batch, found in self.batches.items()
            },
        }


@dataclass(frozen=True)
class BenchResult:
    """What bench_bundle found.

    Attributes:
        summary: deploy.summary.bundle_summary of the bundle.
        facts: of the engine.
        latencies: one a batch size.
        throughputs: of several streams, one a batch size, where they were asked for.
        baselines: None where none was asked for.
        options: of the backend, as asked.
        machine: bench.load.machine_facts.
    """

    summary: Mapping[str, Any]
    facts: EngineFacts
    latencies: tuple[Latency, ...]
    throughputs: tuple[Throughput, ...] = ()
    baselines: Baselines | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=machine_facts)

    def to_json(self) -> dict[str, Any]:
        """Plain values: what `gmf-edge bench --output` writes and `gmf-edge compare` reads."""
        return {
            "kind": BENCH_KIND,
            "schema": SCHEMA,
            "gmf_edge": __version__,
            "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": dict(self.machine),
            "engine": _facts_json(self.facts),
            "options": dict(self.options),
            **self.summary,
            "latency": [latency.to_json() for latency in self.latencies],
            "streams": [throughput.to_json() for throughput in self.throughputs],
            "baselines": None if self.baselines is None else self.baselines.to_json(),
        }


def bench_bundle(folder: Path, request: BenchRequest | None = None, *, progress: Progress = silent, **settings: Any) -> BenchResult:
    """Measure a bundle's engine; what `gmf-edge bench` does.

    Args:
        folder: a bundle.
        request: what and how.
        progress: told what is going on.
        settings: fields of BenchRequest, or of its plan, instead of one.

    Raises:
        GmfEdgeError: see gmf_edge.errors; a baseline that cannot run is no error but named in the result.
    """
    request = request or _request(settings)
    bundle = open_bundle(folder)
    batches = request.batches or bundle.manifest.profile.sizes
    if request.export_times is not None and len(batches) != 1:
        raise SpecError("the times of several batch sizes do not go into one file", "give one --batch with --exportTimes")
    size = bundle.manifest.model.image_size
    if bundle.manifest.model.task is Task.FEATURES and (request.against or request.streams > 1):
        raise SpecError(
            "a backbone is benched by itself, one inference at a time",
            "leave out --against and --streams: both are about classifiers",
        )
    with ExitStack() as stack:
        engine = _opened(bundle, request, stack, progress)
        latencies = []
        for batch in batches:
            progress(None, f"measuring batch {batch}")
            latencies.append(measure_latency(engine, batch, size, request.plan))
        _write_exports(engine, latencies, request, progress)
        throughputs = _throughputs(bundle, engine, batches, request, progress)
        baselines = _against(bundle, engine, batches, request, stack, progress) if request.against else None
        return BenchResult(bundle_summary(bundle), engine.facts, tuple(latencies), tuple(throughputs), baselines, request.options)


def _request(settings: Mapping[str, Any]) -> BenchRequest:
    of_plan = set(BenchPlan.__dataclass_fields__)
    plan = BenchPlan(**{name: value for name, value in settings.items() if name in of_plan})
    return BenchRequest(plan=plan, **{name: value for name, value in settings.items() if name not in of_plan})


def _opened(bundle: Bundle, request: BenchRequest, stack: ExitStack, progress: Progress, **options: Any) -> Engine:
    """The bundle's engine with the request's options, and these over them."""
    deployed = (bundle.report or {}).get("backend") if request.backend == "auto" else None
    if choose_backend(str(deployed or request.backend))[0].name == TENSORRT:
        # its latency is that of one stream, however many it has
        options = {"streams": request.streams, "cuda_graphs": request.cuda_graph, **options}
    wanted = {**request.options, **options}
    return open_or_build(
        bundle, request.backend, stack, progress, {name: value for name, value in wanted.items() if value is not None}
    )[0]


def _throughputs(
    bundle: Bundle, engine: Engine, batches: Sequence[int], request: BenchRequest, progress: Progress
) -> list[Throughput]:
    if request.streams == 1:
        return []
    size, streams = bundle.manifest.model.image_size, request.streams
    with ExitStack() as stack:
        engines = [engine]
        if engine.facts.backend == "openvino":
            engines = [_opened(bundle, request, stack, progress, streams=streams)]
        elif engine.facts.backend != TENSORRT:
            # the cores are shared out, as OpenVINO does by itself
            each = max(1, engine_threads(request.options.get("threads")).count // streams)
            engines = [_opened(bundle, request, stack, progress, threads=each) for _ in range(streams)]
        found = []
        for batch in batches:
            progress(None, f"measuring batch {batch} with {streams} streams")
            found.append(measure_throughput(engines, batch, size, streams, request.plan))
        return found


def _against(
    bundle: Bundle, engine: Engine, batches: Sequence[int], request: BenchRequest, stack: ExitStack, progress: Progress
) -> Baselines:
    manifest = bundle.manifest
    on_gpu = engine.facts.backend == TENSORRT
    wanted = BaselineRequest(
        PlainModel(manifest.model, manifest.weights, request.checkpoint, progress),
        manifest.precision,
        manifest.profile,
        on_gpu=on_gpu,
        threads=int(request.options.get("threads") or 0),
        cuda_graphs=request.cuda_graph is not False,
    )
    engines: dict[str, Engine] = {OURS: engine}
    not_run: dict[str, str] = {}
    for name in request.against:
        try:
            engines[name] = stack.enter_context(open_baseline(name, wanted, progress))
        except CheckpointError:
            raise  # the file that was given is wrong: no baseline is what was asked for
        except GmfEdgeError as error:
            not_run[name] = str(error)
            progress(None, f"{name} is not run: {error}")
    images = evaluation_images(bundle, request.eval_data, stack)
    contenders: dict[str, Contender] = {}
    for name, contender in tuple(engines.items()):
        progress(None, f"parity of {name}")
        try:
            parity = parity_of(contender, bundle, images, progress)
        except GmfEdgeError as error:
            if contender is engine:
                raise
            not_run[name] = str(error)
            del engines[name]
            continue
        passed, reason = judge(parity, manifest.gate, manifest.weights.trained)
        contenders[name] = Contender(contender.facts, accuracy_of(parity.to_json()), passed, reason)
    timed = {
        batch: time_in_turn(engines, seeded_images(batch, manifest.model.image_size), request.turn, progress=progress)
        for batch in batches
    }
    return Baselines(contenders, not_run, timed, request.turn)


def _write_exports(engine: Engine, latencies: Sequence[Latency], request: BenchRequest, progress: Progress) -> None:
    def profile() -> str:
        progress(None, "profiling layers")
        return profile_json(_layer_runs(engine))

    def layers() -> str:
        if isinstance(engine, InspectableEngine):
            return inspector_layers_json(engine.inspector_json())
        return layers_json(engine.facts, engine.task)

    exports: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (request.export_times, lambda: times_json(latencies[0].traces)),
        (request.export_profile, profile),
        (request.export_layers, layers),
    )
    for path, content in exports:
        if path is not None:
            write_atomically(path, content().encode())


def _layer_runs(engine: Engine) -> Sequence[LayerRuns]:
    """Of an engine that cannot be profiled again: what it told of one inference when it was opened."""
    if isinstance(engine, ProfiledEngine):
        return engine.layer_runs(PROFILED_RUNS)
    return [LayerRuns(layer.name, (layer.time_ms,)) for layer in engine.facts.layers if layer.time_ms is not None]


def _facts_json(facts: EngineFacts) -> dict[str, Any]:
    """Without the layers, which inspect shows."""
    return {name: value for name, value in asdict(facts).items() if name != "layers"}
