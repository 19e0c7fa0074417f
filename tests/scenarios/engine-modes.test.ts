/** Under icount a run is a function of its inputs: what is translated is none of them. */
import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { tinyGuest } from "./running-guest.ts";

async function run(engine: "off" | "hot" | "always", module: string) {
  const host = await createHost({ directory: import.meta.dirname, clock: "icount", engine });
  try {
    const { devices } = await host.insmod(module);
    await host.ln(devices[0] as string, "/dev/kvm");
    // The digest that the VMM prints at the end is of the guest's memory and of the registers of its vCPUs
    const process = await host.run({ args: [...tinyGuest(50), "--digest"] });
    const decoder = new TextDecoder();
    let console = "";
    for await (const chunk of process.output) console += decoder.decode(chunk, { stream: true });
    const { status } = await process.exited;
    const { retiredInstructions, exits, translator } = await host.engineReport(process.pid);
    return { seen: { console, status, retiredInstructions, exits }, regionsMade: translator.regionsMade };
  } finally {
    await host.close();
  }
}

test.each(["@mkvm/kvm-v1", "@mkvm/kvm-v2"])("a guest on %s runs the same, whatever is translated", async (module) => {
  const off = await run("off", module);
  expect(off.seen).toMatchObject({ status: 0, console: expect.stringMatching(/mkvm-check-end.*\n.*mkvm-digest/s) });
  expect(off.seen.retiredInstructions).toBeGreaterThan(10_000);
  expect(off.regionsMade).toBe(0);
  const hot = await run("hot", module);
  expect(hot.seen).toEqual(off.seen);
  const always = await run("always", module);
  expect(always.regionsMade).toBeGreaterThan(20);
  expect(always.seen).toEqual(off.seen);
});
