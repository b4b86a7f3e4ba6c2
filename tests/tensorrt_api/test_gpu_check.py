"""benchmarks/gpu_check.py: what it reports with a GPU (stand-ins), without one, and for bundles that are missing or wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trt_fake import FakeModel
from trt_machine import MakeMachine, bundle

from gmf_edge.errors import StaleArtifact
from gmf_edge.spec import Precision

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


TESTS = SCRIPT.parents[1] / "tests" / "engines" / "tensorrt"


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch, brief_latency: None) -> Any:
    monkeypatch.setattr(sys, "path", [*sys.path])
    return loaded(SCRIPT)


def checked(gpu_check: Any, folder: Path, **more: Any) -> dict[str, Any]:
    """The check of folder/bundles, without processes: the stand-ins are in this one."""
    for name in ("work", "results"):
        (folder / name).mkdir(exist_ok=True)
    settings = {"seconds": 0.01, "run_tests": False, "do": gpu_check.in_this_process, **more}
    check = gpu_check.Check(folder / "bundles", folder / "work", folder / "results", {}, lambda line: None, **settings)
    result: dict[str, Any] = check.run()
    assert json.loads(check.path.read_text()) == json.loads(json.dumps(result, allow_nan=False))
    return result


@pytest.mark.parametrize("version", ["8.6.1", "11.4.0.106"])
def test_bundles_are_deployed_verified_and_measured(make: MakeMachine, gpu_check: Any, tmp_path: Path, version: str) -> None:
    make(version)
    bundle(tmp_path / "bundles" / "a", "pico", Precision.FP16)
    bundle(tmp_path / "bundles" / "b", "mobile", Precision.FP16, wrong_by=3.0)
    bundle(tmp_path / "bundles" / "c", "small", Precision.INT8)
    damaged = bundle(tmp_path / "bundles" / "d", "small", Precision.FP32)
    (damaged / "portable-20.onnx").write_bytes(b"ONNX")
    result = checked(gpu_check, tmp_path)
    runs = {run["bundle"]: run for run in result["bundles"]}
    assert runs["pico-fp16"]["status"] == "passed", runs["pico-fp16"]
    assert [step["batch"] for step in runs["pico-fp16"]["steps"]] == [1, 2, 4]
    assert [entry["batch"] for entry in runs["pico-fp16"]["latency"]] == [1, 2, 4]
    assert runs["pico-fp16"]["engine"]["precision_shares"] == pytest.approx({"fp16": 14 / 15, "fp32": 1 / 15})
    assert runs["pico-fp16"]["steps"][0]["cuda_graph"] is True
    assert set(runs["pico-fp16"]["seconds"]) == {"deploy", "inspect", "layers", "verify", "bench", "steps"}
    # the engine does not do what the bundle's golden data say
    assert runs["mobile-fp16"]["status"] == "failed"
    assert "at batch 1" in runs["mobile-fp16"]["reason"]
    # the stand-in's layers run in FP16, not in INT8: it is measured all the same
    assert runs["small-int8"]["status"] == "failed"
    assert "precision: int8 was asked for, but no matrix product of the engine runs in int8" in runs["small-int8"]["reason"]
    assert runs["small-int8"]["steps"]
    assert runs["d"]["status"] == "failed"
    assert "portable-20.onnx was changed" in runs["d"]["reason"]
    assert runs["pico-fp32"] == {
        "bundle": "pico-fp32",
        "status": "not run",
        "reason": f"no bundle of pico in fp32 below {tmp_path / 'bundles'}",
    }
    assert result["passed"] is False
    assert result["summary"] == "1 passed, 3 failed, 7 not run"
    assert result["device"]["name"] == "Fake Orin"
    assert {finding["subject"]: finding["state"] for finding in result["findings"]}["CUDA at work"] == "ok"
    [path] = (tmp_path / "results").glob("*.json")
    assert path.name.startswith(f"Fake-Orin-tensorrt{version}-20")


def test_what_only_the_device_can_tell_lies_beside_the_json(make: MakeMachine, gpu_check: Any, tmp_path: Path) -> None:
    machine = make("10.13.3.9", FakeModel(build_failures=["Error Code 1: Cuda Runtime (out of memory)"]))
    bundle(tmp_path / "bundles" / "a", "pico", Precision.FP16)
    result = checked(gpu_check, tmp_path)
    [run] = [run for run in result["bundles"] if run["status"] != "not run"]
    files = tmp_path / "results" / run["files"]
    assert sorted(path.name for path in files.iterdir()) == ["build.log", "layers.json", "profile.json"]
    assert "ERROR Error Code 1: Cuda Runtime (out of memory)" in (files / "build.log").read_text()
    assert json.loads((files / "layers.json").read_text()) == machine.trt.inspected()
    head, *layers = json.loads((files / "profile.json").read_text())
    assert head["count"] > 1
    assert {layer["name"] for layer in layers} <= {layer["Name"] for layer in machine.trt.inspected()["Layers"]}
    slowest = run["kernels"][0]
    assert slowest["kernel"].startswith("sm80_xmma_gemm_f16f16")
    assert (slowest["kind"], slowest["precision"], slowest["layers"]) == ("gemm", "fp16", 4)
    assert slowest["ms"] == pytest.approx(8.0)
    assert sum(kernel["ms"] for kernel in run["kernels"]) == pytest.approx(sum(layer["averageMs"] for layer in layers))


def test_all_passed_is_said_only_when_something_ran(make: MakeMachine, gpu_check: Any, tmp_path: Path) -> None:
    make("10.3.0", FakeModel(precision="fp16"))
    arguments = [str(tmp_path), "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w"), "--seconds", "0.01"]
    arguments += ["--no-tests", "--in-process"]
    assert gpu_check.main(arguments) == 1
    bundle(tmp_path / "bundles" / "a", "pico", Precision.FP16)
    assert gpu_check.main(arguments) == 0
    assert gpu_check.main([*arguments, "--builderOptimizationLevel=5"]) == 0
    for wrong in ("--fp16", "--unknown", "--budget-minutes=0"):
        with pytest.raises(SystemExit, match="2"):
            gpu_check.main([*arguments, wrong])


# a job that leaves an answer and then does not end well
DEATHS = {
    "segfault": ("os.kill(os.getpid(), signal.SIGSEGV)", "failed", "deploy while building: its process was ended by SIGSEGV"),
    "status": ("sys.exit(3)", "failed", "deploy while building: its process ended with status 3"),
    "hang": ("time.sleep(600)", "not run", "deploy while building: its process was stopped after 0.0333 minutes"),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_step_that_dies_costs_that_step_alone(
    gpu_check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    code, status, reason = DEATHS[death]
    script = tmp_path / "job.py"
    script.write_text(
        "import json, os, signal, sys, time\n"
        "job = json.load(open(sys.argv[1]))\n"
        "environment = job['kind'] == 'environment'\n"
        "told = {'problem': None, 'device': {'name': 'GPU'}, 'tensorrt': '8.6.1'} if environment else "
        "{'step': 'deploy', 'doing': 'building', 'status': 'failed'}\n"
        "open(job['answer'], 'w').write(json.dumps(told))\n"
        "print('last words', flush=True)\n"
        f"environment or {code}\n"
    )
    monkeypatch.setattr(gpu_check.gpu_check_job, "__file__", str(script))
    monkeypatch.setattr(gpu_check, "LIMIT_S", 2.0)
    for name, variant in (("a", "pico"), ("b", "mobile")):
        bundle(tmp_path / "bundles" / name, variant, Precision.FP16)
    result = checked(gpu_check, tmp_path, do=gpu_check.in_child)
    for run in (run for run in result["bundles"] if run["bundle"].endswith("fp16") and "small" not in run["bundle"]):
        assert (run["status"], run["reason"], run["output"]) == (status, reason, ["last words"])


def test_a_machine_that_dies_when_it_is_asked_cannot_be_used(
    gpu_check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "job.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGABRT)\n")
    monkeypatch.setattr(gpu_check.gpu_check_job, "__file__", str(script))
    bundle(tmp_path / "bundles" / "a", "pico", Precision.FP16)
    result = checked(gpu_check, tmp_path, do=gpu_check.in_child)
    assert result["problem"] == "doctor: starting: its process was ended by SIGABRT"
    assert {run["status"] for run in result["bundles"]} == {"not run"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_end_in_the_middle_leaves_the_json_of_what_was_done(
    gpu_check: Any, tmp_path: Path, error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, variant in (("a", "pico"), ("b", "mobile")):
        bundle(tmp_path / "bundles" / name, variant, Precision.FP16)

    def do(job: Any, limit_s: float, show: Any) -> Any:
        if job["kind"] == "environment":
            return {"problem": None, "device": {"name": "GPU"}, "tensorrt": "8.6.1"}
        if "mobile" in job["out"]:
            raise error
        return {"status": "passed", "reason": "parity"}

    check = gpu_check.Check(
        tmp_path / "bundles", tmp_path / "work", tmp_path / "results", {}, lambda line: None, run_tests=False, do=do
    )
    if error is KeyboardInterrupt:
        assert gpu_check.concluded(check) == 130
    else:
        with pytest.raises(ZeroDivisionError):
            gpu_check.concluded(check)
    [path] = (tmp_path / "results").glob("*.json")
    told = json.loads(path.read_text())
    assert told["summary"].startswith(f"ended by {error.__name__}; 1 passed, 0 failed")
    assert [run["status"] for run in told["bundles"] if run["bundle"] == "pico-fp16"] == ["passed"]
    assert told["passed"] is False
    assert f"wrote {path}" in capsys.readouterr().out


def test_a_budget_goes_to_what_tells_most(gpu_check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in ("small", "mobile", "pico"):
        for precision in Precision:
            bundle(tmp_path / "bundles" / f"{variant}-{precision.value}", variant, precision)
    seconds = [0.0]
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: seconds[0])
    done: list[str] = []
    limits: list[float] = []

    def do(job: Any, limit_s: float, show: Any) -> Any:
        seconds[0] += 60
        if job["kind"] == "environment":
            return {"problem": None, "device": None, "tensorrt": "8.6.1"}
        done.append(Path(job["out"]).name)
        limits.append(limit_s)
        return {"status": "passed", "reason": "parity"}

    monkeypatch.setattr(gpu_check.Check, "tests", lambda check: done.append("tests") or {"status": "passed", "reason": "1 passed"})
    result = checked(gpu_check, tmp_path, do=do, budget_s=420.0)
    assert done == ["pico-fp32", "pico-fp16", "pico-int8", "mobile-fp16", "mobile-int8", "tests", "small-fp16"]
    # what is running when the time is over is stopped then
    assert limits == [360, 300, 240, 180, 120, 60]
    late = [run for run in result["bundles"] if run["status"] == "not run"]
    # nothing is known of BF16's gain yet: it comes last
    assert {run["bundle"] for run in late} == {"small-int8", "mobile-fp32", "small-fp32", "pico-bf16", "mobile-bf16", "small-bf16"}
    assert {run["reason"] for run in late} == {"the 7 minutes are over"}
    # with time for everything the tests see every bundle
    done.clear()
    checked(gpu_check, tmp_path, do=do)
    assert done[-1] == "tests"


@pytest.mark.parametrize(
    ("function", "answer"),
    [("cudaGetDeviceCount", (999, None)), ("cudaGetDeviceProperties", (700, None)), ("cudaMemGetInfo", (2, None, None))],
)
def test_a_machine_that_answers_with_errors_is_described_all_the_same(
    make: MakeMachine, gpu_check: Any, function: str, answer: tuple[Any, ...]
) -> None:
    machine = make("10.3.0")
    setattr(machine.cuda, function, lambda *arguments: answer)
    told = gpu_check.gpu_check_job.environment()
    assert function in told["problem"]
    assert told["tensorrt"] == "10.3.0"
    assert told["findings"]
    json.dumps(told)


def without(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which these packages are not installed."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is not here', name='{name}')\n")
    return {**os.environ, "PYTHONPATH": f"{folder}:{SCRIPT.parents[1]}"}


def test_the_gpu_tests_are_collected_without_torch_and_onnx(gpu_check: Any, tmp_path: Path) -> None:
    """As on a device; a file that cannot be collected would end pytest with status 2 and no test run."""
    away = (
        "torch",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "onnxruntime",
        "typer",
        "scipy",
        "triton",
        "safetensors",
        "tensorrt",
        "sklearn",
    )
    environment = without(tmp_path / "away", *away)
    answer = subprocess.run(
        [sys.executable, *gpu_check.PYTEST, "--collect-only"],
        capture_output=True,
        text=True,
        cwd=SCRIPT.parents[1],
        env=environment,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for name in ("test_gpu.py", "test_gpu_streams.py", "test_gpu_memory.py"):
        assert f"tests/engines/tensorrt/{name}::test_" in answer.stdout
    assert "error" not in answer.stdout.lower()
    # and no file with such tests is forgotten
    marked = {
        str(path.relative_to(SCRIPT.parents[1]))
        for path in (SCRIPT.parents[1] / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text() and path.name != Path(__file__).name
    }
    assert marked == set(gpu_check.TEST_FILES)


@pytest.mark.parametrize(
    ("status", "line", "outcome"),
    [
        (0, "14 passed, 3 skipped in 9.00s", "passed"),
        (0, "17 skipped in 0.10s", "not run"),
        (5, "no tests ran in 0.01s", "not run"),
        (1, "1 failed, 13 passed in 9.00s", "failed"),
        (2, "Interrupted: 8 errors during collection", "failed"),
        (-11, "14 passed", "failed"),
        (None, "...", "not run"),
    ],
)
def test_the_tests_pass_only_where_one_has_passed(gpu_check: Any, status: int | None, line: str, outcome: str) -> None:
    assert gpu_check.outcome(status, [line, ""], 60.0)["status"] == outcome


@pytest.mark.parametrize("version", ["8.6.1", "11.4.0.106"])
def test_the_gpu_tests_themselves_run_on_the_stand_ins(
    make: MakeMachine, gpu_check: Any, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a GPU's minutes are not spent on a mistake in the tests."""
    machine = make(version)
    bundle(tmp_path / "bundles" / "a", "pico", Precision.FP16)
    checked(gpu_check, tmp_path)
    monkeypatch.setenv("GMF_EDGE_BUNDLES", str(tmp_path / "work"))
    monkeypatch.syspath_prepend(TESTS)
    engines = loaded(TESTS / "deployed_engines.py")
    gpu, streams, memory = (loaded(TESTS / name) for name in ("test_gpu.py", "test_gpu_streams.py", "test_gpu_memory.py"))
    assert engines.deployed() == [tmp_path / "work" / "pico-fp16"]
    [folder] = engines.deployed()
    with engines.opened(folder) as engine:
        gpu.test_every_batch_size_gives_what_fp32_pytorch_gave(folder, engine)
        gpu.test_rows_do_not_depend_on_their_batch(engine)
        gpu.test_batch_sizes_may_alternate_under_graphs(engine)
        gpu.test_steps_are_timed_on_the_gpu(engine)
        gpu.test_layer_times_cover_the_inspected_layers(engine)
        streams.test_compute_times_agree_with_the_steps(engine)
    gpu.test_cuda_graphs_change_no_bit(folder)
    gpu.test_streams_give_what_one_stream_gives(folder)
    streams.test_graphs_share_the_activations_of_their_stream(folder)
    # the whole system's memory says nothing of an engine's
    with pytest.raises(pytest.skip.Exception, match="Jetson"):
        memory.test_opening_and_closing_leaks_no_memory(folder)
    machine.cuda.integrated = False
    with pytest.raises(StaleArtifact, match="built on"):
        memory.test_opening_and_closing_leaks_no_memory(folder)
    sidecar = folder / "engine.plan.json"
    sidecar.write_text(sidecar.read_text().replace('"integrated": true', '"integrated": false'))
    memory.test_opening_and_closing_leaks_no_memory(folder)
    # a leak of a MiB each time is found
    free_mib = memory.free_memory_mib
    lost = iter(range(0, 100, 2))
    monkeypatch.setattr(memory, "free_memory_mib", lambda: free_mib() - next(lost))
    with pytest.raises(AssertionError, match="free MiB after each use"):
        memory.test_opening_and_closing_leaks_no_memory(folder)


