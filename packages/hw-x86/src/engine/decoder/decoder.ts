/**
 * The instruction decoder: bytes to a `DecodedOperation`, driven by tables that are derived from the forms. It allocates
 * nothing and reads ahead without checks: whether all bytes were there, and were 15 at most, is decided at the end.
 */
import { CS, DS, ES, FS, GS, gprOffset, SS, segmentOffset, state } from "../cpu-state.ts";
import { instructions } from "../semantics/index.ts";
import {
  CELL_EMPTY,
  CELL_MODRM,
  CELL_PLAIN,
  cellIndex,
  mapEncodings,
  PREFIX_66,
  PREFIX_F2,
  PREFIX_F3,
  PREFIX_NONE,
} from "./encoding-map.ts";
import { expandTable, usesField } from "./expand.ts";
import { type ImmediateKind, type ParsedForm, parseForm, type RegisterSource } from "./form-syntax.ts";
import type { Decode, DecodedOperation, DecodeResult, Variant } from "./variant.ts";

const MAX_LENGTH = 15;

export const PREFIX_BIT_LOCK = 1,
  PREFIX_BIT_REP = 2,
  PREFIX_BIT_REPNE = 4;

// What an opcode-independent byte means: 0 an opcode, else a prefix
const BYTE_SEGMENT = 1, // plus 8 * segment register
  BYTE_OPERAND_SIZE = 2,
  BYTE_ADDRESS_SIZE = 3,
  BYTE_LOCK = 4,
  BYTE_REPNE = 5,
  BYTE_REP = 6;
const prefixBytes = new Uint8Array(256);
[
  [0x26, ES],
  [0x2e, CS],
  [0x36, SS],
  [0x3e, DS],
  [0x64, FS],
  [0x65, GS],
].forEach(([byte, segment]) => {
  prefixBytes[byte] = BYTE_SEGMENT | (segment << 3);
});
prefixBytes[0x66] = BYTE_OPERAND_SIZE;
prefixBytes[0x67] = BYTE_ADDRESS_SIZE;
prefixBytes[0xf0] = BYTE_LOCK;
prefixBytes[0xf2] = BYTE_REPNE;
prefixBytes[0xf3] = BYTE_REP;

// Leaf flags
const LEAF_LOCK = 1,
  LEAF_DEFAULT64 = 2,
  LEAF_FORCE64 = 4,
  /** 66 is part of the opcode, not an operand size. */
  LEAF_66_MANDATORY = 8,
  LEAF_SIZE_BY_MODE = 16,
  /** VEX.vvvv names a register. */
  LEAF_VVVV = 32,
  /** The index register of the memory operand is a vector. */
  LEAF_VECTOR_INDEX = 64;

// Register field codes: where the number comes from, and what becomes of it
const FROM_REG = 1,
  FROM_RM = 2,
  FROM_OPCODE = 3,
  /** Always register 0. */
  FROM_ZERO = 4,
  /** VEX.vvvv. */
  FROM_VVVV = 5;
const SOURCES: Readonly<Record<Exclude<RegisterSource, "is4">, number>> = {
  reg: FROM_REG,
  rm: FROM_RM,
  opcode: FROM_OPCODE,
  zero: FROM_ZERO,
  vvvv: FROM_VVVV,
};
/** The number that a field takes, of those that the encoding holds. */
function registerFrom(source: number, reg: number, rm: number, low: number, vvvv: number): number {
  switch (source) {
    case FROM_REG:
      return reg;
    case FROM_RM:
      return rm;
    case FROM_OPCODE:
      return low;
    case FROM_VVVV:
      return vvvv;
    default:
      return 0;
  }
}
const AS_GPR8 = 0x10,
  AS_GPR = 0x20,
  AS_XMM = 0x30,
  AS_MM = 0x40,
  AS_NUMBER = 0x50,
  /** Numbers that no REX bit extends. */
  AS_SHORT_NUMBER = 0x60;

