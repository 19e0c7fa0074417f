import { cp, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { DebianPackages } from "../debian-packages.ts";
import { buildInitramfs } from "./initramfs.ts";

/** Debian's kernels by flavour: for machines of cloud providers, and for any PC. */
const METAPACKAGES = { cloud: "linux-image-cloud-amd64", generic: "linux-image-amd64" } as const;
export type KernelFlavour = keyof typeof METAPACKAGES;
const BUSYBOX_PACKAGE = "busybox-static";

/**
 * Fetches Debian's current kernel of a flavour and static busybox. Leaves `vmlinuz` and `initramfs.cpio` in `folder`. Throws when this is no
 * Debian, or its mirror is out of reach.
 */
export async function fetchDebianGuest(
  folder: string,
  log: (line: string) => void,
  flavour: KernelFlavour = "cloud",
): Promise<{ kernel: string; initrd: string; version: string }> {
  log("reading Debian's package lists");
  const packages = await DebianPackages.open(folder);
  const kernelPackage = (await packages.dependencies(METAPACKAGES[flavour])).find((name) => name.startsWith("linux-image-"));
  if (!kernelPackage) throw new Error(`${METAPACKAGES[flavour]} names no kernel package`);
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
