/**
 * Decoding on a machine that lacks instruction sets: their encodings are undefined, or mean what they meant before there were such sets.
 * What AVX and what comes with it need of CR4 and XCR0 is checked elsewhere, and cannot be had there.
 */
import type { Instruction } from "../instruction.ts";
import { CMPXCHG16B } from "../semantics/arithmetic.ts";
import { bitManipulation } from "../semantics/bit-manipulation.ts";
import { BSF, BSR, LZCNT, POPCNT, TZCNT } from "../semantics/bits.ts";
import { cryptography } from "../semantics/crypto.ts";
import { LAHF, SAHF } from "../semantics/flag-control.ts";
import { ADCX, ADOX, CRC32, MOVBE, RDPID, RDRAND, RDSEED } from "../semantics/integer-extensions.ts";
import { packedStrings } from "../semantics/packed-strings.ts";
import { sse3 } from "../semantics/sse3.ts";
import { sse4Float } from "../semantics/sse4-float.ts";
import { sse4Integer } from "../semantics/sse4-integer.ts";
import { ssse3 } from "../semantics/ssse3.ts";
import type { Level } from "../system/cpu-levels.ts";
import { decode, variants } from "./decoder.ts";
import type { Decode, Variant } from "./variant.ts";

/** First level that has the rows. */
const ROWS: readonly (readonly [Level, readonly Instruction[]])[] = [
  [2, [...sse3, ...ssse3, ...sse4Integer, ...sse4Float, ...packedStrings, CRC32, POPCNT, CMPXCHG16B]],
  [3, [...bitManipulation, MOVBE, LZCNT, TZCNT]],
  [4, [...cryptography, RDRAND, RDSEED, ADCX, ADOX, RDPID]],
];
const LEVEL_OF_ROW = new Map<Instruction, Level>(ROWS.flatMap(([level, rows]) => rows.map((row) => [row, level] as const)));
/** VEX-encoded forms of cryptography are rows of their own, and so is FISTTP. */
const LEVEL_OF_NAME: readonly (readonly [RegExp, Level])[] = [
  [/^FISTTP/, 2],
  [/^V(AES|PCLMUL)/, 4],
];
/** Their prefix meant nothing before. */
const BEFORE = new Map<Instruction, Instruction>([
  [LZCNT, BSR],
  [TZCNT, BSF],
]);
const LEVEL_WITH_LAHF = 2;
const UNDEFINED = 0xffff;
const DEFINED = 0xfffe;

/** The first level that has the variant's instruction. */
export function levelOfVariant({ instruction }: Variant): Level {
  return LEVEL_OF_ROW.get(instruction) ?? LEVEL_OF_NAME.find(([name]) => name.test(instruction.mnemonic))?.[1] ?? 1;
}

/** By handler: DEFINED, UNDEFINED, or the handler in its place. */
function replacements(level: Level): Uint16Array {
  const before = (variant: Variant): number => {
    const row = BEFORE.get(variant.instruction);
    const other = variants.find(
      ({ instruction, size, isMemory }) => instruction === row && size === variant.size && isMemory === variant.isMemory,
    );
    return other?.number ?? UNDEFINED;
  };
  return Uint16Array.from(variants, (variant) => (levelOfVariant(variant) <= level ? DEFINED : before(variant)));
}

const decoders = new Map<Level, Decode>([[4, decode]]);

export function decoderOfLevel(level: Level): Decode {
  const known = decoders.get(level);
  if (known !== undefined) return known;
  const table = replacements(level);
  const isLahf = new Set(
    variants.filter(({ instruction }) => instruction === LAHF || instruction === SAHF).map((v) => v.number),
  );
  const made: Decode = (code, offset, available, codeSize, into) => {
    const result = decode(code, offset, available, codeSize, into);
    if (result !== "ok") return result;
    const replacement = table[into.handler] as number;
    if (replacement === UNDEFINED) return "undefined";
    if (replacement !== DEFINED) into.handler = replacement;
    return level < LEVEL_WITH_LAHF && codeSize === 64 && isLahf.has(into.handler) ? "undefined" : "ok";
  };
  decoders.set(level, made);
  return made;
}