const IMMEDIATE_CODES: readonly ImmediateKind[] = [
  "none",
  "byte",
  "byteSigned",
  "word",
  "dword",
  "qword",
  "z",
  "v",
  "relative8",
  "relativeZ",
  "moffs",
  "far",
  "wordByte",
  "register",
];
const IMM_NONE = 0,
  IMM_BYTE = 1,
  IMM_BYTE_SIGNED = 2,
  IMM_WORD = 3,
  IMM_DWORD = 4,
  IMM_QWORD = 5,
  IMM_Z = 6,
  IMM_V = 7,
  IMM_RELATIVE8 = 8,
  IMM_RELATIVE_Z = 9,
  IMM_MOFFS = 10,
  IMM_FAR = 11,
  IMM_WORD_BYTE = 12,
  IMM_REGISTER = 13;

const SIZES = [16, 32, 64] as const;

/** By VEX.pp. */
const VEX_PREFIXES = [PREFIX_NONE, PREFIX_66, PREFIX_F3, PREFIX_F2] as const;

/** 16-bit addressing: base and index by ModRM.rm. */
const BASE16 = [3, 3, 5, 5, 6, 7, 5, 3].map(gprOffset);
const INDEX16 = [6, 7, 6, 7, -1, -1, -1, -1].map((register) => (register < 0 ? state.zero : gprOffset(register)));

/** An operation for `decode` to fill. */
export function createDecodedOperation(): DecodedOperation {
  return {
    handler: 0,
    length: 0,
    scale: 0,
    a: 0,
    b: 0,
    c: 0,
    base: 0,
    index: 0,
    segment: 0,
    displacement: 0,
    ripRelative: false,
    addressSize: 64,
    prefixes: 0,
    immediateLow: 0,
    immediateHigh: 0,
  };
}

function fieldCodes(parsed: ParsedForm, isMemory: boolean): number[] {
  const codes: number[] = [];
  for (const operand of parsed.operands) {
    if (!usesField(operand, isMemory) || operand.register === undefined) continue;
    const { source, class: kind, size } = operand.register;
    if (source === "is4") continue;
    const from = SOURCES[source];
    const as =
      kind === "gpr"
        ? size === 8
          ? AS_GPR8
          : AS_GPR
        : kind === "xmm"
          ? AS_XMM
          : kind === "mm"
            ? AS_MM
            : kind === "controlRegister" || kind === "debugRegister"
              ? AS_NUMBER
              : AS_SHORT_NUMBER;
    codes.push(from | as);
  }
  return codes;
}

