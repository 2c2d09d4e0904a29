#!/usr/bin/env bash
# Builds the root file system of the kernel tests, or finds it in the cache, and prints its path. It has QEMU, Debian's kernel,
# the kernel's `mtty` sample built against that kernel, and an initramfs. Nothing of the checkout is in it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/towline
suite=trixie
packages=qemu-system-x86,seabios,linux-image-amd64,linux-headers-amd64,linux-source,busybox-static,kmod,cpio,make,binutils,xz-utils

# Everything that decides what comes out. A newer kernel in the archive is not in it: delete the folder to have that.
key=$(cat "$0" "$here/guest/init" | sha256sum | cut -c1-16)
root=$cache/kernel-$key
if [ -e "$root/towline/complete" ]; then
  echo "$root"
  exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/kernel.lock"
flock 9
if [ -e "$root/towline/complete" ]; then
  echo "$root"
  exit 0
fi
rm -rf "$root"
work=$(mktemp -d "$cache/kernel-building.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# The mirror that this machine uses itself, in either format of its sources.
mirror=$(
  { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
    awk '$1 == "URIs:" { u = $2 } $1 == "deb" { u = ""; for (i = 2; i <= NF; i++) if ($i ~ /^[a-z]+:\//) { u = $i; break } }
         u ~ /\/debian\/?$/ { print u; exit }'
)
if [ -z "$mirror" ]; then
  echo 'no Debian mirror in the apt sources' >&2
  exit 75
fi

# Default-Release: otherwise QEMU's dependencies don't resolve.
exec 8>&1 1>&2
nice mmdebstrap --mode=root --variant=minbase --aptopt="APT::Default-Release \"$suite-backports\"" --include="$packages" \
  "$suite" "$work/root" "deb $mirror $suite main" "deb $mirror $suite-backports main" || exit 75

root_now=$work/root
release=$(basename "$(echo "$root_now"/boot/vmlinuz-*)" | sed 's/^vmlinuz-//')
mkdir -p "$root_now/towline/mtty" "$root_now/towline/run"
tarball=$(echo "$root_now"/usr/src/linux-source-*.tar.xz)
nice tar xf "$tarball" -C "$root_now/towline/mtty" --strip-components=3 --wildcards '*/samples/vfio-mdev/mtty.c'
rm "$tarball"
echo 'obj-m := mtty.o' > "$root_now/towline/mtty/Makefile"
# kbuild wants /proc and /dev; the mounts go with the namespace.
unshare --mount --propagation private sh -euc '
  mount -t proc proc "$1/proc"
  mount --rbind /dev "$1/dev"
  chroot "$1" nice make -C "/usr/src/linux-headers-$2" M=/towline/mtty modules
' sh "$root_now" "$release"
cp "$root_now/towline/mtty/mtty.ko" "$root_now/towline/mtty.ko"

# The initramfs only mounts the root: busybox, and the modules that 9p over virtio needs, in their order.
image=$work/initramfs
mkdir -p "$image"/{bin,dev,proc,sys,root,modules}
cp "$root_now/bin/busybox" "$image/bin/busybox"
ln -s busybox "$image/bin/sh"
cp "$here/guest/init" "$image/init"
chmod 755 "$image/init"
number=10
for module in 9pnet_virtio 9p; do
  chroot "$root_now" modprobe --set-version "$release" --show-depends "$module" | while read -r verb path _; do
    [ "$verb" = insmod ] || continue
    name=$(basename "$path" .xz)
    ls "$image"/modules/*"-$name" >/dev/null 2>&1 && continue
    xz --decompress --stdout "$root_now$path" > "$image/modules/$(ls "$image/modules" | wc -l | xargs -I{} expr {} + "$number")-$name"
  done
done
(cd "$image" && find . | cpio --quiet --create --format=newc | gzip -1) > "$root_now/towline/initramfs"
cp "$root_now/boot/vmlinuz-$release" "$root_now/towline/vmlinuz"
echo "$release" > "$root_now/towline/complete"
mv "$root_now" "$root"
exec 1>&8
echo "$root"
