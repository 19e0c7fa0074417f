/** Emulation of instructions that touch MMIO, with its trips to user space. */
import { FragmentState, PendingExitFlag, PendingExitKind, type Section, VcpuPendingExit } from "@mkvm/kvm-abi";
import { createFetcher, decode } from "./decoder.ts";
import type { EmulatedCpu, Emulation } from "./emulated-cpu.ts";
import { execute } from "./execute.ts";
import { createInstructionState, type Fragment } from "./instruction-state.ts";
import { FaultSignal, MmioReadSignal, UnsupportedSignal } from "./signals.ts";

const NO_BYTES = new Uint8Array(0);
/** Iterations of a repeated instruction in one go: then the vCPU looks for interrupts again. */
const MAX_ITERATIONS = 256;

/**
 * Emulates the instruction at RIP that touched MMIO. Restartable: an instruction whose read must go to user space changes nothing
 * and runs anew, with the data, at `complete`; writes are handed out after the instruction has finished, RIP moved.
 */
export interface MmioEmulator {
  emulate(cpu: EmulatedCpu): Emulation;
  /** KVM_RUN after KVM_EXIT_MMIO: `data` is what user space put in kvm_run (reads). Goes on to the next fragment, or finishes. */
  complete(cpu: EmulatedCpu, data: Uint8Array): Emulation;
  /** A fragment is at user space. */
  readonly pending: boolean;
  /** Section vcpu.pending-exit, of kind mmio, or undefined when nothing is pending. */
  save(vcpuId: number): Section | undefined;
  restore(section: Section): string | undefined;
  /** Forgets what is pending (reset, KVM_SET_REGS). */
  clear(): void;
}

export function createMmioEmulator(): MmioEmulator {
  /** Reads that the instruction made so far, from devices and user space. */
  let reads: Fragment[] = [];
  /** The read at user space. */
  let awaited: { gpa: number; length: number } | undefined;
  /** Writes left; the first is at user space. */
  let writes: Fragment[] = [];
  /** RIP of the instruction that waits for a read. */
  let rip = 0n;

  function clear(): void {
    reads = [];
    awaited = undefined;
    writes = [];
    rip = 0n;
  }
  const writeExit = ({ gpa, length, data }: Fragment): Emulation => ({ kind: "mmio", isWrite: true, gpa, length, data });

  function run(cpu: EmulatedCpu): Emulation {
    const fetcher = createFetcher(cpu);
    try {
      const decoded = decode(cpu, fetcher);
      for (let i = 0; i < MAX_ITERATIONS; i++) {
        const state = createInstructionState(cpu, reads);
        const finished = execute(cpu, decoded, state);
        const toUser = state.commit();
        reads = [];
        if (finished) {
          const next = cpu.rip + BigInt(decoded.length);
          cpu.rip = cpu.codeBits === 64 ? BigInt.asUintN(64, next) : cpu.codeBits === 32 ? next & 0xffff_ffffn : next & 0xffffn;
        }
        if (toUser.length > 0) {
          writes = toUser;
          return writeExit(writes[0]);
        }
        if (finished) break;
      }
      return { kind: "done" };
    } catch (signal) {
      if (signal instanceof MmioReadSignal) {
        awaited = { gpa: signal.gpa, length: signal.length };
        rip = cpu.rip;
        return { kind: "mmio", isWrite: false, ...awaited, data: NO_BYTES };
      }
      reads = [];
      if (signal instanceof FaultSignal) return { kind: "fault", fault: signal.fault };
      if (signal instanceof UnsupportedSignal) return { kind: "unsupported", bytes: instructionBytes(fetcher) };
      throw signal;
    }
  }
  /** All 15 bytes where they can be had: the report is for somebody who wants to decode them. */
  function instructionBytes(fetcher: ReturnType<typeof createFetcher>): Uint8Array {
    try {
      while (fetcher.bytes.length < 15) fetcher.next();
    } catch (signal) {
      if (!(signal instanceof FaultSignal || signal instanceof UnsupportedSignal)) throw signal;
    }
    return Uint8Array.from(fetcher.bytes);
  }

  return {
    emulate(cpu) {
      clear();
      return run(cpu);
    },
    complete(cpu, data) {
      if (awaited) {
        const { gpa, length } = awaited;
        awaited = undefined;
        if (cpu.rip !== rip) {
          // User space moved the vCPU elsewhere: nobody waits for this read any more
          clear();
          return { kind: "done" };
        }
        reads.push({ gpa, length, data: data.slice(0, length) });
        return run(cpu);
      }
      writes.shift();
      return writes.length > 0 ? writeExit(writes[0]) : { kind: "done" };
    },
    get pending() {
      return awaited !== undefined || writes.length > 0;
    },
    save(vcpuId) {
      if (!awaited && writes.length === 0) return undefined;
      const eight = (data: Uint8Array) => {
        const out = new Uint8Array(8);
        out.set(data);
        return out;
      };
      const fixed = { kind: PendingExitKind.mmio, flags: awaited ? 0 : PendingExitFlag.write, rip };
      const entry = ({ gpa, length, data }: Fragment, state: number, isWrite: number) => ({
        address: BigInt(gpa),
        length,
        state,
        is_write: isWrite,
        data: eight(data),
      });
      const entries = awaited
        ? [
            ...reads.map((read) => entry(read, FragmentState.complete, 0)),
            entry({ ...awaited, data: NO_BYTES }, FragmentState.atUserSpace, 0),
          ]
        : writes.map((write, i) => entry(write, i === 0 ? FragmentState.atUserSpace : FragmentState.waiting, 1));
      return VcpuPendingExit.encode(vcpuId, fixed, entries);
    },
    restore(section) {
      const decoded = VcpuPendingExit.decode(section);
      if (typeof decoded === "string") return decoded;
      const { fixed, entries } = decoded;
      clear();
      if (fixed.kind !== PendingExitKind.mmio)
        return `section ${section.name}[${section.instance}] is of kind ${fixed.kind}, not MMIO`;
      rip = fixed.rip;
      for (const { address, length, state, is_write, data } of entries) {
        if (length < 1 || length > 8) return `section ${section.name}[${section.instance}] has an access of ${length} bytes`;
        const fragment = { gpa: Number(address), length, data: data.slice(0, length) };
        if (is_write) writes.push(fragment);
        else if (state === FragmentState.complete) reads.push(fragment);
        else awaited = { gpa: fragment.gpa, length };
      }
      return undefined;
    },
    clear,
  };
}
