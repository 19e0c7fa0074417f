/**
 * x87 rows: loads, stores, arithmetic, comparison, transcendentals. All computing is done by the helpers of fpu/; a row fetches
 * the memory operand, which may fault, before its helper changes anything, and a store writes memory before the second helper
 * commits flags and the pop.
 */

import type { Emitter, Size } from "../emitter.ts";
import { ARITHMETIC, SOURCE } from "../fpu/x87-arithmetic.ts";
import { OPERAND_ADDRESS, VALUE } from "../fpu/x87-state.ts";
import { type Form, type FormOperand, form, type Instruction, instruction, sdm } from "../instruction.ts";

function title(mnemonic: string): string {
  return sdm("2A", `x87 FPU Instructions, ${mnemonic}`);
}

/** Leaves the address of a memory operand where helpers look for it. */
function noteAddress(e: Emitter, operand: FormOperand): void {
  e.setState(OPERAND_ADDRESS, 64, e.address(operand));
}
/** Loads a memory operand into the slot that helpers read it from. */
function passValue(e: Emitter, operand: FormOperand): void {
  const value = e.read(operand);
  e.setState(VALUE, 64, value);
  noteAddress(e, operand);
}

function row(mnemonic: string, forms: readonly Form[], semantics: Instruction["semantics"]): Instruction {
  return instruction(mnemonic, { source: title(mnemonic), requires: ["fpu"], forms, semantics });
}
/** A row that is no more than its helper. */
function call(mnemonic: string, opcode: string, helper: string, ...args: number[]): Instruction {
  return row(mnemonic, [form(opcode, "")], (e) => {
    e.helper(helper, ...args);
  });
}

/** The kind of memory operand by its opcode byte: D8 single, DC double, DA int32, DE int16. */
const MEMORY_KINDS = [
  { byte: "D8", source: SOURCE.single, operand: "m32", prefix: "F" },
  { byte: "DC", source: SOURCE.double, operand: "m64", prefix: "F" },
  { byte: "DA", source: SOURCE.int32, operand: "m32", prefix: "FI" },
  { byte: "DE", source: SOURCE.int16, operand: "m16", prefix: "FI" },
] as const;

/** mode: 0 ST(0) op= source, 1 ST(i) op= ST(0), 2 the same and pop. */
function arithmeticRows(
  name: string,
  digit: number,
  operation: number,
  reversedOperation: number,
  reversedName = name,
): Instruction[] {
  // With ST(i) as the destination the two subtractions and the two divisions trade places in the opcode map.
  const low = (0xc0 + digit * 8).toString(16).toUpperCase();
  const registers = (mnemonic: string, byte: string, op: number, mode: number): Instruction =>
    row(mnemonic, [form(`${byte} ${low}+i`, "st(i)")], (e, [register]) => {
      e.helper("fpuArithmetic", op, SOURCE.register, e.low32(e.read(register)), mode);
    });
  const memory = MEMORY_KINDS.map(({ byte, source, operand, prefix }) =>
    row(`${prefix}${name}`, [form(`${byte} /${digit}`, operand)], (e, [source_]) => {
      passValue(e, source_);
      e.helper("fpuArithmetic", operation, source, 0, 0);
    }),
  );
  return [
    ...memory,
    registers(`F${name}`, "D8", operation, 0),
    registers(`F${reversedName}`, "DC", reversedOperation, 1),
    registers(`F${reversedName}P`, "DE", reversedOperation, 2),
  ];
}

/**
 * Operations here are "destination op source" for mode 0; the helper of the other modes takes ST(i) as the destination, so the
 * opcode's digit 4 (FSUB with ST(0), FSUBR with ST(i)) stands for the reverse there.
 */
const basic = [
  ...arithmeticRows("ADD", 0, ARITHMETIC.add, ARITHMETIC.add),
  ...arithmeticRows("MUL", 1, ARITHMETIC.multiply, ARITHMETIC.multiply),
  ...arithmeticRows("SUB", 4, ARITHMETIC.subtract, ARITHMETIC.subtractReverse, "SUBR"),
  ...arithmeticRows("SUBR", 5, ARITHMETIC.subtractReverse, ARITHMETIC.subtract, "SUB"),
  ...arithmeticRows("DIV", 6, ARITHMETIC.divide, ARITHMETIC.divideReverse, "DIVR"),
  ...arithmeticRows("DIVR", 7, ARITHMETIC.divideReverse, ARITHMETIC.divide, "DIV"),
];

