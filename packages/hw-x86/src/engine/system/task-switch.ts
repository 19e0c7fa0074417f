/** Hardware task switches (Intel SDM Vol. 3A, Task Management; AMD64 APM Vol. 2, Task Management). Outside long mode only. */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { CS, DS, ES, FS, GS, gprOffset, LDTR, SS, state, TR } from "../cpu-state.ts";
import { Access, Cr0, FLAGS_DEFINED, FLAGS_FIXED, Flag, Vector } from "./bits.ts";
import { Dr6, Dr7 } from "./breakpoints.ts";
import { checkTarget } from "./code-segment.ts";
import {
  accessOf,
  baseOf,
  type Descriptor,
  descriptorAddress,
  dplOf,
  isApplication,
  isCode,
  isConforming,
  isNull,
  isPresent,
  isWritableOrReadable,
  limitOf,
  readDescriptor,
  rightsOf,
  SystemType,
  segmentBase,
  segmentLimit,
  selectorOf,
  typeOf,
  VIRTUAL_8086_ACCESS,
  writeSegment,
} from "./descriptors.ts";
import { writeCr3 } from "./registers.ts";
import { loadDescriptor, loadLdt, updateSegments } from "./segmentation.ts";
import { currentStack, pushLegacy } from "./stack-frame.ts";
import { hasAwaitedInterrupt } from "./virtual-8086-extensions.ts";

export type TaskSwitchSource = "call" | "iret" | "jmp" | "interrupt";

/** What the old task leaves behind, and what came with the event: of the instruction, or of a task gate in the IDT. */
export interface TaskSwitch {
  source: TaskSwitchSource;
  /** EXT bit of error codes. */
  external: 0 | 1;
  /** Where the old task goes on, and its flags. */
  returnRip: bigint;
  flags: number;
  errorCode: number | undefined;
}

/** A task-state segment's layout: offsets of EIP, EFLAGS, the general registers, the segments and LDTR. */
interface Layout {
  readonly bytes: 2 | 4;
  readonly lastByte: number;
  readonly rip: number;
  readonly flags: number;
  readonly registers: number;
  readonly segments: readonly (readonly [number, number])[];
  readonly ldt: number;
}
const at = (first: number, step: number, ...segments: number[]): readonly (readonly [number, number])[] =>
  segments.map((segment, index) => [segment, first + index * step] as const);
const TSS_16: Layout = {
  bytes: 2,
  lastByte: 0x2b,
  rip: 0x0e,
  flags: 0x10,
  registers: 0x12,
  segments: at(0x22, 2, ES, CS, SS, DS),
  ldt: 0x2a,
};
const TSS_32: Layout = {
  bytes: 4,
  lastByte: 0x67,
  rip: 0x20,
  flags: 0x24,
  registers: 0x28,
  segments: at(0x48, 4, ES, CS, SS, DS, FS, GS),
  ldt: 0x60,
};
const CR3_OFFSET = 0x1c;
const TRAP_OFFSET = 0x64;
/** Descriptor type bit that tells 32-bit task-state segments. */
const IS_32 = 8;
const BUSY = 2;

const layoutOf = (type: number): Layout => ((type & IS_32) !== 0 ? TSS_32 : TSS_16);
const linear = (base: number, offset: number): Gva => BigInt((base + offset) >>> 0) as Gva;

/** The descriptor of the task to switch to, checked as far as it is before a hypervisor may come in. */
function checkNewTask(cpu: Cpu, selector: number, source: TaskSwitchSource, external: number): Descriptor {
  const error = (selector & 0xfffc) | external;
  const isReturn = source === "iret";
  const wrong = isReturn ? Vector.TS : Vector.GP;
  const descriptor = (selector & 4) === 0 && !isNull(selector) ? readDescriptor(cpu, selector) : undefined;
  if (descriptor === undefined || isApplication(descriptor)) return cpu.raise(wrong, error);
  const type = typeOf(descriptor);
  const available: readonly number[] = [SystemType.availableTss, SystemType.availableTss16];
  const busy: readonly number[] = [SystemType.busyTss, SystemType.busyTss16];
  if (!(isReturn ? busy : available).includes(type)) cpu.raise(wrong, error);
  if (!isPresent(descriptor)) cpu.raise(Vector.NP, error);
  if (limitOf(descriptor) < layoutOf(type).lastByte) cpu.raise(Vector.TS, error);
  return descriptor;
}

function setBusy(cpu: Cpu, selector: number, isBusy: boolean): void {
  const address = descriptorAddress(cpu, selector);
  if (address === undefined) return;
  const byte = (address + 5n) as Gva;
  const rights = Number(cpu.readLinear(byte, 1, true));
  cpu.writeLinear(byte, 1, BigInt(isBusy ? rights | BUSY : rights & ~BUSY), true);
}

