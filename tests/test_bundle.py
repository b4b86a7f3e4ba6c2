"""Bundles: every byte is checked when one is opened, each kind of damage is named, and nothing but a bundle is ever replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmf_edge.bundle import MANIFEST, Bundle, Manifest, _manifest_bytes, is_bundle, open_bundle, seal
from gmf_edge.errors import BundleError, SpecError
from gmf_edge.image import Preprocess
from gmf_edge.spec import GATES, BatchProfile, ModelSpec, Precision
from gmf_edge.weights import UNTRAINED, WeightsOrigin

FILES = (
    "golden.npz",
    "labels.txt",
    "manifest.json",
    "measurements.npz",
    "plugin-opset17.onnx",
    "plugin.onnx",
    "portable-opset17.onnx",
    "portable.onnx",
    "reference.npz",
    "report.html",
    "report.json",
    "reproduce.sh",
    "weights.bin",
)
Copy = Callable[[Path], Path]


def manifest_of(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "model": ModelSpec.of("pico", 2, (64, 64)),
        "weights": WeightsOrigin.random(0),
        "precision": Precision.FP16,
        "profile": BatchProfile(1, 2, 4),
        "preprocess": Preprocess((64, 64)),
        "gate": GATES[Precision.FP16],
        "io_dtype": "float32",
        "classes": ("ant", "bee"),
        "graphs": {"portable/20": "portable.onnx"},
        "lowering": {"islands": {"head/Gemm": "logits"}},
        "rewriting": ({"name": "fold", "fired": 3},),
        "versions": {"gmf-edge": "0.1.0"},
        "evaluation": {"name": "set.zip", "images": 3, "sha256": "0" * 64},
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A bundle of two small files, for what needs no graph."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "portable.onnx").write_bytes(b"graph")
    (folder / "labels.txt").write_text("ant\nbee\n")
    (folder / "golden.npz").write_bytes(b"images and logits")
    seal(folder, manifest_of())
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as refused:
        open_bundle(folder)
    assert refused.value.remedy
    assert refused.value.exit_status == 1
    return refused.value.problem


def test_a_built_bundle_holds_these_files_and_opens(pico_fp16: Path) -> None:
    bundle = open_bundle(pico_fp16)
    assert sorted(path.name for path in pico_fp16.iterdir()) == list(FILES)
    assert sorted([*bundle.manifest.files, MANIFEST]) == list(FILES)
    assert bundle.manifest.precision is Precision.FP16
    assert bundle.manifest.weights.kind == "packaged"
    assert bundle.manifest.classes == tuple("0123456789")
    assert {"gmf-edge", "torch", "onnx", "onnxruntime", "numpy"} <= set(bundle.manifest.versions)
    assert bundle.report is not None
    assert bundle.report["passed"] is True
    for form, opset in (("portable", 20), ("plugin", 20), ("portable", 17), ("plugin", 17)):
        assert bundle.graphs.path(form, opset).is_file()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_changed_byte_of_any_file_is_refused_by_name(pico_fp16: Path, copied: Copy, name: str, place: str) -> None:
    folder = copied(pico_fp16)
    content = bytearray((folder / name).read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[place]] ^= 1
    (folder / name).write_bytes(content)
    assert str(folder / name) in refusal(folder)


def test_no_byte_of_the_manifest_can_be_changed(small: Path) -> None:
    content = (small / MANIFEST).read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        (small / MANIFEST).write_bytes(changed)
        assert MANIFEST in refusal(small), f"byte {position}"
    (small / MANIFEST).write_bytes(content)
    assert open_bundle(small).manifest.classes == ("ant", "bee")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(pico_fp16: Path, copied: Copy, name: str) -> None:
    folder = copied(pico_fp16)
    (folder / name).unlink()
    problem = refusal(folder)
    assert name in problem
    assert "missing" in problem or "not a bundle" in problem


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\0", lambda content: b""])
def test_another_length_is_refused(small: Path, change: Callable[[bytes], bytes]) -> None:
    path = small / "portable.onnx"
    path.write_bytes(change(path.read_bytes()))
    assert "portable.onnx was changed" in refusal(small)


@pytest.mark.parametrize("folder", [False, True])
def test_a_foreign_file_is_named(small: Path, folder: bool) -> None:
    (small / "notes").mkdir() if folder else (small / "notes").write_text("mine")
    assert f"{small / 'notes'} does not belong" in refusal(small)


def test_a_folder_in_a_files_place_is_no_file(small: Path) -> None:
    (small / "labels.txt").unlink()
    (small / "labels.txt").mkdir()
    assert "labels.txt is missing" in refusal(small)


def test_what_is_no_bundle_says_so(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing")
    assert "not a bundle" in refusal(tmp_path)
    (tmp_path / "file").write_text("")
    assert "not a bundle" in refusal(tmp_path / "file")
    assert not is_bundle(tmp_path)


def signed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the manifest with a right digest of its own: another version's, not a damaged one."""
    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    (folder / MANIFEST).write_bytes(_manifest_bytes(values))


