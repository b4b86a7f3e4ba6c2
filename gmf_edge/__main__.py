"""`python -m gmf_edge` and the command `gmf-edge`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave with its exit status."""
    from gmf_edge.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
