/** Moving VMs to and from other modules: only sections of the portable state cross. */
import {
  ABI_FEATURE_LEVEL,
  ABI_FEATURE_LEVEL_FXSAVE,
  type File,
  type FileOperations,
  type FileRole,
  type IncomingVm,
  type Process,
  refusalOf,
  type Section,
  type SectionSupport,
  type Transfer,
  VcpuCpuid,
  VcpuFpu,
  VcpuRunPage,
  type VmDescription,
  VmIrqRouting,
  VmMemorySlots,
  VmShape,
} from "@mkvm/kvm-abi";
import type { MemoryRegion } from "../api/memory-region.ts";
import type { ManagedVcpu, ManagedVm, ModuleFiles, StatisticsFile } from "../api/module-files.ts";
import { restoreStatistics } from "./statistics-sections.ts";
import { restoreCpuid, restoreVcpu, saveVcpu } from "./vcpu-sections.ts";
import {
  applyShape,
  decodeDirtyLog,
  decodeShape,
  decodeSlots,
  type PortableSlot,
  RECEIVED_SECTIONS,
  restoreVmDevices,
  type ShapeValue,
  saveVm,
} from "./vm-sections.ts";

/** Sections that a receiver takes in while the VM still runs: it allocates from them, or they are long and seldom change. */
const EARLY: ReadonlySet<string> = new Set([
  VmShape.name,
  VmMemorySlots.name,
  VmIrqRouting.name,
  VcpuRunPage.name,
  VcpuCpuid.name,
]);
/** Descriptors of a process are below this. */
const MOST_DESCRIPTORS = 4096;

export interface TransferableVm extends ManagedVm {
  portableSlots(): readonly PortableSlot[];
  /** Makes the slots of the VM these: those that are there already keep their tables. */
  adoptSlots(slots: readonly MemoryRegion[]): void;
  /** Puts the dirty bitmap of a slot back. */
  setDirtyLog(slot: number, bitmap: Uint8Array): void;
}

export interface TransferHost<Vm extends TransferableVm> {
  readonly files: ModuleFiles;
  readonly isVm: (value: unknown) => value is Vm;
  readonly isVcpu: (value: unknown) => value is ManagedVcpu;
  createVm(process: Process): Vm | number;
  /** A sentence when parameters or features of this module do not allow the VM. */
  refuse(shape: ShapeValue): string | undefined;
  /** Builds what can be built while the VM still runs elsewhere. */
  buildAhead(vm: Vm): Promise<void>;
}

/** Optional sections go only to a receiver that takes them, since it could not send them again to be compared. */
function save(vm: TransferableVm, taken: (name: string, version: number) => boolean): Section[] {
  const takesXsave = taken(VcpuFpu.name, VcpuFpu.version);
  const vcpus = vm.vcpus().flatMap((vcpu) => saveVcpu(vcpu, vcpu.runAddress, takesXsave));
  // The level of what is sent, so that a receiver that knows no later one takes it
  const level = vcpus.some(({ name, version }) => name === VcpuFpu.name && version === VcpuFpu.version)
    ? ABI_FEATURE_LEVEL
    : ABI_FEATURE_LEVEL_FXSAVE;
  const all = [...saveVm(vm, vm.portableSlots(), level), ...vcpus];
  return all.filter(({ required, name, version }) => required || taken(name, version));
}

function takenBy(receiver: readonly SectionSupport[]): (name: string, version: number) => boolean {
  return (name, version) =>
    receiver.some((each) => each.name === name && version >= each.minVersion && version <= each.maxVersion);
}

export class VmTransfer<Vm extends TransferableVm> implements Transfer {
  readonly receives: readonly SectionSupport[] = RECEIVED_SECTIONS;
  readonly #host: TransferHost<Vm>;

  constructor(host: TransferHost<Vm>) {
    this.#host = host;
  }

