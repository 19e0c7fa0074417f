/**
 * What VMRUN refuses with VMEXIT_INVALID. Each rule has a name, which the hardware's log tells. Source: AMD64 APM Vol. 2, VMRUN and
 * TLB Flush; Canonicalization and Consistency Checks; Event Injection.
 */
import type { CpuModel } from "../engine/cpu.ts";
import { Cr0, Cr4, Efer } from "../engine/system/bits.ts";
import { ASIDS } from "../engine/system/cpuid-amd.ts";
import { isPat } from "../root-msrs.ts";
import {
  Control,
  Event,
  Intercept3,
  Intercept4,
  NESTED_PAGING,
  Save,
  TlbControl,
  VInterrupt,
  VIRTUAL_VMLOAD_VMSAVE,
} from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

const CS_LONG = 0x200;
const CS_BIG = 0x400;
const FLUSHES: readonly number[] = Object.values(TlbControl);
const AVIC_ADDRESSES = [
  [Control.AVIC_BACKING_PAGE, "backing page"],
  [Control.AVIC_LOGICAL_TABLE, "logical APIC ID table"],
  [Control.AVIC_PHYSICAL_TABLE, "physical APIC ID table"],
] as const;
const IOPM_BYTES = 0x3000;
const MSRPM_BYTES = 0x2000;

/** The broken rule, undefined when VMRUN may go on. */
export function refusal(vmcb: Vmcb, model: CpuModel): string | undefined {
  return checkControls(vmcb, model) ?? checkRegisters(vmcb, model) ?? checkInjection(vmcb);
}

function checkControls(vmcb: Vmcb, model: CpuModel): string | undefined {
  const end = 2 ** model.physicalAddressBits;
  if ((vmcb.low(Control.INTERCEPT_4) & Intercept4.vmrun) === 0) return "VMRUN is not intercepted";
  const asid = vmcb.low(Control.ASID);
  if (asid === 0) return "ASID 0 is the host's";
  if (asid >= ASIDS) return `ASID ${asid} is above what CPUID tells`;
  const flush = vmcb.byte(Control.TLB_CONTROL);
  if (!FLUSHES.includes(flush)) return `TLB_CONTROL ${flush}`;
  if ((vmcb.low(Control.INTERCEPT_3) & Intercept3.msr) !== 0 && isBeyond(vmcb, Control.MSRPM_BASE, MSRPM_BYTES, end))
    return "MSRPM beyond physical addresses";
  if ((vmcb.low(Control.INTERCEPT_3) & Intercept3.io) !== 0 && isBeyond(vmcb, Control.IOPM_BASE, IOPM_BYTES, end))
    return "IOPM beyond physical addresses";
  if ((vmcb.low(Control.NESTED) & NESTED_PAGING) !== 0 && vmcb.number(Control.NESTED_CR3) >= end) return "nested CR3";
  if ((vmcb.low(Control.VIRTUAL_EXTENSIONS) & VIRTUAL_VMLOAD_VMSAVE) !== 0 && (vmcb.low(Control.NESTED) & NESTED_PAGING) === 0)
    return "virtual VMLOAD and VMSAVE without nested paging";
  const virtual = vmcb.low(Control.V_INTERRUPT);
  if ((virtual & VInterrupt.avicEnable) !== 0) {
    if ((vmcb.low(Control.NESTED) & NESTED_PAGING) === 0) return "AVIC without nested paging";
    for (const [field, name] of AVIC_ADDRESSES) if (vmcb.number(field) >= end) return `AVIC ${name} beyond physical addresses`;
    if (vmcb.byte(Control.AVIC_PHYSICAL_TABLE) === 0xff) return "AVIC physical APIC ID table with an entry for ID 255";
  }
  if ((virtual & VInterrupt.nmiEnable) !== 0 && (vmcb.low(Control.INTERCEPT_3) & Intercept3.nmi) === 0)
    return "virtual NMIs without the NMI intercept";
  if ((vmcb.low(Control.NESTED) & NESTED_PAGING) !== 0 && !isPat(vmcb.low(Save.G_PAT), vmcb.high(Save.G_PAT)))
    return "G_PAT has a memory type that does not exist";
  return undefined;
}

/** The low 12 bits of the address are ignored. */
function isBeyond(vmcb: Vmcb, field: number, bytes: number, end: number): boolean {
  const address = vmcb.number(field);
  return address - (address % 4096) + bytes > end;
}

function checkRegisters(vmcb: Vmcb, model: CpuModel): string | undefined {
  const efer = vmcb.low(Save.EFER);
  const cr0 = vmcb.low(Save.CR0);
  const cr4 = vmcb.low(Save.CR4);
  if ((efer & Efer.SVME) === 0) return "EFER.SVME is clear";
  if ((cr0 & Cr0.CD) === 0 && (cr0 & Cr0.NW) !== 0) return "CR0.NW without CD";
  if (vmcb.high(Save.CR0) !== 0) return "CR0 bits 63:32";
  if (vmcb.high(Save.CR3) >= 2 ** (model.physicalAddressBits - 32)) return "CR3 reserved bits";
  if (vmcb.high(Save.CR4) !== 0 || (cr4 & ~Number(model.cr4Allowed)) !== 0) return "CR4 reserved bits";
  if (vmcb.high(Save.DR6) !== 0) return "DR6 bits 63:32";
  if (vmcb.high(Save.DR7) !== 0) return "DR7 bits 63:32";
  if (vmcb.high(Save.EFER) !== 0 || (efer & ~Number(model.eferAllowed)) !== 0) return "EFER reserved bits";
  const isLong = (efer & Efer.LME) !== 0 && (cr0 & Cr0.PG) !== 0;
  if (isLong && (cr4 & Cr4.PAE) === 0) return "long mode without CR4.PAE";
  if (isLong && (cr0 & Cr0.PE) === 0) return "long mode without CR0.PE";
  const cs = vmcb.low(Save.CS) >>> 16;
  if (isLong && (cs & CS_LONG) !== 0 && (cs & CS_BIG) !== 0) return "CS.L and CS.D in long mode";
  return undefined;
}

function checkInjection(vmcb: Vmcb): string | undefined {
  const event = vmcb.low(Control.EVENT_INJECTION);
  if ((event & Event.valid) === 0) return undefined;
  const type = (event >>> Event.typeShift) & 7;
  const vector = event & Event.vector;
  if (type === 1 || type > Event.software) return `event injection of type ${type}`;
  if (type === Event.exception && (vector === 2 || vector > 31)) return `injection of exception ${vector}`;
  return undefined;
}
