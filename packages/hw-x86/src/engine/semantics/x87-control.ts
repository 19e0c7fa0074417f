/** x87 rows that manage the unit: control and status words, environment, save and restore, FXSAVE, waiting. */

import { state } from "../cpu-state.ts";
import type { Emitter, Int } from "../emitter.ts";
import { OPERAND_ADDRESS } from "../fpu/x87-state.ts";
import { form, type Instruction, instruction, sdm } from "../instruction.ts";

const CR0_EM_TS = 0xc;

/** #NM for instructions that do not wait: a pending exception leaves them alone. */
function requireUnit(e: Emitter): void {
  e.raiseIf(e.ne(e.and(e.state(state.cr0, 64), e.int(CR0_EM_TS)), e.int(0)), "#NM");
}

/** Instructions that store or load an image: the helper goes to memory itself and is told the operand size. */
function image(mnemonic: string, opcode: string, helper: string, waits: boolean): Instruction {
  return instruction(mnemonic, {
    source: sdm("2A", mnemonic),
    requires: waits ? ["fpu"] : [],
    forms: [form(opcode, "mv")],
    semantics(e, [operand]) {
      if (!waits) requireUnit(e);
      e.setState(OPERAND_ADDRESS, 64, e.address(operand));
      e.helper(helper, e.size);
    },
  });
}

function unit(mnemonic: string, opcodes: readonly string[], waits: boolean, semantics: (e: Emitter) => void): Instruction {
  return instruction(mnemonic, {
    source: sdm("2A", mnemonic),
    requires: waits ? ["fpu"] : [],
    forms: opcodes.map((opcode) => form(opcode, "")),
    semantics(e) {
      if (!waits) requireUnit(e);
      semantics(e);
    },
  });
}

const word = (e: Emitter, offset: number): Int => e.state(offset, 16);

export const FWAIT = instruction("WAIT/FWAIT", {
  source: sdm("2C", "WAIT/FWAIT - Wait"),
  forms: [form("9B", "")],
  requires: ["waitFpu"],
  semantics() {},
});

export const x87Control: readonly Instruction[] = [
  FWAIT,
  // The last three do nothing since the 80387.
  unit("FNOP", ["D9 D0"], true, () => {}),
  unit("FNENI/FNDISI/FNSETPM", ["DB E0", "DB E1", "DB E4"], false, () => {}),
  unit("FNCLEX", ["DB E2"], false, (e) => {
    e.helper("fpuClearExceptions");
  }),
  unit("FNINIT", ["DB E3"], false, (e) => {
    e.helper("fpuInitialize");
  }),
  instruction("FLDCW", {
    source: sdm("2A", "FLDCW - Load x87 FPU Control Word"),
    requires: ["fpu"],
    forms: [form("D9 /5", "m16")],
    semantics(e, [source]) {
      e.helper("fpuLoadControl", e.low32(e.read(source)));
    },
  }),
  instruction("FNSTCW", {
    source: sdm("2A", "FSTCW/FNSTCW - Store x87 FPU Control Word"),
    forms: [form("D9 /7", "m16")],
    semantics(e, [target]) {
      requireUnit(e);
      e.write(target, word(e, state.fpuControl));
    },
  }),
  instruction("FNSTSW", {
    source: sdm("2A", "FSTSW/FNSTSW - Store x87 FPU Status Word"),
    forms: [form("DD /7", "m16"), form("DF E0", "AX")],
    semantics(e, [target]) {
      requireUnit(e);
      e.write(target, word(e, state.fpuStatus));
    },
  }),
  image("FNSTENV", "D9 /6", "fpuStoreEnvironment", false),
  image("FLDENV", "D9 /4", "fpuLoadEnvironment", true),
  image("FNSAVE", "DD /6", "fpuSave", false),
  image("FRSTOR", "DD /4", "fpuRestore", true),
  // Neither waits for a pending exception, and both work without CR4.OSFXSR.
  image("FXSAVE", "NP 0F AE /0", "fpuFxsave", false),
  image("FXRSTOR", "NP 0F AE /1", "fpuFxrstor", false),
];