function saveOldTask(cpu: Cpu, { source, returnRip, flags }: TaskSwitch): void {
  const layout = layoutOf(accessOf(cpu, TR));
  const base = segmentBase(cpu, TR);
  const { bytes } = layout;
  if (segmentLimit(cpu, TR) < layout.lastByte) cpu.raise(Vector.TS, selectorOf(cpu, TR) & 0xfffc);
  cpu.probeWrite(linear(base, layout.rip), layout.ldt - layout.rip, true);
  const write = (offset: number, value: bigint): void =>
    cpu.writeLinear(linear(base, offset), bytes, BigInt.asUintN(bytes * 8, value), true);
  write(layout.rip, returnRip);
  write(layout.flags, BigInt((source === "iret" ? flags & ~Flag.NT : flags) >>> 0));
  for (let index = 0; index < 8; index++) write(layout.registers + index * bytes, cpu.reg(index));
  // The upper halves of selectors stay as they are
  for (const [segment, offset] of layout.segments)
    cpu.writeLinear(linear(base, offset), 2, BigInt(selectorOf(cpu, segment)), true);
}

interface NewTask {
  readonly layout: Layout;
  readonly cr3: bigint;
  readonly rip: bigint;
  readonly flags: number;
  readonly registers: readonly bigint[];
  readonly selectors: ReadonlyMap<number, number>;
  readonly ldt: number;
  readonly traps: boolean;
}

function readNewTask(cpu: Cpu, descriptor: Descriptor): NewTask {
  const layout = layoutOf(typeOf(descriptor));
  const base = baseOf(descriptor);
  const { bytes } = layout;
  const read = (offset: number, size: 2 | 4 = bytes): bigint => cpu.readLinear(linear(base, offset), size, true);
  const is32 = bytes === 4;
  return {
    layout,
    cr3: is32 ? read(CR3_OFFSET) : 0n,
    rip: read(layout.rip),
    flags: Number(read(layout.flags)),
    // 16-bit registers leave ones above them
    registers: Array.from({ length: 8 }, (_, index) => read(layout.registers + index * bytes) | (is32 ? 0n : 0xffff_0000n)),
    selectors: new Map([
      [FS, 0],
      [GS, 0],
      ...layout.segments.map(([segment, offset]): [number, number] => [segment, Number(read(offset, 2))]),
    ]),
    ldt: Number(read(layout.ldt, 2)),
    traps: is32 && (read(TRAP_OFFSET, 2) & 1n) !== 0n,
  };
}

/** Selectors as the new task has them, with nothing behind them yet: a fault from here on is the new task's. */
function loadSelectors(cpu: Cpu, task: NewTask, cpl: number): void {
  const rights = Access.unusable | (cpl << Access.dplShift);
  for (const [segment, selector] of task.selectors) writeSegment(cpu, segment, selector, 0, 0, rights);
  writeSegment(cpu, LDTR, task.ldt, 0, 0, Access.unusable);
}

function loadTaskSegments(cpu: Cpu, task: NewTask, external: number): void {
  const selectorIn = (segment: number): number => task.selectors.get(segment) ?? 0;
  if ((task.flags & Flag.VM) !== 0 && task.layout.bytes === 4) {
    loadTaskLdt(cpu, task.ldt, external);
    for (const [segment, selector] of task.selectors)
      writeSegment(cpu, segment, selector, selector << 4, 0xffff, VIRTUAL_8086_ACCESS);
    return;
  }
  loadTaskLdt(cpu, task.ldt, external);
  const cpl = selectorIn(CS) & 3;
  loadTaskSegment(cpu, CS, selectorIn(CS), external, (descriptor, rpl) => {
    if (!isCode(descriptor)) return false;
    return isConforming(descriptor) ? dplOf(descriptor) <= rpl : dplOf(descriptor) === rpl;
  });
  loadTaskSegment(
    cpu,
    SS,
    selectorIn(SS),
    external,
    (descriptor, rpl) =>
      isApplication(descriptor) &&
      !isCode(descriptor) &&
      isWritableOrReadable(descriptor) &&
      rpl === cpl &&
      dplOf(descriptor) === cpl,
  );
  for (const segment of [DS, ES, FS, GS]) {
    if (isNull(selectorIn(segment))) continue;
    loadTaskSegment(cpu, segment, selectorIn(segment), external, (descriptor, rpl) => {
      if (!isApplication(descriptor) || (isCode(descriptor) && !isWritableOrReadable(descriptor))) return false;
      return (isCode(descriptor) && isConforming(descriptor)) || dplOf(descriptor) >= Math.max(cpl, rpl);
    });
  }
}

