/** A vCPU's registers in the structures of the uapi: for the ioctls, and for the sections of the portable state. */
import {
  InterruptShadow,
  type KvmDebugregs,
  type KvmRegs,
  type KvmSregs2,
  type KvmVcpuEvents,
  Sregs2Flag,
  type StructValue,
  VcpuEventFlag,
} from "@mkvm/kvm-abi";
import { Cr0, Cr4, Efer, Gpr, SegmentRegister } from "../arch/registers.ts";
import { reservedCr4 } from "./control-registers.ts";
import { exceptionHasErrorCode, type SegmentState, SystemSegment } from "./guest-cpu.ts";
import { readPdptrs, usesPdptrs } from "./paging.ts";
import type { VcpuParts } from "./vcpu-parts.ts";

export type RegsValue = StructValue<(typeof KvmRegs)["fields"]>;
export type Sregs2Value = StructValue<(typeof KvmSregs2)["fields"]>;
export type EventsValue = StructValue<(typeof KvmVcpuEvents)["fields"]>;
export type DebugregsValue = StructValue<(typeof KvmDebugregs)["fields"]>;
type SegmentValue = Sregs2Value["cs"];

const REGS_ORDER = [
  ["rax", Gpr.RAX],
  ["rbx", Gpr.RBX],
  ["rcx", Gpr.RCX],
  ["rdx", Gpr.RDX],
  ["rsi", Gpr.RSI],
  ["rdi", Gpr.RDI],
  ["rsp", Gpr.RSP],
  ["rbp", Gpr.RBP],
  ["r8", 8],
  ["r9", 9],
  ["r10", 10],
  ["r11", 11],
  ["r12", 12],
  ["r13", 13],
  ["r14", 14],
  ["r15", 15],
] as const;

export function getRegs(vcpu: VcpuParts): RegsValue {
  const value = { rip: vcpu.rip, rflags: vcpu.rflags } as RegsValue;
  for (const [name, index] of REGS_ORDER) value[name] = vcpu.gpr(index);
  return value;
}

export function setRegs(vcpu: VcpuParts, value: RegsValue): void {
  for (const [name, index] of REGS_ORDER) vcpu.setGpr(index, value[name]);
  vcpu.rip = value.rip;
  // Bit 1 is always set
  vcpu.rflags = value.rflags | 2n;
}

export function segmentToAbi(state: SegmentState): SegmentValue {
  const { access } = state;
  const unusable = (access >> 16) & 1;
  return {
    base: state.base,
    limit: state.limit,
    selector: state.selector,
    type: access & 15,
    present: unusable ? 0 : (access >> 7) & 1,
    dpl: (access >> 5) & 3,
    db: (access >> 14) & 1,
    s: (access >> 4) & 1,
    l: (access >> 13) & 1,
    g: (access >> 15) & 1,
    avl: (access >> 12) & 1,
    unusable,
    padding: 0,
  };
}

export function segmentFromAbi(value: SegmentValue): SegmentState {
  const unusable = value.unusable !== 0 || value.present === 0;
  const access =
    (value.type & 15) |
    ((value.s & 1) << 4) |
    ((value.dpl & 3) << 5) |
    ((value.present & 1) << 7) |
    ((value.avl & 1) << 12) |
    ((value.l & 1) << 13) |
    ((value.db & 1) << 14) |
    ((value.g & 1) << 15) |
    (unusable ? 1 << 16 : 0);
  return { selector: value.selector, base: value.base, limit: value.limit, access };
}

const SEGMENTS = [
  ["cs", SegmentRegister.CS],
  ["ds", SegmentRegister.DS],
  ["es", SegmentRegister.ES],
  ["fs", SegmentRegister.FS],
  ["gs", SegmentRegister.GS],
  ["ss", SegmentRegister.SS],
  ["tr", SystemSegment.TR],
  ["ldt", SystemSegment.LDTR],
] as const;

/** KVM_GET_SREGS2; KVM_GET_SREGS has the same but for the PDPTEs and the interrupt bitmap. */
export function getSregs2(vcpu: VcpuParts): Sregs2Value {
  const value = {} as Sregs2Value;
  for (const [name, register] of SEGMENTS) value[name] = segmentToAbi(vcpu.segment(register));
  const withPdptrs = usesPdptrs(vcpu);
  return {
    ...value,
    gdt: { ...vcpu.gdtr, padding: [0, 0, 0] },
    idt: { ...vcpu.idtr, padding: [0, 0, 0] },
    cr0: vcpu.cr0,
    cr2: vcpu.cr2,
    cr3: vcpu.cr3,
    cr4: vcpu.cr4,
    cr8: BigInt(vcpu.lapic?.cr8 ?? vcpu.userCr8),
    efer: vcpu.efer,
    apic_base: vcpu.lapic?.apicBase ?? vcpu.userApicBase,
    flags: withPdptrs ? BigInt(Sregs2Flag.KVM_SREGS2_FLAGS_PDPTRS_VALID) : 0n,
    pdptrs: withPdptrs ? [...vcpu.pdptrs] : [0n, 0n, 0n, 0n],
  };
}

