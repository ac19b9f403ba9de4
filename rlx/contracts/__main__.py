"""`python -m rlx.contracts check|hash|diff|card|new-key|sign|verify-signature|verify-log FILE ...`.

Exit codes: 0 all is well; 1 refuted, changed in more than words, or not what was signed or logged; 2 the command or a
file cannot be understood.
"""

import argparse
import importlib
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._audit import verify_log
from ._card import card
from ._consistency import Check
from ._contract import Contract
from ._diff import diff
from ._digest import digest
from ._files import load
from ._sign import Signature, load_private_key, load_public_key, new_key, sign, verify_signature
from ._verify import verify

_WIDTH = 80


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    given = _parser().parse_args(argv)
    try:
        for module in given.imports:
            importlib.import_module(module)
        return given.run(given)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"rlx.contracts: {error}", file=sys.stderr)
        return 2


def _check(given: argparse.Namespace) -> int:
    contract = _contract(given.file)
    checks = verify(contract)
    print(f"{contract.name} {contract.version}\n{digest(contract)}\n")
    for check in checks:
        print(_line(check))
    counts = {verdict: sum(c.verdict == verdict for c in checks) for verdict in ("PROVED", "REFUTED", "UNKNOWN")}
    print(f"\n{counts['PROVED']} proved, {counts['REFUTED']} refuted, {counts['UNKNOWN']} unknown")
    return 1 if counts["REFUTED"] or (given.strict and counts["UNKNOWN"]) else 0


def _line(check: Check) -> str:
    text = f"{check.verdict:<8} {check.name}: {check.detail}"
    return textwrap.fill(text, _WIDTH, subsequent_indent=" " * 9, break_long_words=False)


def _hash(given: argparse.Namespace) -> int:
    print(digest(_contract(given.file)))
    return 0


def _diff(given: argparse.Namespace) -> int:
    found = diff(_contract(given.file), _contract(given.other))
    print(found)
    return 0 if not found or found.kind == "neutral" else 1


def _card(given: argparse.Namespace) -> int:
    contract = _contract(given.file)
    out = Path(given.out)
    if out.suffix not in (".html", ".md"):
        raise ValueError(f"--out: {out} should end in .html or .md")
    text = card(contract, checks=verify(contract), format="html" if out.suffix == ".html" else "markdown")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(out)
    return 0


def _new_key(given: argparse.Namespace) -> int:
    new_key(given.file)
    print(f"{given.file} (private, mode 0600) and {given.file}.pub (public)")
    return 0


def _sign(given: argparse.Namespace) -> int:
    signature = sign(_contract(given.file), load_private_key(given.key))
    out = given.out or f"{given.file}.sig"
    Path(out).write_text(json.dumps(signature.to_dict(), indent=1) + "\n", encoding="utf-8")
    print(f"{signature.digest} signed in {out}")
    return 0


def _verify_signature(given: argparse.Namespace) -> int:
    signature = Signature.from_dict(json.loads(Path(given.signature).read_text(encoding="utf-8")))
    good = verify_signature(_contract(given.file), signature, load_public_key(given.public))
    print("signed by this key" if good else "NOT signed by this key")
    return 0 if good else 1


def _verify_log(given: argparse.Namespace) -> int:
    known = {"size": given.size, "root": given.root, "head": given.head}
    if given.checkpoint:
        known = json.loads(Path(given.checkpoint).read_text(encoding="utf-8")) | {k: v for k, v in known.items() if v}
    report = verify_log(given.file, **{name: known.get(name) for name in ("size", "root", "head")})
    print(report)
    return 0 if report.ok else 1


def _contract(file: str) -> Contract:
    """The contract in a file, or the one that `module:name` is or returns."""
    module, colon, name = file.partition(":")
    if not colon or Path(file).exists():
        return load(file)
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{file}: there is no {part!r}")
        found = getattr(found, part)
    found = found() if callable(found) and not isinstance(found, Contract) else found
    if not isinstance(found, Contract):
        raise ValueError(f"{file}: expected a Contract or a function that returns one, got {type(found).__name__}")
    return found


def _parser() -> argparse.ArgumentParser:
    about = "Check, hash, compare, show, sign a contract; verify an audit log."
    after = "FILE is .toml, .json, or module:name of Python that you trust."
    parser = argparse.ArgumentParser(prog="python -m rlx.contracts", description=about, epilog=after)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=about, epilog=after)
        one.set_defaults(run=run)
        one.add_argument("file", metavar="FILE")
        one.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE")
        return one

    command("check", _check, "prove or refute what the contract claims").add_argument(
        "--strict", action="store_true", help="exit 1 for what is unknown, too"
    )
    command("hash", _hash, "the sha256 of everything that it says")
    command("diff", _diff, "what changed: breaking, tightening, loosening, neutral").add_argument(
        "other", metavar="NEW"
    )
    command("card", _card, "the contract card").add_argument("--out", required=True, help="a .html or .md file")
    command("new-key", _new_key, "write a new Ed25519 key to FILE and FILE.pub")
    one = command("sign", _sign, "sign the hash with an Ed25519 key")
    one.add_argument("--key", required=True, help="PEM file of the private key")
    one.add_argument("--out", help="where to write the signature; FILE.sig")
    one = command("verify-signature", _verify_signature, "whether a key that you trust signed it")
    one.add_argument("--signature", required=True, help="what sign wrote")
    one.add_argument("--public", required=True, help="PEM file of the public key")
    one = command("verify-log", _verify_log, "find the first bad entry of an audit log")
    one.add_argument("--checkpoint", help="JSON of size, root and head, kept elsewhere: shows truncation")
    one.add_argument("--size", type=int)
    one.add_argument("--root")
    one.add_argument("--head")
    return parser


if __name__ == "__main__":
    sys.exit(main())
