"""engine.plan.json beside engine.plan: where, from what and how the engine was built, and whether it may be opened here.

The engine file itself is TensorRT's raw bytes, so that trtexec and Triton load it as it is. TensorRT checks a foreign engine only
after it has begun to read it, and says little; here the sidecar is read first and the answer names what differs and what to do.

{"schema": 1, "engine": {"file", "bytes", "sha256"}, "device": {...}, "tensorrt", "library", "target", "form", "graph": {"file", "sha256"},
 "precision", "profile": [min, opt, max], "image_size": [H, W], "options": {...}, "compatibility": {...}, "plugins": [...],
 "precision_shares": {...}, "precision_proof": {...}, "layers": [...], "notes": [...], "built_at"}
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gmf_edge.artifact import sha256_of
from gmf_edge.engines.tensorrt.cuda import Device
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import EngineError, StaleArtifact
from gmf_edge.scratch import write_atomically

SCHEMA = 1
REBUILD = "run 'gmf-edge deploy' here; engines do not travel between GPU architectures and TensorRT versions"


def graph_sha256(graph: Path) -> str:
    """Digest of an ONNX file together with the weights that lie in files beside it, hexadecimal.

    Two models of one architecture have the same graph and other weights. The names of the weight files are found by ONNX's encoding
    of an external tensor, StringStringEntryProto(key="location", value=name), so that no ONNX library is needed (onnx.proto).
    """
    content = graph.read_bytes()
    names = {
        content[found.end() : found.end() + found[1][0]].decode(errors="replace")
        for found in re.finditer(rb"\x0a\x08location\x12([\x01-\x7f])", content)
    }
    parts = [hashlib.sha256(content).hexdigest()]
    parts += [sha256_of(graph.parent / name) for name in sorted(names) if (graph.parent / name).is_file()]
    return parts[0] if len(parts) == 1 else hashlib.sha256(" ".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Sidecar:
    """What is known of a built engine; see the head of this file for the JSON."""

    engine_file: str
    engine_bytes: int
    engine_sha256: str
    device: dict[str, Any]
    tensorrt: str
    library: str
    target: str
    form: str
    graph_file: str
    graph_sha256: str
    precision: str
    profile: tuple[int, int, int]
    image_size: tuple[int, int]
    options: dict[str, Any]
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    stripped: bool = False
    plugins: tuple[str, ...] = ()
    precision_shares: dict[str, float] = field(default_factory=dict)
    precision_proof: dict[str, Any] = field(default_factory=dict)
    layers: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    built_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    schema: int = SCHEMA

    @staticmethod
    def path_of(engine: Path) -> Path:
        """engine.plan -> engine.plan.json."""
        return engine.with_name(engine.name + ".json")

    def write(self, engine: Path) -> Path:
        """Write it beside the engine; its path.

        Raises:
            EnvironmentProblem: the folder cannot be written.
        """
        path = self.path_of(engine)
        write_atomically(path, (json.dumps(asdict(self), indent=1) + "\n").encode())
        return path

    @classmethod
    def read(cls, engine: Path) -> Sidecar:
        """The sidecar of an engine file.

        Raises:
            EngineError: there is none, or it is not one.
            StaleArtifact: it was written by another version of this program.
        """
        path = cls.path_of(engine)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise EngineError(
                f"{engine.name} has no {path.name} beside it, so nobody can say what it was built for", REBUILD
            ) from error
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise EngineError(f"{path} cannot be read: {error}", REBUILD) from error
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise StaleArtifact(
                f"{path} has schema {values.get('schema') if isinstance(values, dict) else None}, not {SCHEMA}", REBUILD
            )
        try:
            listed = {name: tuple(values[name]) for name in ("profile", "image_size", "plugins", "layers", "notes")}
            return cls(**{**values, **listed})
        except (KeyError, TypeError) as error:
            raise EngineError(f"{path} is not an engine's sidecar: {error}", REBUILD) from error

    def check(self, engine: Path, device: Device, version: TensorRTVersion) -> None:
        """Refuse an engine that is damaged or was built for another GPU or TensorRT, before TensorRT sees it.

        Raises:
            EngineError: the file is missing or is not the one that was built.
            StaleArtifact: it was built elsewhere.
        """
        if not engine.is_file():
            raise EngineError(f"{engine} is missing", REBUILD)
        if engine.stat().st_size != self.engine_bytes or sha256_of(engine) != self.engine_sha256:
            raise EngineError(f"{engine} is not the file that was built ({self.engine_bytes} bytes expected)", REBUILD)
        built = f"{engine.name} was built on {self.device['name']} ({architecture_of(self.device)}) with TensorRT {self.tensorrt}"
        if not self._version_fits(version):
            raise StaleArtifact(f"{built}; this machine has TensorRT {version.text}", REBUILD)
        library = version.library
        if not self.version_compatible and self.library and library and self.library != library:
            raise StaleArtifact(f"{built} (libnvinfer {self.library}); this machine has libnvinfer {library}", REBUILD)
        if not self._device_fits(device):
            raise StaleArtifact(f"{built}; this machine has {device.name} ({device.architecture})", REBUILD)

    def device_notes(self, device: Device) -> tuple[str, ...]:
        """What to know of an engine that may be opened here and was built on another module of the same name.

        CUDA calls AGX Orin, Orin NX and Orin Nano all "Orin", and a power mode may switch multiprocessors off.
        """
        built = int(self.device["multiprocessors"])
        if built == device.multiprocessors:
            return ()
        return (
            f"built for {built} multiprocessors, opened on {device.multiprocessors}: it runs, but its kernels were chosen for the other; "
            "'gmf-edge deploy' here makes it as fast as it can be",
        )

    def _version_fits(self, version: TensorRTVersion) -> bool:
        if self.tensorrt == version.text:
            return True
        if not self.version_compatible:
            return False
        # a version-compatible engine runs on later releases, across one step of the supported majors: 8.6 -> 10 -> 11
        built = TensorRTVersion.of(self.tensorrt).numbers
        majors = (8, 10, 11)
        return built <= version.numbers and majors.index(version.numbers[0]) - majors.index(built[0]) <= 1

    def _device_fits(self, device: Device) -> bool:
        built = _capability(str(self.device["compute_capability"]))
        here = _capability(device.compute_capability)
        # Jetson engines are built against another binary interface of the driver than those of desktop GPUs
        if bool(self.device["integrated"]) != device.integrated:
            return False
        if self.hardware_compatibility == "ampere+":
            return built >= (8, 0) and here >= (8, 0)
        if self.hardware_compatibility == "same":
            return built == here
        # TensorRT tunes for a GPU model and refuses none of its own architecture, but tactics and memory limits are the model's:
        # of two modules of one name, the one with fewer multiprocessors and less memory may not hold the engine at all
        smaller = device.multiprocessors < int(self.device["multiprocessors"]) and device.memory_mib < int(
            self.device["memory_mib"]
        )
        return built == here and self.device["name"] == device.name and not smaller


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def architecture_of(device: dict[str, Any]) -> str:
    """Such as "sm_87", of a device in a sidecar."""
    return "sm_" + str(device["compute_capability"]).replace(".", "")
