#!/bin/sh
# Unpacks Debian's stock kernel for amd64 or arm64 (it ships vivid, the kernel's own virtual camera) into a folder, and
# beside it a static busybox for that machine. Nothing is installed; root is not needed.   kernel.sh amd64|arm64 FOLDER
set -eu
arch=$1
folder=$2
[ -e "$folder/busybox" ] && ls "$folder"/lib/modules/*/kernel/drivers/media/test-drivers/vivid/vivid.ko* >/dev/null 2>&1 && exit 0
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo "needs Debian's apt-get and dpkg-deb" >&2; exit 3; }
rm -rf "$folder.partial"
mkdir -p "$folder.partial/lists/partial" "$folder.partial/archives/partial"
cd "$folder.partial"
# lists of our own, so that the other machine's packages need no change to this system
: >status
set -- -qq -o "APT::Architecture=$arch" -o "APT::Architectures::=$arch" -o "Dir::State::lists=$PWD/lists" \
    -o "Dir::State::status=$PWD/status" -o "Dir::Cache::archives=$PWD/archives" -o "Dir::Cache::pkgcache=" \
    -o "Dir::Cache::srcpkgcache=" -o APT::Sandbox::User=
apt-get "$@" update
image=$(apt-cache "$@" depends "linux-image-$arch" | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
[ -n "$image" ] || { echo "no kernel for $arch among this system's package sources" >&2; exit 3; }
apt-get "$@" download "$image" busybox-static
for package in ./*.deb; do dpkg-deb -x "$package" .; done
cp -L bin/busybox busybox 2>/dev/null || cp -L usr/bin/busybox busybox
rm -rf ./*.deb lists archives status usr/share
rm -rf "$folder"
mv "$folder.partial" "$folder"
