/** Registers of a processor after power-up, reset or INIT (SDM 3A, "Processor State After Reset"). */
import { Gpr, SegmentRegister } from "../arch/registers.ts";
import { findCpuid } from "../cpuid-table.ts";
import { resetXsave } from "./fpu-state.ts";
import { SystemSegment } from "./guest-cpu.ts";
import type { VcpuParts } from "./vcpu-parts.ts";

const DATA = { selector: 0, base: 0n, limit: 0xffff, access: 0x93 };

/** Puts the registers in place; events, APIC and MSR store are the caller's. INIT keeps the FPU, XCR0 and CR0's cache bits. */
export function resetRegisters(vcpu: VcpuParts, kind: "power-on" | "init"): void {
  for (let index = 0; index < 16; index++) vcpu.setGpr(index, 0n);
  // EDX: the processor's signature
  vcpu.setGpr(Gpr.RDX, BigInt((findCpuid(vcpu.cpuid, 1, 0)?.eax ?? 0x600) >>> 0));
  vcpu.rip = 0xfff0n;
  vcpu.rflags = 2n;
  for (const register of [SegmentRegister.ES, SegmentRegister.SS, SegmentRegister.DS, SegmentRegister.FS, SegmentRegister.GS]) {
    vcpu.setSegment(register, DATA);
  }
  vcpu.setSegment(SegmentRegister.CS, { selector: 0xf000, base: 0xffff_0000n, limit: 0xffff, access: 0x9b });
  vcpu.setSegment(SystemSegment.LDTR, { selector: 0, base: 0n, limit: 0xffff, access: 0x82 });
  vcpu.setSegment(SystemSegment.TR, { selector: 0, base: 0n, limit: 0xffff, access: 0x8b });
  vcpu.gdtr = { base: 0n, limit: 0xffff };
  vcpu.idtr = { base: 0n, limit: 0xffff };
  const cacheBits = kind === "init" ? vcpu.cr0 & 0x6000_0000n : 0x6000_0000n;
  vcpu.efer = 0n;
  vcpu.cr0 = 0x10n | cacheBits;
  vcpu.cr2 = 0n;
  vcpu.cr3 = 0n;
  vcpu.cr4 = 0n;
  for (let index = 0; index < 4; index++) vcpu.setDebugRegister(index, 0n);
  vcpu.setDebugRegister(6, 0xffff_0ff0n);
  vcpu.setDebugRegister(7, 0x400n);
  vcpu.interruptShadow = 0;
  vcpu.nmiMasked = false;
  vcpu.pendingDebug = 0n;
  if (kind === "power-on") {
    vcpu.xrstor(resetXsave());
    vcpu.xcr0 = 1n;
  }
}
