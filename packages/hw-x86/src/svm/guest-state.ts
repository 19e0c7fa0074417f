/**
 * Moves guest state between the save area of the VMCB and the CPU. Source: AMD64 APM Vol. 2, VMRUN Instruction; #VMEXIT; VMSAVE and
 * VMLOAD Instructions. Copies are of 32-bit halves: exits are frequent, and a bigint would be an allocation.
 */
import {
  CS,
  DS,
  ES,
  FS,
  GS,
  LDTR,
  SEG_ACCESS,
  SEG_BASE,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEGMENT_STRIDE,
  SS,
  segmentOffset,
  state,
  TR,
} from "../engine/cpu-state.ts";
import { Access, Cr0, Cr4, Efer, Flag } from "../engine/system/bits.ts";
import { settledDr6, settledDr7 } from "../engine/system/breakpoints.ts";
import { LINEAR_ADDRESS_BITS } from "../engine/system/cpuid.ts";
import type { GuestEngine } from "../root-interface.ts";
import { Save } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

const word = (offset: number): number => offset >>> 2;

/** Segments that VMRUN loads, and those that VMLOAD does: number, place in the VMCB. */
const RUN_SEGMENTS: readonly (readonly [number, number])[] = [
  [ES, Save.ES],
  [CS, Save.CS],
  [SS, Save.SS],
  [DS, Save.DS],
];
const LOAD_SEGMENTS: readonly (readonly [number, number])[] = [
  [FS, Save.FS],
  [GS, Save.GS],
  [LDTR, Save.LDTR],
  [TR, Save.TR],
];
/** Registers: offset in the state block, place in the VMCB. */
const RUN_QUADS: readonly (readonly [number, number])[] = [
  [state.cr2, Save.CR2],
  [state.cr3, Save.CR3],
  [state.cr4, Save.CR4],
  [state.dr + 48, Save.DR6],
  [state.dr + 56, Save.DR7],
  [state.rip, Save.RIP],
  [state.gpr, Save.RAX],
  [state.gpr + 32, Save.RSP],
];
const LOAD_QUADS: readonly (readonly [number, number])[] = [
  [state.star, Save.STAR],
  [state.lstar, Save.LSTAR],
  [state.cstar, Save.CSTAR],
  [state.fmask, Save.SFMASK],
  [state.kernelGsBase, Save.KERNEL_GS_BASE],
  [state.sysenterCs, Save.SYSENTER_CS],
  [state.sysenterEsp, Save.SYSENTER_ESP],
  [state.sysenterEip, Save.SYSENTER_EIP],
];
const places = (list: readonly (readonly [number, number])[]): Uint16Array => Uint16Array.from(list.flat());
const runSegments = places(RUN_SEGMENTS);
const loadSegments = places(LOAD_SEGMENTS);
const runQuads = places(RUN_QUADS);
const loadQuads = places(LOAD_QUADS);

/** State as VMRUN and VMLOAD write it: the block of an engine, or that of a CPU that has none yet. */
interface StateWords {
  readonly u32: Uint32Array;
}

/** Bits of an upper half beyond the processor's linear addresses. */
const BEYOND = 64 - LINEAR_ADDRESS_BITS;

/** Segments are canonicalised: the bits of a base beyond the processor's linear addresses repeat the one below. */
function loadSegment(s: Uint32Array, vmcb: Vmcb, segment: number, from: number): void {
  const at = word(state.segments + segment * SEGMENT_STRIDE);
  const selector = vmcb.low(from);
  const attributes = selector >>> 16;
  let access = (attributes & 0xff) | ((attributes & 0xf00) << 4);
  if ((access & Access.present) === 0) access |= Access.unusable;
  s[at + word(SEG_SELECTOR)] = selector & 0xffff;
  s[at + word(SEG_ACCESS)] = access;
  s[at + word(SEG_LIMIT)] = vmcb.high(from);
  s[at + word(SEG_LIMIT) + 1] = 0;
  s[at + word(SEG_BASE)] = vmcb.low(from + 8);
  s[at + word(SEG_BASE) + 1] = (vmcb.high(from + 8) << BEYOND) >> BEYOND;
}

function saveSegment(s: Uint32Array, vmcb: Vmcb, segment: number, to: number): void {
  const at = word(state.segments + segment * SEGMENT_STRIDE);
  const access = s[at + word(SEG_ACCESS)] as number;
  // What is unusable is not present; its other attributes are what they were
  const low = (access & Access.unusable) !== 0 ? access & 0xff & ~Access.present : access & 0xff;
  const attributes = low | ((access >>> 4) & 0xf00);
  vmcb.setPair(to, ((s[at + word(SEG_SELECTOR)] as number) & 0xffff) | (attributes << 16), s[at + word(SEG_LIMIT)] as number);
  vmcb.setPair(to + 8, s[at + word(SEG_BASE)] as number, s[at + word(SEG_BASE) + 1] as number);
}

function loadQuad(s: Uint32Array, vmcb: Vmcb, to: number, from: number): void {
  s[word(to)] = vmcb.low(from);
  s[word(to) + 1] = vmcb.high(from);
}

