/** Near jumps, calls and returns. In 64-bit mode their operand size is always 64. */
import { CS, RCX, SEG_LIMIT, segmentOffset, state } from "../cpu-state.ts";
import type { Bool, Emitter, Int } from "../emitter.ts";
import { type Form, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { setCounter } from "./counters.ts";
import { pop, push } from "./stack-access.ts";

const upperHalf = (e: Emitter, value: Int): Bool => e.low32(e.shr(value, e.int(32)));

/** A target that takes more than 48 bits, or is beyond the limit of the code segment outside 64-bit mode. */
function isOutOfReach(e: Emitter, target: Int): Bool {
  if (e.size !== 64) return e.ltu(e.state(segmentOffset(CS) + SEG_LIMIT, 32), target);
  return e.ne(e.sar(e.shl(target, e.int(16), 64), e.int(16), 64), target);
}

/**
 * A target that is out of reach is refused at the branch: RIP stays there, and nothing has changed. `condition`: false where the
 * branch is not taken.
 */
function checkTarget(e: Emitter, target: Int, condition?: Bool): void {
  const isBeyond = isOutOfReach(e, target);
  const isRefused = condition === undefined ? isBeyond : e.and1(condition, isBeyond);
  if (e.size !== 64) {
    e.raiseIf(isRefused, "#GP", 0);
    return;
  }
  // With five levels of tables it may be canonical still
  e.if(isRefused, () => {
    e.helper("checkWideTarget", upperHalf(e, target));
  });
}

/** Where the form's relative operand leads. */
function relativeTarget(e: Emitter): Int {
  return e.truncate(e.add(e.state(state.blockRip, 64), e.immediate(), 64), e.size);
}

/** The same for the form's relative operand. In 64-bit mode a displacement leads out of canonical space at its very edge only. */
function checkRelative(e: Emitter, condition?: Bool): void {
  if (e.size !== 64) checkTarget(e, relativeTarget(e), condition);
}

/** The same for calls. Whether the return address is on the stack then is up to the vendor. */
function checkCall(e: Emitter, target: Int): void {
  e.if(isOutOfReach(e, target), () => {
    e.helper("refuseCall", e.size, upperHalf(e, target));
  });
}

export const JMP = instruction("JMP", {
  source: sdm("2A", "JMP - Jump"),
  forms: [form("EB cb", "rel8", "force64"), form("E9 cz", "relz", "force64")],
  semantics(e) {
    checkRelative(e);
    e.jumpRelative();
  },
});

export const JMP_INDIRECT = instruction("JMP", {
  source: sdm("2A", "JMP - Jump"),
  forms: [form("FF /4", "r/mv", "force64")],
  semantics(e, [operand]) {
    const target = e.read(operand);
    checkTarget(e, target);
    e.jump(target);
  },
});

export const JCC = instruction("Jcc", {
  source: sdm("2A", "Jcc - Jump if Condition Is Met"),
  forms: [form("70+cc cb", "rel8", "force64"), form("0F 80+cc cz", "relz", "force64")],
  semantics(e) {
    const condition = e.formCondition();
    checkRelative(e, condition);
    e.branchRelative(condition);
  },
});

export const CALL = instruction("CALL", {
  source: sdm("2A", "CALL - Call Procedure"),
  forms: [form("E8 cz", "relz", "force64")],
  semantics(e) {
    if (e.size !== 64) checkCall(e, relativeTarget(e));
    push(e, e.truncate(e.nextRip(), e.size));
    e.jumpRelative();
  },
});

export const CALL_INDIRECT = instruction("CALL", {
  source: sdm("2A", "CALL - Call Procedure"),
  forms: [form("FF /2", "r/mv", "force64")],
  semantics(e, [operand]) {
    const target = e.read(operand);
    checkCall(e, target);
    push(e, e.truncate(e.nextRip(), e.size));
    e.jump(target);
  },
});

export const RET = instruction("RET", {
  source: sdm("2B", "RET - Return From Procedure"),
  forms: [form("C3", "", "force64"), form("C2 iw", "imm16", "force64")],
  semantics(e, operands) {
    const { value, release } = pop(e, operands.length === 0 ? undefined : e.read(operands[0]));
    checkTarget(e, value);
    release();
    e.jump(value);
  },
});

/** Counts rCX (by address size) down and branches while it is not zero and `condition` holds. */
function loop(e: Emitter, condition: Bool | undefined): void {
  const mask = e.addressMask();
  const count = e.and(e.sub(e.reg(RCX, 64), e.int(1), 64), mask);
  const goesOn = e.ne(count, e.int(0));
  const isTaken = condition === undefined ? goesOn : e.and1(goesOn, condition);
  checkRelative(e, isTaken);
  setCounter(e, RCX, count);
  e.branchRelative(isTaken);
}

const loopForms = (opcode: string): Form[] => [form(`${opcode} cb`, "rel8", "force64")];
const LOOP_SOURCE = sdm("2A", "LOOP/LOOPcc - Loop According to ECX Counter");

export const LOOPNE = instruction("LOOPNE", {
  source: LOOP_SOURCE,
  forms: loopForms("E0"),
  semantics(e) {
    loop(e, e.not1(e.flag("ZF")));
  },
});

export const LOOPE = instruction("LOOPE", {
  source: LOOP_SOURCE,
  forms: loopForms("E1"),
  semantics(e) {
    loop(e, e.flag("ZF"));
  },
});

export const LOOP = instruction("LOOP", {
  source: LOOP_SOURCE,
  forms: loopForms("E2"),
  semantics(e) {
    loop(e, undefined);
  },
});

export const JRCXZ = instruction("JRCXZ", {
  source: sdm("2A", "Jcc - Jump if Condition Is Met"),
  forms: [form("E3 cb", "rel8", "force64")],
  semantics(e) {
    const isTaken = e.isZero(e.and(e.reg(RCX, 64), e.addressMask()));
    checkRelative(e, isTaken);
    e.branchRelative(isTaken);
  },
});

export const UD = instruction("UD", {
  source: sdm("2B", "UD - Undefined Instruction"),
  forms: [form("0F 0B", ""), form("0F B9 /r", "rz, r/mz"), form("0F FF /r", "rz, r/mz")],
  semantics(e) {
    e.raise("#UD");
  },
});

export const BOUND = instruction("BOUND", {
  source: sdm("2A", "BOUND - Check Array Index Against Bounds"),
  forms: [form("62 /r", "rv, mv", "invalid64")],
  semantics(e, [operand, bounds]) {
    const { size } = e;
    const index = e.signExtend(e.read(operand), size);
    const offset = e.address(bounds);
    const lower = e.signExtend(e.loadDefault(offset, size), size);
    const above = e.and(e.add(offset, e.int(size / 8), 64), e.addressMask());
    const upper = e.signExtend(e.loadDefault(above, size), size);
    e.raiseIf(e.or1(e.lts(index, lower), e.lts(upper, index)), "#BR");
  },
});

export const control: readonly Instruction[] = [
  JMP,
  JMP_INDIRECT,
  JCC,
  CALL,
  CALL_INDIRECT,
  RET,
  LOOPNE,
  LOOPE,
  LOOP,
  JRCXZ,
  UD,
  BOUND,
];
