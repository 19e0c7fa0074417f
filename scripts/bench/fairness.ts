/** How many busy VMs share few logical CPUs. */
import { join } from "node:path";
import { createHost } from "@mkvm/host";

export interface Fairness {
  /** Of each VM: the longest time in which it did not run, milliseconds. */
  gapsMs: number[];
  /** Of each VM: what it got done, as a share of the mean. */
  shares: number[];
}

/**
 * Runs `vms` VMs that never give way on `cpus` logical CPUs, all at the same time for so many seconds: of the wall clock, which on
 * a busy machine tells of others too, or of `icount`, where a second is 100 million instructions and only the scheduler counts.
 */
export async function fairness(
  module: string,
  clock: "wall" | "icount",
  { vms = 50, cpus = 2, seconds = 5 }: { vms?: number; cpus?: number; seconds?: number } = {},
): Promise<Fairness> {
  const host = await createHost({ directory: process.cwd(), cpus, clock });
  const { poweredOnMs } = host.machine;
  try {
    const { name } = await host.insmod(module);
    await host.ln(`/dev/${name}`, "/dev/kvm");
    // Each VM waits for the same instant, which comes when the last has long started
    const nowMs = clock === "wall" ? performance.timeOrigin + performance.now() - poweredOnMs : 0;
    const begin = (nowMs + 200 * vms) * 1e6;
    const end = begin + seconds * 1e9;
    const program = join(import.meta.dirname, "exit-program");
    const results = await Promise.all(
      Array.from({ length: vms }, async (_, index) => {
        const args = ["gap", String(begin), String(end)];
        const run = await host.run({ program, args, cpu: index % cpus, memoryBytes: 8 << 20 });
        const decoder = new TextDecoder();
        let said = "";
        for await (const chunk of run.output) said += decoder.decode(chunk, { stream: true });
        const exit = await run.exited;
        if (exit.status !== 0) throw new Error(`VM ${index} ended with status ${exit.status}: ${exit.message ?? said}`);
        const [gapNs, readings] = said.split(" ").map(Number);
        return { gapMs: gapNs / 1e6, readings };
      }),
    );
    const mean = results.reduce((sum, { readings }) => sum + readings, 0) / vms;
    return { gapsMs: results.map(({ gapMs }) => gapMs), shares: results.map(({ readings }) => readings / mean) };
  } finally {
    await host.close();
  }
}
