/**
 * Reads the opcode and operand columns of a form (instruction.ts documents the syntax) into what the decoder's tables and the
 * variants are made of. A column that it does not understand is a mistake in the row and throws with the form's text.
 */
import type { Form } from "../instruction.ts";

export type OperandSize = 8 | 16 | 32 | 64;
/** A size as a form names it: bits, or v (operand size), y (32, or 64 with REX.W), z (16 or 32), d64 (64 in 64-bit mode, else 32). */
export type SizeName = number | "v" | "y" | "z" | "d64";

/** Where the number of a register operand is encoded. */
export type RegisterSource = "reg" | "rm" | "opcode" | "zero" | "vvvv" | "is4";
export type RegisterClass = "gpr" | "xmm" | "mm" | "segmentRegister" | "controlRegister" | "debugRegister" | "stackIndex";

export interface ParsedOperand {
  readonly text: string;
  /** Present when the operand can be a register that the instruction encodes. */
  readonly register?: { readonly source: RegisterSource; readonly class: RegisterClass; readonly size: SizeName };
  /** Present when it can be in memory: its size there, in bits. */
  readonly memory?: {
    readonly size: SizeName /** Bits after the part of that size: selectors of far pointers. */;
    readonly extra: number;
    /** Its index register is a vector (VSIB addressing). */
    readonly vectorIndex?: true;
  };
  /** Present when it is something else. */
  readonly other?:
    | { readonly kind: "fixedGpr"; readonly register: number; readonly size: SizeName }
    | { readonly kind: "immediate"; readonly size: SizeName }
    | { readonly kind: "constant"; readonly value: number }
    | { readonly kind: "relative" }
    | { readonly kind: "farPointer" };
}

export type ImmediateKind =
  | "none"
  | "byte"
  | "byteSigned"
  | "word"
  | "dword"
  | "qword"
  | "z"
  | "v"
  | "relative8"
  | "relativeZ"
  | "moffs"
  | "far"
  | "wordByte"
  | "register";

export type PrefixRule = "any" | "NP" | "NFx" | "66" | "F3" | "F2";

export interface ParsedForm {
  readonly form: Form;
  /** 0 one-byte opcodes, 1 after 0F, 2 after 0F 38, 3 after 0F 3A; 5 to 7 the last three after a VEX prefix. */
  readonly map: number;
  /** VEX.L that the form takes; "any" without a VEX prefix. */
  readonly vexLength: 0 | 1 | "any";
  readonly opcode: number;
  /** Opcodes from `opcode` on that belong to the form: up to the last register (8 or less) for +r, 16 for +cc, else 1. */
  readonly opcodeCount: number;
  readonly isConditional: boolean;
  readonly prefix: PrefixRule;
  readonly wide: boolean;
  /** Without VEX.W only. */
  readonly narrow: boolean;
  readonly hasModrm: boolean;
  readonly digit: number | undefined;
  readonly modrmByte: number | undefined;
  readonly modrmCount: 1 | 8;
  readonly mod: "any" | "register" | "memory";
  readonly immediate: ImmediateKind;
  readonly operands: readonly ParsedOperand[];
  /** Operand sizes that the form has variants for, ascending. */
  readonly sizes: readonly OperandSize[];
  /** True when the size follows the mode only (MOV to and from control registers). */
  readonly sizeByMode: boolean;
}

const FIXED_GPRS: Readonly<Record<string, readonly [number, SizeName]>> = {
  AL: [0, 8],
  CL: [1, 8],
  DL: [2, 8],
  BL: [3, 8],
  AX: [0, 16],
  CX: [1, 16],
  DX: [2, 16],
  BX: [3, 16],
  EAX: [0, 32],
  ECX: [1, 32],
  EDX: [2, 32],
  EBX: [3, 32],
  RAX: [0, 64],
  RCX: [1, 64],
  RDX: [2, 64],
  RBX: [3, 64],
  rAX: [0, "v"],
  rCX: [1, "v"],
  rDX: [2, "v"],
  eAX: [0, "z"],
};
const SEGMENTS = ["ES", "CS", "SS", "DS", "FS", "GS"];
const GPR = /^r(8|16|32|64|v|y|z|d64)$/;
const GPR_OR_MEMORY = /^r(8|16|32|64|v|y|z|d64)?\/m(8|16|32|64|v|y|z|d64)$/;
const VECTOR_OR_MEMORY = /^(xmm|ymm|mm)\/m(\d+)$/;
const VECTOR_BITS: Readonly<Record<string, number>> = { xmm: 128, ymm: 256, mm: 64 };
const VECTOR_INDEX = /^vm(32|64)(x|y)$/;
const MEMORY = /^m(\d+|v|y|z)?$/;
const IMMEDIATES: Readonly<Record<string, SizeName>> = {
  imm8: 8,
  imm8sx: "v",
  imm16: 16,
  imm32: 32,
  immz: "v",
  immv: "v",
  "imm16:8": 32,
  moffs8: 64,
  moffsv: 64,
};

