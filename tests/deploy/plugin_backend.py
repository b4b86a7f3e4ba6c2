"""ONNX Runtime in the role of a backend with plugins, for both processes of a trial; run as a script it is the child.

The plugin library is a text file that says how the plugin behaves: see PluginBackend.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

from gmf_edge.engines import choose
from gmf_edge.engines.onnxruntime import OnnxRuntimeBackend
from gmf_edge.engines.protocol import EngineRequest, Progress, silent
from gmf_edge.errors import EngineError, PrecisionError

# far above what a busy machine adds to an inference
SLOW_S = 0.02
# of which process: the tests count the builds
BUILDS = "GMF_EDGE_TEST_BUILDS"


class PluginBackend(OnnxRuntimeBackend):
    """Its engine is a file that says which graph it came from and how it behaves.

    faster, slower      than the engine without the plugin
    wrong               other logits
    refused             the build raises PrecisionError
    surprising          the build raises what nobody expects
    segfault, abort     the build does that
    illegal             running it ends the process
    hanging             running it never ends
    fails-later         right in the trial, EngineError in the process that deploys
    """

    def graph_form(self, request: EngineRequest) -> str:
        return "plugin" if request.use_plugin and request.options.get("plugin_library") else "portable"

    def build(self, request: EngineRequest, out: Path, progress: Progress = silent) -> tuple[str, ...]:
        form = self.graph_form(request)
        behaviour = Path(request.options["plugin_library"]).read_text() if form == "plugin" else "portable"
        progress(None, f"building the {form} engine")
        with Path(os.environ[BUILDS]).open("a") as log:
            log.write(f"{form} {os.getpid()}\n")
        if behaviour == "segfault":
            ctypes.string_at(0)
        elif behaviour == "abort":
            os.abort()
        elif behaviour == "refused":
            raise PrecisionError("no layer runs in FP16", "look at the layers")
        elif behaviour == "surprising":
            raise ZeroDivisionError("division by zero")
        (out / "engine.plan").write_text(f"{form} {behaviour} {os.getpid()}")
        (out / "engine.plan.json").write_text("{}")
        return ("engine.plan", "engine.plan.json")

    def open(self, request: EngineRequest, folder: Path, files: tuple[str, ...]) -> Any:
        form, behaviour, _ = (folder / files[0]).read_text().split()
        engine: Any = super().open(dataclasses.replace(request, options={}), folder, files)
        # facts are computed once from what ONNX Runtime says
        engine.__dict__["facts"] = dataclasses.replace(engine.facts, form=form)
        infer = engine.infer

        def behaving(images: Any) -> Any:
            if behaviour in ("slower", "portable"):
                time.sleep(SLOW_S * (2 if behaviour == "slower" else 1))
            elif behaviour == "illegal":
                ctypes.string_at(0)
            elif behaviour == "hanging":
                time.sleep(3600)
            elif behaviour == "fails-later" and "PYTEST_CURRENT_TEST" in os.environ and not IS_CHILD:
                raise EngineError("the GPU fell off the bus", "look at dmesg")
            return -infer(images) if behaviour == "wrong" else infer(images)

        engine.infer = behaving
        return engine


IS_CHILD = __name__ == "__main__"
if IS_CHILD:
    from gmf_edge.deploy import plugin_process

    choose.BACKENDS = (PluginBackend,)
    sys.exit(plugin_process.main(sys.argv[1:]))
