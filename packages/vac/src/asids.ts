/**
 * ASIDs of one CPU. They are few, so a vCPU does not own one: it gets the next at its first VMRUN of each generation. When none is
 * left a new generation begins, in which every translation of the last one has to go before any guest runs: the VMRUN that begins
 * it flushes them all. ASID 0 is the host's; the first ones, up to the last that SEV may use, stay out of use for other guests.
 * Source: AMD64 APM Vol. 2, TLB Flush; Address Space Identifiers.
 */
import type { LogicalCpu } from "@mkvm/hw-x86";
import { CpuBlock, cpuBlock, type VacMemory } from "./layout.ts";
import type { AsidTag } from "./vac.ts";

const SVM_FEATURES = 0x8000_000a;
const SEV_FEATURES = 0x8000_001f;
const EAX_SEV = 1 << 1;

export interface Asids {
  /** SVM goes on: the range is read, and everything tagged before is void. */
  start(): void;
  assign(tag: AsidTag): boolean;
  flushed(): void;
}

export function createAsids(memory: VacMemory, cpu: LogicalCpu): Asids {
  const { words } = memory;
  const at = (field: number) => (cpuBlock(cpu.id) + field) >> 2;
  const generation = at(CpuBlock.asidGeneration);
  const next = at(CpuBlock.asidNext);
  const first = at(CpuBlock.asidFirst);
  const last = at(CpuBlock.asidLast);
  const flushOwed = at(CpuBlock.asidFlushOwed);

  function newGeneration(): void {
    // 0 is what a tag has that was never assigned
    words[generation] = (words[generation] + 1) & 0x7fff_ffff || 1;
    words[next] = words[first];
    words[flushOwed] = 1;
  }

  return {
    start() {
      const count = cpu.cpuid(SVM_FEATURES, 0).ebx >>> 0;
      const hasSevLeaf = cpu.cpuid(0x8000_0000, 0).eax >>> 0 >= SEV_FEATURES;
      const sev = hasSevLeaf ? cpu.cpuid(SEV_FEATURES, 0) : undefined;
      const lastOfSev = sev !== undefined && (sev.eax & EAX_SEV) !== 0 ? sev.ecx >>> 0 : 0;
      words[first] = lastOfSev + 1;
      words[last] = count - 1;
      if (words[last] < words[first])
        throw new Error(`VAC: CPU ${cpu.id} has ${count} ASIDs, of which SEV takes ${lastOfSev}: none is left`);
      newGeneration();
    },
    assign(tag) {
      if (tag.generation !== words[generation]) {
        if (words[next] > words[last]) newGeneration();
        tag.generation = words[generation];
        tag.asid = words[next];
        words[next] = words[next] + 1;
      }
      return words[flushOwed] !== 0;
    },
    flushed() {
      words[flushOwed] = 0;
    },
  };
}