def test_another_schema_is_refused_by_number(small: Path) -> None:
    signed(small, lambda values: values.update(schema=99))
    problem = refusal(small)
    assert "schema 99" in problem
    assert "reads 1" in problem


@pytest.mark.parametrize("field", ["model", "weights", "precision", "profile", "preprocess", "gate", "classes", "graphs", "files"])
def test_a_manifest_without_a_field_is_no_manifest(small: Path, field: str) -> None:
    signed(small, lambda values: values.pop(field))
    assert f"{MANIFEST} is not a manifest" in refusal(small)


@pytest.mark.parametrize(
    ("field", "value"), [("precision", "fp8"), ("profile", {"min": 3, "opt": 1, "max": 1}), ("model", {}), ("gate", {"limit": 1})]
)
def test_a_manifest_with_nonsense_is_no_manifest(small: Path, field: str, value: Any) -> None:
    signed(small, lambda values: values.update({field: value}))
    assert f"{MANIFEST} is not a manifest" in refusal(small)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b"{}"])
def test_a_broken_manifest_is_named(small: Path, content: bytes) -> None:
    (small / MANIFEST).write_bytes(content)
    assert MANIFEST in refusal(small)


def test_a_manifest_survives_json() -> None:
    manifest = manifest_of(engine_files=("engine.plan",), files={"a": {"sha256": "0" * 64, "bytes": 1}})
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_sealing_again_covers_what_was_added(small: Path) -> None:
    (small / "engine.plan").write_bytes(b"engine")
    assert "engine.plan does not belong" in refusal(small)
    seal(small, manifest_of(engine_files=("engine.plan",)))
    assert set(open_bundle(small).manifest.files) == {"engine.plan", "golden.npz", "labels.txt", "portable.onnx"}


def test_a_bundle_may_be_moved(small: Path, tmp_path: Path) -> None:
    shutil.move(small, tmp_path / "elsewhere")
    bundle = open_bundle(tmp_path / "elsewhere")
    assert isinstance(bundle, Bundle)
    assert bundle.graphs.path("portable", 20) == tmp_path / "elsewhere" / "portable.onnx"


def test_before_deployment_there_is_no_report(pico_export: Path) -> None:
    bundle = open_bundle(pico_export)
    assert bundle.report is None
    assert bundle.manifest.engine_files == ()
    assert sorted([*bundle.manifest.files, MANIFEST]) == [
        name for name in FILES if name not in ("report.json", "report.html", "measurements.npz")
    ]


def test_untrained_weights_are_said_in_the_manifest(odd_pico: Any) -> None:
    weights = json.loads((odd_pico.bundle / MANIFEST).read_text())["weights"]
    assert weights["statement"] == UNTRAINED
    assert weights["trained"] is False
    assert open_bundle(odd_pico.bundle).manifest.weights == WeightsOrigin.random(0)


@pytest.mark.parametrize(("kind", "file"), [("unknown", None), ("random", "a.pth"), ("checkpoint", "/a/b.pth")])
def test_weights_of_no_known_origin_are_refused(kind: str, file: str | None) -> None:
    with pytest.raises(SpecError):
        WeightsOrigin(kind, file, "0" * 64 if file else None)
