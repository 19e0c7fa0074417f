/**
 * Checks of the guest-state area by VM entry. Source: Intel SDM Vol. 3C, Checks on the Guest State Area. The part that can be
 * skipped while nothing was written is `checkGuestState`; `checkGuestNow` is made by every entry.
 */
import type { CpuModel } from "../engine/cpu.ts";
import { isGlobalControl } from "../performance/intel-counters.ts";
import { isPat } from "../root-msrs.ts";
import { CR0_FIXED0, CR4_FIXED0 } from "./capabilities.ts";
import { isCanonicalField } from "./control-checks.ts";
import { Activity, Blocking, EntryControl, Interruption, PendingDebug, Pin, Primary, Secondary } from "./controls.ts";
import { slot } from "./fields.ts";
import type { Vmcs } from "./vmcs.ts";

export interface GuestStateError {
  /** Exit qualification: 0, 2 (PDPTE), 3 (NMI with STI blocking), 4 (VMCS link pointer). */
  qualification: number;
  rule: string;
}

const failed = (rule: string, qualification = 0): GuestStateError => ({ qualification, rule });

const CS = 1;
const SS = 2;
const LDTR = 6;
const TR = 7;
const NAMES = ["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"];
const RFLAGS_VM = 1 << 17;
const RFLAGS_TF = 1 << 8;
/** IA32_DEBUGCTL.BTF. */
const BRANCH_TRAP = 2;
const UNUSABLE = 1 << 16;

const selector = (vmcs: Vmcs, i: number): number => vmcs.low(slot.GUEST_ES_SELECTOR + 2 * i);
const access = (vmcs: Vmcs, i: number): number => vmcs.low(slot.GUEST_ES_ACCESS + 2 * i);
const limit = (vmcs: Vmcs, i: number): number => vmcs.low(slot.GUEST_ES_LIMIT + 2 * i);
const base = (i: number): number => slot.GUEST_ES_BASE + 2 * i;

function secondaryControls(vmcs: Vmcs): number {
  return (vmcs.low(slot.PRIMARY_CONTROLS) & Primary.activateSecondary) !== 0 ? vmcs.low(slot.SECONDARY_CONTROLS) : 0;
}

export function checkGuestState(vmcs: Vmcs, model: CpuModel): GuestStateError | undefined {
  return checkRegisters(vmcs, model) ?? checkSegments(vmcs, model) ?? checkTables(vmcs, model);
}

function checkRegisters(vmcs: Vmcs, model: CpuModel): GuestStateError | undefined {
  const entry = vmcs.low(slot.ENTRY_CONTROLS);
  const isLong = (entry & EntryControl.ia32eModeGuest) !== 0;
  const unrestricted = (secondaryControls(vmcs) & Secondary.unrestrictedGuest) !== 0;
  const cr0 = vmcs.low(slot.GUEST_CR0);
  const cr4 = vmcs.low(slot.GUEST_CR4);
  const cr0Fixed = unrestricted ? CR0_FIXED0 & 0x7fff_fffe : CR0_FIXED0;
  if ((cr0 & cr0Fixed) >>> 0 !== cr0Fixed || vmcs.high(slot.GUEST_CR0) !== 0) return failed("CR0 fixed bits");
  const paging = cr0 >>> 31 !== 0;
  if (paging && (cr0 & 1) === 0) return failed("CR0.PG without PE");
  if ((cr4 & CR4_FIXED0) === 0 || vmcs.high(slot.GUEST_CR4) !== 0) return failed("CR4 fixed bits");
  if ((BigInt(cr4) & ~(model.cr4Allowed | BigInt(CR4_FIXED0))) !== 0n) return failed("CR4 reserved bits");
  if (isLong && (!paging || (cr4 & 0x20) === 0)) return failed("IA-32e mode without PG and PAE");
  if (!isLong && (cr4 & 0x2_0000) !== 0) return failed("CR4.PCIDE outside IA-32e mode");
  if (vmcs.high(slot.GUEST_CR3) >= 2 ** (model.physicalAddressBits - 32)) return failed("CR3");
  if ((entry & EntryControl.loadDebugControls) !== 0) {
    if ((vmcs.low(slot.GUEST_DEBUGCTL) & ~0xdfc3) !== 0 || vmcs.high(slot.GUEST_DEBUGCTL) !== 0) return failed("IA32_DEBUGCTL");
    if (vmcs.high(slot.GUEST_DR7) !== 0) return failed("DR7");
  }
  if ((entry & EntryControl.loadPerfGlobalCtrl) !== 0) {
    const where = slot.GUEST_PERF_GLOBAL_CTRL;
    if (!isGlobalControl(vmcs.low(where), vmcs.high(where))) return failed("IA32_PERF_GLOBAL_CTRL");
  }
  if (!isCanonicalField(vmcs, slot.GUEST_SYSENTER_ESP, model) || !isCanonicalField(vmcs, slot.GUEST_SYSENTER_EIP, model))
    return failed("SYSENTER address");
  if ((entry & EntryControl.loadPat) !== 0 && !isPat(vmcs.low(slot.GUEST_PAT), vmcs.high(slot.GUEST_PAT)))
    return failed("IA32_PAT");
  if ((entry & EntryControl.loadEfer) !== 0) {
    const efer = vmcs.low(slot.GUEST_EFER);
    if (vmcs.high(slot.GUEST_EFER) !== 0 || (efer & ~0xd01) !== 0) return failed("IA32_EFER reserved bits");
    if (((efer & 0x400) !== 0) !== isLong) return failed("IA32_EFER.LMA differs from the entry control");
    if (paging && ((efer & 0x100) !== 0) !== isLong) return failed("IA32_EFER.LME differs from LMA with paging on");
  }
  return undefined;
}

