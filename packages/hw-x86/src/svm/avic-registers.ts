/** What becomes of a guest's accesses to each register of its local APIC. Source: AMD64 APM Vol. 2, Guest vAPIC Register Access Behavior. */

export const AvicAccess = {
  /** Exits before it. */
  fault: 0,
  /** Is made. */
  allow: 1,
  /** Is made, and exits behind it. */
  trap: 2,
} as const;

interface RegisterAccess {
  readonly isReadable: boolean;
  readonly write: number;
}
const NOTHING: RegisterAccess = { isReadable: false, write: AvicAccess.fault };
const READ_ONLY: RegisterAccess = { isReadable: true, write: AvicAccess.fault };
const PLAIN: RegisterAccess = { isReadable: true, write: AvicAccess.allow };
const TRAPPED: RegisterAccess = { isReadable: true, write: AvicAccess.trap };

/** First and last offset of each run, and its accesses. */
const RANGES: readonly (readonly [number, number, RegisterAccess])[] = [
  [0x20, 0x20, TRAPPED], // ID
  [0x30, 0x30, READ_ONLY], // version
  [0x80, 0x80, PLAIN], // TPR
  [0xa0, 0xa0, READ_ONLY], // PPR
  [0xb0, 0xb0, PLAIN], // EOI, which traps for level-triggered interrupts
  [0xc0, 0xf0, TRAPPED], // remote read, LDR, DFR, spurious interrupt vector
  [0x100, 0x270, READ_ONLY], // ISR, TMR, IRR
  [0x280, 0x280, TRAPPED], // error status
  [0x300, 0x310, PLAIN], // ICR, whose low half traps where the IPI is not done
  [0x320, 0x380, TRAPPED], // LVT, initial count
  [0x3e0, 0x3e0, TRAPPED], // divide configuration
];
const ACCESSES: RegisterAccess[] = new Array<RegisterAccess>(256).fill(NOTHING);
for (const [first, last, access] of RANGES) ACCESSES.fill(access, first >>> 4, (last >>> 4) + 1);

/** Of the register at an offset in the page. */
export function accessOf(offset: number): RegisterAccess {
  return ACCESSES[(offset >>> 4) & 0xff] as RegisterAccess;
}
