"""The signed bundle: weights, settings and a self-test clip as one file, signed with Ed25519.

An uncompressed tar, `manifest.sig`, `manifest.json` and then the files in the manifest's order. Tar, and not zip, because it
is one line of headers and contents with no second directory to disagree with the first: the reader works out from the
manifest every byte that the file must have, and refuses one that differs anywhere, padding and headers included. So no name,
link, size or date in the archive is ever trusted, and nothing is decompressed. `tar -tf` lists it all the same.

The signature is over the manifest, the manifest holds the SHA-256 and size of each file, and a serial number that grows from
bundle to bundle: by it a device knows an older one, whose signature is as good as ever.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FORMAT = 2
"""1 had no serial number: its place is taken by the date of making."""

SIGNED_AS = b"physvlm bundle, format 1\n"
"""Before the manifest in what is signed: the key's other signatures, if it makes any, can never pass for one of these. The same
in every format, so that an older program says that it must be updated, and not that the key is wrong."""

SETTINGS = "physvlm.toml"
MOST_BYTES, MOST_FILES, MANIFEST_MOST = 128 << 20, 200, 256 << 10
SIGNATURE_BYTES = 64
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
MOST_SERIAL = 10**18


class BundleError(ValueError):
    """The bundle must not be used, or cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class SelfTest:
    """A clip in the bundle and what must be read from it: medians, how far off they may be, how much must be shown."""

    clip: str
    hr_per_min: float
    rr_per_min: float
    hr_within_per_min: float = 3.0
    rr_within_per_min: float = 5.0
    hr_shown_at_least: float = 0.2
    rr_shown_at_least: float = 0.05


