#!/usr/bin/env bash
# boot.sh ROOT RUN: boots the kernel of ROOT (build-root.sh) under QEMU's emulator with the folder RUN shared into it, and shows
# its console. Both are read-only to the guest, whose memory is all it can write.
#
# no_timer_check: the kernel counts ticks during its first milliseconds, and panics where a busy host gave the emulator no time.
set -euo pipefail
root=$1
run=$2
# QEMU is the one of ROOT and runs inside of it, so RUN is put in its place there, in a namespace of its own.
exec unshare --mount --propagation private sh -euc '
  mount --bind "$2" "$1/towline/run"
  mount --rbind /dev "$1/dev"
  exec chroot "$1" nice qemu-system-x86_64 -M q35,kernel-irqchip=split -accel tcg,thread=multi -cpu max -smp 2 -m 1024 \
    -nographic -nodefaults -serial stdio -monitor none -no-reboot -kernel /towline/vmlinuz -initrd /towline/initramfs \
    -append "console=ttyS0 quiet panic=-1 oops=panic no_timer_check intel_iommu=on" \
    -device intel-iommu,intremap=on,caching-mode=on -device pcie-root-port,id=rp0,slot=0,chassis=0 -device igb,bus=rp0 \
    -virtfs local,path=/,mount_tag=root,security_model=none,multidevs=remap,readonly=on \
    -virtfs local,path=/towline/run,mount_tag=run,security_model=none,multidevs=remap,readonly=on
' sh "$root" "$run"
