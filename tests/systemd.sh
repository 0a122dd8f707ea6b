#!/usr/bin/env bash
# The appliance's unit under a running systemd: a Debian in a container, in which `physvlm install --apply` is run and followed,
# a clip is the camera and a pseudo-terminal the display. `make systemd`, as root, with debootstrap and systemd-container; else it
# says what is missing and does nothing. The root folder (about 700 MB in out/systemd) is kept for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."
root=out/systemd python=${1:-.venv/bin/python} mirror=${MIRROR:-http://deb.debian.org/debian} suite=bookworm version=3.11

skip() { echo "SKIPPED systemd: $1"; exit 0; }
((EUID == 0)) || skip "needs root, to make the root folder and to start a container"
for tool in debootstrap systemd-nspawn; do
    command -v "$tool" >/dev/null || skip "$tool is missing: apt-get install --no-install-recommends debootstrap systemd-container"
done

if [ ! -e $root/.ready ]; then
    rm -rf $root
    debootstrap --variant=minbase --include=systemd,systemd-sysv,udev,python3,libgomp1 $suite $root "$mirror" >$root.log ||
        { tail -5 $root.log >&2; exit 1; }
    touch $root/.ready
fi
mkdir -p $root/opt/site $root/opt/physvlm/bin
"$python" -m pip install --quiet --disable-pip-version-check --upgrade --target $root/opt/site --only-binary=:all: \
    --python-version $version --implementation cp numpy onnxruntime opencv-python-headless pyserial 2>&1 | grep -v WARNING || true
rm -rf $root/opt/app && mkdir $root/opt/app && cp -r edge engines firmware_bridge $root/opt/app/
printf '#!/bin/sh\nPYTHONPATH=/opt/site:/opt/app exec /usr/bin/python3 -m edge "$@"\n' >$root/opt/physvlm/bin/physvlm
chmod 755 $root/opt/physvlm/bin/physvlm
cp tests/systemd_inside.py $root/opt/
"$python" -m calibration phantom $root/opt/clip.avi --seconds 90 --size 160x120 --seed 7 --hr 150 --rr 45 \
    --set codec=mjpeg:95 >/dev/null 2>&1
cat >$root/etc/systemd/system/check.service <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec=240
Environment=PYTHONPATH=/opt/site:/opt/app
ExecStart=/bin/sh -c '/usr/bin/python3 /opt/systemd_inside.py >/opt/said 2>&1; systemctl poweroff'
UNIT
mkdir -p $root/etc/systemd/system/default.target.wants
ln -sf ../check.service $root/etc/systemd/system/default.target.wants/
rm -f $root/opt/said
timeout 300 systemd-nspawn -D $root --boot --register=no --keep-unit --link-journal=no --resolv-conf=off --console=pipe \
    </dev/null >$root.log 2>&1 || true
[ -s $root/opt/said ] || { tail -5 $root.log >&2; skip "the container did not start here"; }
cat $root/opt/said
tail -1 $root/opt/said | grep -qx "all of it as it must be"
