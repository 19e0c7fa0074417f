/**
 * String instructions. A repeated form does one element, or one run of elements within a page (bulk, in string-helpers.ts), and
 * then runs again, so that events are taken between iterations and a fault leaves rCX, rSI and rDI at the element that faulted.
 */
import { ES, RAX, RCX, RDI, RSI, state } from "../cpu-state.ts";
import type { Emitter, Int } from "../emitter.ts";
import { type Form, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { behaves, VendorBehaviour } from "../vendor-behaviour.ts";
import { setCounter } from "./counters.ts";

const DF_BIT = 10;

/** Forms of the byte opcode and the one after it, for the given prefixes. */
function stringForms(opcode: number, prefixes: readonly string[]): Form[] {
  const hex = (n: number): string => n.toString(16).toUpperCase();
  return prefixes.flatMap((prefix) => [
    form(`${prefix}${hex(opcode)}`, "", "byte", "rep"),
    form(`${prefix}${hex(opcode + 1)}`, "", "sized", "rep"),
  ]);
}

/** Moves, stores and loads repeat under either prefix. */
const EITHER = ["F3 ", "F2 "];

/** What to add to a pointer after an element: its bytes, negative when DF is set. */
function elementStep(e: Emitter): Int {
  const bytes = e.size / 8;
  const isDown = e.bit(e.state(state.systemFlags, 32), DF_BIT);
  return e.select(isDown, e.int(-bytes), e.int(bytes));
}

function pointer(e: Emitter, register: number): Int {
  return e.and(e.reg(register, 64), e.addressMask());
}

function advance(e: Emitter, register: number, old: Int, step: Int): void {
  setCounter(e, register, e.and(e.add(old, step, 64), e.addressMask()));
}

function moveElement(e: Emitter): void {
  const from = pointer(e, RSI);
  const to = pointer(e, RDI);
  e.store(ES, to, e.size, e.loadDefault(from, e.size));
  const step = elementStep(e);
  advance(e, RSI, from, step);
  advance(e, RDI, to, step);
}

function storeElement(e: Emitter): void {
  const to = pointer(e, RDI);
  e.store(ES, to, e.size, e.reg(RAX, e.size));
  advance(e, RDI, to, elementStep(e));
}

function loadElement(e: Emitter): void {
  const from = pointer(e, RSI);
  const value = e.loadDefault(from, e.size);
  e.setReg(RAX, e.size, value);
  advance(e, RSI, from, elementStep(e));
}

/** What an element compares. */
interface Compared {
  readonly a: Int;
  readonly b: Int;
}

function compareElement(e: Emitter): Compared {
  const from = pointer(e, RSI);
  const to = pointer(e, RDI);
  const a = e.loadDefault(from, e.size);
  const b = e.load(ES, to, e.size);
  const step = elementStep(e);
  advance(e, RSI, from, step);
  advance(e, RDI, to, step);
  return { a, b };
}

function scanElement(e: Emitter): Compared {
  const to = pointer(e, RDI);
  const a = e.reg(RAX, e.size);
  const b = e.load(ES, to, e.size);
  advance(e, RDI, to, elementStep(e));
  return { a, b };
}

function recordComparison(e: Emitter, { a, b }: Compared): void {
  e.recordFlags("sub", a, b, e.sub(a, b));
}

/** Before anything of a repeated instruction: `registers` whose upper halves some vendors' processors clear with 32-bit addresses. */
function beginRepeated(e: Emitter, registers: readonly number[]): void {
  const all = registers.map((register) => e.reg(register, 64)).reduce((a, b) => e.or(a, b));
  // Never true of 64-bit addresses, whose mask is all ones
  e.if(e.ltu(e.or(e.addressMask(), e.int(0xffff_ffff)), all), () => {
    e.helper(
      "clearUpperHalves",
      registers.reduce((mask, register) => mask | (1 << register), 0),
    );
  });
}

/** One iteration of LODS if rCX is not zero, and again while it is not. */
function repeatedLoad(e: Emitter): void {
  beginRepeated(e, [RCX]);
  const count = pointer(e, RCX);
  e.if(e.ne(count, e.int(0)), () => {
    loadElement(e);
    const left = e.sub(count, e.int(1), 64);
    setCounter(e, RCX, left);
    e.if(e.ne(left, e.int(0)), () => e.repeat());
  });
}

/** One iteration of a comparison if rCX is not zero, and again while it is not and the elements are equal, or are not. */
function repeatedComparison(e: Emitter, element: (e: Emitter) => Compared, isWhileEqual: boolean): void {
  beginRepeated(e, [RCX]);
  const count = pointer(e, RCX);
  e.if(e.ne(count, e.int(0)), () => {
    const compared = element(e);
    const left = e.sub(count, e.int(1), 64);
    setCounter(e, RCX, left);
    const isEqual = e.eq(compared.a, compared.b);
    e.if(
      e.and1(e.ne(left, e.int(0)), isWhileEqual ? isEqual : e.not1(isEqual)),
      () => {
        e.if(e.not1(behaves(e, VendorBehaviour.scanSetsFlagsAtEnd)), () => recordComparison(e, compared));
        e.repeat();
      },
      () => recordComparison(e, compared),
    );
  });
}

/** The same with a helper that does a run of elements, registers included, where it can; it returns 0 where it cannot. */
function repeatedInBulk(e: Emitter, element: (e: Emitter) => void, kind: "move" | "store"): void {
  e.stringRun(kind, () => {
    beginRepeated(e, kind === "move" ? [RCX, RSI, RDI] : [RCX, RDI]);
    const count = pointer(e, RCX);
    e.if(e.ne(count, e.int(0)), () => {
      e.if(e.isZero(e.fromI32(e.helper(`${kind}Run`, e.size / 8))), () => {
        element(e);
        setCounter(e, RCX, e.sub(count, e.int(1), 64));
      });
      e.if(e.ne(pointer(e, RCX), e.int(0)), () => e.repeat());
    });
  });
}

const MOVS_SOURCE = sdm("2B", "MOVS/MOVSB/MOVSW/MOVSD/MOVSQ - Move Data From String to String");
const STOS_SOURCE = sdm("2B", "STOS/STOSB/STOSW/STOSD/STOSQ - Store String");
const LODS_SOURCE = sdm("2A", "LODS/LODSB/LODSW/LODSD/LODSQ - Load String");
const CMPS_SOURCE = sdm("2A", "CMPS/CMPSB/CMPSW/CMPSD/CMPSQ - Compare String Operands");
const SCAS_SOURCE = sdm("2B", "SCAS/SCASB/SCASW/SCASD - Scan String");

export const MOVS = instruction("MOVS", {
  source: MOVS_SOURCE,
  forms: stringForms(0xa4, [""]),
  semantics: moveElement,
});

export const REP_MOVS = instruction("REP MOVS", {
  source: MOVS_SOURCE,
  forms: stringForms(0xa4, EITHER),
  semantics: (e) => repeatedInBulk(e, moveElement, "move"),
});

export const STOS = instruction("STOS", {
  source: STOS_SOURCE,
  forms: stringForms(0xaa, [""]),
  semantics: storeElement,
});

export const REP_STOS = instruction("REP STOS", {
  source: STOS_SOURCE,
  forms: stringForms(0xaa, EITHER),
  semantics: (e) => repeatedInBulk(e, storeElement, "store"),
});

export const LODS = instruction("LODS", {
  source: LODS_SOURCE,
  forms: stringForms(0xac, [""]),
  semantics: loadElement,
});

export const REP_LODS = instruction("REP LODS", {
  source: LODS_SOURCE,
  forms: stringForms(0xac, EITHER),
  semantics: repeatedLoad,
});

export const CMPS = instruction("CMPS", {
  source: CMPS_SOURCE,
  forms: stringForms(0xa6, [""]),
  semantics: (e) => recordComparison(e, compareElement(e)),
});

export const REPE_CMPS = instruction("REPE CMPS", {
  source: CMPS_SOURCE,
  forms: stringForms(0xa6, ["F3 "]),
  semantics: (e) => repeatedComparison(e, compareElement, true),
});

export const REPNE_CMPS = instruction("REPNE CMPS", {
  source: CMPS_SOURCE,
  forms: stringForms(0xa6, ["F2 "]),
  semantics: (e) => repeatedComparison(e, compareElement, false),
});

export const SCAS = instruction("SCAS", {
  source: SCAS_SOURCE,
  forms: stringForms(0xae, [""]),
  semantics: (e) => recordComparison(e, scanElement(e)),
});

export const REPE_SCAS = instruction("REPE SCAS", {
  source: SCAS_SOURCE,
  forms: stringForms(0xae, ["F3 "]),
  semantics: (e) => repeatedComparison(e, scanElement, true),
});

export const REPNE_SCAS = instruction("REPNE SCAS", {
  source: SCAS_SOURCE,
  forms: stringForms(0xae, ["F2 "]),
  semantics: (e) => repeatedComparison(e, scanElement, false),
});

export const strings: readonly Instruction[] = [
  MOVS,
  REP_MOVS,
  STOS,
  REP_STOS,
  LODS,
  REP_LODS,
  CMPS,
  REPE_CMPS,
  REPNE_CMPS,
  SCAS,
  REPE_SCAS,
  REPNE_SCAS,
];
