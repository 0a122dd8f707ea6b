"""Making a signed bundle, offline, where the private key is."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.appliance.bundle import (
    SETTINGS,
    SIGNED_AS,
    Bundle,
    BundleError,
    Entry,
    Manifest,
    SelfTest,
    archive,
    need_cryptography,
    ordered,
    read_manifest,
    serial_of,
)
from edge.appliance.bundle_proof import proven
from edge.appliance.bundle_store import unpack
from edge.config import ConfigError, load_config, read_toml
from engines.files import write_whole
from engines.sidecar import SidecarError, load

MAY_SET = ("camera.roi", "model.backend", "model.precision", "vitals.profile")
"""Settings that may travel with weights; the rest (ports, cameras, folders) belong to the device."""


def make_key(out: Path) -> tuple[Path, Path]:
    """A new pair: (private key, which only its owner may read; public key). Raises BundleError rather than replace one."""
    need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    private, public = out.with_name(out.name + ".key"), out.with_name(out.name + ".pub")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
        write_whole(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    except FileExistsError as e:
        raise BundleError(f"{private} exists and is not replaced; choose another name") from e
    except OSError as e:
        raise BundleError(f"{out} cannot be written: {e.strerror}") from e
    return private, public


def make(out: Path, key: Path, weights: Path, clip: Path, expected: tuple[float, float], program: tuple[str, str],
         settings: Path | None = None, name: str = "", serial: int | None = None,
         prove: Callable[[Path, SelfTest], str] | None = None) -> tuple[Manifest, str]:
    """Signs and writes a bundle that passes its own proof: (manifest, what the proof found). Raises BundleError.

    expected: heart and breathing rate of the clip. serial: None takes the date of making (serial_of). prove: as
    bundle_store.install has it.
    """
    signer = _signer(key)
    files = _collected(weights, clip, settings)
    entries = tuple(Entry(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files)
    content_id = hashlib.sha256("".join(e.sha256 for e in entries).encode()).hexdigest()[:12]
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # the maker's clock; a device only compares the numbers
    manifest = Manifest(name or f"bundle-{content_id}", serial_of(created) if serial is None else serial, created, program,
                        entries, SelfTest(files[-1][0], *expected))
    if ordered(program[0]) > ordered(program[1]):
        raise BundleError(f"oldest release {program[0]} is newer than the newest, {program[1]}")
    text = manifest.as_bytes()
    read_manifest(text)
    try:
        with tempfile.TemporaryDirectory() as folder:
            unpack(Bundle(manifest, dict(files)), Path(folder) / "bundle", "")
            proof = (prove or proven)(Path(folder) / "bundle", manifest.self_test)
        write_whole(out, archive(text, signer.sign(SIGNED_AS + text), files))
    except OSError as e:
        raise BundleError(f"{out} cannot be written: {e.strerror}") from e
    return manifest, proof


def _signer(path: Path) -> Any:
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as e:
        raise BundleError(f"private key {path} cannot be read: {e.strerror}") from e
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise BundleError(f"{path} is no unencrypted private key in PEM: {e}") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path} is no Ed25519 key; make one with physvlm bundle key NAME")
    return key


def _collected(weights: Path, clip: Path, settings: Path | None) -> list[tuple[str, bytes]]:
    """What goes in, in order: the files that the sidecar lists and the sidecar itself, settings, clip."""
    try:
        spec, _ = load(weights / "student.json")
        listed = {spec.folder / name for parts in spec.files.values() for name in parts.values()}
        listed |= {spec.folder / "student.json"}
        listed |= {spec.parity} if spec.parity is not None else set()
        files = [(f"weights/{path.name}", path.read_bytes()) for path in sorted(listed)]
        files += [(SETTINGS, check_settings(settings).encode()), (f"selftest/clip{clip.suffix}", clip.read_bytes())]
    except (SidecarError, ConfigError) as e:
        raise BundleError(str(e)) from e
    except OSError as e:
        raise BundleError(f"{e.filename} cannot be read: {e.strerror}") from e
    return files


def check_settings(path: Path | None) -> str:
    """The settings that travel with the weights; only such as MAY_SET may. Raises ConfigError and OSError."""
    if path is None:
        return "# Settings of these weights; the device's own file wins over them. None.\n"
    load_config(path)
    wrong = [name for name in read_toml(path) if name not in MAY_SET]
    if wrong:
        raise ConfigError(f"{path}: {', '.join(wrong)} belong to the device; a bundle may set {', '.join(MAY_SET)}")
    return path.read_text(encoding="utf-8")
