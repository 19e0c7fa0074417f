import { Code } from "iced-x86";
import { CL, EAX, EBX, ECX, EDX, type Label, mem, R13, R13D, R14, RBP, RCX } from "../../assembler/assembler.ts";
import { ApicRegister, FIRST_VECTOR, NMI_COUNT, SECOND_MARK, Shared, TRAMPOLINES, X2apicMsr } from "./layout.ts";
import type { SmpRuntime } from "./runtime.ts";

const LOGICAL = 1 << 11,
  LOWEST_PRIORITY = 1 << 8,
  NMI = 4 << 8,
  ASSERT = 1 << 14;
const SELF = 1 << 18,
  ALL = 2 << 18,
  OTHERS = 3 << 18;
const FLAT = -1,
  CLUSTER = 0x0fff_ffff;
const IA32_APIC_BASE = 0x1b,
  X2APIC = 1 << 10;
/** Task priorities, by CPU, while interrupts go to the one with the lowest. */
const PRIORITIES = [0x40, 0x20, 0x10, 0x30] as const;
/** Where KVM's own routing has GSI 0, which the PIT drives. */
const PIT_PIN = 0;

/** Every way for an interrupt to reach the CPUs that it names, and no other. For four CPUs. */
export class InterruptChecks {
  readonly #run: SmpRuntime;
  /** What the counters must be at the end: nothing may have come twice, late, or to somebody else. */
  readonly #expected: { address: number; count: number }[] = [];
  #vector = FIRST_VECTOR;

  constructor(run: SmpRuntime) {
    this.#run = run;
  }