/** A decoder for the forms of `variants`, in the order of `expandTable`. */
export function createDecoder(variants: readonly Variant[]): Decode {
  const forms: ParsedForm[] = [];
  const formIndices = new Map<unknown, number>();
  for (const { form } of variants) {
    if (formIndices.has(form)) continue;
    formIndices.set(form, forms.length);
    forms.push(parseForm(form));
  }
  const { leaves, firstLeaf, cells, modrmTables } = mapEncodings(forms);

  // Per leaf: flags, immediate kind, field codes [register a b c, memory a b c], handlers [register 16 32 64 -, memory 16 32 64 -]
  const leafFlags = new Uint8Array(leaves.length);
  const leafImmediate = new Uint8Array(leaves.length);
  const leafFields = new Uint8Array(leaves.length * 8);
  const leafHandlers = new Int32Array(leaves.length * 8).fill(-1);
  leaves.forEach(({ parsed }, leaf) => {
    const { attributes } = parsed.form;
    leafFlags[leaf] =
      (attributes.includes("lock") ? LEAF_LOCK : 0) |
      (attributes.includes("default64") ? LEAF_DEFAULT64 : 0) |
      (attributes.includes("force64") ? LEAF_FORCE64 : 0) |
      (parsed.prefix === "66" ? LEAF_66_MANDATORY : 0) |
      (parsed.sizeByMode ? LEAF_SIZE_BY_MODE : 0) |
      (parsed.operands.some((operand) => operand.register?.source === "vvvv") ? LEAF_VVVV : 0) |
      (parsed.operands.some((operand) => operand.memory?.vectorIndex === true) ? LEAF_VECTOR_INDEX : 0);
    leafImmediate[leaf] = IMMEDIATE_CODES.indexOf(parsed.immediate);
    leafFields.set(fieldCodes(parsed, false), leaf * 8);
    leafFields.set(fieldCodes(parsed, true), leaf * 8 + 4);
  });
  const hasMemoryVariant = new Set<number>();
  for (const variant of variants) {
    const leaf = firstLeaf[formIndices.get(variant.form) as number] + (variant.condition ?? 0);
    const { sizes } = leaves[leaf].parsed;
    if (variant.isMemory) hasMemoryVariant.add(leaf);
    for (let column = 0; column < SIZES.length; column++) {
      const size = SIZES[column];
      // Sizes that the form does not tell apart go to the next one below, or to its only one
      const serves = sizes.includes(size)
        ? variant.size === size
        : variant.size === (size === 64 ? sizes[sizes.length - 1] : sizes[0]);
      if (serves) leafHandlers[leaf * 8 + (variant.isMemory ? 4 : 0) + column] = variant.number;
    }
  }
  leaves.forEach(({ parsed }, leaf) => {
    // A form with ModRM but no r/m operand takes both kinds of ModRM
    if (!hasMemoryVariant.has(leaf) && parsed.mod !== "register") {
      leafHandlers.copyWithin(leaf * 8 + 4, leaf * 8, leaf * 8 + 4);
      leafFields.copyWithin(leaf * 8 + 4, leaf * 8, leaf * 8 + 4);
    }
  });
  const immediateSizes = new Uint8Array(variants.length);
  for (const variant of variants) {
    const access = variant.access.find(({ kind }) => kind === "immediate");
    immediateSizes[variant.number] = access?.kind === "immediate" ? access.size : 64;
  }

  /** The register field's content for register number `number` (0 to 15). */
  function field(as: number, number: number, hasRex: boolean): number {
    switch (as) {
      case AS_GPR8:
        return !hasRex && number >= 4 ? gprOffset(number - 4) + 1 : gprOffset(number);
      case AS_GPR:
        return gprOffset(number);
      case AS_XMM:
        return state.xmm + number * 16;
      case AS_MM:
        return state.fpr + (number & 7) * 16;
      case AS_NUMBER:
        return number;
      default:
        return number & 7;
    }
  }

  return function decode(code, offset, available, codeSize, into): DecodeResult {
    const mode64 = codeSize === 64;
    let at = offset;
    const lastPrefix = offset + MAX_LENGTH;
    let segment = -1;
    let operandPrefix = false;
    let addressPrefix = false;
    let prefixes = 0;
    let repeat = PREFIX_NONE;
    let rex = 0;
    let byte: number;
    for (;;) {
      byte = code[at++] | 0;
      const kind = prefixBytes[byte];
      if (kind !== 0) {
        rex = 0;
        switch (kind & 7) {
          case BYTE_SEGMENT: {
            const named = kind >> 3;
            if (!mode64 || named >= FS) segment = named;
            break;
          }
          case BYTE_OPERAND_SIZE:
            operandPrefix = true;
            break;
          case BYTE_ADDRESS_SIZE:
            addressPrefix = true;
            break;
          case BYTE_LOCK:
            prefixes |= PREFIX_BIT_LOCK;
            break;
          case BYTE_REPNE:
            prefixes = (prefixes & ~PREFIX_BIT_REP) | PREFIX_BIT_REPNE;
            repeat = PREFIX_F2;
            break;
          default:
            prefixes = (prefixes & ~PREFIX_BIT_REPNE) | PREFIX_BIT_REP;
            repeat = PREFIX_F3;
        }
      } else if (mode64 && (byte & 0xf0) === 0x40) rex = byte;
      else break;
      if (at >= lastPrefix) return at - offset > available ? "incomplete" : "tooLong";
    }

    let map = 0;
    if (byte === 0x0f) {
      byte = code[at++] | 0;
      map = 1;
      if (byte === 0x38) {
        byte = code[at++] | 0;
        map = 2;
      } else if (byte === 0x3a) {
        byte = code[at++] | 0;
        map = 3;
      }
    }
    let prefix = repeat !== PREFIX_NONE ? repeat : operandPrefix ? PREFIX_66 : PREFIX_NONE;
    let wide = (rex >> 3) & 1;
    let vexLength = 0;
    let vvvv = 0;
    // Outside 64-bit mode C4 and C5 are LES and LDS, which have no register operand in ModRM.rm
    if (map === 0 && (byte === 0xc4 || byte === 0xc5) && (mode64 || code[at] >= 0xc0)) {
      if (prefix !== PREFIX_NONE || rex !== 0 || (prefixes & PREFIX_BIT_LOCK) !== 0) {
        return at - offset >= available ? "incomplete" : "undefined";
      }
      const first = code[at++] | 0;
      let last = first;
      map = 5;
      rex = (~first >> 5) & 4;
      if (byte === 0xc4) {
        last = code[at++] | 0;
        // R, X and B are stored inverted
        rex = (~first >> 5) & 7;
        map = 4 + (first & 31);
        if (map < 5 || map > 7) return at - offset > available ? "incomplete" : "undefined";
        wide = last >> 7;
      }
      vvvv = (~last >> 3) & 15;
      if (!mode64) rex = 0;
      vexLength = (last >> 2) & 1;
      prefix = VEX_PREFIXES[last & 3];
      byte = code[at++] | 0;
    }
    // 90 is NOP (with F3: PAUSE) unless REX.B makes its register R8: then it is one of the XCHG forms
    const opcode = byte === 0x90 && (rex & 1) !== 0 && map === 0 && repeat !== PREFIX_F3 ? 0x91 : byte;
    const cell = cells[cellIndex(mode64 ? 1 : 0, map, opcode, prefix, wide, vexLength)];
    const cellKind = cell & 3;
    let leaf = cell >> 2;
    let modrm = 0;
    let isMemory = false;
    if (cellKind !== CELL_PLAIN) {
      if (cellKind === CELL_EMPTY) return at - offset > available ? "incomplete" : "undefined";
      modrm = code[at++] | 0;
      if (cellKind !== CELL_MODRM) {
        leaf = modrmTables[leaf * 256 + modrm];
        if (leaf < 0) return at - offset > available ? "incomplete" : "undefined";
      }
      isMemory = modrm < 0xc0;
    }
    const flags = leafFlags[leaf];
    if (vvvv !== 0 && (flags & LEAF_VVVV) === 0) return at - offset > available ? "incomplete" : "undefined";

    const addressSize = mode64 ? (addressPrefix ? 32 : 64) : (codeSize === 16) !== addressPrefix ? 16 : 32;
    let size: 16 | 32 | 64;
    if (mode64) {
      if ((flags & (LEAF_FORCE64 | LEAF_SIZE_BY_MODE)) !== 0 || wide !== 0) size = 64;
      else if (operandPrefix && (flags & LEAF_66_MANDATORY) === 0) size = 16;
      else size = (flags & LEAF_DEFAULT64) !== 0 ? 64 : 32;
    } else if ((flags & LEAF_SIZE_BY_MODE) !== 0) size = 32;
    else size = (codeSize === 16) !== (operandPrefix && (flags & LEAF_66_MANDATORY) === 0) ? 16 : 32;

    let base: number = state.zero;
    let index: number = state.zero;
    let scale = 0;
    let displacement = 0;
    let ripRelative = false;
    let defaultSegment: number = DS;
    if (isMemory) {
      const mod = modrm >> 6;
      const rm = modrm & 7;
      const hasVectorIndex = (flags & LEAF_VECTOR_INDEX) !== 0;
      if (hasVectorIndex && (addressSize === 16 || rm !== 4)) return at - offset > available ? "incomplete" : "undefined";
      if (addressSize === 16) {
        if (mod === 0 && rm === 6) {
          displacement = code[at] | (code[at + 1] << 8) | 0;
          at += 2;
        } else {
          base = BASE16[rm];
          index = INDEX16[rm];
          if (rm === 2 || rm === 3 || rm === 6) defaultSegment = SS;
          if (mod === 1) displacement = (code[at++] << 24) >> 24;
          else if (mod === 2) {
            displacement = ((code[at] | (code[at + 1] << 8)) << 16) >> 16;
            at += 2;
          }
        }
      } else {
        let wordDisplacement = mod === 2;
        if (rm === 4) {
          const sib = code[at++] | 0;
          const indexNumber = ((sib >> 3) & 7) | ((rex & 2) << 2);
          if (hasVectorIndex) {
            index = state.xmm + indexNumber * 16;
            scale = sib >> 6;
          } else if (indexNumber !== 4) {
            index = gprOffset(indexNumber);
            scale = sib >> 6;
          }
          const baseNumber = sib & 7;
          if (baseNumber === 5 && mod === 0) wordDisplacement = true;
          else {
            base = gprOffset(baseNumber | ((rex & 1) << 3));
            if ((baseNumber === 4 || baseNumber === 5) && (rex & 1) === 0) defaultSegment = SS;
          }
        } else if (rm === 5 && mod === 0) {
          wordDisplacement = true;
          if (mode64) {
            ripRelative = true;
            base = state.blockRip;
          }
        } else {
          base = gprOffset(rm | ((rex & 1) << 3));
          if (rm === 5 && (rex & 1) === 0) defaultSegment = SS;
        }
        if (mod === 1) displacement = (code[at++] << 24) >> 24;
        else if (wordDisplacement) {
          displacement = code[at] | (code[at + 1] << 8) | (code[at + 2] << 16) | (code[at + 3] << 24);
          at += 4;
        }
      }
    }

    // Pushes, pops, calls and returns without a memory operand access the stack only: faults are to name it
    else if ((flags & (LEAF_DEFAULT64 | LEAF_FORCE64)) !== 0) {
      defaultSegment = SS;
      segment = -1;
    }

    const slot = leaf * 8 + (isMemory ? 4 : 0);
    const handler = leafHandlers[slot + (size === 16 ? 0 : size === 32 ? 1 : 2)];
    const fieldA = leafFields[slot];
    into.a = 0;
    into.b = 0;
    into.c = 0;
    if (fieldA !== 0) {
      const reg = ((modrm >> 3) & 7) | ((rex & 4) << 1);
      const rm = (modrm & 7) | ((rex & 1) << 3);
      const low = (byte & 7) | ((rex & 1) << 3);
      const hasRex = rex !== 0;
      // Eight registers outside 64-bit mode: the top bit is ignored where a register is named, and only there
      const register = mode64 ? vvvv : vvvv & 7;
      into.a = field(fieldA & 0xf0, registerFrom(fieldA & 0xf, reg, rm, low, register), hasRex);
      const fieldB = leafFields[slot + 1];
      if (fieldB !== 0) {
        into.b = field(fieldB & 0xf0, registerFrom(fieldB & 0xf, reg, rm, low, register), hasRex);
        const fieldC = leafFields[slot + 2];
        if (fieldC !== 0) {
          into.c = field(fieldC & 0xf0, registerFrom(fieldC & 0xf, reg, rm, low, register), hasRex);
        }
      }
    }

    let low = 0;
    let high = 0;
    const kind = leafImmediate[leaf];
    if (kind !== IMM_NONE) {
      switch (kind) {
        case IMM_BYTE:
          low = code[at++] | 0;
          break;
        case IMM_BYTE_SIGNED:
        case IMM_RELATIVE8:
          low = (code[at++] << 24) >> 24;
          high = low >> 31;
          break;
        case IMM_WORD:
          low = code[at] | (code[at + 1] << 8);
          at += 2;
          break;
        case IMM_WORD_BYTE:
          low = code[at] | (code[at + 1] << 8) | (code[at + 2] << 16);
          at += 3;
          break;
        case IMM_DWORD:
          low = code[at] | (code[at + 1] << 8) | (code[at + 2] << 16) | (code[at + 3] << 24);
          at += 4;
          break;
        case IMM_Z:
        case IMM_RELATIVE_Z:
        case IMM_V:
          if (size === 16) {
            low = ((code[at] | (code[at + 1] << 8)) << 16) >> 16;
            at += 2;
          } else {
            low = code[at] | (code[at + 1] << 8) | (code[at + 2] << 16) | (code[at + 3] << 24);
            at += 4;
          }
          high = low >> 31;
          if (kind === IMM_V && size === 64) {
            high = code[at] | (code[at + 1] << 8) | (code[at + 2] << 16) | (code[at + 3] << 24);
            at += 4;
          }
          break;
        case IMM_QWORD:
          low = code[at] | (code[at + 1] << 8) | (code[at + 2] << 16) | (code[at + 3] << 24);
          high = code[at + 4] | (code[at + 5] << 8) | (code[at + 6] << 16) | (code[at + 7] << 24);
          at += 8;
          break;
        case IMM_REGISTER:
          low = state.xmm + ((code[at++] >> 4) & (mode64 ? 15 : 7)) * 16;
          break;
        case IMM_MOFFS:
          low = code[at] | (code[at + 1] << 8);
          at += 2;
          if (addressSize !== 16) {
            low |= (code[at] << 16) | (code[at + 1] << 24);
            at += 2;
          }
          if (addressSize === 64) {
            high = code[at] | (code[at + 1] << 8) | (code[at + 2] << 16) | (code[at + 3] << 24);
            at += 4;
          }
          break;
        case IMM_FAR:
          low = code[at] | (code[at + 1] << 8);
          at += 2;
          if (size !== 16) {
            low |= (code[at] << 16) | (code[at + 1] << 24);
            at += 2;
          }
          high = code[at] | (code[at + 1] << 8);
          at += 2;
          break;
      }
      if (kind !== IMM_RELATIVE8 && kind !== IMM_RELATIVE_Z) {
        // Sign-extended immediates are cut to the operand size: handles of generated code are zero-extended from it
        switch (immediateSizes[handler]) {
          case 8:
            low &= 0xff;
            high = 0;
            break;
          case 16:
            low &= 0xffff;
            high = 0;
            break;
          case 32:
            high = 0;
            break;
        }
      }
    }

    const length = at - offset;
    if (length > available) return length > MAX_LENGTH && available >= MAX_LENGTH ? "tooLong" : "incomplete";
    if (length > MAX_LENGTH) return "tooLong";
    if (handler < 0) return "undefined";
    if ((prefixes & PREFIX_BIT_LOCK) !== 0 && ((flags & LEAF_LOCK) === 0 || !isMemory)) return "undefined";
    into.handler = handler;
    into.length = length;
    into.scale = scale;
    into.base = base;
    into.index = index;
    into.segment = segmentOffset(segment < 0 ? defaultSegment : segment);
    into.displacement = displacement;
    into.ripRelative = ripRelative;
    into.addressSize = addressSize;
    into.prefixes = prefixes;
    into.immediateLow = low;
    into.immediateHigh = high;
    return "ok";
  };
}

/** All variants of the table, by handler number. */
export const variants: readonly Variant[] = expandTable(instructions);

let whole: Decode | undefined;

/** The decoder for the whole table. Made when it is first needed: a thread that only translates needs none. */
export const decode: Decode = (code, offset, available, size, into) => {
  whole ??= createDecoder(variants);
  return whole(code, offset, available, size, into);
};
