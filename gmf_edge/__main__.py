"""`python -m gmf_edge` and the command `gmf-edge`."""

from __future__ import annotations

import io
import os
import signal
import sys


def main() -> None:
    """Run the command line and leave with its exit status."""
    for stream in (sys.stdout, sys.stderr):
        # a file's name may hold what the terminal's encoding has not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        from gmf_edge.cli import run

        status = run(sys.argv[1:])
        # said and done: an interruption of the interpreter's own end would only make noise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt as interruption:  # while modules are imported, or a second one
        status = getattr(interruption, "exit_status", 128 + signal.SIGINT)
    try:
        sys.stdout.flush()
    except OSError:
        # nobody reads on, or a full disk: what is still in the buffer would fail once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or 1
    sys.exit(status)


if __name__ == "__main__":
    main()
