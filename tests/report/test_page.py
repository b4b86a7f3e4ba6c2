"""report.html from what a bundle holds: complete, escaped, without a request, sealed like every other file."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jinja2")

import gmf_edge
from gmf_edge.bundle import open_bundle
from gmf_edge.cli import run
from gmf_edge.deploy import deploy_bundle, verify_bundle
from gmf_edge.errors import BundleError, DataError
from gmf_edge.imageset import ImageItem
from gmf_edge.report import Measurements, write_report_page
from gmf_edge.report.measurements import MOST_TIMES, thinned
from gmf_edge.report.page import report_page
from gmf_edge.report.thumbnails import MOST_THUMBNAILS, SIDE, by_weight, thumbnails
from gmf_edge.spec import MAP_GATES, MAPS, Precision
from gmf_edge.verify.maps import MapNumerics, MapReport

TEST_SET = Path(gmf_edge.__file__).parent / "assets" / "pico-digits-test.zip"
HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'>"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words += data

    @property
    def headings(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]


def harmless(page: Page) -> None:
    """No script, no handler, no address but of this page itself and of data in it."""
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "xlink:href"):
            assert re.match(r"(#[a-z0-9]+|data:(image/jpeg;base64,.*|,))$", attributes.get(name, "#a")), (tag, attributes)


def full(pico_fp16: Path) -> tuple[Any, dict[str, Any]]:
    """Manifest and report with everything that a page can show."""
    bundle = open_bundle(pico_fp16)
    report: dict[str, Any] = json.loads(json.dumps(bundle.report))
    flip = {
        "image": "3/digit.png", "label": "3", "reference": "3", "engine": "8", "margin": 0.5, "error": 0.6, "near_tie": False,
    }  # fmt: skip
    report["parity"]["flips"] = [flip, {**flip, "image": "4/other.png", "near_tie": True, "margin": None, "error": None}]
    report["choice"] = {
        "reason": "openvino is faster", "delivered": "openvino", "comparisons": [], "notes": [],
        "engines": {
            "onnxruntime": {"backend": "onnxruntime", "version": "1", "right": True, "reason": "within", "median_ms": 12.0},
            "openvino": {"backend": "openvino", "version": "2", "right": False, "reason": "outside the gate: why", "median_ms": None},
        },
    }  # fmt: skip
    timed = {"candidate_ms": 1.0, "baseline_ms": 2.0}
    report["plugin"] = {"accepted": True, "reason": "the plugin is faster", "notes": [], "batches": {"1": timed}}
    report["comparison"] = {"reason": "INT8 is faster", "notes": []}
    report["alternative"] = {name: report[name] for name in ("precision", "passed", "reason", "parity", "latency")}
    row = {"layer": "blocks.0.qkv", "kind": "qkv", "activation_db": 30.0, "weight_db": None, "output_db": 25.0}
    int8 = {
        "layers": ["blocks.0.qkv"], "exceptions": ["blocks.1.fc1"], "notes": ["a note"],
        "layer_snr": [{**row, "output_db": 20.0 + i} for i in range(20)],
        "calibration": {"images": 500, "method": "mse", "seed": 0, "images_sha256": "d" * 64},
    }  # fmt: skip
    return replace(bundle.manifest, lowering={**bundle.manifest.lowering, "int8": int8}), report


def bench_of(pico_fp16: Path) -> dict[str, Any]:
    manifest = open_bundle(pico_fp16).manifest
    accuracy = {"top1_change_points": None, "agreement": 1.0}
    engine = {"backend": "torch", "version": "2", "accuracy": accuracy, "within_gate": True, "reason": "right"}
    part = {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "times": {"median_ms": 3.0}}
    eager = {"ratio": 2.5, "ratio_low": 2.25, "ratio_high": 2.75, "times": {"median_ms": 7.5}}
    return {
        "kind": "gmf-edge bench",
        "made": {
            "weights": {"sha256": manifest.weights.sha256}, "precision": manifest.precision.value, "model": manifest.model.to_json(),
        },
        "baselines": {
            "engines": {"gmf-edge": engine, "eager": engine}, "not_run": {"compile": "no compiler"},
            "batches": {"1": {"measure": "host latency", "rounds": 12, "engines": {"gmf-edge": part, "eager": eager}}},
        },
    }  # fmt: skip


def test_a_deployment_writes_a_page_that_is_sealed_and_asks_for_nothing(pico_fp16: Path) -> None:
    bundle = open_bundle(pico_fp16)
    assert {"report.html", "reproduce.sh", "measurements.npz"} <= set(bundle.manifest.files)
    text = (pico_fp16 / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    harmless(page)
    assert page.headings == ["accuracy", "latency", "layers", "graph", "environment", "reproduce"]
    assert "PASSED" in page.words
    assert bundle.report is not None
    assert bundle.report["reason"] in page.words
    assert len(text) < 200_000
    assert sum(tag == "svg" for tag, _ in page.tags) == 7
    paths = [attributes["d"] for tag, attributes in page.tags if tag == "path"]
    assert all(paths)
    assert not [path for path in paths if "nan" in path or "inf" in path]
    for tag in ("default-src 'none'", "prefers-color-scheme: dark", 'name="viewport"'):
        assert tag in text


def test_every_section_stands_where_there_is_something_to_say(pico_fp16: Path) -> None:
    manifest, report = full(pico_fp16)
    found = Measurements.load(pico_fp16 / "measurements.npz")
    page = Page(report_page(manifest, report, found, bench_of(pico_fp16)))
    assert page.headings == ["accuracy", "latency", "engines", "layers", "int8", "graph", "environment", "reproduce"]
    for words in (
        "openvino is faster", "outside the gate: why", "the plugin is faster", "INT8 is faster", "2.50 times ours (2.25 to 2.75)",
        "compile was not run: no compiler", "blocks.0.qkv", "20.0 dB", "exact", "d" * 64, "fuse group-mix attention",
        "3/digit.png", "near tie", "gmf-edge build", "weights.bin", "Made with",
    ):  # fmt: skip
        assert words in page.words, words


def test_names_of_classes_files_and_layers_stay_text(pico_fp16: Path) -> None:
    manifest, report = full(pico_fp16)
    flip = {**report["parity"]["flips"][0], "image": HOSTILE, "label": HOSTILE, "reference": HOSTILE, "engine": HOSTILE}
    report["parity"]["flips"] = [flip]
    report["reason"] = report["backend_reason"] = report["engine"]["device"] = HOSTILE
    report["engine"]["notes"] = [HOSTILE]
    report["engine"]["layers"] = [{"name": HOSTILE, "kind": HOSTILE, "precision": HOSTILE, "time_ms": 1.0}]
    report["engine"]["precision_shares"] = {HOSTILE: 1.0}
    report["choice"]["engines"] = {HOSTILE: report["choice"]["engines"]["onnxruntime"]}
    report["machine"]["cpu"] = HOSTILE
    manifest = replace(
        manifest, versions={HOSTILE: HOSTILE}, evaluation={"name": HOSTILE, "images": 1, "sha256": "e"},
        lowering={**manifest.lowering, "islands": {HOSTILE: HOSTILE}}, request={**manifest.request, "options": {HOSTILE: HOSTILE}},
    )  # fmt: skip
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    page = Page(report_page(manifest, report, Measurements(thumbnails={HOSTILE: picture.getvalue()})))
    harmless(page)
    assert page.words.count(HOSTILE) >= 12
    # the check itself sees what would come through
    with pytest.raises(AssertionError):
        harmless(Page(f"<p>{HOSTILE}</p>"))


def test_a_backbone_is_told_map_by_map(pico_fp16: Path) -> None:
    bundle = open_bundle(pico_fp16)
    assert bundle.report is not None
    rows = tuple(
        MapNumerics(name, (64, 96), batch, 4, 0.0012 * batch, 0.99999, 0.5, 0.0, 12.0, 0, 0, 0) for name in MAPS for batch in (1, 2)
    )
    gate = vars(MAP_GATES[Precision.FP16])
    report = {**bundle.report, "parity": MapReport(4, rows).to_json(), "gate": gate, "choice": None}
    page = Page(report_page(bundle.manifest, report, Measurements()))
    assert page.headings[0] == "maps"
    assert "accuracy" not in page.headings
    assert "Top-1" not in page.words
    assert page.words.count("64x96") == len(rows)
    for words in (*MAPS, "0.00240", "0.999990"):
        assert words in page.words, words


def test_untrained_weights_claim_no_accuracy(odd_pico: Any, brief_latency: None, tmp_path: Path) -> None:
    deployed = tmp_path / "deployed"
    deploy_bundle(odd_pico.bundle, backend="onnxruntime", out=deployed)
    page = Page((deployed / "report.html").read_text(encoding="utf-8"))
    assert "UNTRAINED" in page.words
    assert "Top-1" not in page.words
    assert "Same class as FP32 PyTorch" in page.words


def test_without_jinja_there_is_everything_but_the_page_and_a_note(
    pico_export: Path, copied: Callable[[Path], Path], brief_latency: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    folder = copied(pico_export)
    result = deploy_bundle(folder, backend="onnxruntime")
    assert result.passed, result.reason
    assert not (folder / "report.html").exists()
    assert {"reproduce.sh", "measurements.npz", "report.json"} <= set(open_bundle(folder).manifest.files)
    assert "gmf-edge[report]" in result.report["notes"][0]
    assert verify_bundle(folder).passed
    assert run(["report", str(folder)]) == 4


def test_the_page_is_made_again_from_the_bundle_alone(
    pico_fp16: Path, copied: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(pico_fp16)
    before = (folder / "report.html").read_bytes()
    (tmp_path / "bench.json").write_text(json.dumps(bench_of(pico_fp16)))
    assert run(["report", str(folder), "--bench", str(tmp_path / "bench.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(folder / "report.html")}
    assert "Baselines at batch 1" in (folder / "report.html").read_text(encoding="utf-8")
    open_bundle(folder)
    assert run(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == before
    assert run(["report", str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_bytes() == before


def test_what_cannot_be_reported_is_refused(pico_export: Path, pico_fp16: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not deployed"):
        write_report_page(pico_export)
    other = tmp_path / "bench.json"
    other.write_text(json.dumps({"kind": "another"}))
    with pytest.raises(DataError, match="was not written by"):
        write_report_page(pico_fp16, tmp_path / "page.html", other)
    values = bench_of(pico_fp16)
    values["made"]["precision"] = "int8"
    other.write_text(json.dumps(values))
    with pytest.raises(DataError, match="another model or precision"):
        write_report_page(pico_fp16, tmp_path / "page.html", other)
    assert not (tmp_path / "page.html").exists()


def test_measurements_come_back(pico_fp16: Path, tmp_path: Path) -> None:
    found = Measurements.load(pico_fp16 / "measurements.npz")
    assert found.parity is not None
    assert len(found.parity.errors) == 360
    assert set(found.times_ms) == {1, 8}
    assert all(len(times) >= 1 and (times > 0).all() for times in found.times_ms.values())
    both = replace(found, thumbnails={"a/ä.png": b"\xff\xd8 jpeg"})
    both.save(tmp_path / "m.npz")
    again = Measurements.load(tmp_path / "m.npz")
    assert again.thumbnails == both.thumbnails
    np.testing.assert_array_equal(again.times_ms[8], found.times_ms[8])
    assert thinned(list(range(9_999))).shape == (MOST_TIMES,)
    (tmp_path / "m.npz").write_bytes(b"no archive")
    with pytest.raises(BundleError, match="not readable as measurements"):
        Measurements.load(tmp_path / "m.npz")


def test_thumbnails_are_small_and_of_the_clearest_flips() -> None:
    picture = io.BytesIO()
    Image.new("RGB", (640, 320), "red").save(picture, "PNG")
    flips: list[dict[str, Any]] = [
        {"image": f"{i}.png", "near_tie": i % 2 == 0, "margin": float(i) if i != 7 else None} for i in range(60)
    ]
    assert [flip["image"] for flip in by_weight(flips)][:2] == ["59.png", "57.png"]
    items = {f"{i}.png": ImageItem(f"{i}.png", None, picture.getvalue) for i in range(60) if i != 59}
    items["57.png"] = ImageItem("57.png", None, lambda: b"broken")
    found = thumbnails(flips, items)
    assert len(found) == MOST_THUMBNAILS - 2
    assert "55.png" in found
    with Image.open(io.BytesIO(found["55.png"])) as small:
        assert (small.format, small.size) == ("JPEG", (SIDE, SIDE // 2))
