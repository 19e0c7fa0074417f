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

export function mapEncodings(forms: readonly ParsedForm[]): EncodingMap {
  const leaves: Leaf[] = [];
  const byOpcode = new Map<number, number[]>();
  forms.forEach((parsed, formIndex) => {
    for (let i = 0; i < parsed.opcodeCount; i++) {
      if (!parsed.isConditional && i > 0) {
        // All registers of +r share one leaf
      } else leaves.push({ parsed, formIndex, condition: parsed.isConditional ? i : undefined });
      const key = parsed.map * 256 + parsed.opcode + i;
      const list = byOpcode.get(key);
      if (list) list.push(leaves.length - 1);
      else byOpcode.set(key, [leaves.length - 1]);
    }
  });

  const cells = new Int32Array(cellIndex(2, 0, 0, 0, 0, 0));
  const tables: Int16Array[] = [];
  const known = new Map<string, number>();

  /** Best of the candidates for a ModRM byte; -1 when none claims it. */
  function choose(candidates: readonly [number, number][], modrm: number): number {
    let best = -1;
    let bestRank = 0;
    for (const [leaf, outerRank] of candidates) {
      const { parsed } = leaves[leaf];
      const rank = parsed.hasModrm ? modrmRank(parsed, modrm) : 1;
      if (rank === 0) continue;
      const total = outerRank * 4 + rank;
      if (total === bestRank) {
        throw new Error(
          `two forms claim opcode ${hex(parsed.opcode)} with ModRM ${hex(modrm)}: ${describe(leaves[best].parsed)} and ${describe(parsed)}`,
        );
      }
      if (total > bestRank) {
        best = leaf;
        bestRank = total;
      }
    }
    return best;
  }

  function cellFor(candidates: readonly [number, number][]): number {
    if (candidates.length === 0) return CELL_EMPTY;
    const withModrm = candidates.filter(([leaf]) => leaves[leaf].parsed.hasModrm).length;
    if (withModrm === 0) return CELL_PLAIN | (choose(candidates, 0) << 2);
    if (withModrm !== candidates.length) {
      const texts = candidates.map(([leaf]) => describe(leaves[leaf].parsed)).join(", ");
      throw new Error(`one opcode with and without ModRM: ${texts}`);
    }
    const table = new Int16Array(256);
    for (let modrm = 0; modrm < 256; modrm++) table[modrm] = choose(candidates, modrm);
    if (table.every((leaf) => leaf === table[0])) return CELL_MODRM | (table[0] << 2);
    tables.push(table);
    return CELL_TABLE | ((tables.length - 1) << 2);
  }

  for (const [key, list] of byOpcode) {
    for (let mode64 = 0; mode64 < 2; mode64++) {
      for (let prefix = 0; prefix < 4; prefix++) {
        for (let choice = 0; choice < 4; choice++) {
          const [wide, length] = [choice >> 1, choice & 1];
          const candidates: [number, number][] = [];
          for (const leaf of list) {
            const { parsed } = leaves[leaf];
            if (parsed.form.attributes.includes(mode64 ? "invalid64" : "only64")) continue;
            if (wide ? parsed.narrow : parsed.wide) continue;
            if (parsed.vexLength !== "any" && parsed.vexLength !== length) continue;
            const rank = prefixRank(parsed, prefix);
            if (rank > 0) candidates.push([leaf, rank * 2 + (parsed.wide ? 1 : 0)]);
          }
          const id = candidates.map((candidate) => candidate.join(":")).join(" ");
          let cell = known.get(id);
          if (cell === undefined) {
            // A form with a mandatory prefix may have no ModRM where the others of its opcode have: it then stands alone
            const plain = candidates.filter(([leaf]) => !leaves[leaf].parsed.hasModrm);
            const top = Math.max(...candidates.map(([, outer]) => outer));
            cell = plain.some(([, outer]) => outer === top) ? cellFor(plain) : cellFor(candidates);
            known.set(id, cell);
          }
          cells[cellIndex(mode64, key >> 8, key & 0xff, prefix, wide, length)] = cell;
        }
      }
    }
  }

  const modrmTables = new Int16Array(tables.length * 256);
  tables.forEach((table, index) => {
    modrmTables.set(table, index * 256);
  });
  return { leaves, cells, modrmTables };
}
