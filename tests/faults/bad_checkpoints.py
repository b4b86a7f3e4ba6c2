"""Checkpoints that must be refused: cut, damaged, foreign, lying, and those that would run code."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fault_harness import BadInput, Material, bad
from safetensors.torch import save


def _given(content: bytes, name: str, *options: str) -> Callable[[Path], Sequence[object]]:
    def make(here: Path) -> Sequence[object]:
        (here / name).write_bytes(content)
        return ["export", "--checkpoint", here / name, *options, "--output", here / "out"]

    return make


def checkpoints(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """Files that are no checkpoint, or no whole one."""
    for name, content in (("w.pth", material.pth), ("w.safetensors", material.safetensors)):
        for _ in range(20):
            size = rng.randrange(1, len(content) - 8)
            yield bad(f"{name} cut at {size}", _given(content[:size], name))
    for suffix in (".pth", ".pt", ".bin", ".safetensors", ".PTH"):
        for size in (1, 8, 100, 5000):
            yield bad(f"{size} random bytes as {suffix}", _given(rng.randbytes(size), f"w{suffix}"))
        yield bad(f"empty {suffix}", _given(b"", f"w{suffix}"))
        yield bad(f"text as {suffix}", _given(b"weights\n" * 50, f"w{suffix}"))
        yield bad(f"a web page as {suffix}", _given(b"<!DOCTYPE html><html></html>", f"w{suffix}"))
        yield bad(f"a Git LFS pointer as {suffix}", _given(b"version https://git-lfs.github.com/spec/v1\noid x", f"w{suffix}"))
    for suffix in (".onnx", ".h5", ".txt", "", ".pth.tar", ".zip", ".npz"):
        yield bad(f"the suffix {suffix!r}", _given(material.pth, f"w{suffix}"))
    yield bad("PyTorch's format called safetensors", _given(material.pth, "w.safetensors"))
    yield bad("safetensors called .pth", _given(material.safetensors, "w.pth"))
    for variant in ("mobile", "tiny", "small", "base", "large"):
        yield bad(f"pico's weights for {variant}", _given(material.pth, "w.pth", "--variant", variant))
    for classes in ("1", "9", "1000"):
        yield bad(f"ten classes, {classes} asked", _given(material.pth, "w.pth", "--num-classes", classes))
    yield from _places()
    yield from _archives(material, rng)
    yield from _headers(material, rng)


def _places() -> Iterator[BadInput]:
    def command(here: Path, path: object) -> Sequence[object]:
        return ["export", "--checkpoint", path, "--output", here / "out"]

    def pipe(here: Path) -> Sequence[object]:
        os.mkfifo(here / "w.pth")
        return command(here, here / "w.pth")

    def loop(here: Path) -> Sequence[object]:
        (here / "w.pth").symlink_to(here / "w.pth")
        return command(here, here / "w.pth")

    def folder(here: Path) -> Sequence[object]:
        (here / "w.pth").mkdir()
        return command(here, here / "w.pth")

    for make in (pipe, loop, folder):
        yield bad(f"a {make.__name__}", make)
    for path in ("/dev/zero", "/dev/null", "/proc/self/mem", "none.pth", "", "a" * 5000 + ".pth", "/etc/passwd/w.pth"):
        yield bad(f"the path {path[:20]!r}", lambda here, path=path: command(here, path))  # type: ignore[misc]


def _archives(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """PyTorch's format is a zip of a pickle and of numbers."""

    def rewritten(change: Callable[[str, bytes], bytes | None]) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(material.pth)) as old, zipfile.ZipFile(target, "w") as new:
            for member in old.namelist():
                content = change(member, old.read(member))
                if content is not None:
                    new.writestr(member, content)
        return target.getvalue()

    yield bad("no data.pkl", _given(rewritten(lambda name, old: None if name.endswith("data.pkl") else old), "w.pth"))
    yield bad("an empty data.pkl", _given(rewritten(lambda name, old: b"" if name.endswith("data.pkl") else old), "w.pth"))
    yield bad("no numbers", _given(rewritten(lambda name, old: None if "/data/" in name else old), "w.pth"))
    yield bad("numbers cut short", _given(rewritten(lambda name, old: old[:3] if "/data/" in name else old), "w.pth"))
    for size in sorted(rng.sample(range(2, 400), 8)):
        cut = rewritten(lambda name, old, size=size: old[:size] if name.endswith("data.pkl") else old)  # type: ignore[misc]
        yield bad(f"data.pkl cut at {size}", _given(cut, "w.pth"))
    # what else is in the zip's last record PyTorch does without
    listing = material.pth.rfind(b"PK\x05\x06")
    for offset in range(4):
        damaged = bytearray(material.pth)
        damaged[listing + offset] ^= 0xFF
        yield bad(f"byte {offset} of the zip's last record", _given(bytes(damaged), "w.pth"))
    for size in (1, 10, 21):
        yield bad(f"the last {size} bytes gone", _given(material.pth[:-size], "w.pth"))


