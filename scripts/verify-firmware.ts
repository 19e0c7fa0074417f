/**
 * `pnpm verify:firmware`: programs for PCs that nobody here wrote and that take too long for the tests. Debian's generic kernel, with
 * drivers for every PC there is, boots to user space and powers off, on both KVM versions and machines of both vendors.
 * `--vendor` and `--module` choose.
 */
import { parseArgs } from "node:util";
import { createHost } from "@mkvm/host";
import { findLinuxGuest } from "@mkvm/testkit";
import { RunningGuest } from "../tests/scenarios/running-guest.ts";

const VENDORS = ["intel", "amd"] as const;
const MODULES = ["@mkvm/kvm-v1", "@mkvm/kvm-v2"] as const;
const COMPLAINTS = /(BUG|Oops|WARNING|Call Trace|unable to handle|unchecked MSR access)/;

const { values } = parseArgs({
  options: {
    vendor: { type: "string", multiple: true, default: [...VENDORS] },
    module: { type: "string", multiple: true, default: [...MODULES] },
  },
});

const linux = await findLinuxGuest({ flavour: "generic", log: console.log });
if (linux === undefined) {
  console.error("No generic kernel could be had from Debian's mirror: run this on Debian with its mirror in reach.");
  process.exit(1);
}
console.log(`kernel from ${linux.origin}`);
const append = "console=ttyS0 panic=-1 mkvm.run=poweroff";
const args = ["--kernel", linux.kernel, "--initrd", linux.initrd, "--append", append, "--memory", "512M"];

/** What went wrong; undefined when all went well. */
async function boot(vendor: (typeof VENDORS)[number], module: string): Promise<string | undefined> {
  const host = await createHost({ directory: import.meta.dirname, vendor });
  try {
    const { name } = await host.insmod(module);
    await host.ln(`/dev/${name}`, "/dev/kvm");
    const guest = await RunningGuest.start(host, args);
    const { status } = await guest.process.exited;
    if (!guest.transcript.includes("mkvm-guest: user space reached"))
      return `user space was not reached:\n${guest.transcript.slice(-3000)}`;
    const complaint = guest.transcript.split("\n").find((line) => COMPLAINTS.test(line));
    if (complaint !== undefined) return `the kernel said: ${complaint.trim()}`;
    return status === 0 ? undefined : `it ended with status ${status}`;
  } finally {
    await host.close();
  }
}

let failures = 0;
for (const vendor of VENDORS.filter((each) => values.vendor.includes(each))) {
  for (const module of MODULES.filter((each) => values.module.includes(each))) {
    const began = performance.now();
    const problem = await boot(vendor, module);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    console.log(`generic kernel on ${module}, ${vendor}: ${problem ?? "user space and power-off"} (${seconds} s)`);
    if (problem !== undefined) failures++;
  }
}
process.exitCode = failures === 0 ? 0 : 1;