  /** Sends and waits for exactly these counts. */
  #arrives(name: string, counts: readonly number[], send: (vector: number) => void): void {
    const run = this.#run;
    const vector = this.#vector++;
    send(vector);
    for (const [cpu, count] of counts.entries()) {
      const address = run.block(cpu) + vector * 4;
      run.waitFor(name, address, count);
      this.#expected.push({ address, count });
    }
  }

  xapic(): void {
    const run = this.#run;
    const ipi =
      (low: number, destination = 0) =>
      (vector: number) =>
        run.send(low | ASSERT | vector, destination);
    this.#arrives("physical destination", [0, 1, 0, 0], ipi(0, 1));
    this.#arrives("physical broadcast", [1, 1, 1, 1], ipi(0, 0xff));
    this.#arrives("shorthand self", [1, 0, 0, 0], ipi(SELF));
    this.#arrives("shorthand all", [1, 1, 1, 1], ipi(ALL));
    this.#arrives("shorthand others", [0, 1, 1, 1], ipi(OTHERS));

    run.callAll("flat logical destinations", this.#setLogical(FLAT));
    this.#arrives("logical, flat", [0, 1, 1, 0], ipi(LOGICAL, 0b0110));
    this.#arrives("logical broadcast, flat", [1, 1, 1, 1], ipi(LOGICAL, 0xff));
    run.callAll("task priorities", this.#setPriority(PRIORITIES));
    this.#arrives("lowest priority", [0, 0, 1, 0], ipi(LOGICAL | LOWEST_PRIORITY, 0b1111));
    run.callAll("task priorities of 0", this.#setPriority([0, 0, 0, 0]));

    run.callAll("logical destinations by cluster", this.#setLogical(CLUSTER));
    this.#arrives("logical, both of cluster 1", [0, 0, 1, 1], ipi(LOGICAL, 0x13));
    this.#arrives("logical, one of cluster 0", [1, 0, 0, 0], ipi(LOGICAL, 0x01));
    this.#arrives("logical, cluster without members", [0, 0, 0, 0], ipi(LOGICAL, 0x23));
  }

  /** NMIs reach halted CPUs, and one that comes while another is handled waits for its end. */
  nmis(): void {
    const run = this.#run;
    const counts = [0, 0, 0, 0];
    const send = (name: string, low: number, destination: number, reached: readonly number[]) => {
      run.send(low | ASSERT | NMI, destination);
      for (const cpu of reached) run.waitFor(name, run.block(cpu) + NMI_COUNT, ++counts[cpu]!);
    };
    send("NMI to one", 0, 2, [2]);
    send("NMI to the others", OTHERS, 0, [1, 2, 3]);
    send("NMI to itself", 0, 0, [0]);
    for (let round = 0; round < 2; round++) run.send(ASSERT | NMI, 1);
    counts[1]! += 2;
    run.waitFor("an NMI that waits for another", run.block(1) + NMI_COUNT, counts[1]!);
    for (const [cpu, count] of counts.entries()) this.#expected.push({ address: run.block(cpu) + NMI_COUNT, count });
  }

  /** Interrupts wait in the APIC of a CPU that holds them off, and come once each. */
  heldOff(): void {
    const run = this.#run;
    const { a } = run;
    const hold = a.label("hold interrupts off");
    run.later(() => {
      const again = a.label(),
        others = a.label();
      a.place(hold);
      a.emit(Code.Cmp_rm32_imm8, R13D, 1).emit(Code.Jne_rel32_64, others);
      run.store(Shared.held, 1);
      a.place(again);
      a.emit(Code.Pause).emit(Code.Cmp_rm32_imm32, mem(RBP, Shared.release), 0).emit(Code.Je_rel32_64, again);
      a.place(others);
      a.emit(Code.Retnq);
    });
    const vectors = [this.#vector++, this.#vector++];
    run.store(Shared.release, 0);
    run.callWithout("a CPU holds interrupts off", hold, () => {
      run.waitFor("the CPU holds them off", Shared.held, 1);
      for (const vector of vectors) run.send(ASSERT | vector, 1);
      run.delay(300);
      for (const vector of vectors) run.expectWord("nothing arrives meanwhile", run.block(1) + vector * 4, 0);
      run.store(Shared.release, 1);
    });
    for (const vector of vectors) {
      const address = run.block(1) + vector * 4;
      run.waitFor("what waited arrives", address, 1);
      this.#expected.push({ address, count: 1 });
    }
  }

  /** A line of the IOAPIC, driven by the PIT, goes to the CPU that its redirection entry names. */
  ioApic(): void {
    const run = this.#run;
    this.#arrives("IOAPIC to CPU 2", [0, 0, 1, 0], (vector) => {
      run.setIoApic(0x11 + 2 * PIT_PIN, 2 << 24);
      run.setIoApic(0x10 + 2 * PIT_PIN, vector);
      run.out(0x43, 0x30); // channel 0, mode 0: one edge
      run.out(0x40, 100);
      run.out(0x40, 0);
    });
    run.setIoApic(0x10 + 2 * PIT_PIN, 1 << 16);
  }

  /** INIT stops a CPU that runs; it starts again where the next SIPI says. */
  again(): void {
    const run = this.#run;
    run.expectWord("the second SIPI of the first start did nothing", Shared.alive, run.cpus - 1);
    run.store(SECOND_MARK, 0);
    run.send(ASSERT | 0x500, 3);
    run.delay(300);
    // It waits for a SIPI: neither interrupts nor NMIs start it
    const vector = this.#vector++;
    run.send(ASSERT | vector, 3);
    run.delay(100);
    run.expectWord("no interrupt before SIPI", run.block(3) + vector * 4, 0);
    // INIT turned the APIC off, so that the interrupt is lost
    this.#expected.push({ address: run.block(3) + vector * 4, count: 0 });
    run.send(ASSERT | 0x600 | (TRAMPOLINES[1] >> 12), 3);
    run.waitFor("SIPI starts the CPU again", Shared.alive, run.cpus);
    run.waitFor("where SIPI says", SECOND_MARK, 1);
  }

  /** The last: local APICs do not come back from x2APIC mode. */
  x2apic(): void {
    const run = this.#run;
    const { a } = run;
    const enable = a.label("enable x2APIC");
    run.later(() => {
      a.place(enable);
      a.emit(Code.Mov_r32_imm32, ECX, IA32_APIC_BASE).emit(Code.Rdmsr).emit(Code.Or_rm32_imm32, EAX, X2APIC);
      a.emit(Code.Wrmsr).emit(Code.Retnq);
    });
    run.store(Shared.x2apic, 1);
    run.callAll("x2APIC mode", enable);
    const ipi =
      (low: number, destination = 0) =>
      (vector: number) =>
        run.sendX2apic(low | ASSERT | vector, destination);
    this.#arrives("x2APIC, physical destination", [0, 0, 0, 1], ipi(0, 3));
    this.#arrives("x2APIC, physical broadcast", [1, 1, 1, 1], ipi(0, -1));
    this.#arrives("x2APIC, logical", [0, 1, 0, 1], ipi(LOGICAL, 0b1010));
    this.#arrives("x2APIC, shorthand others", [0, 1, 1, 1], ipi(OTHERS));
    this.#arrives("x2APIC, self", [1, 0, 0, 0], (vector) => run.wrmsr(X2apicMsr.selfIpi, vector));
  }

  /** Counters again, at the end of everything. */
  nothingMore(): void {
    for (const { address, count } of this.#expected) this.#run.expectWord("nothing came twice or to others", address, count);
  }

  /** Bit of the CPU in its LDR: by number, or cluster id / 2 and one of two bits in it. */
  #setLogical(format: number): Label {
    const run = this.#run;
    const { a } = run;
    const routine = a.label(`logical ids ${format}`);
    run.later(() => {
      a.place(routine);
      run.setApic(ApicRegister.dfr, format);
      a.emit(Code.Mov_r64_rm64, RCX, R13).emit(Code.Mov_r32_imm32, EBX, 0);
      if (format === CLUSTER) {
        a.emit(Code.Mov_r32_rm32, EBX, ECX).emit(Code.Shr_rm32_imm8, EBX, 1).emit(Code.Shl_rm32_imm8, EBX, 4);
        a.emit(Code.And_rm32_imm32, ECX, 1);
      }
      a.emit(Code.Mov_r32_imm32, EDX, 1).emit(Code.Shl_rm32_CL, EDX, CL).emit(Code.Or_r32_rm32, EDX, EBX);
      a.emit(Code.Shl_rm32_imm8, EDX, 24).emit(Code.Mov_rm32_r32, mem(R14, ApicRegister.ldr), EDX).emit(Code.Retnq);
    });
    return routine;
  }

  #setPriority(priorities: readonly number[]): Label {
    const run = this.#run;
    const { a } = run;
    const routine = a.label(`priorities ${priorities}`);
    run.later(() => {
      a.place(routine);
      for (const [cpu, priority] of priorities.entries()) {
        const next = a.label();
        a.emit(Code.Cmp_rm32_imm8, R13D, cpu).emit(Code.Jne_rel32_64, next);
        run.setApic(ApicRegister.tpr, priority);
        a.place(next);
      }
      a.emit(Code.Retnq);
    });
    return routine;
  }
}
