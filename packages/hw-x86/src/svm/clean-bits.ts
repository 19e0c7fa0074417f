/**
 * For the hardware sanitizer: VMCB clean bits. Software sets one to say that the fields behind it are what they were at the last #VMEXIT
 * of that VMCB on that CPU, whose copies silicon may then use. This processor reads every field anew, so a bit that is set though a field
 * has changed does no harm here, and makes a guest run with stale state on silicon. Source: AMD64 APM Vol. 2, VMCB Clean Bits.
 */
import { Sampling } from "../sanitizer/sampling.ts";
import { Control, Save } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

/** Name of a bit, and the first and last byte of each run of words that it covers. */
interface CleanBit {
  readonly name: string;
  readonly fields: readonly (readonly [number, number])[];
}
const quad = (offset: number): readonly [number, number] => [offset, offset + 7];

/** By bit number. */
const CLEAN_BITS: readonly CleanBit[] = [
  {
    name: "I (intercepts, TSC offset, pause filter)",
    fields: [[Control.INTERCEPT_CR, Control.INTERCEPT_5 + 3], [Control.PAUSE_FILTER_THRESHOLD, 0x3f], quad(Control.TSC_OFFSET)],
  },
  { name: "IOPM (permission map bases)", fields: [quad(Control.IOPM_BASE), quad(Control.MSRPM_BASE)] },
  { name: "ASID", fields: [[Control.ASID, Control.ASID + 3]] },
  { name: "TPR (virtual interrupts)", fields: [[Control.V_INTERRUPT, Control.V_VECTOR + 3]] },
  { name: "NP (nested CR3, G_PAT)", fields: [quad(Control.NESTED_CR3), quad(Save.G_PAT)] },
  { name: "CRx (CR0, CR3, CR4, EFER)", fields: [quad(Save.EFER), [Save.CR4, Save.CR0 + 7]] },
  { name: "DRx (DR6, DR7)", fields: [[Save.DR7, Save.DR6 + 7]] },
  {
    name: "DT (GDTR, IDTR)",
    fields: [
      [Save.GDTR + 4, Save.GDTR + 15],
      [Save.IDTR + 4, Save.IDTR + 15],
    ],
  },
  {
    name: "SEG (ES, CS, SS, DS, CPL)",
    fields: [
      [Save.ES, Save.DS + 15],
      [Save.CPL & ~3, Save.CPL | 3],
    ],
  },
  { name: "CR2", fields: [quad(Save.CR2)] },
  { name: "LBR (DebugCtl, branch records)", fields: [[Save.DBGCTL, Save.LAST_EXCEPTION_TO + 7]] },
  {
    name: "AVIC (APIC base, backing page, ID tables)",
    fields: [
      quad(Control.AVIC_BAR),
      quad(Control.AVIC_BACKING_PAGE),
      [Control.AVIC_LOGICAL_TABLE, Control.AVIC_PHYSICAL_TABLE + 7],
    ],
  },
];
/** Byte offsets of the words behind each bit. */
const WORDS = CLEAN_BITS.map(({ fields }) =>
  Uint16Array.from(
    fields.flatMap(([first, last]) => Array.from({ length: (last - first + 1) >>> 2 }, (_, i) => first + 4 * i)),
  ),
);
const TOTAL = WORDS.reduce((sum, words) => sum + words.length, 0);
/** All fields are remembered, at exits of each VMCB. */
const FIRST_EXITS = 256;
const SAMPLE = 64;

interface Remembered {
  /** Words as the last exit left them, if `isKnown`. */
  readonly words: Uint32Array;
  isKnown: boolean;
  readonly sampling: Sampling;
}

export class CleanBits {
  readonly #vmcbs = new Map<number, Remembered>();
  readonly #reported = new Set<string>();
  readonly #report: (finding: string) => void;

  constructor(report: (finding: string) => void) {
    this.#report = report;
  }

  /** Power is lost, and with it every copy. */
  forget(): void {
    this.#vmcbs.clear();
  }

  /** VMRUN of the VMCB at `address`, before anything of it is used. */
  entered(vmcb: Vmcb, address: number): void {
    const clean = vmcb.low(Control.CLEAN);
    if (clean === 0) return;
    const last = this.#vmcbs.get(address);
    if (last === undefined) {
      this.#tell(address, clean, "though this CPU has not run it");
      return;
    }
    if (!last.isKnown) return;
    for (let bit = 0, at = 0; bit < WORDS.length; bit++) {
      const words = WORDS[bit] as Uint16Array;
      if (((clean >>> bit) & 1) !== 0) this.#compare(vmcb, address, bit, last.words, at);
      at += words.length;
    }
  }
  #compare(vmcb: Vmcb, address: number, bit: number, last: Uint32Array, at: number): void {
    const words = WORDS[bit] as Uint16Array;
    for (let i = 0; i < words.length; i++) {
      const offset = words[i] as number;
      if (vmcb.low(offset) === last[at + i]) continue;
      this.#tell(address, 1 << bit, `though the word at 0x${offset.toString(16)} has changed since its last exit`);
      return;
    }
  }
  #tell(address: number, bits: number, why: string): void {
    const names = CLEAN_BITS.filter((_, bit) => ((bits >>> bit) & 1) !== 0).map(({ name }) => name);
    const finding = `VMCB ${address.toString(16)} is run with clean bit ${names.join(", ")} set, ${why}`;
    if (this.#reported.has(finding)) return;
    this.#reported.add(finding);
    this.#report(finding);
  }

  /** #VMEXIT, with everything in the VMCB. */
  exited(vmcb: Vmcb, address: number): void {
    let last = this.#vmcbs.get(address);
    if (last === undefined) {
      last = { words: new Uint32Array(TOTAL), isKnown: true, sampling: new Sampling(FIRST_EXITS, SAMPLE) };
      this.#vmcbs.set(address, last);
    }
    last.isKnown = last.sampling.isDue();
    if (!last.isKnown) return;
    let at = 0;
    for (const words of WORDS) for (let i = 0; i < words.length; i++) last.words[at++] = vmcb.low(words[i] as number);
  }
}
