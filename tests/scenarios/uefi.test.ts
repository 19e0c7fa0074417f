/**
 * UEFI firmware that nobody here wrote: OVMF from the reset vector, through 32-bit code and paging it sets up itself, to its shell. The
 * shell answers on the version that the VM was started on, on the one that it moves to, and after it was saved; what it stores is in the
 * file afterwards.
 */
import { copyFileSync, mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createHost } from "@mkvm/host";
import { findUefiFirmware } from "@mkvm/testkit";
import { expect, test } from "vitest";
import { UefiShell } from "./uefi-shell.ts";

const firmware = await findUefiFirmware(console.log);
if (!firmware && process.env.CI)
  throw new Error("CI must run firmware: none could be had from the cache or the package manager");

test.skipIf(!firmware)(
  "OVMF comes to its shell, which answers after a move and after a save, and keeps its variables",
  { timeout: 300_000 },
  async () => {
    const folder = mkdtempSync(join(tmpdir(), "mkvm-uefi-"));
    const variables = join(folder, "variables.fd");
    copyFileSync(firmware!.variables, variables);
    const host = await createHost({ directory: import.meta.dirname });
    try {
      await host.insmod("@mkvm/kvm-v1");
      await host.insmod("@mkvm/kvm-v2");
      await host.ln("/dev/kvm1", "/dev/kvm");
      const shell = await UefiShell.start(host, firmware!.code, variables);
      await shell.reached();
      expect(await shell.ask("ver")).toMatch(/UEFI v2\.\d+ \(EDK II, /);
      const { pid } = shell.guest;
      expect((await host.upgrade({ pid, to: "kvm2" })).map(({ moved, failed }) => failed?.reason ?? moved)).toEqual([true]);
      await shell.ask("set moved yes");
      const path = join(folder, "saved");
      await host.save({ pid, path, stop: true });
      await shell.guest.process.exited;
      const later = UefiShell.of(await host.restore({ path, module: "kvm1" }));
      expect(await later.ask("echo so: %moved%")).toContain("so: yes");
      await later.ask("set saved yes");
      expect(await later.turnOff()).toBe(0);
    } finally {
      await host.close();
    }
    const [before, after] = [firmware!.variables, variables].map((path) => readFileSync(path));
    const holds = (file: Buffer) => ["moved", "saved"].map((name) => file.includes(Buffer.from(name, "utf16le")));
    expect([holds(before!), holds(after!)]).toEqual([
      [false, false],
      [true, true],
    ]);
    expect(after!.length).toBe(before!.length);
  },
);
