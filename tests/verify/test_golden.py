"""Golden data and references survive a file, hold no pickles, and say so when they are damaged."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from gmf_edge.bundle import open_bundle
from gmf_edge.errors import BundleError
from gmf_edge.verify.golden import Golden, Reference

NAMES = ("cat/ä b.png", "dog/1.png", "dog/2.png")


def golden() -> Golden:
    rng = np.random.default_rng(0)
    images, logits = rng.standard_normal((4, 3, 8, 6)), rng.standard_normal((4, 5))
    return Golden(images.astype(np.float32), logits.astype(np.float32), "4 images of set.zip")


def reference(labels: list[int] | None) -> Reference:
    logits = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    return Reference(NAMES, ("0" * 64, "1" * 64, "f" * 64), None if labels is None else np.array(labels, np.int64), logits)


def test_golden_data_survives_a_file_bit_for_bit(tmp_path: Path) -> None:
    wanted = golden()
    wanted.save(tmp_path / "golden.npz")
    found = Golden.load(tmp_path / "golden.npz")
    assert np.array_equal(found.images, wanted.images)
    assert np.array_equal(found.logits, wanted.logits)
    assert (found.source, found.images.dtype, found.logits.dtype) == (wanted.source, np.float32, np.float32)


@pytest.mark.parametrize("labels", [[0, 4, 1], None])
def test_a_reference_survives_a_file_with_and_without_labels(tmp_path: Path, labels: list[int] | None) -> None:
    wanted = reference(labels)
    wanted.save(tmp_path / "reference.npz")
    found = Reference.load(tmp_path / "reference.npz")
    assert (found.names, found.sha256) == (wanted.names, wanted.sha256)
    assert np.array_equal(found.logits, wanted.logits)
    assert (found.labels is None) if labels is None else (found.labels is not None and found.labels.tolist() == labels)


@pytest.mark.parametrize("kind", [Golden, Reference])
@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half"])
def test_what_is_no_archive_is_refused_by_name(tmp_path: Path, kind: type[Golden] | type[Reference], content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(BundleError, match=r"data\.npz is not readable"):
        kind.load(tmp_path / "data.npz")


def test_a_missing_file_and_a_missing_array_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.npz"):
        Golden.load(tmp_path / "none.npz")
    golden().save(tmp_path / "golden.npz")
    with pytest.raises(BundleError, match=r"golden\.npz"):
        Reference.load(tmp_path / "golden.npz")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    golden().save(tmp_path / "golden.npz")
    content = (tmp_path / "golden.npz").read_bytes()
    (tmp_path / "golden.npz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(BundleError):
        Golden.load(tmp_path / "golden.npz")


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.array([{"a": 1}], dtype=object), logits=np.zeros(1), source=np.array("x"))
    (tmp_path / "golden.npz").write_bytes(buffer.getvalue())
    with pytest.raises(BundleError):
        Golden.load(tmp_path / "golden.npz")


def test_equal_data_makes_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        golden().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_bundles_golden_logits_are_fp32_pytorchs(pico_fp16: Path) -> None:
    torch = pytest.importorskip("torch")
    from gmf_edge.model.checkpoint import load_model
    from gmf_edge.prepare.source import PACKAGED_WEIGHTS

    manifest = open_bundle(pico_fp16).manifest
    model, _ = load_model(PACKAGED_WEIGHTS, variant="pico", image_size=manifest.model.image_size, kind="packaged")
    stored = Golden.load(pico_fp16 / "golden.npz")
    with torch.inference_mode():
        logits = model(torch.from_numpy(stored.images)).numpy()
    # another batch size may sum in another order
    assert np.abs(logits - stored.logits).max() <= 1e-5 * np.abs(logits).max()
    assert len(stored.images) == 16
