"""The backbone's entries of a checkpoint: of a classifier's, a detector's or a segmenter's state dict.

names in the checkpoint               what they are                                     what becomes of them
backbone.conv_stem.* ...              GroupMixFormer inside a detector or segmenter     taken, without the prefix
neck.* decode_head.* rpn_head.* ...   the rest of it                                    left out, told
conv_stem.* ...                       GroupMixFormer by itself                          taken
head.* norm4.*                        the classifier of the classification code         left out, told
norm0.* .. norm3.*, norm1.* .. norm4.*   a norm of each stage's map                      taken as output_norms.0 .. 3

Upstream's code gives the raw maps of the stages and has neither norm4 nor head where it is a backbone (GroupMixFormer,
models/groupmixformer.py, return_interm_layers). The frameworks in which detectors and segmenters are trained keep their backbone under
"backbone." and, for transformers, often a norm for each output, numbered from 0 or from 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gmf_edge.errors import CheckpointError
from gmf_edge.model.state_dict import some_names
from gmf_edge.spec import NUM_STAGES

BACKBONE_PREFIX = "backbone."
_CLASSIFIER = re.compile(r"(head|norm4)\.")
_NORM = re.compile(r"^norm(\d+)\.")


def backbone_state(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The entries of a checkpoint that make a backbone, under the names of model.groupmixformer; and words on what was done.

    Args:
        state: parameters and buffers by name, wrappers' prefixes removed.
        path: of the file, for errors.

    Raises:
        CheckpointError: norms of some of the maps, but not of all.
    """
    words: list[str] = []
    inside = {name[len(BACKBONE_PREFIX) :]: value for name, value in state.items() if name.startswith(BACKBONE_PREFIX)}
    if inside:
        others = dict.fromkeys(name.split(".", 1)[0] for name in state if not name.startswith(BACKBONE_PREFIX))
        words.append(f'backbone under "{BACKBONE_PREFIX}"' + (f", {some_names(others, 4)} left out" if others else ""))
    taken = inside or dict(state)
    numbers = {int(found[1]) for name in taken if (found := _NORM.match(name))}
    first = next((start for start in (0, 1) if numbers == set(range(start, start + NUM_STAGES))), None)
    if first is not None and "head.weight" not in taken:
        words.append("with a norm for each map")
        return {
            _NORM.sub(lambda found: f"output_norms.{int(found[1]) - first}.", name, count=1): taken[name] for name in taken
        }, words
    if numbers - {NUM_STAGES}:
        listed = some_names([f"norm{number}" for number in sorted(numbers)], 8)
        raise CheckpointError(
            f"{path} has {listed}: norms of some maps, not of all four", "give a checkpoint with all four, or with none"
        )
    classifier = [name for name in taken if _CLASSIFIER.match(name)]
    if classifier:
        words.append("the classifier (head, norm4) left out")
    return {name: value for name, value in taken.items() if name not in classifier}, words
