/**
 * Registers of a version 2 vCPU that live in the control structure, with a cache before it: a register is read when somebody asks
 * for the first time after an exit, and written back, once, before the next entry.
 */
import type { DescriptorTableState, SegmentState } from "@mkvm/kvm-core";

/** Bits of the availability and dirtiness masks. Segments have one bit each, from `segment0` on. */
export const Register = {
  rip: 0,
  rsp: 1,
  rflags: 2,
  cr0: 3,
  cr3: 4,
  cr4: 5,
  efer: 6,
  dr7: 7,
  /** Guest interruptibility as the vendor has it. */
  interruptibility: 8,
  pendingDebug: 9,
  tscOffset: 10,
  segment0: 16,
  gdtr: 24,
  idtr: 25,
  pdptrs: 26,
} as const;
export type RegisterNumber = number;

/** Where the registers come from and go to. */
export interface RegisterSource {
  fetch(cache: RegisterCache, register: RegisterNumber): void;
  store(cache: RegisterCache, register: RegisterNumber): void;
}

export class RegisterCache {
  /** Registers 0 to 15 by number. */
  readonly words = new BigUint64Array(16);
  /** The same as halves, the low one first: what is looked at after every exit is read from here, since bigints are objects. */
  readonly #halves = new Uint32Array(this.words.buffer);
  readonly segments: SegmentState[] = Array.from({ length: 8 }, () => ({ selector: 0, base: 0n, limit: 0, access: 0 }));
  readonly tables: { gdtr: DescriptorTableState; idtr: DescriptorTableState } = {
    gdtr: { base: 0n, limit: 0 },
    idtr: { base: 0n, limit: 0 },
  };
  pdptrs: readonly bigint[] = [0n, 0n, 0n, 0n];
  #available = 0;
  #dirty = 0;
  readonly #source: RegisterSource;

  readonly #kept: number;

  /** `kept`: bits of registers that a guest cannot change without an exit: what the cache knows of them outlives an entry. */
  constructor(source: RegisterSource, kept: number) {
    this.#kept = kept;
    this.#source = source;
  }

  word(register: RegisterNumber): bigint {
    this.#need(register);
    return this.words[register]!;
  }
  setWord(register: RegisterNumber, value: bigint): void {
    this.words[register] = value;
    this.#wrote(register);
  }
  /** Its low half. */
  low(register: RegisterNumber): number {
    this.#need(register);
    return this.#halves[register * 2]!;
  }
  /** The upper half becomes 0. */
  setLow(register: RegisterNumber, value: number): void {
    this.fetched(register, value);
    this.#wrote(register);
  }
  /** Adds so many, below 2^32, modulo 2^64. */
  advance(register: RegisterNumber, amount: number): void {
    const low = this.low(register) + amount;
    this.#halves[register * 2] = low;
    if (low > 0xffff_ffff) this.#halves[register * 2 + 1]!++;
    this.#wrote(register);
  }
  /** For sources: the register that was asked for is so much, its upper half 0. */
  fetched(register: RegisterNumber, value: number): void {
    this.#halves[register * 2] = value;
    this.#halves[register * 2 + 1] = 0;
  }
  segment(index: number): SegmentState {
    this.#need(Register.segment0 + index);
    return { ...this.segments[index]! };
  }
  setSegment(index: number, state: SegmentState): void {
    this.segments[index] = { ...state };
    this.#wrote(Register.segment0 + index);
  }
  table(name: "gdtr" | "idtr"): DescriptorTableState {
    this.#need(Register[name]);
    return { ...this.tables[name] };
  }
  setTable(name: "gdtr" | "idtr", state: DescriptorTableState): void {
    this.tables[name] = { ...state };
    this.#wrote(Register[name]);
  }
  pageDirectoryPointers(): readonly bigint[] {
    this.#need(Register.pdptrs);
    return this.pdptrs;
  }
  setPageDirectoryPointers(values: readonly bigint[]): void {
    this.pdptrs = [...values];
    this.#wrote(Register.pdptrs);
  }

  /** Writes back what has changed. */
  flush(): void {
    while (this.#dirty !== 0) {
      const register = 31 - Math.clz32(this.#dirty);
      this.#dirty &= ~(1 << register);
      this.#source.store(this, register);
    }
  }
  /** The guest has run: what it may have changed is unknown. */
  invalidate(): void {
    this.#available &= this.#kept;
  }
  /** One register changed behind the cache's back. */
  forget(register: RegisterNumber): void {
    this.#available &= ~(1 << register);
    this.#dirty &= ~(1 << register);
  }

  #need(register: RegisterNumber): void {
    if ((this.#available & (1 << register)) !== 0) return;
    this.#source.fetch(this, register);
    this.#available |= 1 << register;
  }
  #wrote(register: RegisterNumber): void {
    this.#available |= 1 << register;
    this.#dirty |= 1 << register;
  }
}
