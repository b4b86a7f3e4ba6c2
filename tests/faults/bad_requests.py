"""Options at their edges, and the small files that options name: ranges, recipes, labels, caches."""

from __future__ import annotations

import inspect
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from fault_harness import BadInput, Material, bad
from typer.models import ArgumentInfo

from gmf_edge.cli import app
from gmf_edge.precision.ranges import Provenance, Ranges, TensorRange, _digest
from gmf_edge.precision.recipe import Recipe

WRONG_NUMBERS = {int: ("x", "", "1.5", "1e3", "0x10", "--", "½", "9" * 5000), float: ("x", "", "1,5", "--", "1e", "½")}
WRONG_WORDS = ("x", "", "FP 16", "fp16 ", "--", "\n", "é", "fp16,int8")


def options(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """Every option of every verb with values that it cannot have."""
    for command in app.registered_commands:
        assert command.callback is not None
        verb = command.name or command.callback.__name__
        annotations = {name: found.annotation for name, found in inspect.signature(command.callback).parameters.items()}
        kinds = {name: found for name, annotation in annotations.items() if len(found := get_args(annotation)) == 2}
        places = [material.bundle for _, info in kinds.values() if isinstance(info, ArgumentInfo)]
        for name, (kind, info) in kinds.items():
            if isinstance(info, ArgumentInfo):
                continue
            option = next(iter(info.param_decls or ()), f"--{name.replace('_', '-')}")
            for value in _wrong_values(kind):
                yield bad(f"{verb} {option} {value[:9]!r}", _command(verb, *places, f"{option}={value}"), 2)
        # these two hand unknown options on to trtexec's reader, see _edges
        if verb not in ("build", "deploy"):
            yield bad(f"{verb} --no-such-option", _command(verb, *places, "--no-such-option"), 2)
        if places:
            yield bad(f"{verb} without its argument", _command(verb), 2)
    yield from _edges(material)


def _wrong_values(kind: Any) -> Sequence[str]:
    """Texts that are no value of an option's type."""
    single = (kind, *get_args(kind), *(inner for part in get_args(kind) for inner in get_args(part)))
    if any(isinstance(part, type) and issubclass(part, Enum) for part in single):
        return WRONG_WORDS
    return next((wrong for number, wrong in WRONG_NUMBERS.items() if number in single), ())


def _command(*arguments: object) -> Callable[[Path], Sequence[object]]:
    return lambda here: arguments


def _edges(material: Material) -> Iterator[BadInput]:
    """Values of the right type that cannot be meant."""
    most = str(2**63)
    edges = {
        "--image-size": (
            "0",
            "1",
            "31",
            "33",
            "-32",
            "4128",
            "1000000000",
            "32x",
            "x32",
            "32x32x32",
            "axb",
            "32x100000",
            "1e3",
            " ",
        ),
        "--num-classes": ("0", "-1", most, "1000001"),
        "--seed": ("-1", str(2**32), most, "-" + most),
        "--min-batch": ("0", "-1", "9", most),
        "--opt-batch": ("0", "-1", "9", most),
        "--max-batch": ("0", "-1", most, "4097"),
        "--crop-pct": ("0", "-0.1", "1.01", "nan", "inf", "-inf"),
        "--max-drop": ("-0.1", "100.1", "nan", "inf", "-inf"),
        "--eval-images": ("0", "-1"),
        "--io-dtype": ("float8", "", "fp16", "FLOAT32"),
    }
    for option, values in edges.items():
        for value in values:
            for verb in ("build", "export"):
                yield bad(f"{verb} {option} {value[:12]}", _command(verb, f"{option}={value}"), 2)
    for value in ("0", "-1", "nan", "-inf"):
        yield bad(f"--budget-minutes {value}", _command("export", "--precision=auto", f"--budget-minutes={value}"), 2)
    for value in ("0", "1", "31", "-5"):
        yield bad(f"--calibration-images {value}", _command("calibrate", f"--calibration-images={value}"), 2)
    for value in ("nan", "inf", "-1", "-inf"):
        yield bad(f"bench --duration {value}", _command("bench", material.bundle, f"--duration={value}"), 2)
        yield bad(f"bench --warm-up {value}", _command("bench", material.bundle, f"--warm-up={value}"), 2)
    for value in ("0", "-1"):
        yield bad(f"bench --iterations {value}", _command("bench", material.bundle, f"--iterations={value}"), 2)
        yield bad(f"predict --top {value}", _command("predict", material.bundle, "a.png", f"--top={value}"), 2)
        yield bad(f"bench --batch {value}", _command("bench", material.bundle, f"--batch={value}"), 1, 2)
    for value in ("0", "-1", "101", "nan", "inf"):
        yield bad(f"bench --percentile {value}", _command("bench", material.bundle, f"--percentile={value}"), 2)
    yield bad("bench --batch 9 of 8", _command("bench", material.bundle, "--batch=9", "--duration=0"))
    for pair in (("--fp16", "--fp32"), ("--fp16", "--int8"), ("--int8", "--precision=fp16"), ("--fp16", "--precision=auto")):
        yield bad(f"{pair}", _command("export", *pair), 2)
    for name in ("--calibration-data=x", "--ranges=x"):
        yield bad(f"{name} for FP16", _command("export", "--fp16", name), 2)
    for arguments in (
        ("no-such-verb",),
        ("--no-such-option",),
        ("kernels",),
        ("kernels", "no-such-verb"),
        ("build", "surplus"),
        ("",),
    ):
        if arguments != ("kernels",):
            yield bad(f"{arguments}", _command(*arguments), 2)
    for option in (
        "--shapes=x",
        "--minShapes=image:1x3x64",
        "--optShapes=image:ax3x64x64",
        "--memPoolSize=workspace:-1",
        "--memPoolSize=x",
        "--builderOptimizationLevel=99",
        "--builderOptimizationLevel=x",
        "--noSuchOptionOfTrtexec",
        "--warmUp=5",
        "--fp8",
        "surplus",
    ):
        for verb, places in (("build", ()), ("deploy", (material.bundle,))):
            yield bad(f"{verb} {option}", _command(verb, *places, option), 2)
    for option in ("--fp16", "--shapes=image:1x3x64x64"):
        yield bad(f"deploy {option}", _command("deploy", material.bundle, option), 2)
    yield from _outputs(material)


def _outputs(material: Material) -> Iterator[BadInput]:
    """Places that must not be written, or cannot be."""

    def precious(verb: Sequence[object], kind: str) -> Callable[[Path], Sequence[object]]:
        def make(here: Path) -> Sequence[object]:
            if kind == "file":
                (here / "mine").write_text("years of work")
            else:
                (here / "mine").mkdir()
                (here / "mine" / "thesis.txt").write_text("years of work")
            return [*verb, "--output", here / "mine"]

        return make

    verbs = (("build",), ("export",), ("deploy", material.bundle))
    for verb in verbs:
        for kind in ("file", "folder"):
            yield bad(f"{verb[0]} over a {kind} of the user's", precious(verb, kind))
    for place in ("/dev/null/out", "/proc/none/out", "/etc/passwd/out", "/sys/out", "a" * 300, "b/" * 3000):
        for verb in (("export", "--fp16"), ("deploy", material.bundle)):
            yield bad(f"{verb[0]} --output {place[:12]}", _command(*verb, "--output", place), 1, 4)
    yield bad("calibrate --output over a folder", lambda here: ["calibrate", "--output", here / "cwd", "--recipe", "none"], 2)


def caches(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """A cache or a temporary folder that cannot be one."""

    def export(here: Path) -> Sequence[object]:
        return ["export", "--fp16", "--output", here / "out"]

    for place in ("/dev/null", "/dev/null/x", "/etc/passwd", "/proc", "/proc/none", "/sys/none", "a" * 300, "/" + "b/" * 3000):
        yield bad(f"GMF_EDGE_CACHE={place[:20]}", export, 4, GMF_EDGE_CACHE=place)


def small_file(option: Sequence[str], content: bytes, name: str) -> Callable[[Path], Sequence[object]]:
    def make(here: Path) -> Sequence[object]:
        (here / name).write_bytes(content)
        return [*option[:-1], option[-1], here / name, "--output", here / "out"]

    return make


def _no_files(option: Sequence[str], name: str, status: int) -> Iterator[BadInput]:
    """Things that are no file, where one is wanted."""

    def pipe(here: Path) -> Sequence[object]:
        os.mkfifo(here / name)
        return [*option, here / name, "--output", here / "out"]

    def folder(here: Path) -> Sequence[object]:
        (here / name).mkdir()
        return [*option, here / name, "--output", here / "out"]

    def loop(here: Path) -> Sequence[object]:
        (here / name).symlink_to(here / name)
        return [*option, here / name, "--output", here / "out"]

    def device(here: Path) -> Sequence[object]:
        (here / name).symlink_to("/dev/zero")
        return [*option, here / name, "--output", here / "out"]

    for make in (pipe, folder, loop, device):
        yield bad(f"a {make.__name__}", make, status)
    for path in ("none", "", "/proc/self/mem", "a" * 5000):
        yield bad(f"the path {path[:9]!r}", lambda here, path=path: [*option, path, "--output", here / "out"], status)  # type: ignore[misc]


def ranges(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """Files for --ranges."""
    option = ("export", "--int8", "--ranges")
    origin = Provenance("a" * 64, "b" * 64, "c" * 64, {"image_size": [64, 64]}, "mse", 0.0, 0.0, 500, 0)
    content = Ranges(origin, {f"x{i}": TensorRange(1.0, 2.0, (1.0, 2.0), (0.1, 0.2)) for i in range(5)}, {"y": (1.0,)}).to_json()

    def signed(values: Any) -> bytes:
        return json.dumps({"sha256": _digest(values), **values}).encode()

    good = signed(content)
    yield bad("of another checkpoint", small_file(option, good, "r.json"))
    for _ in range(15):
        size = rng.randrange(1, len(good) - 1)
        yield bad(f"cut at {size}", small_file(option, good[:size], "r.json"))
        damaged = bytearray(good)
        damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(7)
        yield bad("a bit", small_file(option, bytes(damaged), "r.json"))
    for name in content:
        for value in (None, 3, "x", [], [1], {"a": 1}, {"a": {}}):
            yield bad(f"{name} = {value}", small_file(option, signed({**content, name: value}), "r.json"))
        yield bad(f"no {name}", small_file(option, signed({key: value for key, value in content.items() if key != name}), "r.json"))
    for number in (-1.0, float("nan"), float("inf"), None, "x", [], True):
        tensor = {"threshold": number, "largest": 1.0, "channel_largest": [1.0], "channel_mean": [0.0]}
        yield bad(f"the range {number}", small_file(option, signed({**content, "tensors": {"x": tensor}}), "r.json"))
    for text in (b"", b"null", b"[]", b"1", b"[" * 100_000, b"\xff\xfe", rng.randbytes(99)):
        yield bad(f"{text[:9]!r}", small_file(option, text, "r.json"))
    yield from _no_files(option, "r.json", 1)


def recipes(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """Files and names for --recipe."""
    option = ("calibrate", "--recipe")
    for name, value in Recipe().to_json().items():
        kinds = {
            bool: ("1", '"yes"', "[]"),
            int: ("0", "-3", "1.5", "true", '"16"'),
            float: ("-1.0", "nan", "inf", '"x"', "true", "101.0"),
        }
        wrong = kinds.get(type(value), ("3", "true", "[1]", '[["a"]]', '"nonsense"', "{}"))
        for text in wrong:
            yield bad(f"{name} = {text}", small_file(option, f"{name} = {text}\n".encode(), "r.toml"), 2)
    for text in (
        b"x = 1",
        b"x",
        b"= 1",
        b"[" * 10_000,
        b"qkv = true\nqkv = true",
        b"\xff\xfe",
        rng.randbytes(200),
        b"[mlp]\na = 1",
        b"\0",
    ):
        yield bad(f"{text[:9]!r}", small_file(option, text, "r.toml"), 2)
    yield bad("two megabytes", small_file(option, b"#" * 2**21, "r.toml"), 2)
    for name in ("nonsense", "", "BALANCED", "balanced.json", "balanced ", "../balanced"):
        yield bad(f"the name {name!r}", _command(*option, name), 2)
    yield from _no_files(option, "r.toml", 2)


def labels(material: Material, rng: random.Random) -> Iterator[BadInput]:
    """Files for --labels."""
    option = ("export", "--labels")
    ten = [f"class {i}" for i in range(10)]
    for count in (0, 1, 9, 11, 1000):
        yield bad(f"{count} names", small_file(option, "\n".join(f"c{i}" for i in range(count)).encode(), "l.txt"))
    for place in (0, 4, 9):
        yield bad(
            f"name {place} is empty", small_file(option, "\n".join([*ten[:place], "", *ten[place + 1 :]]).encode() + b"\n", "l.txt")
        )
        yield bad(
            f"name {place} is a space", small_file(option, "\n".join([*ten[:place], "  ", *ten[place + 1 :]]).encode(), "l.txt")
        )
    for text in (b"\xff\xfe", bytes(100), rng.randbytes(500), "\n".join(ten).encode("utf-16")):
        yield bad(f"{text[:9]!r}", small_file(option, text, "l.txt"))
    yield bad("seventeen megabytes", small_file(option, b"a\n" * (17 << 19), "l.txt"))
    yield from _no_files(option, "l.txt", 1)
