"""`python -m rlx.export report FILE`: size and latency of each signature of a TensorFlow Lite file."""

import argparse
import sys

from ._report import report


def main(argv: list[str] | None = None) -> int:
    """Print what `report` finds; 0, or 2 when the file cannot be read or run."""
    parser = argparse.ArgumentParser(prog="python -m rlx.export", description="Look at an exported file.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("report", help="size and latency of each signature, through LiteRT on this machine")
    one.add_argument("file")
    one.add_argument("--repeats", type=int, default=50, help="calls of each signature (50)")
    one.add_argument("--threads", type=int, default=1, help="of the interpreter (1)")
    given = parser.parse_args(argv)
    try:
        print(report(given.file, repeats=given.repeats, threads=given.threads))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"rlx.export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