function compareRows(name: string, digit: number, pops: number): Instruction[] {
  return MEMORY_KINDS.map(({ byte, source, operand, prefix }) =>
    row(`${prefix}${name}`, [form(`${byte} /${digit}`, operand)], (e, [source_]) => {
      passValue(e, source_);
      e.helper("fpuCompare", source, 0, pops, 0);
    }),
  );
}
function compareRegister(mnemonic: string, opcodes: readonly string[], pops: number, unordered: number): Instruction {
  const forms = opcodes.map((opcode) => form(opcode, "st(i)"));
  return row(mnemonic, forms, (e, [register]) => {
    e.helper("fpuCompare", SOURCE.register, e.low32(e.read(register)), pops, unordered);
  });
}
/** FCOMI and its kin set ZF, PF and CF; OF, SF and AF are cleared. */
function compareFlags(mnemonic: string, opcode: string, pops: number, unordered: number): Instruction {
  return row(mnemonic, [form(opcode, "st(i)")], (e, [register]) => {
    const result = e.fromI32(e.helper("fpuCompareFlags", e.low32(e.read(register)), pops, unordered));
    e.if(e.isZero(e.and(result, e.int(0x8000_0000))), () => {
      e.writeArithmeticFlags(e.or(e.and(e.readFlags(), e.int(0x400)), result));
    });
  });
}

const comparisons = [
  ...compareRows("COM", 2, 0),
  ...compareRows("COMP", 3, 1),
  compareRegister("FCOM", ["D8 D0+i", "DC D0+i"], 0, 0),
  compareRegister("FCOMP", ["D8 D8+i", "DC D8+i", "DE D0+i"], 1, 0),
  compareRegister("FUCOM", ["DD E0+i"], 0, 1),
  compareRegister("FUCOMP", ["DD E8+i"], 1, 1),
  call("FCOMPP", "DE D9", "fpuCompare", SOURCE.register, 1, 2, 0),
  call("FUCOMPP", "DA E9", "fpuCompare", SOURCE.register, 1, 2, 1),
  compareFlags("FCOMI", "DB F0+i", 0, 0),
  compareFlags("FUCOMI", "DB E8+i", 0, 1),
  compareFlags("FCOMIP", "DF F0+i", 1, 0),
  compareFlags("FUCOMIP", "DF E8+i", 1, 1),
  call("FTST", "D9 E4", "fpuTest"),
  call("FXAM", "D9 E5", "fpuExamine"),
];

function load(mnemonic: string, opcode: string, operand: string, helper: string, ...args: number[]): Instruction {
  return row(mnemonic, [form(opcode, operand)], (e, [source]) => {
    passValue(e, source);
    e.helper(helper, ...args);
  });
}
/** A store in two halves, see the head of this file. */
function store(
  mnemonic: string,
  opcode: string,
  bits: Size,
  pops: number,
  helper: string,
  ...args: readonly number[]
): Instruction {
  return row(mnemonic, [form(opcode, `m${bits}`)], (e, [target]) => {
    noteAddress(e, target);
    const proceeds = e.helper(helper, bits, ...args);
    e.if(proceeds, () => {
      e.write(target, e.state(VALUE, bits));
      e.helper("fpuStored", pops);
    });
  });
}
function withRegister(mnemonic: string, opcodes: readonly string[], helper: string, ...args: number[]): Instruction {
  const forms = opcodes.map((opcode) => form(opcode, "st(i)"));
  return row(mnemonic, forms, (e, [register]) => {
    e.helper(helper, e.low32(e.read(register)), ...args);
  });
}
/** 80-bit and decimal operands: the helper goes to memory itself. */
function extended(mnemonic: string, opcode: string, helper: string): Instruction {
  return row(mnemonic, [form(opcode, "m")], (e, [operand]) => {
    noteAddress(e, operand);
    e.helper(helper);
  });
}

