#!/bin/bash
# Boots an emulated machine with a virtual camera (vivid) and runs a command there.
#   vm.sh amd64|arm64 KERNEL ROOT REPOSITORY WORK 'command'
# KERNEL: what kernel.sh made. ROOT: a Debian root of that machine, shared read-only (for amd64 this machine's own, /).
# The command finds the repository at /mnt/repo and a folder that it may write to, WORK/share, at /mnt/share.
# Prints VM_DONE rc=N at the end. The host's KVM is not used: it may be one that no stock kernel boots on.
set -eu
arch=$1 kernel=$2 root=$3 repository=$4 work=$5 command=$6
version=$(ls "$kernel/lib/modules")
rm -rf "$work/ir"
mkdir -p "$work/share" "$work"/ir/{bin,mod,proc,sys,dev,new,low,up}
cp "$kernel/busybox" "$work/ir/bin/busybox"
ln -s busybox "$work/ir/bin/sh"
depmod -b "$kernel" "$version"
for module in virtio_pci 9pnet_virtio 9p overlay vivid; do  # in the order in which they need each other
    modprobe -d "$kernel" -S "$version" --show-depends "$module" | awk '/^insmod/{print $2}'
done | awk '!seen[$0]++' | while read -r file; do
    cp "$file" "$work/ir/mod/"
    basename "$file"
done >"$work/ir/mod/order"
cat >"$work/ir/init" <<'INIT'
#!/bin/sh
B=/bin/busybox
$B mount -t proc p /proc; $B mount -t sysfs s /sys; $B mount -t devtmpfs d /dev
for m in $($B cat /mod/order); do
    case $m in
    vivid.ko*) $B insmod /mod/$m n_devs=1 node_types=0x1 num_inputs=1 input_types=0x00;;
    *) $B insmod /mod/$m;;
    esac || echo "insmod $m failed"
done
share="trans=virtio,version=9p2000.L,msize=262144"
$B mount -t 9p -o $share,ro,cache=loose root /low
$B mount -t tmpfs t /up; $B mkdir /up/u /up/w
$B mount -t overlay -o lowerdir=/low,upperdir=/up/u,workdir=/up/w o /new
$B mkdir -p /new/proc /new/sys /new/dev /new/run /new/tmp /new/mnt
$B mount --move /dev /new/dev; $B mkdir -p /new/dev/shm; $B mount -t tmpfs t /new/dev/shm
$B mount -t proc p /new/proc; $B mount -t sysfs s /new/sys; $B mount -t tmpfs t /new/run
$B mount -t tmpfs t /new/tmp; $B mount -t tmpfs t /new/mnt; $B mkdir /new/mnt/repo /new/mnt/share
$B mount -t 9p -o $share,ro,cache=loose repo /new/mnt/repo
$B mount -t 9p -o $share,rw share /new/mnt/share
echo VM_READY $($B cut -d' ' -f1 /proc/uptime)
$B chroot /new /bin/sh /mnt/share/run.sh; echo VM_DONE rc=$?
$B poweroff -f
INIT
chmod +x "$work/ir/init"
(cd "$work/ir" && find . | cpio -o -H newc --quiet | gzip -1 >"$work/initrd.gz")
printf 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp\n%s\n' "$command" >"$work/share/run.sh"
case $arch in  # the simplest processor model of qemu lacks instructions that numpy's wheels want
amd64) machine=(qemu-system-x86_64 -M q35 -cpu max) console=ttyS0;;
arm64) machine=(qemu-system-aarch64 -M "virt,gic-version=3" -cpu cortex-a76) console=ttyAMA0;;
*) echo "unknown machine $arch" >&2; exit 2;;
esac
exec "${machine[@]}" -accel tcg,thread=multi -smp 2 -m 1536 -nographic -no-reboot -nodefaults -serial stdio -monitor none \
    -kernel "$kernel/boot/vmlinuz-$version" -initrd "$work/initrd.gz" -append "console=$console quiet panic=-1" \
    -virtfs "local,path=$root,mount_tag=root,security_model=none,readonly=on,multidevs=remap" \
    -virtfs "local,path=$repository,mount_tag=repo,security_model=none,readonly=on,multidevs=remap" \
    -virtfs "local,path=$work/share,mount_tag=share,security_model=none"
