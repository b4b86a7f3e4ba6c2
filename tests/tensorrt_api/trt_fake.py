"""A `tensorrt` module for one version, made from the dump of its bindings: it has exactly the names, members, methods, properties
and keywords that the version has, and refuses the rest, so that running code (ours and Polygraphy's) on it shows what would break.

What it computes is a stand-in: logits[b, k] = mean of image b plus k, or a backbone's maps[b, c, i, j] = mean of the stride x stride
pixels at i, j of image b plus c, on the memory of cuda_fake. The network, the inspector's
answer and the build's outcome are given by the test (`FakeModel`).
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType
from typing import Any

from cuda_fake import FakeCuda
from inspector_answers import engine_answer
from trt_contexts_fake import ACTIVATION_BYTES, CLASSES, MAP_CHANNELS, FakeContexts
from trt_stubs import parameters, python_type, returned


@dataclass
class FakeModel:
    """What the fake TensorRT finds and does.

    Attributes:
        layers: (type, name, input names, output names, extras) of the network, in order.
        inputs: (name, dtype member) of the network.
        inspector: the engine inspector's answer, or None for one made of `precision`.
        precision: "fp16", "bf16", "fp32" or "int8": what the made-up answer tells of the matrix products.
        parse_error: what the parser says, or None where it takes the graph.
        build_failures: one per failing attempt, before it succeeds: the builder's error, or all its messages as (severity, text).
        unobeyable: the builder has no implementation for pinned layers: it fails where it must obey, and builds where it may prefer.
        progress_threads: from how many of its threads the builder tells its progress.
        engine_type: DataType member of the engine's input and output.
        plugins: creators known from the start; `library_plugins` those that load_library brings.
        capture_fails: the engine cannot be captured in a CUDA graph.
        is_backbone: the outputs are four maps instead of logits.
        compute_ms, launch_ms: what an inference takes the GPU, and the CPU to launch it layer by layer.
    """

    layers: list[tuple[str, str, list[str], list[str], dict[str, Any]]] = field(default_factory=list)
    inputs: list[tuple[str, str]] = field(default_factory=lambda: [("images", "FLOAT")])
    inspector: dict[str, Any] | None = None
    precision: str = "fp16"
    parse_error: str | None = None
    build_failures: list[str | list[tuple[str, str]]] = field(default_factory=list)
    unobeyable: bool = False
    progress_threads: int = 1
    engine_type: str = "FLOAT"
    plugins: list[str] = field(default_factory=list)
    library_plugins: list[str] = field(default_factory=list)
    capture_fails: bool = False
    is_backbone: bool = False
    compute_ms: float = 0.5
    launch_ms: float = 0.1
    image_shape: tuple[int, int, int] = (3, 32, 32)
    progress_phases: list[tuple[str, str | None, int]] = field(default_factory=lambda: [("Building Engine", None, 4)])


class Strict:
    """An object of one bound class: only what the bindings have can be read, called or set."""

    _name = ""
    _module: FakeTensorRT

    def __init__(self) -> None:
        object.__setattr__(self, "_values", {})

    @property
    def _record(self) -> dict[str, Any]:
        record: dict[str, Any] = self._module.described["classes"][self._name]
        return record

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        record = self._record
        if name in record["properties"]:
            values = self.__dict__["_values"]
            return values[name] if name in values else self._module.default(record["properties"][name]["type"])
        if name in record["methods"]:
            return self._module.method(self, name, record["methods"][name])
        raise AttributeError(f"{self._name} has no {name} in TensorRT {self._module.__version__}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in type(self).__dict__:
            object.__setattr__(self, name, value)
            return
        facts = self._record["properties"].get(name)
        if facts is None or not facts["writable"]:
            raise AttributeError(f"{self._name}.{name} cannot be set in TensorRT {self._module.__version__}")
        self.__dict__["_values"][name] = value


class FakeTensorRT(ModuleType):
    """The module for sys.modules["tensorrt"]; `calls` tells what was called, `configs` and `networks` what was made."""

    def __init__(self, described: dict[str, Any], cuda: FakeCuda, model: FakeModel) -> None:
        super().__init__("tensorrt")
        self.described = described
        self.cuda = cuda
        self.model = model
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.configs: list[Any] = []
        self.networks: list[Any] = []
        self.loggers: list[Any] = []
        self.__version__ = described["version"]
        self.types: dict[str, Any] = {}
        self.global_plugins = list(model.plugins)
        for name, record in described["classes"].items():
            self.types[name] = self._enum(name, record) if record["members"] is not None else self._class(name)
        for name, kind in self.types.items():
            outer, _, inner = name.rpartition(".")
            if outer:
                setattr(self.types[outer], inner, kind)
            else:
                setattr(self, name, kind)
        for name, kind in described["constants"].items():
            members = described["classes"].get(kind, {}).get("members") or ()
            setattr(self, name, self.types[kind][name.upper()] if name.upper() in members else None)
        if "get_plugin_registry" in described["functions"]:
            self.get_plugin_registry = lambda: self._registry(self.global_plugins)
        self._behave()

    def _enum(self, name: str, record: dict[str, Any]) -> Any:
        members = record["members"] or ["NOTHING"]
        # the real numbers differ between versions: nothing may depend on them; 61 is prime and above every count, so none repeats
        assert len(members) < 61
        return IntEnum(name, {member: (number * 7 + len(self.__version__)) % 61 for number, member in enumerate(members)})

    def _class(self, name: str) -> type:
        return type(name, (Strict,), {"_name": name, "_module": self})

    def default(self, kind: str) -> Any:
        """A value of that pybind type."""
        spelled = python_type(kind, set(self.described["classes"]))
        if spelled in self.types:
            record = self.described["classes"][spelled]
            return next(iter(self.types[spelled])) if record["members"] is not None else self.types[spelled]()
        simple: dict[str, Callable[[], Any]] = {"int": int, "float": float, "str": str, "bool": lambda: True}
        if spelled in simple:
            return simple[spelled]()
        return [] if spelled.startswith("list") else None

    def method(self, owner: Any, name: str, signatures: list[str]) -> Callable[..., Any]:
        """A callable that refuses arguments which no overload takes, and does what `_behave` says."""

        def called(*args: Any, **kwargs: Any) -> Any:
            self.check_arguments(f"{owner._name}.{name}", signatures, args, kwargs)
            self.calls.append((f"{owner._name}.{name}", args, kwargs))
            behaviour = self.behaviours.get(f"{owner._name}.{name}")
            if behaviour is not None:
                return behaviour(owner, *args, **kwargs)
            return self.default(returned(signatures[0])) if signatures else None

        return called

    @staticmethod
    def check_arguments(name: str, signatures: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        readable = [found for found in map(parameters, signatures) if found is not None]
        for overload in readable:
            names = [parameter for parameter, _, _ in overload]
            needed = {parameter for parameter, _, has_default in overload[len(args) :] if not has_default}
            if len(args) <= len(names) and set(kwargs) <= set(names[len(args) :]) and needed <= set(kwargs):
                return
        if readable:
            raise TypeError(f"{name}(): incompatible function arguments {args} {kwargs}; supported: {signatures}")

    # what the classes do, beyond existing

    def _behave(self) -> None:
        types, model = self.types, self.model
        contexts = self.contexts = FakeContexts(self)

        def with_init(name: str, init: Callable[..., None]) -> None:
            def __init__(owner: Any, *args: Any, **kwargs: Any) -> None:
                Strict.__init__(owner)
                self.check_arguments(name, self.described["classes"][name]["methods"].get("__init__", []), args, kwargs)
                init(owner, *args, **kwargs)

            types[name].__init__ = __init__

        def takes_logger(owner: Any, *arguments: Any) -> None:
            # the logger is always the last; the first that the library is given becomes its global one
            owner._logger = arguments[-1]
            self.loggers.append(arguments[-1])

        for name in ("Builder", "Runtime", "OnnxParser"):
            with_init(name, takes_logger)
        if "OnnxParserRefitter" in types:
            with_init("OnnxParserRefitter", lambda owner, refitter, logger: None)
        with_init("Refitter", lambda owner, engine, logger: None)
        # numbers of the fakes' methods that code of ours or Polygraphy relies on
        self.behaviours: dict[str, Callable[..., Any]] = {
            "Builder.create_network": self._create_network,
            "Builder.create_builder_config": self._create_config,
            "Builder.build_serialized_network": self._build,
            "OnnxParser.parse_from_file": lambda owner, model_path: model.parse_error is None,
            "OnnxParser.get_error": self._parser_error,
            "IBuilderConfig.set_flag": lambda owner, flag: owner._flags.add(flag.name),
            "IBuilderConfig.clear_flag": lambda owner, flag: owner._flags.discard(flag.name),
            "IBuilderConfig.get_flag": lambda owner, flag: flag.name in owner._flags,
            "IBuilderConfig.get_tactic_sources": lambda owner: owner._tactics,
            "IBuilderConfig.set_tactic_sources": lambda owner, tactic_sources: (
                bool(setattr(owner, "_tactics", tactic_sources)) or True
            ),
            "IBuilderConfig.set_memory_pool_limit": lambda owner, pool, pool_size: owner._pools.update({pool.name: pool_size}),
            "IBuilderConfig.get_memory_pool_limit": lambda owner, pool: owner._pools.get(pool.name, 0),
            "IBuilderConfig.add_optimization_profile": lambda owner, profile: (
                owner._profiles.append(profile) or len(owner._profiles) - 1
            ),
            "IBuilderConfig.set_preview_feature": lambda owner, feature, enable: owner._preview.update({feature.name: enable}),
            "IOptimizationProfile.set_shape": self._set_shape,
            "IOptimizationProfile.get_shape": lambda owner, input: owner._shapes.get(input, []),
            "IOptimizationProfile.__bool__": lambda owner: True,
            "ITimingCache.serialize": lambda owner: _Buffer(b"timings"),
            "INetworkDefinition.get_input": lambda owner, index: owner._inputs[index],
            "INetworkDefinition.get_layer": lambda owner, index: owner._layers[index],
            "ILayer.get_input": lambda owner, index: owner._tensors_in[index],
            "ILayer.get_output": lambda owner, index: owner._tensors_out[index],
            "ILayer.set_output_type": lambda owner, index, dtype: owner._output_types.update({index: dtype.name}),
            "Runtime.deserialize_cuda_engine": self._deserialize,
            "ICudaEngine.create_execution_context": contexts.create,
            "ICudaEngine.create_execution_context_without_device_memory": lambda owner: contexts.create(owner, owns_memory=False),
            "ICudaEngine.create_engine_inspector": lambda owner: types["EngineInspector"](),
            "ICudaEngine.get_tensor_name": lambda owner, index: ("images", *self.outputs)[index],
            "ICudaEngine.get_tensor_dtype": lambda owner, name: types["DataType"][model.engine_type],
            "ICudaEngine.get_tensor_shape": self._tensor_shape,
            "ICudaEngine.get_tensor_profile_shape": lambda owner, name, profile_index: [tuple(s) for s in owner._profile],
            "IExecutionContext.set_input_shape": contexts.set_input_shape,
            "IExecutionContext.set_device_memory": contexts.set_memory,
            "IExecutionContext.set_tensor_address": lambda owner, name, memory: (
                bool(owner._addresses.update({name: memory})) or True
            ),
            "IExecutionContext.set_optimization_profile_async": contexts.choose_profile,
            "IExecutionContext.execute_async_v3": contexts.execute,
            "EngineInspector.get_engine_information": self._inspect,
            "IPluginRegistry.load_library": self._load_library,
            "Builder.get_plugin_registry": lambda owner: self._registry(owner.__dict__.setdefault("_plugins", [])),
            "Runtime.get_plugin_registry": lambda owner: self._registry(owner.__dict__.setdefault("_plugins", [])),
        }
        registry = types["IPluginRegistry"]
        listed = (
            "all_creators"
            if "all_creators" in self.described["classes"]["IPluginRegistry"]["properties"]
            else "plugin_creator_list"
        )

        def creators(owner: Any) -> list[Any]:
            made = []
            for name in owner._known:
                creator = types["IPluginCreator"]()
                creator.__dict__["_values"].update(name=name)
                made.append(creator)
            return made

        setattr(registry, listed, property(creators))
        types["ICudaEngine"].num_io_tensors = property(lambda owner: 1 + len(self.outputs))
        for name in ("device_memory_size", "device_memory_size_v2"):
            if name in self.described["classes"]["ICudaEngine"]["properties"]:
                setattr(types["ICudaEngine"], name, property(lambda owner: ACTIVATION_BYTES))
        types["IOptimizationProfile"].__bool__ = lambda owner: True

    def _registry(self, known: list[str]) -> Any:
        registry = self.types["IPluginRegistry"]()
        registry._known = known
        return registry

    def _load_library(self, registry: Any, plugin_path: str) -> Any:
        # as the real 8.6 was seen to do
        if registry._known is self.global_plugins and self.__version__.startswith("8."):
            return None
        registry._known.extend(self.model.library_plugins)
        return object()

    def _create_network(self, builder: Any, flags: int = 0) -> Any:
        network = self.types["INetworkDefinition"]()
        dtypes = self.types["DataType"]
        tensors: dict[str, Any] = {}

        def tensor(name: str, dtype: str = "FLOAT") -> Any:
            if name not in tensors:
                tensors[name] = self.types["ITensor"]()
                tensors[name].__dict__["_values"].update(
                    name=name, dtype=dtypes[dtype], shape=(-1, *self.model.image_shape), is_shape_tensor=False
                )
            return tensors[name]

        network._flags = flags
        network._inputs = [tensor(name, dtype) for name, dtype in self.model.inputs]
        network._layers = []
        for kind, name, inputs, outputs, extras in self.model.layers:
            layer = self.types["ILayer"]()
            layer._output_types = {}
            layer._tensors_in = [None if source is None else tensor(source) for source in inputs]
            layer._tensors_out = [tensor(target, extras.get("dtype", "FLOAT")) for target in outputs]
            values = layer.__dict__["_values"]
            values.update(name=name, type=self.types["LayerType"][kind], metadata=extras.get("metadata", ""))
            values.update(num_inputs=len(inputs), num_outputs=len(outputs))
            if "to_type" in extras:
                values["to_type"] = dtypes[extras["to_type"]]
            network._layers.append(layer)
        network.__dict__["_values"].update(num_inputs=len(network._inputs), num_layers=len(network._layers))
        type(network).__iter__ = lambda owner: iter(owner._layers)
        self.networks.append(network)
        return network

    def _create_config(self, builder: Any) -> Any:
        config = self.types["IBuilderConfig"]()
        config._flags, config._tactics, config._pools, config._profiles, config._preview = {"TF32"}, 0b11111, {}, [], {}
        # what a machine without a DLA has
        config.__dict__["_values"]["DLA_core"] = -1
        self.configs.append(config)
        return config

    @staticmethod
    def _set_shape(profile: Any, input: str, min: Any, opt: Any, max: Any) -> None:
        profile.__dict__.setdefault("_shapes", {})[input] = [tuple(min), tuple(opt), tuple(max)]

    def _parser_error(self, parser: Any, index: int) -> Any:
        error = self.types["ParserError"]()
        self.behaviours["ParserError.desc"] = lambda owner: self.model.parse_error
        self.behaviours["ParserError.node"] = lambda owner: 3
        return error

    def _build(self, builder: Any, network: Any, config: Any) -> Any:
        monitor = config.__dict__["_values"].get("progress_monitor")
        severity = self.types["ILogger.Severity"]
        if monitor is not None and not self._tell_progress(monitor):
            return None
        if self.model.unobeyable and "OBEY_PRECISION_CONSTRAINTS" in config._flags:
            # libnvinfer 8.6: its own words
            builder._logger.log(
                severity.ERROR,
                "{ForeignNode[a...b]} requires foreign node optimizations incompatible with int8 precision constraints. "
                "kOBEY_PRECISION_CONSTRAINTS was set, so treating as error.",
            )
            return None
        if self.model.build_failures:
            failure = self.model.build_failures.pop(0)
            for kind, text in [("ERROR", failure)] if isinstance(failure, str) else failure:
                builder._logger.log(severity[kind], text)
            return None
        shapes = [list(shape) for shape in config._profiles[0]._shapes["images"]]
        return _Buffer(json.dumps({"fake": self.__version__, "profile": shapes, "flags": sorted(config._flags)}).encode())

    def _tell_progress(self, monitor: Any) -> bool:
        """Phases as the builder tells them; False where it stops, as for an exception in step_complete (the bindings' pyCore.cpp)."""
        go_on = [True]

        def tell(thread: int) -> None:
            for name, parent, steps in self.model.progress_phases:
                # inner phases come from the builder's own threads, each with a name of its own
                label = name if parent is None else f"{name} {thread}"
                if parent is None and thread:
                    continue
                monitor.phase_start(label, parent, steps)
                for step in range(steps):
                    try:
                        stays = monitor.step_complete(label, step)
                    except BaseException as error:
                        print(f"[ERROR] Exception caught in step_complete(): {error!r}", file=sys.stderr)
                        stays = False
                    if not stays:
                        go_on[0] = False
                        return
                monitor.phase_finish(label)

        threads = [threading.Thread(target=tell, args=(number,)) for number in range(1, self.model.progress_threads)]
        for thread in threads:
            thread.start()
        tell(0)
        for thread in threads:
            thread.join()
        return go_on[0]

    def _deserialize(self, runtime: Any, serialized_engine: Any) -> Any:
        try:
            values = json.loads(bytes(serialized_engine))
        except ValueError:
            runtime._logger.log(self.types["ILogger.Severity"].ERROR, "the engine plan file is damaged")
            return None
        engine = self.types["ICudaEngine"]()
        engine._profile = values["profile"]
        engine._logger, engine._cuda_context = runtime._logger, self.cuda.context
        return engine

    @property
    def outputs(self) -> dict[str, tuple[int, int]]:
        """Name -> (channels, stride) of each output; stride 0 for logits."""
        return MAP_CHANNELS if self.model.is_backbone else {"logits": (CLASSES, 0)}

    def _tensor_shape(self, owner: Any, name: str) -> tuple[int, ...]:
        """As the network was defined: -1 where the profile has a range."""
        low, _, high = owner._profile
        image = [side if side == most and axis else -1 for axis, (side, most) in enumerate(zip(low, high, strict=True))]
        if name == "images":
            return tuple(image)
        channels, stride = self.outputs[name]
        return (-1, channels, *(side // stride if side > 0 else -1 for side in image[2:])) if stride else (-1, channels)

    def inspected(self) -> dict[str, Any]:
        """The inspector's answer in this version's schema."""
        if self.model.inspector is not None:
            return self.model.inspector
        return engine_answer(self.__version__, self.model.precision, with_qdq=self.model.precision == "int8")

    def _inspect(self, inspector: Any, format: Any) -> str:
        # without a context whose shapes are set, TensorRT tells no types of a dynamic engine
        if inspector.execution_context._shape is None:
            return json.dumps({"Layers": ["names only"], "Bindings": []})
        return json.dumps(self.inspected())


class _Buffer(bytes):
    """IHostMemory: bytes that are also a context manager."""

    def __enter__(self) -> _Buffer:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    @property
    def nbytes(self) -> int:
        return len(self)