function sizeName(text: string): SizeName {
  return /^\d+$/.test(text) ? Number(text) : (text as SizeName);
}

const PLACES: Readonly<Record<string, RegisterSource>> = { rm: "rm", v: "vvvv", is4: "is4" };

/** Parsed operands: rows share a few words. Those with a register of their own in the opcode are apart. */
const parsedOperands = { reg: new Map<string, ParsedOperand>(), opcode: new Map<string, ParsedOperand>() };

function operandOf(text: string, registerSource: "reg" | "opcode"): ParsedOperand {
  let operand = parsedOperands[registerSource].get(text);
  if (operand === undefined) {
    operand = parseOperand(text, registerSource);
    parsedOperands[registerSource].set(text, operand);
  }
  return operand;
}

function parseOperand(text: string, registerSource: RegisterSource): ParsedOperand {
  const [word, place] = text.split("=");
  if (place !== undefined && !(place in PLACES)) throw new SyntaxError(`operand "${text}"`);
  const source = place === undefined ? registerSource : (PLACES[place] as RegisterSource);
  let match = GPR.exec(word);
  if (match) return { text, register: { source, class: "gpr", size: sizeName(match[1]) } };
  match = GPR_OR_MEMORY.exec(word);
  if (match) {
    const size = sizeName(match[1] ?? match[2]);
    return { text, register: { source: "rm", class: "gpr", size }, memory: { size: sizeName(match[2]), extra: 0 } };
  }
  match = VECTOR_OR_MEMORY.exec(word);
  if (match) {
    const size = Number(match[2]);
    const kind = match[1] === "mm" ? "mm" : "xmm";
    return {
      text,
      register: { source: "rm", class: kind, size: VECTOR_BITS[match[1]] as number },
      memory: { size, extra: 0 },
    };
  }
  // Register 0, which no part of the encoding names
  if (word === "XMM0") return { text, register: { source: "zero", class: "xmm", size: 128 } };
  if (word === "xmm" || word === "ymm") return { text, register: { source, class: "xmm", size: VECTOR_BITS[word] as number } };
  if (VECTOR_INDEX.test(word)) return { text, memory: { size: 0, extra: 0, vectorIndex: true } };
  if (word === "mm") return { text, register: { source, class: "mm", size: 64 } };
  if (word === "sreg") return { text, register: { source: "reg", class: "segmentRegister", size: 16 } };
  if (word === "cr") return { text, register: { source: "reg", class: "controlRegister", size: 64 } };
  if (word === "dr") return { text, register: { source: "reg", class: "debugRegister", size: 64 } };
  if (/^st\(i\)$/i.test(word)) return { text, register: { source: "rm", class: "stackIndex", size: 80 } };
  if (/^st(0|\(0\))?$/i.test(word)) return { text, other: { kind: "constant", value: 0 } };
  match = MEMORY.exec(word);
  if (match) return { text, memory: { size: match[1] === undefined ? 0 : sizeName(match[1]), extra: 0 } };
  match = /^m16:(16|32|64|v|z)$/.exec(word);
  if (match) return { text, memory: { size: sizeName(match[1]), extra: 16 } };
  if (/^m\d+[&/]\d+$/.test(word)) return { text, memory: { size: 0, extra: 0 } };
  if (word in IMMEDIATES) return { text, other: { kind: "immediate", size: IMMEDIATES[word] } };
  if (word === "rel8" || word === "relz") return { text, other: { kind: "relative" } };
  if (word === "ptr16:z") return { text, other: { kind: "farPointer" } };
  if (word in FIXED_GPRS) {
    const [register, size] = FIXED_GPRS[word];
    return { text, other: { kind: "fixedGpr", register, size } };
  }
  if (SEGMENTS.includes(word)) return { text, other: { kind: "constant", value: SEGMENTS.indexOf(word) } };
  if (/^\d+$/.test(word)) return { text, other: { kind: "constant", value: Number(word) } };
  throw new SyntaxError(`operand "${text}"`);
}

