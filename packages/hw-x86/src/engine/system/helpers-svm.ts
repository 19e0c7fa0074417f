/** SVM instructions, and RSM, in a guest: they exit, or are undefined. Source: AMD64 APM Vol. 3, System Instruction Reference. */
import { state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { Efer, Vector } from "./bits.ts";
import { cplOf, hasParagraphSegments } from "./processor-mode.ts";

export const SVM_MNEMONICS = ["VMRUN", "VMMCALL", "VMLOAD", "VMSAVE", "STGI", "CLGI", "SKINIT", "INVLPGA"] as const;

export const svmHelpers: HelperTable = {
  /** Number of the mnemonic in SVM_MNEMONICS. */
  svmInstruction(cpu, which) {
    const mnemonic = SVM_MNEMONICS[which];
    const needsSvm = mnemonic !== "VMMCALL" && mnemonic !== "SKINIT";
    if (needsSvm && ((cpu.u32[state.efer >>> 2] & Efer.SVME) === 0 || hasParagraphSegments(cpu))) cpu.raise(Vector.UD);
    if (mnemonic !== "VMMCALL" && cpu.model.vendor === "amd" && cplOf(cpu) !== 0) cpu.raise(Vector.GP, 0);
    if (cpu.guest.svmInstruction(mnemonic) === "undefined") cpu.raise(Vector.UD);
  },
  resume(cpu) {
    if (!cpu.guest.rsm()) cpu.raise(Vector.UD);
  },
};