const transfers = [
  load("FLD", "D9 /0", "m32", "fpuLoadSingle"),
  load("FLD", "DD /0", "m64", "fpuLoadDouble"),
  extended("FLD", "DB /5", "fpuLoadExtended"),
  withRegister("FLD", ["D9 C0+i"], "fpuLoadRegister"),
  load("FILD", "DF /0", "m16", "fpuLoadInteger", SOURCE.int16),
  load("FILD", "DB /0", "m32", "fpuLoadInteger", SOURCE.int32),
  load("FILD", "DF /5", "m64", "fpuLoadInteger", SOURCE.int64),
  extended("FBLD", "DF /4", "fpuLoadDecimal"),
  store("FST", "D9 /2", 32, 0, "fpuStoreSingle"),
  store("FST", "DD /2", 64, 0, "fpuStoreDouble"),
  store("FSTP", "D9 /3", 32, 1, "fpuStoreSingle"),
  store("FSTP", "DD /3", 64, 1, "fpuStoreDouble"),
  extended("FSTP", "DB /7", "fpuStoreExtended"),
  withRegister("FST", ["DD D0+i"], "fpuStoreRegister", 0),
  // The last two are old aliases that processors still execute, and so is the row after.
  withRegister("FSTP", ["DD D8+i", "DF D0+i", "DF D8+i"], "fpuStoreRegister", 1),
  withRegister("FSTPNCE", ["D9 D8+i"], "fpuStoreUnchecked"),
  store("FIST", "DF /2", 16, 0, "fpuStoreInteger"),
  store("FIST", "DB /2", 32, 0, "fpuStoreInteger"),
  store("FISTP", "DF /3", 16, 1, "fpuStoreInteger"),
  store("FISTP", "DB /3", 32, 1, "fpuStoreInteger"),
  store("FISTP", "DF /7", 64, 1, "fpuStoreInteger"),
  store("FISTTP", "DF /1", 16, 1, "fpuStoreInteger", 1),
  store("FISTTP", "DB /1", 32, 1, "fpuStoreInteger", 1),
  store("FISTTP", "DD /1", 64, 1, "fpuStoreInteger", 1),
  extended("FBSTP", "DF /6", "fpuStoreDecimal"),
  withRegister("FXCH", ["D9 C8+i", "DD C8+i", "DF C8+i"], "fpuExchange"),
  withRegister("FFREE", ["DD C0+i"], "fpuFree", 0),
  withRegister("FFREEP", ["DF C0+i"], "fpuFree", 1),
];

/** FCMOVcc: B E BE U as condition codes 2 4 6 10, and their opposites. */
const conditionalMoves = [
  ["FCMOVB", "DA C0+i", 2],
  ["FCMOVE", "DA C8+i", 4],
  ["FCMOVBE", "DA D0+i", 6],
  ["FCMOVU", "DA D8+i", 10],
  ["FCMOVNB", "DB C0+i", 3],
  ["FCMOVNE", "DB C8+i", 5],
  ["FCMOVNBE", "DB D0+i", 7],
  ["FCMOVNU", "DB D8+i", 11],
] as const;

const moves = conditionalMoves.map(([mnemonic, opcode, condition]) =>
  row(mnemonic, [form(opcode, "st(i)")], (e, [register]) => {
    e.helper("fpuMove", e.low32(e.read(register)), e.condition(condition));
  }),
);

const constants = ["FLD1", "FLDL2T", "FLDL2E", "FLDPI", "FLDLG2", "FLDLN2", "FLDZ"].map((mnemonic, number) =>
  call(mnemonic, `D9 ${(0xe8 + number).toString(16).toUpperCase()}`, "fpuLoadConstant", number),
);

const functions = [
  call("FCHS", "D9 E0", "fpuChangeSign"),
  call("FABS", "D9 E1", "fpuAbsolute"),
  call("F2XM1", "D9 F0", "fpuExponential"),
  call("FYL2X", "D9 F1", "fpuLogarithm"),
  call("FPTAN", "D9 F2", "fpuTangent"),
  call("FPATAN", "D9 F3", "fpuArctangent"),
  call("FXTRACT", "D9 F4", "fpuExtract"),
  call("FPREM1", "D9 F5", "fpuRemainder", 1),
  call("FDECSTP", "D9 F6", "fpuTurnStack", 7),
  call("FINCSTP", "D9 F7", "fpuTurnStack", 1),
  call("FPREM", "D9 F8", "fpuRemainder", 0),
  call("FYL2XP1", "D9 F9", "fpuLogarithmOnePlus"),
  call("FSQRT", "D9 FA", "fpuSquareRoot"),
  call("FSINCOS", "D9 FB", "fpuSineCosine"),
  call("FRNDINT", "D9 FC", "fpuRoundToInteger"),
  call("FSCALE", "D9 FD", "fpuScale"),
  call("FSIN", "D9 FE", "fpuSine"),
  call("FCOS", "D9 FF", "fpuCosine"),
];

export const x87: readonly Instruction[] = [...basic, ...comparisons, ...transfers, ...moves, ...constants, ...functions];
