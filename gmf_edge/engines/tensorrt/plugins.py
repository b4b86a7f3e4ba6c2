"""Plugin creators: which are registered, which a library brings."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmf_edge.engines.tensorrt.log import BuildLog
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import EngineError
from gmf_edge.ops.group_mix_attention import OP_TYPE

if TYPE_CHECKING:
    import tensorrt as trt

PLUGIN_OP = OP_TYPE


def creators_in(registry: trt.IPluginRegistry, version: TensorRTVersion) -> tuple[str, ...]:
    """Names of the plugin creators in one registry, without those of its parents."""
    if version.has_creator_list:
        creators: Sequence[Any] = registry.plugin_creator_list
    else:
        # 10.3 answers None where a creator of a kind is registered that its bindings do not know
        creators = registry.all_creators or ()
    return tuple(sorted({str(creator.name) for creator in creators}))


def registered_plugins(version: TensorRTVersion) -> tuple[str, ...]:
    """Names of the plugin creators in TensorRT's global registry: what was linked in, or registered from Python."""
    import tensorrt as trt

    return creators_in(trt.get_plugin_registry(), version)


def require_library_file(path: Path | str) -> None:
    """Refuse a plugin library that is not there.

    Raises:
        EngineError: no such file.
    """
    if not Path(path).is_file():
        raise EngineError(
            f"plugin library {path} is missing", "build it (plugins/README.md) or leave it out: the portable graph needs none"
        )


def check_plugin_library(path: str, version: TensorRTVersion) -> None:
    """Whether a library can be loaded and exports plugin creators for this TensorRT; works without a GPU.

    Raises:
        EngineError: it is missing, cannot be loaded, or was built for another version.
    """
    require_library_file(path)
    try:
        library = ctypes.CDLL(str(Path(path).resolve()))
    except OSError as error:
        raise EngineError(f"plugin library {path} cannot be loaded: {error}", f"'ldd {path}' shows missing libraries") from error
    # 8.6 asks for the first; 10 and 11 for the second, and still take the first
    symbols = ("getPluginCreators",) if version.has_creator_list else ("getCreators", "getPluginCreators")
    if not any(hasattr(library, symbol) for symbol in symbols):
        raise EngineError(
            f"{path} gives no plugin creators to TensorRT {version.text}: it exports no {' or '.join(symbols)}",
            f"build it for this version ({version.target.plugin_interface}), see plugins/README.md",
        )


def load_plugin_library(path: str, registry: trt.IPluginRegistry, version: TensorRTVersion, log: BuildLog) -> None:
    """Load a library of plugin creators into the registry of a builder or a runtime, and make sure that ours is in it.

    TensorRT 8.6 loads no library into the global registry (it answers None); trtexec uses the builder's and the runtime's as well.

    Raises:
        EngineError: it cannot be loaded, or has no creator for the fused GMA operator.
    """
    check_plugin_library(path, version)
    if PLUGIN_OP in registered_plugins(version):
        return
    registry.load_library(str(Path(path).resolve()))
    if PLUGIN_OP not in creators_in(registry, version):
        raise EngineError(
            f"{path} gives no creator of {PLUGIN_OP} to TensorRT {version.text}: {log.last_errors}",
            f"build it for this version ({version.target.plugin_interface}), see plugins/README.md",
        )