/** False: a combination that no processor has (-EINVAL), nothing changed. */
function isValidSregs(vcpu: VcpuParts, value: Sregs2Value): boolean {
  if ((value.efer & Efer.LME) !== 0n && (value.cr0 & Cr0.PG) !== 0n) {
    if ((value.cr4 & Cr4.PAE) === 0n || (value.efer & Efer.LMA) === 0n) return false;
    if (value.cr3 >> BigInt(vcpu.vm.physicalBits) !== 0n) return false;
  } else if (
    (value.efer & Efer.LMA) !== 0n ||
    (value.cs.l !== 0 && (value.cr0 & Cr0.PE) !== 0n && (value.cr0 & Cr0.PG) !== 0n)
  ) {
    return false;
  }
  if (value.cr0 >> 32n !== 0n) return false;
  if ((value.cr0 & Cr0.PG) !== 0n && (value.cr0 & Cr0.PE) === 0n) return false;
  if ((value.cr0 & Cr0.NW) !== 0n && (value.cr0 & Cr0.CD) === 0n) return false;
  return (value.cr4 & reservedCr4(vcpu)) === 0n;
}

/**
 * False: -EINVAL, nothing changed. `moved`: they come from another module, whose section of the local APIC has the task priority to
 * the bit; CR8 is only the upper half of it.
 */
export function setSregs2(vcpu: VcpuParts, value: Sregs2Value, moved = false): boolean {
  if (!moved && !isValidSregs(vcpu, value)) return false;
  const { lapic } = vcpu;
  if (lapic === undefined) {
    vcpu.userApicBase = value.apic_base;
    vcpu.userCr8 = Number(value.cr8 & 15n);
  } else if (moved) {
    if (lapic.apicBase !== value.apic_base) return false;
  } else {
    if (lapic.apicBase !== value.apic_base && !lapic.setApicBase(value.apic_base)) return false;
    lapic.setCr8(Number(value.cr8 & 15n));
  }
  vcpu.gdtr = { base: value.gdt.base, limit: value.gdt.limit };
  vcpu.idtr = { base: value.idt.base, limit: value.idt.limit };
  vcpu.cr2 = value.cr2;
  vcpu.efer = value.efer;
  vcpu.cr0 = value.cr0;
  vcpu.cr4 = value.cr4;
  vcpu.cr3 = value.cr3;
  if (usesPdptrs(vcpu)) {
    const given = (value.flags & BigInt(Sregs2Flag.KVM_SREGS2_FLAGS_PDPTRS_VALID)) !== 0n;
    const pdptrs = given ? value.pdptrs : readPdptrs(vcpu, value.cr3);
    if (pdptrs !== undefined) vcpu.pdptrs = pdptrs;
  }
  for (const [name, register] of SEGMENTS) vcpu.setSegment(register, segmentFromAbi(value[name]));
  vcpu.requestTlbFlush();
  return true;
}

export function getDebugregs(vcpu: VcpuParts): DebugregsValue {
  return {
    db: [0, 1, 2, 3].map((index) => vcpu.debugRegister(index)),
    dr6: vcpu.debugRegister(6),
    dr7: vcpu.debugRegister(7),
    flags: 0n,
    reserved: new Array<bigint>(9).fill(0n),
  };
}

export function setDebugregs(vcpu: VcpuParts, value: DebugregsValue): boolean {
  if (value.flags !== 0n || value.dr6 >> 32n !== 0n || value.dr7 >> 32n !== 0n) return false;
  for (let index = 0; index < 4; index++) vcpu.setDebugRegister(index, value.db[index]!);
  vcpu.setDebugRegister(6, value.dr6);
  vcpu.setDebugRegister(7, value.dr7);
  return true;
}

export function getEvents(vcpu: VcpuParts): EventsValue {
  const events = vcpu.events();
  const { exception, interrupt } = events;
  return {
    exception: {
      injected: exception !== undefined ? 1 : 0,
      nr: exception?.vector ?? 0,
      has_error_code: exception?.errorCode !== undefined ? 1 : 0,
      pending: 0,
      error_code: exception?.errorCode ?? 0,
    },
    interrupt: {
      injected: interrupt !== undefined && !interrupt.software ? 1 : 0,
      nr: interrupt?.vector ?? 0,
      soft: 0,
      shadow: vcpu.interruptShadow,
    },
    nmi: { injected: events.nmiInjected ? 1 : 0, pending: events.nmiPending, masked: vcpu.nmiMasked ? 1 : 0, pad: 0 },
    sipi_vector: 0,
    flags: VcpuEventFlag.KVM_VCPUEVENT_VALID_NMI_PENDING | VcpuEventFlag.KVM_VCPUEVENT_VALID_SHADOW,
    smi: { smm: 0, pending: 0, smm_inside_nmi: 0, latched_init: 0 },
    triple_fault: { pending: 0 },
    reserved: new Uint8Array(26),
    exception_has_payload: 0,
    exception_payload: 0n,
  };
}

