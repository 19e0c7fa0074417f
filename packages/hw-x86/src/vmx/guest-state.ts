/**
 * Moves guest state between the VMCS and the CPU. Source: Intel SDM Vol. 3C, Loading Guest State; Saving Guest State; Loading Host
 * State. All copies are of 32-bit halves: VM exits are frequent, and a bigint would be an allocation.
 */
import { CS, SEG_ACCESS, SEG_BASE, SEG_LIMIT, SEG_SELECTOR, SEGMENT_STRIDE, SS, state } from "../engine/cpu-state.ts";
import { Flag } from "../engine/system/bits.ts";
import { settledDr7 } from "../engine/system/breakpoints.ts";
import type { GuestEngine } from "../root-interface.ts";
import { Root, type RootMsrs } from "../root-msrs.ts";
import { Blocking, EntryControl, ExitControl, PendingDebug } from "./controls.ts";
import { slot } from "./fields.ts";
import type { Vmcs } from "./vmcs.ts";

/** CR0 bits that VM entry never changes: ET, the reserved ones, NW and CD. */
const CR0_KEPT = 0x7ffa_ffd0;
/** IA32_DEBUGCTL.BTF. */
const BRANCH_TRAP = 2;
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
  const debugControls = (entry & EntryControl.loadDebugControls) !== 0 ? vmcs : root;
  copyChosen(engine, state.dr + 7 * 8, debugControls, slot.GUEST_DR7, Root.dr7);
  s[word(state.dr + 56)] = settledDr7(s[word(state.dr + 56)] as number);
  copyChosen(engine, state.debugctl, debugControls, slot.GUEST_DEBUGCTL, Root.debugctl);
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

/**
 * Debug exceptions that the guest is owed: there are some where MOV SS holds them off, and where the monitor trap flag came before them.
 * Source: Intel SDM Vol. 3C, Saving Non-Register State.
 */
function pendingDebug(engine: GuestEngine, flags: number, isMonitorTrap: boolean): number {
  const isHeld = ((engine.u32[word(state.interruptibility)] as number) & Blocking.byMovSs) !== 0;
  let pending = isHeld || isMonitorTrap ? engine.pendingTrap : 0;
  if ((pending & PendingDebug.breakpoints) !== 0) pending |= PendingDebug.enabled;
  // A single step is due behind the instruction that MOV SS shadows
  const isStepping = (flags & Flag.TF) !== 0 && ((engine.u32[word(state.debugctl)] as number) & BRANCH_TRAP) === 0;
  return isHeld && isStepping ? pending | PendingDebug.singleStep : pending;
}

/** What every exit saves: what moves from exit to exit, and what the checks of every entry look at. */
export function saveMovingState(engine: GuestEngine, vmcs: Vmcs, flags: number, isMonitorTrap: boolean): void {
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
  v[b + slot.GUEST_PENDING_DEBUG] = pendingDebug(engine, flags, isMonitorTrap);
  v[b + slot.GUEST_CR0] = s[word(state.cr0)] as number;
  v[b + slot.GUEST_CS_ACCESS] = s[word(state.segments + CS * SEGMENT_STRIDE + SEG_ACCESS)] as number;
  v[b + slot.GUEST_SS_ACCESS] = s[word(state.segments + SS * SEGMENT_STRIDE + SEG_ACCESS)] as number;
  const entry = v[b + slot.ENTRY_CONTROLS] as number;
  v[b + slot.ENTRY_CONTROLS] =
    ((s[word(state.efer)] as number) & EFER_LMA) !== 0
      ? entry | EntryControl.ia32eModeGuest
      : entry & ~EntryControl.ia32eModeGuest;
}

/** Where the state block has a field's value, as a word index; 0 for fields that no exit saves, or that `saveMovingState` has saved. */
const liveWords = new Uint16Array(1024);
/** How a field's value is taken from there. */
const liveWidths = new Uint8Array(1024);
const Width = { selector: 0, long: 1, quad: 2, whenPae: 3 } as const;
/** Fields that are saved from the state block, beside PDPTEs. */
const liveSlots: number[] = [];

function saved(where: number, offset: number, width: number): void {
  liveWords[where] = word(offset);
  liveWidths[where] = width;
  liveSlots.push(where);
}
for (let i = 0; i < 8; i++) {
  const segment = state.segments + i * SEGMENT_STRIDE;
  saved(slot.GUEST_ES_BASE + 2 * i, segment + SEG_BASE, Width.quad);
  saved(slot.GUEST_ES_LIMIT + 2 * i, segment + SEG_LIMIT, Width.long);
  saved(slot.GUEST_ES_ACCESS + 2 * i, segment + SEG_ACCESS, Width.long);
  saved(slot.GUEST_ES_SELECTOR + 2 * i, segment + SEG_SELECTOR, Width.selector);
}
for (const [offset, where] of QUADS) saved(where, offset, where === slot.GUEST_SYSENTER_CS ? Width.long : Width.quad);
saved(slot.GUEST_GDTR_LIMIT, state.gdtrLimit, Width.long);
saved(slot.GUEST_IDTR_LIMIT, state.idtrLimit, Width.long);
const ALWAYS_SAVED = liveSlots.length;
saved(slot.GUEST_EFER, state.efer, Width.long);
saved(slot.GUEST_PAT, state.pat, Width.quad);
saved(slot.GUEST_DR7, state.dr + 56, Width.long);
saved(slot.GUEST_DEBUGCTL, state.debugctl, Width.quad);
for (let i = 0; i < 4; i++) saved(slot.GUEST_PDPTE0 + 2 * i, state.pdpte + 8 * i, Width.whenPae);

/** Saves one field of those that `saveGuestState` saves, of a guest whose exits save them all. */
export function saveField(engine: GuestEngine, vmcs: Vmcs, where: number): void {
  const from = liveWords[where] as number;
  if (from === 0) return;
  const s = engine.u32;
  const v = vmcs.u32;
  const at = vmcs.base + where;
  switch (liveWidths[where]) {
    case Width.selector:
      v[at] = (s[from] as number) & 0xffff;
      return;
    case Width.long:
      v[at] = s[from] as number;
      v[at + 1] = 0;
      return;
    case Width.whenPae:
      if (!isPae(s)) return;
      break;
    default:
  }
  v[at] = s[from] as number;
  v[at + 1] = s[from + 1] as number;
}

/** All that `saveMovingState` does not save. */
export function saveGuestState(engine: GuestEngine, vmcs: Vmcs): void {
  for (let i = 0; i < ALWAYS_SAVED; i++) saveField(engine, vmcs, liveSlots[i] as number);
  const exit = vmcs.low(slot.EXIT_CONTROLS);
  if ((exit & ExitControl.saveEfer) !== 0) saveField(engine, vmcs, slot.GUEST_EFER);
  if ((exit & ExitControl.savePat) !== 0) saveField(engine, vmcs, slot.GUEST_PAT);
  if ((exit & ExitControl.saveDebugControls) !== 0) {
    saveField(engine, vmcs, slot.GUEST_DR7);
    saveField(engine, vmcs, slot.GUEST_DEBUGCTL);
  }
  for (let i = 0; i < 4; i++) saveField(engine, vmcs, slot.GUEST_PDPTE0 + 2 * i);
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
