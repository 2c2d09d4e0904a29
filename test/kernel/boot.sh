#!/usr/bin/env bash
# boot.sh ROOT RUN KERNEL [QEMU ARGUMENT…]: boots KERNEL (debian or built) of ROOT (build-root.sh) under QEMU's emulator and shows
# its console. The folder RUN is shared into it, writable; ROOT with the checkout and the host's Node in it is read-only there.
#
# QEMU is the one of ROOT and runs inside of it, in a namespace of its own: sockets and files in RUN are /towline/run/… for it.
# MEMORY and CPUS in the environment set the size of the machine (1024 MiB, 2), BACKEND where its memory
# comes from (memfd,share=on, which a device outside can map), APPEND adds to the kernel's command line. A terminal's
# keys all go to the guest, ^C too.
# no_timer_check: the kernel counts ticks during its first milliseconds, and panics where a busy host gave the emulator no time.
set -euo pipefail
root=$1
run=$2
kernel=$3
shift 3
checkout=$(cd "$(dirname "$0")/../.." && pwd)
export root run kernel checkout
export MEMORY=${MEMORY:-1024} CPUS=${CPUS:-2} APPEND=${APPEND:-} BACKEND=${BACKEND:-memfd,share=on}
node=$(readlink -f "$(command -v node)")
export node
exec unshare --mount --propagation private sh -euc '
  mount --bind "$run" "$root/towline/run"
  mount --bind "$checkout" "$root/towline/checkout"
  mount --bind "$(dirname "$node")" "$root/towline/host"
  mount --rbind /dev "$root/dev"
  # QEMU makes files for the guest by way of /proc/self/fd.
  mount -t proc proc "$root/proc"
  exec chroot "$root" nice qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp "$CPUS" -m "$MEMORY" \
    -object "memory-backend-$BACKEND,id=ram,size=${MEMORY}M" -M q35,kernel-irqchip=split,memory-backend=ram \
    -nographic -nodefaults -chardev stdio,id=console,signal=off -serial chardev:console -monitor none -no-reboot \
    -kernel "/towline/vmlinuz-$kernel" -initrd "/towline/initramfs-$kernel" \
    -append "console=ttyS0 quiet printk.time=1 panic=-1 oops=panic no_timer_check intel_iommu=on $APPEND" \
    -device intel-iommu,intremap=on,caching-mode=on \
    -virtfs local,path=/,mount_tag=root,security_model=none,multidevs=remap,readonly=on \
    -virtfs local,path=/towline/run,mount_tag=run,security_model=none,multidevs=remap "$@"
' sh "$@"