/** Granularity must fit the limit. */
function granularityFits(bytesLimit: number, rights: number): boolean {
  if ((bytesLimit & 0xfff) !== 0xfff && (rights & 0x8000) !== 0) return false;
  return bytesLimit < 0x10_0000 || (rights & 0x8000) !== 0;
}

function checkSegments(vmcs: Vmcs, model: CpuModel): GuestStateError | undefined {
  const isVm86 = (vmcs.low(slot.GUEST_RFLAGS) & RFLAGS_VM) !== 0;
  const unrestricted = (secondaryControls(vmcs) & Secondary.unrestrictedGuest) !== 0;
  const isLong = (vmcs.low(slot.ENTRY_CONTROLS) & EntryControl.ia32eModeGuest) !== 0;
  const ldtrUsable = (access(vmcs, LDTR) & UNUSABLE) === 0;
  if ((selector(vmcs, TR) & 4) !== 0) return failed("TR selector: TI");
  if (ldtrUsable && (selector(vmcs, LDTR) & 4) !== 0) return failed("LDTR selector: TI");
  if (!isVm86 && !unrestricted && (selector(vmcs, SS) & 3) !== (selector(vmcs, CS) & 3))
    return failed("RPL of SS and CS differ");
  if (
    !isCanonicalField(vmcs, base(TR), model) ||
    !isCanonicalField(vmcs, base(4), model) ||
    !isCanonicalField(vmcs, base(5), model)
  )
    return failed("TR, FS or GS base not canonical");
  if (ldtrUsable && !isCanonicalField(vmcs, base(LDTR), model)) return failed("LDTR base not canonical");
  if (vmcs.high(base(CS)) !== 0) return failed("CS base above 32 bits");
  for (const i of [0, SS, 3]) {
    if ((access(vmcs, i) & UNUSABLE) === 0 && vmcs.high(base(i)) !== 0) return failed(`${NAMES[i]} base above 32 bits`);
  }
  for (let i = 0; i <= 5; i++) {
    const error = isVm86 ? checkVm86Segment(vmcs, i) : checkSegment(vmcs, i, unrestricted, isLong);
    if (error !== undefined) return error;
  }
  return checkSystemSegments(vmcs, isLong);
}

function checkVm86Segment(vmcs: Vmcs, i: number): GuestStateError | undefined {
  const name = NAMES[i];
  if (vmcs.low(base(i)) !== selector(vmcs, i) << 4) return failed(`${name} base in virtual-8086 mode`);
  if (limit(vmcs, i) !== 0xffff) return failed(`${name} limit in virtual-8086 mode`);
  return access(vmcs, i) === 0xf3 ? undefined : failed(`${name} access rights in virtual-8086 mode`);
}

