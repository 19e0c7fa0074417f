/** Integer instructions that processors gained one by one: MOVBE, CRC32, ADX, random numbers, and the bases of FS and GS (FSGSBASE). */
import { FS, GS, SEG_BASE, SEG_EFFECTIVE_BASE, segmentOffset, state } from "../cpu-state.ts";
import type { Bool, Emitter, Int } from "../emitter.ts";
import { type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";

function swapBytes(e: Emitter, value: Int): Int {
  if (e.size === 64) return e.byteSwap(value, 64);
  const swapped = e.byteSwap(value, 32);
  return e.size === 32 ? swapped : e.shr(swapped, e.int(16));
}

export const MOVBE = instruction("MOVBE", {
  source: sdm("2B", "MOVBE - Move Data After Swapping Bytes"),
  forms: [form("NFx 0F 38 F0 /r", "rv, mv"), form("NFx 0F 38 F1 /r", "mv, rv")],
  semantics(e, [target, operand]) {
    e.write(target, swapBytes(e, e.read(operand)));
  },
});

export const CRC32 = instruction("CRC32", {
  source: sdm("2A", "CRC32 - Accumulate CRC32 Value"),
  forms: [form("F2 0F 38 F0 /r", "ry, r/m8"), form("F2 0F 38 F1 /r", "ry, r/mv")],
  semantics(e, [target, operand]) {
    const data = e.read(operand);
    const crc = e.low32(e.read(target));
    const high = e.low32(e.shr(data, e.int(32)));
    e.write(target, e.fromI32(e.helper("crc32c", crc, e.low32(data), high, e.sizeOf(operand) / 8)));
  },
});

/** An addition whose carry goes in and out by one flag, the others staying as they are. */
function carryChain(mnemonic: string, title: string, prefix: string, flag: "CF" | "OF"): Instruction {
  return instruction(mnemonic, {
    source: sdm("2A", title),
    forms: [form(`${prefix} 0F 38 F6 /r`, "ry, r/my")],
    semantics(e, [target, operand]) {
      const a = e.read(operand);
      const b = e.read(target);
      const carry = e.toInt(e.flag(flag));
      const partial = e.add(a, b);
      const sum = e.add(partial, carry);
      const carries: Bool = e.or1(e.ltu(partial, a), e.ltu(sum, carry));
      e.write(target, sum);
      e.setFlag(flag, carries);
    },
  });
}
export const ADCX = carryChain("ADCX", "ADCX - Unsigned Integer Addition of Two Operands With Carry Flag", "66", "CF");
export const ADOX = carryChain("ADOX", "ADOX - Unsigned Integer Addition of Two Operands With Overflow Flag", "F3", "OF");

/** Every request is served at once: CF, and the other arithmetic flags clear. */
function random(mnemonic: string, title: string, digit: number): Instruction {
  return instruction(mnemonic, {
    source: sdm("2B", title),
    forms: [form(`NFx 0F C7 /${digit}`, "rv=rm")],
    semantics(e, [target]) {
      e.helper("randomNumber", mnemonic === "RDSEED" ? 1 : 0);
      e.write(target, e.truncate(e.state(state.helper, 64), e.size));
      e.recordComparison(e.int(1));
    },
  });
}
export const RDRAND = random("RDRAND", "RDRAND - Read Random Number", 6);
export const RDSEED = random("RDSEED", "RDSEED - Read Random SEED", 7);

export const RDPID = instruction("RDPID", {
  source: sdm("2B", "RDPID - Read Processor ID"),
  forms: [form("F3 0F C7 /7", "rd64=rm")],
  semantics(e, [target]) {
    e.helper("requireProcessorId");
    e.write(target, e.state(state.tscAux, 32));
  },
});

const CR4_FSGSBASE = 16;
/** One of RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE: `body` with the bank offset of the segment's slot. */
function baseAccess(
  mnemonic: string,
  title: string,
  digit: number,
  slot: number,
  body: (e: Emitter, operand: FormOperand, slot: number) => void,
): Instruction {
  return instruction(mnemonic, {
    source: sdm("2B", title),
    forms: [form(`F3 0F AE /${digit}`, "ry=rm", "only64")],
    semantics(e, [operand]) {
      e.raiseIf(e.not1(e.bit(e.state(state.cr4, 64), CR4_FSGSBASE)), "#UD");
      body(e, operand, slot);
    },
  });
}
function readBase(e: Emitter, operand: FormOperand, slot: number): void {
  e.write(operand, e.truncate(e.state(slot + SEG_BASE, 64), e.size));
}
function writeBase(e: Emitter, operand: FormOperand, slot: number): void {
  const base = e.read(operand);
  const sign = e.sar(base, e.int(47), 64);
  // 48 bits do not hold it: the processor's addresses may be wider, whatever the paging mode
  e.if(e.ltu(e.int(1), e.add(sign, e.int(1), 64)), () => {
    e.helper("checkWideBase", e.low32(e.shr(base, e.int(32))));
  });
  e.setState(slot + SEG_BASE, 64, base);
  e.setState(slot + SEG_EFFECTIVE_BASE, 64, base);
}
const READ_TITLE = "RDFSBASE/RDGSBASE - Read FS/GS Segment Base";
const WRITE_TITLE = "WRFSBASE/WRGSBASE - Write FS/GS Segment Base";
const segmentBases = [
  baseAccess("RDFSBASE", READ_TITLE, 0, segmentOffset(FS), readBase),
  baseAccess("RDGSBASE", READ_TITLE, 1, segmentOffset(GS), readBase),
  baseAccess("WRFSBASE", WRITE_TITLE, 2, segmentOffset(FS), writeBase),
  baseAccess("WRGSBASE", WRITE_TITLE, 3, segmentOffset(GS), writeBase),
];

/** What user-mode programs on silicon can be compared with. */
export const comparableExtensions: readonly Instruction[] = [MOVBE, CRC32, ADCX, ADOX];
/** What depends on the machine. */
export const machineExtensions: readonly Instruction[] = [RDRAND, RDSEED, RDPID, ...segmentBases];
