"""The command line: parse, one library call, print. The same calls work from Python.

Results and the last line (PASSED or FAILED and why) go to standard output, progress and errors to standard error. Exit status: 0 done,
1 failure, 2 usage, 3 accuracy, 4 environment, 5 worse than what it was compared with.

options    every option that several verbs share, once
screen     what is printed
summary    a result on one screen
prepare deploy bench inspect kernels package   the verbs (bench_screen and predictions: what some of them print)
"""

from __future__ import annotations

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
from gmf_edge.cli.screen import RegressionShown, ResultOutsideGate, err, out, print_json, show_error
from gmf_edge.errors import GmfEdgeError, SpecError

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

for verb, settings in (
    (build, TAKES_TRTEXEC_OPTIONS),
    (export, None),
    (calibrate, None),
    (deploy, TAKES_TRTEXEC_OPTIONS),
    (verify, None),
    (predict, None),
    (bench, None),
    (compare, None),
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
    command = typer.main.get_command(app)
    try:
        status = command.main(args=list(arguments) or ["--help"], prog_name="gmf-edge", standalone_mode=False)
    except typer.Exit as end:
        return end.exit_code
    except (typer.Abort, KeyboardInterrupt):
        err.print("interrupted; nothing was left behind")
        return 130
    except _CommandLineError as error:
        return _fail(_usage_error(error), as_json)
    except GmfEdgeError as error:
        return _fail(error, as_json)
    except MemoryError:
        return _fail(GmfEdgeError("out of memory", "free memory, or lower --max-batch"), as_json)
    except Exception as error:  # a fault of ours: still one clear line, and the way to more
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where is not None else "unknown place"
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        problem = f"unexpected {type(error).__name__} at {place}: {text}"
        return _fail(GmfEdgeError(problem, "please report this with the output of 'gmf-edge doctor'"), as_json)
    return status if isinstance(status, int) else 0


def _fail(error: GmfEdgeError, as_json: bool) -> int:
    if isinstance(error, ResultOutsideGate | RegressionShown):
        return error.exit_status
    if as_json:
        print_json({"error": error.problem, "remedy": error.remedy, "exit_status": error.exit_status})
        return error.exit_status
    show_error(error)
    return error.exit_status


def _usage_error(error: Any) -> SpecError:
    """What Click found wrong, and whose --help has more."""
    path = error.ctx.command_path if error.ctx is not None else "gmf-edge"
    problem = error.format_message().rstrip(".").replace("Value error, ", "")
    return SpecError(problem, f"see '{path} --help'")
