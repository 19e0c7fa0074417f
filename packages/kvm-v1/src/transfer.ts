/** Moving VMs to and from other modules: only sections of the portable state cross. */
import {
  type File,
  type FileOperations,
  type FileRole,
  type IncomingVm,
  type Process,
  refusalOf,
  type Section,
  type SectionSupport,
  type Transfer,
  VcpuRunPage,
  type VmDescription,
} from "@mkvm/kvm-abi";
import {
  applyShape,
  decodeDirtyLog,
  decodeShape,
  decodeSlots,
  type MemoryRegion,
  RECEIVED_SECTIONS,
  restoreVcpu,
  restoreVmDevices,
  saveEarly,
  saveVcpu,
  saveVm,
} from "@mkvm/kvm-core";
import { vcpuFileOperations } from "./files/vcpu-file.ts";
import { vmFileOperations } from "./files/vm-file.ts";
import type { Module } from "./main.ts";
import { MemorySlot } from "./memory-slots.ts";
import { Vcpu } from "./vcpu.ts";
import { Vm } from "./vm.ts";

/** Descriptors of a process are below this. */
const MOST_DESCRIPTORS = 4096;

function save(vm: Vm): Section[] {
  return [...saveVm(vm, vm.slots.all()), ...vm.vcpus().flatMap((vcpu) => saveVcpu(vcpu, vcpu.runAddress))];
}

export class VmTransfer implements Transfer {
  readonly receives: readonly SectionSupport[] = RECEIVED_SECTIONS;
  readonly #module: Module;
  readonly #system: FileOperations;

  constructor(module: Module, system: FileOperations) {
    this.#module = module;
    this.#system = system;
  }

  roleOf(file: File): FileRole {
    if (file.operations === this.#system) return { kind: "system" };
    if (file.privateData instanceof Vm) return { kind: "vm" };
    if (file.privateData instanceof Vcpu) return { kind: "vcpu", id: file.privateData.id };
    return { kind: "other" };
  }

  filesOf(vm: File): readonly File[] {
    const state = vm.privateData as Vm;
    const found = new Set<File>([vm]);
    for (let fd = 0; fd < MOST_DESCRIPTORS; fd++) {
      const file = vm.process.file(fd);
      if (file?.privateData instanceof Vcpu && file.privateData.vm === state) found.add(file);
    }
    return [...found];
  }

  describe(vm: File, _receiver: readonly SectionSupport[]): VmDescription {
    const state = vm.privateData as Vm;
    return {
      sections: save(state).map(({ name, instance, version, required }) => ({ name, instance, version, required })),
      early: saveEarly(state, state.slots.all()),
    };
  }

  save(vm: File, _receiver: readonly SectionSupport[]): Section[] {
    return save(vm.privateData as Vm);
  }

  releaseMoved(vm: File): void {
    (vm.privateData as Vm).destroy(true);
  }

  prepare(process: Process, description: VmDescription): Promise<IncomingVm | string> {
    const refusal = refusalOf(description, this.receives);
    if (refusal !== undefined) return Promise.resolve(refusal);
    const shape = decodeShape(description.early);
    if (typeof shape === "string") return Promise.resolve(shape);
    const slots = decodeSlots(description.early);
    if (typeof slots === "string") return Promise.resolve(slots);
    if (shape.vcpu_count > this.#module.parameters.maxVcpus) {
      return Promise.resolve(`the VM has ${shape.vcpu_count} vCPUs, max_vcpus is ${this.#module.parameters.maxVcpus}`);
    }
    const vm = Vm.create(this.#module, process);
    if (typeof vm === "number") return Promise.resolve(`no VM could be created: errno ${-vm}`);
    applyShape(vm, shape);
    for (const slot of slots) vm.slots.set(new MemorySlot(slot));
    return Promise.resolve(new Incoming(this.#module, vm, this.#system));
  }
}

class Incoming implements IncomingVm {
  readonly #module: Module;
  readonly #vm: Vm;
  readonly #system: FileOperations;

  constructor(module: Module, vm: Vm, system: FileOperations) {
    this.#module = module;
    this.#vm = vm;
    this.#system = system;
  }

  restore(sections: readonly Section[]): string | undefined {
    const vm = this.#vm;
    const slots = decodeSlots(sections);
    if (typeof slots === "string") return slots;
    // The VM has run on since `prepare`: slots may have changed
    for (const old of [...vm.slots.all()]) {
      if (!slots.some((slot) => sameSlot(slot, old))) {
        vm.mmu.unmapSlot(old);
        vm.slots.delete(old.id);
      }
    }
    for (const region of slots) {
      if (vm.slots.byId(region.id) === undefined) vm.slots.set(new MemorySlot(region));
      const log = decodeDirtyLog(sections, region.id);
      if (typeof log === "string") return log;
      const slot = vm.slots.byId(region.id)!;
      if (log !== undefined) slot.dirty?.set(log);
    }
    for (const section of sections.filter((each) => each.name === VcpuRunPage.name)) {
      const page = VcpuRunPage.decode(section);
      if (typeof page === "string") return page;
      const vcpu = vm.createVcpu(section.instance, Number(page.fixed.address));
      if (typeof vcpu === "number") return `vcpu ${section.instance} could not be created: errno ${-vcpu}`;
    }
    const devices = restoreVmDevices(vm, sections);
    if (devices !== undefined) return devices;
    for (const vcpu of vm.vcpus()) {
      const refused = restoreVcpu(vcpu, sections);
      if (refused !== undefined) return refused;
    }
    return undefined;
  }

  save(): Section[] {
    return save(this.#vm);
  }

  commit(role: FileRole): { operations: FileOperations; privateData: unknown } {
    switch (role.kind) {
      case "system":
        return { operations: this.#system, privateData: undefined };
      case "vm":
        this.#vm.openFiles++;
        return { operations: vmFileOperations(this.#module), privateData: this.#vm };
      case "vcpu":
        this.#vm.openFiles++;
        return {
          operations: vcpuFileOperations(this.#module),
          privateData: this.#vm.vcpus().find((vcpu) => vcpu.id === role.id),
        };
      default:
        throw new Error(`no file of kind ${role.kind} moves with a VM`);
    }
  }

  abort(): void {
    this.#vm.destroy(true);
  }
}

function sameSlot(a: MemoryRegion, b: MemoryRegion): boolean {
  return (
    a.id === b.id &&
    a.flags === b.flags &&
    a.baseGfn === b.baseGfn &&
    a.pages === b.pages &&
    a.userspaceAddress === b.userspaceAddress
  );
}
