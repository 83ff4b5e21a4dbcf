"""Content hashes and signatures: every byte of a file counts, and only the right key's signature holds."""

from __future__ import annotations

import ctypes
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from artifacts import random_artifact
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

import edgebert
from edgebert import cli
from edgebert.artifact.integrity import add_metadata, check_content, hash_content
from edgebert.artifact.reader import read_artifact
from edgebert.backends import native


def _key(folder: Path, name: str = "key") -> tuple[Path, str]:
    """The path of a new private key, and its public key."""
    key = Ed25519PrivateKey.generate()
    path = folder / f"{name}.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path, key.public_key().public_bytes_raw().hex()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    random_artifact(path, int8=True)
    add_metadata(path, {"edgebert.report": "{}"})
    return path


def test_a_signed_file_loads_with_its_key_alone(model: Path, tmp_path: Path) -> None:
    private, public = _key(tmp_path)
    _, other = _key(tmp_path, "other")
    before = edgebert.load(model, verify=True)
    with pytest.raises(edgebert.ModelFormatError, match="is not signed"):
        edgebert.load(model, public_key=public)
    assert edgebert.sign(model, private) == public
    loaded = edgebert.load(model, public_key=public)
    batch = edgebert.PackedBatch.from_lists([[1, 2, 3], [4]])
    assert np.array_equal(loaded.forward(batch)["last_hidden_state"], before.forward(batch)["last_hidden_state"])
    with pytest.raises(edgebert.ModelFormatError, match="not signed with this key"):
        edgebert.load(model, public_key=other)
    again = pickle.loads(pickle.dumps(loaded))  # asks for the key again
    random_artifact(model, int8=True)
    with pytest.raises(edgebert.ModelFormatError, match="no content hash"):
        pickle.loads(pickle.dumps(again))


def test_signing_again_replaces_the_signature(model: Path, tmp_path: Path) -> None:
    (first, public), (second, _) = _key(tmp_path), _key(tmp_path, "second")
    size = len(model.read_bytes())
    edgebert.sign(model, first)
    edgebert.sign(model, second)
    edgebert.sign(model, first)
    assert len(model.read_bytes()) - size == len(b"edgebert.signature") + 128 + 8
    check_content(read_artifact(model), public)
    add_metadata(model, {"note": "more"})
    with pytest.raises(edgebert.ModelFormatError, match="is not signed"):
        check_content(read_artifact(model), public)
    check_content(read_artifact(model))
    assert read_artifact(model).metadata["note"] == "more"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.pem", "model.onnx", "second.pem"]


def test_every_byte_of_a_signed_file_counts(model: Path, tmp_path: Path) -> None:
    private, public = _key(tmp_path)
    edgebert.sign(model, private)
    data = model.read_bytes()
    rng = np.random.default_rng(0)
    accepted = []
    for position in [*range(0, len(data), 97), *range(len(data) - 400, len(data))]:
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(8))
        try:
            check_content(read_artifact(bytes(changed), verify=False), public)
        except edgebert.EdgeBertError:
            continue
        accepted.append((position, bytes(data[position : position + 1]), changed[position : position + 1]))
    # hexadecimal digits in upper case are the same signature
    assert all(before.lower() == bytes(after).lower() for _, before, after in accepted), accepted
    for extra in (b"\x10\x01", data[-30:], b"\0"):
        with pytest.raises(edgebert.EdgeBertError):
            check_content(read_artifact(data + extra, verify=False), public)


def test_the_hash_is_of_the_bytes_without_the_two_entries(model: Path) -> None:
    data = model.read_bytes()
    entry = len(b"edgebert.content_hash") + 64 + 6
    stripped = data[:-entry]
    assert read_artifact(stripped).metadata.keys() == read_artifact(data).metadata.keys() - {"edgebert.content_hash"}
    assert hash_content(memoryview(stripped)) == hash_content(memoryview(data))
    assert read_artifact(data).metadata["edgebert.content_hash"] == hash_content(memoryview(data))


