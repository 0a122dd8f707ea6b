"""The command line of install, doctor and bundle."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge.appliance.install import BUNDLES
from edge.config import KEYS, ConfigError, add_flags, flag_overrides, load_config

if TYPE_CHECKING:
    from edge.appliance.install import Settings

OK, FAULT, USAGE = 0, 1, 2
KEYS_FOLDER = "/etc/physvlm/keys"


def add_install(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prints every file of the appliance, or how it would change; writes them with --apply."
    parser.add_argument("--apply", action="store_true", help="write them (with sudo)")
    parser.add_argument("--uninstall", action="store_true", help="take them away again: prints what, does it with --apply")
    parser.add_argument("--root", default="/", metavar="DIR", help="of the system to install into (default: /)")
    parser.add_argument("--user", help="whom the service runs as (default: physvlm)")
    parser.add_argument("--program", metavar="PATH",
                        help="the program that the service starts (default: that of this environment)")
    parser.add_argument("--camera", metavar="ID", help="USB ids VENDOR:PRODUCT[:SERIAL] or USB port (1-2.3): the camera's name "
                        "becomes /dev/physvlm-camera; none takes it away")
    parser.add_argument("--display", metavar="ID", help="the same for the display's serial port, or a UART (ttyTHS1): "
                        "/dev/physvlm-display")
    parser.add_argument("--data", metavar="DIR", help="a further folder that the service may write to, or none")
    parser.add_argument("--bundle", action=argparse.BooleanOptionalAction,
                        help="run the weights and settings of the signed bundle; --no-bundle the shipped ones again")
    parser.epilog = "What is not given of these is as at the last --apply."
    add_flags(parser, *(key for key in KEYS if key != "camera.realtime"))
    parser.set_defaults(command=_install)


def _install(args: argparse.Namespace) -> int:
    from edge.appliance.devices import InstallError
    from edge.appliance.install import LEFT, apply, notes, preview, uninstall

    try:
        if args.uninstall:
            lines = uninstall(Path(args.root), args.apply)
            print("\n".join(lines) if lines else "nothing was installed by this program")
            if lines:
                print("\n  ".join(["then:", *LEFT]) if args.apply else "nothing was removed; do it with --apply")
            return OK
        settings = _settings(args)
        print("\n".join(apply(settings)) if args.apply else preview(settings))
        print("\nthen:" if args.apply else "\nnothing was written; after --apply:")
        print("\n".join(f"  {line}" for line in notes(settings)))
    except (InstallError, ConfigError) as e:
        return _refuse(e)
    except OSError as e:
        return _refuse(InstallError(f"{e.filename}: {e.strerror}; run it with sudo, or check the disk"))
    return OK


def _settings(args: argparse.Namespace) -> Settings:
    """As given, else as at the last --apply, else the default. Raises InstallError and ConfigError."""
    from edge.appliance.devices import device_id
    from edge.appliance.install import Settings, remembered

    overrides = {k: v for k, v in flag_overrides(args).items() if v is not None}
    load_config(None, overrides)
    root = Path(args.root)
    before = remembered(root)

    def said(name: str) -> str:
        given = getattr(args, name)
        return before.get(name, "") if given is None else "" if given == "none" else str(given)

    program = Path(sys.executable).with_name("physvlm")
    if args.program is None and before.get("program") and (root / before["program"].lstrip("/")).exists():
        program = Path(before["program"])
    devices = {name: device_id(text) for name in ("camera", "display")
               if (text := said(name)) or getattr(args, name) == ""}
    return Settings(program=args.program or str(program), user=said("user") or "physvlm", root=root, data=said("data"),
                    bundle=bool(before.get("bundle")) if args.bundle is None else args.bundle, config=overrides, **devices)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.description = "One line a check; exit 1 when one is a FAULT."
    parser.add_argument("--config", action="append", metavar="TOML", help="default: /etc/physvlm/physvlm.toml if it is there")
    parser.add_argument("--root", default="/", metavar="DIR", help="look at a system below another root; runs no command then")
    parser.add_argument("--json", action="store_true", help="the checks as one JSON object")
    parser.set_defaults(command=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from edge.appliance.doctor import Level, as_json, case_of, examine, system_at, table

    try:
        case = case_of(system_at(args.root), args.config)
    except ConfigError as e:
        return _refuse(e)
    findings = examine(case)
    print(json.dumps(as_json(case, findings), indent=1) if args.json else table(findings))
    return FAULT if any(f.level is Level.FAULT for f in findings) else OK


def add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.description = "Signed weights: weights, settings and a self-test clip in one file."
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")

    def action(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(command=lambda args: _bundle(args, function))
        return sub

    verify = action("verify", _verify, "is it whole, signed by a key of this device, and for this release?")
    install = action("install", _install_bundle, "verify, unpack, prove on this device, and make it current")
    for sub in (verify, install):
        sub.add_argument("file", metavar="FILE")
        sub.add_argument("--keys", default=KEYS_FOLDER, metavar="PATH", help=f"public key, or folder (default: {KEYS_FOLDER})")
    install.add_argument("--allow-older", action="store_true",
                         help="take a bundle that is older than one that was installed here before")
    install.add_argument("--config", action="append", metavar="TOML",
                         help="what the service runs with: on TensorRT, the proof does, too (default: what its unit names)")
    rollback = action("rollback", _rollback, "go back to the bundle before")
    for sub in (install, rollback):
        sub.add_argument("--store", default=BUNDLES, metavar="DIR", help=f"where bundles lie (default: {BUNDLES})")
    key = action("key", _key, "make a new pair of keys: NAME.key, which stays with you, and NAME.pub for the devices")
    key.add_argument("name", metavar="NAME")
    make = action("make", _make, "sign a new bundle, offline; it must pass its own self-test first")
    make.add_argument("out", metavar="OUT")
    make.add_argument("--key", required=True, metavar="FILE", help="the private key")
    make.add_argument("--weights", required=True, metavar="DIR", help="folder with student.json")
    make.add_argument("--clip", required=True, metavar="VIDEO", help="self-test clip of 20 s or more (physvlm-lab phantom)")
    make.add_argument("--hr", required=True, type=float, metavar="PER_MIN", help="the heart rate in it")
    make.add_argument("--rr", required=True, type=float, metavar="PER_MIN", help="the breathing rate in it")
    make.add_argument("--settings", metavar="TOML", help="settings that travel with these weights (region, profile, engine)")
    make.add_argument("--min", metavar="RELEASE", help="oldest release of the program that may run it (default: this one)")
    make.add_argument("--max", metavar="RELEASE", help="newest one (default: this one)")
    make.add_argument("--serial", type=int, metavar="N", help="grows from bundle to bundle; a device refuses one below what it "
                      "had (default: date and time of making, YYYYMMDDhhmmss)")
    make.add_argument("--id", default="", metavar="NAME", help="default: from the hash of its contents")


def _bundle(args: argparse.Namespace, function: Callable[[argparse.Namespace], None]) -> int:
    """0 done, 1 the bundle is refused or proves unfit."""
    from edge.appliance.bundle import BundleError

    try:
        function(args)
    except BundleError as e:
        print(f"physvlm: {e}", file=sys.stderr)
        return FAULT
    return OK


def _verify(args: argparse.Namespace) -> None:
    from edge.appliance.bundle import program_version, verify

    manifest = verify(Path(args.file), Path(args.keys), program_version()).manifest
    oldest, newest = manifest.program
    print(f"{manifest.id}, serial number {manifest.serial}, made {manifest.created}, for releases {oldest} to {newest}: whole "
          "and signed")


def _install_bundle(args: argparse.Namespace) -> None:
    from edge.appliance.bundle import program_version, verify
    from edge.appliance.bundle_proof import proven
    from edge.appliance.bundle_store import CURRENT, install
    from edge.appliance.doctor import case_of, system_at
    from edge.config import load_config

    bundle, store = verify(Path(args.file), Path(args.keys), program_version()), Path(args.store)
    case = case_of(system_at("/"), args.config)
    own = [Path(file) for file in case.config_files if Path(file).parent != store / CURRENT]
    proof = install(bundle, store, lambda folder, test: proven(folder, test, [folder / "physvlm.toml", *own]), args.allow_older)
    print(f"{bundle.manifest.id} is current: {proof}")
    if load_config([str(store / CURRENT / "physvlm.toml"), *map(str, own)]).model.backend == "tensorrt":
        configs = " ".join(f"--config {file}" for file in case.config_files)
        print(f"then: sudo -u {case.user or '$USER'} physvlm prepare {configs}")
    print("then: sudo systemctl restart physvlm")


def _rollback(args: argparse.Namespace) -> None:
    from edge.appliance.bundle_store import rollback

    before, now = rollback(Path(args.store))
    print(f"{now} is current again, not {before}\nthen: sudo systemctl restart physvlm")


def _key(args: argparse.Namespace) -> None:
    from edge.appliance.bundle_make import make_key

    private, public = make_key(Path(args.name))
    print(f"{private}: keep it off the devices\n{public}: sudo install -D -m 644 {public} {KEYS_FOLDER}/{public.name}, on each")


def _make(args: argparse.Namespace) -> None:
    from edge.appliance.bundle import program_version
    from edge.appliance.bundle_make import make

    release = program_version()
    settings = Path(args.settings) if args.settings else None
    manifest, proof = make(Path(args.out), Path(args.key), Path(args.weights), Path(args.clip), (args.hr, args.rr),
                           (args.min or release, args.max or release), settings, args.id, args.serial)
    print(f"{args.out}: {manifest.id}, serial number {manifest.serial}, {len(manifest.files)} files; {proof}")


def _refuse(error: Exception) -> int:
    print(f"physvlm: {error}", file=sys.stderr)
    return USAGE


ADD = {"install": add_install, "doctor": add_doctor, "bundle": add_bundle}
