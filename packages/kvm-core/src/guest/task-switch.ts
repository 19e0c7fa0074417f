/**
 * Hardware task switches, which VMX and SVM leave to software (Intel SDM Vol. 3A, Task Management; Vol. 3C, Treatment of Task
 * Switches). The processor has checked the gate and the new task-state segment before it exited; what fails here is a fault of the old
 * task until the new one is in, and of the new one from then on.
 */
import { Cr0, Gpr, Rflags, SegmentRegister, Vector } from "../arch/registers.ts";
import { moveToCr3 } from "./control-registers.ts";
import { type SegmentState, SystemSegment } from "./guest-cpu.ts";
import { isFault, translateLinear } from "./paging.ts";
import type { ExitOutcome, VcpuParts } from "./vcpu-parts.ts";

export interface TaskSwitchExit {
  readonly selector: number;
  /** "gate": a task gate in the IDT. */
  readonly source: "call" | "iret" | "jmp" | "gate";
  /** What came to the gate: INT n, INT3 and INTO are "software". Undefined for the other sources. */
  readonly event: "software" | "exception" | "interrupt" | "nmi" | undefined;
  /** RFLAGS.RF in the old task's state segment: set for faults. */
  readonly resumes: boolean;
  /** What the event pushes on the new task's stack. */
  readonly errorCode: number | undefined;
  /** Of the instruction that switches; 0: there is none. */
  readonly instructionLength: number;
}

const { ES, CS, SS, DS, FS, GS } = SegmentRegister;
const { LDTR, TR } = SystemSegment;
const UNUSABLE = 0x1_0000;
const PRESENT = 0x80;
const APPLICATION = 0x10;
const CODE = 8;
const CONFORMING = 4;
/** Of data; readable, of code. */
const WRITABLE = 2;
const BUSY = 2;
const IS_32 = 8;
const BIG = 0x4000;
const TYPE = 0xf;
const LDT = 2;
const VIRTUAL_8086_ACCESS = 0xf3;
/** L0 to L3 and LE. */
const DR7_LOCAL = 0x155n;
const FLAGS_DEFINED = 0x3f_7fd7;
/** DR6.BT. */
const BREAKPOINT_IN_TASK = 1n << 15n;

/** Offsets in a task-state segment. */
interface Layout {
  readonly bytes: 2 | 4;
  readonly lastByte: number;
  readonly rip: number;
  readonly flags: number;
  readonly registers: number;
  readonly segments: readonly (readonly [number, number])[];
  readonly ldt: number;
}
const places = (first: number, step: number, ...segments: number[]): readonly (readonly [number, number])[] =>
  segments.map((segment, index) => [segment, first + index * step] as const);
const TSS_16: Layout = {
  bytes: 2,
  lastByte: 0x2b,
  rip: 0x0e,
  flags: 0x10,
  registers: 0x12,
  segments: places(0x22, 2, ES, CS, SS, DS),
  ldt: 0x2a,
};
const TSS_32: Layout = {
  bytes: 4,
  lastByte: 0x67,
  rip: 0x20,
  flags: 0x24,
  registers: 0x28,
  segments: places(0x48, 4, ES, CS, SS, DS, FS, GS),
  ldt: 0x60,
};
const CR3_OFFSET = 0x1c;
const TRAP_OFFSET = 0x64;
const layoutOf = (access: number): Layout => ((access & IS_32) !== 0 ? TSS_32 : TSS_16);

/** Thrown within this file: an exception of the guest. */
class TaskFault {
  readonly vector: number;
  readonly errorCode: number;
  readonly cr2: bigint | undefined;
  constructor(vector: number, errorCode: number, cr2?: bigint) {
    this.vector = vector;
    this.errorCode = errorCode;
    this.cr2 = cr2;
  }
}
const isNull = (selector: number): boolean => (selector & 0xfffc) === 0;
const dplOf = (access: number): number => (access >>> 5) & 3;

class TaskChange {
  readonly #vcpu: VcpuParts;
  readonly #exit: TaskSwitchExit;
  readonly #external: number;
  /** The new task runs: what fails is its fault. */
  isIn = false;