  roleOf(file: File): FileRole {
    if (file.operations === this.#host.files.systemOperations) return { kind: "system" };
    if (file.operations === this.#host.files.statisticsOperations) {
      const { vcpu } = file.privateData as StatisticsFile;
      return vcpu === undefined ? { kind: "vm-statistics" } : { kind: "vcpu-statistics", id: vcpu.id };
    }
    if (this.#host.isVm(file.privateData)) return { kind: "vm" };
    if (this.#host.isVcpu(file.privateData)) return { kind: "vcpu", id: file.privateData.id };
    return { kind: "other" };
  }

  filesOf(vm: File): readonly File[] {
    const found = new Set<File>([vm]);
    const { openFiles } = vm.privateData as Vm;
    // A VM stands still meanwhile: a process has few descriptors, and they are the lowest
    for (let fd = 0; fd < MOST_DESCRIPTORS && found.size < openFiles; fd++) {
      const file = vm.process.file(fd);
      if (file !== undefined && this.#vmOf(file) === vm.privateData) found.add(file);
    }
    return [...found];
  }

  /** The VM to which a vCPU's file, or one of statistics, belongs. */
  #vmOf(file: File): unknown {
    if (file.operations === this.#host.files.statisticsOperations) return (file.privateData as StatisticsFile).vm;
    return this.#host.isVcpu(file.privateData) ? file.privateData.vm : undefined;
  }

  describe(vm: File, receiver: readonly SectionSupport[]): VmDescription {
    const sections = save(vm.privateData as Vm, takenBy(receiver));
    return {
      sections: sections.map(({ name, instance, version, required }) => ({ name, instance, version, required })),
      early: sections.filter(({ name }) => EARLY.has(name)),
    };
  }

  save(vm: File, receiver: readonly SectionSupport[]): Section[] {
    return save(vm.privateData as Vm, takenBy(receiver));
  }

  releaseMoved(file: File): () => void {
    const vm = file.privateData as Vm;
    vm.detach();
    return () => vm.free(true);
  }

  async prepare(process: Process, description: VmDescription): Promise<IncomingVm | string> {
    const refusal = refusalOf(description, this.receives);
    if (refusal !== undefined) return refusal;
    const shape = decodeShape(description.early);
    if (typeof shape === "string") return shape;
    const slots = decodeSlots(description.early);
    if (typeof slots === "string") return slots;
    const refused = this.#host.refuse(shape);
    if (refused !== undefined) return refused;
    const vm = this.#host.createVm(process);
    if (typeof vm === "number") return `no VM could be created: errno ${-vm}`;
    try {
      applyShape(vm, shape);
      vm.adoptSlots(slots);
      const problem = createVcpus(vm, description.early) ?? takeInAhead(vm, description.early);
      if (problem !== undefined) {
        vm.destroy(true);
        return problem;
      }
      await this.#host.buildAhead(vm);
    } catch (thrown) {
      vm.destroy(true);
      throw thrown;
    }
    return new Incoming(vm, this.#host.files);
  }
}

/** Makes the vCPUs of the sections that are not there yet; a sentence when that fails. */
function createVcpus(vm: TransferableVm, sections: readonly Section[]): string | undefined {
  for (const section of sections) {
    if (section.name !== VcpuRunPage.name) continue;
    const page = VcpuRunPage.decode(section);
    if (typeof page === "string") return page;
    const address = Number(page.fixed.address);
    const known = vm.vcpus().find(({ id }) => id === section.instance);
    if (known !== undefined && known.runAddress === address) continue;
    if (known !== undefined) return `vcpu ${section.instance} has other run pages than when the move was prepared`;
    const vcpu = vm.createVcpu(section.instance, address);
    if (typeof vcpu === "number") return `vcpu ${section.instance} could not be created: errno ${-vcpu}`;
  }
  return undefined;
}

/** What a sender tells early of what is long; one that does not has it taken in when the VM stands still. */
function takeInAhead(vm: TransferableVm, early: readonly Section[]): string | undefined {
  const has = (name: string, instance: number) => early.some((each) => each.name === name && each.instance === instance);
  if (vm.irqchip !== undefined && has(VmIrqRouting.name, 0)) {
    const refused = vm.irqchip.restoreRoutes(early);
    if (refused !== undefined) return refused;
  }
  for (const vcpu of vm.vcpus()) {
    const refused = has(VcpuCpuid.name, vcpu.id) ? restoreCpuid(vcpu, early) : undefined;
    if (refused !== undefined) return refused;
  }
  return undefined;
}

/** So that a vCPU looks for its sections among its own: with many vCPUs there are hundreds. */
function sectionsByInstance(sections: readonly Section[]): Map<number, Section[]> {
  const byInstance = new Map<number, Section[]>();
  for (const section of sections) {
    const known = byInstance.get(section.instance);
    if (known) known.push(section);
    else byInstance.set(section.instance, [section]);
  }
  return byInstance;
}

function versionsByName(sections: readonly Section[]): Map<string, Set<number>> {
  const versions = new Map<string, Set<number>>();
  for (const { name, version } of sections) {
    const known = versions.get(name);
    if (known) known.add(version);
    else versions.set(name, new Set([version]));
  }
  return versions;
}

class Incoming implements IncomingVm {
  readonly #vm: TransferableVm;
  readonly #files: ModuleFiles;
  /** Versions of the sections that were sent, by name. */
  #sent: ReadonlyMap<string, ReadonlySet<number>> = new Map();

  constructor(vm: TransferableVm, files: ModuleFiles) {
    this.#vm = vm;
    this.#files = files;
  }

  restore(sections: readonly Section[]): string | undefined {
    const vm = this.#vm;
    this.#sent = versionsByName(sections);
    const shape = decodeShape(sections);
    if (typeof shape === "string") return shape;
    applyShape(vm, shape);
    const slots = decodeSlots(sections);
    if (typeof slots === "string") return slots;
    // The VM has run on since `prepare`: slots may have changed
    vm.adoptSlots(slots);
    for (const { id } of slots) {
      const log = decodeDirtyLog(sections, id);
      if (typeof log === "string") return log;
      if (log !== undefined) vm.setDirtyLog(id, log);
    }
    // vCPUs may have been added too
    const problem = createVcpus(vm, sections);
    if (problem !== undefined) return problem;
    const devices = restoreVmDevices(vm, sections);
    if (devices !== undefined) return devices;
    const byInstance = sectionsByInstance(sections);
    for (const vcpu of vm.vcpus()) {
      const refused = restoreVcpu(vcpu, byInstance.get(vcpu.id) ?? []);
      if (refused !== undefined) return refused;
    }
    // Last, so that nothing of the above is counted
    return restoreStatistics(vm, sections);
  }

  save(): Section[] {
    return save(this.#vm, (name, version) => this.#sent.get(name)?.has(version) ?? false);
  }

  commit(role: FileRole): { operations: FileOperations; privateData: unknown } {
    switch (role.kind) {
      case "system":
        return { operations: this.#files.systemOperations, privateData: undefined };
      case "vm":
        this.#vm.fabric.irqfds.listen();
        this.#vm.openFiles++;
        return { operations: this.#files.vmOperations, privateData: this.#vm };
      case "vcpu": {
        const privateData = this.#vcpu(role.id);
        this.#vm.openFiles++;
        return { operations: this.#files.vcpuOperations, privateData };
      }
      case "vm-statistics":
      case "vcpu-statistics": {
        const vcpu = role.kind === "vcpu-statistics" ? this.#vcpu(role.id) : undefined;
        this.#vm.openFiles++;
        return { operations: this.#files.statisticsOperations, privateData: { vm: this.#vm, vcpu } satisfies StatisticsFile };
      }
      case "other":
        throw new Error("a file of no known kind does not move with a VM");
    }
  }

  #vcpu(id: number): ManagedVcpu {
    const vcpu = this.#vm.vcpus().find((each) => each.id === id);
    if (vcpu === undefined) throw new Error(`vcpu ${id} did not move with its VM`);
    return vcpu;
  }

  abort(): void {
    this.#vm.destroy(true);
  }
}

/** True when two regions are the same, so that tables built for one serve the other. */
export function sameRegion(a: MemoryRegion, b: MemoryRegion): boolean {
  return (
    a.id === b.id &&
    a.flags === b.flags &&
    a.baseGfn === b.baseGfn &&
    a.pages === b.pages &&
    a.userspaceAddress === b.userspaceAddress
  );
}
