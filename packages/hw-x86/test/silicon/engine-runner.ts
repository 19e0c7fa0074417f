/**
 * Runs test cases on the engine, in the surroundings that run-cases.c gives them on silicon: user mode, two writable data pages
 * that cannot be executed, a code page, nothing else mapped.
 */
import { type Gpa, type Gva, hpa } from "../../src/addresses.ts";
import type { CpuModel } from "../../src/engine/cpu.ts";
import { BANK_FIRST_FREE, CS, DS, ES, FS, GS, gprOffset, SS, state } from "../../src/engine/cpu-state.ts";
import { Engine } from "../../src/engine/engine.ts";
import { fxrstor, fxsave } from "../../src/engine/fpu/fxsave.ts";
import { type GuestMode, VM_EXIT } from "../../src/engine/guest-mode.ts";
import { writeSegment } from "../../src/engine/system/descriptors.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "../engine-mode.ts";
import { type CaseCodeSize, CODE, codeBase, DATA, DATA_BYTES, DATA16_LIMIT, type TestCase } from "./case-generator.ts";

/** What a case left behind. */
export interface Outcome {
  readonly gpr: BigUint64Array;
  rip: bigint;
  rflags: number;
  cr2: bigint;
  vector: number;
  error: number;
  memory: bigint;
  readonly fx: Uint8Array;
  /** Upper halves of the YMM registers. */
  readonly ymm: Uint8Array;
}

/** An outcome for `run` to fill. */
export function emptyOutcome(): Outcome {
  return {
    gpr: new BigUint64Array(16),
    rip: 0n,
    rflags: 0,
    cr2: 0n,
    vector: 0,
    error: 0,
    memory: 0n,
    fx: new Uint8Array(512),
    ymm: new Uint8Array(256),
  };
}

/** Vector of a case that did not end. */
export const TIMEOUT = 1000;

const PAGES = BANK_FIRST_FREE;
const DATA_AT = BANK_FIRST_FREE + 0x10_0000;
const CODE_AT = DATA_AT + DATA_BYTES;
const BANK_PAGES = (CODE_AT + 0x1_0000) >>> 16;
const PRESENT = 1n,
  WRITABLE = 2n,
  USER = 4n,
  NO_EXECUTE = 1n << 63n;
const MOST_INSTRUCTIONS = 200_000;

/** FNV-1a over 32-bit words in two lanes, as run-cases.c computes it. */
export function hashWords(words: Uint32Array): bigint {
  let even = 2166136261;
  let odd = 2166136261;
  for (let i = 0; i < words.length; i += 2) {
    even = Math.imul(even ^ words[i], 16777619);
    odd = Math.imul(odd ^ words[i + 1], 16777619);
  }
  return (BigInt(odd >>> 0) << 32n) | BigInt(even >>> 0);
}

interface Recorded {
  vector: number;
  error: number;
  payload: bigint;
}

function bareGuest(record: (fault: Recorded) => void): GuestMode {
  const page = { hpa: hpa(0, 0), rights: 7, pageBytes: 4096, isApic: false };
  const known: Partial<GuestMode> = {
    translationTag: 1,
    translate(gpa: Gpa) {
      page.hpa = hpa(0, gpa);
      return page;
    },
    exception(vector, _type, errorCode, payload) {
      record({ vector, error: errorCode ?? 0, payload });
      throw VM_EXIT;
    },
    vectoring() {},
    windowOpened: () => false,
  };
  return new Proxy(known, {
    get(target, name) {
      if (name in target) return target[name as keyof GuestMode];
      throw new Error(`the test guest has no ${String(name)}`);
    },
  }) as GuestMode;
}

export class EngineRunner {
  readonly #engine: Engine;
  readonly #initial: Uint8Array;
  #fault: Recorded = { vector: TIMEOUT, error: 0, payload: 0n };

