/** What leaving a guest and coming back costs, through the whole of a module. */
import { join } from "node:path";
import { createHost } from "@mkvm/host";

export type ExitKind = "cpuid" | "out" | "in";

export interface ExitSample {
  wallNs: number;
  /** CPU time of the thread: what a machine that other work shares does not distort. */
  cpuNs: number;
}

/**
 * Nanoseconds of one round trip, by sample: `cpuid` from the guest to the module and back, `out` and `in` from the
 * guest to the VMM in user space and back. `module` is a package name.
 */
export async function exitLatency(module: string, kind: ExitKind, samples: number, exits = 100_000): Promise<ExitSample[]> {
  const host = await createHost({ directory: process.cwd() });
  try {
    const { name } = await host.insmod(module);
    await host.ln(`/dev/${name}`, "/dev/kvm");
    const program = join(import.meta.dirname, "exit-program");
    const run = await host.run({ program, args: [kind, String(exits), String(samples)] });
    const decoder = new TextDecoder();
    let said = "";
    for await (const chunk of run.output) said += decoder.decode(chunk, { stream: true });
    const exit = await run.exited;
    if (exit.status !== 0) throw new Error(`the ${kind} guest ended with status ${exit.status}: ${exit.message ?? said}`);
    return said
      .trim()
      .split("\n")
      .map((line) => {
        const [wallNs, cpuNs] = line.split(" ").map(Number);
        return { wallNs, cpuNs };
      });
  } finally {
    await host.close();
  }
}
