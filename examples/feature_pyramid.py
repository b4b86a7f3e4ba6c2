"""A backbone's maps into a feature pyramid network (FPN, arXiv 1612.03144), in NumPy: what a detector or segmenter puts on top.

    gmf-edge build --task features --variant small --image-size 256 --dynamic-size 256..512 --precision fp16 --output out/backbone
    python examples/feature_pyramid.py out/backbone picture.jpg --size 384x512

The pyramid's weights are random here: the point is which map goes where. On a GPU, `engine.infer_device(images)` gives the same
maps without a copy, for a PyTorch neck: torch.as_tensor(view, device="cuda") takes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.bundle import open_bundle
from gmf_edge.deploy import open_engine
from gmf_edge.image import input_from_file
from gmf_edge.sizes import parse_size
from gmf_edge.spec import MAPS

PYRAMID_CHANNELS = 256
Array = NDArray[np.float32]


class FeaturePyramid:
    """P_i = smooth_i(lateral_i(C_i) + upsample(P_{i+1})): a 1 x 1 convolution per map, then top-down sums, then a 3 x 3 convolution.

    Args:
        channels: C of each map, by name, from the largest map to the smallest.
        width: channels of every level of the pyramid.
    """

    def __init__(self, channels: Mapping[str, int], width: int = PYRAMID_CHANNELS, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.lateral = {name: rng.standard_normal((width, dim)).astype(np.float32) * dim**-0.5 for name, dim in channels.items()}
        self.smooth = rng.standard_normal((9, width, width)).astype(np.float32) * (9 * width) ** -0.5

    def __call__(self, maps: Mapping[str, Array]) -> dict[str, Array]:
        """Maps [B, C, H / s, W / s] of strides 4, 8, 16, 32 -> a level [B, width, H / s, W / s] for each."""
        levels: dict[str, Array] = {}
        above: Array | None = None
        for name in reversed(list(self.lateral)):
            level = np.einsum("oc,bchw->bohw", self.lateral[name], maps[name], optimize=True)
            if above is not None:
                # every stride is twice the one before
                level = level + above.repeat(2, axis=2).repeat(2, axis=3)
            above = levels[name] = level
        return {name: self._smoothed(levels[name]) for name in self.lateral}

    def _smoothed(self, level: Array) -> Array:
        padded = np.pad(level, ((0, 0), (0, 0), (1, 1), (1, 1)))
        height, width = level.shape[2:]
        taps = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        return sum(np.einsum("oc,bchw->bohw", self.smooth[i], tap, optimize=True) for i, tap in enumerate(taps))  # type: ignore[return-value]


def pyramid_of(folder: Path, picture: Path, size: tuple[int, int] | None = None) -> dict[str, Array]:
    """The pyramid's levels of one picture, by a deployed backbone bundle; size is (H, W), None for the one that it is tuned for.

    Raises:
        GmfEdgeError: see gmf_edge.errors.
    """
    bundle = open_bundle(folder)
    preprocess = replace(bundle.manifest.preprocess, image_size=size or bundle.manifest.model.image_size)
    images = input_from_file(picture, preprocess, str(picture))[None]
    with open_engine(bundle) as engine:
        maps = engine.infer_maps(images)
    return FeaturePyramid({name: maps[name].shape[1] for name in MAPS})(maps)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A backbone's maps into a feature pyramid.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--size", help="S or HxW, multiples of 32 within the bundle's sizes")
    arguments: Any = parser.parse_args()
    levels = pyramid_of(arguments.bundle, arguments.picture, parse_size(arguments.size) if arguments.size else None)
    for name, level in levels.items():
        print(f"{name} -> [{', '.join(map(str, level.shape))}], standard deviation {level.std():.3f}")


if __name__ == "__main__":
    main()
