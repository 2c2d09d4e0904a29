#!/usr/bin/env bash
# Builds the root file system of the kernel tests, or finds it in the cache, and prints its path. It has QEMU, two kernels
# (Debian's own, and one built from Debian's source by kernel.config), what the tests use in the guest, and the initramfs of each
# kernel. Nothing of the checkout is in it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/towline
suite=trixie
packages=qemu-system-x86,seabios,linux-image-amd64,linux-headers-amd64,linux-source,busybox-static,kmod,cpio,make,binutils,xz-utils
# The compiler and what a kernel needs to be built.
packages+=,gcc,libc6-dev,flex,bison,bc,libelf-dev,libssl-dev,perl-base
# What the tests use, and what they compare with.
packages+=,nvme-cli,libnvme-dev,pkgconf,fio,e2fsprogs,pciutils,iproute2,procps

mkdir -p "$cache"
exec 9>"$cache/kernel.lock"
flock --nonblock 9 || { echo "waiting for another build of the kernel tests' root" >&2; flock 9; }
# From here on everything is a message, and only the path at the end goes to the caller.
exec 8>&1 1>&2

# The mirror that this machine uses itself, in either format of its sources.
mirror=$(
  { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
    awk '$1 == "URIs:" { u = $2 } $1 == "deb" { u = ""; for (i = 2; i <= NF; i++) if ($i ~ /^[a-z]+:\//) { u = $i; break } }
         u ~ /\/debian\/?$/ { print u; exit }'
)

# Ends with 69 where the packages can't be had, which is no failure of ours; whatever goes wrong after that is one.
need_mirror() {
  if [ -z "$mirror" ]; then
    echo 'no Debian mirror in the apt sources'
    exit 69
  fi
  release=$(mktemp)
  if ! /usr/lib/apt/apt-helper download-file "$mirror/dists/$suite/Release" "$release" > /dev/null; then
    rm -f "$release"
    echo "the Debian mirror of the apt sources can not be reached"
    exit 69
  fi
  rm -f "$release"
}

# Runs a command in the root with /proc and /dev, which go with the namespace.
inside() {
  unshare --mount --propagation private sh -euc '
    root=$1
    shift
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    exec chroot "$root" nice "$@"
  ' sh "$@"
}

# Shows that a long build goes on: every 250th line of it.
progress() { awk -v what="$1" 'NR % 250 == 0 { print what ": " NR " files"; fflush() }'; }

build_root() {
  # need_mirror has looked already; the text of this function is part of the root's key.
  if [ -z "$mirror" ]; then
    echo 'no Debian mirror in the apt sources'
    exit 75
  fi
  work=$(mktemp -d "$cache/building.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  chmod 755 "$work"
  # Default-Release: otherwise QEMU's dependencies don't resolve.
  nice mmdebstrap --mode=root --variant=minbase --aptopt="APT::Default-Release \"$suite-backports\"" --include="$packages" \
    "$suite" "$work/root" "deb $mirror $suite main" "deb $mirror $suite-backports main" || exit 75
  mkdir -p "$work/root/towline/run" "$work/root/towline/checkout" "$work/root/towline/host" "$work/root/work"
  release=$(basename "$(echo "$work/root"/boot/vmlinuz-*)" | sed 's/^vmlinuz-//')
  echo "$release" > "$work/root/towline/release-debian"
  cp "$work/root/boot/vmlinuz-$release" "$work/root/towline/vmlinuz-debian"
  # Debian's kernel has no samples: mtty is built against its headers.
  mkdir "$work/root/towline/mtty"
  tarball=$(echo "$work/root"/usr/src/linux-source-*.tar.xz)
  nice tar xf "$tarball" -C "$work/root/towline/mtty" --strip-components=3 --wildcards '*/samples/vfio-mdev/mtty.c'
  echo 'obj-m := mtty.o' > "$work/root/towline/mtty/Makefile"
  inside "$work/root" make -C "/usr/src/linux-headers-$release" M=/towline/mtty modules
  install -D "$work/root/towline/mtty/mtty.ko" "$work/root/lib/modules/$release/extra/mtty.ko"
  inside "$work/root" depmod "$release"
  rm -rf "$root"
  mv "$work/root" "$root"
  rm -rf "$work"
  trap - EXIT
}

# The kernel that has what Debian's lacks: iommufd and its test devices, cdev, fault injection, VFIO in debugfs.
build_kernel() {
  tarball=$(echo "$root"/usr/src/linux-source-*.tar.xz)
  echo 'building the kernel from its source: 5 minutes on two CPUs, and 2000 files'
  rm -rf "$root/towline/linux"
  mkdir -p "$root/towline/linux"
  nice tar xf "$tarball" -C "$root/towline/linux" --strip-components=1
  cp "$here/kernel.config" "$root/towline/linux/towline.config"
  inside "$root" make -s -C /towline/linux tinyconfig
  inside "$root" sh -euc 'cd /towline/linux && scripts/kconfig/merge_config.sh -m .config towline.config >/dev/null && make -s olddefconfig'
  # An option that the source doesn't have, or that another one forbids, would be missing without a word.
  missing=$(grep -vxFf "$root/towline/linux/.config" "$root/towline/linux/towline.config" | grep -v '=n$' | grep -v '^#' || true)
  if [ -n "$missing" ]; then
    echo "the kernel's configuration lacks: $missing"
    exit 1
  fi
  inside "$root" make -C /towline/linux "-j$(nproc)" bzImage modules | progress kernel
  release=$(cat "$root/towline/linux/include/config/kernel.release")
  rm -rf "$root/lib/modules/$release"
  inside "$root" make -s -C /towline/linux modules_install
  cp "$root/towline/linux/arch/x86/boot/bzImage" "$root/towline/vmlinuz-built"
  echo "$release" > "$root/towline/release-built"
  rm -rf "$root/towline/linux"
}

# An initramfs only mounts the root: busybox, and the modules that 9p over virtio needs, in their order.
build_initramfs() {
  image=$(mktemp -d "$cache/initramfs.XXXXXX")
  release=$(cat "$root/towline/release-$1")
  mkdir -p "$image"/{bin,dev,proc,sys,root,modules}
  cp "$root/bin/busybox" "$image/bin/busybox"
  ln -s busybox "$image/bin/sh"
  cp "$here/guest/init" "$image/init"
  chmod 755 "$image/init"
  number=10
  if [ "$1" = debian ]; then
    for module in 9pnet_virtio 9p; do
      chroot "$root" modprobe --set-version "$release" --show-depends "$module" | while read -r verb path _; do
        [ "$verb" = insmod ] || continue
        name=$(basename "$path" .xz)
        ls "$image"/modules/*"-$name" >/dev/null 2>&1 && continue
        xz --decompress --stdout "$root$path" > "$image/modules/$(ls "$image/modules" | wc -l | xargs -I{} expr {} + "$number")-$name"
      done
    done
  fi
  (cd "$image" && find . | cpio --quiet --create --format=newc | gzip -1) > "$root/towline/initramfs-$1"
  rm -rf "$image"
}

# Each part has a mark with the key of what it was made from, written last.
up_to_date() { [ "$(cat "$root/towline/made-$1" 2>/dev/null)" = "$2" ]; }
made() { echo "$2" > "$root/towline/made-$1"; }

# What decides about the root is in its name, so that another version of the tests has another. A newer kernel in the archive is not
# in it: delete the folder to have that.
key=$({ echo "$suite $packages"; declare -f build_root; } | sha256sum | cut -c1-16)
root=$cache/root-$key
# What a build that was killed left, and roots that no test asked for in two weeks.
rm -rf "$cache"/building.* "$cache"/initramfs.*
find "$cache" -maxdepth 1 -name 'root-*' -mtime +14 ! -path "$root" -exec rm -rf {} +

up_to_date root "$key" || { need_mirror; build_root; made root "$key"; }
config=$(sha256sum < "$here/kernel.config")
up_to_date kernel "$config" || { build_kernel; made kernel "$config"; }
init=$(sha256sum < "$here/guest/init")
up_to_date init "$init" || { build_initramfs debian; build_initramfs built; made init "$init"; }
touch "$root"
exec 1>&8
echo "$root"
