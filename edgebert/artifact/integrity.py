"""A model file's content hash and signature: metadata over everything else in the file.

The content hash is SHA-256 (FIPS 180-4) over the file's bytes, less its metadata entries `edgebert.content_hash` and
`edgebert.signature`. The signature is Ed25519 (RFC 8032) over `SIGNED_PREFIX` and the hash in hexadecimal. The C++ twin
is kernels/format/integrity.cc.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgebert.artifact.reader import Artifact, find_model_file, read_artifact, read_entry, walk_fields
from edgebert.artifact.writer import encode_metadata
from edgebert.errors import InvalidInputError, ModelFormatError, require
from edgebert.files import read_path, writing_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNED_PREFIX = b"EdgeBERT content hash: "
_HASH, _SIGNATURE = "edgebert.content_hash", "edgebert.signature"
_NEW_KEY = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"


def hash_content(data: memoryview) -> str:
    """The content hash of a model file's bytes, in lower-case hexadecimal."""
    digest = hashlib.sha256()
    for part in _hashed_parts(data):
        digest.update(part)
    return digest.hexdigest()


def check_content(artifact: Artifact, public_key: str | os.PathLike[str] | None = None) -> None:
    """Compare a file's content with its hash, and the hash with its signature.

    Args:
        artifact: the file.
        public_key: what the file must be signed with: 64 hexadecimal digits, or the path of a PEM file; None: the hash
            alone is compared.

    Raises:
        ModelFormatError: it has no hash or signature, or another one.
        InvalidInputError: not a public key.
        BackendUnavailableError: a key is given and the package cryptography is missing.
    """
    name = artifact.path or "the model"
    key = None if public_key is None else _read_public_key(public_key)
    stored = artifact.metadata.get(_HASH)
    if stored is None:
        raise ModelFormatError(
            f"{name} has no content hash to verify: export it again, or sign it with `edgebert sign`"
        )
    found = hash_content(artifact.data)
    if found != stored:
        raise ModelFormatError(
            f"{name} was changed or damaged since it was written: its content hashes to {found}, it says {stored}: "
            "get the file again"
        )
    if key is None:
        return
    from cryptography.exceptions import InvalidSignature

    signature = artifact.metadata.get(_SIGNATURE)
    if signature is None:
        raise ModelFormatError(f"{name} is not signed: sign it with `edgebert sign`, or load it without a public key")
    try:
        key.verify(bytes.fromhex(signature), SIGNED_PREFIX + found.encode())
    except (InvalidSignature, ValueError):
        raise ModelFormatError(
            f"{name} was not signed with this key: do not use it, or give the public key of who signed it"
        ) from None


def add_metadata(path: Path, entries: Mapping[str, str]) -> None:
    """Add or replace metadata of a model file, which gets a new content hash and loses its signature.

    Raises:
        ModelFormatError: it is not an ONNX file.
        OSError: it cannot be written; it is as it was.
    """
    _rewrite(path, entries)


def sign(path: str | os.PathLike[str], private_key: str | os.PathLike[str]) -> str:
    """Sign a model file, in place; an earlier signature goes.

    Args:
        path: the file, or a folder that holds it as `model.onnx`.
        private_key: a PEM file with an Ed25519 key and no password, as `openssl genpkey -algorithm ed25519` makes it.

    Returns:
        The public key, 64 hexadecimal digits.

    Raises:
        ModelFormatError: not a model file of EdgeBERT, or one that was changed since it was written.
        InvalidInputError: not such a key.
        BackendUnavailableError: the package cryptography is missing.
        OSError: the file cannot be written; it is as it was.
    """
    key = _read_private_key(read_path("private_key", private_key))
    artifact = read_artifact(path)
    if _HASH in artifact.metadata:
        check_content(artifact)
    _rewrite(find_model_file(path), {}, key)
    return key.public_key().public_bytes_raw().hex()


def _hashed_parts(data: memoryview, replaced: Collection[str] = ()) -> Iterator[memoryview]:
    """The file's bytes but for the hash, the signature and metadata that is replaced, in their order."""
    last, left_out = 0, {_HASH, _SIGNATURE, *replaced}
    for number, value, begin, end in walk_fields(data, "model"):
        if number == 14 and isinstance(value, memoryview) and read_entry(value)[0] in left_out:
            yield data[last:begin]
            last = end
    yield data[last:]


def _rewrite(path: Path, metadata: Mapping[str, str], key: Ed25519PrivateKey | None = None) -> None:
    """Replace a file by itself with this metadata at its end, its hash, and a signature if there is a key."""
    parts = [*_hashed_parts(memoryview(path.read_bytes()), metadata), memoryview(encode_metadata(metadata))]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    entries = {_HASH: digest.hexdigest()}
    if key is not None:
        entries[_SIGNATURE] = key.sign(SIGNED_PREFIX + entries[_HASH].encode()).hex()
    with writing_whole(path) as draft:
        with draft.open("wb") as file:
            file.writelines([*parts, encode_metadata(entries)])
        shutil.copymode(path, draft)


def _read_private_key(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
    require("sign", "cryptography")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(Path(path).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:  # a TypeError: it has a password
        raise InvalidInputError(f"{path} is no private key in PEM without a password ({error}): {_NEW_KEY}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInputError(f"{path} holds a key of another kind than Ed25519: {_NEW_KEY}")
    return key


def _read_public_key(key: str | os.PathLike[str]) -> Ed25519PublicKey:
    require("sign", "cryptography")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        if isinstance(key, str) and len(key) == 64 and not os.path.exists(key):
            return Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        read = load_pem_public_key(Path(key).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInputError(
            f"{key!r:.100} is no public key ({error}): give the 64 hexadecimal digits that `edgebert sign` prints, or "
            "a PEM file"
        ) from None
    if not isinstance(read, Ed25519PublicKey):
        raise InvalidInputError(f"{key} holds a key of another kind than Ed25519, which EdgeBERT's signatures take")
    return read
