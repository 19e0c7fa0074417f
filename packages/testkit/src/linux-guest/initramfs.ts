import { type CpioEntry, cpioArchive } from "./cpio.ts";
import { benchScript, checkScript, init } from "./init.ts";

/** Programs of busybox that init and a person at its shell use. */
const applets = (
  "sh mount umount cat echo uname poweroff reboot sync dmesg stty sleep md5sum gzip gunzip dd wc ls ps free uptime " +
  "setsid cttyhack awk grep sed head tail mkdir mkfifo rm cp mv ln kill top vi hexdump date time seq true cmp env id"
).split(" ");

const text = new TextEncoder();

/** An initramfs with a static busybox as its only program, and init.ts as its first process. */
export function buildInitramfs(busybox: Uint8Array): Uint8Array {
  const directories = ["bin", "dev", "proc", "sys", "tmp", "root"].map(
    (path): CpioEntry => ({ path, type: "directory", mode: 0o755 }),
  );
  return cpioArchive([
    ...directories,
    { path: "dev/console", type: "character", mode: 0o600, major: 5, minor: 1 },
    { path: "bin/busybox", type: "file", mode: 0o755, content: busybox },
    ...applets.map((applet): CpioEntry => ({ path: `bin/${applet}`, type: "symlink", target: "busybox" })),
    { path: "init", type: "file", mode: 0o755, content: text.encode(init) },
    { path: "check.sh", type: "file", mode: 0o644, content: text.encode(checkScript) },
    { path: "bench.sh", type: "file", mode: 0o644, content: text.encode(benchScript) },
  ]);
}
