"""What is printed, on terminals and into files: summary, colours, widths, progress, the last line."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gmf_edge.cli import screen
from gmf_edge.cli.options import ResultOptions, ScreenOptions
from gmf_edge.cli.summary import LAST_LINE_CHARACTERS, shortened, summary_lines
from gmf_edge.deploy.result import Result
from gmf_edge.errors import GmfEdgeError

LONG_NAME = "a-picture-with-a-name-that-is-much-longer-than-any-screen-of-eighty-columns-is-wide-" + "x" * 40
LONG_LAYER = "/groupmixformer_backbone.3/gma_stage.11/att/aggregator/conv_at/some/more/of/its/path/MatMul_quantized"


def a_report(**changes: Any) -> dict[str, Any]:
    latency = {
        "batch": 1,
        "gpu_compute": None,
        "median_ms": 12.3456,
        "mean_ms": 12.4,
        "percentiles_ms": {"90": 13.0, "99": 15.0},
        "throughput": 81.0,
        "variation": 0.01,
        "steady": True,
        "notes": [],
    }
    return {
        "passed": True,
        "reason": "top-1 66.37 % -> 66.37 % (+0.00 points, limit -0.1; 95 % interval -0.84 to +0.84); no such loss is shown; cosine 1",
        "precision": "fp16",
        "weights": {"trained": True, "statement": "weights of mobile.pth"},
        "model": {"variant": "mobile", "image_size": [64, 64], "num_classes": 10},
        "gate": {"max_drop_points": 0.1},
        "parity": {
            "images": 226,
            "reference_top1": 66.37,
            "engine_top1": 66.37,
            "top1_change_points": 0.0,
            "agreement": 1.0,
            "cosine": 0.999999,
            "flips": [{"image": f"{LONG_NAME}.png", "reference": "cat", "engine": "[bold]dog"}],
            "batches": {"1": {}, "8": {}},
        },
        "latency": {"1": latency, "8": {**latency, "batch": 8, "steady": False}},
        "engine": {
            "backend": "onnxruntime",
            "version": "1.32.0",
            "device": "AMD EPYC",
            "form": "portable",
            "precision_shares": {"fp32": 1.0},
            "notes": ["FP16 is stored and rounded as FP16 and computed in FP32"],
            "layers": [{"name": LONG_LAYER, "kind": "MatMul", "precision": "fp32", "time_ms": 1.5}],
        },
        "choice": {
            "reason": "no clear difference on this machine, onnxruntime stays: openvino 12.40 ms, onnxruntime 12.30 ms at batch 1",
            "delivered": "onnxruntime",
            "notes": [],
            "engines": {
                "onnxruntime": {"version": "1.32.0", "median_ms": 12.3, "right": True, "reason": ""},
                "openvino": {"version": "2026.4.1", "median_ms": None, "right": False, "reason": f"outside the gate: {LONG_NAME}"},
            },
        },
        **changes,
    }


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., io.StringIO]:
    """shown(width, terminal): from then on, what is printed to both streams, as text."""

    def start(width: int = 80, *, terminal: bool = True) -> io.StringIO:
        text = io.StringIO()
        console = Console(file=text, width=width, force_terminal=terminal, highlight=False, soft_wrap=True)
        monkeypatch.setattr(screen, "out", console)
        monkeypatch.setattr(screen, "err", console)
        monkeypatch.setattr(screen, "HAS_WIDTH", True)
        return text

    return start


def unbroken(lines: list[str]) -> list[str]:
    """Those that are wider than a screen, without those that are one long name."""
    return [line for line in lines if len(line) > 80 and LONG_NAME not in line]


def test_the_summary_says_what_verdict_accuracy_speed_where_and_what_next() -> None:
    lines = summary_lines(a_report(), Path("out/mine"), ["gmf-edge predict out/mine PICTURE..."], None)
    rows = dict(line.split(maxsplit=1) for line in lines if not line.startswith(" "))
    assert list(rows) == ["what", "verdict", "accuracy", "numerics", "speed", "engine", "precision", "choice", "where", "next"]
    assert rows["what"] == "mobile 64x64, 10 classes, fp16"
    assert rows["accuracy"] == "top-1 66.37 % -> 66.37 % (+0.00 points, limit -0.1); 1 of 226 images flipped"
    assert rows["speed"] == "batch 1: 12.346 ms, 81.0 images/s"
    assert any(line.strip() == "batch 8: 12.346 ms, 81.0 images/s (unsteady)" for line in lines)
    assert rows["next"] == "gmf-edge predict out/mine PICTURE..."


def test_the_summary_keeps_within_80_columns_and_a_long_path_whole() -> None:
    lines = summary_lines(a_report(), Path("out") / LONG_NAME, ["gmf-edge verify out"], 80)
    assert unbroken(lines) == []
    assert sum(f"out/{LONG_NAME}" in line for line in lines) == 1


def test_an_untrained_model_has_no_accuracy_in_its_summary() -> None:
    text = "\n".join(summary_lines(a_report(weights={"trained": False, "statement": "UNTRAINED"}), None, [], None))
    assert "top-1" not in text
    assert "none is claimed" in text


def test_a_backbone_has_its_worst_map_in_its_summary() -> None:
    maps = {"stage1": {"relative_l2": 1e-4}, "stage2": {"relative_l2": 2.5e-3}, "stage3": {"relative_l2": 1e-5}}
    parity = {"images": 4, "maps": maps, "flips": [], "top1_change_points": None, "cosine": 0.9999}
    report = a_report(parity=parity, gate={"max_relative_l2": 0.01})
    lines = summary_lines(report, None, [], None)
    assert lines[0].endswith("mobile 64x64, backbone, fp16")
    assert "maps       worst relative L2 error 2.50e-03, in stage2; limit 0.01" in lines
    maps["stage3"]["relative_l2"] = None  # type: ignore[assignment]
    assert "not finite, in stage3" in "\n".join(summary_lines(report, None, [], None))


def test_a_result_shows_notes_and_summary_and_with_verbose_the_tables_too(shown: Any) -> None:
    text = shown(200)
    screen.show_result(Result(Path("out/a"), True, "fine", a_report()), ResultOptions())
    brief = text.getvalue()
    assert "computed in FP32" in brief
    assert "flipped: " not in brief
    assert "known to" not in brief
    assert "gmf-edge predict out/a PICTURE..." in brief
    text = shown(200)
    screen.show_result(Result(Path("out/a"), True, "fine", a_report()), ResultOptions(verbose=True))
    assert [word for word in ("flipped: ", "known to", "p99") if word not in text.getvalue()] == []


def test_a_failure_shows_the_flipped_images_and_what_to_do(shown: Any) -> None:
    text = shown()
    with pytest.raises(screen.ResultOutsideGate):
        screen.show_result(Result(Path("out/a"), False, "a loss is shown", a_report(passed=False)), ResultOptions())
    assert f"flipped: {LONG_NAME}.png: cat -> [bold]dog" in text.getvalue()
    assert "--max-drop" in text.getvalue()


def test_json_is_the_report_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    screen.show_result(Result(Path("out/a"), True, "fine", a_report()), ResultOptions(as_json=True))
    assert json.loads(capsys.readouterr().out) == {"folder": "out/a", **a_report()}


def test_tables_keep_within_80_columns_and_their_figures_whole(shown: Any) -> None:
    text = shown(terminal=False)
    report = a_report()
    screen.show_choice(report["choice"])
    table = text.getvalue().split("choice: ")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "12.300" in table
    text = shown(terminal=False)
    screen.show_latency(
        [{**value, "median_ms": 123456.789, "mean_ms": 123456.789, "throughput": 1234567.8} for value in report["latency"].values()]
    )
    assert max(map(len, text.getvalue().splitlines())) <= 80
    assert "123456.789" in text.getvalue()


def test_the_last_line_is_short_and_breaks_between_clauses() -> None:
    reason = a_report()["reason"] + "; " + "; ".join(f"clause {number} " + "x" * 40 for number in range(9)) + "; last"
    short = shortened(reason)
    assert len(short) <= LAST_LINE_CHARACTERS
    # what stands in brackets is not cut, and later clauses that fit are kept
    assert short.startswith(
        "top-1 66.37 % -> 66.37 % (+0.00 points, limit -0.1; 95 % interval -0.84 to +0.84); no such loss is shown"
    )
    assert short.endswith("; last")
    assert len(shortened("word " * 100)) <= LAST_LINE_CHARACTERS
    assert shortened("all of it; is short") == "all of it; is short"


# colours


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_colour_on_a_terminal_and_none_where_no_color_is_set(
    shown: Any, monkeypatch: pytest.MonkeyPatch, no_color: str | None, coloured: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color is None:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", no_color)
    text = shown()
    screen.show_error(GmfEdgeError("broken [file]", "mend it"))
    assert ("\x1b[" in text.getvalue()) is coloured
    assert "broken [file]" in text.getvalue()


def test_no_colour_into_a_file(shown: Any) -> None:
    text = shown(terminal=False)
    screen.show_error(GmfEdgeError("broken", "mend it"))
    assert text.getvalue() == "error: broken\nwhat to do: mend it\nFAILED: broken\n"


# progress


def test_a_terminal_shows_a_bar_with_the_time_left_and_nothing_wider_than_it(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown()
    with screen.progress_shown(ScreenOptions()) as progress:
        progress(None, "exporting 1-plain.onnx")
        for done in range(1, 9):
            progress(done / 10, f"calibration of {LONG_NAME}")
    printed = text.getvalue()
    assert "- exporting 1-plain.onnx" in printed
    assert " left" in printed
    bars = [line for line in printed.replace("\r", "\n").splitlines() if "calibration" in line]
    assert bars
    assert max(len(_plain(line)) for line in bars) <= 80


def _plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)


def test_a_log_gets_a_line_a_step_and_now_and_then_one_with_the_time_left(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    text = shown(terminal=False)
    with screen.progress_shown(ScreenOptions()) as progress:
        progress(None, "loading")
        for done in range(1, 10):
            now[0] += 10.0
            progress(done / 10, f"{done} of 10")
    assert text.getvalue().splitlines() == [
        "- loading",
        "- 3 of 10, 0:01:10 left",
        "- 6 of 10, 0:00:40 left",
        "- 9 of 10, 0:00:10 left",
    ]


def test_quiet_and_json_show_no_progress(shown: Any) -> None:
    text = shown()
    for options in (ScreenOptions(quiet=True), ScreenOptions(as_json=True)):
        with screen.progress_shown(options) as progress:
            progress(None, "loading")
            progress(0.5, "half")
    assert text.getvalue() == ""


# the shell


def gmf_edge(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gmf_edge", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)


def test_the_shell_completes_verbs_and_options() -> None:
    completing = {"_GMF_EDGE_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    assert set(gmf_edge(COMP_WORDS="gmf-edge b", **completing).stdout.split()) == {"build", "bench"}
    found = gmf_edge(COMP_WORDS="gmf-edge build --prec", **{**completing, "COMP_CWORD": "2"}).stdout.split()
    assert found == ["--precision", "--precision-proof"]
    found = gmf_edge(COMP_WORDS="gmf-edge build --precision i", **{**completing, "COMP_CWORD": "3"}).stdout.split()
    assert found == ["int8"]


def test_help_keeps_within_80_columns() -> None:
    for arguments in (["--help"], ["build", "--help"]):
        text = gmf_edge(*arguments, COLUMNS="80").stdout
        assert "--help" in text
        assert max(map(len, text.splitlines())) <= 80
        assert "..." not in text.split("Commands:")[-1]  # each verb's line is whole
