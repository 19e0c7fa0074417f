/** Guest paging for a vCPU: linear to guest-physical addresses as the guest's own tables say. */
import { Cr0, Cr4, Efer } from "../arch/registers.ts";
import { type GuestTranslation, type PagingState, translateGuest } from "../guest-paging.ts";
import type { GuestFault } from "../instruction-emulator/emulated-cpu.ts";
import { pkruFromXsave } from "./fpu-state.ts";
import { cpl } from "./guest-cpu.ts";
import type { VcpuParts } from "./vcpu-parts.ts";

/** `privilege`: overrides the current privilege level, as for accesses by the processor itself. */
export function translateLinear(
  vcpu: VcpuParts,
  linear: bigint,
  access: "read" | "write" | "fetch",
  setAccessed: boolean,
  privilege?: number,
): GuestTranslation | GuestFault {
  const { memory } = vcpu.vm;
  const state: PagingState = {
    cr0: vcpu.cr0,
    cr3: vcpu.cr3,
    cr4: vcpu.cr4,
    efer: vcpu.efer,
    rflags: vcpu.rflags,
    cpl: privilege ?? cpl(vcpu),
    get pkru() {
      return pkruFromXsave(vcpu.xsave());
    },
    physicalBits: vcpu.vm.physicalBits,
    pdptrs: vcpu.pdptrs,
    readEntry(gpa, bytes) {
      const data = memory.read(gpa, bytes);
      if (data === undefined) return undefined;
      const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
      return bytes === 8 ? view.getBigUint64(0, true) : BigInt(view.getUint32(0, true));
    },
    writeEntry(gpa, bytes, value) {
      const data = new Uint8Array(bytes);
      const view = new DataView(data.buffer);
      if (bytes === 8) view.setBigUint64(0, value, true);
      else view.setUint32(0, Number(value), true);
      memory.write(gpa, data);
    },
  };
  return translateGuest(state, linear, access, setAccessed);
}

export function isFault(result: GuestTranslation | GuestFault | Uint8Array | number | undefined): result is GuestFault {
  return typeof result === "object" && "vector" in result;
}

/** True when the processor uses the four PDPTE registers: PAE paging outside long mode. */
export function usesPdptrs(registers: { cr0: bigint; cr4: bigint; efer: bigint }): boolean {
  return (registers.cr0 & Cr0.PG) !== 0n && (registers.cr4 & Cr4.PAE) !== 0n && (registers.efer & Efer.LMA) === 0n;
}

/** Reads the four PDPTEs at CR3; undefined when one has reserved bits set, or no memory is there (#GP). */
export function readPdptrs(vcpu: VcpuParts, cr3: bigint): readonly bigint[] | undefined {
  const data = vcpu.vm.memory.read(Number(cr3 & 0xffff_ffe0n), 32);
  if (data === undefined) return undefined;
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const reserved = 0x1e6n | (0xffff_ffff_ffff_ffffn & ~((1n << BigInt(vcpu.vm.physicalBits)) - 1n));
  const entries = [0, 8, 16, 24].map((offset) => view.getBigUint64(offset, true));
  return entries.some((entry) => (entry & 1n) !== 0n && (entry & reserved) !== 0n) ? undefined : entries;
}
