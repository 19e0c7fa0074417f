/**
 * A guest that checks from inside that its CPUs work together: start-up, interrupts in every form, atomic operations, TLB shootdown,
 * code that one CPU writes and others run. A flat64 image: entered on the boot CPU in 64-bit mode with the first 4 GiB mapped one to
 * one, GDT selectors 0x10 (code) and 0x18 (data), an in-kernel APIC, IOAPIC and PIT.
 */
import { InterruptChecks } from "./interrupts.ts";
import { EXIT_PORT, ORIGIN, PASSED } from "./layout.ts";
import { MemoryChecks } from "./memory.ts";
import { SmpRuntime } from "./runtime.ts";

export interface SmpGuest {
  readonly image: Uint8Array;
  /** Where it is loaded and entered. */
  readonly origin: number;
  readonly memoryBytes: number;
  readonly cpus: number;
  /** A byte written to this port ends it. */
  readonly exitPort: number;
  /** What the byte says: undefined when all checks have passed, else the check that has not. */
  failure(byte: number): string | undefined;
}

/** `interrupts`: also every form of an interrupt between CPUs, which is written for four. */
export function smpGuest(options: { cpus: number; interrupts: boolean }): SmpGuest {
  const { cpus } = options;
  if (options.interrupts && cpus !== 4) throw new Error("the checks of interrupts are for 4 CPUs");
  const run = new SmpRuntime(cpus);
  const memory = new MemoryChecks(run);
  run.startOthers();
  memory.atomics();
  if (options.interrupts) {
    const interrupts = new InterruptChecks(run);
    memory.shootdown();
    memory.crossModifying();
    interrupts.xapic();
    interrupts.nmis();
    interrupts.heldOff();
    interrupts.ioApic();
    interrupts.again();
    interrupts.x2apic();
    interrupts.nothingMore();
  }
  run.pass();
  const image = run.assemble();
  return {
    image,
    origin: ORIGIN,
    memoryBytes: 4 << 20,
    cpus,
    exitPort: EXIT_PORT,
    failure: (byte) => (byte === PASSED ? undefined : (run.checks[byte - 2] ?? `the guest ended with ${byte}`)),
  };
}
