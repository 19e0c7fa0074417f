/** mkvm as the benchmark runs it: a host of its own with one CPU, in this process, and a module linked to /dev/kvm. */
import { createHost, type Host, type HostOptions } from "@mkvm/host";

export type EngineMode = NonNullable<HostOptions["engine"]>;

export interface MkvmRunOptions {
  args: readonly string[];
  engine?: EngineMode;
  /** Called with the console as it comes; awaited. */
  onText(text: string): void | Promise<void>;
  /** The run is over when this is true of what the console said, or the guest ended. */
  done(): boolean;
  /** Called with the host and the process's pid as soon as it runs. */
  started?(host: Host, pid: number): void;
}

/** Module under the measured guests: the newest. */
export const measuredModule = "@mkvm/kvm-v2";

/** A host with the measured module as /dev/kvm. */
export async function measuredHost(options: HostOptions = {}): Promise<Host> {
  const host = await createHost({ directory: process.cwd(), ...options });
  const module = await host.insmod(measuredModule);
  await host.ln(module.devices[0] as string, "/dev/kvm");
  return host;
}

export async function runMkvm(options: MkvmRunOptions): Promise<void> {
  const host = await measuredHost(options.engine ? { engine: options.engine } : {});
  try {
    const run = await host.run({ args: options.args });
    options.started?.(host, run.pid);
    const decoder = new TextDecoder();
    for await (const chunk of run.output) {
      await options.onText(decoder.decode(chunk, { stream: true }));
      if (options.done()) return;
    }
    const exit = await run.exited;
    if (!options.done()) throw new Error(`the guest ended early on mkvm: ${exit.message ?? `status ${exit.status}`}`);
  } finally {
    await host.close();
  }
}
