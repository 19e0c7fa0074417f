import { execFile } from "node:child_process";
import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { buildInitramfs } from "./initramfs.ts";

const run = promisify(execFile);
const KERNEL_METAPACKAGE = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE = "busybox-static";

/**
 * Fetches Debian's current cloud kernel and static busybox with the system's own apt, in folders of its own below `folder`, so
 * that it needs no root and changes nothing of the system. Leaves `vmlinuz` and `initramfs.cpio` there. Throws when this is no
 * Debian, or its mirror is out of reach.
 */
export async function fetchDebianGuest(
  folder: string,
  log: (line: string) => void,
): Promise<{ kernel: string; initrd: string; version: string }> {
  const work = join(folder, "apt");
  await rm(work, { recursive: true, force: true });
  for (const part of ["state/lists/partial", "cache/archives/partial", "packages", "kernel", "busybox"])
    await mkdir(join(work, part), { recursive: true });
  const options = [
    `Dir::State=${work}/state`,
    "Dir::State::status=/var/lib/dpkg/status",
    `Dir::Cache=${work}/cache`,
    "APT::Sandbox::User=",
  ];
  const apt = (tool: "apt-get" | "apt-cache", ...args: string[]) =>
    run(tool, [...options.flatMap((option) => ["-o", option]), ...args], { cwd: join(work, "packages"), maxBuffer: 1 << 26 });

  log("reading Debian's package lists");
  await apt("apt-get", "-qq", "update");
  const depends = (await apt("apt-cache", "depends", KERNEL_METAPACKAGE)).stdout;
  const kernelPackage = /Depends:\s+(linux-image-\S+)/.exec(depends)?.[1];
  if (!kernelPackage) throw new Error(`${KERNEL_METAPACKAGE} names no kernel package`);
  log(`downloading ${kernelPackage} and ${BUSYBOX_PACKAGE}`);
  await apt("apt-get", "-qq", "download", kernelPackage, BUSYBOX_PACKAGE);
  for (const archive of await readdir(join(work, "packages"))) {
    const target = archive.startsWith("busybox") ? "busybox" : "kernel";
    await run("dpkg-deb", ["-x", join(work, "packages", archive), join(work, target)]);
  }
  const boot = join(work, "kernel", "boot");
  const image = (await readdir(boot)).find((name) => name.startsWith("vmlinuz-"));
  if (!image) throw new Error(`${kernelPackage} holds no vmlinuz`);
  const kernel = join(folder, "vmlinuz");
  const initrd = join(folder, "initramfs.cpio");
  await cp(join(boot, image), kernel);
  await writeFile(initrd, buildInitramfs(await readFile(join(work, "busybox", "bin", "busybox"))));
  await rm(work, { recursive: true, force: true });
  return { kernel, initrd, version: image.slice("vmlinuz-".length) };
}
