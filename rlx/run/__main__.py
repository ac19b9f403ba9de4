"""`python -m rlx.run status DIR` and `python -m rlx.run verify DIR`: exit code 0 when all is well, else 1."""

import argparse
import sys

from ._inspect import status, verify


def main(argv: list[str] | None = None) -> int:
    """Print what `status` or `verify` finds; return 0 when all is well, else 1."""
    parser = argparse.ArgumentParser(prog="python -m rlx.run", description="Look at a training run.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("status", help="how far the run is; 0 when it runs or has ended well")
    one.add_argument("directory")
    two = commands.add_parser("verify", help="compare everything with its sha256; 0 when all is what was written")
    two.add_argument("directory")
    two.add_argument("--head", help="sha256 of an event, kept elsewhere, that must be in the chain")
    given = parser.parse_args(argv)
    found = status(given.directory) if given.command == "status" else verify(given.directory, head=given.head)
    print(found)
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main())
