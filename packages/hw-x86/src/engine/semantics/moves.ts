/** Data movement between registers and memory, conversions, conditional moves, hints that do nothing, and fences. */
import { RAX, RBX, RDX } from "../cpu-state.ts";
import type { Size } from "../emitter.ts";
import { form, type Instruction, instruction, sdm } from "../instruction.ts";

export const MOV = instruction("MOV", {
  source: sdm("2B", "MOV - Move"),
  forms: [
    form("88 /r", "r/m8, r8"),
    form("89 /r", "r/mv, rv"),
    form("8A /r", "r8, r/m8"),
    form("8B /r", "rv, r/mv"),
    form("B0+r ib", "r8, imm8"),
    form("B8+r iv", "rv, immv"),
    form("C6 /0 ib", "r/m8, imm8"),
    form("C7 /0 iz", "r/mv, immz"),
  ],
  semantics(e, [target, source]) {
    e.write(target, e.read(source));
  },
});

export const MOV_FROM_OFFSET = instruction("MOV", {
  source: sdm("2B", "MOV - Move"),
  forms: [form("A0 moffs", "AL, moffs8"), form("A1 moffs", "rAX, moffsv")],
  semantics(e) {
    e.setReg(RAX, e.size, e.loadDefault(e.immediate(), e.size));
  },
});

export const MOV_TO_OFFSET = instruction("MOV", {
  source: sdm("2B", "MOV - Move"),
  forms: [form("A2 moffs", "moffs8, AL"), form("A3 moffs", "moffsv, rAX")],
  semantics(e) {
    e.storeDefault(e.immediate(), e.size, e.reg(RAX, e.size));
  },
});

export const MOVZX = instruction("MOVZX", {
  source: sdm("2B", "MOVZX - Move With Zero-Extend"),
  forms: [form("0F B6 /r", "rv, r/m8"), form("0F B7 /r", "rv, r/m16")],
  semantics(e, [target, source]) {
    e.write(target, e.read(source));
  },
});

export const MOVSX = instruction("MOVSX", {
  source: sdm("2B", "MOVSX/MOVSXD - Move With Sign-Extension"),
  forms: [form("0F BE /r", "rv, r/m8"), form("0F BF /r", "rv, r/m16"), form("63 /r", "rv, r/mz", "only64")],
  semantics(e, [target, source]) {
    const from = e.sizeOf(source) as Size;
    e.write(target, e.truncate(e.signExtend(e.read(source), from), e.size));
  },
});

export const XCHG = instruction("XCHG", {
  source: sdm("2C", "XCHG - Exchange Register/Memory With Register"),
  // 90 is NOP, and XCHG only with REX.B: the decoder then takes the form 91+r
  forms: [form("86 /r", "r/m8, r8", "lock"), form("87 /r", "r/mv, rv", "lock"), form("91+r", "rv, rAX")],
  semantics(e, [left, right]) {
    const a = e.readForWrite(left);
    const b = e.read(right);
    e.write(left, b);
    e.write(right, a);
  },
});

export const BSWAP = instruction("BSWAP", {
  source: sdm("2A", "BSWAP - Byte Swap"),
  forms: [form("0F C8+r", "rv")],
  semantics(e, [target]) {
    const { size } = e;
    // With 16 bits the manual leaves the result undefined; silicon clears the register
    e.write(target, size === 64 || size === 32 ? e.byteSwap(e.read(target), size) : e.int(0));
  },
});

export const CMOVCC = instruction("CMOVcc", {
  source: sdm("2A", "CMOVcc - Conditional Move"),
  forms: [form("0F 40+cc /r", "rv, r/mv")],
  semantics(e, [target, source]) {
    // The source is read whatever the condition, and 32 bits are written, so the upper half is cleared either way
    const value = e.read(source);
    const old = e.read(target);
    e.write(target, e.select(e.formCondition(), value, old));
  },
});

export const SETCC = instruction("SETcc", {
  source: sdm("2B", "SETcc - Set Byte on Condition"),
  forms: [form("0F 90+cc /r", "r/m8")],
  semantics(e, [target]) {
    e.write(target, e.toInt(e.formCondition()));
  },
});

export const LEA = instruction("LEA", {
  source: sdm("2A", "LEA - Load Effective Address"),
  forms: [form("8D /r", "rv, m")],
  semantics(e, [target, source]) {
    e.write(target, e.truncate(e.address(source), e.size));
  },
});

export const CBW = instruction("CBW/CWDE/CDQE", {
  source: sdm("2A", "CBW/CWDE/CDQE - Convert Byte to Word/Convert Word to Doubleword/Convert Doubleword to Quadword"),
  forms: [form("98", "", "sized")],
  semantics(e) {
    const half = (e.size / 2) as Size;
    e.setReg(RAX, e.size, e.truncate(e.signExtend(e.reg(RAX, half), half), e.size));
  },
});

export const CWD = instruction("CWD/CDQ/CQO", {
  source: sdm("2A", "CWD/CDQ/CQO - Convert Word to Doubleword/Convert Doubleword to Quadword"),
  forms: [form("99", "", "sized")],
  semantics(e) {
    const { size } = e;
    const sign = e.sar(e.signExtend(e.reg(RAX, size), size), e.int(63), 64);
    e.setReg(RDX, size, e.truncate(sign, size));
  },
});

export const XLAT = instruction("XLAT", {
  source: sdm("2C", "XLAT/XLATB - Table Look-up Translation"),
  forms: [form("D7", "", "byte")],
  semantics(e) {
    const offset = e.and(e.add(e.reg(RBX, 64), e.reg(RAX, 8), 64), e.addressMask());
    e.setReg(RAX, 8, e.loadDefault(offset, 8));
  },
});

export const NOP = instruction("NOP", {
  source: sdm("2B", "NOP - No Operation"),
  // 0F 0D and 0F 18 to 0F 1F are hints: prefetches, ENDBR64 and what silicon without the feature ignores. No memory is touched
  forms: [
    form("90", ""),
    form("0F 0D /r", "r/mv"),
    form("0F 18 /r", "r/mv"),
    form("0F 19 /r", "r/mv"),
    form("0F 1A /r", "r/mv"),
    form("0F 1B /r", "r/mv"),
    form("0F 1C /r", "r/mv"),
    form("0F 1D /r", "r/mv"),
    form("0F 1E /r", "r/mv"),
    form("0F 1F /r", "r/mv"),
  ],
  semantics() {},
});

export const CLFLUSH = instruction("CLFLUSH", {
  source: sdm("2A", "CLFLUSH - Flush Cache Line"),
  forms: [form("NP 0F AE /7", "m8")],
  semantics(e, [line]) {
    // There is no cache to flush, but it faults as a load of the byte would
    e.read(line);
  },
});

export const FENCES = instruction("LFENCE/MFENCE/SFENCE", {
  source: sdm("2A", "LFENCE - Load Fence"),
  forms: [form("NP 0F AE E8+i", ""), form("NP 0F AE F0+i", ""), form("NP 0F AE F8+i", "")],
  // Guest code runs in program order on one CPU for each bank
  semantics() {},
});

export const moves: readonly Instruction[] = [
  MOV,
  MOV_FROM_OFFSET,
  MOV_TO_OFFSET,
  MOVZX,
  MOVSX,
  XCHG,
  BSWAP,
  CMOVCC,
  SETCC,
  LEA,
  CBW,
  CWD,
  XLAT,
  NOP,
  CLFLUSH,
  FENCES,
];
