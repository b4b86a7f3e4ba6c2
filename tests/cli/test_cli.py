"""The command line: each exit status, one clear error for each bad input with nothing left behind, and what every command prints."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch")

import gmf_edge
from gmf_edge import cli
from gmf_edge.bundle import open_bundle
from gmf_edge.engines.onnxruntime import OnnxRuntimeEngine
from gmf_edge.engines.protocol import FloatArray
from gmf_edge.engines.tensorrt.backend import TensorRTBackend
from gmf_edge.weights import UNTRAINED

pytestmark = pytest.mark.usefixtures("brief_latency")
PACKAGED = Path(gmf_edge.__file__).parent / "assets"
TEST_SET = PACKAGED / "pico-digits-test.zip"


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.rstrip("\n").split("\n")[-1]


Run = Callable[..., Ended]


@pytest.fixture
def gmf(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, without TensorRT even where there is one."""
    monkeypatch.setattr(TensorRTBackend, "missing", lambda self: "no GPU in this test")

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        status = cli.run([str(argument) for argument in arguments])
        return Ended(status, *capsys.readouterr())

    return run


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def one_clear_error(ended: Ended, status: int, *words: str) -> None:
    """The status, one error line with these words, what to do, no traceback, and FAILED at the end."""
    assert ended.status == status, ended
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ended.err
    assert all(word in errors[0] for word in words), errors[0]
    assert sum(line.startswith("what to do: ") for line in ended.err.splitlines()) == 1, ended.err
    assert "Traceback" not in ended.out + ended.err
    assert "unexpected" not in errors[0]
    assert ended.last_line.startswith("FAILED: ")


# what a build and a deployment print


def test_build_with_defaults_passes_and_shows_real_accuracy(gmf: Run, pico_fp16: Path, tmp_path: Path) -> None:
    ended = gmf("build", "--precision", "fp16", "--output", tmp_path / "pico")
    assert ended.status == 0, ended
    assert ended.last_line.startswith("PASSED: top-1 99.")
    assert "0 of 360 images flipped" in ended.last_line
    assert "tried at batch 1, 8" in ended.out
    assert "asked for fp16; computed in: " in ended.out
    assert f"where      {tmp_path / 'pico'}" in ended.out
    assert f"next       gmf-edge predict {tmp_path / 'pico'} PICTURE..." in ended.out
    assert sorted(os.listdir(tmp_path)) == ["pico"]
    assert sorted(os.listdir(tmp_path / "pico")) == sorted(os.listdir(pico_fp16))


