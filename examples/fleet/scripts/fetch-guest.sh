#!/bin/sh
# Debian's cloud kernel as bzImage, and an initramfs.cpio with its static busybox. Needs a Debian (the CI job runs in its image) with
# cpio; changes nothing of the system.
set -eu
root=$PWD
if [ -e bzImage ] && [ -e initramfs.cpio ]; then exit 0; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
apt-get -qq download "$kernel" busybox-static
for package in *.deb; do dpkg-deb -x "$package" tree; done
mkdir -p root/bin root/dev root/proc root/sys root/tmp
cp tree/bin/busybox root/bin/
for name in sh mount umount ls cat echo poweroff; do ln -s busybox "root/bin/$name"; done
(cd root && find . | cpio --quiet -o -H newc) > "$root/initramfs.cpio"
cp tree/boot/vmlinuz-* "$root/bzImage"
