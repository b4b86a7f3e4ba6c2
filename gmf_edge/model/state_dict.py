"""Checkpoint files -> a state dict; no file's code is ever run.

file           read by
.pth .pt .bin  torch.load(weights_only=True): torch's restricted unpickler, which builds tensors and plain containers alone
.safetensors   safetensors, which holds tensors alone

A .pth is a state dict, or has one under "model", "state_dict" or "model_ema", with optimizer, scheduler and settings beside it
(upstream's training files: GroupMixFormer, utils.py, save_checkpoint). Names may carry the prefixes of wrappers that were round the
model: "module." (DistributedDataParallel, moving averages), "model." (training frameworks), "_orig_mod." (torch.compile).
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from gmf_edge.errors import CheckpointError

PICKLE_SUFFIXES = (".pth", ".pt", ".bin")
SAFETENSORS_SUFFIX = ".safetensors"
# in the order of preference: the weights that upstream evaluates are under "model"
SECTIONS = ("model", "state_dict", "model_ema")
WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")
LISTED_NAMES = 10
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
# torch.save's form before zip files is a row of pickles, of which this number is the first
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_REPLACE_FILE = "download or copy it again"
_WEIGHTS_ALONE = 'where the file is trusted, save the weights alone: torch.save({"model": model.state_dict()}, FILE)'


class _Inert:
    """Stands in for a setting's class while a file is read: takes whatever it is given and does nothing."""

    def __init__(self, *values: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _InertMapping:
    """The same for a class derived from dict; the unpickler fills only plain dicts."""

    def __new__(cls, *values: object) -> OrderedDict[str, Any]:  # type: ignore[misc]
        return OrderedDict()


# Settings that training files commonly carry beside the weights: upstream's own (yacs), timm's and DETR's (argparse, pathlib), best
# accuracies as NumPy scalars, and the logs of OpenMMLab's trainers (HistoryBuffer: NumPy arrays, and methods by getattr). Their names
# are answered with the two classes above; their own code is not even imported.
_SETTINGS: tuple[tuple[Any, str], ...] = (
    (_InertMapping, "yacs.config.CfgNode"),
    (_Inert, "argparse.Namespace"),
    (_Inert, "pathlib.PosixPath"),
    (_Inert, "pathlib.PurePosixPath"),
    (_Inert, "pathlib.WindowsPath"),
    (_Inert, "numpy.core.multiarray.scalar"),
    (_Inert, "numpy._core.multiarray.scalar"),
    (_Inert, "numpy.dtype"),
    (_Inert, "numpy.core.multiarray._reconstruct"),
    (_Inert, "numpy._core.multiarray._reconstruct"),
    (_Inert, "numpy.ndarray"),
    (_Inert, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_Inert, "builtins.getattr"),
    (_Inert, "__builtin__.getattr"),
)
# what torch's restricted unpickler answers by itself, for naming the rest in an error
_PLAIN_GLOBALS = re.compile(
    r"torch\.(_utils\._rebuild_\w+|\w+Storage|storage\.\w+|Size|device|float\w*|bfloat16|int\w+|uint8|bool|nn\.parameter\.Parameter)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|(__builtin__|builtins)\.(set|bytearray|complex)"
)


def load_state(path: Path, *, section: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The state dict of a checkpoint file, on the CPU, wrapper prefixes removed, floating-point tensors in FP32.

    Args:
        path: .pth, .pt, .bin or .safetensors.
        section: the key whose weights to take; None for the first of SECTIONS that is there, or the file itself.

    Returns:
        Parameters and buffers by name, and what was found, in words.

    Raises:
        CheckpointError: there is no such file, it cannot be read, is damaged, would run code, has no tensors, or has tensors that
            are not finite.
    """
    path = Path(path)
    _refuse_unreadable(path)
    if path.suffix.lower() == SAFETENSORS_SUFFIX:
        content: object = _read_safetensors(path)
    elif path.suffix.lower() in PICKLE_SUFFIXES:
        content = _read_pickle(path)
    else:
        raise CheckpointError(
            f"{path} has the suffix {path.suffix!r}, which is no checkpoint's",
            f"give a file that ends in {', '.join(PICKLE_SUFFIXES)} or {SAFETENSORS_SUFFIX}",
        )
    found, words = _find_section(content, path, section)
    state, removed = _without_prefixes(found, path)
    if removed:
        words.append(" and ".join(f'"{prefix}"' for prefix in removed) + " prefixes removed")
    if isinstance(content, Mapping) and isinstance(content.get("epoch"), int):
        words.append(f"epoch {content['epoch']}")
    state, converted = _as_fp32(state, path)
    words += [f"{name} weights became FP32" for name in converted]
    return state, ", ".join(words)


def _refuse_unreadable(path: Path) -> None:
    """What can be said before anything is parsed."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint", "name the file in it")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", "check the path")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file", "name a checkpoint file")
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})", "check its permissions") from error
    if not head:
        raise CheckpointError(f"{path} is empty", _REPLACE_FILE)
    start = head.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file it points to", "fetch it with 'git lfs pull'")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint", "download the file itself, not the page round it")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path, device="cpu")
        return tensors
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({_one_line(error)})", f"it may be truncated: {_REPLACE_FILE}"
        ) from error