def test_without_a_gpu_the_script_says_what_was_not_run(tmp_path: Path) -> None:
    """The real script in a new process, with torch and onnx out of reach, as on a device."""
    bundle(tmp_path / "bundles" / "a", "pico", Precision.FP16)
    environment = {**without(tmp_path / "blocked", "torch", "onnx", "tensorrt"), "PYTHON": sys.executable, "GMF_EDGE_COMMIT": "abc"}
    environment.pop("TRT_HOME", None)
    folders = ["--results", str(tmp_path / "r"), "--work", str(tmp_path / "w")]
    command = [str(SCRIPT.with_suffix(".sh")), str(tmp_path / "bundles"), *folders]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 4, answer.stdout + answer.stderr
    assert answer.stdout.splitlines()[-1].startswith("NOT RUN: 0 passed, 0 failed, 10 not run: ")
    [path] = (tmp_path / "r").glob("no-gpu-*.json")
    result = json.loads(path.read_text())
    assert result["commit"] == "abc"
    assert "TensorRT cannot be imported" in result["problem"] or "cuda" in result["problem"].lower()
    assert {run["status"] for run in result["bundles"]} == {"not run"}
    assert all(run["reason"] for run in result["bundles"])
    assert result["tests"]["status"] == "not run"
    assert not [found for found in (tmp_path / "w").iterdir() if found.is_dir()]
