/** Makes a process anew from its image, on whichever module takes its VMs. What fails leaves nothing behind. */
import { type IncomingVm, refusalOf, type Section, VcpuRunPage, VmMemorySlots, VmShape } from "@mkvm/kvm-abi";
import { ModuleFile } from "../devices/open-file.ts";
import { HostError, messageOf } from "../errors.ts";
import type { LoadedInstance } from "../loader/module-instances.ts";
import { pageBytes } from "../memory/page-allocator.ts";
import type { KernelProcess } from "../processes/process.ts";
import { commitProblem, restoreProblem, sectionsProblem } from "../upgrade/answers.ts";
import { prepareWithin } from "../upgrade/prepare.ts";
import { firstDifference } from "../upgrade/sections.ts";
import { missingFeatures } from "./missing-features.ts";
import type { ProcessImage, SavedVm } from "./process-image.ts";
import { rebaseSections } from "./rebase.ts";

/** Why the machine or the module cannot take the image; undefined when it can. Nothing is made for this. */
export function blockerOfResume(
  image: ProcessImage,
  machine: ProcessImage["machine"],
  module: LoadedInstance,
): string | undefined {
  if (image.machine.vendor !== machine.vendor)
    return `it was saved on a machine with ${image.machine.vendor} CPUs, this one has ${machine.vendor} CPUs`;
  if (image.machine.tscKhz !== machine.tscKhz)
    return `it was saved on a machine with a TSC of ${image.machine.tscKhz} kHz, this one's has ${machine.tscKhz} kHz`;
  for (const { sections } of image.vms) {
    const missing = missingFeatures(sections, machine.cpuModel);
    if (missing) return missing;
    const refusal = refusalOf({ sections }, module.instance.transfer.receives);
    if (refusal) return `${module.name} cannot take it: ${refusal}`;
  }
  return undefined;
}

/** Puts the image's VMs behind descriptors of the process, whose memory is there already. @throws HostError */
export async function resumeVms(process: KernelProcess, image: ProcessImage, module: LoadedInstance): Promise<void> {
  const { kernel } = process;
  const made: IncomingVm[] = [];
  process.eventfds.restore(image.eventfds);
  try {
    for (const [index, vm] of image.vms.entries()) {
      const pages = mapRunPages(process, image, index);
      kernel.current = process;
      const { clock } = kernel.scheduler;
      const to = { tsc: kernel.cpu.rdtsc(), monotonicNs: clock.monotonicNs() };
      const sections = rebaseSections(vm.sections, { from: image.clock, to, bank: process.bank, runPage: pages });
      if (typeof sections === "string") throw new Error(sections);
      const incoming = await prepare(process, module, sections);
      made.push(incoming);
      // Preparing took time, and the guest's stands still until it runs
      const now = { tsc: kernel.cpu.rdtsc(), monotonicNs: clock.monotonicNs() };
      restoreVerified(
        module,
        incoming,
        rebaseSections(sections, { from: to, to: now, bank: process.bank, runPage: pages }) as Section[],
      );
    }
    installFiles(process, image, module, made);
  } catch (thrown) {
    for (const incoming of made) incoming.abort();
    throw thrown instanceof HostError
      ? thrown
      : new HostError("EINVAL", `${module.name} did not take the VM: ${messageOf(thrown)}`);
  }
}

/** Where each vCPU's pages are now. */
function mapRunPages(process: KernelProcess, image: ProcessImage, vm: number): (vcpu: number) => number {
  const places = new Map<number, number>();
  for (const { vm: of, vcpu, bytes } of image.runPages) {
    if (of !== vm) continue;
    const offset = process.memory.pages.allocateKernel(bytes.length / pageBytes, 1);
    if (offset === undefined) throw new HostError("ENOMEM", "no memory for the pages that vCPUs share with their VMM");
    process.memory.bank.u8.set(bytes, offset);
    places.set(vcpu, offset);
  }
  return (vcpu) => {
    const offset = places.get(vcpu);
    if (offset === undefined) throw new Error(`section ${VcpuRunPage.name}[${vcpu}] has no pages`);
    return offset;
  };
}

async function prepare(process: KernelProcess, module: LoadedInstance, sections: readonly Section[]): Promise<IncomingVm> {
  const description = {
    sections: sections.map(({ name, instance, version, required }) => ({ name, instance, version, required })),
    early: sections.filter(({ name }) => name === VmShape.name || name === VmMemorySlots.name),
  };
  const incoming = await prepareWithin(process.kernel.moveLimits.prepareMs, module, process, description);
  if (typeof incoming === "string") throw new Error(incoming);
  return incoming;
}

/** @throws Error that says why not, or what came back other than it was */
export function restoreVerified(module: LoadedInstance, incoming: IncomingVm, sections: readonly Section[]): void {
  const answer = incoming.restore(sections);
  const problem = restoreProblem(answer) ?? answer;
  if (problem !== undefined) throw new Error(problem);
  const again = incoming.save();
  const different = sectionsProblem("save", again) ?? firstDifference(sections, again);
  if (different) throw new Error(`${module.name} restored another state: ${different}`);
}

/** Puts VMs behind the descriptors that they were behind. */
export function installFiles(
  process: KernelProcess,
  image: ProcessImage,
  module: LoadedInstance,
  made: readonly IncomingVm[],
): void {
  const put = (fd: number, name: string, role: SavedVm["files"][number]["role"], incoming: IncomingVm): void => {
    const answer = incoming.commit(role);
    const problem = commitProblem(answer, module.name, name);
    if (problem) throw new Error(problem);
    process.files.set(fd, new ModuleFile(name, process, answer.operations, answer.privateData));
  };
  image.vms.forEach((vm, index) => {
    for (const { fd, name, role } of vm.files) put(fd, name, role, made[index]!);
  });
  for (const { fd, path } of image.systemFiles) put(fd, path, { kind: "system" }, made[0]!);
}
