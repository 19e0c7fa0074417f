/** Guests in long mode with an IDT whose handlers halt, for tests of what VMX controls make of them. */
import { Engine } from "../src/engine/engine.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { type HarnessOptions, VmxHarness } from "./vmx-harness.ts";

export const HLT = 0xf4;
export const NOP = 0x90;
export const CPUID = [0x0f, 0xa2];
export const INC_RAX_LOOP = [0x48, 0xff, 0xc0, 0xeb, 0xfb];
export const IDT = 0x6000;
export const GDT = 0x5000;
export const HANDLER = 0x9000;
export const DATA = 0x30_0000;
/** TSC ticks of an instruction under icount. */
export const TICKS = 20;

export function guest(
  code: readonly number[],
  mode: HarnessOptions["mode"] = "long",
  clock: HarnessOptions["clock"] = "icount",
): VmxHarness {
  const h = new VmxHarness({
    mode,
    clock,
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load(code);
  h.load([HLT], HANDLER);
  for (const vector of [1, 2, 6, 13, 14, 0x30]) {
    const gate = (h.guestMemory + IDT + vector * 16) >>> 2;
    h.bank.u32[gate] = (0x10 << 16) | HANDLER;
    h.bank.u32[gate + 1] = 0x8e00;
  }
  h.bank.view.setBigUint64(h.guestMemory + GDT + 0x10, 0x00af_9b00_0000_ffffn, true);
  h.bank.view.setBigUint64(h.guestMemory + GDT + 0x18, 0x00cf_9300_0000_ffffn, true);
  if (mode === "real") return h;
  h.write("GUEST_IDTR_BASE", IDT);
  h.write("GUEST_IDTR_LIMIT", 0xfff);
  h.write("GUEST_GDTR_BASE", GDT);
  h.write("GUEST_GDTR_LIMIT", 0x1f);
  return h;
}
/** Code of a page of its own, which the next entry begins at. */
export function enterAt(h: VmxHarness, code: readonly number[], page: number): number {
  const start = 0x1_0000 + page * 0x1000;
  h.load([...code, HLT], start);
  h.write("GUEST_RIP", start);
  return start;
}
