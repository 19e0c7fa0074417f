/**
 * Assigns every encoding to the form that claims it. The result is a table from (mode, opcode map, opcode, mandatory prefix,
 * REX.W) to a leaf, directly or by the ModRM byte. Two forms of equal specificity that claim one encoding are a mistake in the
 * rows and throw here, at import.
 *
 * What wins where forms overlap on purpose: a mandatory prefix over NFx over none (PAUSE over NOP), REX.W over no REX.W, then a
 * whole ModRM byte over a digit or a register (MFENCE over its group).
 */
import type { ParsedForm } from "./form-syntax.ts";

/** A form, for one condition code if it is conditional: what decoding the opcode determines. */
export interface Leaf {
  readonly parsed: ParsedForm;
  /** Index of the form in the order given to `mapEncodings`. */
  readonly formIndex: number;
  readonly condition: number | undefined;
}

/** Mandatory prefix class of an instruction as decoded: the last F2 or F3 if there is one, else 66. */
export const PREFIX_NONE = 0,
  PREFIX_66 = 1,
  PREFIX_F3 = 2,
  PREFIX_F2 = 3;

/** How to go on from a cell: no leaf; the leaf itself, without or with ModRM; a table of leaves by the ModRM byte. */
export const CELL_EMPTY = 0,
  CELL_PLAIN = 1,
  CELL_MODRM = 2,
  CELL_TABLE = 3;

export interface EncodingMap {
  readonly leaves: readonly Leaf[];
  /** By form: its first leaf, which those of its other conditions follow. */
  readonly firstLeaf: Int32Array;
  /** By `cellIndex`: kind in bits 0-1, leaf or table number above. */
  readonly cells: Int32Array;
  /** Table t holds the leaf for ModRM byte m at t * 256 + m; -1: none. */
  readonly modrmTables: Int16Array;
}

/** Opcode maps: four without a VEX prefix, and as many with one, of which the first is empty. */
export const MAPS = 8;
/** `length`: VEX.L, 0 without a VEX prefix. */
export function cellIndex(mode64: number, map: number, opcode: number, prefix: number, wide: number, length: number): number {
  return ((((mode64 * MAPS + map) * 256 + opcode) * 4 + prefix) * 2 + wide) * 2 + length;
}

function prefixRank(parsed: ParsedForm, prefix: number): number {
  switch (parsed.prefix) {
    case "any":
      return 1;
    case "NFx":
      return prefix === PREFIX_NONE || prefix === PREFIX_66 ? 2 : 0;
    case "NP":
      return prefix === PREFIX_NONE ? 3 : 0;
    case "66":
      return prefix === PREFIX_66 ? 3 : 0;
    case "F3":
      return prefix === PREFIX_F3 ? 3 : 0;
    case "F2":
      return prefix === PREFIX_F2 ? 3 : 0;
  }
}

function modrmRank(parsed: ParsedForm, modrm: number): number {
  if (parsed.modrmByte !== undefined) {
    return modrm >= parsed.modrmByte && modrm < parsed.modrmByte + parsed.modrmCount ? 2 : 0;
  }
  if (parsed.digit !== undefined && parsed.digit !== ((modrm >> 3) & 7)) return 0;
  const isRegister = modrm >= 0xc0;
  if (parsed.mod === "register" && !isRegister) return 0;
  if (parsed.mod === "memory" && isRegister) return 0;
  return 1;
}

function hex(value: number): string {
  return value.toString(16).padStart(2, "0");
}

function describe(parsed: ParsedForm): string {
  return `"${parsed.form.opcode}" "${parsed.form.operands}"`;
}

/** What a leaf takes of the bytes before the opcode, 1 for each `choice`: mode64 * 4 + wide * 2 + length. */
function choicesOf({ form, narrow, wide, vexLength }: ParsedForm): number {
  let choices = 0xff;
  if (form.attributes.includes("only64")) choices &= 0xf0;
  if (form.attributes.includes("invalid64")) choices &= 0x0f;
  if (wide) choices &= 0xcc;
  if (narrow) choices &= 0x33;
  if (vexLength !== "any") choices &= vexLength === 0 ? 0x55 : 0xaa;
  return choices;
}

