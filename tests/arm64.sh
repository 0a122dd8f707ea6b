#!/usr/bin/env bash
# The runtime on an emulated 64-bit ARM: the same wheels that a board gets, and a clip whose readings must equal this machine's.
# `make arm64`, as root, with debootstrap and qemu-user-static; else it says what is missing and does nothing. The root folder
# (about 500 MB in out/arm64) is kept for the next time.
#
# Packages are unpacked by this machine and nothing is configured inside: all that runs emulated is Python. Traps that others
# found: /sys must not be mounted there (onnxruntime's CPU detection crashes under emulation).
set -euo pipefail
cd "$(dirname "$0")/.."
root=out/arm64 python=${1:-.venv/bin/python} mirror=${MIRROR:-http://deb.debian.org/debian} suite=bookworm version=3.11

skip() { echo "SKIPPED arm64: $1"; exit 0; }
((EUID == 0)) || skip "needs root, to make the root folder and to change into it"
for tool in debootstrap qemu-aarch64-static dpkg-deb chroot; do
    command -v "$tool" >/dev/null || skip "$tool is missing: apt-get install --no-install-recommends debootstrap qemu-user-static"
done

if [ ! -e $root/.unpacked ]; then
    rm -rf $root
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,libgomp1 $suite $root "$mirror" >$root.log ||
        { tail -5 $root.log >&2; exit 1; }
    for package in $root/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" $root; done
    cp "$(command -v qemu-aarch64-static)" $root/usr/bin/
    touch $root/.unpacked
fi
mkdir -p $root/opt/site $root/opt/check
"$python" -m pip install --quiet --disable-pip-version-check --upgrade --target $root/opt/site --only-binary=:all: \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    --python-version $version --implementation cp numpy onnxruntime opencv-python-headless pyserial 2>&1 | grep -v WARNING || true
rm -rf $root/opt/app && mkdir $root/opt/app && cp -r edge engines firmware_bridge $root/opt/app/

"$python" -m calibration phantom $root/opt/check/clip.avi --seconds 20 --size 320x240 --seed 7
"$python" -m edge replay $root/opt/check/clip.avi --roi full --json $root/opt/check/here.json >/dev/null
echo "replaying on the emulated machine ..."
time chroot $root /usr/bin/qemu-aarch64-static /usr/bin/python3 -c '
import sys; sys.path[:0] = ["/opt/site", "/opt/app"]
import platform; print(platform.machine(), "Python", platform.python_version())
from edge.__main__ import main
sys.exit(main(["replay", "/opt/check/clip.avi", "--roi", "full", "--json", "/opt/check/there.json"]))' >$root/opt/check/said
head -1 $root/opt/check/said
"$python" - $root/opt/check/here.json $root/opt/check/there.json <<'PY'
import json, sys
here, there = (json.load(open(path))["readings"] for path in sys.argv[1:])
assert len(here) == len(there) > 10, (len(here), len(there))
worst = 0.0
for a, b in zip(here, there):
    for name in ("hr", "rr"):
        assert a[f"{name}_state"] == b[f"{name}_state"], (a, b)
        assert (a[name] is None) == (b[name] is None), (a, b)
        worst = max(worst, abs((a[name] or 0) - (b[name] or 0)))
shown = sum(r["hr"] is not None for r in there)
assert shown > 5 and worst <= 0.05, (shown, worst)
print(f"{len(there)} readings, {shown} with a heart rate: states equal, rates at most {worst:.3f} /min apart")
PY
