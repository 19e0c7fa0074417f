import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { RunningGuest, tinyGuest } from "./running-guest.ts";

/** Writes to the debug-exit port what CPUID says of POPCNT and of AVX2, in bits 0 and 1. */
// biome-ignore format: an instruction a line
const GUEST = [
  0xb8, 1, 0, 0, 0, 0x0f, 0xa2,                   // mov eax, 1; cpuid
  0xc1, 0xe9, 23, 0x83, 0xe1, 1, 0x89, 0xce,      // shr ecx, 23; and ecx, 1; mov esi, ecx
  0xb8, 7, 0, 0, 0, 0x31, 0xc9, 0x0f, 0xa2,       // mov eax, 7; xor ecx, ecx; cpuid
  0xc1, 0xeb, 5, 0x83, 0xe3, 1,                   // shr ebx, 5; and ebx, 1
  0x8d, 0x04, 0x5e,                               // lea eax, [rsi + rbx * 2]
  0xe6, 0xf4, 0xf4,                               // out 0xf4, al; hlt
];

/** Writes 1 to the debug-exit port, unless POPCNT is undefined: there is no handler, so that the guest ends by a triple fault. */
// biome-ignore format: an instruction a line
const POPCNT_GUEST = [
  0xf3, 0x0f, 0xb8, 0xc0,                         // popcnt eax, eax
  0xb0, 1, 0xe6, 0xf4, 0xf4,                      // mov al, 1; out 0xf4, al; hlt
];

test.each(["intel", "amd"] as const)("a %s machine of a lower level has no more for its guests", async (vendor) => {
  const folder = mkdtempSync(join(tmpdir(), "mkvm-cpu-models-"));
  const kernel = join(folder, "guest.bin");
  const popcnt = join(folder, "popcnt.bin");
  writeFileSync(kernel, Uint8Array.from(GUEST));
  writeFileSync(popcnt, Uint8Array.from(POPCNT_GUEST));
  const host = await createHost({ directory: import.meta.dirname, vendor, cpuModel: "x86-64-v1" });
  try {
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm2", "/dev/kvm");
    const run = async (image: string, ...more: string[]): Promise<{ status: number; said: string }> => {
      const args = ["--kernel", image, "--format", "flat64", "--memory", "16M", ...more];
      const process = await host.run({ program: "@mkvm/vmm", args });
      const { status } = await process.exited;
      return { status, said: new TextDecoder().decode(process.console()) };
    };
    expect((await run(kernel)).status).toBe(1);
    const refused = await run(kernel, "--cpu", "x86-64-v2");
    expect(refused.said).toContain("--cpu x86-64-v2: this KVM does not offer SSE3, SSSE3, CX16, SSE4.1, SSE4.2, POPCNT, LAHF");
    expect((await run(popcnt)).status).not.toBe(3);
  } finally {
    await host.close();
  }
});

test.each(["intel", "amd"] as const)("guests of %s machines have what their CPU model says", async (vendor) => {
  const folder = mkdtempSync(join(tmpdir(), "mkvm-cpu-models-"));
  const kernel = join(folder, "guest.bin");
  writeFileSync(kernel, Uint8Array.from(GUEST));
  const host = await createHost({ directory: import.meta.dirname, vendor });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const run = async (model: string): Promise<number> => {
      const args = ["--kernel", kernel, "--format", "flat64", "--memory", "16M", "--cpu", model];
      const process = await host.run({ program: "@mkvm/vmm", args });
      return (await process.exited).status;
    };
    const statuses: number[] = [];
    for (const model of ["x86-64-v1", "x86-64-v2", "x86-64-v3", "max"]) statuses.push(await run(model));
    // (value << 1) | 1
    expect(statuses).toEqual([1, 3, 7, 7]);
  } finally {
    await host.close();
  }
});

test.each(["intel", "amd"] as const)(
  "a saved VM goes on where its guest has what it had, and is refused elsewhere (%s)",
  async (vendor) => {
    const folder = mkdtempSync(join(tmpdir(), "mkvm-cpu-models-"));
    const models = ["x86-64-v1", "x86-64-v2", "max"] as const;
    const whole = await createHost({ directory: import.meta.dirname, vendor });
    try {
      await whole.insmod("@mkvm/kvm-v1");
      await whole.ln("/dev/kvm1", "/dev/kvm");
      for (const model of models) {
        const guest = await RunningGuest.start(whole, [...tinyGuest(), "--cpu", model]);
        await guest.rounds(3);
        await whole.save({ pid: guest.pid, path: join(folder, model), stop: true });
        await guest.process.exited;
      }
    } finally {
      await whole.close();
    }
    const lower = await createHost({ directory: import.meta.dirname, vendor, cpuModel: "x86-64-v1" });
    try {
      await lower.insmod("@mkvm/kvm-v2");
      await lower.ln("/dev/kvm2", "/dev/kvm");
      const before = await lower.resources();
      const refuses = async (model: string, why: string): Promise<void> => {
        await expect(lower.restore({ path: join(folder, model) })).rejects.toThrow(why);
        expect(await lower.resources()).toEqual(before);
        expect(await lower.ps()).toEqual([]);
      };
      const ofV2 = "its guest has SSE3, SSSE3, CX16, SSE4.1, SSE4.2, POPCNT, LAHF";
      const behind = "which this machine of CPU model x86-64-v1 lacks: it needs model";
      await refuses("x86-64-v2", `${ofV2}, ${behind} x86-64-v2 or higher; nothing was restored`);
      await refuses("max", `RDSEED, ADX, SHA, RDPID, ${behind} max; nothing was restored`);
      const process = await lower.restore({ path: join(folder, "x86-64-v1") });
      process.write("stop\n");
      expect((await process.exited).status).toBe(0);
      expect(new TextDecoder().decode(process.console())).toContain("mkvm-check-end");
    } finally {
      await lower.close();
    }
  },
);