function checkSegment(vmcs: Vmcs, i: number, unrestricted: boolean, isLong: boolean): GuestStateError | undefined {
  const rights = access(vmcs, i);
  const name = NAMES[i];
  if (i !== CS && (rights & UNUSABLE) !== 0) return undefined;
  const type = rights & 15;
  const dpl = (rights >>> 5) & 3;
  if ((rights & 0x10) === 0) return failed(`${name} is a system segment`);
  if ((rights & 0x80) === 0) return failed(`${name} not present`);
  if ((rights & 0xffff_0f00 & ~UNUSABLE) !== 0 || (rights & 0xf00) !== 0) return failed(`${name} access rights reserved bits`);
  if (!granularityFits(limit(vmcs, i), rights)) return failed(`${name} granularity`);
  if (i === CS) {
    const isCode = type === 9 || type === 11 || type === 13 || type === 15;
    if (!isCode && !(type === 3 && unrestricted)) return failed("CS type");
    const ssDpl = (access(vmcs, SS) >>> 5) & 3;
    if (type === 3 ? dpl !== 0 : type < 12 ? dpl !== ssDpl : dpl > ssDpl) return failed("CS DPL");
    if (isLong && (rights & 0x2000) !== 0 && (rights & 0x4000) !== 0) return failed("CS with both L and D");
    return undefined;
  }
  if (i === SS) {
    if (type !== 3 && type !== 7) return failed("SS type");
    if (!unrestricted && dpl !== (selector(vmcs, SS) & 3)) return failed("SS DPL and RPL differ");
    if ((access(vmcs, CS) & 15) === 3 || (vmcs.low(slot.GUEST_CR0) & 1) === 0)
      return dpl === 0 ? undefined : failed("SS DPL in real mode");
    return undefined;
  }
  if ((type & 1) === 0) return failed(`${name} not accessed`);
  if ((type & 8) !== 0 && (type & 2) === 0) return failed(`${name} is unreadable code`);
  if (!unrestricted && type <= 11 && dpl < (selector(vmcs, i) & 3)) return failed(`${name} DPL below RPL`);
  return undefined;
}

function checkSystemSegments(vmcs: Vmcs, isLong: boolean): GuestStateError | undefined {
  const tr = access(vmcs, TR);
  if ((tr & 15) !== 11 && ((tr & 15) !== 3 || isLong)) return failed("TR type");
  if ((tr & 0x90) !== 0x80 || (tr & UNUSABLE) !== 0 || (tr & 0xf00) !== 0) return failed("TR access rights");
  if (!granularityFits(limit(vmcs, TR), tr)) return failed("TR granularity");
  const ldtr = access(vmcs, LDTR);
  if ((ldtr & UNUSABLE) !== 0) return undefined;
  if ((ldtr & 15) !== 2 || (ldtr & 0x90) !== 0x80 || (ldtr & 0xf00) !== 0) return failed("LDTR access rights");
  return granularityFits(limit(vmcs, LDTR), ldtr) ? undefined : failed("LDTR granularity");
}

function checkTables(vmcs: Vmcs, model: CpuModel): GuestStateError | undefined {
  if (!isCanonicalField(vmcs, slot.GUEST_GDTR_BASE, model) || !isCanonicalField(vmcs, slot.GUEST_IDTR_BASE, model))
    return failed("GDTR or IDTR base");
  if (vmcs.low(slot.GUEST_GDTR_LIMIT) > 0xffff || vmcs.low(slot.GUEST_IDTR_LIMIT) > 0xffff) return failed("GDTR or IDTR limit");
  if (vmcs.low(slot.VMCS_LINK_POINTER) !== 0xffff_ffff || vmcs.high(slot.VMCS_LINK_POINTER) !== 0xffff_ffff)
    return failed("VMCS link pointer", 4); // shadow VMCSs are not offered
  const cr0 = vmcs.low(slot.GUEST_CR0);
  const isLong = (vmcs.low(slot.ENTRY_CONTROLS) & EntryControl.ia32eModeGuest) !== 0;
  const isPae = cr0 >>> 31 !== 0 && (vmcs.low(slot.GUEST_CR4) & 0x20) !== 0 && !isLong;
  if (!isPae || (secondaryControls(vmcs) & Secondary.enableEpt) === 0) return undefined;
  for (let i = 0; i < 4; i++) {
    const entry = slot.GUEST_PDPTE0 + 2 * i;
    if ((vmcs.low(entry) & 1) === 0) continue;
    if ((vmcs.low(entry) & 0x1e6) !== 0 || vmcs.high(entry) >= 2 ** (model.physicalAddressBits - 32)) return failed("PDPTE", 2);
  }
  return undefined;
}

