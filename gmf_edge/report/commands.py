"""A request as plain values that travel in the manifest and in report.json, and as the command line that asks for the same.

record             {"options": {flag: value, list of values, or true}, "files": {flag: see below}, "unspelled": {name: value}}
a file             {"name": relative, "sha256": of its content}
a set of images    {"name": relative, "images": how many were used, "seed": of their draw, "sha256": of those that were used}

Paths of the user's machine are not kept: a name is the file's own, or for images in an archive the way from the archive on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

from gmf_edge.artifact import sha256_of, source_digest
from gmf_edge.engines.tensorrt.options import TILING, TRTEXEC_COMPATIBILITY, TRTEXEC_INTEGERS, TRTEXEC_SWITCHES
from gmf_edge.sizes import words_of_size
from gmf_edge.spec import BuildSpec, Task
from gmf_edge.weights import WeightsOrigin

Request = dict[str, Any]
# flags of `build` that `export` does not have: the engine comes later there
ENGINE_FLAGS = ("--backend", "--keep-int8")
CHECKPOINT, EVAL_DATA, CALIBRATION_DATA, RECIPE = "--checkpoint", "--eval-data", "--calibration-data", "--recipe"
# every other field's flag is its name
_FLAGS = {"max_drop_points": "--max-drop", "plugin_archs": "--plugin-arch"}
# settled together with another field
_TOGETHER = ("precision", "auto", "profile", "image_size", "sizes")
_ENGINE_FLAGS = {
    "threads": "--threads",
    "device": "--device",
    "workspace_mib": "--workspace-mib",
    "precision_proof": "--precision-proof",
}
# trtexec's spelling, as engines.tensorrt.options reads it; the value is written after "="
_TRTEXEC = {
    **{option: flag for flag, option in TRTEXEC_INTEGERS.items()},
    "hardware_compatibility": "--hardwareCompatibilityLevel",
    "tiling": "--tilingOptimizationLevel",
    "tactic_sources": "--tacticSources",
}
# of two spellings the first
_SWITCHES = {option: flag for flag, option in reversed(TRTEXEC_SWITCHES.items())}
_COMPATIBILITY = {level: word for word, level in TRTEXEC_COMPATIBILITY.items()}
PLUGIN_LIBRARY, NO_TIMING_CACHE = "--plugins", ""


def request_of(
    spec: BuildSpec, weights: WeightsOrigin, evaluation: Mapping[str, Any] | None, calibration: Mapping[str, Any] | None
) -> Request:
    """The record of a request; what is at its default is left out, as a user would.

    Args:
        spec: the request.
        weights: where they came from.
        evaluation: Manifest.evaluation.
        calibration: lowering["int8"]["calibration"], or None.
    """
    options: dict[str, Any] = {"--precision": "auto" if spec.auto else spec.precision.value}
    files: dict[str, Any] = {}
    image_size = spec.image_size
    if spec.sizes is not None:
        options["--dynamic-size"] = f"{words_of_size(spec.sizes.min)}..{words_of_size(spec.sizes.max)}"
        image_size = spec.sizes.opt
    if image_size is not None:
        options["--image-size"] = words_of_size(image_size)
    # a backbone's largest batch has another default on the command line
    if spec.profile != type(spec.profile)() or spec.task is Task.FEATURES:
        options |= {f"--{name}-batch": getattr(spec.profile, name) for name in ("min", "opt", "max")}
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name in _TOGETHER or value == field.default:
            continue
        flag = flag_of(field.name)
        if flag == RECIPE and not str(value).endswith(".toml"):
            options[flag] = value
        elif isinstance(value, Path) or flag == RECIPE:
            files[flag] = _file(flag, Path(value), spec, weights, evaluation, calibration)
        else:
            options[flag] = list(value) if isinstance(value, tuple) else value.value if isinstance(value, Enum) else value
    return {"options": options, "files": files, "unspelled": {}, "source_sha256": source_digest()}


def flag_of(field: str) -> str:
    """The command line's flag for a field of BuildSpec."""
    return _FLAGS.get(field, "--" + field.replace("_", "-"))