def test_equal_inputs_skip_stages_with_a_word(gmf: Run, pico_fp16: Path, tmp_path: Path) -> None:
    ended = gmf("export", "--fp16", "--output", tmp_path / "again")
    unchanged = [line for line in ended.err.splitlines() if "unchanged, taken from the cache" in line]
    assert ["1-plain.onnx" in unchanged[0], "2-fused.onnx" in unchanged[1], len(unchanged)] == [True, True, 4], ended.err
    for name in ("portable.onnx", "plugin.onnx", "weights.bin", "golden.npz", "reference.npz", "labels.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (pico_fp16 / name).read_bytes(), name


def test_a_random_model_says_untrained_on_screen_and_claims_no_accuracy(gmf: Run, odd_pico: Any, tmp_path: Path) -> None:
    ended = gmf("deploy", odd_pico.bundle, "--output", tmp_path / "odd")
    assert ended.status == 0, ended
    assert f"*** {UNTRAINED} ***" in ended.out
    assert "top-1" not in ended.out
    assert ended.last_line.startswith("PASSED: agreement ")
    report = json.loads((tmp_path / "odd" / "report.json").read_text())
    assert report["weights"]["statement"] == UNTRAINED
    assert [report["parity"][name] for name in ("reference_top1", "engine_top1", "top1_change_points", "interval_95")] == [None] * 4


def test_export_then_deploy_gives_what_build_gives(gmf: Run, pico_export: Path, pico_fp16: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(pico_export, tmp_path / "pico")
    ended = gmf("deploy", bundle, "--eval-data", TEST_SET)
    assert (ended.status, os.listdir(tmp_path)) == (0, ["pico"]), ended
    deployed, built = open_bundle(bundle), open_bundle(pico_fp16)
    assert deployed.report is not None
    assert built.report is not None
    assert deployed.report["parity"] == built.report["parity"]
    differing = {name for name in built.manifest.files if built.manifest.files[name] != deployed.manifest.files.get(name)}
    # what tells times, and by which command they came about
    assert differing == {"report.json", "report.html", "measurements.npz", "reproduce.sh"}


def test_deploy_with_output_leaves_the_bundle_as_it_was(gmf: Run, pico_export: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in pico_export.iterdir()}
    assert gmf("deploy", pico_export, "--output", tmp_path / "deployed", "-q").status == 0
    assert {path.name: path.read_bytes() for path in pico_export.iterdir()} == before
    assert open_bundle(tmp_path / "deployed").report is not None


def test_fp16_input_and_output_can_be_asked_for(gmf: Run, pico_export: Path, tmp_path: Path) -> None:
    assert gmf("export", "--fp16", "--io-dtype", "float16", "-o", tmp_path / "half", "-q").status == 0
    ended = gmf("deploy", tmp_path / "half", "--eval-data", TEST_SET, "-q")
    assert ended.status == 0, ended
    assert "float16 input and output" in gmf("inspect", tmp_path / "half").out


def test_json_holds_the_fields_that_readers_rely_on(gmf: Run, pico_fp16: Path) -> None:
    ended = gmf("verify", pico_fp16, "--eval-data", TEST_SET, "--json")
    assert (ended.status, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert {"passed", "backend", "precision", "weights", "parity"} <= set(report)
    wanted = "images reference_top1 engine_top1 top1_change_points interval_95 agreement flips max_abs_error cosine batches"
    assert set(wanted.split()) <= set(report["parity"])
    assert (report["passed"], report["parity"]["images"], set(report["parity"]["batches"])) == (True, 360, {"1", "8"})


def test_json_errors_are_json_too(gmf: Run, tmp_path: Path) -> None:
    ended = gmf("verify", tmp_path / "nothing", "--json")
    assert (ended.status, ended.err) == (1, "")
    assert json.loads(ended.out) == {
        "error": f"{tmp_path / 'nothing'} does not exist",
        "remedy": "give the folder that 'gmf-edge build --output' wrote",
        "exit_status": 1,
    }


def test_quiet_shows_results_and_no_progress(gmf: Run, pico_fp16: Path) -> None:
    ended = gmf("verify", pico_fp16, "-q")
    assert (ended.status, ended.err) == (0, "")
    assert ended.last_line.startswith("PASSED: ")


# predict, inspect, bench, doctor


def test_predict_prints_the_top_5_with_labels(gmf: Run, pico_fp16: Path, digits: Path) -> None:
    pictures = [next((digits / "3").iterdir()), next((digits / "7").iterdir())]
    ended = gmf("predict", pico_fp16, *pictures, "--top", 5, "-q")
    lines = ended.out.splitlines()
    assert (ended.status, len(lines)) == (0, 12)
    assert [lines[0], lines[6]] == [str(picture) for picture in pictures]
    assert lines[1].split() == [lines[1].split()[0], "%", "3"]
    assert lines[7].split()[2] == "7"
    shares = [float(line.split()[0]) for line in lines[1:6]]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 50


def test_predict_as_json_gives_probabilities_that_sum_to_one(gmf: Run, pico_fp16: Path, digits: Path) -> None:
    ended = gmf("predict", pico_fp16, next((digits / "0").iterdir()), "--top", "10", "--json")
    (found,) = json.loads(ended.out)
    assert sum(entry["probability"] for entry in found["classes"]) == pytest.approx(1)
    assert sorted(entry["name"] for entry in found["classes"]) == list("0123456789")
    assert found["classes"][0]["name"] == "0"


def test_predict_names_a_picture_that_it_cannot_read(gmf: Run, pico_fp16: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    one_clear_error(gmf("predict", pico_fp16, tmp_path / "broken.png"), 1, "broken.png")
    one_clear_error(gmf("predict", pico_fp16, tmp_path / "none.png"), 1, "none.png")


def test_inspect_shows_model_precision_files_and_result(gmf: Run, pico_fp16: Path, pico_export: Path) -> None:
    ended = gmf("inspect", pico_fp16)
    assert ended.status == 0
    for words in ("pico 64x64, 10 classes, fp16", "batch 1..8, tuned for 1", "FP32 island: head/Gemm", "weights.bin", "Conv"):
        assert words in ended.out, words
    assert ended.last_line.startswith("PASSED: ")
    assert "not deployed yet" in gmf("inspect", pico_export).out
    values = json.loads(gmf("inspect", pico_fp16, "--json").out)
    assert values["manifest"]["precision"] == "fp16"
    assert values["report"]["passed"] is True


def test_bench_measures_the_batches_that_were_asked_for(gmf: Run, pico_fp16: Path, tmp_path: Path) -> None:
    brief = ("--duration", 0, "--iterations", 12, "--warmUp", 0)
    ended = gmf("bench", pico_fp16, "--batch=2,3", "--percentile=50,99", *brief, "--output", tmp_path / "b.json", "--json")
    values = json.loads(ended.out)
    assert [(value["batch"], value["iterations"]) for value in values["latency"]] == [(2, 12), (3, 12)]
    for value in values["latency"]:
        assert 0 < value["min_ms"] <= value["median_ms"] <= value["max_ms"]
        assert list(value["percentiles_ms"]) == ["50", "99"]
        assert value["modes"] == {"cuda_graph": None, "transfers": None, "spin_wait": None, "streams": 1, "in_flight": 1}
    assert (values["kind"], values["made"]["precision"]) == ("gmf-edge bench", "fp16")
    assert json.loads((tmp_path / "b.json").read_text())["latency"] == values["latency"]
    one_clear_error(gmf("bench", pico_fp16, "--batch", 9, "--duration", 0), 1, "batch size 9", "1..8")
    one_clear_error(gmf("bench", pico_fp16, "--percentile", 0), 2, "benchmark settings")
    one_clear_error(gmf("bench", pico_fp16, "--batch", "one"), 2, "--batch 'one'")
    one_clear_error(gmf("bench", pico_fp16, "--against", "caffe"), 2, "unknown baseline 'caffe'")


def test_bench_prints_a_table_of_latencies_streams_and_baselines(gmf: Run, pico_fp32: Path) -> None:
    brief = ("--batch", 1, "--duration", 0, "--iterations", 12, "--warmUp", 0, "--quiet-time", 0)
    ended = gmf("bench", pico_fp32, *brief, "--streams", 2, "--useSpinWait", "--against", "onnxruntime,stock-trt", "-q")
    assert (ended.status, ended.err) == (0, ""), ended
    for words in ("median ms", "known to", "in flight", "in turn at batch 1", "times as fast", "agreement 100.00 %"):
        assert words in ended.out, words
    assert "CUDA graph, transfers and spin-wait mean nothing on a CPU" in ended.out
    assert "not run: stock-trt: " in ended.out


def test_compare_ends_with_a_status_of_its_own(gmf: Run, pico_fp32: Path, pico_fp16: Path, tmp_path: Path) -> None:
    brief = ("--batch", 1, "--duration", 0, "--iterations", 12, "--warmUp", 0)
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    assert gmf("bench", pico_fp32, *brief, "-o", before, "-q").status == 0
    values = json.loads(before.read_text())
    for name in ("median_ms", "median_low_ms", "median_high_ms"):
        values["latency"][0][name] *= 1.2
    after.write_text(json.dumps(values))
    ended = gmf("compare", before, after, "--max-regression", "5%")
    assert (ended.status, ended.last_line) == (5, "FAILED: batch 1 is 20.0 % slower, more than 5.0 %")
    assert gmf("compare", before, after, "--max-regression", "0.25").last_line.startswith("PASSED: batch 1 changes by 20.0 %")
    told = gmf("compare", before, after, "--max-regression", "5%", "--json")
    assert (told.status, told.err, json.loads(told.out)["passed"]) == (5, "", False)
    bundles = gmf("compare", pico_fp32, pico_fp16)
    assert bundles.status == 0
    for words in ("weights.bin, MiB", "precision: fp32 -> fp16", "top-1, %", "batch 8, host latency"):
        assert words in bundles.out, words
    one_clear_error(gmf("compare", before, after, "--max-regression", "fast"), 2, "--max-regression 'fast'")


def test_doctor_says_what_is_here_and_what_to_do_about_what_is_not(gmf: Run) -> None:
    ended = gmf("doctor")
    assert ended.status == 0
    for subject in ("gmf-edge", "numpy", "onnxruntime", "torch", "memory", "cache", "TensorRT", "backend"):
        assert any(f" {subject}: " in line for line in ended.out.splitlines()), subject
    # a machine without a GPU is ready all the same, and nothing that it lacks is called missing
    assert ended.last_line.startswith("ready for build, export, calibrate, deploy, verify, predict, bench, with onnxruntime")
    assert not [line for line in ended.out.splitlines() if line.startswith("missing")]
    assert [line for line in ended.out.splitlines() if line.startswith("optional")]
    findings = json.loads(gmf("doctor", "--json").out)
    assert all(finding["remedy"] for finding in findings if finding["state"] == "missing")


def test_doctor_has_status_4_where_no_engine_can_run(gmf: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmf_edge.engines.onnxruntime.OnnxRuntimeBackend.missing", lambda self: "onnxruntime is not installed")
    monkeypatch.setattr("gmf_edge.engines.openvino.backend.OpenVinoBackend.missing", lambda self: "openvino is not installed")
    ended = gmf("doctor")
    one_clear_error(ended, 4, "backend: no backend can be used", "onnxruntime is not installed")
    assert "ready for build" not in ended.out.replace("not ready for build", "")
    assert [line for line in ended.out.splitlines() if line.startswith("missing") and "backend" in line]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("biuld",), "Did you mean 'build'?"),
        (("verify", "x", "--quite"), "--quiet"),
        (("build", "--presicion", "fp16"), "did you mean --precision?"),
        (("deploy", "x", "--bakend=openvino"), "did you mean --backend?"),
        (("build", "--precision", "fp8"), "see 'gmf-edge build --help'"),
    ],
)
def test_a_slip_of_the_pen_is_told_what_was_meant(gmf: Run, arguments: tuple[str, ...], words: str) -> None:
    ended = gmf(*arguments)
    one_clear_error(ended, 2)
    assert words in ended.err


def test_the_version_is_printed(gmf: Run) -> None:
    assert gmf("--version") == (0, f"gmf-edge {gmf_edge.__version__}\n", "")


def test_help_names_every_command(gmf: Run) -> None:
    ended = gmf()
    assert all(name in ended.out for name in ("build", "export", "deploy", "verify", "predict", "inspect", "bench", "doctor"))


# exit status 1: bad input, nothing left behind


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def truncated(path: Path) -> None:
    import torch

    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


def running_code(path: Path) -> None:
    import torch

    torch.save({"model": Trap(path.parent / "the-code-ran")}, path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("these are not weights\n"), "not a PyTorch checkpoint"),
        (truncated, "trunc"),
        (running_code, "code"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: None, "exist"),
    ],
    ids=["text", "truncated", "runs code", "empty", "absent"],
)
def test_a_file_that_is_no_checkpoint_is_one_clear_error(gmf: Run, tmp_path: Path, make: Callable[[Path], Any], words: str) -> None:
    weights = tmp_path / "weights.pth"
    make(weights)
    before = listing(tmp_path)
    ended = gmf("build", "--checkpoint", weights, "--output", tmp_path / "deep" / "out")
    one_clear_error(ended, 1, "weights.pth")
    assert words in ended.err
    assert listing(tmp_path) == before