/** #TS unless `accepts`; #NP or #SS where the segment is not present. */
function loadTaskSegment(
  cpu: Cpu,
  segment: number,
  selector: number,
  external: number,
  accepts: (descriptor: Descriptor, rpl: number) => boolean,
): void {
  const error = (selector & 0xfffc) | external;
  const descriptor = isNull(selector) ? undefined : readDescriptor(cpu, selector);
  if (descriptor === undefined || !accepts(descriptor, selector & 3)) cpu.raise(Vector.TS, error);
  if (!isPresent(descriptor)) cpu.raise(segment === SS ? Vector.SS : Vector.NP, error);
  loadDescriptor(cpu, segment, selector, descriptor);
}

function loadTaskLdt(cpu: Cpu, selector: number, external: number): void {
  const error = (selector & 0xfffc) | external;
  if (!isNull(selector)) {
    const descriptor = (selector & 4) === 0 ? readDescriptor(cpu, selector) : undefined;
    const isLdt = descriptor !== undefined && !isApplication(descriptor) && typeOf(descriptor) === SystemType.ldt;
    if (!isLdt || !isPresent(descriptor)) cpu.raise(Vector.TS, error);
  }
  loadLdt(cpu, selector);
}

function pushErrorCode(cpu: Cpu, layout: Layout, errorCode: number, external: number): void {
  const pointer = Number(BigInt.asUintN(32, cpu.reg(4)));
  const stack = { ...currentStack(cpu), error: external };
  cpu.setReg(4, BigInt(pushLegacy(cpu, stack, pointer, layout.bytes, [errorCode], (accessOf(cpu, SS) & 0x60) !== 0x60)));
}

/**
 * Switches to the task of a TSS selector. Faults before the new task is in belong to the old one, which has not changed; those after
 * it to the new one, at its first instruction. `state.rip` is set; an instruction passes it on as where it ends.
 */
export function switchTask(cpu: Cpu, selector: number, change: TaskSwitch): void {
  const { source, external } = change;
  const descriptor = checkNewTask(cpu, selector, source, external);
  cpu.guest.taskSwitch(selector, source, change.flags);
  const task = readNewTask(cpu, descriptor);
  const old = selectorOf(cpu, TR);
  const base = baseOf(descriptor);
  const nests = source === "call" || source === "interrupt";
  if (nests) cpu.probeWrite(linear(base, 0), 2, true);
  saveOldTask(cpu, change);
  if (!nests) setBusy(cpu, old, false);
  if (nests) cpu.writeLinear(linear(base, 0), 2, BigInt(old), true);
  if (source !== "iret") setBusy(cpu, selector, true);

  // From here on the new task runs
  writeSegment(cpu, TR, selector, base, limitOf(descriptor), rightsOf(descriptor) | BUSY);
  let flags = (task.flags & FLAGS_DEFINED) | FLAGS_FIXED;
  if (task.layout.bytes === 2) flags &= 0xffff;
  if (nests) flags |= Flag.NT;
  const isVirtual = (flags & Flag.VM) !== 0;
  const cpl = isVirtual ? 3 : (task.selectors.get(CS) ?? 0) & 3;
  for (let index = 0; index < 8; index++) cpu.u64[gprOffset(index) >>> 3] = task.registers[index];
  cpu.set64(state.rip, task.rip);
  cpu.u32[state.cr0 >>> 2] |= Cr0.TS;
  cpu.u32[(state.dr + 56) >>> 2] &= ~Dr7.localEnables;
  cpu.set32(state.systemFlags, (cpu.get32(state.systemFlags) & ~Flag.VM) | (flags & Flag.VM));
  loadSelectors(cpu, task, cpl);
  updateSegments(cpu);
  cpu.setFlags(flags);
  cpu.debugStateChanged();
  if (task.layout.bytes === 4 && (cpu.u32[state.cr0 >>> 2] & Cr0.PG) !== 0) writeCr3(cpu, task.cr3);
  loadTaskSegments(cpu, task, external);
  updateSegments(cpu);
  if (task.traps) {
    cpu.breakpoints.hits |= Dr6.BT;
    cpu.trapAfterInstruction();
  }
  if (change.errorCode !== undefined) pushErrorCode(cpu, task.layout, change.errorCode, external);
  if (isVirtual ? task.rip > 0xffffn : false) cpu.raise(Vector.GP, external);
  if (!isVirtual) checkTarget(cpu, readDescriptor(cpu, selectorOf(cpu, CS)) as Descriptor, task.rip, external);
  if (hasAwaitedInterrupt(cpu)) cpu.raise(Vector.GP, 0);
  if (cpu.guest.windowOpened()) cpu.requestStop();
}
