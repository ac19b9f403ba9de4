"""Who stands behind a contract: Ed25519 signatures of its hash."""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from ._contract import Contract
from ._digest import digest as digest_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_HEX = re.compile(r"[0-9a-f]{64}")
_PURPOSE = b"rlx contract v1\n"  # a signature of anything else is not one of a contract


@dataclass(frozen=True)
class Signature:
    """A signature of a contract's hash.

    Attributes:
      digest: what was signed, 64 hex digits.
      signature: 64 bytes, base64.
      public_key: 32 bytes, base64: says who claims to have signed. Trust comes from the key that you verify with.
      algorithm: "Ed25519".
    """

    digest: str
    signature: str
    public_key: str
    algorithm: Literal["Ed25519"] = "Ed25519"

    def to_dict(self) -> dict[str, str]:
        """As JSON values."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Signature":
        """From JSON values.

        Raises:
          ValueError: a field is missing, unknown or malformed.
        """
        if not isinstance(values, Mapping) or set(values) != {"digest", "signature", "public_key", "algorithm"}:
            raise ValueError("signature: expected the fields digest, signature, public_key and algorithm")
        made = cls(**values)
        if made.algorithm != "Ed25519":
            raise ValueError(f"signature: algorithm {made.algorithm!r} is not 'Ed25519'")
        if not isinstance(made.digest, str) or not _HEX.fullmatch(made.digest):
            raise ValueError("signature: digest is not 64 hex digits")
        _bytes("signature", made.signature, 64)
        _bytes("public_key", made.public_key, 32)
        return made


def new_key(path: str | Path | None = None) -> "Ed25519PrivateKey":
    """A new private key; with a path, written there (PEM, mode 0600), and the public one to `path` + ".pub".

    Raises:
      FileExistsError: a key is not written over.
      ModuleNotFoundError: cryptography is missing; says which extra has it.
    """
    ed25519, serialization = _cryptography()
    key = ed25519.Ed25519PrivateKey.generate()
    if path is not None:
        path = Path(path)
        public = path.with_name(f"{path.name}.pub")
        if path.exists() or public.exists():
            raise FileExistsError(f"path: {path} or {public.name} exists; a key is not written over")
        encoding = serialization.Encoding.PEM
        plain = serialization.NoEncryption()
        _write(path, key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain), 0o600)
        shown = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        _write(public, shown, 0o644)
    return key


def load_private_key(path: str | Path) -> "Ed25519PrivateKey":
    """The private key in a PEM file.

    Raises:
      ValueError: it holds no unencrypted Ed25519 private key.
    """
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_private_key(Path(path).read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: no unencrypted private key in PEM: {error}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ValueError(f"{path}: expected an Ed25519 private key")
    return key


def load_public_key(path: str | Path) -> "Ed25519PublicKey":
    """The public key in a PEM file.

    Raises:
      ValueError: it holds no Ed25519 public key.
    """
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_public_key(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: no public key in PEM: {error}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ValueError(f"{path}: expected an Ed25519 public key")
    return key


def sign(contract: Contract | str, private_key: "Ed25519PrivateKey") -> Signature:
    """Sign a contract's hash.

    Args:
      contract: a contract, or its digest.
      private_key: from `new_key` or `load_private_key`.

    Example:
      >>> key = new_key()
      >>> signed = sign("0" * 64, key)
      >>> verify_signature("0" * 64, signed, key.public_key()), verify_signature("1" * 64, signed, key.public_key())
      (True, False)

    References:
      RFC 8032, Ed25519: signatures are deterministic. The message is "rlx contract v1", a newline, and the digest.
    """
    _, serialization = _cryptography()
    digest = _digest(contract)
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    return Signature(
        digest=digest,
        signature=base64.b64encode(private_key.sign(_PURPOSE + digest.encode())).decode(),
        public_key=base64.b64encode(private_key.public_key().public_bytes(*raw)).decode(),
    )


def verify_signature(contract: Contract | str, signature: Signature, public_key: "Ed25519PublicKey") -> bool:
    """Whether the holder of a key that you trust signed this contract as it is.

    Args:
      contract: a contract, or its digest.
      signature: from `sign` or `Signature.from_dict`.
      public_key: of the signer you trust; the one inside the signature proves nothing.

    Raises:
      ValueError: the signature is malformed.
    """
    from cryptography.exceptions import InvalidSignature

    digest = _digest(contract)
    if signature.digest != digest:
        return False
    try:
        public_key.verify(_bytes("signature", signature.signature, 64), _PURPOSE + digest.encode())
    except InvalidSignature:
        return False
    return True


def _digest(contract: Contract | str) -> str:
    if isinstance(contract, Contract):
        return digest_of(contract)
    if not isinstance(contract, str) or not _HEX.fullmatch(contract):
        raise ValueError(f"contract: expected a Contract or the 64 hex digits of its digest, got {contract!r}")
    return contract


def _bytes(name: str, text: Any, size: int) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"{name}: not base64") from error
    if len(raw) != size:
        raise ValueError(f"{name}: {len(raw)} bytes, expected {size}")
    return raw


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _cryptography() -> tuple[ModuleType, ModuleType]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("signatures need cryptography: pip install 'rlx[interop]'") from error
    return ed25519, serialization
