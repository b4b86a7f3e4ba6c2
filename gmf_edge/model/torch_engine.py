"""The FP32 PyTorch model as an engine, as a user runs it without this project: eager, or through torch.compile; see engines.protocol."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gmf_edge.engines.protocol import EngineFacts, FloatArray, LogitsOnly, require_images
from gmf_edge.errors import EngineError, EnvironmentProblem
from gmf_edge.model.groupmixformer import GroupMixFormer


class TorchEngine(LogitsOnly):
    """A model behind gmf_edge.engines.protocol.Engine.

    Args:
        model: in evaluation mode, FP32; left as it is.
        compiled: through torch.compile, which compiles at the first call and again when the batch size changes for the first time.
        on_gpu: on the current CUDA device instead of the CPU.
        threads: of the CPU's operators, for the whole process; 0 for PyTorch's own choice.
        device: what the hardware is called.

    Raises:
        EnvironmentProblem: PyTorch has no GPU here, or torch.compile cannot work.
    """

    def __init__(self, model: GroupMixFormer, *, compiled: bool, on_gpu: bool, threads: int = 0, device: str = "") -> None:
        if on_gpu and not torch.cuda.is_available():
            raise EnvironmentProblem(f"PyTorch {torch.__version__} has no GPU here", "install a PyTorch for this CUDA")
        if threads:
            torch.set_num_threads(threads)
        self._threads = torch.get_num_threads()
        self._place = torch.device("cuda" if on_gpu else "cpu")
        self._device, self._compiled = device, compiled
        self._size = model.spec.image_size
        self._model: Any = copy.deepcopy(model).to(self._place) if on_gpu else model
        if compiled:
            # what one model's shapes taught it must not slow the next one
            torch.compiler.reset()
            self._model = torch.compile(self._model)
            try:
                self._run(torch.zeros(1, 3, *self._size))
            except Exception as error:  # no compiler, no Triton, an operator that it does not know: each raises types of its own
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise EnvironmentProblem(
                    f"torch.compile does not work here: {reason}", "install a C++ compiler (on a GPU also triton)"
                ) from error

    @property
    def facts(self) -> EngineFacts:
        """PyTorch's version and how the model runs."""
        form = "torch.compile" if self._compiled else "eager"
        where = torch.cuda.get_device_name() if self._place.type == "cuda" else self._device
        return EngineFacts("pytorch", torch.__version__, where, form, notes=(f"{self._threads} threads",))

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self._model(images.to(self._place))
            return logits

    def infer(self, images: FloatArray) -> FloatArray:
        """Preprocessed images [B, 3, H, W], FP32 -> logits [B, classes], FP32.

        Raises:
            EngineError: closed, or the wrong shape.
        """
        if self._model is None:
            raise EngineError("the engine is closed", "open it again")
        require_images(images.shape, (3, *self._size))
        logits: FloatArray = self._run(torch.from_numpy(np.ascontiguousarray(images, np.float32))).cpu().numpy()
        return logits

    def compute_times_ms(self, images: FloatArray, count: int) -> NDArray[np.float64] | None:
        """GPU time of each of `count` inferences by CUDA events; None on the CPU."""
        if self._place.type != "cuda":
            return None
        held = torch.from_numpy(np.ascontiguousarray(images, np.float32)).to(self._place)
        self._run(held)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call]
        events[0].record()
        for event in events[1:]:
            self._run(held)
            event.record()
        torch.cuda.synchronize()
        return np.array([a.elapsed_time(b) for a, b in pairwise(events)], np.float64)

    def close(self) -> None:
        """Release the model."""
        self._model = None

    def __enter__(self) -> TorchEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
