/**
 * `pnpm verify:firmware`: programs for PCs that nobody here wrote and that take too long for the tests, on both KVM versions and machines
 * of both vendors. Debian's generic kernel, with drivers for every PC there is, boots to user space and powers off. OVMF comes to its shell
 * on two CPUs while it moves between the versions all the time, is saved and goes on there, and finds its variables when it starts again.
 * `--vendor`, `--module` and `--program` choose.
 */
import { copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { createHost, type Host } from "@mkvm/host";
import { findLinuxGuest, findUefiFirmware, type UefiFirmware } from "@mkvm/testkit";
import { RunningGuest } from "../tests/scenarios/running-guest.ts";
import { UefiShell } from "../tests/scenarios/uefi-shell.ts";

const VENDORS = ["intel", "amd"] as const;
const MODULES = ["@mkvm/kvm-v1", "@mkvm/kvm-v2"] as const;
const COMPLAINTS = /(BUG|Oops|WARNING|Call Trace|unable to handle|unchecked MSR access)/;

const { values } = parseArgs({
  options: {
    vendor: { type: "string", multiple: true, default: [...VENDORS] },
    module: { type: "string", multiple: true, default: [...MODULES] },
    program: { type: "string", multiple: true, default: ["linux", "uefi"] },
  },
});

/** Runs one of the programs on `module`, which `/dev/kvm` leads to. What went wrong; undefined when all went well. */
type Run = (host: Host, module: string) => Promise<string | undefined>;

async function genericKernel(): Promise<Run> {
  const linux = await findLinuxGuest({ flavour: "generic", log: console.log });
  if (linux === undefined) return missing("No generic kernel");
  console.log(`kernel from ${linux.origin}`);
  const append = "console=ttyS0 panic=-1 mkvm.run=poweroff";
  const args = ["--kernel", linux.kernel, "--initrd", linux.initrd, "--append", append, "--memory", "512M"];
  return async (host) => {
    const guest = await RunningGuest.start(host, args);
    const { status } = await guest.process.exited;
    if (!guest.transcript.includes("mkvm-guest: user space reached"))
      return `user space was not reached:\n${guest.transcript.slice(-3000)}`;
    const complaint = guest.transcript.split("\n").find((line) => COMPLAINTS.test(line));
    if (complaint !== undefined) return `the kernel said: ${complaint.trim()}`;
    return status === 0 ? undefined : `it ended with status ${status}`;
  };
}

async function uefiFirmware(): Promise<Run> {
  const firmware = await findUefiFirmware(console.log);
  if (firmware === undefined) return missing("No UEFI firmware");
  return async (host, module) => {
    const folder = mkdtempSync(join(tmpdir(), "mkvm-uefi-"));
    try {
      return await uefiTwice(host, module, firmware, folder);
    } finally {
      rmSync(folder, { recursive: true });
    }
  };
}

async function uefiTwice(
  host: Host,
  module: string,
  { code, variables }: UefiFirmware,
  folder: string,
): Promise<string | undefined> {
  const store = join(folder, "variables.fd");
  copyFileSync(variables, store);
  const [here, there] = module === MODULES[0] ? (["kvm1", "kvm2"] as const) : (["kvm2", "kvm1"] as const);
  await host.insmod(MODULES.find((each) => each !== module)!);
  const shell = await UefiShell.start(host, code, store, ["--cpus", "2"]);
  while ((await host.ps())[0]?.vms !== 1);
  let isThere = false;
  const reached = shell.reached().finally(() => {
    isThere = true;
  });
  // Awaited below, where no move fails before
  reached.catch(() => {});
  let moves = 0;
  for (; !isThere; moves++) {
    const [report] = await host.upgrade({ pid: shell.guest.pid, to: moves % 2 === 0 ? there : here });
    if (report?.failed) return `move ${moves} failed: ${report.failed.reason}`;
  }
  await reached;
  await shell.ask("set kept yes");
  const path = join(folder, "saved");
  await host.save({ pid: shell.guest.pid, path, stop: true });
  await shell.guest.process.exited;
  const restored = UefiShell.of(await host.restore({ path, module: there }));
  if (!(await restored.ask("echo so: %kept%")).includes("so: yes")) return "what was set is gone after the VM was saved";
  const first = await restored.turnOff();
  const again = await UefiShell.start(host, code, store);
  await again.reached();
  if (!(await again.ask("echo so: %kept%")).includes("so: yes")) return "what was set is gone at the next start";
  const second = await again.turnOff();
  console.log(`  moved ${moves} times on its way`);
  return first === 0 && second === 0 ? undefined : `it ended with status ${first}, then ${second}`;
}

function missing(what: string): never {
  console.error(`${what} could be had from Debian's mirror: run this on Debian with its mirror in reach.`);
  process.exit(1);
}

async function run(program: Run, vendor: (typeof VENDORS)[number], module: string): Promise<string | undefined> {
  const host = await createHost({ directory: import.meta.dirname, vendor });
  try {
    const { name } = await host.insmod(module);
    await host.ln(`/dev/${name}`, "/dev/kvm");
    return await program(host, module);
  } finally {
    await host.close();
  }
}

const programs: [string, Run][] = [];
if (values.program.includes("linux")) programs.push(["generic kernel", await genericKernel()]);
if (values.program.includes("uefi")) programs.push(["OVMF", await uefiFirmware()]);
let failures = 0;
for (const vendor of VENDORS.filter((each) => values.vendor.includes(each))) {
  for (const module of MODULES.filter((each) => values.module.includes(each))) {
    for (const [name, program] of programs) {
      const began = performance.now();
      const problem = await run(program, vendor, module);
      const seconds = ((performance.now() - began) / 1000).toFixed(1);
      console.log(`${name} on ${module}, ${vendor}: ${problem ?? "as it should be"} (${seconds} s)`);
      if (problem !== undefined) failures++;
    }
  }
}
process.exitCode = failures === 0 ? 0 : 1;
