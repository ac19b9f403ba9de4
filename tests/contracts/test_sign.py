"""Signatures: the primitive is RFC 8032's, and nothing but the signed contract passes."""

import base64
import dataclasses
import json
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from rlx.contracts import (
    Contract,
    Expect,
    Signature,
    Stakeholder,
    Term,
    digest,
    load_private_key,
    load_public_key,
    new_key,
    sign,
    verify_signature,
)

CONTRACT = Contract("c", terms=(Term("x", lambda b: b["x"]),), stakeholders=(Stakeholder("me", {"x": 1.0}),))
# RFC 8032, section 7.1, test 1: secret and public key, signature of the empty message
SECRET = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
EMPTY = (
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
    "d25bf5f0595bbe24655141438e7a100b"
)


def test_the_primitive_is_rfc_8032s():
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET))
    assert key.public_key().public_bytes_raw().hex() == PUBLIC
    assert key.sign(b"").hex() == EMPTY


def test_a_signature_is_of_the_digest_with_its_purpose():
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET))
    made = sign(CONTRACT, key)
    assert made == sign(CONTRACT, key) == sign(digest(CONTRACT), key)
    assert base64.b64decode(made.signature) == key.sign(b"rlx contract v1\n" + digest(CONTRACT).encode())
    assert base64.b64decode(made.public_key).hex() == PUBLIC
    assert verify_signature(CONTRACT, made, key.public_key())


def test_nothing_else_passes():
    key, other = new_key(), new_key()
    made = sign(CONTRACT, key)
    tighter = dataclasses.replace(CONTRACT, constraints=(Expect("x") <= 0.5,))
    assert not verify_signature(tighter, made, key.public_key())
    assert not verify_signature(CONTRACT, made, other.public_key())
    # the digest exchanged for the new contract's: the signature is not of it
    assert not verify_signature(tighter, dataclasses.replace(made, digest=digest(tighter)), key.public_key())
    # a signature that brings its own key
    own = dataclasses.replace(sign(CONTRACT, other))
    assert not verify_signature(CONTRACT, own, key.public_key())
    raw = bytearray(base64.b64decode(made.signature))
    for place in (0, 31, 32, 63):
        raw[place] ^= 1
        forged = dataclasses.replace(made, signature=base64.b64encode(bytes(raw)).decode())
        assert not verify_signature(CONTRACT, forged, key.public_key())
        raw[place] ^= 1


def test_signatures_are_json():
    made = sign(CONTRACT, new_key())
    assert Signature.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "none"}, "algorithm 'none'"),
        ({"digest": "zz"}, "digest is not 64 hex digits"),
        ({"digest": 5}, "digest is not 64 hex digits"),
        ({"signature": "####"}, "signature: not base64"),
        ({"signature": None}, "signature: not base64"),
        ({"signature": "AAAA"}, "signature: 3 bytes, expected 64"),
        ({"public_key": "AAAA"}, "public_key: 3 bytes, expected 32"),
        ({"extra": 1}, "expected the fields"),
    ],
)
def test_malformed_signatures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Signature.from_dict(sign(CONTRACT, new_key()).to_dict() | change)


def test_keys_in_files(tmp_path):
    path = tmp_path / "key.pem"
    key = new_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    public = load_public_key(tmp_path / "key.pem.pub")
    assert verify_signature(CONTRACT, sign(CONTRACT, load_private_key(path)), public)
    assert public == key.public_key()
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="not written over"):
        new_key(path)
    assert path.read_bytes() == before


def test_other_keys_are_refused(tmp_path):
    path = tmp_path / "key.pem"
    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    with pytest.raises(ValueError, match="expected an Ed25519 private key"):
        load_private_key(path)
    path.write_text("no key")
    for load in (load_private_key, load_public_key):
        with pytest.raises(ValueError, match=r"key\.pem: no .*key in PEM"):
            load(path)
    with pytest.raises(ValueError, match="contract: expected a Contract or the 64 hex digits"):
        sign("abc", new_key())
