/**
 * Whether the instruction that ran was a branch that was taken, which ends a step with IA32_DEBUGCTL.BTF and is what branch records
 * record (Intel SDM Vol. 3B, Single-Stepping on Branches; AMD64 APM Vol. 2, Control-Transfer Recording). Where RIP went does not tell: a
 * taken branch may lead to the very next instruction, and to itself as a repeated string instruction does.
 */
import type { Cpu } from "./cpu.ts";
import { RCX } from "./cpu-state.ts";
import type { Variant } from "./decoder/variant.ts";
import { op } from "./operation.ts";
import { Flag } from "./system/bits.ts";

/** Events (INT n and its kin) are told apart by their delivery. */
const ALWAYS: ReadonlySet<string> = new Set("JMP CALL RET IRET/IRETD/IRETQ SYSCALL SYSRET SYSENTER SYSEXIT".split(" "));

/** The condition of that code (ConditionCode in emitter.ts). */
function holds(code: number, flags: number): boolean {
  const isLess = ((flags & Flag.SF) !== 0) !== ((flags & Flag.OF) !== 0);
  const positive = [
    (flags & Flag.OF) !== 0,
    (flags & Flag.CF) !== 0,
    (flags & Flag.ZF) !== 0,
    (flags & (Flag.CF | Flag.ZF)) !== 0,
    (flags & Flag.SF) !== 0,
    (flags & Flag.PF) !== 0,
    isLess,
    isLess || (flags & Flag.ZF) !== 0,
  ][code >>> 1];
  return positive !== ((code & 1) !== 0);
}

/** rCX as the operation's address size has it. */
function counter(cpu: Cpu, record: number): bigint {
  return BigInt.asUintN(cpu.u8[record + op.addressSize], cpu.reg(RCX));
}

/**
 * Of the conditional branches. They change neither the flags that they ask for nor, once they have counted, rCX: so that afterwards it is
 * still to be seen.
 */
const CONDITIONS: Readonly<Record<string, (cpu: Cpu, variant: Variant, record: number) => boolean>> = {
  Jcc: (cpu, variant) => holds(variant.condition ?? 0, cpu.readFlags()),
  JRCXZ: (cpu, _variant, record) => counter(cpu, record) === 0n,
  LOOP: (cpu, _variant, record) => counter(cpu, record) !== 0n,
  LOOPE: (cpu, _variant, record) => counter(cpu, record) !== 0n && (cpu.readFlags() & Flag.ZF) !== 0,
  LOOPNE: (cpu, _variant, record) => counter(cpu, record) !== 0n && (cpu.readFlags() & Flag.ZF) === 0,
};

/** `record`: the operation, which was of that variant, has run by itself and met no fault. */
export function isTakenBranch(cpu: Cpu, variant: Variant, record: number): boolean {
  const { mnemonic } = variant.instruction;
  return ALWAYS.has(mnemonic) || CONDITIONS[mnemonic]?.(cpu, variant, record) === true;
}
