/**
 * Moves guest state between the VMCS and the CPU. Source: Intel SDM Vol. 3C, Loading Guest State; Saving Guest State; Loading Host
 * State. All copies are of 32-bit halves: VM exits are frequent, and a bigint would be an allocation.
 */
import { SEG_ACCESS, SEG_BASE, SEG_LIMIT, SEG_SELECTOR, SEGMENT_STRIDE, state } from "../engine/cpu-state.ts";
import { Root, type RootMsrs } from "../root-msrs.ts";
import { EntryControl, ExitControl } from "./controls.ts";
import { slot } from "./fields.ts";
import type { GuestEngine } from "./root-interface.ts";
import type { Vmcs } from "./vmcs.ts";

/** CR0 bits that VM entry never changes: ET, the reserved ones, NW and CD. */
const CR0_KEPT = 0x7ffa_ffd0;
const EFER_LME = 0x100;
const EFER_LMA = 0x400;

/** Natural-width and 64-bit registers: offset in the state block, slot in the VMCS. */
const QUADS: readonly (readonly [number, number])[] = [
  [state.cr3, slot.GUEST_CR3],
  [state.cr4, slot.GUEST_CR4],
  [state.sysenterCs, slot.GUEST_SYSENTER_CS],
  [state.sysenterEsp, slot.GUEST_SYSENTER_ESP],
  [state.sysenterEip, slot.GUEST_SYSENTER_EIP],
  [state.gdtrBase, slot.GUEST_GDTR_BASE],
  [state.idtrBase, slot.GUEST_IDTR_BASE],
];
const quadWords = Uint16Array.from(QUADS, ([offset]) => offset >>> 2);
const quadSlots = Uint16Array.from(QUADS, ([, where]) => where);

const word = (offset: number): number => offset >>> 2;

/** What every entry loads. */
export function loadMovingState(engine: GuestEngine, vmcs: Vmcs): void {
  const s = engine.u32;
  const v = vmcs.u32;
  const b = vmcs.base;
  s[word(state.rip)] = v[b + slot.GUEST_RIP] as number;
  s[word(state.rip) + 1] = v[b + slot.GUEST_RIP + 1] as number;
  s[word(state.gpr + 32)] = v[b + slot.GUEST_RSP] as number;
  s[word(state.gpr + 32) + 1] = v[b + slot.GUEST_RSP + 1] as number;
  s[word(state.interruptibility)] = v[b + slot.GUEST_INTERRUPTIBILITY] as number;
  s[word(state.activity)] = v[b + slot.GUEST_ACTIVITY] as number;
}

