/** A CPU that is a state block and flat memory, enough for floating-point helpers to run on alone. */
import type { Gva } from "../src/addresses.ts";
import type { Cpu, CpuModel } from "../src/engine/cpu.ts";
import { state } from "../src/engine/cpu-state.ts";
import { resetFpu } from "../src/engine/fpu/fxsave.ts";
import { behaviourOf } from "../src/engine/vendor-behaviour.ts";

/** Thrown by `raise`. */
export class Raised extends Error {
  readonly vector: number;
  constructor(vector: number) {
    super(`exception ${vector}`);
    this.vector = vector;
  }
}

const BYTES = 0x10000;
/** Where memory operands are. */
export const OPERAND_AT = 0x8000;
const OPERATION_AT = 0x9000;

/** The parts of `Cpu` that helpers of the fpu folder use. `vendor`: whose processors they are to behave as. */
export function floatCpu(vendor: CpuModel["vendor"] = "intel"): Cpu {
  const buffer = new ArrayBuffer(BYTES);
  const u8 = new Uint8Array(buffer);
  const u32 = new Uint32Array(buffer);
  const u64 = new BigUint64Array(buffer);
  const parts = {
    u8,
    u32,
    u64,
    u16: new Uint16Array(buffer),
    i32: new Int32Array(buffer),
    view: new DataView(buffer),
    bankBytes: BYTES,
    operation: OPERATION_AT,
    get32: (offset: number) => u32[offset >> 2],
    set32: (offset: number, value: number) => {
      u32[offset >> 2] = value;
    },
    get64: (offset: number) => u64[offset >> 3],
    set64: (offset: number, value: bigint) => {
      u64[offset >> 3] = value;
    },
    reg: (index: number) => u64[(state.gpr >> 3) + index],
    linear: (_segment: number, offset: bigint) => offset as Gva,
    readLinear: (address: Gva, bytes: number) => BigInt.asUintN(bytes * 8, parts.view.getBigUint64(Number(address), true)),
    writeLinear: (address: Gva, _bytes: number, value: bigint) => {
      u8[Number(address)] = Number(value);
    },
    readLinearBytes: (address: Gva, target: Uint8Array) => {
      target.set(u8.subarray(Number(address), Number(address) + target.length));
    },
    writeLinearBytes: (address: Gva, source: Uint8Array) => {
      u8.set(source, Number(address));
    },
    probeWrite: () => undefined,
    raise: (vector: number): never => {
      throw new Raised(vector);
    },
  };
  const cpu = parts as unknown as Cpu;
  resetFpu(cpu);
  u32[state.vendorBehaviour >> 2] = behaviourOf(vendor);
  u32[state.cr0 >> 2] = 0x8000_0031;
  u32[state.cr4 >> 2] = 0x600;
  u32[state.codeSize >> 2] = 64;
  return cpu;
}
