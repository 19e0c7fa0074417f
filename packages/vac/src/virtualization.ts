/** VMX operation of one CPU, counted over owners. Source: Intel SDM Vol. 3C, Enabling and Entering VMX Operation. */
import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import { EBUSY, EIO, EOPNOTSUPP, VMX_SUCCEED } from "./errno.ts";
import { CpuBlock, cpuBlock, MAX_OWNERS, type VacMemory } from "./layout.ts";
import type { LoadedVmcss } from "./loaded-vmcs.ts";
import type { OwnerId } from "./vac.ts";

const CR4_VMXE = 1n << 13n;
const IA32_FEATURE_CONTROL = 0x3a;
const FEATURE_CONTROL_LOCKED = 1n;
const FEATURE_CONTROL_VMX_OUTSIDE_SMX = 4n;
const IA32_VMX_BASIC = 0x480;

export interface Virtualization {
  enable(owner: OwnerId): number;
  disable(owner: OwnerId): void;
  /** Puts every get of the owner. */
  disableAll(owner: OwnerId): void;
  users(): OwnerId[];
  emergencyDisable(): void;
  readonly isOn: boolean;
}

export function createVirtualization(memory: VacMemory, cpu: LogicalCpu, loaded: LoadedVmcss): Virtualization {
  const { words, quads } = memory;
  const block = cpuBlock(cpu.id);
  const total = (block + CpuBlock.enableTotal) >> 2;
  const emergency = (block + CpuBlock.emergency) >> 2;
  const count = (owner: number) => ((block + CpuBlock.enableCounts) >> 2) + owner;
  const region = () => Number(quads[(block + CpuBlock.vmxonRegion) >> 3]) as Hpa;

  function vmxon(): number {
    if (cpu.vendor !== "intel") return -EOPNOTSUPP;
    const control = cpu.rdmsr(IA32_FEATURE_CONTROL);
    if (control === undefined) return -EOPNOTSUPP;
    if (control & FEATURE_CONTROL_LOCKED) {
      if (!(control & FEATURE_CONTROL_VMX_OUTSIDE_SMX)) return -EOPNOTSUPP; // firmware turned VMX off for good
    } else if (!cpu.wrmsr(IA32_FEATURE_CONTROL, control | FEATURE_CONTROL_LOCKED | FEATURE_CONTROL_VMX_OUTSIDE_SMX))
      return -EIO;
    const basic = cpu.rdmsr(IA32_VMX_BASIC);
    if (basic === undefined) return -EOPNOTSUPP;
    if (cpu.cr4 & CR4_VMXE) return -EBUSY; // somebody outside VAC is in VMX operation
    cpu.cr4 |= CR4_VMXE;
    const revision = Number(basic & 0x7fff_ffffn);
    const bytes = cpu.memory.bytes(region(), 4);
    new DataView(bytes.buffer, bytes.byteOffset, 4).setUint32(0, revision, true);
    if (cpu.vmx.vmxon(region()) === VMX_SUCCEED) return 0;
    cpu.cr4 &= ~CR4_VMXE;
    return -EIO;
  }

  function vmxoff(): void {
    const status = cpu.vmx.vmxoff();
    cpu.cr4 &= ~CR4_VMXE;
    if (status !== VMX_SUCCEED) throw new Error(`VAC: VMXOFF on CPU ${cpu.id} failed with status ${status}`);
  }

  function put(owner: OwnerId, gets: number): void {
    const left = Atomics.sub(words, count(owner), gets) - gets;
    // The list is empty of this owner before its last put: nobody may find a VMCS whose owner is gone
    if (left === 0) loaded.clearAll(owner);
    if (Atomics.sub(words, total, gets) - gets > 0) return;
    loaded.clearAll(undefined);
    vmxoff();
  }

  return {
    get isOn() {
      return Atomics.load(words, total) > 0;
    },
    enable(owner) {
      if (Atomics.load(words, emergency)) return -EIO;
      if (Atomics.load(words, total) === 0) {
        const result = vmxon();
        if (result < 0) return result;
      }
      Atomics.add(words, count(owner), 1);
      Atomics.add(words, total, 1);
      return 0;
    },
    disable(owner) {
      if (Atomics.load(words, emergency)) return;
      if (Atomics.load(words, count(owner)) === 0)
        throw new Error(`VAC: owner ${owner} puts VMX on CPU ${cpu.id} without a get`);
      put(owner, 1);
    },
    disableAll(owner) {
      const gets = Atomics.load(words, count(owner));
      if (gets > 0 && !Atomics.load(words, emergency)) put(owner, gets);
    },
    users() {
      const users: OwnerId[] = [];
      for (let owner = 1; owner <= MAX_OWNERS; owner++) if (Atomics.load(words, count(owner)) > 0) users.push(owner as OwnerId);
      return users;
    },
    emergencyDisable() {
      if (Atomics.exchange(words, emergency, 1)) return;
      const wasOn = Atomics.exchange(words, total, 0) > 0;
      for (let owner = 1; owner <= MAX_OWNERS; owner++) Atomics.store(words, count(owner), 0);
      if (!wasOn) return;
      // VMCLEAR first: VMXOFF with an active VMCS may lose what is cached of it, for whoever reads the memory afterwards
      loaded.clearAll(undefined);
      vmxoff();
    },
  };
}