def _read_pickle(path: Path) -> object:
    """What torch's restricted unpickler makes of the file.

    Raises:
        CheckpointError: not a file that torch.save wrote, a damaged one, or one that asks for code.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    is_zip = head.startswith(_ZIP_MAGIC)
    if is_zip and not zipfile.is_zipfile(path):
        # a zip's table of contents is at its end
        raise CheckpointError(f"{path} is truncated: its last part is missing", _REPLACE_FILE)
    if not is_zip and not head.startswith(_PICKLE_MAGIC):
        if len(head) > 8 and head[8:9] == b"{":
            raise CheckpointError(f"{path} is a safetensors file", f"rename it to {path.stem}{SAFETENSORS_SUFFIX}")
        raise CheckpointError(f"{path} is not a PyTorch checkpoint", "give a file that torch.save wrote, or a .safetensors file")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(_SETTINGS)):
            # notes about old storage classes, which no user can act on
            warnings.simplefilter("ignore")
            # mapped, so that an optimizer's state beside the weights is never read from the disk
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except MemoryError:
        raise
    except Exception as error:
        # torch ends a damaged file with any of a dozen exception types, and every one of them means: not readable
        raise _pickle_problem(path, is_zip, error) from error


def _pickle_problem(path: Path, is_zip: bool, error: Exception) -> CheckpointError:
    """Why the restricted unpickler refused, found by reading the file's opcodes (never by running them)."""
    if is_zip and _has_member(path, "constants.pkl"):
        return CheckpointError(f"{path} is a TorchScript program, not a state dict", "give the checkpoint that it was made from")
    settings = {name for _, name in _SETTINGS}
    asked = sorted(_pickled_globals(path, is_zip) - settings)
    foreign = [name for name in asked if not _PLAIN_GLOBALS.fullmatch(name)]
    if any(name.startswith("torch.nn.modules.") for name in foreign):
        return CheckpointError(
            f"{path} is a whole pickled model, not a state dict: loading it would run code, and none was run", _WEIGHTS_ALONE
        )
    if foreign:
        names = some_names(foreign, 4)
        return CheckpointError(
            f"{path} asks to run code when it is loaded ({names}); it was not loaded and nothing was run", _WEIGHTS_ALONE
        )
    if not is_zip:
        with open(path, "rb") as file:
            if file.read(len(_LEGACY_MAGIC)) != _LEGACY_MAGIC:
                return CheckpointError(f"{path} is a pickle, but not one that torch.save wrote", _WEIGHTS_ALONE)
    return CheckpointError(f"{path} is truncated or damaged ({_one_line(error)})", _REPLACE_FILE)


