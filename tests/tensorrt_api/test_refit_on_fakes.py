"""A deployed engine whose weights are put in when it is opened is held against FP32 PyTorch's logits again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trt_machine import MakeMachine, bundle

from gmf_edge.bundle import open_bundle
from gmf_edge.deploy import deploy_bundle, open_engine, verify_bundle
from gmf_edge.engines.tensorrt.run import TensorRTEngine
from gmf_edge.errors import EngineError
from gmf_edge.spec import Precision


@pytest.mark.usefixtures("brief_latency")
@pytest.mark.parametrize("strip", [True, False])
def test_weights_that_tensorrt_did_not_exchange_are_found_when_a_stripped_engine_is_opened(
    make: MakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strip: bool
) -> None:
    """The refit answers that all is well: folded weights may have stayed as they were."""
    make("10.3.0")
    folder = bundle(tmp_path / "b", "pico", Precision.FP16)
    assert deploy_bundle(folder, backend="tensorrt", options={"strip": strip}).passed
    open_engine(open_bundle(folder)).close()
    infer = TensorRTEngine.infer

    def other_weights(engine: TensorRTEngine, images: Any) -> Any:
        logits = infer(engine, images)
        return logits + 3 * np.arange(logits.shape[1], dtype=np.float32) ** 2

    monkeypatch.setattr(TensorRTEngine, "infer", other_weights)
    if strip:
        with pytest.raises(EngineError, match=r"wrong with its weights put back: .*deploy again without --stripWeights"):
            open_engine(open_bundle(folder))
        with pytest.raises(EngineError, match="weights put back"):
            verify_bundle(folder)
    else:
        # an engine with its own weights was proved when it was built
        open_engine(open_bundle(folder)).close()