/** CPL is a field of its own; the processor keeps it in SS, where real and virtual-8086 mode do not look for it. */
function loadPrivilege(s: Uint32Array, vmcb: Vmcb): void {
  const at = word(segmentOffset(SS) + SEG_ACCESS);
  const isPlain = ((s[word(state.cr0)] as number) & Cr0.PE) !== 0 && (vmcb.low(Save.RFLAGS) & Flag.VM) === 0;
  if (isPlain) s[at] = ((s[at] as number) & ~(3 << Access.dplShift)) | ((vmcb.byte(Save.CPL) & 3) << Access.dplShift);
}

/** All that VMRUN loads but RFLAGS and what depends on controls. */
export function loadGuestState(engine: GuestEngine, vmcb: Vmcb): void {
  const s = engine.u32;
  for (let i = 0; i < runSegments.length; i += 2) loadSegment(s, vmcb, runSegments[i] as number, runSegments[i + 1] as number);
  for (let i = 0; i < runQuads.length; i += 2) loadQuad(s, vmcb, runQuads[i] as number, runQuads[i + 1] as number);
  loadTable(s, vmcb, state.gdtrBase, state.gdtrLimit, Save.GDTR);
  loadTable(s, vmcb, state.idtrBase, state.idtrLimit, Save.IDTR);
  const cr0 = vmcb.low(Save.CR0) | Cr0.ET;
  s[word(state.cr0)] = cr0;
  s[word(state.cr0) + 1] = 0;
  let efer = vmcb.low(Save.EFER) & ~Efer.LMA;
  if ((efer & Efer.LME) !== 0 && (cr0 & Cr0.PG) !== 0) efer |= Efer.LMA;
  s[word(state.efer)] = efer;
  s[word(state.efer) + 1] = 0;
  const dr6 = word(state.dr + 48);
  s[dr6] = settledDr6(s[dr6] as number);
  const dr7 = word(state.dr + 56);
  s[dr7] = settledDr7(s[dr7] as number);
  loadPrivilege(s, vmcb);
}

function loadTable(s: Uint32Array, vmcb: Vmcb, base: number, limit: number, from: number): void {
  s[word(limit)] = vmcb.high(from) & 0xffff;
  s[word(base)] = vmcb.low(from + 8);
  s[word(base) + 1] = (vmcb.high(from + 8) << BEYOND) >> BEYOND;
}

/** PAE paging: CR0.PG and CR4.PAE outside long mode, with four pointers that are loaded when CR3 is. */
export function usesPae(engine: GuestEngine): boolean {
  const s = engine.u32;
  return (
    ((s[word(state.cr0)] as number) & Cr0.PG) !== 0 &&
    ((s[word(state.cr4)] as number) & Cr4.PAE) !== 0 &&
    ((s[word(state.efer)] as number) & Efer.LMA) === 0
  );
}

/** All that #VMEXIT saves of registers. */
export function saveGuestState(engine: GuestEngine, vmcb: Vmcb): void {
  const s = engine.u32;
  for (let i = 0; i < runSegments.length; i += 2) saveSegment(s, vmcb, runSegments[i] as number, runSegments[i + 1] as number);
  for (let i = 0; i < runQuads.length; i += 2) {
    const at = word(runQuads[i] as number);
    vmcb.setPair(runQuads[i + 1] as number, s[at] as number, s[at + 1] as number);
  }
  saveTable(s, vmcb, state.gdtrBase, state.gdtrLimit, Save.GDTR);
  saveTable(s, vmcb, state.idtrBase, state.idtrLimit, Save.IDTR);
  vmcb.setPair(Save.CR0, s[word(state.cr0)] as number, 0);
  vmcb.setPair(Save.EFER, s[word(state.efer)] as number, 0);
  vmcb.setPair(Save.RFLAGS, engine.readFlags(), 0);
  vmcb.setByte(Save.CPL, s[word(state.cpl)] as number);
}

function saveTable(s: Uint32Array, vmcb: Vmcb, base: number, limit: number, to: number): void {
  vmcb.setPair(to, vmcb.low(to), s[word(limit)] as number);
  vmcb.setPair(to + 8, s[word(base)] as number, s[word(base) + 1] as number);
}

/** VMLOAD. */
export function loadHiddenState(block: StateWords, vmcb: Vmcb): void {
  const s = block.u32;
  for (let i = 0; i < loadSegments.length; i += 2)
    loadSegment(s, vmcb, loadSegments[i] as number, loadSegments[i + 1] as number);
  for (let i = 0; i < loadQuads.length; i += 2) loadQuad(s, vmcb, loadQuads[i] as number, loadQuads[i + 1] as number);
  canonicalise(s);
}

/** Addresses that code is entered at, and the base that SWAPGS exchanges, are canonicalised too. */
const ADDRESSES = [state.lstar, state.cstar, state.kernelGsBase, state.sysenterEsp, state.sysenterEip] as const;
function canonicalise(s: Uint32Array): void {
  for (const offset of ADDRESSES) s[word(offset) + 1] = ((s[word(offset) + 1] as number) << BEYOND) >> BEYOND;
}

/** VMSAVE. */
export function saveHiddenState(block: StateWords, vmcb: Vmcb): void {
  const s = block.u32;
  for (let i = 0; i < loadSegments.length; i += 2)
    saveSegment(s, vmcb, loadSegments[i] as number, loadSegments[i + 1] as number);
  for (let i = 0; i < loadQuads.length; i += 2) {
    const at = word(loadQuads[i] as number);
    vmcb.setPair(loadQuads[i + 1] as number, s[at] as number, s[at + 1] as number);
  }
}
