/**
 * String instructions. A repeated form does one element, or one run of elements within a page (bulk, in string-helpers.ts), and
 * then runs again, so that events are taken between iterations and a fault leaves rCX, rSI and rDI at the element that faulted.
 */
import { ES, RAX, RCX, RDI, RSI, state } from "../cpu-state.ts";
import type { Bool, Emitter, Int } from "../emitter.ts";
import { type Form, form, type Instruction, instruction, sdm } from "../instruction.ts";
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

function compareElement(e: Emitter): void {
  const from = pointer(e, RSI);
  const to = pointer(e, RDI);
  const a = e.loadDefault(from, e.size);
  const b = e.load(ES, to, e.size);
  const step = elementStep(e);
  advance(e, RSI, from, step);
  advance(e, RDI, to, step);
  e.recordFlags("sub", a, b, e.sub(a, b));
}

function scanElement(e: Emitter): void {
  const to = pointer(e, RDI);
  const a = e.reg(RAX, e.size);
  const b = e.load(ES, to, e.size);
  advance(e, RDI, to, elementStep(e));
  e.recordFlags("sub", a, b, e.sub(a, b));
}

/** One iteration of `element` if rCX is not zero, and again while it is not and `goesOn` (evaluated after the element) holds. */
function repeated(e: Emitter, element: (e: Emitter) => void, goesOn?: () => Bool): void {
  const count = pointer(e, RCX);
  e.if(e.ne(count, e.int(0)), () => {
    element(e);
    const left = e.sub(count, e.int(1), 64);
    setCounter(e, RCX, left);
    const isLeft = e.ne(left, e.int(0));
    e.if(goesOn ? e.and1(isLeft, goesOn()) : isLeft, () => e.repeat());
  });
}

/** The same with a helper that does a run of elements, registers included, where it can; it returns 0 where it cannot. */
function repeatedInBulk(e: Emitter, element: (e: Emitter) => void, kind: "move" | "store"): void {
  e.stringRun(kind, () => {
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
  semantics: (e) => repeated(e, loadElement),
});

export const CMPS = instruction("CMPS", {
  source: CMPS_SOURCE,
  forms: stringForms(0xa6, [""]),
  semantics: compareElement,
});

export const REPE_CMPS = instruction("REPE CMPS", {
  source: CMPS_SOURCE,
  forms: stringForms(0xa6, ["F3 "]),
  semantics: (e) => repeated(e, compareElement, () => e.flag("ZF")),
});

export const REPNE_CMPS = instruction("REPNE CMPS", {
  source: CMPS_SOURCE,
  forms: stringForms(0xa6, ["F2 "]),
  semantics: (e) => repeated(e, compareElement, () => e.not1(e.flag("ZF"))),
});

export const SCAS = instruction("SCAS", {
  source: SCAS_SOURCE,
  forms: stringForms(0xae, [""]),
  semantics: scanElement,
});

export const REPE_SCAS = instruction("REPE SCAS", {
  source: SCAS_SOURCE,
  forms: stringForms(0xae, ["F3 "]),
  semantics: (e) => repeated(e, scanElement, () => e.flag("ZF")),
});

export const REPNE_SCAS = instruction("REPNE SCAS", {
  source: SCAS_SOURCE,
  forms: stringForms(0xae, ["F2 "]),
  semantics: (e) => repeated(e, scanElement, () => e.not1(e.flag("ZF"))),
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