/** Everything but what `loadMovingState` and RFLAGS cover. */
export function loadFullState(engine: GuestEngine, vmcs: Vmcs, root: RootMsrs): void {
  const s = engine.u32;
  const v = vmcs.u32;
  const b = vmcs.base;
  for (let i = 0; i < 8; i++) {
    const at = word(state.segments + i * SEGMENT_STRIDE);
    const f = b + 2 * i;
    s[at + word(SEG_BASE)] = v[f + slot.GUEST_ES_BASE] as number;
    s[at + word(SEG_BASE) + 1] = v[f + slot.GUEST_ES_BASE + 1] as number;
    s[at + word(SEG_LIMIT)] = v[f + slot.GUEST_ES_LIMIT] as number;
    s[at + word(SEG_LIMIT) + 1] = 0;
    s[at + word(SEG_ACCESS)] = v[f + slot.GUEST_ES_ACCESS] as number;
    s[at + word(SEG_SELECTOR)] = v[f + slot.GUEST_ES_SELECTOR] as number;
  }
  for (let i = 0; i < quadWords.length; i++) {
    const to = quadWords[i] as number;
    const from = b + (quadSlots[i] as number);
    s[to] = v[from] as number;
    s[to + 1] = v[from + 1] as number;
  }
  s[word(state.gdtrLimit)] = v[b + slot.GUEST_GDTR_LIMIT] as number;
  s[word(state.idtrLimit)] = v[b + slot.GUEST_IDTR_LIMIT] as number;
  const cr0 = vmcs.low(slot.GUEST_CR0);
  const rootCr0 = root.halves[2 * Root.cr0] as number;
  s[word(state.cr0)] = (cr0 & ~CR0_KEPT) | (rootCr0 & CR0_KEPT);
  s[word(state.cr0) + 1] = 0;
  const entry = vmcs.low(slot.ENTRY_CONTROLS);
  const isLong = (entry & EntryControl.ia32eModeGuest) !== 0;
  if ((entry & EntryControl.loadEfer) !== 0) s[word(state.efer)] = vmcs.low(slot.GUEST_EFER);
  else {
    let efer = (root.halves[2 * Root.efer] as number) & ~EFER_LMA;
    if (isLong) efer |= EFER_LMA | EFER_LME;
    else if (cr0 >>> 31 !== 0) efer &= ~EFER_LME;
    s[word(state.efer)] = efer;
  }
  s[word(state.efer) + 1] = 0;
  copyChosen(engine, state.pat, (entry & EntryControl.loadPat) !== 0 ? vmcs : root, slot.GUEST_PAT, Root.pat);
  copyChosen(engine, state.dr + 7 * 8, (entry & EntryControl.loadDebugControls) !== 0 ? vmcs : root, slot.GUEST_DR7, Root.dr7);
  if (isPae(s)) {
    for (let i = 0; i < 8; i++) s[word(state.pdpte) + i] = v[b + slot.GUEST_PDPTE0 + i] as number;
  }
}

/** A register that VM entry takes from the VMCS if a control says so, and leaves as root mode had it otherwise. */
function copyChosen(engine: GuestEngine, to: number, from: Vmcs | RootMsrs, vmcsSlot: number, rootIndex: number): void {
  const s = engine.u32;
  if ("halves" in from) {
    s[word(to)] = from.halves[2 * rootIndex] as number;
    s[word(to) + 1] = from.halves[2 * rootIndex + 1] as number;
  } else {
    s[word(to)] = from.low(vmcsSlot);
    s[word(to) + 1] = from.high(vmcsSlot);
  }
}

/** PAE paging: CR0.PG and CR4.PAE without EFER.LMA. */
function isPae(s: Uint32Array): boolean {
  return (
    (s[word(state.cr0)] as number) >>> 31 !== 0 &&
    ((s[word(state.cr4)] as number) & 0x20) !== 0 &&
    ((s[word(state.efer)] as number) & EFER_LMA) === 0
  );
}

