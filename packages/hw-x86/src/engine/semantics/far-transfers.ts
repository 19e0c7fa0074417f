/** Transfers that change CS: far jumps, calls and returns, software interrupts, system calls. */
import { state } from "../cpu-state.ts";
import { type Form, form, type Instruction, instruction, sdm } from "../instruction.ts";

function directRow(mnemonic: string, source: string, opcode: string, helper: string): Instruction {
  return instruction(mnemonic, {
    source,
    forms: [form(`${opcode} iw:iz`, "ptr16:z", "invalid64")],
    semantics(e) {
      e.setState(state.helper, 64, e.immediate());
      e.helperThenEndBlock(helper, e.size / 8);
    },
  });
}

function indirectRow(mnemonic: string, source: string, opcode: string, helper: string): Instruction {
  return instruction(mnemonic, {
    source,
    forms: [form(opcode, "m16:v")],
    semantics(e, [memory]) {
      e.setState(state.helper, 64, e.address(memory));
      e.helperThenEndBlock(helper, e.size / 8);
    },
  });
}

export const RET_FAR = instruction("RET", {
  source: sdm("2B", "RET - Return From Procedure"),
  forms: [form("CB", "", "sized"), form("CA iw", "imm16", "sized")],
  semantics(e, operands) {
    const release = operands.length === 0 ? e.int(0) : e.read(operands[0]);
    e.helperThenEndBlock("returnFar", e.size / 8, e.low32(release));
  },
});

export const IRET = instruction("IRET/IRETD/IRETQ", {
  source: sdm("2A", "IRET/IRETD/IRETQ - Interrupt Return"),
  forms: [form("CF", "", "sized")],
  semantics(e) {
    e.helperThenEndBlock("interruptReturn", e.size / 8);
  },
});

export const INT = instruction("INT n", {
  source: sdm("2A", "INT n/INTO/INT3/INT1 - Call to Interrupt Procedure"),
  forms: [form("CD ib", "imm8")],
  semantics(e, [vector]) {
    e.helperThenEndBlock("interrupt", e.low32(e.read(vector)));
  },
});

export const INTO = instruction("INTO", {
  source: sdm("2A", "INT n/INTO/INT3/INT1 - Call to Interrupt Procedure"),
  forms: [form("CE", "", "invalid64")],
  semantics(e) {
    e.helperThenEndBlock("interruptOnOverflow", e.flag("OF"));
  },
});

function softwareRow(mnemonic: string, opcode: string, helper: string): Instruction {
  return instruction(mnemonic, {
    source: sdm("2A", "INT n/INTO/INT3/INT1 - Call to Interrupt Procedure"),
    forms: [form(opcode, "")],
    semantics(e) {
      e.helperThenEndBlock(helper);
    },
  });
}

function callRow(mnemonic: string, source: string, forms: readonly Form[], helper: string): Instruction {
  return instruction(mnemonic, {
    source,
    forms,
    semantics(e) {
      e.helperThenEndBlock(helper, e.size === 64 ? 1 : 0);
    },
  });
}

export const farTransfers: readonly Instruction[] = [
  directRow("JMP", sdm("2A", "JMP - Jump"), "EA", "jumpFarDirect"),
  directRow("CALL", sdm("2A", "CALL - Call Procedure"), "9A", "callFarDirect"),
  indirectRow("JMP", sdm("2A", "JMP - Jump"), "FF /5", "jumpFarIndirect"),
  indirectRow("CALL", sdm("2A", "CALL - Call Procedure"), "FF /3", "callFarIndirect"),
  RET_FAR,
  IRET,
  INT,
  INTO,
  softwareRow("INT3", "CC", "interrupt3"),
  softwareRow("INT1", "F1", "interrupt1"),
  callRow("SYSCALL", sdm("2B", "SYSCALL - Fast System Call"), [form("0F 05", "")], "syscall"),
  callRow("SYSRET", sdm("2B", "SYSRET - Return From Fast System Call"), [form("0F 07", ""), form("REX.W 0F 07", "")], "sysret"),
  callRow("SYSENTER", sdm("2B", "SYSENTER - Fast System Call"), [form("0F 34", "")], "sysenter"),
  callRow(
    "SYSEXIT",
    sdm("2B", "SYSEXIT - Fast Return from Fast System Call"),
    [form("0F 35", ""), form("REX.W 0F 35", "")],
    "sysexit",
  ),
];
