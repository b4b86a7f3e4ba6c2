"""The command line: parse, one library call, print. The same calls work from Python.

Results and the last line (PASSED or FAILED and why) go to standard output, progress and errors to standard error. Exit status: 0 done,
1 failure, 2 usage, 3 accuracy, 4 environment, 5 worse than what it was compared with, 128 and its number where a signal ended it (130
Ctrl-C, 143 SIGTERM).

options    every option that several verbs share, once
screen     what is printed
signals    interruptions
summary    a result on one screen
prepare deploy bench report inspect kernels package   the verbs (bench_screen and predictions: what some of them print)
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gmf_edge import __version__
from gmf_edge.cli.bench import bench, compare
from gmf_edge.cli.deploy import deploy, predict, verify
from gmf_edge.cli.grouped import grouped
from gmf_edge.cli.inspect import doctor, inspect
from gmf_edge.cli.kernels import compile_kernels
from gmf_edge.cli.package import package
from gmf_edge.cli.prepare import build, calibrate, export
from gmf_edge.cli.report import report
from gmf_edge.cli.screen import RegressionShown, ResultOutsideGate, err, out, print_json, show_error
from gmf_edge.cli.signals import Interrupted, interruptible
from gmf_edge.errors import EnvironmentProblem, GmfEdgeError, SpecError

app = typer.Typer(
    name="gmf-edge",
    help="GroupMixFormer on real hardware: from a checkpoint to a verified, measured engine in one folder.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
kernels = typer.Typer(help="The GPU kernels of Group-Mix Attention.", no_args_is_help=True, rich_markup_mode=None)
# options in trtexec's spelling are read by engines.tensorrt.options
TAKES_TRTEXEC_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}
# every error of reading the command line; Typer's own copy of Click names no public base class
_CommandLineError: Any = typer.BadParameter.__mro__[2]
# how torch, ONNX Runtime and the C library say what Python calls MemoryError
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|bad_alloc|bad allocation|Cannot allocate memory|can't start new thread")
_FEWER_FILES = "allow more open files (ulimit -n), or run less at the same time"
_FREE_SPACE = "free space there, or set --output, GMF_EDGE_CACHE or TMPDIR to another place"
_MACHINE_ERRORS = {
    errno.EMFILE: _FEWER_FILES,
    errno.ENFILE: _FEWER_FILES,
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: _FREE_SPACE,
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "give yourself permission for it, or choose another place",
    errno.EPERM: "give yourself permission for it, or choose another place",
    errno.EIO: "check the disk",
}

for verb, settings in (
    (build, TAKES_TRTEXEC_OPTIONS),
    (export, None),
    (calibrate, None),
    (deploy, TAKES_TRTEXEC_OPTIONS),
    (verify, None),
    (predict, None),
    (bench, None),
    (compare, None),
    (report, None),
    (package, None),
    (inspect, None),
    (doctor, None),
):
    app.command(context_settings=settings)(grouped(verb))
kernels.command("compile")(compile_kernels)
app.add_typer(kernels, name="kernels")


@kernels.callback()
def _kernels() -> None:
    pass


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"gmf-edge {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name.

    Returns:
        The exit status.
    """
    as_json = "--json" in arguments
    with interruptible() as caught:
        try:
            status = _run(list(arguments))
            # Typer itself turns a KeyboardInterrupt into an exit
            return _interrupted(caught[0], as_json) if caught else status
        except (Exception, typer.Abort, KeyboardInterrupt) as error:
            # by whatever exception a library hands it on
            interruption = caught[0] if caught else Interrupted(signal.SIGINT)
            if caught or isinstance(error, (typer.Abort, KeyboardInterrupt)):
                return _interrupted(interruption, as_json)
            return _fail(_as_ours(error), as_json)


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        status = command.main(args=arguments or ["--help"], prog_name="gmf-edge", standalone_mode=False)
    except typer.Exit as end:
        return end.exit_code
    return status if isinstance(status, int) else 0


def _as_ours(error: Exception) -> GmfEdgeError:
    """Any exception as an error with a remedy and the documented exit status."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, _CommandLineError):
        return _usage_error(error)
    if isinstance(error, GmfEdgeError):
        return error
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return GmfEdgeError(f"out of memory{f' ({text})' if text else ''}", "free memory, or lower --max-batch")
    if isinstance(error, ImportError):
        return EnvironmentProblem(
            f"{error.name or 'a package'} cannot be loaded: {text}", "see 'gmf-edge doctor'; free memory, allow more open files"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        place = os.fsdecode(error.filename or "a path")
        return GmfEdgeError(f"{place[:100]}: {error.strerror}", "check the path")
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        place = os.fsdecode(error.filename) if error.filename else "a file"
        return EnvironmentProblem(f"{place}: {error.strerror}", _MACHINE_ERRORS[error.errno])
    for number, remedy in _MACHINE_ERRORS.items():
        # libraries in C++ and Rust hand on what the system said as text
        if os.strerror(number) in text:
            return EnvironmentProblem(text, remedy)
    # a fault of ours: still one clear line, and the way to more
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where is not None else "unknown place"
    problem = f"unexpected {type(error).__name__} at {place}: {text}"
    return GmfEdgeError(problem, "please report this with the output of 'gmf-edge doctor'")


def _one_line(text: str) -> str:
    printable = "".join(letter if letter.isprintable() else " " if letter.isspace() else repr(letter)[1:-1] for letter in text)
    return printable.encode("utf-8", "backslashreplace").decode()


def _interrupted(interruption: Interrupted, as_json: bool) -> int:
    status = interruption.exit_status
    if as_json:
        print_json({"error": f"interrupted by {interruption}", "remedy": "run it again", "exit_status": status})
    else:
        err.print(f"interrupted by {interruption}; nothing was left behind", markup=False)
    return status


def _fail(error: GmfEdgeError, as_json: bool) -> int:
    if isinstance(error, ResultOutsideGate | RegressionShown):
        return error.exit_status
    if as_json:
        with contextlib.suppress(OSError):
            print_json({"error": error.problem, "remedy": error.remedy, "exit_status": error.exit_status})
            return error.exit_status
    # one line each and printable, whatever is in a file's name; and standard output may be what cannot be written
    with contextlib.suppress(OSError):
        show_error(GmfEdgeError(_one_line(error.problem), _one_line(error.remedy)))
    return error.exit_status


def _usage_error(error: Any) -> SpecError:
    """What Click found wrong, and whose --help has more."""
    path = error.ctx.command_path if error.ctx is not None else "gmf-edge"
    problem = error.format_message().rstrip(".").replace("Value error, ", "")
    return SpecError(problem, f"see '{path} --help'")
