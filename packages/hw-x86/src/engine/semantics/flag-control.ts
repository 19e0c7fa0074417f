/** Instructions on single flags, and flags by way of AH. */
import { RAX, state } from "../cpu-state.ts";
import type { Emitter } from "../emitter.ts";
import { form, type Instruction, instruction, sdm } from "../instruction.ts";

const DF = 1 << 10;
/** SF ZF AF PF CF as AH holds them. */
const AH_FLAGS = 0xd5;

export const CMC = instruction("CMC", {
  source: sdm("2A", "CMC - Complement Carry Flag"),
  forms: [form("F5", "")],
  semantics(e) {
    e.setFlag("CF", e.not1(e.flag("CF")));
  },
});

export const CLC = instruction("CLC", {
  source: sdm("2A", "CLC - Clear Carry Flag"),
  forms: [form("F8", "")],
  semantics(e) {
    e.setFlag("CF", e.bool(false));
  },
});

export const STC = instruction("STC", {
  source: sdm("2B", "STC - Set Carry Flag"),
  forms: [form("F9", "")],
  semantics(e) {
    e.setFlag("CF", e.bool(true));
  },
});

function setDirection(e: Emitter, isDown: boolean): void {
  const flags = e.state(state.systemFlags, 32);
  e.setState(state.systemFlags, 32, isDown ? e.or(flags, e.int(DF)) : e.and(flags, e.int(0xffff_ffff & ~DF)));
}

export const CLD = instruction("CLD", {
  source: sdm("2A", "CLD - Clear Direction Flag"),
  forms: [form("FC", "")],
  semantics: (e) => setDirection(e, false),
});

export const STD = instruction("STD", {
  source: sdm("2B", "STD - Set Direction Flag"),
  forms: [form("FD", "")],
  semantics: (e) => setDirection(e, true),
});

export const LAHF = instruction("LAHF", {
  source: sdm("2A", "LAHF - Load Status Flags Into AH Register"),
  forms: [form("9F", "")],
  semantics(e) {
    const flags = e.or(e.and(e.readFlags(), e.int(AH_FLAGS)), e.int(2));
    e.setReg(RAX, 16, e.or(e.shl(flags, e.int(8), 16), e.reg(RAX, 8)));
  },
});

export const SAHF = instruction("SAHF", {
  source: sdm("2B", "SAHF - Store AH Into Flags"),
  forms: [form("9E", "")],
  semantics(e) {
    const kept = e.and(e.readFlags(), e.int(~BigInt(AH_FLAGS)));
    const given = e.and(e.shr(e.reg(RAX, 16), e.int(8)), e.int(AH_FLAGS));
    e.writeArithmeticFlags(e.or(kept, given));
  },
});

export const SALC = instruction("SALC", {
  source: "AMD64 Architecture Programmer's Manual Vol. 3, Opcode Maps (undocumented)",
  forms: [form("D6", "", "invalid64")],
  semantics(e) {
    e.setReg(RAX, 8, e.select(e.flag("CF"), e.int(0xff), e.int(0)));
  },
});

export const flagControl: readonly Instruction[] = [CMC, CLC, STC, CLD, STD, LAHF, SAHF, SALC];
