"""scikit-learn's digits -> PNG pictures -> a trained pico, and the sets that go with it: the packaged labelled run.

    python benchmarks/train_pico.py            # writes gmf_edge/assets/
    python benchmarks/train_pico.py --epochs 1 --output out/assets

1. Each digit, 8x8 with values 0..16, becomes a 40x40 PNG: scaled to 32x32 (bicubic) on a black margin of 4, so that the centre crop
   of the evaluation cuts no ink.
2. train_test_split, stratified: a fifth is held out for the test, and nothing is chosen by looking at it. The calibration set is
   drawn from the training pictures.
3. The pictures go through gmf_edge.image, like any user's, and are trained on with small random rotations, scalings, shifts and
   contrasts. Label smoothing keeps the logits moderate, which is closer to what larger models do and kinder to low precision.
4. The weights of the last epoch are kept and tested once.

The seeds, the split, the thread count and deterministic algorithms are fixed: the same machine and versions write the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import platform
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import sklearn
import torch
from PIL import Image
from safetensors.torch import save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from gmf_edge.image import Preprocess
from gmf_edge.imageset import ImageSet
from gmf_edge.model.groupmixformer import GroupMixFormer
from gmf_edge.spec import ModelSpec
from gmf_edge.weights import ASSETS

IMAGE_SIZE = (64, 64)
CROP_PCT = 0.875
DIGIT_SIDE, MARGIN = 32, 4  # pixels
TEST_SHARE = 0.2
CALIBRATION_IMAGES = 600
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARMUP_EPOCHS = 3
LABEL_SMOOTHING = 0.1
# one thread sums in one order, however many cores there are; two that wait for each other on a busy machine were slower than one
THREADS = 1


def digit_png(digit: np.ndarray) -> bytes:
    """The PNG file of one digit, [8, 8] with values 0..16: RGB, white ink on black."""
    ink = Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8)).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC)
    picture = Image.new("L", (DIGIT_SIDE + 2 * MARGIN, DIGIT_SIDE + 2 * MARGIN))
    picture.paste(ink, (MARGIN, MARGIN))
    file = io.BytesIO()
    picture.convert("RGB").save(file, "PNG", optimize=True)
    return file.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """An archive whose bytes depend on the files alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, wherever it is written
            archive.writestr(entry, files[name])


def write_sets(output: Path, training: Path, seed: int) -> None:
    """Write the test and calibration sets into a folder, and the training set, which is not packaged, as one archive."""
    digits = load_digits()
    files = {
        f"{label}/digit-{i:04}.png": digit_png(image)
        for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True))
    }
    names = sorted(files, key=lambda name: name.partition("/")[2])  # back in the data set's own order
    train, test = train_test_split(names, test_size=TEST_SHARE, stratify=digits.target, random_state=seed)
    overlap = {hashlib.sha256(files[n]).digest() for n in train} & {hashlib.sha256(files[n]).digest() for n in test}
    if overlap:
        raise SystemExit(f"{len(overlap)} pictures are in the training and in the test set: choose another seed")
    write_zip(training, {name: files[name] for name in train})
    write_zip(output / "pico-digits-test.zip", {name: files[name] for name in test})
    with ImageSet.open(training) as images:
        drawn = images.spread(CALIBRATION_IMAGES, seed)
        write_zip(output / "pico-digits-calibration.zip", {item.name: item.read() for item in drawn.items})


