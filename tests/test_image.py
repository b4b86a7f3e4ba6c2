"""image.py against torchvision's and timm's definitions, derived here a second time from their size arithmetic."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmf_edge.errors import DataError, SpecError
from gmf_edge.image import (
    MAX_PIXELS,
    Preprocess,
    center_crop,
    input_array,
    input_batches,
    input_from_file,
    resized_size,
    rgb_image,
)

SIDES = [1, 7, 63, 64, 65, 73, 74, 127, 224, 255, 256, 257, 333, 500, 501, 1024, 3000]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def torchvision_resized(height: int, width: int, size: int) -> tuple[int, int]:
    """torchvision.transforms.functional._compute_resized_output_size for an int size: (h, w)."""
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = size, int(size * long / short)
    new_w, new_h = (new_short, new_long) if width <= height else (new_long, new_short)
    return new_h, new_w


def timm_resized(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """timm.data.transforms.ResizeKeepRatio with longest = 0: (h, w)."""
    ratio = min(height / target[0], width / target[1])
    return round(height / ratio), round(width / ratio)


def torchvision_eval(image: Image.Image, size: int, resize: int) -> np.ndarray:
    """Resize(resize, bicubic), CenterCrop(size), ToTensor, Normalize, in float64 after the Pillow steps: [3, size, size]."""
    height, width = torchvision_resized(image.height, image.width, resize)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    top, left = int(round((height - size) / 2.0)), int(round((width - size) / 2.0))  # noqa: RUF046
    pixels = np.asarray(image)[top : top + size, left : left + size].astype(np.float64) / 255
    return ((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("size", "crop_pct", "resize"), [(224, 0.875, 256), (64, 0.875, 73), (384, 0.875, 438), (32, 1.0, 32), (384, 1.0, 384)]
)
def test_scale_size_is_the_known_number(size: int, crop_pct: float, resize: int) -> None:
    assert Preprocess((size, size), crop_pct).scale_size == (resize, resize)
    if crop_pct == 0.875:
        assert int(256 / 224 * size) == resize


@pytest.mark.parametrize("size", range(32, 1025, 32))
def test_scale_size_is_upstreams_at_every_multiple_of_32(size: int) -> None:
    assert Preprocess((size, size)).scale_size[0] == int((256 / 224) * size)


@pytest.mark.parametrize("size", [64, 224, 288, 384])
def test_resized_size_of_a_square_input_is_torchvisions(size: int) -> None:
    preprocess = Preprocess((size, size))
    for height in SIDES:
        for width in SIDES:
            assert resized_size(height, width, preprocess) == torchvision_resized(height, width, preprocess.scale_size[0])


def test_resized_size_gives_known_numbers() -> None:
    at_224 = Preprocess((224, 224))
    assert resized_size(480, 640, at_224) == (256, 341)  # 341.33: the long side is cut off, not rounded
    assert resized_size(500, 333, at_224) == (384, 256)
    assert resized_size(375, 500, at_224) == (256, 341)
    assert resized_size(64, 64, Preprocess((64, 64))) == (73, 73)


def test_resized_size_of_an_input_that_is_not_square_is_timms() -> None:
    preprocess = Preprocess((256, 192))
    assert preprocess.scale_size == (292, 219)
    for height in SIDES:
        for width in SIDES:
            assert resized_size(height, width, preprocess) == timm_resized(height, width, (292, 219))
    assert resized_size(480, 640, preprocess) == (292, 389)
    assert resized_size(640, 300, preprocess) == (467, 219)


@pytest.mark.parametrize("image_size", [(64, 64), (256, 192), (192, 256), (224, 224)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
def test_resized_picture_always_covers_the_crop(image_size: tuple[int, int], crop_pct: float) -> None:
    preprocess = Preprocess(image_size, crop_pct)
    for height in SIDES:
        for width in SIDES:
            resized = resized_size(height, width, preprocess)
            assert resized[0] >= image_size[0]
            assert resized[1] >= image_size[1]


@pytest.mark.parametrize(("side", "first"), [(64, 0), (65, 0), (66, 1), (67, 2), (69, 2), (71, 4), (73, 4)])
def test_center_crop_starts_where_torchvisions_rounding_puts_it(side: int, first: int) -> None:
    # halves go to the even neighbour: a margin of 1 starts at 0, one of 3 at 2, one of 9 at 4
    ramp = Image.fromarray(np.broadcast_to(np.arange(side, dtype=np.uint8)[:, None, None], (side, side, 3)).copy())
    cropped = np.asarray(center_crop(ramp, 64, 64))
    assert cropped.shape == (64, 64, 3)
    assert cropped[0, 0, 0] == first
    assert cropped[-1, -1, 0] == first + 63


def test_center_crop_pads_a_smaller_picture_with_black_and_the_odd_pixel_last() -> None:
    white = Image.new("RGB", (4, 3), "white")
    cropped = np.asarray(center_crop(white, 6, 7))[..., 0]
    expected = np.zeros((6, 7), np.uint8)
    expected[1:4, 1:5] = 255  # 3 spare rows: 1 above, 2 below; 3 spare columns: 1 left, 2 right
    np.testing.assert_array_equal(cropped, expected)


def test_center_crop_pads_one_side_and_crops_the_other() -> None:
    image = noise(10, 3)
    cropped = np.asarray(center_crop(image, 4, 5))
    expected = np.zeros((4, 5, 3), np.uint8)
    expected[:, 1:4] = np.asarray(image)[3:7]
    np.testing.assert_array_equal(cropped, expected)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (73, 73), (101, 67), (67, 101), (48, 200), (500, 375), (31, 33), (1, 9)])
def test_input_array_equals_torchvisions_evaluation(height: int, width: int) -> None:
    image = noise(height, width)
    array = input_array(image, Preprocess((64, 64)))
    assert array.shape == (3, 64, 64)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    np.testing.assert_allclose(array, torchvision_eval(image, 64, 73), rtol=0, atol=5e-7)


def test_input_array_at_224_equals_torchvisions_evaluation() -> None:
    image = noise(333, 500)
    np.testing.assert_allclose(input_array(image, Preprocess((224, 224))), torchvision_eval(image, 224, 256), rtol=0, atol=5e-7)


def test_input_array_has_torchs_rounding_bit_for_bit() -> None:
    torch = pytest.importorskip("torch")
    every_value = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    unit = torch.from_numpy(every_value).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = unit.sub(mean[:, None, None]).div(std[:, None, None]).numpy()
    np.testing.assert_array_equal(input_array(Image.fromarray(every_value), Preprocess((16, 16), crop_pct=1.0)), expected)


def test_input_array_gives_known_numbers() -> None:
    array = input_array(Image.new("RGB", (300, 200), (255, 0, 124)), Preprocess((224, 224)))
    np.testing.assert_allclose(array[:, 0, 0], [2.2489083, -2.0357143, 0.3567756], rtol=1e-6)
    assert np.ptp(array, axis=(1, 2)).max() == 0


def test_rgb_image_drops_alpha_without_blending() -> None:
    image = Image.new("RGBA", (5, 5), (200, 100, 50, 0))
    assert rgb_image(encoded(image, "PNG")).getpixel((2, 2)) == (200, 100, 50)


def test_rgb_image_resolves_a_palette() -> None:
    image = noise(9, 9).quantize(8)
    np.testing.assert_array_equal(np.asarray(rgb_image(encoded(image, "PNG"))), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_rgb_image_is_convert_rgb_in_every_8_bit_mode(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    data = encoded(noise(12, 10).convert("L").convert(mode) if mode == "LA" else noise(12, 10).convert(mode), kind)
    image = rgb_image(data)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_rgb_image_reads_a_cmyk_jpeg() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = rgb_image(data).getpixel((8, 8))
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_rgb_image_scales_16_bit_grey_instead_of_clipping_it(kind: str) -> None:
    values = np.array([[0, 255, 256, 1000, 32768, 65535]], np.uint16)
    data = b"P5 6 1 65535\n" + values.astype(">u2").tobytes() if kind == "PPM" else encoded(Image.fromarray(values), kind)
    pixels = np.asarray(rgb_image(data))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 1, 3, 128, 255])
    assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_rgb_image_refuses_32_bit_pixels(dtype: type) -> None:
    with pytest.raises(DataError, match=r"deep\.tif has 32-bit pixels"):
        rgb_image(encoded(Image.fromarray(np.ones((4, 4), dtype)), "TIFF"), "deep.tif")


def test_rgb_image_does_not_apply_the_exif_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to display
    data = encoded(noise(20, 40), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert rgb_image(data).size == (40, 20)


def test_rgb_image_reads_a_path_and_bytes_alike(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(encoded(noise(30, 20), "JPEG"))
    np.testing.assert_array_equal(np.asarray(rgb_image(file)), np.asarray(rgb_image(file.read_bytes())))


@pytest.mark.parametrize(("kind", "progressive"), [("JPEG", False), ("JPEG", True), ("PNG", False), ("WEBP", False)])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_picture_is_an_error_that_names_it(tmp_path: Path, kind: str, progressive: bool, share: float) -> None:
    data = encoded(noise(100, 100), kind, **({"progressive": True} if progressive else {}))
    file = tmp_path / "half.jpg"
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"half\.jpg") as caught:
        rgb_image(file)
    assert caught.value.remedy


def test_picture_with_damage_in_its_middle_is_an_error(tmp_path: Path) -> None:
    data = bytearray(encoded(noise(64, 64), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"flipped\.png is broken"):
        rgb_image(bytes(data), "flipped.png")


@pytest.mark.parametrize("content", [b"just text, but named .jpg", b"", b"\xff\xd8\xff"])
def test_text_named_jpg_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.jpg"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"notes\.jpg .*; .*(replace|copy)"):
        rgb_image(file)


def test_missing_file_and_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg does not exist"):
        rgb_image(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="is a folder"):
        rgb_image(tmp_path)


@pytest.mark.parametrize("side", [10_000, 14_000])  # above MAX_PIXELS, and above twice it, where Pillow itself refuses
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_before_it_is_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("1", (side, side)), "PNG")
    assert side * side > MAX_PIXELS
    assert len(data) < 100_000
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("the bomb was decoded"))
    with pytest.raises(DataError, match=r"bomb\.png has .*scale it down"):
        rgb_image(data, "bomb.png")


def test_picture_that_the_resize_would_blow_up_is_refused() -> None:
    with pytest.raises(DataError, match=r"thread\.png is 400000 x 1; resized"):
        input_array(Image.new("RGB", (400_000, 1)), Preprocess((224, 224)), "thread.png")


@pytest.mark.parametrize(
    "fields",
    [
        {"image_size": (0, 64)},
        {"image_size": (64,)},
        {"crop_pct": 0.0},
        {"crop_pct": 1.5},
        {"crop_pct": float("nan")},
        {"interpolation": "nearest"},
        {"mean": (0.5, 0.5)},
        {"mean": (0.5, 0.5, float("nan"))},
        {"std": (0.5, 0.0, 0.5)},
        {"std": (0.5, float("nan"), 0.5)},
    ],
)
def test_preprocess_refuses_nonsense(fields: dict[str, object]) -> None:
    with pytest.raises(SpecError) as caught:
        Preprocess(**{"image_size": (64, 64), **fields})  # type: ignore[arg-type]
    assert caught.value.remedy


def test_preprocess_survives_json() -> None:
    preprocess = Preprocess((256, 192), 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocess.from_json(preprocess.to_json()) == preprocess
    with pytest.raises(SpecError, match="not a preprocessing spec"):
        Preprocess.from_json({"image_size": [64, 64], "resize": 73})


def test_spec_offers_the_same_preprocess() -> None:
    import gmf_edge.spec

    assert gmf_edge.spec.Preprocess is Preprocess


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_input_batches_keep_the_order(tmp_path: Path, batch_size: int, workers: int) -> None:
    preprocess = Preprocess((8, 8))
    pictures = [encoded(noise(9 + i % 5 * 40, 11, seed=i), "PNG") for i in range(13)]  # of uneven cost
    batches = list(input_batches((lambda p=p: input_from_file(p, preprocess) for p in pictures), batch_size, workers))
    assert [len(b) for b in batches] == [len(pictures[i : i + batch_size]) for i in range(0, 13, batch_size)]
    np.testing.assert_array_equal(np.concatenate(batches), np.stack([input_from_file(p, preprocess) for p in pictures]))


def test_input_batches_run_ahead_by_a_few_pictures_only() -> None:
    started, lock = [0], threading.Lock()

    def source() -> np.ndarray:
        with lock:
            started[0] += 1
        return np.zeros((3, 2, 2), np.float32)

    batches = input_batches((source for _ in range(10_000)), batch_size=4, workers=3)
    for consumed in (4, 8, 12):
        next(batches)
        assert started[0] <= consumed + 2 * 3
    batches.close()
    assert started[0] <= 12 + 2 * 3


def test_input_batches_raise_the_first_error_in_order_and_stop_their_threads() -> None:
    def source(i: int) -> np.ndarray:
        if i in (5, 6, 9):
            raise DataError(f"picture {i} is broken")
        return np.full((3, 2, 2), i, np.float32)

    threads = threading.active_count()
    batches = input_batches((lambda i=i: source(i) for i in range(20)), batch_size=4, workers=4)
    assert next(batches)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="picture 5"):
        next(batches)
    assert threading.active_count() == threads


def test_input_batches_dropped_early_do_not_start_what_still_waits() -> None:
    started: list[int] = []
    go_on = threading.Event()

    def source(i: int) -> np.ndarray:
        started.append(i)
        if i == 1:
            go_on.wait(10)
        return np.zeros((3, 2, 2), np.float32)

    batches = input_batches((lambda i=i: source(i) for i in range(9)), batch_size=1, workers=1)
    next(batches)  # picture 1 is being read now, and picture 2 waits for its thread
    threading.Timer(0.2, go_on.set).start()
    batches.close()
    assert started in ([0], [0, 1])


def test_input_batches_of_nothing_is_nothing() -> None:
    assert list(input_batches(iter([]), 4)) == []


@pytest.mark.parametrize(("batch_size", "workers"), [(0, 1), (1, 0)])
def test_input_batches_refuse_nonsense_at_once(batch_size: int, workers: int) -> None:
    with pytest.raises(SpecError):
        input_batches(iter([]), batch_size, workers)