export function mapEncodings(forms: readonly ParsedForm[]): EncodingMap {
  const leaves: Leaf[] = [];
  const firstLeaf = new Int32Array(forms.length);
  const byOpcode: number[][] = Array.from({ length: MAPS * 256 }, () => []);
  forms.forEach((parsed, formIndex) => {
    firstLeaf[formIndex] = leaves.length;
    for (let i = 0; i < parsed.opcodeCount; i++) {
      if (!parsed.isConditional && i > 0) {
        // All registers of +r share one leaf
      } else leaves.push({ parsed, formIndex, condition: parsed.isConditional ? i : undefined });
      byOpcode[parsed.map * 256 + parsed.opcode + i].push(leaves.length - 1);
    }
  });

  const cells = new Int32Array(cellIndex(2, 0, 0, 0, 0, 0));
  const tables: Int16Array[] = [];

  // The leaves that may claim the encoding in hand, and their outer ranks
  let candidates: number[] = [];
  let outerRanks: number[] = [];

  /** Best of the candidates for a ModRM byte; -1 when none claims it. */
  function choose(modrm: number): number {
    let best = -1;
    let bestRank = 0;
    for (let i = 0; i < candidates.length; i++) {
      const { parsed } = leaves[candidates[i]];
      const rank = parsed.hasModrm ? modrmRank(parsed, modrm) : 1;
      if (rank === 0) continue;
      const total = outerRanks[i] * 4 + rank;
      if (total === bestRank) {
        throw new Error(
          `two forms claim opcode ${hex(parsed.opcode)} with ModRM ${hex(modrm)}: ${describe(leaves[best].parsed)} and ${describe(parsed)}`,
        );
      }
      if (total > bestRank) {
        best = candidates[i];
        bestRank = total;
      }
    }
    return best;
  }

  function cellByModrm(): number {
    const [only] = candidates;
    const { parsed } = leaves[only];
    if (candidates.length === 1 && parsed.mod === "any" && parsed.digit === undefined) return CELL_MODRM | (only << 2);
    const table = new Int16Array(256);
    let isOne = true;
    if (candidates.some((leaf) => leaves[leaf].parsed.modrmByte !== undefined)) {
      for (let modrm = 0; modrm < 256; modrm++) {
        table[modrm] = choose(modrm);
        isOne &&= table[modrm] === table[0];
      }
    } else {
      // The digit, and whether it is a register, is all that tells candidates apart
      for (let first = 0; first < 256; first = first === 0x38 ? 0xc0 : first + 8) {
        const leaf = choose(first);
        table.fill(leaf, first, first + 8);
        if (first < 0x40) {
          table.fill(leaf, first + 0x40, first + 0x48);
          table.fill(leaf, first + 0x80, first + 0x88);
        }
        isOne &&= leaf === table[0];
      }
    }
    if (isOne) return CELL_MODRM | (table[0] << 2);
    tables.push(table);
    return CELL_TABLE | ((tables.length - 1) << 2);
  }

  /** The cell of an opcode for leaves with these outer ranks, 0 for those that are no candidates. */
  function cellOf(list: readonly number[], ranks: Uint8Array): number {
    let top = 0;
    let topPlain = 0;
    let withModrm = 0;
    candidates = [];
    outerRanks = [];
    for (let i = 0; i < list.length; i++) {
      if (ranks[i] === 0) continue;
      candidates.push(list[i]);
      outerRanks.push(ranks[i]);
      top = Math.max(top, ranks[i]);
      if (leaves[list[i]].parsed.hasModrm) withModrm++;
      else topPlain = Math.max(topPlain, ranks[i]);
    }
    if (top === 0) return CELL_EMPTY;
    if (topPlain === top) {
      // A form with a mandatory prefix may have no ModRM where the others of its opcode have: it then stands alone
      const isPlain = candidates.map((leaf) => !leaves[leaf].parsed.hasModrm);
      candidates = candidates.filter((_, i) => isPlain[i]);
      outerRanks = outerRanks.filter((_, i) => isPlain[i]);
      return CELL_PLAIN | (choose(0) << 2);
    }
    if (withModrm !== candidates.length) {
      const texts = candidates.map((leaf) => describe(leaves[leaf].parsed)).join(", ");
      throw new Error(`one opcode with and without ModRM: ${texts}`);
    }
    return cellByModrm();
  }

  const prefixRanks = leaves.map(({ parsed }) =>
    Uint8Array.from([0, 1, 2, 3], (prefix) => {
      const rank = prefixRank(parsed, prefix);
      return rank === 0 ? 0 : rank * 2 + (parsed.wide ? 1 : 0);
    }),
  );
  const choices = Uint8Array.from(leaves, ({ parsed }) => choicesOf(parsed));
  byOpcode.forEach((list, key) => {
    if (list.length === 0) return;
    // Most encodings of an opcode have the same candidates: their cells are made once
    const known = new Map<string, number>();
    const ranks = new Uint8Array(list.length);
    for (let prefix = 0; prefix < 4; prefix++) {
      for (let choice = 0; choice < 8; choice++) {
        let id = "";
        for (let i = 0; i < list.length; i++) {
          const leaf = list[i];
          ranks[i] = ((choices[leaf] >> choice) & 1) === 0 ? 0 : prefixRanks[leaf][prefix];
          id += ranks[i];
        }
        let cell = known.get(id);
        if (cell === undefined) {
          cell = cellOf(list, ranks);
          known.set(id, cell);
        }
        cells[cellIndex(choice >> 2, key >> 8, key & 0xff, prefix, (choice >> 1) & 1, choice & 1)] = cell;
      }
    }
  });

  const modrmTables = new Int16Array(tables.length * 256);
  tables.forEach((table, index) => {
    modrmTables.set(table, index * 256);
  });
  return { leaves, firstLeaf, cells, modrmTables };
}
