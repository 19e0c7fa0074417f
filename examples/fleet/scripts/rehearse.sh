#!/bin/sh
# The upgrade that operators will make, on a daemon of its own: a VM starts on today's KVM, moves to ours, and back.
set -eu
MKVM_STATE_DIR=$(mktemp -d)
export MKVM_STATE_DIR
trap 'mkvm down 2>/dev/null || true; rm -rf "$MKVM_STATE_DIR"' EXIT
mkvm up
mkvm insmod @mkvm/kvm-v1
mkvm ln /dev/kvm1 /dev/kvm
pid=$(mkvm run --detach --kernel bzImage --initrd initramfs.cpio --append "console=ttyS0 rdinit=/bin/sh" --memory 256M)
mkvm insmod @fleet/kvm-fleet
mkvm upgrade "$pid" --to kvmfleet
mkvm rollback "$pid"
mkvm rmmod kvmfleet
mkvm ps