function immediateKind(tokens: readonly string[], operands: readonly string[]): ImmediateKind {
  const joined = tokens.join(" ");
  switch (joined) {
    case "":
      return "none";
    case "ib":
      return operands.includes("imm8sx") ? "byteSigned" : "byte";
    case "iw":
      return "word";
    case "id":
      return "dword";
    case "io":
      return "qword";
    case "iz":
      return "z";
    case "iv":
      return "v";
    case "cb":
      return "relative8";
    case "cz":
      return "relativeZ";
    case "moffs":
      return "moffs";
    case "iw:iz":
    case "iz:iw":
      return "far";
    case "iw ib":
      return "wordByte";
    case "is4":
      return "register";
    default:
      throw new SyntaxError(`immediate "${joined}"`);
  }
}

const IMMEDIATE_TOKENS = ["is4", "ib", "iw", "id", "io", "iz", "iv", "cb", "cz", "moffs", "iw:iz", "iz:iw"];

function sizeNames(operand: ParsedOperand): SizeName[] {
  const names: SizeName[] = [];
  if (operand.register?.class === "gpr") names.push(operand.register.size);
  if (operand.memory !== undefined && operand.register?.class !== "xmm" && operand.register?.class !== "mm") {
    names.push(operand.memory.size);
  }
  if (operand.other?.kind === "fixedGpr") names.push(operand.other.size);
  if (operand.other?.kind === "immediate" && typeof operand.other.size === "string") names.push(operand.other.size);
  if (operand.other?.kind === "farPointer") names.push("z");
  return names;
}

function formSizes(form: Form, operands: readonly ParsedOperand[], wide: boolean): OperandSize[] {
  if (wide) return [64];
  const has = (attribute: Form["attributes"][number]): boolean => form.attributes.includes(attribute);
  const names = operands.flatMap(sizeNames);
  let sizes: OperandSize[];
  if (names.includes("v") || has("sized") || has("default64") || has("force64")) sizes = [16, 32, 64];
  else if (names.includes("y")) sizes = names.includes("z") ? [16, 32, 64] : [32, 64];
  else if (names.includes("z")) sizes = [16, 32];
  else if (names.includes("d64")) sizes = [32, 64];
  else if (has("byte") || names.includes(8)) return [8];
  else {
    const first = names.find((name): name is OperandSize => name === 16 || name === 32 || name === 64);
    return [first ?? 32];
  }
  return has("invalid64") ? sizes.filter((size) => size !== 64) : sizes;
}

const VEX_MAPS: Readonly<Record<string, number>> = { "0F": 5, "0F38": 6, "0F3A": 7 };
/** "VEX.LZ.F2.0F38.W1": length, prefix (NP when absent), opcode map, and W where the form takes one value only. */
function parseVex(token: string): Pick<ParsedForm, "prefix" | "map" | "wide" | "narrow"> & { length: 0 | 1 | "any" } {
  const parts = token.split(".").slice(1);
  const map = parts.map((part) => VEX_MAPS[part]).find((known) => known !== undefined);
  const isKnown = (part: string): boolean => part in VEX_MAPS || /^(LZ|128|256|LIG|NP|66|F3|F2|W0|W1)$/.test(part);
  if (map === undefined || !parts.every(isKnown)) throw new SyntaxError(`"${token}"`);
  return {
    length: parts.includes("256") ? 1 : parts.includes("LIG") ? "any" : 0,
    prefix: (["66", "F3", "F2"] as const).find((prefix) => parts.includes(prefix)) ?? "NP",
    map,
    wide: parts.includes("W1"),
    narrow: parts.includes("W0"),
  };
}

