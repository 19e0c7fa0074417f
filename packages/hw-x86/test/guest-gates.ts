/** An interrupt table and flat segments for small guests of either vendor. */

export const IDT = 0x6000;
export const IDT_LIMIT = 0xfff;
export const GDT = 0x5000;
export const GDT_LIMIT = 0x1f;
export const HANDLER = 0x9000;

interface GuestRam {
  readonly bank: { readonly u32: Uint32Array; readonly view: DataView };
  /** Offset of guest physical 0 in the bank. */
  readonly guestMemory: number;
}

/** A 64-bit interrupt gate for `vector`, with flat segments in a GDT whose CS is 0x10. */
export function writeGate({ bank, guestMemory }: GuestRam, vector: number, handler: number): void {
  const gate = (guestMemory + IDT + vector * 16) >>> 2;
  bank.u32[gate] = (0x10 << 16) | (handler & 0xffff);
  bank.u32[gate + 1] = (handler & 0xffff_0000) | 0x8e00;
  bank.view.setBigUint64(guestMemory + GDT + 0x10, 0x00af_9b00_0000_ffffn, true);
  bank.view.setBigUint64(guestMemory + GDT + 0x18, 0x00cf_9300_0000_ffffn, true);
}
