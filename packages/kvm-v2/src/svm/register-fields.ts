/** Registers of the cache in the VMCB. */
import { readPdptrs, type SvmVcpu, usesPdptrs, VmcbControl, VmcbSave } from "@mkvm/kvm-core";
import { Register, type RegisterCache, type RegisterNumber } from "../register-cache.ts";
import type { Vcpu } from "../vcpu.ts";

/** Registers that are one field each. */
const PLAIN: Readonly<Record<number, number>> = {
  [Register.rip]: VmcbSave.RIP,
  [Register.rsp]: VmcbSave.RSP,
  [Register.cr0]: VmcbSave.CR0,
  [Register.cr3]: VmcbSave.CR3,
  [Register.cr4]: VmcbSave.CR4,
  [Register.dr7]: VmcbSave.DR7,
  [Register.tscOffset]: VmcbControl.TSC_OFFSET,
};

/** SVM's interruptibility, as the cache keeps it: the shadow, and the blocking of NMIs. */
export const Interruptibility = { shadow: 1, nmiMasked: 2 } as const;
const NO_PDPTRS: readonly bigint[] = [0n, 0n, 0n, 0n];

export function fetchRegister(svm: SvmVcpu, vcpu: Vcpu, cache: RegisterCache, register: RegisterNumber): void {
  const plain = PLAIN[register];
  if (plain !== undefined) {
    cache.words[register] = svm.vmcb.quad(plain);
    return;
  }
  switch (register) {
    case Register.rflags:
      cache.words[register] = svm.rflags;
      return;
    case Register.efer:
      cache.words[register] = svm.efer;
      return;
    case Register.interruptibility:
      cache.fetched(
        register,
        (svm.interruptShadow !== 0 ? Interruptibility.shadow : 0) | (svm.nmi.masked ? Interruptibility.nmiMasked : 0),
      );
      return;
    case Register.pendingDebug:
      // The VMCB has no such field; what was stored became an exception before the last entry
      cache.words[register] = 0n;
      return;
    case Register.gdtr:
      cache.tables.gdtr = svm.table("gdtr");
      return;
    case Register.idtr:
      cache.tables.idtr = svm.table("idtr");
      return;
    case Register.pdptrs:
      // VMRUN reads the entries from memory
      cache.pdptrs = (usesPdptrs(vcpu) ? readPdptrs(vcpu, vcpu.cr3) : undefined) ?? NO_PDPTRS;
      return;
    default:
      cache.segments[register - Register.segment0] = svm.segment(register - Register.segment0);
  }
}

export function storeRegister(svm: SvmVcpu, cache: RegisterCache, register: RegisterNumber): void {
  const value = cache.words[register] ?? 0n;
  const plain = PLAIN[register];
  if (plain !== undefined) {
    svm.vmcb.setQuad(plain, value);
    return;
  }
  switch (register) {
    case Register.rflags:
      svm.rflags = value;
      return;
    case Register.efer:
      svm.efer = value;
      return;
    case Register.interruptibility: {
      const interruptibility = cache.low(register);
      const masked = (interruptibility & Interruptibility.nmiMasked) !== 0;
      svm.interruptShadow = (interruptibility & Interruptibility.shadow) !== 0 ? 1 : 0;
      if (masked !== svm.nmi.masked) svm.nmi.masked = masked;
      return;
    }
    case Register.gdtr:
      svm.setTable("gdtr", cache.tables.gdtr);
      return;
    case Register.idtr:
      svm.setTable("idtr", cache.tables.idtr);
      return;
    case Register.pendingDebug:
    case Register.pdptrs:
      return;
    default:
      svm.setSegment(register - Register.segment0, cache.segments[register - Register.segment0]!);
  }
}
