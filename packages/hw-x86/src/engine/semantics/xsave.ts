/** XSAVE and its family: the helpers do the work (fpu/xsave.ts). */
import { OPERAND_ADDRESS } from "../fpu/x87-state.ts";
import { XsaveKind } from "../fpu/xsave.ts";
import { form, type Instruction, instruction, sdm } from "../instruction.ts";

function image(mnemonic: string, title: string, opcode: string, helper: "xsave" | "xrstor", kind: number): Instruction {
  return instruction(mnemonic, {
    source: sdm("2D", title),
    forms: [form(opcode, "mv")],
    semantics(e, [operand]) {
      e.setState(OPERAND_ADDRESS, 64, e.address(operand));
      e.helper(helper, kind, e.size);
    },
  });
}

export const xsave: readonly Instruction[] = [
  image("XSAVE", "XSAVE - Save Processor Extended States", "NP 0F AE /4", "xsave", XsaveKind.xsave),
  image("XSAVEOPT", "XSAVEOPT - Save Processor Extended States Optimized", "NP 0F AE /6", "xsave", XsaveKind.xsaveopt),
  image("XSAVEC", "XSAVEC - Save Processor Extended States With Compaction", "NP 0F C7 /4", "xsave", XsaveKind.xsavec),
  image("XSAVES", "XSAVES - Save Processor Extended States Supervisor", "NP 0F C7 /5", "xsave", XsaveKind.xsaves),
  image("XRSTOR", "XRSTOR - Restore Processor Extended States", "NP 0F AE /5", "xrstor", XsaveKind.xrstor),
  image("XRSTORS", "XRSTORS - Restore Processor Extended States Supervisor", "NP 0F C7 /3", "xrstor", XsaveKind.xrstors),
  instruction("XGETBV", {
    source: sdm("2D", "XGETBV - Get Value of Extended Control Register"),
    forms: [form("NP 0F 01 D0", "")],
    semantics(e) {
      e.helperThenEndBlock("xgetbv");
    },
  }),
  instruction("XSETBV", {
    source: sdm("2D", "XSETBV - Set Extended Control Register"),
    forms: [form("NP 0F 01 D1", "")],
    semantics(e) {
      e.helperThenEndBlock("xsetbv");
    },
  }),
];