function parse(form: Form): ParsedForm {
  const tokens = form.opcode.split(/\s+/).filter((token) => token !== "");
  const words = form.operands
    .split(",")
    .map((word) => word.trim())
    .filter((word) => word !== "");
  let at = 0;
  let prefix: PrefixRule = "any";
  let wide = false;
  const prefixes: readonly string[] = ["NP", "NFx", "66", "F3", "F2"];
  for (; prefixes.includes(tokens[at]) || tokens[at] === "REX.W"; at++) {
    if (tokens[at] === "REX.W") wide = true;
    else if (prefix === "any") prefix = tokens[at] as PrefixRule;
    else throw new SyntaxError("two mandatory prefixes");
  }

  const vex = tokens[at]?.startsWith("VEX") ? parseVex(tokens[at++]) : undefined;
  if (vex !== undefined) ({ prefix, wide } = vex);
  const bytes: number[] = [];
  let plus = "";
  for (; at < tokens.length; at++) {
    const match = /^([0-9A-F]{2})(?:\+(r|cc|i))?$/.exec(tokens[at]);
    if (!match) break;
    bytes.push(Number.parseInt(match[1], 16));
    if (match[2] !== undefined) plus = match[2];
    else if (tokens[at + 1] === "+r" || tokens[at + 1] === "+cc" || tokens[at + 1] === "+i") plus = tokens[++at].slice(1);
  }
  let map = vex?.map ?? 0;
  if (vex === undefined && bytes.length > 1 && bytes[0] === 0x0f) {
    map = bytes[1] === 0x38 ? 2 : bytes[1] === 0x3a ? 3 : 1;
    bytes.splice(0, map === 1 ? 1 : 2);
  }
  if (bytes.length < 1 || bytes.length > 2) throw new SyntaxError("opcode bytes");
  const [opcode, modrmByte] = bytes as [number, number | undefined];
  if (modrmByte !== undefined && plus !== "" && plus !== "i") throw new SyntaxError("+r or +cc on a ModRM byte");

  let hasModrm = modrmByte !== undefined;
  let digit: number | undefined;
  let mod: "any" | "register" | "memory" = modrmByte === undefined ? "any" : modrmByte >= 0xc0 ? "register" : "memory";
  const immediates: string[] = [];
  for (; at < tokens.length; at++) {
    const token = tokens[at];
    if (token === "/r") hasModrm = true;
    else if (/^\/[0-7]$/.test(token)) {
      hasModrm = true;
      digit = Number(token[1]);
    } else if (token === "mod=3") mod = "register";
    else if (token === "mod!=3") mod = "memory";
    else if (IMMEDIATE_TOKENS.includes(token)) immediates.push(token);
    else throw new SyntaxError(`"${token}"`);
  }

  const registerSource = plus === "r" ? "opcode" : "reg";
  const operands = words.map((word) => operandOf(word, registerSource));
  const needsModrm = operands.some((operand) => operand.memory !== undefined || operand.register?.source === "rm");
  if (needsModrm && !hasModrm) throw new SyntaxError("an operand needs ModRM");
  const usesReg = operands.some((operand) => operand.register?.source === "reg");
  if (usesReg && (!hasModrm || digit !== undefined)) throw new SyntaxError("an operand needs ModRM.reg");
  for (const operand of operands) {
    const restriction = operand.memory === undefined ? "register" : operand.register === undefined ? "memory" : "any";
    if (operand.register?.source !== "rm" && operand.memory === undefined) continue;
    if (restriction === "any") continue;
    if (mod !== "any" && mod !== restriction) throw new SyntaxError("mod contradicts the operands");
    mod = restriction;
  }
  // Outside 64-bit mode VEX.W is part of the opcode as well
  const sizes = formSizes(form, operands, wide && (vex === undefined || form.attributes.includes("only64")));
  return {
    form,
    map,
    vexLength: vex?.length ?? "any",
    opcode,
    opcodeCount: plus === "r" ? 8 - (opcode & 7) : plus === "cc" ? 16 : 1,
    isConditional: plus === "cc",
    prefix,
    wide,
    narrow: vex?.narrow ?? false,
    hasModrm,
    digit,
    modrmByte,
    modrmCount: plus === "i" ? 8 : 1,
    mod,
    immediate: immediateKind(immediates, words),
    operands,
    sizes,
    sizeByMode: operands.some((operand) => operand.register?.size === "d64"),
  };
}

const parsedForms = new WeakMap<Form, ParsedForm>();

/** Throws SyntaxError naming the form when a column is malformed. */
export function parseForm(form: Form): ParsedForm {
  let parsed = parsedForms.get(form);
  if (parsed === undefined) {
    try {
      parsed = parse(form);
    } catch (error) {
      throw new SyntaxError(`form "${form.opcode}" "${form.operands}": ${(error as Error).message}`, { cause: error });
    }
    parsedForms.set(form, parsed);
  }
  return parsed;
}

/** The size in bits that `name` means at operand size `size`; `d64` goes by the operand size that the mode gave. */
export function sizeOfName(name: SizeName, size: number): number {
  switch (name) {
    case "v":
    case "d64":
      return size;
    case "y":
      return size === 64 ? 64 : 32;
    case "z":
      return size === 16 ? 16 : 32;
    default:
      return name;
  }
}
