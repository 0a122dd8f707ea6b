#!/bin/sh
# A small Debian 12 root for arm64 with Python 3.11, numpy and OpenCV, unpacked from packages and wheels: nothing of it runs
# here, so no emulation is needed to make it.   arm64_root.sh PIP FOLDER      PIP: a pip of this machine, to fetch wheels
set -eu
pip=$1
folder=$2
[ -e "$folder/usr/bin/python3.11" ] && exit 0
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo "needs Debian's apt-get and dpkg-deb" >&2; exit 3; }
rm -rf "$folder.partial"
mkdir -p "$folder.partial/apt/lists/partial" "$folder.partial/apt/archives/partial"
cd "$folder.partial"
: >apt/status
set -- -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o "Dir::State::lists=$PWD/apt/lists" \
    -o "Dir::State::status=$PWD/apt/status" -o "Dir::Cache::archives=$PWD/apt/archives" -o Dir::Cache::pkgcache= \
    -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=
apt-get "$@" update
cd apt
apt-get "$@" download libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 liblzma5 libbz2-1.0 libssl3 libuuid1 dash \
    python3.11-minimal libpython3.11-minimal libpython3.11-stdlib python3.11
cd ..
for package in apt/*.deb; do dpkg-deb -x "$package" .; done
"$pip" install -q --disable-pip-version-check --no-compile --only-binary=:all: --platform manylinux2014_aarch64 \
    --platform manylinux_2_28_aarch64 --python-version 3.11 --implementation cp --target usr/lib/python3/dist-packages \
    numpy opencv-python-headless
rm -rf apt
rm -rf "$folder"
mv "$folder.partial" "$folder"