@dataclass(frozen=True)
class Entry:
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """program: oldest and newest release of the program that may run it, both included. serial: above that of every bundle
    made before."""

    id: str
    serial: int
    created: str
    program: tuple[str, str]
    files: tuple[Entry, ...]
    self_test: SelfTest

    def as_bytes(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode() + b"\n"


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified: its manifest, and every file by its path."""

    manifest: Manifest
    files: Mapping[str, bytes]


def program_version() -> str:
    try:
        return version("physvlm-edge")
    except PackageNotFoundError as e:
        raise BundleError("this program's own release is not known: install it with pip, even from its source") from e


def serial_of(created: str) -> int:
    """The date of making as a number: 2026-11-28T01:02:03Z is 20261128010203. 0 where it is no such date."""
    return int(re.sub(r"\D", "", created)) if _DATE.fullmatch(created) else 0


def ordered(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6}){0,3}", text):
        raise BundleError(f"release {text!r}: expected numbers with dots, such as 0.1.0")
    return tuple(int(n) for n in text.split("."))


# --- the archive


def _member(name: str, content: bytes) -> bytes:
    """Header, content and padding of one file: the only way in which it may stand in the archive."""
    return _header(name, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def archive(manifest: bytes, signature: bytes, files: Sequence[tuple[str, bytes]]) -> bytes:
    members = [("manifest.sig", signature), ("manifest.json", manifest), *files]
    return b"".join(_member(*member) for member in members) + bytes(2 * tarfile.BLOCKSIZE)


class _Reader:
    """Takes from the front what must be there."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0

    def take(self, size: int) -> bytes:
        taken = bytes(self._data[self._at:self._at + size])
        if len(taken) < size:
            raise BundleError("it is cut off; copy it again")
        self._at += size
        return taken

    def member(self, name: str, size: int) -> bytes:
        if self.take(tarfile.BLOCKSIZE) != _header(name, size):
            raise BundleError(f"the header of {name} is not as its maker wrote it; copy it again")
        content = self.take(size)
        if any(self.take(-size % tarfile.BLOCKSIZE)):
            raise BundleError(f"there is something between {name} and what follows; copy it again")
        return content

    def manifest_size(self) -> int:
        """As the coming header says; the header is compared whole afterwards."""
        field = bytes(self._data[self._at + 124:self._at + 135])
        size = int(field, 8) if re.fullmatch(rb"[0-7]{11}", field) else -1
        if not 0 < size <= MANIFEST_MOST:
            raise BundleError("it is no bundle of this program, or it is damaged; copy it again")
        return size

    def end(self) -> None:
        rest = bytes(self._data[self._at:])
        if rest != bytes(2 * tarfile.BLOCKSIZE):
            raise BundleError("it does not end where its manifest says; copy it again")


# --- verifying


def verify(path: Path, keys: Path, release: str) -> Bundle:
    """The bundle, once everything about it is right. Nothing is written, nothing in it is opened before.

    keys: a public key in PEM, or a folder of them (*.pub). release: of this program. Raises BundleError.
    """
    trusted = public_keys(keys)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or /dev/zero would never end
            raise BundleError(f"{path} is no file; expected a bundle")
        if found.st_size > MOST_BYTES:
            raise BundleError(f"{path} has {found.st_size >> 20} MB; expected at most {MOST_BYTES >> 20}")
        data = path.read_bytes()
    except OSError as e:
        raise BundleError(f"{path} cannot be read: {e.strerror}") from e
    try:
        return _verified(data, trusted, release)
    except BundleError as e:
        raise BundleError(f"{path} is refused: {e}") from e


def _verified(data: bytes, trusted: Mapping[str, Any], release: str) -> Bundle:
    reader = _Reader(data)
    signature = reader.member("manifest.sig", SIGNATURE_BYTES)
    text = reader.member("manifest.json", reader.manifest_size())
    _check_signature(text, signature, trusted)
    manifest = read_manifest(text)
    oldest, newest = manifest.program
    if not ordered(oldest) <= ordered(release) <= ordered(newest):
        raise BundleError(f"it is for releases {oldest} to {newest} of this program, which is {release}; get this release's "
                          "bundle")
    files = {}
    for entry in manifest.files:
        content = reader.member(entry.path, entry.size)
        if (found := hashlib.sha256(content).hexdigest()) != entry.sha256:
            raise BundleError(f"{entry.path} was altered: expected SHA-256 {entry.sha256[:12]}, got {found[:12]}; copy it "
                              "again")
        files[entry.path] = content
    reader.end()
    return Bundle(manifest, files)


def _check_signature(text: bytes, signature: bytes, trusted: Mapping[str, Any]) -> None:
    from cryptography.exceptions import InvalidSignature

    for key in trusted.values():
        try:
            key.verify(signature, SIGNED_AS + text)
        except InvalidSignature:
            continue
        return
    raise BundleError(f"it was not signed by any key of this device ({', '.join(trusted)}), or its manifest was altered; get "
                      "it from who holds the key")


def read_manifest(text: bytes) -> Manifest:
    """Of a signed text: what is wrong in it is its maker's mistake, and refused all the same."""
    try:
        record = json.loads(text)
        if (found := record.pop("format")) not in (1, FORMAT):
            raise BundleError(f"it has format {found}, this program reads 1 to {FORMAT}; update the program")
        if found == 1:
            record["serial"] = serial_of(record["created"])
        files = tuple(Entry(**entry) for entry in record.pop("files"))
        test = SelfTest(**record.pop("self_test"))
        oldest, newest = record.pop("program")
        manifest = Manifest(files=files, self_test=test, program=(oldest, newest), **record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        if isinstance(e, BundleError):
            raise
        raise BundleError(f"its manifest cannot be read ({type(e).__name__}: {e}); make it anew") from e
    _check_manifest(manifest)
    return manifest


def _check_manifest(manifest: Manifest) -> None:
    def need(right: bool, what: str) -> None:
        if not right:
            raise BundleError(f"its manifest is wrong: {what}; make it anew")

    need(isinstance(manifest.id, str) and _ID.fullmatch(manifest.id) is not None, "the id is no plain name")
    need(manifest.id not in ("current", "highest", "lock"), f"the id {manifest.id} is taken")
    need(all(isinstance(v, str) for v in (manifest.created, *manifest.program)), "created and program are texts")
    need(type(manifest.serial) is int and 0 <= manifest.serial < MOST_SERIAL, "the serial number is none")
    need(0 < len(manifest.files) <= MOST_FILES, f"1 to {MOST_FILES} files")
    for entry in manifest.files:
        need(isinstance(entry.path, str) and len(entry.path) <= 99, "a path is too long")
        parts = entry.path.split("/")
        need(len(parts) <= 3 and all(_PART.fullmatch(part) for part in parts), f"{entry.path!r} is no plain path")
        need(type(entry.size) is int and 0 <= entry.size <= MOST_BYTES, f"size of {entry.path}")
        need(isinstance(entry.sha256, str) and _SHA256.fullmatch(entry.sha256) is not None, f"hash of {entry.path}")
    paths = [entry.path for entry in manifest.files]
    need(len({path.lower() for path in paths}) == len(paths), "a path stands twice")
    need(not any(a.lower().startswith(f"{b.lower()}/") for a in paths for b in paths), "a file is also a folder")
    need(sum(entry.size for entry in manifest.files) <= MOST_BYTES, "it is too large")
    need(isinstance(manifest.self_test.clip, str), "the clip is a path")
    need({"weights/student.json", SETTINGS, manifest.self_test.clip} <= set(paths), "weights, settings or clip are not in it")
    numbers = [v for k, v in asdict(manifest.self_test).items() if k != "clip"]
    need(all(type(v) in (int, float) and 0 < v < 1000 for v in numbers), "the self-test's limits are positive numbers")


def need_cryptography() -> None:
    """Whoever installs no bundles does without it. Raises BundleError."""
    if find_spec("cryptography") is None:
        raise BundleError("the package cryptography is not installed; pip install 'physvlm-edge[appliance]'")


def public_keys(path: Path) -> dict[str, Any]:
    """Ed25519 keys by file name. Raises BundleError where there is none, or one cannot be read."""
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if not path.exists():
        raise BundleError(f"no public key at {path}; put your maker's key (NAME.pub) into that folder, or name it with --keys")
    files = sorted(path.glob("*.pub")) if path.is_dir() else [path]
    if not files:
        raise BundleError(f"no public key (*.pub) in {path}; put your maker's key there, or name it with --keys")
    keys = {}
    for file in files:
        try:
            key = load_pem_public_key(file.read_bytes())
        except OSError as e:
            raise BundleError(f"public key {file} cannot be read: {e.strerror}; name it with --keys") from e
        except (ValueError, UnsupportedAlgorithm) as e:
            raise BundleError(f"{file} is no public key in PEM: {e}") from e
        if not isinstance(key, Ed25519PublicKey):
            raise BundleError(f"{file} is no Ed25519 key; expected one that physvlm bundle key made")
        keys[file.name] = key
    return keys
