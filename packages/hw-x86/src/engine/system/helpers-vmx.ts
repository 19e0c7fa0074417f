/** VMX instructions in a guest: all of them exit, after the checks that come before. */

import { state } from "../cpu-state.ts";
import type { HelperTable } from "../helpers.ts";
import { Cr4, Vector } from "./bits.ts";
import { hasParagraphSegments } from "./processor-mode.ts";

export const VMX_MNEMONICS = [
  "VMCALL",
  "VMLAUNCH",
  "VMRESUME",
  "VMXOFF",
  "VMXON",
  "VMCLEAR",
  "VMPTRLD",
  "VMPTRST",
  "VMREAD",
  "VMWRITE",
  "INVEPT",
  "INVVPID",
  "VMFUNC",
] as const;

export const vmxHelpers: HelperTable = {
  /** Number of the mnemonic in VMX_MNEMONICS. VM exits of these come before any check but that for undefined opcodes. */
  vmxInstruction(cpu, which) {
    const mnemonic = VMX_MNEMONICS[which];
    if (mnemonic === "VMFUNC") cpu.raise(Vector.UD);
    const isXon = mnemonic === "VMXON";
    if (mnemonic !== "VMCALL" && hasParagraphSegments(cpu)) cpu.raise(Vector.UD);
    if (isXon && (cpu.u32[state.cr4 >>> 2] & Cr4.VMXE) === 0) cpu.raise(Vector.UD);
    if (cpu.guest.vmxInstruction(mnemonic)) return;
    // Outside VMX operation nothing intercepts them, and they do not exist.
    cpu.raise(Vector.UD);
  },
};
