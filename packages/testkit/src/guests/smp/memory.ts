import { Code } from "iced-x86";
import { CR3, EAX, EBX, ECX, EDX, mem, R15, RAX, RBP, RBX } from "../../assembler/assembler.ts";
import { ALIAS, ALIAS_TABLES, FRAMES, PATCHED, RESULT, Shared } from "./layout.ts";
import type { SmpRuntime } from "./runtime.ts";

/** Rounds of each CPU in the race for the shared counters. */
const ROUNDS = 60;
/** How often the page changes its frame, and the routine its result. */
const CHANGES = 12;

/** Memory that CPUs share: atomic operations, translations that one changes for all, code that one writes and others run. */
export class MemoryChecks {
  readonly #run: SmpRuntime;

  constructor(run: SmpRuntime) {
    this.#run = run;
  }

  /** All CPUs at once: LOCK INC, LOCK XADD, LOCK CMPXCHG in a loop, and a plain counter under a spin lock. */
  atomics(): void {
    const run = this.#run;
    const { a } = run;
    const race = a.label("race");
    run.later(() => {
      const round = a.label(),
        retry = a.label(),
        acquire = a.label(),
        acquired = a.label(),
        busy = a.label();
      a.place(race);
      a.emit(Code.Mov_r32_imm32, ECX, ROUNDS);
      a.place(round);
      a.bytes(0xf0).emit(Code.Inc_rm32, mem(RBP, Shared.incremented));
      a.emit(Code.Mov_r32_imm32, EAX, 3).bytes(0xf0).emit(Code.Xadd_rm32_r32, mem(RBP, Shared.added), EAX);
      a.emit(Code.Mov_r32_rm32, EAX, mem(RBP, Shared.exchanged));
      a.place(retry);
      a.emit(Code.Mov_r32_rm32, EBX, EAX).emit(Code.Add_rm32_imm32, EBX, 5);
      a.bytes(0xf0).emit(Code.Cmpxchg_rm32_r32, mem(RBP, Shared.exchanged), EBX).emit(Code.Jne_rel32_64, retry);
      a.place(acquire);
      a.bytes(0xf0).emit(Code.Bts_rm32_imm8, mem(RBP, Shared.lock), 0).emit(Code.Jae_rel32_64, acquired);
      a.place(busy);
      a.emit(Code.Pause).emit(Code.Test_rm32_imm32, mem(RBP, Shared.lock), 1).emit(Code.Jne_rel32_64, busy);
      a.emit(Code.Jmp_rel32_64, acquire);
      a.place(acquired);
      // PAUSE inside of the lock: others come to find it taken
      a.emit(Code.Mov_r32_rm32, EDX, mem(RBP, Shared.locked)).emit(Code.Pause).emit(Code.Inc_rm32, EDX);
      a.emit(Code.Mov_rm32_r32, mem(RBP, Shared.locked), EDX);
      run.store(Shared.lock, 0);
      a.emit(Code.Dec_rm32, ECX).emit(Code.Jne_rel32_64, round).emit(Code.Retnq);
    });
    run.callAll("a race of all CPUs", race);
    const total = run.cpus * ROUNDS;
    run.expectWord("LOCK INC", Shared.incremented, total);
    run.expectWord("LOCK XADD", Shared.added, 3 * total);
    run.expectWord("LOCK CMPXCHG", Shared.exchanged, 5 * total);
    run.expectWord("a spin lock", Shared.locked, total);
  }

  /** A page changes its frame; after INVLPG on each CPU nobody sees the old one. */
  shootdown(): void {
    const run = this.#run;
    const { a } = run;
    const leaf = ALIAS_TABLES + 0x1000;
    const read = a.label("read the alias"),
      invalidate = a.label("invalidate the alias");
    run.later(() => {
      a.place(read);
      a.emit(Code.Mov_r64_imm64, RBX, ALIAS)
        .emit(Code.Mov_r32_rm32, EAX, mem(RBX))
        .emit(Code.Mov_rm32_r32, mem(R15, RESULT), EAX);
      a.emit(Code.Retnq);
      a.place(invalidate);
      a.emit(Code.Mov_r64_imm64, RBX, ALIAS).emit(Code.Invlpg_m, mem(RBX)).emit(Code.Retnq);
    });
    // PDPT entry 256 by way of a directory and a table of our own; their other entries are empty
    const slot = Number((ALIAS >> 30n) & 511n);
    a.emit(Code.Mov_r64_cr, RBX, CR3).emit(Code.Mov_r64_rm64, RBX, mem(RBX)).emit(Code.And_rm64_imm32, RBX, -4096);
    a.emit(Code.Mov_rm64_imm32, mem(RBX, slot * 8), ALIAS_TABLES + 3);
    a.emit(Code.Mov_rm64_imm32, mem(RBP, ALIAS_TABLES), leaf + 3);
    const map = (frame: number) => a.emit(Code.Mov_rm64_imm32, mem(RBP, leaf), frame + 3);
    for (const [index, frame] of FRAMES.entries()) run.store(frame, 0x1111 * (index + 1));
    map(FRAMES[0]);
    for (let change = 0; change < CHANGES; change++) {
      run.callAll("a read of the page", read);
      for (let cpu = 0; cpu < run.cpus; cpu++) {
        run.expectWord("every CPU sees the new frame", run.block(cpu) + RESULT, 0x1111 * ((change & 1) + 1));
      }
      map(FRAMES[(change + 1) & 1]!);
      run.callAll("an INVLPG on each CPU", invalidate);
    }
  }

  /** A routine is written by one CPU; after a serializing instruction the others run what is there now. */
  crossModifying(): void {
    const run = this.#run;
    const { a } = run;
    const call = a.label("call what was written");
    run.later(() => {
      const again = a.label();
      a.place(call);
      a.emit(Code.Mov_r32_imm32, EAX, 0).emit(Code.Mov_r32_imm32, ECX, 0).emit(Code.Cpuid);
      // Often enough that it is worth translating
      a.emit(Code.Mov_r32_imm32, ECX, 100);
      a.place(again);
      a.emit(Code.Mov_r64_imm64, RAX, BigInt(PATCHED)).emit(Code.Call_rm64, RAX);
      a.emit(Code.Dec_rm32, ECX).emit(Code.Jne_rel32_64, again);
      a.emit(Code.Mov_rm32_r32, mem(R15, RESULT), EAX).emit(Code.Retnq);
    });
    // mov eax, imm32; ret
    run.store(PATCHED, 0xb8);
    run.store(PATCHED + 5, 0xc3);
    for (let change = 1; change <= CHANGES; change++) {
      run.store(PATCHED + 1, change * 0x1_0001);
      run.callAll("a call of what was written", call);
      for (let cpu = 0; cpu < run.cpus; cpu++) {
        run.expectWord("every CPU runs the new version", run.block(cpu) + RESULT, change * 0x1_0001);
      }
    }
  }
}
