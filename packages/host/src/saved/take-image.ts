/** Takes the image of a process. Every thread stands still, outside of modules; nothing is changed. */
import { type Hpa, offsetOf } from "@mkvm/hw-x86";
import { type ProgramState, type Section, VcpuRunPage, VmMemorySlots } from "@mkvm/kvm-abi";
import { type ModuleFile, RegularFile } from "../devices/open-file.ts";
import { HostError, messageOf } from "../errors.ts";
import type { KernelProcess } from "../processes/process.ts";
import { sectionsProblem } from "../upgrade/answers.ts";
import { faultOfVms, moduleOfVms } from "../upgrade/move.ts";
import { featureLevel } from "../upgrade/sections.ts";
import type { ProcessImage, SavedFile, SavedVm } from "./process-image.ts";

/** Why the process cannot be saved; null when it can. */
export function blockerOfSave(process: KernelProcess): string | null {
  if (!process.programState) return "its program takes no part in being saved, or is not ready yet";
  if (process.ending) return "it is ending";
  const fault = faultOfVms(process, moduleOfVms(process));
  if (fault) return fault;
  const regular = [...process.files].find(([, file]) => file instanceof RegularFile);
  return regular ? `it has the file ${regular[1].name} open` : null;
}

/** @throws HostError that says what cannot be saved */
export function takeImage(process: KernelProcess, args: readonly string[], vendor: "intel" | "amd"): ProcessImage {
  const blocker = blockerOfSave(process);
  if (blocker !== null) throw refusal(process, blocker);
  const { kernel } = process;
  const { transfer } = moduleOfVms(process).instance;
  const module = moduleOfVms(process).name;
  const wayBack = process.previous.flatMap((name) => kernel.modules.get(name) ?? []);
  const level = featureLevel([moduleOfVms(process), ...wayBack].map((each) => each.instance.transfer.receives));
  kernel.current = process;
  const program = programState(process);
  const roles = new Map<ModuleFile, SavedFile>();
  for (const [fd, file] of process.moduleFiles()) {
    const role = file.operations.owner === module ? transfer.roleOf(file) : { kind: "other" as const };
    if (role.kind === "other") throw refusal(process, `its file ${file.name} (fd ${fd}) belongs to no VM`);
    roles.set(file, { fd, name: file.name, role });
  }
  const vms: SavedVm[] = [];
  const runPages: ProcessImage["runPages"][number][] = [];
  for (const [file, { role }] of roles) {
    if (role.kind !== "vm") continue;
    const sections = transfer.save(file, level);
    const problem = sectionsProblem("save", sections) ?? outsideOf(program, sections);
    if (problem) throw refusal(process, problem);
    for (const section of sections) {
      const page = section.name === VcpuRunPage.name ? VcpuRunPage.decode(section) : undefined;
      if (page === undefined) continue;
      if (typeof page === "string") throw refusal(process, page);
      const bytes = kernel.memory.bytes(Number(page.fixed.address), page.fixed.size_bytes).slice();
      runPages.push({ vm: vms.length, vcpu: section.instance, bytes });
    }
    const files = transfer.filesOf(file).flatMap((each) => roles.get(each as ModuleFile) ?? []);
    vms.push({ sections: sections.map((each) => ({ ...each, bytes: each.bytes.slice() })), files });
  }
  return {
    name: process.name,
    args,
    module,
    machine: { vendor, cpuModel: kernel.machine.cpuModel, tscKhz: kernel.cpu.tscKhz },
    clock: { tsc: kernel.cpu.rdtsc(), monotonicNs: kernel.scheduler.clock.monotonicNs() },
    retired: kernel.cpu.retiredInstructions() - process.startRetired,
    bankBytes: process.memory.bank.sizeBytes,
    memory: program.memory,
    program: program.sections,
    systemFiles: [...roles.values()].filter(({ role }) => role.kind === "system").map(({ fd, name }) => ({ fd, path: name })),
    vms,
    eventfds: process.eventfds.save(),
    runPages,
    undelivered: process.undelivered(),
    turns: process.turns(),
    input: process.input.waiting(),
  };
}

function programState(process: KernelProcess): ProgramState {
  let state: ProgramState;
  try {
    state = process.programState!();
  } catch (thrown) {
    throw refusal(process, messageOf(thrown));
  }
  const problem = sectionsProblem("its program", state.sections);
  if (problem) throw refusal(process, problem);
  for (const { address, lengthBytes } of state.memory)
    if (!process.memory.isMapped(address, lengthBytes))
      throw refusal(process, "its program names memory that it has not mapped");
  return state;
}

/** Slots must lie in what is saved. */
function outsideOf(program: ProgramState, sections: readonly Section[]): string | undefined {
  const slots = VmMemorySlots.find(sections);
  if (typeof slots === "string") return slots;
  const outside = slots.entries.find(({ userspace_addr, memory_size }) => {
    const first = Number(userspace_addr);
    const end = first + Number(memory_size);
    return !program.memory.some(({ address, lengthBytes }) => first >= address && end <= address + lengthBytes);
  });
  return outside && `its program does not save the memory of slot ${outside.slot}`;
}

function refusal(process: KernelProcess, why: string): HostError {
  return new HostError("EBUSY", `process ${process.pid} (${process.name}) cannot be saved: ${why}`);
}

/** Where a vCPU's pages are in its bank. */
export function runPageOffset(address: bigint): number {
  return offsetOf(Number(address) as Hpa);
}
