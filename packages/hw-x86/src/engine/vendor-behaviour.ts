/**
 * What Intel's and AMD's processors do differently in instructions that both have. A guest can see each of these, and the manuals
 * either settle it for one vendor only or leave it open; what is said here of either was found on its silicon as well
 * (test/silicon.test.ts compares with the processor at hand, test/vendor-behaviour.test.ts has a case of each for both vendors).
 *
 * The word `state.vendorBehaviour` has a bit for each difference, set where the CPU does what is described. Rows and helpers ask for
 * it on rare paths only.
 */
import type { Cpu, CpuModel } from "./cpu.ts";
import { state } from "./cpu-state.ts";
import type { Bool, Emitter } from "./emitter.ts";

/** Numbers of bits. Each says what Intel's processors do; AMD's do what comes after "else". */
export const VendorBehaviour = {
  /**
   * A repeated string instruction with 32-bit addresses in 64-bit mode clears the upper half of RCX before anything else, and those of
   * the pointers that it stores through: RSI and RDI of MOVS, RDI of STOS. So it does with a count of zero and where the first element
   * faults; else registers change with the element that is done. The manuals are silent; Linux has the same of Intel's processors
   * ("string_registers_quirk" of KVM's emulator).
   */
  repeatClearsUpperHalves: 0,
  /**
   * REPE and REPNE CMPS and SCAS set flags when they end: faults, traps and interrupts on the way find those from before the
   * instruction (Intel SDM Vol. 2B, "REP/REPE/REPZ/REPNE/REPNZ - Repeat String Operation Prefix", says so of faults); else they are
   * those of the last element.
   */
  scanSetsFlagsAtEnd: 1,
  /**
   * A near call writes the return address before it refuses a target that is not canonical or beyond the segment's limit, so that a
   * fault of the stack comes first and the word below the stack pointer, which stays, is lost; else the target is checked first.
   */
  callPushesFirst: 2,
  /**
   * A store of an MMX register sets TOP to 0 before its memory operand faults, and MASKMOVQ the tags too; else a fault leaves the
   * x87 state alone.
   */
  mmxStoreSetsTopFirst: 3,
  /**
   * An unmasked numeric exception for which an x87 store stores nothing keeps it from its memory operand, which does not fault then;
   * else the operand is checked first.
   */
  x87StoreChecksNumberFirst: 4,
  /**
   * FSIN and FPTAN of angles below 2^-68 are the angle, their cosine is 1, inexact and whatever the rounding; else they are rounded as
   * all results are. Both are within the error that the manuals grant.
   */
  tinyAnglesAreNotRounded: 5,
  /** Memory operands of SHA instructions that are not aligned are #GP, as the manual says of legacy SSE encodings; else they are read. */
  shaChecksAlignment: 6,
  /**
   * A gather makes each element of its mask all ones or zero before it loads anything (Intel SDM Vol. 2C, the operation of VPGATHERDD), as a
   * fault on the way shows; else the mask of what was not loaded stays as it was.
   */
  gatherWidensMask: 7,
  /**
   * REX.W makes the pointer in memory of LSS, LFS, LGS and of far CALL and JMP one of 64 bits and a selector (Intel SDM Vol. 2A,
   * LDS/LES/LFS/LGS/LSS; CALL; JMP); else it has 32 bits, and the register that LSS, LFS and LGS load is one of 32 (AMD64 APM Vol. 3, LDS
   * LES LFS LGS LSS; CALL (Far); JMP (Far)).
   */
  farPointersHave64Bits: 8,
  /** SERIALIZE is an instruction (Intel SDM Vol. 2B, SERIALIZE; CPUID.7.0:EDX bit 14); else #UD. */
  hasSerialize: 9,
} as const;
export type VendorBehaviour = (typeof VendorBehaviour)[keyof typeof VendorBehaviour];

/** The word of a vendor's processors. */
export function behaviourOf(vendor: CpuModel["vendor"]): number {
  return vendor === "intel" ? Object.values(VendorBehaviour).reduce<number>((word, bit) => word | (1 << bit), 0) : 0;
}

/** For rows: whether the CPU does so. */
export function behaves(e: Emitter, behaviour: VendorBehaviour): Bool {
  return e.bit(e.state(state.vendorBehaviour, 32), behaviour);
}

/** For helpers. */
export function doesBehave(cpu: Pick<Cpu, "u32">, behaviour: VendorBehaviour): boolean {
  return (((cpu.u32[state.vendorBehaviour >>> 2] as number) >>> behaviour) & 1) !== 0;
}