  constructor(vcpu: VcpuParts, exit: TaskSwitchExit) {
    this.#vcpu = vcpu;
    this.#exit = exit;
    this.#external = exit.event === undefined || exit.event === "software" ? 0 : 1;
  }

  run(): void {
    const vcpu = this.#vcpu;
    const { selector, source, errorCode } = this.#exit;
    const next = this.#descriptor(selector, Vector.TS);
    const layout = layoutOf(next.access);
    if ((next.access & PRESENT) === 0) throw this.#fault(Vector.NP, selector);
    if (next.limit < layout.lastByte) throw this.#fault(Vector.TS, selector);
    const nests = source === "call" || source === "gate";
    const old = vcpu.segment(TR).selector;
    const read = (offset: number, bytes: 1 | 2 | 4): number => this.#read(next.base, offset, bytes);
    const task = {
      cr3: layout.bytes === 4 ? read(CR3_OFFSET, 4) : 0,
      rip: read(layout.rip, layout.bytes),
      flags: read(layout.flags, layout.bytes),
      registers: Array.from({ length: 8 }, (_, index) => read(layout.registers + index * layout.bytes, layout.bytes)),
      selectors: new Map([
        [FS, 0],
        [GS, 0],
        ...layout.segments.map(([segment, offset]): [number, number] => [segment, read(offset, 2)]),
      ]),
      ldt: read(layout.ldt, 2),
      traps: layout.bytes === 4 && (read(TRAP_OFFSET, 2) & 1) !== 0,
    };
    this.#saveOld();
    if (!nests) this.#setBusy(old, false);
    if (nests) this.#write(next.base, 0, 2, old);
    if (source !== "iret") this.#setBusy(selector, true);

    this.isIn = true;
    vcpu.setSegment(TR, { ...next, selector, access: next.access | BUSY });
    let flags = (task.flags & FLAGS_DEFINED) | 2;
    if (layout.bytes === 2) flags &= 0xffff;
    if (nests) flags |= Number(Rflags.NT);
    vcpu.rflags = BigInt(flags >>> 0);
    vcpu.rip = BigInt(task.rip);
    // 16-bit registers leave ones above them
    for (let index = 0; index < 8; index++)
      vcpu.setGpr(index, BigInt((task.registers[index]! | (layout.bytes === 2 ? 0xffff_0000 : 0)) >>> 0));
    vcpu.cr0 = vcpu.cr0 | Cr0.TS;
    vcpu.setDebugRegister(7, vcpu.debugRegister(7) & ~DR7_LOCAL);
    if (layout.bytes === 4 && (vcpu.cr0 & Cr0.PG) !== 0n && !moveToCr3(vcpu, BigInt(task.cr3)))
      throw new TaskFault(Vector.GP, this.#external);
    this.#loadSegments(task, layout, flags);
    if (errorCode !== undefined) this.#push(errorCode, layout.bytes);
    const isVirtual = (flags & Number(Rflags.VM)) !== 0;
    if (task.rip > (isVirtual ? 0xffff : vcpu.segment(CS).limit)) throw new TaskFault(Vector.GP, this.#external);
    if (task.traps) vcpu.queueException(Vector.DB, undefined, BREAKPOINT_IN_TASK);
  }

  // Memory as the processor reaches it for itself

  #at(linear: number, access: "read" | "write"): number {
    const translated = translateLinear(this.#vcpu, BigInt(linear >>> 0), access, true, 0);
    if (isFault(translated)) throw new TaskFault(translated.vector, translated.errorCode ?? 0, translated.cr2);
    return translated.gpa;
  }
  #read(base: bigint, offset: number, bytes: 1 | 2 | 4 | 8): number {
    let value = 0;
    for (let i = bytes - 1; i >= 0; i--) {
      const byte = this.#vcpu.vm.memory.read(this.#at(Number(base & 0xffff_ffffn) + offset + i, "read"), 1)?.[0] ?? 0xff;
      value = value * 256 + byte;
    }
    return value;
  }
  #write(base: bigint, offset: number, bytes: 1 | 2 | 4, value: number): void {
    const places = Array.from({ length: bytes }, (_, i) => this.#at(Number(base & 0xffff_ffffn) + offset + i, "write"));
    for (const [i, gpa] of places.entries()) this.#vcpu.vm.memory.write(gpa, Uint8Array.of((value >>> (8 * i)) & 0xff));
  }

  // Descriptors

  #fault(vector: number, selector: number): TaskFault {
    return new TaskFault(vector, (selector & 0xfffc) | this.#external);
  }
  /** Linear address of a descriptor; undefined outside its table. */
  #place(selector: number): bigint | undefined {
    const offset = selector & 0xfff8;
    if ((selector & 4) === 0) {
      const { base, limit } = this.#vcpu.gdtr;
      return offset + 7 > limit ? undefined : base + BigInt(offset);
    }
    const ldt = this.#vcpu.segment(LDTR);
    return (ldt.access & UNUSABLE) !== 0 || offset + 7 > ldt.limit ? undefined : ldt.base + BigInt(offset);
  }
  #descriptor(selector: number, vector: number): SegmentState {
    const place = isNull(selector) ? undefined : this.#place(selector);
    if (place === undefined) throw this.#fault(vector, selector);
    const low = this.#read(place, 0, 4);
    const high = this.#read(place, 4, 4);
    const units = (low & 0xffff) | (high & 0xf_0000);
    return {
      selector,
      base: BigInt(((low >>> 16) | ((high & 0xff) << 16) | (high & 0xff00_0000)) >>> 0),
      limit: (high & 0x80_0000) !== 0 ? ((units << 12) | 0xfff) >>> 0 : units,
      access: (high >>> 8) & 0xf0ff,
    };
  }
  #setBusy(selector: number, isBusy: boolean): void {
    const place = this.#place(selector);
    if (place === undefined) return;
    const rights = this.#read(place, 5, 1);
    this.#write(place, 5, 1, isBusy ? rights | BUSY : rights & ~BUSY);
  }

  // Tasks

  #saveOld(): void {
    const vcpu = this.#vcpu;
    const { base, access, limit, selector } = vcpu.segment(TR);
    const layout = layoutOf(access);
    if (limit < layout.lastByte) throw this.#fault(Vector.TS, selector);
    const { bytes } = layout;
    const kept = this.#exit.source === "iret" ? vcpu.rflags & ~Rflags.NT : vcpu.rflags;
    const flags = this.#exit.resumes ? kept | Rflags.RF : kept;
    // All of it is writable, or nothing is written
    for (const offset of [layout.rip, layout.ldt - 1]) this.#at(Number(base & 0xffff_ffffn) + offset, "write");
    this.#write(base, layout.rip, bytes, Number(vcpu.rip & 0xffff_ffffn));
    this.#write(base, layout.flags, bytes, Number(flags & 0xffff_ffffn));
    for (let index = 0; index < 8; index++)
      this.#write(base, layout.registers + index * bytes, bytes, Number(vcpu.gpr(index) & 0xffff_ffffn));
    for (const [segment, offset] of layout.segments) this.#write(base, offset, 2, vcpu.segment(segment).selector);
  }

  #loadSegments(task: { selectors: ReadonlyMap<number, number>; ldt: number }, layout: Layout, flags: number): void {
    const vcpu = this.#vcpu;
    const isVirtual = layout.bytes === 4 && (flags & Number(Rflags.VM)) !== 0;
    const selectorOf = (segment: number): number => task.selectors.get(segment)!;
    const cpl = isVirtual ? 3 : selectorOf(CS) & 3;
    // Selectors are the new task's before what is behind them is looked at
    const empty = { base: 0n, limit: 0, access: UNUSABLE | (cpl << 5) };
    for (const [segment, selector] of task.selectors) vcpu.setSegment(segment, { ...empty, selector });
    vcpu.setSegment(CS, { selector: selectorOf(CS), base: 0n, limit: 0xffff_ffff, access: 0xc09b | (cpl << 5) });
    vcpu.setSegment(LDTR, { ...empty, selector: task.ldt });
    if (!isNull(task.ldt)) {
      const ldt = (task.ldt & 4) === 0 ? this.#descriptor(task.ldt, Vector.TS) : undefined;
      if (ldt === undefined || (ldt.access & (APPLICATION | TYPE)) !== LDT || (ldt.access & PRESENT) === 0)
        throw this.#fault(Vector.TS, task.ldt);
      vcpu.setSegment(LDTR, ldt);
    }
    if (isVirtual) {
      for (const [segment, selector] of task.selectors)
        vcpu.setSegment(segment, { selector, base: BigInt(selector << 4), limit: 0xffff, access: VIRTUAL_8086_ACCESS });
      return;
    }
    this.#loadSegment(CS, selectorOf(CS), (access, rpl) => {
      if ((access & (APPLICATION | CODE)) !== (APPLICATION | CODE)) return false;
      return (access & CONFORMING) !== 0 ? dplOf(access) <= rpl : dplOf(access) === rpl;
    });
    this.#loadSegment(SS, selectorOf(SS), (access, rpl) => {
      const isWritableData = (access & (APPLICATION | CODE | WRITABLE)) === (APPLICATION | WRITABLE);
      return isWritableData && rpl === cpl && dplOf(access) === cpl;
    });
    for (const segment of [DS, ES, FS, GS]) {
      if (isNull(selectorOf(segment))) continue;
      this.#loadSegment(segment, selectorOf(segment), (access, rpl) => {
        const isCode = (access & CODE) !== 0;
        if ((access & APPLICATION) === 0 || (isCode && (access & WRITABLE) === 0)) return false;
        return (isCode && (access & CONFORMING) !== 0) || dplOf(access) >= Math.max(cpl, rpl);
      });
    }
  }
  #loadSegment(segment: number, selector: number, accepts: (access: number, rpl: number) => boolean): void {
    const state = this.#descriptor(selector, Vector.TS);
    if (!accepts(state.access, selector & 3)) throw this.#fault(Vector.TS, selector);
    if ((state.access & PRESENT) === 0) throw this.#fault(segment === SS ? Vector.SS : Vector.NP, selector);
    const place = this.#place(selector)!;
    if ((state.access & 1) === 0) this.#write(place, 5, 1, (state.access & 0xff) | 1);
    this.#vcpu.setSegment(segment, { ...state, access: state.access | 1 });
  }

  #push(errorCode: number, bytes: 2 | 4): void {
    const vcpu = this.#vcpu;
    const stack = vcpu.segment(SS);
    const mask = (stack.access & BIG) !== 0 ? 0xffff_ffff : 0xffff;
    const rsp = Number(vcpu.gpr(Gpr.RSP) & 0xffff_ffffn);
    const offset = ((rsp - bytes) & mask) >>> 0;
    if (offset + bytes - 1 > stack.limit && (stack.access & CONFORMING) === 0) throw new TaskFault(Vector.SS, this.#external);
    this.#write(stack.base, offset, bytes, errorCode);
    vcpu.setGpr(Gpr.RSP, BigInt(mask === 0xffff ? ((rsp & 0xffff_0000) | offset) >>> 0 : offset));
  }
}

/** Carries out the switch that exited, or queues the exception that it meets. */
export function exitTaskSwitch(vcpu: VcpuParts, exit: TaskSwitchExit): ExitOutcome {
  // The event is in the new task's hands
  if (exit.event !== undefined) {
    const events = vcpu.events();
    vcpu.setEvents({ ...events, exception: undefined, interrupt: undefined, nmiInjected: false, instructionLength: 0 });
    if (exit.event === "nmi") vcpu.nmiMasked = true;
  }
  const { rip } = vcpu;
  vcpu.rip = BigInt.asUintN(32, rip + BigInt(exit.instructionLength));
  vcpu.interruptShadow = 0;
  if (exit.source === "iret") vcpu.nmiMasked = false;
  const change = new TaskChange(vcpu, exit);
  try {
    change.run();
  } catch (fault) {
    if (!(fault instanceof TaskFault)) throw fault;
    // A fault of the old task is at its instruction
    if (!change.isIn) vcpu.rip = rip;
    vcpu.queueException(fault.vector, fault.errorCode, fault.cr2);
  }
  vcpu.requestTlbFlush();
  return "resume";
}