def _file(
    flag: str,
    path: Path,
    spec: BuildSpec,
    weights: WeightsOrigin,
    evaluation: Mapping[str, Any] | None,
    calibration: Mapping[str, Any] | None,
) -> dict[str, Any]:
    if flag == CHECKPOINT:
        return {"name": path.name, "sha256": weights.sha256}
    if flag == EVAL_DATA and evaluation is not None:
        return {"name": relative_name(path), "images": evaluation["images"], "seed": spec.seed, "sha256": evaluation["sha256"]}
    if flag == CALIBRATION_DATA and calibration is not None:
        return {
            "name": relative_name(path),
            **{name: calibration[name] for name in ("images", "seed")},
            "sha256": calibration["images_sha256"],
        }
    return {"name": path.name, "sha256": sha256_of(path)}


def relative_name(path: Path) -> str:
    """Of images: "val.zip", or "a.zip/val" where they are in a folder of an archive."""
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if part.lower().endswith(".zip")), len(parts) - 1)
    return "/".join(parts[first:]) or "images"


def engine_request_of(
    verb: str,
    *,
    use_plugin: bool,
    options: Mapping[str, Any],
    backend: str = "auto",
    max_drop_points: float | None = None,
    evaluated: bool = False,
) -> Request:
    """The record of what an engine was asked for.

    Args:
        verb: "build" or "deploy".
        use_plugin, options, backend, max_drop_points: as deploy_bundle's; `build` keeps the last two in its own record.
        evaluated: whether `deploy` was given evaluation images.
    """
    spelled: dict[str, Any] = {}
    files: dict[str, Any] = {}
    unspelled: dict[str, Any] = {}
    if backend != "auto":
        spelled["--backend"] = backend
    if max_drop_points is not None:
        spelled["--max-drop"] = max_drop_points
    if not use_plugin:
        spelled["--no-plugin"] = True
    for name, value in sorted(options.items()):
        if value is None:
            continue
        if name in _ENGINE_FLAGS:
            spelled[_ENGINE_FLAGS[name]] = value
        elif name == "plugin_library":
            path = Path(value)
            files[PLUGIN_LIBRARY] = {"name": path.name, "sha256": sha256_of(path) if path.is_file() else None}
        elif name == "timing_cache":
            # of this machine alone, and a cache: another one gives the same function
            if not value:
                spelled["--timingCacheFile="] = True
        elif name in _SWITCHES and value is True:
            spelled[_SWITCHES[name]] = True
        elif (written := _trtexec_value(name, value)) is not None:
            spelled[f"{_TRTEXEC[name]}={written}"] = True
        else:
            unspelled[name] = list(value) if isinstance(value, tuple) else value
    return {"verb": verb, "options": spelled, "files": files, "unspelled": unspelled, "evaluated": evaluated}


def _trtexec_value(name: str, value: Any) -> str | None:
    """What trtexec writes for a value; None for one that it cannot say."""
    if name == "hardware_compatibility":
        return _COMPATIBILITY.get(value, str(value))
    if name == "tiling":
        return str(TILING.index(value))
    if name == "tactic_sources":
        return ",".join(source.upper() for source in value) if value and all(source[0] in "+-" for source in value) else None
    return str(value) if name in _TRTEXEC else None


def variable_of(flag: str) -> str:
    """The shell variable that holds a file: --eval-data -> EVAL_DATA."""
    return flag.lstrip("-").replace("-", "_").upper()


def arguments_of(request: Mapping[str, Any]) -> Iterator[str | tuple[str, str]]:
    """A record as arguments: strings as they are, and (flag, variable) where a file's place is the user's."""
    for flag, value in sorted(request["options"].items()):
        if value is True:
            yield flag
        elif value is not False:
            for one in value if isinstance(value, list) else (value,):
                yield flag
                yield str(one)
    for flag in sorted(request["files"]):
        yield (flag, variable_of(flag))
