/**
 * Programs for bare PCs that nobody here wrote: SeaBIOS from the reset vector to its last word, through real mode, unreal mode,
 * 32-bit mode and back; memtest86+ through its first tests, 64-bit and 32-bit with PAE.
 */
import { createHost } from "@mkvm/host";
import { findFirmware } from "@mkvm/testkit";
import { expect, test } from "vitest";
import { RunningGuest } from "./running-guest.ts";

const firmware = await findFirmware(console.log);
if (!firmware && process.env.CI)
  throw new Error("CI must run firmware: none could be had from the cache or the package manager");

async function onModule(module: string, args: string[], run: (guest: RunningGuest) => Promise<void>): Promise<void> {
  const host = await createHost({ directory: import.meta.dirname });
  try {
    const { name } = await host.insmod(module);
    await host.ln(`/dev/${name}`, "/dev/kvm");
    await run(await RunningGuest.start(host, args));
  } finally {
    await host.close();
  }
}

test.skipIf(!firmware).for(["@mkvm/kvm-v1", "@mkvm/kvm-v2"])(
  "SeaBIOS finds no bootable device on %s",
  { timeout: 300_000 },
  async (module) => {
    const args = ["--kernel", firmware!.seabios, "--format", "firmware", "--memory", "64M"];
    await onModule(module, args, async (guest) => {
      await guest.until("its last word", () => guest.transcript.includes("No bootable device."));
      expect(guest.transcript).toContain("RamSize: 0x04000000 [cmos]");
      expect(guest.transcript).toContain("Booting from Hard Disk...");
    });
  },
);

/** The number of the last test, which waits for minutes: with it the others are done. */
const BIT_FADE = 10;

test.skipIf(!firmware).for([
  ["@mkvm/kvm-v1", "memtest32"],
  ["@mkvm/kvm-v2", "memtest64"],
] as const)("on %s %s finds the memory good", { timeout: 600_000 }, async ([module, program]) => {
  const args = ["--kernel", firmware![program], "--memory", "8M", "--append", "console=ttyS0,115200"];
  await onModule(module, args, async (guest) => {
    await guest.until("its last test", () => guest.transcript.includes(`#${BIT_FADE} `));
    // The frame counts errors behind the passes; what changes is drawn over it
    expect(guest.transcript).toMatch(/Errors: 0/);
    expect(guest.transcript).not.toMatch(/Errors:\s*[1-9]|Failing Address|Unexpected interrupt/i);
  });
});