def test_a_checkpoint_of_another_variant_names_both(gmf: Run, tmp_path: Path) -> None:
    ended = gmf("build", "--checkpoint", PACKAGED / "pico.safetensors", "--variant", "small", "--output", tmp_path / "out")
    one_clear_error(ended, 1, "pico", "small")
    assert listing(tmp_path) == []


def test_an_empty_image_folder_is_one_clear_error(gmf: Run, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    ended = gmf("build", "--eval-data", tmp_path / "pictures", "--output", tmp_path / "out")
    one_clear_error(ended, 1, str(tmp_path / "pictures"))
    assert listing(tmp_path) == ["pictures"]


def test_broken_pictures_among_good_ones_are_named(gmf: Run, digits: Path, pico_export: Path, tmp_path: Path) -> None:
    pictures = shutil.copytree(digits, tmp_path / "pictures")
    good = next((pictures / "1").iterdir()).read_bytes()
    (pictures / "1" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (pictures / "5" / "half.png").write_bytes(good[: len(good) // 2])
    before = listing(tmp_path)
    ended = gmf("build", "--eval-data", pictures, "--output", tmp_path / "out")
    one_clear_error(ended, 1)
    assert "broken.jpg" in ended.err
    assert "half.png" in ended.err
    assert listing(tmp_path) == before


def test_classes_that_are_not_the_models_are_refused(gmf: Run, digits: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    shutil.copytree(digits / "0", few / "0")
    shutil.copytree(digits / "1", few / "1")
    one_clear_error(gmf("build", "--eval-data", few, "--output", tmp_path / "out"), 1, "2 classes", "10")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["weights.bin", "portable.onnx", "manifest.json", "report.json", "labels.txt"])
def test_verify_names_the_file_in_which_one_byte_was_changed(
    gmf: Run, pico_fp16: Path, copied: Callable[[Path], Path], name: str
) -> None:
    folder = copied(pico_fp16)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 3] ^= 4
    (folder / name).write_bytes(content)
    one_clear_error(gmf("verify", folder), 1, str(folder / name))


def test_what_is_not_a_bundle_is_never_replaced(gmf: Run, pico_export: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for command in (("build",), ("export",), ("deploy", pico_export)):
        for place in ("mine", "file"):
            one_clear_error(gmf(*command, "--output", tmp_path / place), 1, place, "not a bundle")
    assert listing(tmp_path) == ["file", "mine", "mine/thesis.txt"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_other_evaluation_images_than_the_bundles_are_refused(gmf: Run, pico_fp16: Path, digits: Path) -> None:
    one_clear_error(gmf("verify", pico_fp16, "--eval-data", digits), 1, "lacks 340 of the 360 images")


def test_a_bundle_without_evaluation_images_says_so(gmf: Run, odd_pico: Any, digits: Path) -> None:
    one_clear_error(gmf("verify", odd_pico.bundle, "--eval-data", digits), 1, "without evaluation images")


# exit status 2: usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build", "--image-size", "100"), ("height 100", "multiple of 32")),
        (("build", "--image-size", "224x"), ("224x",)),
        (("build", "--image-size", "1x2x3"), ("1x2x3",)),
        (("build", "--image-size", "-64"), ("-64",)),
        (("build", "--variant", "nano"), ("nano",)),
        (("build", "--precision", "fp8"), ("fp8",)),
        (("build", "--fp16", "--fp32"), ("two precisions",)),
        (("build", "--fp32", "--precision", "fp16"), ("two precisions",)),
        (("build", "--min-batch", "9"), ("min 9", "max 8")),
        (("build", "--max-batch", "0"), ("max 0",)),
        (("build", "--max-drop", "-1"), ("-1",)),
        (("build", "--max-drop", "nan"), ("nan",)),
        (("build", "--crop-pct", "1.5"), ("1.5",)),
        (("build", "--crop-pct", "nan"), ("nan",)),
        (("build", "--io-dtype", "float8"), ("float8",)),
        (("build", "--backend", "cuda"), ("cuda",)),
        (("build", "--eval-images", "0"), ("--eval-images",)),
        (("build", "--num-classes", "0"), ("num_classes is 0",)),
        (("build", "--no-such-option"), ("no-such-option",)),
        (("export", "--no-such-option"), ("no-such-option",)),
        (("build", "--seed", "many"), ("--seed", "integer")),
        (("predict",), ("folder",)),
        (("no-such-command",), ("no-such-command",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_request_that_cannot_be_meant_has_status_2(
    gmf: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = gmf(*arguments)
    one_clear_error(ended, 2, *words)
    # the option to change is named, by its spelling on the command line
    assert len(arguments) < 3 or arguments[1] in ended.err
    assert listing(tmp_path) == []


# exit status 3: accuracy


@pytest.fixture
def perturbed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Spoil every engine's logits by noise of this size."""
    infer = OnnxRuntimeEngine.infer

    def spoil(size: float) -> None:
        def spoilt(self: OnnxRuntimeEngine, images: FloatArray) -> FloatArray:
            logits = infer(self, images)
            return (logits + size * np.random.default_rng(0).standard_normal(logits.shape)).astype(np.float32)

        monkeypatch.setattr(OnnxRuntimeEngine, "infer", spoilt)

    return spoil


def test_an_engine_outside_the_gate_has_status_3_and_says_why(
    gmf: Run, pico_export: Path, tmp_path: Path, perturbed: Callable[[float], None]
) -> None:
    perturbed(20.0)
    # of two engines the one that is right is delivered
    ended = gmf("build", "--fp16", "--backend", "onnxruntime", "--output", tmp_path / "out")
    assert ended.status == 3, ended
    assert ended.last_line.startswith("FAILED: ")
    assert "limit 0.9999" in ended.last_line
    assert "flipped: " in ended.out
    assert "Traceback" not in ended.out + ended.err
    # the bundle is there to be looked at, and says that it failed
    report = open_bundle(tmp_path / "out").report
    assert report is not None
    assert report["passed"] is False


def test_nan_logits_fail_with_status_3(gmf: Run, pico_fp16: Path, perturbed: Callable[[float], None]) -> None:
    perturbed(float("nan"))
    ended = gmf("verify", pico_fp16, "--json")
    assert ended.status == 3
    report = json.loads(ended.out)
    assert (report["passed"], report["parity"]["cosine"]) == (False, None)
    assert "NaN" in report["reason"]


def test_max_drop_is_the_limit_that_is_applied(gmf: Run, pico_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    infer = OnnxRuntimeEngine.infer

    def four_lose(self: OnnxRuntimeEngine, images: FloatArray) -> FloatArray:
        # every image that is surely a 4 becomes a 9 by a hair's breadth: the logits hardly change, the class does
        logits = infer(self, images)
        chosen = logits.argmax(axis=1) == 4
        logits[chosen, 9] = logits[chosen, 4] + 1e-3
        return logits

    monkeypatch.setattr(OnnxRuntimeEngine, "infer", four_lose)
    monkeypatch.setattr("gmf_edge.verify.judge._batch_failure", lambda *arguments: None)
    strict = gmf("verify", pico_fp16, "--eval-data", TEST_SET, "--max-drop", "5", "--json")
    loose = gmf("verify", pico_fp16, "--eval-data", TEST_SET, "--max-drop", "50", "--json")
    strict_report, loose_report = json.loads(strict.out), json.loads(loose.out)
    assert strict_report["parity"]["top1_change_points"] == pytest.approx(-10, abs=1.5)
    assert strict.status == 3
    assert "limit -5" in strict_report["reason"]
    assert "top-1" not in loose_report["reason"] or loose.status == 0
    assert (strict_report["gate"]["max_drop_points"], loose_report["gate"]["max_drop_points"]) == (5, 50)


# exit status 4: environment


@pytest.mark.parametrize("command", ["build", "deploy", "verify"])
def test_a_backend_that_is_not_here_has_status_4(gmf: Run, pico_export: Path, tmp_path: Path, command: str) -> None:
    arguments = ("--output", tmp_path / "out") if command == "build" else (pico_export,)
    ended = gmf(command, *arguments, "--backend", "tensorrt")
    one_clear_error(ended, 4, "tensorrt", "no GPU in this test")
    assert listing(tmp_path) == []


def test_an_output_below_a_file_has_status_4(gmf: Run, pico_export: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for command in (("build",), ("export",), ("deploy", pico_export)):
        one_clear_error(gmf(*command, "--output", tmp_path / "file" / "child"), 4, "file", "cannot write")
    assert listing(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not stop the superuser")
def test_a_read_only_output_folder_has_status_4(gmf: Run, pico_export: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(stat.S_IRUSR | stat.S_IXUSR)
    one_clear_error(gmf("export", "--output", tmp_path / "locked" / "out"), 4, "locked", "Permission denied")
    assert listing(tmp_path) == ["locked"]


@pytest.mark.parametrize(("number", "words"), [(errno.EROFS, "Read-only file system"), (errno.EACCES, "Permission denied")])
def test_a_place_that_refuses_folders_has_status_4(
    gmf: Run, pico_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    from gmf_edge import scratch

    make = scratch.tempfile.mkdtemp

    def refuse(*arguments: Any, **options: Any) -> str:
        if Path(options["dir"]).is_relative_to(tmp_path):
            raise OSError(number, os.strerror(number), str(options["dir"]))
        return str(make(*arguments, **options))

    monkeypatch.setattr(scratch.tempfile, "mkdtemp", refuse)
    for command in (("build",), ("export",), ("deploy", pico_export)):
        one_clear_error(gmf(*command, "--output", tmp_path / "made" / "out"), 4, words)
    assert listing(tmp_path) == []


def test_a_disk_that_fills_up_leaves_the_old_bundle_and_nothing_else(
    gmf: Run, pico_fp32: Path, pico_export: Path, copied: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(pico_fp32)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(source: Path, target: Path, **options: Any) -> None:
        Path(target).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    for command in (("build", "--fp16"), ("export", "--fp16"), ("deploy", pico_export)):
        one_clear_error(gmf(*command, "--output", folder), 4, "No space left on device")
    assert os.listdir(tmp_path) == [folder.name]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert open_bundle(folder).manifest.precision.value == "fp32"


def test_without_torch_build_says_what_to_install(gmf: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmf_edge.prepare.source.find_spec", lambda name: None if name in ("torch", "onnx") else object())
    ended = gmf("build", "--output", tmp_path / "out")
    one_clear_error(ended, 4, "torch, onnx")
    assert "gmf-edge[workstation]" in ended.err


# faults of ours


def test_an_unforeseen_fault_is_one_line_with_its_place(gmf: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr("gmf_edge.prepare.source._weights", fail)
    ended = gmf("build", "--output", tmp_path / "out")
    assert ended.status == 1
    assert "unexpected ZeroDivisionError at test_cli.py:" in ended.err
    assert "Traceback" not in ended.err
    assert ended.last_line.startswith("FAILED: ")
    assert listing(tmp_path) == []


def test_an_interruption_leaves_nothing_behind(
    gmf: Run, pico_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gmf_edge.prepare.seal", interrupt)
    assert gmf("export", "--fp16", "--output", tmp_path / "made" / "out").status == 130
    assert listing(tmp_path) == []


def test_the_installed_command_runs_and_hands_its_status_on(tmp_path: Path) -> None:
    for program in ([sys.executable, "-m", "gmf_edge"], [str(Path(sys.executable).parent / "gmf-edge")]):
        if not Path(program[0]).exists():
            continue  # not installed, run from a source tree
        done = subprocess.run([*program, "verify", str(tmp_path / "none")], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stdout.startswith("FAILED: ")
        assert done.stderr.startswith("error: ")


def test_what_a_library_hands_on_as_text_from_the_system_is_no_fault_of_ours(
    gmf: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError(f"unable to open file <weights> in read-only mode: {os.strerror(errno.EMFILE)} (os error 24)")

    monkeypatch.setattr("gmf_edge.bundle.open_bundle", fail)
    ended = gmf("inspect", tmp_path)
    assert ended.status == 4
    assert "error: unable to open file <weights>" in ended.err
    assert "ulimit -n" in ended.err
    assert "unexpected" not in ended.err


def test_json_that_cannot_be_printed_leaves_an_error_on_the_other_stream(pico_fp16: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "gmf_edge", "inspect", str(pico_fp16), "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 4
    assert done.stderr.startswith("error: a file: No space left on device\nwhat to do: ")
    assert "Traceback" not in done.stderr