def _headers(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """safetensors is a length, a JSON header, and numbers."""
    size = struct.unpack("<Q", material.safetensors[:8])[0]
    header, numbers = json.loads(material.safetensors[8 : 8 + size]), material.safetensors[8 + size :]
    name = next(key for key in header if key != "__metadata__")

    def file(values: object, length: int | None = None) -> bytes:
        text = values if isinstance(values, bytes) else json.dumps(values).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + numbers

    for length in (0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1):
        yield bad(f"a header of {length} bytes", _given(file(header, length), "w.safetensors"))
    for text in (b"[]", b"null", b"{", b"[" * 20000, b'{"a": 1}', b"\xff\xfe{}"):
        yield bad(f"the header {text[:9]!r}", _given(file(text), "w.safetensors"))
    for key, value in (
        ("dtype", "F99"),
        ("dtype", 3),
        ("shape", [-1]),
        ("shape", [2**40, 2**40]),
        ("shape", "wide"),
        ("data_offsets", [0, 2**50]),
        ("data_offsets", [4, 0]),
        ("data_offsets", [-4, 4]),
        ("data_offsets", []),
    ):
        yield bad(f"{key} {value}", _given(file({**header, name: {**header[name], key: value}}), "w.safetensors"))
    for _ in range(10):
        damaged = bytearray(material.safetensors)
        damaged[8 + rng.randrange(len(json.dumps(header, separators=(",", ":"))) - 2)] ^= 0x80
        yield bad("a byte of the header", _given(bytes(damaged), "w.safetensors"))


def states(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """Whole checkpoints of something else, or of a model that cannot be."""

    def stored(content: object) -> Callable[[Path], Sequence[object]]:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return _given(buffer.getvalue(), "w.pth")

    def changed(name: str, value: torch.Tensor) -> dict[str, Any]:
        return {**material.state, name: value}

    for content in (None, 1, "text", [], {}, (1, 2), {"model": {}}, {"model": None}, {"model": [1]}, {"model": {"a": 1}}):
        yield bad(f"holds {content!r}", stored(content))
    yield bad("a whole module", stored(torch.nn.Linear(2, 2)))
    yield bad("tensors in a list", stored(list(material.state.values())))
    yield bad("another model", stored({"layer1.0.conv1.weight": torch.ones(3, 3)}))
    yield bad("one name twice", stored({**material.state, **{f"module.{name}": value for name, value in material.state.items()}}))
    weights = sorted(
        name for name, value in material.state.items() if value.is_floating_point() and value.ndim and "num_batches" not in name
    )
    for name in rng.sample(weights, 12):
        yield bad(f"without {name}", stored({key: value for key, value in material.state.items() if key != name}))
    for name in rng.sample(weights, 6):
        yield bad(f"{name} renamed", stored({(f"{key}x" if key == name else key): value for key, value in material.state.items()}))
        yield bad(f"{name} of no elements", stored(changed(name, material.state[name][:0])))
        yield bad(f"{name} of whole numbers", stored(changed(name, material.state[name].int())))
        yield bad(f"{name} sparse", stored(changed(name, material.state[name].to_sparse())))
        yield bad(f"{name} complex", stored(changed(name, material.state[name].to(torch.complex64))))
        yield bad(f"{name} as a list", stored(changed(name, material.state[name].tolist())))
        yield bad(f"{name} a scalar", stored(changed(name, torch.tensor(1.0))))
    for name in rng.sample(weights, 8):
        value = material.state[name]
        yield bad(f"{name} of another shape", stored(changed(name, torch.cat([value, value]))))
        yield bad(f"{name} with an axis more", stored(changed(name, value[None])))
        for number in (float("nan"), float("inf")):
            broken = value.clone()
            broken.view(-1)[rng.randrange(broken.numel())] = number
            yield bad(f"{number} in {name}", stored(changed(name, broken)))
            yield bad(f"{number} in {name}, safetensors", _given(save(changed(name, broken)), "w.safetensors"))
    for name in rng.sample([name for name in weights if name.endswith("running_var")], 4):
        yield bad(f"negative {name}", stored(changed(name, -material.state[name] - 1)))


class _Runs:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def pickles(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """Pickles that call functions when they are loaded; each would leave the canary."""
    import runpy
    import shutil
    import subprocess

    script = "import os; open(os.environ['GMF_EDGE_CANARY'], 'w').close()"
    shell = 'touch "$GMF_EDGE_CANARY"'
    payloads: Mapping[str, Any] = {
        "os.system": _Runs(os.system, shell),
        "eval": _Runs(builtins.eval, f"exec({script!r})"),
        "exec": _Runs(builtins.exec, script),
        "subprocess": _Runs(subprocess.check_call, shell, -1),
        "getattr": _Runs(builtins.getattr, _Runs(builtins.__import__, "os"), "system"),
        "import": _Runs(builtins.__import__, "this"),
        "runpy": _Runs(runpy.run_path, "payload.py"),
        "rmtree": _Runs(shutil.rmtree, "nowhere-at-all"),
        "remove": _Runs(os.remove, "nowhere-at-all"),
        "open": _Runs(builtins.open, "code-was-run", "w"),
        "popen": _Runs(os.popen, shell),
        "torch.load": _Runs(torch.load, "other.pth"),
        "torch.hub": _Runs(torch.hub.load, "owner/name", "model"),
    }
    for name, payload in payloads.items():
        for place, content in (
            ("alone", payload),
            ("beside weights", {**material.state, "extra": payload}),
            ("under model", {"model": payload}),
        ):
            buffer = io.BytesIO()
            torch.save(content, buffer)
            yield bad(f"{name} {place}", _given(buffer.getvalue(), "w.pth"))
        for protocol in (0, 2, 4):
            yield bad(f"{name}, a bare pickle of protocol {protocol}", _given(pickle.dumps(payload, protocol), "w.pt"))
        legacy = io.BytesIO()
        torch.save({"model": payload}, legacy, _use_new_zipfile_serialization=False)
        yield bad(f"{name} in PyTorch's old format", _given(legacy.getvalue(), "w.bin"))
