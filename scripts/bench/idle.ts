/** What an idle Linux guest costs. */
import { stripVTControlCharacters } from "node:util";
import { createHost, type Host } from "@mkvm/host";
import { findLinuxGuest } from "@mkvm/testkit";

/** Boots a Linux whose shell waits for input; returns when it does. */
export async function startIdleLinux(host: Host, memory = "256M"): Promise<{ pid: number }> {
  const linux = await findLinuxGuest({ log: console.error });
  if (!linux) throw new Error("no Linux guest on this machine");
  const append = "console=ttyS0 quiet panic=-1 mkvm.run=shell";
  const run = await host.run({
    args: ["--kernel", linux.kernel, "--initrd", linux.initrd, "--append", append, "--memory", memory],
  });
  const decoder = new TextDecoder();
  const reader = run.output[Symbol.asyncIterator]();
  let said = "";
  // The prompt, and busybox asks where the cursor is: the shell waits for its terminal now
  while (!/[#$] $/.test(stripVTControlCharacters(said))) {
    const { value, done } = await reader.next();
    if (done) throw new Error(`Linux ended before its shell: ${said.slice(-500)}`);
    said = (said + decoder.decode(value, { stream: true })).slice(-4096);
  }
  return run;
}

/** CPU time (user and system, all threads of this process) over elapsed time with one idle Linux, by sample. */
export async function idleShare(module: string, samples: number, seconds = 5): Promise<number[]> {
  const host = await createHost({ directory: process.cwd() });
  try {
    const { name } = await host.insmod(module);
    await host.ln(`/dev/${name}`, "/dev/kvm");
    await startIdleLinux(host);
    // Boot leaves work behind: compiled code, garbage, timers of drivers
    await pause(5);
    const shares: number[] = [];
    for (let sample = 0; sample < samples; sample++) {
      const before = process.cpuUsage();
      const began = performance.now();
      await pause(seconds);
      const { user, system } = process.cpuUsage(before);
      shares.push((user + system) / 1000 / (performance.now() - began));
    }
    return shares;
  } finally {
    await host.close();
  }
}

function pause(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}
