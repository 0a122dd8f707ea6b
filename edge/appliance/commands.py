"""The command line of install, doctor and bundle."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from edge.appliance.install import BUNDLES
from edge.config import KEYS, ConfigError, add_flags, flag_overrides, load_config

OK, FAULT, USAGE = 0, 1, 2
KEYS_FOLDER = "/etc/physvlm/keys"


def add_install(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prints every file of the appliance, or how it would change; writes them with --apply."
    parser.add_argument("--apply", action="store_true", help="write them (with sudo)")
    parser.add_argument("--uninstall", action="store_true", help="take them away again: prints what, does it with --apply")
    parser.add_argument("--root", default="/", metavar="DIR", help="of the system to install into (default: /)")
    parser.add_argument("--user", default="physvlm", help="whom the service runs as (default: physvlm)")
    parser.add_argument("--program", default=str(Path(sys.executable).with_name("physvlm")), metavar="PATH",
                        help="the program that the service starts (default: that of this environment)")
    parser.add_argument("--camera", metavar="ID", help="USB ids VENDOR:PRODUCT[:SERIAL] or USB port (1-2.3): the camera's name "
                        "becomes /dev/physvlm-camera")
    parser.add_argument("--display", metavar="ID", help="the same for the display's serial port, or a UART (ttyTHS1): "
                        "/dev/physvlm-display")
    parser.add_argument("--data", default="", metavar="DIR", help="a further folder that the service may write to")
    parser.add_argument("--bundle", action="store_true", help="run the weights and settings of the signed bundle")
    add_flags(parser, *(key for key in KEYS if key != "camera.realtime"))
    parser.set_defaults(command=_install)


def _install(args: argparse.Namespace) -> int:
    from edge.appliance.install import InstallError, Settings, apply, device_id, notes, preview, uninstall

    try:
        overrides = {k: v for k, v in flag_overrides(args).items() if v is not None}
        load_config(None, overrides)
        settings = Settings(program=args.program, user=args.user, root=Path(args.root), bundle=args.bundle, data=args.data,
                            camera=device_id(args.camera) if args.camera else None,
                            display=device_id(args.display) if args.display else None, config=overrides)
        if args.uninstall:
            lines = uninstall(settings.root, args.apply)
            print("\n".join(lines) if lines else "nothing was installed by this program")
        elif args.apply:
            print("\n".join(apply(settings)))
        else:
            print(preview(settings))
        if not args.uninstall:
            print("\nthen:" if args.apply else "\nnothing was written; after --apply:")
            print("\n".join(f"  {line}" for line in notes(settings)))
        elif lines:
            print("then:\n  sudo systemctl disable --now physvlm\n  sudo systemctl daemon-reload" if args.apply
                  else "nothing was removed; do it with --apply")
    except (InstallError, ConfigError) as e:
        return _refuse(e)
    return OK


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
    print(f"{manifest.id}, made {manifest.created}, for releases {oldest} to {newest}: whole and signed")


def _install_bundle(args: argparse.Namespace) -> None:
    from edge.appliance.bundle import program_version, verify
    from edge.appliance.bundle_store import install

    bundle = verify(Path(args.file), Path(args.keys), program_version())
    print(f"{bundle.manifest.id} is current: {install(bundle, Path(args.store))}\nthen: sudo systemctl restart physvlm")


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
                           (args.min or release, args.max or release), settings, args.id)
    print(f"{args.out}: {manifest.id}, {len(manifest.files)} files; {proof}")


def _refuse(error: Exception) -> int:
    print(f"physvlm: {error}", file=sys.stderr)
    return USAGE


ADD = {"install": add_install, "doctor": add_doctor, "bundle": add_bundle}
