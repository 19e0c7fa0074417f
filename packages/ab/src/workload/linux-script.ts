/**
 * A shell script in a Linux guest: a small archive with a first process of ours goes behind the given initrd, as the kernel
 * unpacks several archives one after the other. Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
 */
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const scriptMarkers = { start: "mkvm-ab: the script starts", end: "mkvm-ab: the script has ended" } as const;
/** Followed by the script's exit status. */
export const scriptStatus = "mkvm-ab: exit status ";

const initPath = "mkvm-ab-init";
const scriptPath = "mkvm-ab-script";

/** For the kernel's command line. */
export const scriptCommandLine = `rdinit=/${initPath}`;

const init = `#!/bin/sh
export PATH=/sbin:/bin:/usr/sbin:/usr/bin
mkdir -p /proc /sys /dev /tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "${scriptMarkers.start}"
/bin/sh /${scriptPath}
echo "${scriptStatus}$?"
echo "${scriptMarkers.end}"
sync
poweroff -f
`;

/** Writes the initrd with the script behind it to a folder for temporary files; its path. */
export function initrdWithScript(initrd: string, script: string): string {
  const given = readFileSync(initrd);
  const archive = cpioArchive([
    { path: initPath, mode: 0o755, content: Buffer.from(init) },
    { path: scriptPath, mode: 0o755, content: readFileSync(script) },
  ]);
  const path = join(mkdtempSync(join(tmpdir(), "mkvm-ab-")), "initrd");
  // Archives begin at multiples of 4 bytes; zeros between them are skipped.
  writeFileSync(path, Buffer.concat([given, Buffer.alloc(-given.length & 3), archive]));
  return path;
}

interface CpioFile {
  path: string;
  mode: number;
  content: Uint8Array;
}

const regularFile = 0o100000;

function cpioArchive(files: readonly CpioFile[]): Buffer {
  const record = ({ path, mode, content }: CpioFile, inode: number): Uint8Array[] => {
    const name = Buffer.from(`${path}\0`);
    const fields = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length, 0];
    const header = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}`);
    return [header, name, Buffer.alloc(-(header.length + name.length) & 3), content, Buffer.alloc(-content.length & 3)];
  };
  const records = files.map((file, index) => record({ ...file, mode: regularFile | file.mode }, index + 1));
  const trailer = record({ path: "TRAILER!!!", mode: 0, content: new Uint8Array(0) }, 0);
  return Buffer.concat([...records.flat(), ...trailer]);
}