export function saveGuestState(engine: GuestEngine, vmcs: Vmcs, flags: number): void {
  const s = engine.u32;
  const v = vmcs.u32;
  const b = vmcs.base;
  v[b + slot.GUEST_RIP] = s[word(state.rip)] as number;
  v[b + slot.GUEST_RIP + 1] = s[word(state.rip) + 1] as number;
  v[b + slot.GUEST_RSP] = s[word(state.gpr + 32)] as number;
  v[b + slot.GUEST_RSP + 1] = s[word(state.gpr + 32) + 1] as number;
  v[b + slot.GUEST_RFLAGS] = flags;
  v[b + slot.GUEST_INTERRUPTIBILITY] = s[word(state.interruptibility)] as number;
  v[b + slot.GUEST_ACTIVITY] = s[word(state.activity)] as number;
  v[b + slot.GUEST_PENDING_DEBUG] = 0;
  for (let i = 0; i < 8; i++) {
    const at = word(state.segments + i * SEGMENT_STRIDE);
    const f = b + 2 * i;
    v[f + slot.GUEST_ES_BASE] = s[at + word(SEG_BASE)] as number;
    v[f + slot.GUEST_ES_BASE + 1] = s[at + word(SEG_BASE) + 1] as number;
    v[f + slot.GUEST_ES_LIMIT] = s[at + word(SEG_LIMIT)] as number;
    v[f + slot.GUEST_ES_ACCESS] = s[at + word(SEG_ACCESS)] as number;
    v[f + slot.GUEST_ES_SELECTOR] = (s[at + word(SEG_SELECTOR)] as number) & 0xffff;
  }
  for (let i = 0; i < quadWords.length; i++) {
    const from = quadWords[i] as number;
    const to = b + (quadSlots[i] as number);
    v[to] = s[from] as number;
    v[to + 1] = s[from + 1] as number;
  }
  v[b + slot.GUEST_SYSENTER_CS + 1] = 0;
  v[b + slot.GUEST_GDTR_LIMIT] = s[word(state.gdtrLimit)] as number;
  v[b + slot.GUEST_IDTR_LIMIT] = s[word(state.idtrLimit)] as number;
  v[b + slot.GUEST_CR0] = s[word(state.cr0)] as number;
  const exit = v[b + slot.EXIT_CONTROLS] as number;
  const efer = s[word(state.efer)] as number;
  if ((exit & ExitControl.saveEfer) !== 0) vmcs.set(slot.GUEST_EFER, efer);
  if ((exit & ExitControl.savePat) !== 0)
    vmcs.setPair(slot.GUEST_PAT, s[word(state.pat)] as number, s[word(state.pat) + 1] as number);
  if ((exit & ExitControl.saveDebugControls) !== 0) vmcs.set(slot.GUEST_DR7, s[word(state.dr + 56)] as number);
  const entry = v[b + slot.ENTRY_CONTROLS] as number;
  v[b + slot.ENTRY_CONTROLS] =
    (efer & EFER_LMA) !== 0 ? entry | EntryControl.ia32eModeGuest : entry & ~EntryControl.ia32eModeGuest;
  if (isPae(s)) {
    for (let i = 0; i < 8; i++) v[b + slot.GUEST_PDPTE0 + i] = s[word(state.pdpte) + i] as number;
  }
}

/** What of the host-state area software in root mode can observe: control registers and MSRs. */
export function loadHostState(vmcs: Vmcs, root: RootMsrs, guestEfer: number, guestPatLow: number, guestPatHigh: number): void {
  const h = root.halves;
  const exit = vmcs.low(slot.EXIT_CONTROLS);
  setHalves(h, Root.cr0, vmcs.low(slot.HOST_CR0), 0);
  setHalves(h, Root.cr3, vmcs.low(slot.HOST_CR3), vmcs.high(slot.HOST_CR3));
  setHalves(h, Root.cr4, vmcs.low(slot.HOST_CR4), 0);
  setHalves(h, Root.sysenterCs, vmcs.low(slot.HOST_SYSENTER_CS), 0);
  setHalves(h, Root.sysenterEsp, vmcs.low(slot.HOST_SYSENTER_ESP), vmcs.high(slot.HOST_SYSENTER_ESP));
  setHalves(h, Root.sysenterEip, vmcs.low(slot.HOST_SYSENTER_EIP), vmcs.high(slot.HOST_SYSENTER_EIP));
  setHalves(h, Root.fsBase, vmcs.low(slot.HOST_FS_BASE), vmcs.high(slot.HOST_FS_BASE));
  setHalves(h, Root.gsBase, vmcs.low(slot.HOST_GS_BASE), vmcs.high(slot.HOST_GS_BASE));
  setHalves(h, Root.debugctl, 0, 0);
  setHalves(h, Root.dr7, 0x400, 0);
  const efer = (exit & ExitControl.loadEfer) !== 0 ? vmcs.low(slot.HOST_EFER) : guestEfer | EFER_LMA | EFER_LME;
  setHalves(h, Root.efer, efer, 0);
  if ((exit & ExitControl.loadPat) !== 0) setHalves(h, Root.pat, vmcs.low(slot.HOST_PAT), vmcs.high(slot.HOST_PAT));
  else setHalves(h, Root.pat, guestPatLow, guestPatHigh);
}

function setHalves(halves: Uint32Array, index: number, low: number, high: number): void {
  halves[2 * index] = low;
  halves[2 * index + 1] = high;
}
