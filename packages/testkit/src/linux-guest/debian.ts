import { cp, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { DebianPackages } from "../debian-packages.ts";
import { buildInitramfs } from "./initramfs.ts";

const KERNEL_METAPACKAGE = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE = "busybox-static";

/**
 * Fetches Debian's current cloud kernel and static busybox. Leaves `vmlinuz` and `initramfs.cpio` in `folder`. Throws when this is no
 * Debian, or its mirror is out of reach.
 */
export async function fetchDebianGuest(
  folder: string,
  log: (line: string) => void,
): Promise<{ kernel: string; initrd: string; version: string }> {
  log("reading Debian's package lists");
  const packages = await DebianPackages.open(folder);
  const kernelPackage = (await packages.dependencies(KERNEL_METAPACKAGE)).find((name) => name.startsWith("linux-image-"));
  if (!kernelPackage) throw new Error(`${KERNEL_METAPACKAGE} names no kernel package`);
  log(`downloading ${kernelPackage} and ${BUSYBOX_PACKAGE}`);
  const boot = join(await packages.unpack(kernelPackage), "boot");
  const image = (await readdir(boot)).find((name) => name.startsWith("vmlinuz-"));
  if (!image) throw new Error(`${kernelPackage} holds no vmlinuz`);
  const kernel = join(folder, "vmlinuz");
  const initrd = join(folder, "initramfs.cpio");
  await cp(join(boot, image), kernel);
  const busybox = join(await packages.unpack(BUSYBOX_PACKAGE), "bin", "busybox");
  await writeFile(initrd, buildInitramfs(await readFile(busybox)));
  await packages.close();
  return { kernel, initrd, version: image.slice("vmlinuz-".length) };
}
