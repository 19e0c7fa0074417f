/**
 * Breakpoints of the debug registers (Intel SDM Vol. 3B, Debug Registers; Breakpoint Exception Conditions).
 *
 * Armed breakpoints cost what they touch and no more. Pages with a data breakpoint are kept out of the data TLB, so that every access
 * there takes the slow path, which comes here. Pages with an instruction breakpoint are kept out of the tables of blocks, so that
 * every entry asks the engine, whose blocks there end before the next breakpoint. `version` is part of what translations are tagged
 * with: it is 0 where nothing is armed, and otherwise never the same twice.
 */
import type { Cpu } from "../cpu.ts";
import { state } from "../cpu-state.ts";
import { Cr4 } from "./bits.ts";

/** Bits of DR6. */
export const Dr6 = { breakpoints: 0xf, BD: 0x2000, BS: 0x4000, BT: 0x8000, fixed: 0xffff_0ff0 } as const;
/** Bits of DR7. G and L of a breakpoint are its lowest two bits of eight. */
export const Dr7 = { enables: 0xff, GD: 0x2000, fixed: 0x400, localEnables: 0x155 } as const;
const DR6_WRITABLE = 0xe00f;
const DR7_WRITABLE = 0xffff_23ff;

export const settledDr6 = (value: number): number => ((value & DR6_WRITABLE) | Dr6.fixed) >>> 0;
export const settledDr7 = (value: number): number => ((value & DR7_WRITABLE) | Dr7.fixed) >>> 0;

/** R/W field. */
const Kind = { fetch: 0, write: 1, io: 2, access: 3 } as const;
/** LEN field: bytes. */
const LENGTHS = [1, 2, 8, 4] as const;
const PAGE_MASK = ~0xfff;

interface Breakpoint {
  readonly bit: number;
  readonly kind: number;
  /** Halves of the linear address, aligned to `bytes`. */
  readonly low: number;
  readonly high: number;
  readonly bytes: number;
}

const DR7 = (state.dr + 56) >>> 2;

export class Breakpoints {
  version = 0;
  /** Instruction breakpoints, data breakpoints and I/O breakpoints are armed. */
  hasFetch = false;
  hasData = false;
  hasIo = false;
  /** Breakpoints that the running instruction has met: DR6 bits of the trap that it ends with. */
  hits = 0;
  #last = 0;
  #armed: Breakpoint[] = [];
  readonly #seen = new Uint32Array(9);
  #seenDe = false;

  /** Call where debug registers, or CR4.DE, may have changed: what was armed is forgotten if they have. True if they have. */
  refresh(cpu: Cpu): boolean {
    const { u32 } = cpu;
    const enables = (u32[DR7] as number) & Dr7.enables;
    if (enables === 0) {
      if (this.version === 0) return false;
      this.#arm(0);
      this.version = 0;
      return true;
    }
    const hasDe = ((u32[state.cr4 >>> 2] as number) & Cr4.DE) !== 0;
    if (this.version !== 0 && this.#isSeen(u32, hasDe)) return false;
    this.#seenDe = hasDe;
    for (let i = 0; i < 8; i++) this.#seen[i] = u32[(state.dr >>> 2) + i] as number;
    this.#seen[8] = u32[DR7] as number;
    this.#arm(u32[DR7] as number);
    // What is armed and can meet nothing is as good as not there
    this.version = this.#armed.length === 0 ? 0 : ++this.#last;
    return true;
  }

  #isSeen(u32: Uint32Array, hasDe: boolean): boolean {
    if (hasDe !== this.#seenDe || this.#seen[8] !== u32[DR7]) return false;
    for (let i = 0; i < 8; i++) if (this.#seen[i] !== u32[(state.dr >>> 2) + i]) return false;
    return true;
  }

  #arm(dr7: number): void {
    this.#armed = [];
    for (let index = 0; index < 4; index++) {
      if (((dr7 >>> (index * 2)) & 3) === 0) continue;
      const kind = (dr7 >>> (16 + index * 4)) & 3;
      // Without CR4.DE the kind of I/O is undefined
      if (kind === Kind.io && !this.#seenDe) continue;
      const bytes = kind === Kind.fetch ? 1 : (LENGTHS[(dr7 >>> (18 + index * 4)) & 3] as number);
      const low = ((this.#seen[index * 2] as number) & -bytes) | 0;
      this.#armed.push({ bit: 1 << index, kind, low, high: (this.#seen[index * 2 + 1] as number) | 0, bytes });
    }
    this.hasFetch = this.#armed.some(({ kind }) => kind === Kind.fetch);
    this.hasIo = this.#armed.some(({ kind }) => kind === Kind.io);
    this.hasData = this.#armed.some(({ kind }) => kind === Kind.write || kind === Kind.access);
  }

  /** DR6 bits of the instruction breakpoints at a linear address (halves). */
  atInstruction(low: number, high: number): number {
    let bits = 0;
    for (const { bit, kind, low: ours, high: upper } of this.#armed)
      if (kind === Kind.fetch && ours === low && upper === high) bits |= bit;
    return bits;
  }

  /** Bytes from a linear address to the next instruction breakpoint in its page; 0 where the page has none at all. */
  instructionDistance(low: number, high: number): number {
    let isInPage = false;
    let nearest = 4096;
    for (const { kind, low: ours, high: upper } of this.#armed) {
      if (kind !== Kind.fetch || upper !== high || ((ours ^ low) & PAGE_MASK) !== 0) continue;
      isInPage = true;
      const distance = (ours & 0xfff) - (low & 0xfff);
      if (distance > 0 && distance < nearest) nearest = distance;
    }
    return isInPage ? nearest : 0;
  }

  /** Whether the page of a linear address has a data breakpoint. */
  isDataPage(low: number, high: number): boolean {
    for (const { kind, low: ours, high: upper } of this.#armed)
      if ((kind === Kind.write || kind === Kind.access) && upper === high && ((ours ^ low) & PAGE_MASK) === 0) return true;
    return false;
  }

  /** The running instruction has read or written bytes there. */
  noteAccess(low: number, high: number, bytes: number, isWrite: boolean): void {
    for (const { bit, kind, low: ours, high: upper, bytes: length } of this.#armed) {
      if (kind !== Kind.access && !(kind === Kind.write && isWrite)) continue;
      const distance = (high - upper) * 0x1_0000_0000 + ((low >>> 0) - (ours >>> 0));
      if (distance < length && distance > -bytes) this.hits |= bit;
    }
  }

  /** The running instruction has used ports. */
  notePort(port: number, bytes: number): void {
    for (const { bit, kind, low, high, bytes: length } of this.#armed)
      if (kind === Kind.io && high === 0 && port < low + length && port + bytes > low) this.hits |= bit;
  }
}