  /** `initial`: contents of the data pages at the start of each case. `vendor`: whose processors the engine is to behave as. */
  constructor(initial: Uint8Array, vendor: CpuModel["vendor"]) {
    this.#initial = initial;
    const memory = new WebAssembly.Memory({ initial: BANK_PAGES, maximum: BANK_PAGES, shared: true });
    const unavailable = (): never => {
      throw new Error("the test CPU has no CPUID");
    };
    this.#engine = new Engine({
      memory,
      model: {
        vendor,
        level: 4,
        cpuid: unavailable,
        cr0Allowed: 0xe005_003fn,
        cr4Allowed: 0x4_06ffn,
        xcr0Allowed: 7n,
        eferAllowed: 0xd01n,
        physicalAddressBits: 40,
        linearAddressBits: 48,
      },
      guest: bareGuest((fault) => {
        this.#fault = fault;
      }),
      log: () => {},
      translate: engineMode(),
      hotEntries: HOT_ENTRIES_IN_TESTS,
    });
    this.#map();
    this.#enterLongMode();
  }

  #map(): void {
    const { view } = this.#engine;
    let nextTable = PAGES + 4096;
    const entry = (table: number, index: number): number => {
      const at = table + index * 8;
      let next = Number(view.getBigUint64(at, true) & 0xffff_f000n);
      if (next === 0) {
        next = nextTable;
        nextTable += 4096;
        view.setBigUint64(at, BigInt(next) | PRESENT | WRITABLE | USER, true);
      }
      return next;
    };
    const map = (linear: number, physical: number, rights: bigint): void => {
      const directory = entry(entry(PAGES, 0), linear >>> 30);
      const table = entry(directory, (linear >>> 21) & 511);
      view.setBigUint64(table + ((linear >>> 12) & 511) * 8, BigInt(physical) | PRESENT | USER | rights, true);
    };
    for (let page = 0; page < DATA_BYTES; page += 4096) map(DATA + page, DATA_AT + page, WRITABLE | NO_EXECUTE);
    map(CODE, CODE_AT, WRITABLE);
  }

  #enterLongMode(): void {
    const cpu = this.#engine;
    cpu.set64(state.cr0, 0x8005_0033n);
    cpu.set64(state.cr3, BigInt(PAGES));
    cpu.set64(state.cr4, 0x4_0620n);
    cpu.set64(state.efer, 0xd01n);
    cpu.set64(state.xcr0, 7n);
    cpu.set32(state.systemFlags, 2);
    cpu.set32(state.cpl, 3);
    for (const segment of [FS, GS]) writeSegment(cpu, segment, 0, 0, 0, 0x1_0000);
    this.#setCodeSize(64);
  }

  #setCodeSize(codeSize: CaseCodeSize): void {
    const cpu = this.#engine;
    if (codeSize === 16) {
      writeSegment(cpu, CS, 0x07, CODE, 0xffff, 0x00fb);
      for (const segment of [ES, SS, DS]) writeSegment(cpu, segment, 0x0f, DATA, DATA16_LIMIT, 0x00f3);
    } else {
      writeSegment(cpu, CS, codeSize === 64 ? 0x33 : 0x23, 0, 0xffff_ffff, codeSize === 64 ? 0xa0fb : 0xc0fb);
      for (const segment of [ES, SS, DS]) writeSegment(cpu, segment, 0x2b, 0, 0xffff_ffff, 0xc0f3);
    }
    cpu.updateSegments();
    cpu.updateTags();
  }

  /** The data pages as the last case left them. */
  data(): Uint8Array {
    return this.#engine.u8.slice(DATA_AT, DATA_AT + DATA_BYTES);
  }

  /** Regions translated so far. */
  regionsMade(): number {
    return this.#engine.counts().translator.regionsMade;
  }

  run(test: TestCase, outcome: Outcome): void {
    this.runOften(test, outcome, 1);
  }

  /** Runs a case so often that what is hot gets translated; the outcome is the last run's. */
  runOften(test: TestCase, outcome: Outcome, times: number): void {
    const cpu = this.#engine;
    if (cpu.get32(state.codeSize) !== test.codeSize) this.#setCodeSize(test.codeSize);
    const code = new Uint8Array(4096).fill(0xcc);
    code.set(test.code);
    cpu.writeLinearBytes(BigInt(CODE) as Gva, code, true);
    const page = cpu.u8.subarray(CODE_AT, CODE_AT + code.length);
    for (let time = 0; time < times; time++) {
      // A case may write behind its code; written anew only then, since that drops what was translated
      if (time > 0 && Buffer.compare(page, code) !== 0) cpu.writeLinearBytes(BigInt(CODE) as Gva, code, true);
      this.#runOnce(test);
    }
    for (let i = 0; i < 16; i++) outcome.gpr[i] = cpu.u64[gprOffset(i) >>> 3];
    outcome.rip = cpu.get64(state.rip);
    outcome.rflags = cpu.readFlags();
    outcome.vector = this.#fault.vector;
    outcome.error = this.#fault.error;
    outcome.cr2 = this.#fault.payload;
    outcome.memory = hashWords(cpu.u32.subarray(DATA_AT >>> 2, (DATA_AT + DATA_BYTES) >>> 2));
    fxsave(cpu, outcome.fx);
    outcome.ymm.set(cpu.u8.subarray(state.ymmHigh, state.ymmHigh + 256));
  }

  #runOnce(test: TestCase): void {
    const cpu = this.#engine;
    cpu.u8.set(this.#initial, DATA_AT);
    for (let i = 0; i < 16; i++) cpu.setReg(i, test.gpr[i]);
    fxrstor(cpu, test.fx);
    cpu.u8.set(test.ymm, state.ymmHigh);
    cpu.set64(state.rip, BigInt(codeBase(test.codeSize)));
    cpu.setFlags(test.rflags);
    this.#fault = { vector: TIMEOUT, error: 0, payload: 0n };
    cpu.run(MOST_INSTRUCTIONS);
  }
}
