/** Registers of the cache in VMCS fields. */
import type { VmxInstructions } from "@mkvm/hw-x86";
import {
  CR0_GUEST_OWNED,
  CR4_GUEST_OWNED,
  Cr0,
  Efer,
  EntryControl,
  SystemSegment,
  VmcsField,
  type VmxCapabilities,
} from "@mkvm/kvm-core";
import { Register, type RegisterCache, type RegisterNumber } from "../register-cache.ts";

/** Registers that are one field each. */
const PLAIN: Readonly<Record<number, number>> = {
  [Register.rip]: VmcsField.GUEST_RIP,
  [Register.rsp]: VmcsField.GUEST_RSP,
  [Register.cr3]: VmcsField.GUEST_CR3,
  [Register.dr7]: VmcsField.GUEST_DR7,
  [Register.pendingDebug]: VmcsField.GUEST_PENDING_DEBUG_EXCEPTIONS,
  [Register.tscOffset]: VmcsField.TSC_OFFSET,
};
/** The same, where a processor leaves nothing in the upper half. */
const NARROW: Readonly<Record<number, number>> = {
  [Register.rflags]: VmcsField.GUEST_RFLAGS,
  [Register.interruptibility]: VmcsField.GUEST_INTERRUPTIBILITY_STATE,
};
const PDPTES = [VmcsField.GUEST_PDPTE0, VmcsField.GUEST_PDPTE1, VmcsField.GUEST_PDPTE2, VmcsField.GUEST_PDPTE3] as const;
/** Bits of CR0 and CR4 that the guest changes without an exit; the others are as the guest reads them. */
const CR0_OWN = Number(CR0_GUEST_OWNED);
const CR4_OWN = Number(CR4_GUEST_OWNED);
/** Fields of the segments are 2 apart, in encoding order. */
const STRIDE = 2;
const BUSY_64_BIT_TSS = 0xb;

export function fetchRegister(vmx: VmxInstructions, cache: RegisterCache, register: RegisterNumber): void {
  const plain = PLAIN[register];
  if (plain !== undefined) {
    cache.words[register] = vmx.vmread(plain);
    return;
  }
  const narrow = NARROW[register];
  if (narrow !== undefined) {
    cache.fetched(register, vmx.vmread32(narrow));
    return;
  }
  switch (register) {
    case Register.cr0:
      cache.fetched(
        register,
        (vmx.vmread32(VmcsField.CR0_READ_SHADOW) & ~CR0_OWN) | (vmx.vmread32(VmcsField.GUEST_CR0) & CR0_OWN),
      );
      return;
    case Register.cr4:
      cache.fetched(
        register,
        (vmx.vmread32(VmcsField.CR4_READ_SHADOW) & ~CR4_OWN) | (vmx.vmread32(VmcsField.GUEST_CR4) & CR4_OWN),
      );
      return;
    case Register.efer:
      cache.words[register] = vmx.vmread(VmcsField.GUEST_IA32_EFER);
      return;
    case Register.gdtr:
      cache.tables.gdtr = { base: vmx.vmread(VmcsField.GUEST_GDTR_BASE), limit: vmx.vmread32(VmcsField.GUEST_GDTR_LIMIT) };
      return;
    case Register.idtr:
      cache.tables.idtr = { base: vmx.vmread(VmcsField.GUEST_IDTR_BASE), limit: vmx.vmread32(VmcsField.GUEST_IDTR_LIMIT) };
      return;
    case Register.pdptrs:
      cache.pdptrs = PDPTES.map((field) => vmx.vmread(field));
      return;
    default: {
      const at = (register - Register.segment0) * STRIDE;
      cache.segments[register - Register.segment0] = {
        selector: vmx.vmread32(VmcsField.GUEST_ES_SELECTOR + at),
        base: vmx.vmread(VmcsField.GUEST_ES_BASE + at),
        limit: vmx.vmread32(VmcsField.GUEST_ES_LIMIT + at),
        access: vmx.vmread32(VmcsField.GUEST_ES_ACCESS_RIGHTS + at),
      };
    }
  }
}

export function storeRegister(
  vmx: VmxInstructions,
  capabilities: VmxCapabilities,
  cache: RegisterCache,
  register: RegisterNumber,
): void {
  const value = cache.words[register] ?? 0n;
  const plain = PLAIN[register] ?? NARROW[register];
  if (plain !== undefined) {
    vmx.vmwrite(plain, value);
    return;
  }
  switch (register) {
    case Register.cr0:
      // Caching stays on; NE is what VMX demands; PE and PG are free with unrestricted guest
      vmx.vmwrite(VmcsField.GUEST_CR0, (value & ~(Cr0.CD | Cr0.NW)) | (capabilities.cr0Fixed0 & ~(Cr0.PE | Cr0.PG)));
      vmx.vmwrite(VmcsField.CR0_READ_SHADOW, value);
      return;
    case Register.cr4:
      vmx.vmwrite(VmcsField.GUEST_CR4, value | capabilities.cr4Fixed0);
      vmx.vmwrite(VmcsField.CR4_READ_SHADOW, value);
      return;
    case Register.efer:
      storeEfer(vmx, value);
      return;
    case Register.gdtr:
      vmx.vmwrite(VmcsField.GUEST_GDTR_BASE, cache.tables.gdtr.base);
      vmx.vmwrite(VmcsField.GUEST_GDTR_LIMIT, cache.tables.gdtr.limit);
      return;
    case Register.idtr:
      vmx.vmwrite(VmcsField.GUEST_IDTR_BASE, cache.tables.idtr.base);
      vmx.vmwrite(VmcsField.GUEST_IDTR_LIMIT, cache.tables.idtr.limit);
      return;
    case Register.pdptrs:
      PDPTES.forEach((field, index) => {
        vmx.vmwrite(field, cache.pdptrs[index] ?? 0n);
      });
      return;
    default: {
      const at = (register - Register.segment0) * STRIDE;
      const segment = cache.segments[register - Register.segment0]!;
      vmx.vmwrite(VmcsField.GUEST_ES_SELECTOR + at, segment.selector);
      vmx.vmwrite(VmcsField.GUEST_ES_BASE + at, segment.base);
      vmx.vmwrite(VmcsField.GUEST_ES_LIMIT + at, segment.limit);
      vmx.vmwrite(VmcsField.GUEST_ES_ACCESS_RIGHTS + at, segment.access);
    }
  }
}

/** The entry control "IA-32e mode guest" follows LMA. */
function storeEfer(vmx: VmxInstructions, value: bigint): void {
  vmx.vmwrite(VmcsField.GUEST_IA32_EFER, value);
  const controls = vmx.vmread32(VmcsField.VM_ENTRY_CONTROLS);
  const longMode = (value & Efer.LMA) !== 0n;
  const wanted = (longMode ? controls | EntryControl.ia32eModeGuest : controls & ~EntryControl.ia32eModeGuest) >>> 0;
  if (wanted !== controls) vmx.vmwrite(VmcsField.VM_ENTRY_CONTROLS, wanted);
}

/** In long mode VM entry wants a 64-bit TSS in TR, whatever was there when the guest entered that mode. */
export function settleTaskRegister(cache: RegisterCache): void {
  if ((cache.word(Register.efer) & Efer.LMA) === 0n) return;
  const segment = cache.segment(SystemSegment.TR);
  if ((segment.access & 0xf) === BUSY_64_BIT_TSS) return;
  cache.setSegment(SystemSegment.TR, { ...segment, access: (segment.access & ~0xf) | BUSY_64_BIT_TSS });
}
