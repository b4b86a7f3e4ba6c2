"""config.pbtxt: model configurations as plain values, written as protobuf text, and checked as Triton checks them.

Fields and their meaning: inference.ModelConfig in model_config.proto of triton-inference-server/common. NVIDIA's compiled form of that file
is in the package tritonclient; where it is installed, every configuration is parsed with it before it is delivered. What Triton checks
beyond the schema is in `check_repository`, after ValidateModelConfig and the ensemble's checks in triton-inference-server/core.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gmf_edge.errors import PackageError

CONFIG = "config.pbtxt"
# the file that a backend looks for where default_model_filename is not given
MODEL_FILES = {"tensorrt": "model.plan", "onnxruntime": "model.onnx", "openvino": "model.xml", "python": "model.py"}
_SCHEMA = "gmf_edge_triton_model_config_pb2"
_AGAIN = "package the bundle again; after changes by hand, see Triton's model configuration documentation"


class Symbol(str):
    """A name of an enumeration: written without quotes."""


def to_pbtxt(values: Mapping[str, Any], indent: str = "") -> str:
    """Protobuf text of plain values: a mapping is a message, a sequence of mappings a repeated message, of others a list."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name} {{", to_pbtxt(value, indent + "  "), f"{indent}}}"]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if value and isinstance(value[0], Mapping):
                lines += [to_pbtxt({name: one}, indent) for one in value]
            else:
                lines.append(f"{indent}{name}: [{', '.join(map(_scalar, value))}]")
        else:
            lines.append(f"{indent}{name}: {_scalar(value)}")
    return "\n".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, Symbol):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    # JSON's escapes of quotes, backslashes and line ends are protobuf's; other characters stay as they are, in UTF-8
    return json.dumps(value, ensure_ascii=False)


def tensor(name: str, dtype: str, dims: Sequence[int], **more: Any) -> dict[str, Any]:
    """An input or output; dims without the batch."""
    return {"name": name, "data_type": Symbol(dtype), "dims": list(dims), **more}


def parameters(values: Mapping[str, str]) -> list[dict[str, Any]]:
    """A map<string, ModelParameter>."""
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]


def missing_schema() -> str | None:
    """Why configurations cannot be parsed with Triton's schema here, or None where they can."""
    if importlib.util.find_spec("google") is None or importlib.util.find_spec("google.protobuf") is None:
        return "the package protobuf is not installed"
    if _schema_file() is None:
        return "the package tritonclient is not installed"
    try:
        _model_config()
    except Exception as error:  # protobuf refuses what a newer compiler made, with types that differ between its versions
        return f"the installed protobuf does not take tritonclient's schema ({error})"
    return None


def _schema_file() -> Path | None:
    """Of NVIDIA's compiled model_config.proto. Read as a file: importing tritonclient.grpc needs grpcio, which this does not."""
    found = importlib.util.find_spec("tritonclient")
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        path = Path(folder) / "grpc" / "model_config_pb2.py"
        if path.is_file():
            return path
    return None


def _model_config() -> Any:
    """The message class inference.ModelConfig."""
    module = sys.modules.get(_SCHEMA)
    if module is None:
        path = _schema_file()
        assert path is not None, "missing_schema was not asked"
        spec = importlib.util.spec_from_file_location(_SCHEMA, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[_SCHEMA] = module
    return module.ModelConfig


def parsed(path: Path) -> Any:
    """A config.pbtxt as inference.ModelConfig; ask missing_schema first.

    Raises:
        PackageError: Triton's protobuf refuses it.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), _model_config()())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise PackageError(f"{path} is not a model configuration of Triton: {error}", _AGAIN) from error


def check_repository(repository: Path) -> None:
    """Refuse a model repository that Triton would not load: schema, names, files, batch sizes, and what the ensemble connects.

    Args:
        repository: a folder of models; ask missing_schema first.

    Raises:
        PackageError: with the file and what is wrong with it.
    """
    configs = {path.parent.name: (path, parsed(path)) for path in sorted(repository.glob(f"*/{CONFIG}"))}
    if not configs:
        raise PackageError(f"{repository} has no model with a {CONFIG}", _AGAIN)
    for folder, (path, config) in configs.items():
        problem = _problem_of(config, folder, path.parent)
        if problem is None and config.HasField("ensemble_scheduling"):
            problem = _ensemble_problem(config, {name: other for name, (_, other) in configs.items()})
        if problem is not None:
            raise PackageError(f"{path}: {problem}", _AGAIN)


def _problem_of(config: Any, folder_name: str, folder: Path) -> str | None:
    """Of one model by itself."""
    if config.name != folder_name:
        return f"name {config.name!r} is not that of its folder"
    if not config.input or not config.output:
        return "no input or no output"
    for one in (*config.input, *config.output):
        if not one.dims or any(dim < 1 and dim != -1 for dim in one.dims) or one.data_type == 0:
            return f"tensor {one.name!r} needs a data_type and dims of at least 1 (or -1)"
    for output in config.output:
        if output.label_filename and not (folder / output.label_filename).is_file():
            return f"label_filename {output.label_filename} is missing"
    limit = config.max_batch_size
    for size in config.dynamic_batching.preferred_batch_size:
        if not 1 <= size <= limit:
            return f"preferred_batch_size {size} is outside 1..max_batch_size {limit}"
    for warmup in config.model_warmup:
        if not 1 <= warmup.batch_size <= limit:
            return f"model_warmup {warmup.name!r} has batch size {warmup.batch_size}, outside 1..max_batch_size {limit}"
        if set(warmup.inputs) != {one.name for one in config.input}:
            return f"model_warmup {warmup.name!r} does not give exactly the model's inputs"
    versions = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit() and int(path.name) > 0]
    if not versions:
        return "there is no version folder, such as 1"
    if config.HasField("ensemble_scheduling") or config.platform == "ensemble":
        return None if config.HasField("ensemble_scheduling") else "an ensemble without ensemble_scheduling"
    if config.backend not in MODEL_FILES:
        return f"backend {config.backend!r} is none of {', '.join(MODEL_FILES)}"
    file = config.default_model_filename or MODEL_FILES[config.backend]
    missing = [version.name for version in versions if not (version / file).is_file()]
    return f"version {missing[0]} has no {file}" if missing else None


def _ensemble_problem(config: Any, models: Mapping[str, Any]) -> str | None:
    """Each step is a model here whose tensors are connected, by type and shape, and all of the ensemble's own come about."""
    known = {one.name: (one.data_type, tuple(one.dims)) for one in config.input}
    for step in config.ensemble_scheduling.step:
        model = models.get(step.model_name)
        if model is None:
            return f"its step {step.model_name!r} is not in the repository"
        if config.max_batch_size > model.max_batch_size:
            return f"max_batch_size {config.max_batch_size} is above that of its step {step.model_name!r}"
        given = {one.name: (one.data_type, tuple(one.dims)) for one in model.input}
        if set(step.input_map) != set(given):
            return f"step {step.model_name!r} does not get exactly its inputs {', '.join(given)}"
        for name, source in step.input_map.items():
            if known.get(source) != given[name]:
                return f"tensor {source!r} does not fit input {name!r} of {step.model_name!r}"
        made = {one.name: (one.data_type, tuple(one.dims)) for one in model.output}
        for name, target in step.output_map.items():
            if name not in made:
                return f"step {step.model_name!r} has no output {name!r}"
            known[target] = made[name]
    for one in config.output:
        if known.get(one.name) != (one.data_type, tuple(one.dims)):
            return f"no step makes its output {one.name!r}"
    return None