def tensors(path: Path, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """A whole set as model inputs, [n, 3, H, W], and labels, [n]."""
    with ImageSet.open(path) as images:
        inputs = np.concatenate([batch.inputs for batch in images.batches(preprocess, 256)])
        return torch.from_numpy(inputs), torch.from_numpy(images.labels)


def augmented(inputs: Tensor, preprocess: Preprocess, generator: torch.Generator) -> Tensor:
    """Each picture rotated by up to 12 degrees, scaled by up to 15 %, shifted by up to 8 % and of 0.6 to 1 its contrast."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(inputs)).uniform_(low, high, generator=generator)

    angle, scale = uniform(-12, 12) * (math.pi / 180), uniform(0.85, 1.15)
    shift_x, shift_y = uniform(-0.16, 0.16), uniform(-0.16, 0.16)  # the grid is 2 wide
    rows = [
        torch.stack([angle.cos() / scale, -angle.sin() / scale, shift_x], 1),
        torch.stack([angle.sin() / scale, angle.cos() / scale, shift_y], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(inputs.shape), align_corners=False)  # [B, H, W, 2]
    # beyond the edge lies the picture's own black margin
    moved = functional.grid_sample(inputs, grid, mode="bilinear", padding_mode="border", align_corners=False)
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (preprocess.mean, preprocess.std))
    contrast = uniform(0.6, 1.0)[:, None, None, None]
    return ((moved * std + mean) * contrast - mean) / std


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def trained(model: GroupMixFormer, inputs: Tensor, labels: Tensor, preprocess: Preprocess, epochs: int, seed: int) -> None:
    """Train the model where it is, for so many epochs."""
    generator = torch.Generator().manual_seed(seed)
    # norms, biases and other vectors are not decayed
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}])
    steps_per_epoch = len(inputs) // BATCH_SIZE
    model.train()
    for epoch in range(epochs):
        start, losses = time.perf_counter(), []
        # the last, smaller batch of an epoch is dropped: BatchNorm would weigh its pictures more
        order = torch.randperm(len(inputs), generator=generator)[: steps_per_epoch * BATCH_SIZE].split(BATCH_SIZE)
        for i, chosen in enumerate(order):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * steps_per_epoch + i, epochs * steps_per_epoch, WARMUP_EPOCHS * steps_per_epoch)
            logits = model(augmented(inputs[chosen], preprocess, generator))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:3}/{epochs}  loss {np.mean(losses):.4f}  {time.perf_counter() - start:.1f} s", flush=True)


@torch.no_grad()
def logits_of(model: GroupMixFormer, inputs: Tensor) -> Tensor:
    """[n, 3, H, W] -> logits [n, classes], in evaluation mode."""
    model.eval()
    return torch.cat([model(part) for part in inputs.split(BATCH_SIZE)])


def safetensors_bytes(model: GroupMixFormer, metadata: dict[str, str]) -> bytes:
    """The weights as a safetensors file whose header is sorted: the library writes metadata in no fixed order."""
    file = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, metadata)
    length = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of eight bytes
    return len(header).to_bytes(8, "little") + header + file[8 + length :]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="train pico on scikit-learn's digits", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder for the weights and sets")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    start = time.perf_counter()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)

    preprocess = Preprocess(IMAGE_SIZE, CROP_PCT)
    with tempfile.TemporaryDirectory() as folder:
        training = Path(folder) / "pico-digits-train.zip"
        write_sets(options.output, training, options.seed)
        inputs, labels = tensors(training, preprocess)
    test_inputs, test_labels = tensors(options.output / "pico-digits-test.zip", preprocess)
    classes = [str(digit) for digit in range(10)]
    model = GroupMixFormer(ModelSpec.of("pico", num_classes=len(classes), image_size=IMAGE_SIZE))
    print(
        f"{sum(p.numel() for p in model.parameters())} parameters, {len(inputs)} training and {len(test_inputs)} test pictures",
        flush=True,
    )
    trained(model, inputs, labels, preprocess, options.epochs, options.seed)

    logits = logits_of(model, test_inputs)
    correct = int((logits.argmax(1) == test_labels).sum())
    accuracy = 100 * correct / len(test_labels)
    top_two = logits.softmax(1).topk(2).values
    margin = top_two[:, 0] - top_two[:, 1]
    print(f"test top-1 {accuracy:.2f} % ({correct} of {len(test_labels)}), logit standard deviation {logits.std():.3f}")
    print(f"margin of the top-1 probability: smallest {margin.min():.4f}, median {margin.median():.4f}")

    command = "python benchmarks/train_pico.py" + (
        f" --epochs {options.epochs}" if options.epochs != parser.get_default("epochs") else ""
    )
    command += f" --seed {options.seed}" if options.seed != parser.get_default("seed") else ""
    metadata = {
        "format": "pt",
        "variant": "pico",
        "classes": json.dumps(classes),
        "image_size": json.dumps(IMAGE_SIZE),
        "crop_pct": json.dumps(CROP_PCT),
        "seed": json.dumps(options.seed),
        "epochs": json.dumps(options.epochs),
        "top1_percent": f"{accuracy:.4f}",
        "top1_correct": json.dumps(correct),
        "test_images": json.dumps(len(test_labels)),
        "data": "scikit-learn's digits (UCI Optical Recognition of Handwritten Digits)",
        "command": command,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"scikit-learn {sklearn.__version__}, NumPy {np.__version__}",
    }
    (options.output / "pico.safetensors").write_bytes(safetensors_bytes(model, metadata))
    (options.output / "pico-labels.txt").write_text("\n".join(classes) + "\n")
    print(f"wrote {options.output} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
