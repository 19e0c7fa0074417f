/** VMCSs that are active on one CPU, whoever owns them. */
import type { Hpa, LogicalCpu } from "@mkvm/hw-x86";
import { VMX_FAIL_INVALID, VMX_SUCCEED } from "./errno.ts";
import { CpuBlock, cpuBlock, Header, LoadedEntry, MAX_LOADED_VMCSS, type VacMemory } from "./layout.ts";
import { withLock } from "./spin-lock.ts";
import type { LoadedVmcs, OwnerId } from "./vac.ts";

export interface LoadedVmcss {
  load(owner: OwnerId, vmcs: Hpa): number;
  clear(owner: OwnerId, vmcs: Hpa): number;
  list(): LoadedVmcs[];
  /** VMCLEARs all VMCSs of an owner, or of everybody. */
  clearAll(owner: OwnerId | undefined): void;
}

export function createLoadedVmcss(memory: VacMemory, cpu: LogicalCpu): LoadedVmcss {
  const { words, quads } = memory;
  const countOf = (id: number) => (cpuBlock(id) + CpuBlock.loadedCount) >> 2;
  const vmcsAt = (id: number, i: number) => (cpuBlock(id) + CpuBlock.loaded + i * LoadedEntry.bytes + LoadedEntry.vmcs) >> 3;
  const ownerAt = (id: number, i: number) => (cpuBlock(id) + CpuBlock.loaded + i * LoadedEntry.bytes + LoadedEntry.owner) >> 2;

  /** Index on a CPU, or -1. */
  function find(id: number, vmcs: bigint): number {
    for (let i = words[countOf(id)] - 1; i >= 0; i--) if (quads[vmcsAt(id, i)] === vmcs) return i;
    return -1;
  }

  function forget(i: number): void {
    withLock(memory, Header.loadedVmcsLock, cpu.id, () => {
      const last = words[countOf(cpu.id)] - 1;
      quads[vmcsAt(cpu.id, i)] = quads[vmcsAt(cpu.id, last)];
      words[ownerAt(cpu.id, i)] = words[ownerAt(cpu.id, last)];
      words[countOf(cpu.id)] = last;
    });
  }

  return {
    load(owner, vmcs) {
      const address = BigInt(vmcs);
      const known = find(cpu.id, address);
      if (known >= 0) {
        const holder = words[ownerAt(cpu.id, known)];
        if (holder !== owner)
          throw new Error(`VAC: owner ${owner} loads the VMCS at 0x${vmcs.toString(16)} of owner ${holder}`);
        return cpu.vmx.vmptrld(vmcs);
      }
      if (words[countOf(cpu.id)] >= MAX_LOADED_VMCSS) return VMX_FAIL_INVALID;
      const elsewhere = withLock(memory, Header.loadedVmcsLock, cpu.id, () => {
        for (let id = 0; id < memory.cpus; id++) if (id !== cpu.id && find(id, address) >= 0) return id;
        const i = words[countOf(cpu.id)];
        quads[vmcsAt(cpu.id, i)] = address;
        words[ownerAt(cpu.id, i)] = owner;
        words[countOf(cpu.id)] = i + 1;
        return -1;
      });
      if (elsewhere >= 0)
        throw new Error(
          `VAC: owner ${owner} loads the VMCS at 0x${vmcs.toString(16)} on CPU ${cpu.id}, but CPU ${elsewhere} has it loaded`,
        );
      const status = cpu.vmx.vmptrld(vmcs);
      if (status !== VMX_SUCCEED) forget(find(cpu.id, address));
      return status;
    },
    clear(owner, vmcs) {
      const known = find(cpu.id, BigInt(vmcs));
      if (known >= 0 && words[ownerAt(cpu.id, known)] !== owner)
        throw new Error(
          `VAC: owner ${owner} clears the VMCS at 0x${vmcs.toString(16)} of owner ${words[ownerAt(cpu.id, known)]}`,
        );
      const status = cpu.vmx.vmclear(vmcs);
      if (known >= 0 && status === VMX_SUCCEED) forget(known);
      return status;
    },
    list() {
      return Array.from({ length: words[countOf(cpu.id)] }, (_, i) => ({
        vmcs: Number(quads[vmcsAt(cpu.id, i)]) as Hpa,
        owner: words[ownerAt(cpu.id, i)] as OwnerId,
      }));
    },
    clearAll(owner) {
      for (let i = words[countOf(cpu.id)] - 1; i >= 0; i--) {
        if (owner !== undefined && words[ownerAt(cpu.id, i)] !== owner) continue;
        cpu.vmx.vmclear(Number(quads[vmcsAt(cpu.id, i)]) as Hpa);
        forget(i);
      }
    },
  };
}
