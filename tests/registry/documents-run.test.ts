/** Every command of the documents for users works as written, in a fresh folder, with packages from a registry. */
import { copyFileSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { checkGuest, findLinuxGuest, findUefiFirmware } from "@mkvm/testkit";
import { afterAll, beforeAll, expect, test } from "vitest";
import { attempt } from "./commands.ts";
import { documentCommands, documentFolder } from "./document-commands.ts";
import { startPublishedRegistry } from "./first-release.ts";
import type { LoopbackRegistry } from "./loopback-registry.ts";
import { UserProject } from "./user-project.ts";
import { workspace } from "./workspace-release.ts";

const documents = join(workspace, "docs");
const withCommands = readdirSync(documents).filter(
  (name) => name.endsWith(".md") && documentCommands(join(documents, name)).length > 0,
);

let registry: LoopbackRegistry;

beforeAll(async () => {
  registry = await startPublishedRegistry();
}, 400_000);
afterAll(async () => {
  await registry?.close();
}, 400_000);

test("the quick start and each how-to are among them", () => {
  expect(withCommands).toEqual(
    expect.arrayContaining(["quick-start.md", ...readdirSync(documents).filter((name) => name.startsWith("how-to-"))]),
  );
});

test.each(withCommands)("docs/%s", { timeout: 600_000 }, async (name) => {
  const project = new UserProject(registry, { empty: true });
  try {
    const folder = documentFolder(join(documents, name));
    if (folder === undefined) await provideGuest(project.folder);
    else await project.copyFrom(folder);
    if (readFileSync(join(documents, name), "utf8").includes("OVMF_CODE_4M.fd")) await provideFirmware(project.folder);
    for (const { line, command } of documentCommands(join(documents, name))) {
      const { status, stdout, stderr } = await attempt("bash", ["-euc", command], { cwd: project.folder, env: project.env });
      if (status !== 0) throw new Error(`docs/${name}:${line}: ${command}: status ${status}\n${stdout}${stderr}`);
    }
  } finally {
    await project.remove();
  }
});

/** `bzImage` and `initramfs.cpio` in the folder, as the documents call them, and a small bare-metal guest as `guest.bin`. */
async function provideGuest(folder: string): Promise<void> {
  writeFileSync(join(folder, "guest.bin"), checkGuest(3));
  const linux = await findLinuxGuest({ log: console.log });
  if (!linux) throw new Error("no kernel could be had from the cache or the package manager, which these documents need");
  copyFileSync(linux.kernel, join(folder, "bzImage"));
  copyFileSync(linux.initrd, join(folder, "initramfs.cpio"));
}

/** UEFI firmware in the folder, by the names of its package. */
async function provideFirmware(folder: string): Promise<void> {
  const firmware = await findUefiFirmware(console.log);
  if (!firmware) throw new Error("no firmware could be had from the cache or the package manager, which this document needs");
  copyFileSync(firmware.code, join(folder, "OVMF_CODE_4M.fd"));
  copyFileSync(firmware.variables, join(folder, "OVMF_VARS_4M.fd"));
}