def _has_member(path: Path, name: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(member).name == name for member in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _pickled_globals(path: Path, is_zip: bool) -> set[str]:
    """Names of the functions and classes that the file's pickles ask for, as "module.name"."""
    try:
        if not is_zip:
            with open(path, "rb") as file:
                return _globals_of_stream(file)
        found: set[str] = set()
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(".pkl"):
                    with archive.open(member) as stream:
                        found |= _globals_of_stream(stream)  # type: ignore[arg-type]
        return found
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError):
        return set()


def _globals_of_stream(stream: BinaryIO) -> set[str]:
    """The same of pickles that follow one another, as far as they can be read."""
    found: set[str] = set()
    while True:
        strings: list[str] = []
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    found.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    # its module and name are the strings before it, unless they come from the memo
                    found.add(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
        except Exception:
            # the end of the pickles, or of what is readable of them
            return found


def _find_section(content: object, path: Path, section: str | None) -> tuple[dict[str, Tensor], list[str]]:
    """The mapping that holds the tensors, and words on where it was."""
    words: list[str] = []
    wanted = section
    # a section within a section: {"model": {"state_dict": ...}}
    for _ in range(3):
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict", _WEIGHTS_ALONE)
        keys = [key for key in SECTIONS if isinstance(content.get(key), Mapping)]
        if wanted is not None:
            if not isinstance(content.get(wanted), Mapping):
                raise CheckpointError(f'{path} has nothing under "{wanted}"', f"it has {some_names([str(k) for k in content], 8)}")
            taken = wanted
            wanted = None
        elif any(isinstance(value, Tensor) for value in content.values()):
            tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
            return tensors, words or ["bare weights"]
        elif keys:
            taken = keys[0]
        else:
            break
        rest = [key for key in keys if key != taken]
        words.append(f'under "{taken}"' + (f' ("{rest[0]}" is there too and was not taken)' if rest else ""))
        content = content[taken]
    names = [str(key) for key in content] if isinstance(content, Mapping) else []
    raise CheckpointError(
        f"{path} has no tensors: its top-level keys are {some_names(names, 8) or 'none'}",
        f"give a state dict, or one under {', '.join(SECTIONS)}",
    )


def _without_prefixes(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Names without the prefixes of wrappers, and the prefixes that were there."""
    removed: dict[str, None] = {}
    bare: dict[str, Tensor] = {}
    for name, value in state.items():
        short = name
        while (prefix := next((p for p in WRAPPER_PREFIXES if short.startswith(p)), "")) and len(short) > len(prefix):
            short = short[len(prefix) :]
            removed[prefix] = None
        if short in bare:
            raise CheckpointError(f"{path} has {short} twice, with and without a prefix", "save one model's state dict alone")
        bare[short] = value
    return bare, list(removed)


def _as_fp32(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Floating-point tensors in FP32, each finite; and the names of the types that were converted."""
    converted: dict[str, None] = {}
    result: dict[str, Tensor] = {}
    broken: list[str] = []
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            remedy = "save the weights as they were before they were quantised or made sparse"
            raise CheckpointError(f"{path}: {name} is not a dense tensor", remedy)
        value = value.detach()
        if value.is_floating_point():
            if value.dtype is not torch.float32:
                converted[type_name(value.dtype)] = None
                value = value.float()
            if not bool(torch.isfinite(value).all()):
                broken.append(name)
        result[name] = value
    if broken:
        names = some_names(broken, LISTED_NAMES)
        raise CheckpointError(f"{path} has NaN or infinite values in {names}", "the training diverged: take an earlier checkpoint")
    return result, list(converted)


def type_name(dtype: torch.dtype) -> str:
    """What users call a dtype: FP16, BF16, FP64, else torch's word."""
    known = {torch.float16: "FP16", torch.bfloat16: "BF16", torch.float64: "FP64"}
    return known.get(dtype, str(dtype).removeprefix("torch."))


def some_names(names: Iterable[str], most: int) -> str:
    """The first names, and how many there are where some were left out."""
    every = list(names)
    shown = ", ".join(every[:most])
    return shown if len(every) <= most else f"{shown}, ... ({len(every)} in all)"


def _one_line(error: BaseException) -> str:
    """The first line of an error's message, short."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:120].rstrip(" .")