def test_a_changed_weight_is_found_by_check_and_verify(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(model.read_bytes())
    weight = read_artifact(model).tensors["embeddings.layer_norm.weight"].tobytes()
    position = data.find(weight)
    data[position] ^= 1
    model.write_bytes(data)
    edgebert.load(model)  # the graph is right
    for call in (lambda: edgebert.load(model, verify=True), lambda: edgebert.check(model)):
        with pytest.raises(edgebert.ModelFormatError, match="changed or damaged since it was written"):
            call()
    assert cli.main(["verify", str(model)]) == 1
    assert "changed or damaged" in capsys.readouterr().err


def test_commands(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = _key(tmp_path)
    assert cli.main(["verify", str(model)]) == 0
    assert cli.main(["sign", str(model), "--key", str(private)]) == 0
    assert public in capsys.readouterr().out
    pem = tmp_path / "public.pem"
    loaded = load_pem_private_key(private.read_bytes(), None)
    pem.write_bytes(loaded.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for given in (public, str(pem)):
        assert cli.main(["verify", str(model), "--key", given]) == 0
    assert "signed with this key" in capsys.readouterr().out
    assert cli.main(["verify", str(model), "--key", "0" * 64]) == 1


def test_keys_of_other_kinds_are_refused(model: Path, tmp_path: Path) -> None:
    rsa = tmp_path / "rsa.pem"
    rsa.write_bytes(generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    before = model.read_bytes()
    for path, reason in ((rsa, "another kind"), (model, "no private key"), (tmp_path / "none", "no private key")):
        with pytest.raises(edgebert.InvalidInputError, match=reason):
            edgebert.sign(model, path)
    assert model.read_bytes() == before
    for key in ("abc", tmp_path / "none", rsa, "z" * 64):
        with pytest.raises(edgebert.InvalidInputError, match="no public key"):
            edgebert.load(model, public_key=key)


def test_without_cryptography_the_extra_is_named(model: Path) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "import edgebert\n"
        f"edgebert.load({str(model)!r}, verify=True)\n"
        f"edgebert.load({str(model)!r}, public_key='0' * 64)\n"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert "edgebert[sign]" in result.stderr


def _load_natively(data: bytes, public_key: bytes | None) -> str | None:
    """The C API's complaint about a file, None if it loads."""
    library, handle = native.load_library(), ctypes.c_void_p()
    options = native._Options(None, 1, 0, 1, public_key)
    if library.eb_load_memory(ctypes.c_char_p(data), len(data), options, ctypes.byref(handle)) == 0:
        library.eb_free(handle)
        return None
    return str(library.eb_last_error().decode())


def test_the_c_api_verifies_as_python_does(model: Path, tmp_path: Path) -> None:
    plain = model.read_bytes()
    assert _load_natively(plain, None) is None
    assert "not signed: sign it" in str(_load_natively(plain, bytes(32)))
    random_artifact(tmp_path / "bare.onnx", int8=True)
    assert "no content hash" in str(_load_natively((tmp_path / "bare.onnx").read_bytes(), None))
    rng = np.random.default_rng(0)
    order = 2**252 + 27742317777372353535851937790883648493
    for i in range(40):
        private, public = _key(tmp_path, f"key{i}")
        edgebert.sign(model, private)
        data = model.read_bytes()
        key = bytearray.fromhex(public)
        assert _load_natively(data, bytes(key)) is None
        if i % 4 == 0:  # another key
            key[int(rng.integers(32))] ^= 1 << int(rng.integers(8))
        elif i % 4 == 1:  # another weight
            at = data.find(read_artifact(data).tensors["embeddings.layer_norm.weight"].tobytes())
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        else:  # another signature: of one bit, or of the same number modulo the curve's order
            signature = bytearray.fromhex(read_artifact(data).metadata["edgebert.signature"])
            if i % 4 == 2:
                signature[int(rng.integers(64))] ^= 1 << int(rng.integers(8))
            else:
                signature[32:] = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
            data = data[:-128] + signature.hex().encode()
        with pytest.raises(edgebert.ModelFormatError):
            check_content(read_artifact(data, verify=False), key.hex())
        assert _load_natively(data, bytes(key)) is not None
