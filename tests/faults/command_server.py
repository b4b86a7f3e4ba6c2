"""Runs gmf-edge commands in forked children: everything is imported once, so that a command costs its own work alone.

`python command_server.py` reads a JSON object a line and writes one a line:
{"arguments": [...], "environment": {...}, "cwd": ..., "limits": {"NOFILE": n}, "user": id, "clock": seconds, "log": file}  -> {"pid": n}
{"wait": n}                                                                                   -> {"status": n}, as a shell says it
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from typing import Any


def start(order: dict[str, Any]) -> int:
    """A child that runs the command; its output goes to the log."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # a test run in the background of a shell ignores SIGINT, and so would its children
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["cwd"])
        import tempfile

        from gmf_edge import deploy
        from gmf_edge.__main__ import main
        from gmf_edge.artifact import cache_root
        from gmf_edge.bench.latency import BenchPlan
        from gmf_edge.engines.tensorrt.backend import TensorRTBackend

        tempfile.tempdir = None
        cache_root.cache_clear()
        TensorRTBackend.missing = lambda self: "no GPU in this test"  # type: ignore[method-assign]
        deploy.BUILD_PLAN = BenchPlan(warmup_ms=0, duration_s=0.05)
        if "clock" in order:
            now = float(order["clock"])
            time.time = lambda: now
        for name, amount in order.get("limits", {}).items():
            if name == "AS":  # so much more than there is
                with open("/proc/self/statm") as statm:
                    amount += int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (amount, amount))
        if order.get("user"):
            os.setgroups([])
            os.setgid(order["user"])
            os.setuid(order["user"])
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.argv = ["gmf-edge", *order["arguments"]]
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT  # before the command began, as in Python's own start
    except BaseException as error:
        os.write(2, f"Traceback: {error!r} left the command line\n".encode())
    finally:
        os._exit(status)


def answer_orders() -> None:
    """Answer until the input ends."""
    import onnx  # noqa: F401
    import onnx_ir  # noqa: F401
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import torch  # noqa: F401

    import gmf_edge.cli
    import gmf_edge.model.export
    import gmf_edge.pipeline
    import gmf_edge.precision.calibrate
    import gmf_edge.precision.lower
    import gmf_edge.prepare
    import gmf_edge.rewrite.passes  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, code = os.waitpid(order["wait"], 0)
            ended = os.waitstatus_to_exitcode(code)
            answer = {"status": ended if ended >= 0 else 128 - ended}
        else:
            answer = {"pid": start(order)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    answer_orders()
