/**
 * The VM-exit instruction-information field and the displacement that goes with it, of the instruction that exited. Source: Intel SDM
 * Vol. 3C, VM-Exit Instruction-Information Field; Exit Qualification.
 */
import { CS, SEGMENT_STRIDE, state } from "../engine/cpu-state.ts";
import { createDecodedOperation, decode, variants } from "../engine/decoder/decoder.ts";
import { parseForm } from "../engine/decoder/form-syntax.ts";
import type { DecodedOperation } from "../engine/decoder/variant.ts";
import { FETCH, translate } from "../engine/system/paging.ts";
import type { GuestEngine } from "../root-interface.ts";

const PAGE = 4096;
const NO_INDEX = 1 << 22;
const NO_BASE = 1 << 27;
const IS_REGISTER = 1 << 10;
const NOT_16_BITS = 1 << 11;

/** Bytes of the instruction that is at hand. */
function instructionBytes(engine: GuestEngine): Uint8Array {
  const bytes = new Uint8Array(engine.instructionLength());
  const user = engine.u32[state.cpl >>> 2] === 3;
  let at = engine.linear(CS, engine.get64(state.rip), 1, false) as bigint;
  for (let done = 0; done < bytes.length; ) {
    const low = Number(BigInt.asIntN(32, at));
    const offset = translate(engine, low, Number(BigInt.asIntN(32, at >> 32n)), FETCH, user);
    const length = Math.min(bytes.length - done, PAGE - (low & (PAGE - 1)));
    bytes.set(engine.u8.subarray(offset, offset + length), done);
    done += length;
    at += BigInt(length);
  }
  return bytes;
}

const decoded = createDecodedOperation();

/** The instruction at hand, as the engine's decoder has it; reused. */
function decodeAtHand(engine: GuestEngine): DecodedOperation {
  const bytes = instructionBytes(engine);
  const result = decode(bytes, 0, bytes.length, engine.u32[state.codeSize >>> 2] as 16 | 32 | 64, decoded);
  if (result !== "ok") throw new Error(`an instruction that exited does not decode: ${result}`);
  return decoded;
}

const numberOf = (offset: number): number => (offset - state.gpr) >>> 3;

/** Number of the general register that the ModRM field names; 0 where the form has none. */
function registerOf(operation: DecodedOperation, field: "reg" | "rm"): number {
  const variant = variants[operation.handler];
  if (variant === undefined) return 0;
  const { operands } = parseForm(variant.form);
  for (const [position, access] of variant.access.entries())
    if (access.kind === "gpr" && operands[position]?.register?.source === field) return numberOf(operation[access.field]);
  return 0;
}
const sizeOf = (operation: DecodedOperation): number => variants[operation.handler]?.size ?? 0;
const isMemory = (operation: DecodedOperation): boolean => variants[operation.handler]?.isMemory === true;

/** What all memory operands have in the field. */
function memoryInformation({ scale, index, base, addressSize, segment }: DecodedOperation): number {
  return (
    scale |
    ((addressSize >>> 5) << 7) |
    (((segment - state.segments) / SEGMENT_STRIDE) << 15) |
    (index === state.zero ? NO_INDEX : numberOf(index) << 18) |
    (base === state.zero || base === state.blockRip ? NO_BASE : numberOf(base) << 23)
  );
}

const TABLES = ["SGDT", "SIDT", "LGDT", "LIDT"];
const SELECTORS = ["SLDT", "STR", "LLDT", "LTR"];
const MEMORY = ["VMCLEAR", "VMPTRLD", "VMPTRST", "VMXON", "XSAVES", "XRSTORS"];
const MEMORY_AND_REGISTER = ["INVEPT", "INVVPID", "INVPCID"];
const EITHER_AND_REGISTER = ["VMREAD", "VMWRITE"];
const RANDOM = ["RDRAND", "RDSEED"];

export interface InstructionInformation {
  readonly field: number;
  /** Bits 63:0 of the exit qualification. */
  readonly displacement: bigint;
}

/** Of the instruction at hand, whose mnemonic is told; undefined: its exits have neither. */
export function instructionInformation(engine: GuestEngine, mnemonic: string): InstructionInformation | undefined {
  if (RANDOM.includes(mnemonic)) {
    const operation = decodeAtHand(engine);
    return { field: (registerOf(operation, "rm") << 3) | ((sizeOf(operation) >>> 5) << 11), displacement: 0n };
  }
  const isKnown = [TABLES, SELECTORS, MEMORY, MEMORY_AND_REGISTER, EITHER_AND_REGISTER].some((list) => list.includes(mnemonic));
  if (!isKnown) return undefined;
  const operation = decodeAtHand(engine);
  const hasMemory = isMemory(operation);
  let field = hasMemory ? memoryInformation(operation) : (registerOf(operation, "rm") << 3) | IS_REGISTER;
  if (TABLES.includes(mnemonic)) {
    // Undefined in 64-bit mode, where there is but one size
    if (sizeOf(operation) !== 16) field |= NOT_16_BITS;
    field |= TABLES.indexOf(mnemonic) << 28;
  } else if (SELECTORS.includes(mnemonic)) field |= SELECTORS.indexOf(mnemonic) << 28;
  else if (!MEMORY.includes(mnemonic)) field |= registerOf(operation, "reg") << 28;
  const relative = operation.ripRelative ? engine.nextRip() : 0n;
  return { field: field >>> 0, displacement: hasMemory ? BigInt(operation.displacement) + relative : 0n };
}
