"""The TensorRT backend, 8.6 to 11.x: a bundle's graph becomes an engine that is proved to run in the precision that was asked for.

The order in `build` is: CUDA, then TensorRT, then the bundle's graph for this version; build; open; time and inspect every layer;
and only a proved engine is written. Nothing is imported before it is needed: the package imports on machines without any of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gmf_edge.artifact import cache_root
from gmf_edge.engines.protocol import EngineFacts, EngineRequest, LayerRecord, Progress, silent
from gmf_edge.engines.tensorrt.build import build_engine
from gmf_edge.engines.tensorrt.config import BuildJob
from gmf_edge.engines.tensorrt.cuda import Device, available_memory_mib
from gmf_edge.engines.tensorrt.inspect import layer_records, read_inspector_json
from gmf_edge.engines.tensorrt.load import deserialize
from gmf_edge.engines.tensorrt.log import BuildLog
from gmf_edge.engines.tensorrt.options import TensorRTOptions
from gmf_edge.engines.tensorrt.plugins import PLUGIN_OP, check_plugin_library, registered_plugins
from gmf_edge.engines.tensorrt.proof import REFUTED, PrecisionProof, prove_precision
from gmf_edge.engines.tensorrt.run import TensorRTEngine
from gmf_edge.engines.tensorrt.sidecar import Sidecar, graph_sha256
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import EngineError, EnvironmentProblem, GmfEdgeError, PrecisionError, StaleArtifact
from gmf_edge.scratch import write_atomically, write_failure
from gmf_edge.spec import Precision

ENGINE_FILE = "engine.plan"
# the engine inspector's answer as it is: what NVIDIA's viewers open, and what a report about a precision needs
LAYERS_FILE = "engine.plan.layers.json"
# chosen when the engine is built, used whenever it is opened
RUN_TIME_OPTIONS = ("streams", "cuda_graphs")
PROFILED_RUNS = 10
# the first that was seen to work with 11 (0.49.9 uses what 11 has removed)
POLYGRAPHY_FOR_11 = (0, 49, 26)


class TensorRTBackend:
    """See gmf_edge.engines.protocol.Backend."""

    name = "tensorrt"

    def missing(self) -> str | None:
        """Why TensorRT cannot be used on this machine, or None where it can; never raises."""
        try:
            Device.here()
            TensorRTVersion.here()
        except GmfEdgeError as error:
            return str(error)
        except Exception as error:  # a broken installation may fail in any way while it is imported
            return f"TensorRT cannot be used: {type(error).__name__}: {error}"
        return None

    def missing_to_build(self) -> str | None:
        """As missing, and Polygraphy, which running an engine does not need; never raises."""
        missing = self.missing()
        if missing is not None:
            return missing
        try:
            require_polygraphy(TensorRTVersion.here())
        except GmfEdgeError as error:
            return str(error)
        return None

    def graph_form(self, request: EngineRequest) -> str:
        """ "plugin" where a library was given or the plugin is registered already, else "portable"; see choose_graph.

        The library is not loaded for this: whatever loading it does, it does where the engine is built.

        Raises:
            EngineError: the bundle has no graph for this version, or no plugin graph for the library that was given.
            EnvironmentProblem: TensorRT cannot be used here.
        """
        # CUDA first: TensorRT 8.6 crashes the process where there is no driver
        device = Device.here()
        version = TensorRTVersion.here()
        require_bf16(request.precision, version, device)
        return choose_graph(request, version, TensorRTOptions.of(request.options))[0]

    def build(self, request: EngineRequest, out: Path, progress: Progress = silent) -> tuple[str, ...]:
        """Build, prove and write engine.plan, engine.plan.json and engine.plan.layers.json into the folder `out`.

        Raises:
            SpecError: an option that is unknown or that this version cannot do.
            EngineError: the graph cannot be built.
            PrecisionError: the engine does not run the precision asked for.
            EnvironmentProblem: this machine cannot build it.
        """
        # CUDA first: TensorRT 8.6 crashes the process where there is no driver
        device = Device.here()
        version = TensorRTVersion.here()
        require_polygraphy(version)
        require_bf16(request.precision, version, device)
        options = TensorRTOptions.of(request.options)
        options.check(version, request.profile, device)
        form, graph, notes = choose_graph(request, version, options)
        if options.plugin_library is not None:
            check_plugin_library(options.plugin_library, version)
        progress(None, f"TensorRT {version.text} ({version.target.name}) on {device.name}: building {graph.name}")
        job = BuildJob(
            graph=graph,
            version=version,
            precision=request.precision,
            profile=request.profile,
            image_size=request.image_size,
            options=options,
            fp32_islands=request.fp32_islands,
            timing_cache=timing_cache_path(options, device, version),
            sizes=request.sizes,
        )
        built = build_engine(job, available_memory_mib(device), progress)

        progress(None, "proving the engine's precision")
        log = BuildLog()
        runtime, engine = deserialize(built.content, version, options, log, graph if options.strip else None)
        unproved = EngineFacts(self.name, version.text, device.name, form)
        with TensorRTEngine(runtime, engine, log, unproved, cuda_graphs=False) as opened:
            times = opened.layer_times_ms(PROFILED_RUNS)
            inspector_json = opened.inspector_json()
        del engine, runtime
        inspected = read_inspector_json(inspector_json)
        proof = prove_precision(inspected, request.precision, options.max_fp32_share, times, request.quantised_layers)
        if proof.verdict == REFUTED and options.precision_proof == "refuse":
            raise _refused(proof, built.content, inspector_json, request.precision)
        notes = (*notes, *built.notes, *proof.notes)

        library = None if options.plugin_library is None else str(Path(options.plugin_library).resolve())
        engine_path = out / ENGINE_FILE
        write_atomically(engine_path, built.content)
        sidecar = Sidecar(
            engine_file=ENGINE_FILE,
            engine_bytes=len(built.content),
            engine_sha256=hashlib.sha256(built.content).hexdigest(),
            device={**asdict(device), "architecture": device.architecture},
            tensorrt=version.text,
            library=version.library,
            target=version.target.name,
            form=form,
            graph_file=graph.name,
            graph_sha256=graph_sha256(graph),
            precision=request.precision.value,
            profile=(request.profile.min, request.profile.opt, request.profile.max),
            image_size=request.image_size,
            options={**asdict(options), "workspace_mib": built.workspace_mib, "plugin_library": library},
            version_compatible=options.version_compatible,
            hardware_compatibility=options.hardware_compatibility,
            stripped=options.strip,
            plugins=(PLUGIN_OP,) if form == "plugin" else (),
            precision_shares=dict(proof.shares),
            precision_proof=proof.to_json(),
            layers=tuple(asdict(record) for record in layer_records(inspected.layers, times)),
            notes=notes,
        )
        write_atomically(out / LAYERS_FILE, inspector_json.encode())
        return ENGINE_FILE, sidecar.write(engine_path).name, LAYERS_FILE

    def open(self, request: EngineRequest, folder: Path, files: tuple[str, ...]) -> TensorRTEngine:
        """Open what build wrote, with the run-time options that it was built with where the request has none of its own.

        Raises:
            StaleArtifact: built on another device or version, or from another graph.
            EngineError: damaged, not an engine, or its plugin is missing.
            EnvironmentProblem: this machine cannot run it.
        """
        if not files:
            raise EngineError("no engine file was given", "run 'gmf-edge deploy' to build it")
        path = folder / files[0]
        sidecar = Sidecar.read(path)
        options = run_time_options(sidecar, request.options)
        graph = request.graphs.folder / sidecar.graph_file
        if graph.is_file() and graph_sha256(graph) != sidecar.graph_sha256:
            raise StaleArtifact(
                f"{path.name} was built from another {sidecar.graph_file} than the bundle's", "run 'gmf-edge deploy' again"
            )
        return open_engine(path, sidecar, options, graph if sidecar.stripped else None)


def run_time_options(sidecar: Sidecar, given: Mapping[str, Any] | None = None) -> TensorRTOptions:
    """How to run an engine: as was chosen when it was built, where `given` does not say otherwise.

    Raises:
        SpecError: an unknown option, or a value that it cannot take.
    """
    stored = {name: sidecar.options.get(name) for name in RUN_TIME_OPTIONS}
    return TensorRTOptions.of({**stored, **{name: value for name, value in (given or {}).items() if value is not None}})


def open_engine(
    path: Path, sidecar: Sidecar, options: TensorRTOptions | None = None, refit_from: Path | None = None
) -> TensorRTEngine:
    """Open an engine file that fits this machine.

    Args:
        path: the engine.
        sidecar: what is known of it.
        options: its run-time options (streams, cuda_graphs) and plugin library; None for those that it was built with.
        refit_from: the graph whose weights a stripped engine lacks.

    Raises:
        StaleArtifact, EngineError, EnvironmentProblem: see TensorRTBackend.open.
    """
    options = options or run_time_options(sidecar)
    device = Device.here()
    version = TensorRTVersion.here()
    sidecar.check(path, device, version)
    built_with = TensorRTOptions.of(
        {
            "version_compatible": sidecar.version_compatible,
            "dla_core": sidecar.options.get("dla_core"),
            "plugin_library": _plugin_library(sidecar, options, version),
        }
    )
    if sidecar.stripped and (refit_from is None or not refit_from.is_file()):
        raise EngineError(f"{path.name} has no weights of its own and {sidecar.graph_file} is missing", "keep the bundle beside it")
    log = BuildLog()
    runtime, engine = deserialize(path.read_bytes(), version, built_with, log, refit_from if sidecar.stripped else None)
    facts = EngineFacts(
        backend=TensorRTBackend.name,
        version=version.text,
        device=device.name,
        form=sidecar.form,
        layers=tuple(LayerRecord(**layer) for layer in sidecar.layers),
        precision_shares=sidecar.precision_shares,
        notes=(*sidecar.notes, *sidecar.device_notes(device)),
        refitted=sidecar.stripped,
    )
    return TensorRTEngine(runtime, engine, log, facts, options.streams, options.cuda_graphs)


def choose_graph(request: EngineRequest, version: TensorRTVersion, options: TensorRTOptions) -> tuple[str, Path, tuple[str, ...]]:
    """(form, file, notes): the bundle's graph for this TensorRT version, and why.

    The plugin graph is taken where a plugin library was given or the plugin is registered already; otherwise the portable one,
    which needs no plugin.

    Raises:
        EngineError: the bundle has no graph for this version, or no plugin graph for the library that was given.
    """
    opset = version.target.opset_for(request.precision)
    has_plugin_graph = ("plugin", opset) in request.graphs.files
    why = f"TensorRT {version.text} is {version.target.name}: opset {opset}, {version.target.typing}ly typed"
    if options.plugin_library is not None:
        if not request.use_plugin or not has_plugin_graph:
            raise EngineError(
                f"a plugin library was given, but the bundle has no plugin graph of opset {opset}",
                "leave the library out, or export again",
            )
        return "plugin", request.graphs.path("plugin", opset), (f"{why}; plugin graph with {Path(options.plugin_library).name}",)
    if request.use_plugin and has_plugin_graph and PLUGIN_OP in registered_plugins(version):
        return "plugin", request.graphs.path("plugin", opset), (f"{why}; plugin graph, {PLUGIN_OP} is registered",)
    if ("portable", opset) not in request.graphs.files:
        carried = sorted({number for _, number in request.graphs.files})
        raise EngineError(
            f"the bundle has no graph of opset {opset}, which TensorRT {version.text} needs (it carries {carried})",
            "export the bundle again with this version among its targets",
        )
    reason = "no plugin library was given" if request.use_plugin else "plugins were turned off"
    return "portable", request.graphs.path("portable", opset), (f"{why}; portable graph, because {reason}",)


def require_bf16(precision: Precision, version: TensorRTVersion, device: Device) -> None:
    """Refuse BF16 where TensorRT or the GPU has none.

    Raises:
        EnvironmentProblem: TensorRT 8.6, or a GPU older than Ampere.
    """
    if precision is not Precision.BF16:
        return
    remedy = "build the bundle with --precision fp16"
    if not version.target.has_bf16:
        raise EnvironmentProblem(
            f"TensorRT {version.text} has no BF16: it came with TensorRT 9 and 10", f"{remedy}, or use TensorRT 10 or newer"
        )
    if int(device.compute_capability.partition(".")[0]) < 8:
        raise EnvironmentProblem(
            f"{device.name} ({device.architecture}) has no BF16 arithmetic: Ampere (sm_80) has the first", remedy
        )


def timing_cache_path(options: TensorRTOptions, device: Device, version: TensorRTVersion) -> Path | None:
    """Where measured kernel times are kept: one file per GPU model, driver and TensorRT version, or None for none.

    Raises:
        EnvironmentProblem: the cache folder cannot be made.
    """
    if options.timing_cache is not None:
        return Path(options.timing_cache) if options.timing_cache else None
    words = f"{device.name}-{device.architecture}-cuda{device.driver_cuda}-trt{version.text}-{device.power_mode}"
    folder = cache_root() / "timing"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise write_failure(folder, error) from error
    return folder / (re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-") + ".cache")


def inspect_engine(path: Path) -> dict[str, Any]:
    """What is known of an engine file, for `gmf-edge inspect ENGINE`: from its sidecar, and from TensorRT where it can be opened.

    Returns:
        {"engine", "built_for", "precision", "precision_shares", "layers": [{"name", "kind", "precision", "time_ms"}...],
         "precision_proof": {...}, "memory_mib": {...} or None, "opened": bool, "why_not_opened": str}

    Raises:
        EngineError: no sidecar, or not one.
    """
    sidecar = Sidecar.read(path)
    known: dict[str, Any] = {
        "engine": {"file": path.name, "bytes": sidecar.engine_bytes, "sha256": sidecar.engine_sha256, "built_at": sidecar.built_at},
        "built_for": {
            "device": sidecar.device,
            "tensorrt": sidecar.tensorrt,
            "target": sidecar.target,
            "graph": sidecar.graph_file,
            "form": sidecar.form,
            "profile": list(sidecar.profile),
            "image_size": list(sidecar.image_size),
            "options": sidecar.options,
            "stripped": sidecar.stripped,
        },
        "precision": sidecar.precision,
        "precision_shares": sidecar.precision_shares,
        "precision_proof": sidecar.precision_proof,
        "layers": list(sidecar.layers),
        "notes": list(sidecar.notes),
        "memory_mib": None,
        "opened": False,
        "why_not_opened": "",
    }
    try:
        with open_engine(path, sidecar, TensorRTOptions(cuda_graphs=False), path.parent / sidecar.graph_file) as engine:
            known["memory_mib"] = engine.memory_mib
            known["opened"] = True
    except GmfEdgeError as error:
        known["why_not_opened"] = str(error)
    return known


def require_polygraphy(version: TensorRTVersion) -> None:
    """Polygraphy is needed to build an engine, not to run one.

    Raises:
        EnvironmentProblem: it is not installed, or too old for this TensorRT.
    """
    try:
        import polygraphy
        import polygraphy.backend.trt
    except ImportError as error:
        raise EnvironmentProblem(f"Polygraphy cannot be imported: {error}", "pip install polygraphy") from error
    have = tuple(int(part) for part in re.findall(r"\d+", str(polygraphy.__version__))[:3])
    if version.numbers >= (11, 0) and have < POLYGRAPHY_FOR_11:
        wanted = ".".join(map(str, POLYGRAPHY_FOR_11))
        raise EnvironmentProblem(
            f"Polygraphy {polygraphy.__version__} does not know TensorRT {version.text}", f"pip install 'polygraphy>={wanted}'"
        )


def _plugin_library(sidecar: Sidecar, options: TensorRTOptions, version: TensorRTVersion) -> str | None:
    """The library to load before an engine: without its creator a plugin node fails deep inside TensorRT, so say it before.

    Raises:
        EngineError: the engine needs a plugin that is neither registered nor in a library that can be loaded.
    """
    absent = [name for name in sidecar.plugins if name not in registered_plugins(version)]
    if not absent:
        return None
    library = options.plugin_library or sidecar.options.get("plugin_library")
    if not library:
        raise EngineError(
            f"the engine needs the plugin {', '.join(absent)}, which TensorRT does not know here",
            "give its library (plugins/README.md tells how to build it), or deploy again without a plugin",
        )
    check_plugin_library(str(library), version)
    return str(library)


def _refused(proof: PrecisionProof, engine: bytes, inspector_json: str, requested: Precision) -> PrecisionError:
    """The error of an engine that does not run what was asked for; engine and layers are kept aside, since building took minutes."""
    digest = hashlib.sha256(engine).hexdigest()[:16]
    folder = cache_root() / "refused" / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ENGINE_FILE, engine)
        write_atomically(folder / LAYERS_FILE, inspector_json.encode())
        kept = f"the engine and the inspector's answer are kept in {folder}"
    except (OSError, GmfEdgeError):
        kept = "the engine could not be kept"
    return PrecisionError(
        proof.reason,
        f"check with 'gmf-edge inspect' that the bundle was built with --precision {requested.value}, and that this GPU has "
        f"{requested.value} units; --precision-proof warn delivers it all the same, judged by parity alone ({kept})",
    )
