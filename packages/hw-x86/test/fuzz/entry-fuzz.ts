/**
 * VM entries with fields of the VMCS or VMCB that are valid, nearly valid or plain wrong, and a bounded run of whatever guest that makes.
 * Each entry must be refused by its rules or come back with an exit that exists; memory that is not the guest's must be as it was.
 */

import { Efer } from "../../src/engine/system/bits.ts";
import { Control, ExitCode, Intercept3, Intercept4, Save } from "../../src/svm/vmcb.ts";
import { exitReasonName } from "../../src/vmx/controls.ts";
import { VmcsField, type VmcsFieldName } from "../../src/vmx/fields.ts";
import { type Random, seededRandom } from "../random.ts";
import { BANK } from "../vmx-harness.ts";
import { extrasOf, makeGuest } from "./guest-image.ts";
import { type GuestMachine, SvmMachine, VmxMachine } from "./guest-machines.ts";

const ENTRIES = 4;
const INSTRUCTIONS = 300;
const MOST_MUTATIONS = 5;
const SCRATCH_PAGES = 4;
/** Written over memory that nobody has to do with, and looked for in what the guest can see. */
const SECRET = 0x5ec2_e7a1_d00d_f00dn;
const SECRET_WORDS = 4096;

const HOLDS_ADDRESS = /ADDRESS|BITMAP_[AB]|MSR_BITMAP|BASE$|POINTER|CR3|PAGE$|TABLE/;
/** Addresses of the guest's own. */
const IS_GUESTS = /^(GUEST|HOST|CR3_TARGET|XSS)|^(ES|CS|SS|DS|FS|GS|LDTR|TR|GDTR|IDTR)/;

/** A field's value after a mutation: a bit turned, a limit, something random, or what another field holds. */
function mutated(random: Random, old: bigint): bigint {
  switch (random.below(6)) {
    case 0:
    case 1:
    case 2:
      return old ^ (1n << BigInt(random.oneIn(4) ? random.below(64) : random.below(20)));
    case 3:
      return random.pick([
        0n,
        1n,
        0xffn,
        0xffffn,
        0xffff_ffffn,
        0xffff_ffff_ffff_ffffn,
        0x8000_0000_0000n,
        0x7fff_ffff_ffffn,
        0x8000_0000n,
      ]);
    case 4:
      return old + BigInt(random.below(9) - 4);
    default:
      return random.oneIn(2) ? random.next64() : BigInt(random.next());
  }
}

/** Fills memory between what the harness uses and what the guest has. */
class Guard {
  readonly #words: BigUint64Array;
  constructor(bank: { u64: BigUint64Array }, from: number) {
    this.#words = bank.u64.subarray(from >>> 3, (from >>> 3) + SECRET_WORDS).fill(SECRET);
  }
  check(machine: GuestMachine): void {
    if (this.#words.some((word) => word !== SECRET)) throw new Error("memory beside the guest's was written");
    for (let i = 0; i < 16; i++)
      if (machine.cpu.gpr(i) === SECRET) throw new Error("a register holds what lies beside the guest's memory");
  }
}

/** An address for a structure of the host's: scratch memory, not aligned, where no memory is, past the address width. */
function hostAddress(random: Random, scratch: number): bigint {
  const there = (BigInt(BANK) << 32n) | BigInt(scratch);
  return random.pick([there, there, there + 0x1000n, there + 8n, there + 1n, 9n << 32n, 1n << 52n, 0n]);
}

export class VmcsFuzzer {
  #machine!: VmxMachine;
  #scratch = 0;
  #guard!: Guard;
  readonly #names: readonly VmcsFieldName[];
  readonly outcomes = new Map<string, number>();

  constructor() {
    this.#powerOn();
    this.#names = (Object.entries(VmcsField) as [VmcsFieldName, number][])
      .filter(([, encoding]) => ((encoding >> 10) & 3) !== 1)
      .map(([name]) => name);
  }
  #powerOn(): void {
    this.#machine = new VmxMachine({ translate: "hot", hotEntries: 12 });
    const { harness } = this.#machine;
    this.#scratch = harness.page(SCRATCH_PAGES);
    this.#guard = new Guard(harness.bank, harness.page((SECRET_WORDS * 8) / 4096));
  }

