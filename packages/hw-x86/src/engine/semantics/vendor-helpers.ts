/** The rare paths on which vendors differ; see vendor-behaviour.ts. */
import type { Gva } from "../../addresses.ts";
import type { Cpu } from "../cpu.ts";
import { gprOffset, RSP, SS, state } from "../cpu-state.ts";
import { setTop } from "../fpu/x87-state.ts";
import type { HelperTable } from "../helpers.ts";
import { op } from "../operation.ts";
import { Vector } from "../system/bits.ts";
import { isCanonicalHigh } from "../system/linear-address.ts";
import { doesBehave, VendorBehaviour } from "../vendor-behaviour.ts";

/** At the start of a repeated string instruction with something in upper halves. `registers`: bit mask of what it may clear. */
function clearUpperHalves(cpu: Cpu, registers: number): void {
  if (!doesBehave(cpu, VendorBehaviour.repeatClearsUpperHalves)) return;
  if (cpu.u8[cpu.operation + op.addressSize] !== 32 || cpu.u32[state.codeSize >>> 2] !== 64) return;
  for (let i = 0; i < 16; i++) if (((registers >>> i) & 1) !== 0) cpu.u32[(gprOffset(i) + 4) >>> 2] = 0;
}

/** A near call with operands of `size` bits to where it cannot go, unless it is canonical. Raises #GP, or the stack's fault. */
function refuseCall(cpu: Cpu, size: number, high: number): void {
  if (size === 64 && isCanonicalHigh(cpu, high)) return;
  if (doesBehave(cpu, VendorBehaviour.callPushesFirst)) {
    const bytes = (size / 8) as 2 | 4 | 8;
    const offset = (cpu.reg(RSP) - BigInt(bytes)) & cpu.get64(state.stackMask);
    const top: Gva = cpu.linear(SS, offset, bytes, true);
    cpu.writeLinear(top, bytes, BigInt.asUintN(size, cpu.nextRip()));
  }
  cpu.raise(Vector.GP, 0);
}

/** Before the store of an MMX register, which ends with TOP 0 and all tags valid in any case. `andTags`: MASKMOVQ. */
function beginMmxStore(cpu: Cpu, andTags: number): void {
  if (!doesBehave(cpu, VendorBehaviour.mmxStoreSetsTopFirst)) return;
  setTop(cpu, 0);
  if (andTags !== 0) cpu.u16[state.fpuTags >>> 1] = 0;
}

export const vendorHelpers: HelperTable = { clearUpperHalves, refuseCall, beginMmxStore };