/** RIP, RFLAGS, activity, interruptibility, and what is to be injected. */
export function checkGuestNow(vmcs: Vmcs, model: CpuModel): GuestStateError | undefined {
  const isLong = (vmcs.low(slot.ENTRY_CONTROLS) & EntryControl.ia32eModeGuest) !== 0;
  const flags = vmcs.low(slot.GUEST_RFLAGS);
  if (isLong && (access(vmcs, CS) & 0x2000) !== 0) {
    if (!isCanonicalField(vmcs, slot.GUEST_RIP, model)) return failed("RIP not canonical");
  } else if (vmcs.high(slot.GUEST_RIP) !== 0) return failed("RIP above 32 bits");
  if ((flags & 0xffc0_802a) !== 2 || vmcs.high(slot.GUEST_RFLAGS) !== 0) return failed("RFLAGS reserved bits");
  if ((flags & RFLAGS_VM) !== 0 && (isLong || (vmcs.low(slot.GUEST_CR0) & 1) === 0)) return failed("RFLAGS.VM");
  const info = vmcs.low(slot.ENTRY_INTERRUPTION_INFO);
  const type = (info & Interruption.valid) !== 0 ? (info >>> 8) & 7 : -1;
  if (type === 0 && (flags & 0x200) === 0) return failed("external interrupt injected with RFLAGS.IF 0");
  return checkActivity(vmcs, info, type, flags);
}

function checkActivity(vmcs: Vmcs, info: number, type: number, flags: number): GuestStateError | undefined {
  const activity = vmcs.low(slot.GUEST_ACTIVITY);
  const blocking = vmcs.low(slot.GUEST_INTERRUPTIBILITY);
  if (activity > Activity.shutdown) return failed("activity state");
  if (activity !== Activity.active) {
    if (activity === Activity.hlt && ((access(vmcs, SS) >>> 5) & 3) !== 0) return failed("HLT state with CPL above 0");
    if ((blocking & (Blocking.bySti | Blocking.byMovSs)) !== 0) return failed("halted with STI or MOV SS blocking");
    const vector = info & 0xff;
    const wakes =
      type === -1 ||
      type === 2 ||
      (activity === Activity.hlt && (type === 0 || (type === 3 && (vector === 1 || vector === 18)) || type === 7)) ||
      (activity === Activity.shutdown && type === 3 && vector === 18);
    if (!wakes) return failed("injection into this activity state");
  }
  if ((blocking & ~0xf) !== 0 || (blocking & Blocking.bySmi) !== 0) return failed("interruptibility reserved bits");
  if ((blocking & 3) === 3) return failed("both STI and MOV SS blocking");
  if ((blocking & Blocking.bySti) !== 0 && (flags & 0x200) === 0) return failed("STI blocking with RFLAGS.IF 0");
  if ((type === 0 || type === 2) && (blocking & Blocking.byMovSs) !== 0) return failed("injection with MOV SS blocking");
  if (type === 0 && (blocking & Blocking.bySti) !== 0) return failed("injection with STI blocking");
  if (type === 2 && (blocking & Blocking.bySti) !== 0) return failed("NMI injection with STI blocking", 3);
  const virtualNmis = (vmcs.low(slot.PIN_CONTROLS) & Pin.virtualNmis) !== 0;
  if (virtualNmis && type === 2 && (blocking & Blocking.byNmi) !== 0) return failed("NMI injection with virtual-NMI blocking");
  if ((vmcs.low(slot.GUEST_PENDING_DEBUG) & 0xffff_aff0) !== 0 || vmcs.high(slot.GUEST_PENDING_DEBUG) !== 0)
    return failed("pending debug exceptions reserved bits");
  if ((blocking & (Blocking.bySti | Blocking.byMovSs)) !== 0 || activity === Activity.hlt) {
    const isStepping = (flags & RFLAGS_TF) !== 0 && (vmcs.low(slot.GUEST_DEBUGCTL) & BRANCH_TRAP) === 0;
    if (((vmcs.low(slot.GUEST_PENDING_DEBUG) & PendingDebug.singleStep) !== 0) !== isStepping)
      return failed("pending single step does not agree with RFLAGS.TF");
  }
  return undefined;
}