  runCase(seed: number): void {
    const random = seededRandom(seed);
    const { harness } = this.#machine;
    const done: string[] = [];
    try {
      this.#machine.begin(makeGuest(random, undefined, extrasOf(seed)));
      for (let i = 0; i < 1024 * SCRATCH_PAGES; i++) harness.bank.u32[(this.#scratch >>> 2) + i] = this.#scratchWord(random, i);
      for (let i = random.below(MOST_MUTATIONS); i >= 0; i--) done.push(this.#mutate(random));
      for (let entry = 0; entry < ENTRIES; entry++) {
        const { what, isOver } = this.#machine.enter(INSTRUCTIONS);
        done.push(what);
        this.#count(what);
        this.#guard.check(this.#machine);
        if (what.startsWith("refused")) {
          if (!/VMX error [78]/.test(what)) throw new Error("an entry was refused for no reason that is one of VM entry's");
          return;
        }
        const reason = harness.read("EXIT_REASON");
        if (/^\d/.test(exitReasonName(reason & 0xffff)))
          throw new Error(`exit for reason ${reason.toString(16)}, which there is not`);
        if (reason > 0xffff && !what.startsWith("entryFailure")) throw new Error("a failed entry has the reason of an exit");
        if (reason > 0xffff && entry > 0 && done.at(-2)?.startsWith("=") === false)
          throw new Error("state that an exit saved is refused by the next entry");
        if (isOver && reason > 0xffff) return;
        if (random.oneIn(2)) {
          this.#machine.react(random);
          done.push("= and went on");
        }
        if (random.oneIn(3)) done.push(this.#mutate(random));
      }
    } catch (error) {
      // What leaves silicon in shutdown, a VMX abort or an entry to that activity state, is the hypervisor's mistake and ends its thread here
      const shutdown = error instanceof Error && /^VMX abort|shutdown in guest mode, no timer/.exec(error.message);
      if (shutdown) {
        this.#count(`${shutdown[0]} 0 at 0`);
        this.#powerOn();
        return;
      }
      throw new Error(`seed ${seed}, after ${done.join("; ")}: ${error instanceof Error ? error.message : error}`, {
        cause: error,
      });
    }
  }

  #count(what: string): void {
    const kind = what.replace(/ [0-9a-f]+ at .*/, "");
    this.outcomes.set(kind, (this.outcomes.get(kind) ?? 0) + 1);
  }

  /** Lists of MSRs: index, zero, value. */
  #scratchWord(random: Random, index: number): number {
    if (index % 4 === 0)
      return random.pick([0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0102, 0xc000_0103, 0x277, 0x10, 0x1d9, 0x9999]);
    return index % 4 === 2 ? random.below(0x1000) : 0;
  }

  #mutate(random: Random): string {
    const { harness } = this.#machine;
    const name = random.pick(this.#names);
    const old = harness.cpu.vmx.vmread(VmcsField[name]);
    let value = mutated(random, old);
    if (name === "EPT_POINTER")
      value = random.oneIn(3) ? hostAddress(random, this.#scratch) & ~0x1000n : old ^ (1n << BigInt(random.below(12)));
    else if (HOLDS_ADDRESS.test(name) && !IS_GUESTS.test(name)) value = hostAddress(random, this.#scratch);
    else if (name.includes("MSR") && name.endsWith("COUNT")) value = BigInt(random.pick([0, 1, 3, 8, 513]));
    else if (name === "SECONDARY_CONTROLS") value = (old ^ (1n << BigInt(random.below(32)))) | 2n;
    value = BigInt.asUintN(64, value);
    harness.cpu.vmx.vmwrite(VmcsField[name], value);
    return `= ${name} ${value.toString(16)}`;
  }
}

/** A machine with memory for the host's structures, and with what nobody has to do with. */
interface VmcbTarget {
  readonly machine: SvmMachine;
  readonly scratch: number;
  readonly guard: Guard;
}

function vmcbTarget(pagingLevels: 4 | 5): VmcbTarget {
  const machine = new SvmMachine({ translate: "hot", hotEntries: 12, pagingLevels });
  const { harness } = machine;
  const scratch = harness.page(SCRATCH_PAGES);
  return { machine, scratch, guard: new Guard(harness.bank, harness.page((SECRET_WORDS * 8) / 4096)) };
}

export class VmcbFuzzer {
  /** Nested paging of four levels and of five, in turns. */
  readonly #targets: readonly VmcbTarget[] = [vmcbTarget(4), vmcbTarget(5)];
  #target: VmcbTarget = this.#targets[0] as VmcbTarget;
  readonly #fields: readonly (readonly [string, number])[] = [...Object.entries(Control), ...Object.entries(Save)];
  readonly outcomes = new Map<string, number>();

  runCase(seed: number): void {
    const random = seededRandom(seed);
    this.#target = this.#targets[seed % this.#targets.length] as VmcbTarget;
    const { machine, scratch, guard } = this.#target;
    const { harness } = machine;
    const done: string[] = [];
    try {
      machine.begin(makeGuest(random, undefined, extrasOf(seed)));
      for (let i = 0; i < 1024 * SCRATCH_PAGES; i++)
        harness.bank.u32[(scratch >>> 2) + i] = random.oneIn(8) ? random.next() : 0;
      for (let i = random.below(MOST_MUTATIONS); i >= 0; i--) done.push(this.#mutate(random));
      for (let entry = 0; entry < ENTRIES; entry++) {
        this.#keepControl();
        const { what } = machine.enter(INSTRUCTIONS);
        done.push(what);
        const kind = what.replace(/ [0-9a-f]+ [0-9a-f]+ at .*/, "");
        this.outcomes.set(kind, (this.outcomes.get(kind) ?? 0) + 1);
        guard.check(machine);
        const code = harness.get32(Control.EXIT_CODE) | 0;
        if (code === ExitCode.invalid) {
          // A guest whose WRMSR no map intercepts may have cleared EFER.SVME, without which there is no VMRUN
          if ((harness.get32(Save.EFER) & Efer.SVME) === 0) return;
          if (entry > 0 && done.at(-2)?.startsWith("=") === false)
            throw new Error("state that an exit saved is refused by the next VMRUN");
          return;
        }
        if (/^\d/.test(kind)) throw new Error(`exit code ${code.toString(16)}, which there is not`);
        if (random.oneIn(2)) {
          machine.react(random);
          done.push("= and went on");
        }
        if (random.oneIn(3)) done.push(this.#mutate(random));
      }
    } catch (error) {
      throw new Error(`seed ${seed}, after ${done.join("; ")}: ${error instanceof Error ? error.message : error}`, {
        cause: error,
      });
    }
  }

  /**
   * Intercepts without which the guest has the processor for itself, and no hypervisor gets it back, nor keeps its memory: physical
   * interrupts and what masks them, shutdown, VMLOAD and VMSAVE, and paging without a second level.
   */
  #keepControl(): void {
    const { harness } = this.#target.machine;
    harness.setBits(Control.INTERCEPT_3, Intercept3.intr | Intercept3.shutdown);
    harness.setBits(Control.INTERCEPT_4, Intercept4.clgi | Intercept4.stgi | Intercept4.vmload | Intercept4.vmsave);
    harness.setBits(Control.V_INTERRUPT, 1 << 24);
    harness.setBits(Control.NESTED, 1);
  }

  #mutate(random: Random): string {
    const { harness } = this.#target.machine;
    const [name, at] = random.pick(this.#fields);
    const aligned = at & ~3;
    const old = (BigInt(harness.get32(aligned + 4)) << 32n) | BigInt(harness.get32(aligned));
    let value = mutated(random, old);
    if (name === "NESTED_CR3") value = random.oneIn(3) ? 9n << 32n : old ^ (1n << BigInt(random.below(12)));
    else if (HOLDS_ADDRESS.test(name) && !(at >= 0x400 && at < 0xa00)) value = hostAddress(random, this.#target.scratch);
    value = BigInt.asUintN(64, value);
    harness.set32(aligned, Number(value & 0xffff_ffffn));
    if (!random.oneIn(3) || /RIP|RSP|BASE|CR|ADDRESS/.test(name)) harness.set32(aligned + 4, Number(value >> 32n));
    return `= ${name} ${value.toString(16)}`;
  }
}