/** False: -EINVAL, nothing changed. */
export function setEvents(vcpu: VcpuParts, value: EventsValue): boolean {
  const known =
    VcpuEventFlag.KVM_VCPUEVENT_VALID_NMI_PENDING |
    VcpuEventFlag.KVM_VCPUEVENT_VALID_SIPI_VECTOR |
    VcpuEventFlag.KVM_VCPUEVENT_VALID_SHADOW |
    VcpuEventFlag.KVM_VCPUEVENT_VALID_SMM;
  if ((value.flags & ~known) !== 0) return false;
  const isException = value.exception.injected !== 0;
  if (isException && (value.exception.nr > 31 || value.exception.nr === 2)) return false;
  // There is no SMM: nothing to enter or leave
  if ((value.flags & VcpuEventFlag.KVM_VCPUEVENT_VALID_SMM) !== 0 && (value.smi.smm !== 0 || value.smi.pending !== 0))
    return false;
  const before = vcpu.events();
  vcpu.setEvents({
    exception: isException
      ? {
          vector: value.exception.nr,
          errorCode: value.exception.has_error_code !== 0 ? value.exception.error_code : undefined,
          payload: undefined,
          injected: true,
          software: false,
        }
      : undefined,
    interrupt:
      value.interrupt.injected !== 0 ? { vector: value.interrupt.nr, software: value.interrupt.soft !== 0 } : undefined,
    nmiInjected: value.nmi.injected !== 0,
    nmiPending:
      (value.flags & VcpuEventFlag.KVM_VCPUEVENT_VALID_NMI_PENDING) !== 0 ? Math.min(value.nmi.pending, 2) : before.nmiPending,
    instructionLength: 0,
    tripleFault: before.tripleFault,
  });
  vcpu.nmiMasked = value.nmi.masked !== 0;
  if ((value.flags & VcpuEventFlag.KVM_VCPUEVENT_VALID_SHADOW) !== 0) {
    vcpu.interruptShadow =
      value.interrupt.shadow & (InterruptShadow.KVM_X86_SHADOW_INT_MOV_SS | InterruptShadow.KVM_X86_SHADOW_INT_STI);
  }
  if ((value.flags & VcpuEventFlag.KVM_VCPUEVENT_VALID_SIPI_VECTOR) !== 0 && vcpu.lapic !== undefined) {
    vcpu.lapic.sipiVector = value.sipi_vector & 0xff;
  }
  vcpu.kick();
  return true;
}

/** Events exactly, for the portable state: what the ioctls round off (pending exceptions, software events) is told apart. */
export function eventsToSection(vcpu: VcpuParts): {
  events: EventsValue;
  instruction_length: number;
  nmi_pending_count: number;
} {
  const state = vcpu.events();
  const value = getEvents(vcpu);
  const { exception, interrupt } = state;
  if (exception !== undefined) {
    value.exception.injected = exception.injected ? 1 : 0;
    value.exception.pending = exception.injected ? 0 : 1;
    value.exception_has_payload = exception.payload !== undefined ? 1 : 0;
    value.exception_payload = exception.payload ?? 0n;
  }
  if (interrupt !== undefined) {
    value.interrupt.injected = 1;
    value.interrupt.soft = interrupt.software ? 1 : 0;
  }
  value.triple_fault.pending = state.tripleFault ? 1 : 0;
  value.flags =
    VcpuEventFlag.KVM_VCPUEVENT_VALID_NMI_PENDING |
    VcpuEventFlag.KVM_VCPUEVENT_VALID_SHADOW |
    VcpuEventFlag.KVM_VCPUEVENT_VALID_PAYLOAD |
    VcpuEventFlag.KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  return { events: value, instruction_length: state.instructionLength, nmi_pending_count: state.nmiPending };
}

export function eventsFromSection(
  vcpu: VcpuParts,
  section: { events: EventsValue; instruction_length: number; nmi_pending_count: number },
): void {
  const { exception, interrupt, nmi } = section.events;
  vcpu.setEvents({
    exception:
      exception.injected !== 0 || exception.pending !== 0
        ? {
            vector: exception.nr,
            errorCode: exception.has_error_code !== 0 ? exception.error_code : undefined,
            payload: section.events.exception_has_payload !== 0 ? section.events.exception_payload : undefined,
            injected: exception.injected !== 0,
            // A software exception is one with an instruction length that has no error code
            software: section.instruction_length !== 0 && !exceptionHasErrorCode(exception.nr) && interrupt.soft === 0,
          }
        : undefined,
    interrupt: interrupt.injected !== 0 ? { vector: interrupt.nr, software: interrupt.soft !== 0 } : undefined,
    nmiInjected: nmi.injected !== 0,
    nmiPending: section.nmi_pending_count,
    instructionLength: section.instruction_length,
    tripleFault: section.events.triple_fault.pending !== 0,
  });
  vcpu.nmiMasked = nmi.masked !== 0;
  vcpu.interruptShadow = interrupt.shadow;
}
