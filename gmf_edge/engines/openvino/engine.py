"""Inferences with OpenVINO.

A model of a fixed shape is faster (what depends on the batch is decided when it is compiled), so each batch size of the profile's sizes
gets one of its own, when it is first used; all other sizes share one that takes any size. On a device that knows fixed shapes
alone they are filled up to the next larger size instead.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gmf_edge.engines.openvino.compiled import Compiler, reason_of
from gmf_edge.engines.openvino.layers import WEIGHTED_KINDS, layer_records
from gmf_edge.engines.protocol import EngineFacts, FloatArray, LayerRecord, precision_shares, require_images, require_task
from gmf_edge.errors import EngineError
from gmf_edge.spec import LOGITS, BatchProfile, Task

# the first inference allocates; the last is the one whose times are read
PROFILED_RUNS = 3
_ANY = 0


@dataclass(frozen=True)
class Description:
    """What facts say beside the layers; see EngineFacts."""

    backend: str
    version: str
    device: str
    form: str
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)


class OpenVinoEngine:
    """Compiled models over one graph; see gmf_edge.engines.protocol.Engine. Not thread-safe: use one per thread."""

    def __init__(
        self, compiler: Compiler, profile: BatchProfile, description: Description, *, streams: int = 1, static_only: bool = False
    ) -> None:
        self._compiler, self._profile, self._description = compiler, profile, description
        self._streams, self._static_only = streams, static_only
        self._shape = compiler.image_shape
        # by batch size, _ANY for the model of all others: a request a stream
        self._requests: dict[int, list[Any]] | None = {}
        self._dtype = np.float16 if self._first_model.input(0).get_element_type().get_type_name() == "f16" else np.float32

    @functools.cached_property
    def _first_model(self) -> Any:
        return self._requests_for(self._profile.opt)[0].get_compiled_model()

    @property
    def device(self) -> str:
        """The hardware's name."""
        return self._description.device

    def _requests_for(self, batch: int) -> list[Any]:
        assert self._requests is not None
        key = batch if batch in self._profile.sizes else _ANY
        if key not in self._requests:
            sizes = (key, key) if key != _ANY else (self._profile.min, self._profile.max)
            model = self._compiler.model(sizes)
            self._requests[key] = [model.create_infer_request() for _ in range(self._streams)]
        return self._requests[key]

    @functools.cached_property
    def _outputs(self) -> tuple[str, ...]:
        return tuple(output.get_any_name() for output in self._first_model.outputs)

    @property
    def task(self) -> Task:
        """By the graph's outputs."""
        return Task.CLASSIFY if self._outputs == (LOGITS,) else Task.FEATURES

    def infer(self, images: FloatArray) -> FloatArray:
        """Preprocessed images [B, 3, H, W], FP32 -> logits [B, classes], FP32.

        The first inference at a batch size compiles the model for it, or reads it from the cache.

        Raises:
            EngineError: closed, wrong shape, a batch size outside the profile, or a backbone.
        """
        return self._finish(*self._start(images, 0, Task.CLASSIFY))[LOGITS]

    def infer_maps(self, images: FloatArray) -> Mapping[str, FloatArray]:
        """Preprocessed images [B, 3, H, W], FP32 -> a backbone's maps by name, [B, C, H / stride, W / stride], FP32.

        Raises:
            EngineError: closed, wrong shape, a batch or image size outside the profile, or a classifier.
        """
        return self._finish(*self._start(images, 0, Task.FEATURES))

    def infer_many(self, batches: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """The logits of each batch in order, with as many batches in flight as the engine has streams.

        Raises:
            EngineError: as infer.
        """
        for outputs in self._streamed(batches, Task.CLASSIFY):
            yield outputs[LOGITS]

    def infer_many_maps(self, batches: Iterable[FloatArray]) -> Iterator[Mapping[str, FloatArray]]:
        """As infer_many, the maps of each batch.

        Raises:
            EngineError: as infer_maps.
        """
        return self._streamed(batches, Task.FEATURES)

    def _streamed(self, batches: Iterable[FloatArray], task: Task) -> Iterator[dict[str, FloatArray]]:
        in_flight: list[tuple[Any, int]] = []
        for number, images in enumerate(batches):
            if len(in_flight) == self._streams:
                yield self._finish(*in_flight.pop(0))
            in_flight.append(self._start(images, number % self._streams, task))
        for started in in_flight:
            yield self._finish(*started)

    def compute_times_ms(self, images: FloatArray, count: int) -> None:
        """None: the host's clock is the engine's, also for OpenVINO's GPUs."""

    def _start(self, images: FloatArray, stream: int, task: Task) -> tuple[Any, int]:
        """Start an inference of an engine for that task on one of its streams: (the request, images in it)."""
        if self._requests is None:
            raise EngineError("the engine is closed", "open it again")
        require_task(self.task, task)
        require_images(images.shape, self._shape, self._compiler.sizes, self._profile)
        batch = len(images)
        given = np.ascontiguousarray(images, self._dtype)
        if self._static_only:
            padded = min(size for size in self._profile.sizes if size >= batch)
            given = np.concatenate([given, np.zeros((padded - batch, *self._shape), self._dtype)])
        request = self._requests_for(len(given))[stream]
        try:
            # copied into memory of the request's own: the caller may change the images while a stream is at work
            request.start_async({0: given}, share_inputs=False)
        except RuntimeError as error:
            raise self._failure(batch, error) from error
        return request, batch

    def _finish(self, request: Any, batch: int) -> dict[str, FloatArray]:
        try:
            request.wait()
            tensors = [request.get_output_tensor(index).data[:batch].astype(np.float32) for index in range(len(self._outputs))]
        except RuntimeError as error:
            raise self._failure(batch, error) from error
        return dict(zip(self._outputs, tensors, strict=True))

    @staticmethod
    def _failure(batch: int, error: Exception) -> EngineError:
        return EngineError(f"OpenVINO failed at batch {batch}: {reason_of(error)}", "use smaller batches or free memory")

    def layers(self) -> tuple[LayerRecord, ...]:
        """Of the model for the opt batch size, without times; none where the device does not tell.

        Raises:
            EngineError: closed.
        """
        if self._requests is None:
            raise EngineError("the engine is closed", "open it again")
        try:
            return layer_records(self._first_model.get_runtime_model())
        except RuntimeError:
            return ()

    @functools.cached_property
    def facts(self) -> EngineFacts:
        """Layers, their precisions and times as OpenVINO profiled them in one inference at the opt batch size."""
        layers, notes = self._profiled_layers(), self._description.notes
        if not layers:
            notes = (*notes, f"OpenVINO does not tell which layers {self._description.device} runs, and in which precision")
        return EngineFacts(
            backend=self._description.backend,
            version=self._description.version,
            device=self._description.device,
            form=self._description.form,
            layers=layers,
            precision_shares=precision_shares(layers, WEIGHTED_KINDS),
            notes=notes,
            options=self._description.options,
            execution=self._description.execution,
        )

    def _profiled_layers(self) -> tuple[LayerRecord, ...]:
        opt = self._profile.opt
        model = self._compiler.model((opt, opt), PERF_COUNT=True)
        request = model.create_infer_request()
        for _ in range(PROFILED_RUNS):
            request.infer({0: np.zeros((opt, *self._shape), self._dtype)})
        try:
            return layer_records(model.get_runtime_model())
        except RuntimeError:
            return ()

    def close(self) -> None:
        """Release the models; further calls of infer raise EngineError."""
        self._requests = None
        for name in ("_first_model", "_outputs"):
            self.__dict__.pop(name, None)

    def __enter__(self) -> OpenVinoEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
