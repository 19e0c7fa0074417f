/**
 * Control registers and MSRs of root mode. MSRs that VM entry and exit do not switch are the guest's and the host's at once;
 * they live in the CPU state block. The others are kept here, as 32-bit halves that VM exit copies from the host-state area.
 */

import type { CpuModel } from "./engine/cpu.ts";
import { Cr4 } from "./engine/system/bits.ts";
import { isLinearAddress } from "./engine/system/linear-address.ts";
import { Msr } from "./msr.ts";
import type { StateBlock } from "./state-block.ts";

/** Index in `RootMsrs.values` (64-bit). */
export const Root = {
  cr0: 0,
  cr3: 1,
  cr4: 2,
  efer: 3,
  pat: 4,
  sysenterCs: 5,
  sysenterEsp: 6,
  sysenterEip: 7,
  fsBase: 8,
  gsBase: 9,
  debugctl: 10,
  dr7: 11,
  apicBase: 12,
  miscEnable: 13,
  tscAdjust: 14,
  vmCr: 15,
  hostSaveArea: 16,
  tscRatio: 17,
} as const;

/** The MSRs of a vendor's processors in root mode. */
export interface MsrSet {
  /** Those kept here, by index in `RootMsrs.values`. */
  readonly own: ReadonlyMap<number, number>;
  /** Those in the state block, by its offsets. */
  readonly shared: ReadonlyMap<number, number>;
  /** Value of one that always reads the same; undefined: no such MSR. */
  constant(index: number, model: CpuModel): bigint | undefined;
  /** False: #GP(0) for this value, beside the rules that all vendors have. */
  accepts(index: number, value: bigint, values: BigUint64Array): boolean;
}

/** What an MSR is, for every read and write of one. */
interface Place {
  /** Index in `RootMsrs.values`; undefined where it is in the state block. */
  readonly own: number | undefined;
  /** Offset in the state block. */
  readonly shared: number;
  readonly holdsAddress: boolean;
  /** Its upper half is reserved. */
  readonly isNarrow: boolean;
}

const HOLDS_ADDRESS: readonly number[] = [
  Msr.LSTAR,
  Msr.CSTAR,
  Msr.FS_BASE,
  Msr.GS_BASE,
  Msr.KERNEL_GS_BASE,
  Msr.SYSENTER_ESP,
  Msr.SYSENTER_EIP,
];
const NARROW: readonly number[] = [Msr.TSC_AUX, Msr.SYSENTER_CS, Msr.FMASK];

const EFER_LMA = 1n << 10n;
/** IA32_MISC_ENABLE: fast strings, performance monitoring, no branch trace storage. */
export const MISC_ENABLE_VALUE = 0x881n;

/** True when each byte is a memory type that PAT may hold. */
export function isPat(low: number, high: number): boolean {
  for (const half of [low, high]) {
    for (let shift = 0; shift < 32; shift += 8) {
      const type = (half >>> shift) & 0xff;
      if (type > 7 || type === 2 || type === 3) return false;
    }
  }
  return true;
}

export class RootMsrs {
  readonly values = new BigUint64Array(20);
  /** The same as halves: low at 2 * index. */
  readonly halves = new Uint32Array(this.values.buffer);
  readonly #block: StateBlock;
  readonly #model: CpuModel;
  readonly #set: MsrSet;
  /** By index as a signed number: V8 boxes those from 0x8000_0000 on otherwise, and modules exchange such MSRs at every exit. */
  readonly #places = new Map<number, Place>();
  readonly #isBootProcessor: boolean;
  readonly #pagingLevels: 4 | 5;

  constructor(
    set: MsrSet,
    block: StateBlock,
    model: CpuModel,
    { isBootProcessor, pagingLevels }: { isBootProcessor: boolean; pagingLevels: 4 | 5 },
  ) {
    this.#pagingLevels = pagingLevels;
    this.#set = set;
    this.#block = block;
    this.#model = model;
    this.#isBootProcessor = isBootProcessor;
    for (const index of [...set.own.keys(), ...set.shared.keys()]) {
      this.#places.set(index | 0, {
        own: set.own.get(index),
        shared: set.shared.get(index) ?? 0,
        holdsAddress: HOLDS_ADDRESS.includes(index),
        isNarrow: NARROW.includes(index),
      });
    }
    this.powerOn();
  }

  /** Values after power-up, those in the state block apart. */
  powerOn(): void {
    this.values.fill(0n);
    this.values[Root.cr0] = 0x8005_0033n;
    // PAE, PGE, OSFXSR, OSXMMEXCPT
    this.values[Root.cr4] = 0x6a0n | (this.#pagingLevels === 5 ? BigInt(Cr4.LA57) : 0n);
    this.values[Root.efer] = 0xd01n; // SCE, LME, LMA, NXE
    this.values[Root.pat] = 0x0007_0406_0007_0406n;
    this.values[Root.dr7] = 0x400n;
    this.values[Root.apicBase] = this.#isBootProcessor ? 0xfee0_0900n : 0xfee0_0800n;
    this.values[Root.miscEnable] = MISC_ENABLE_VALUE;
    this.values[Root.tscRatio] = 1n << 32n;
  }

  /** The MSR is kept here: VM exits load it, or may. */
  isSwitched(index: number): boolean {
    return this.#places.get(index | 0)?.own !== undefined;
  }

  /** undefined: no such MSR. */
  read(index: number): bigint | undefined {
    const place = this.#places.get(index | 0);
    if (place === undefined) return this.#set.constant(index, this.#model);
    return place.own === undefined ? this.#block.get(place.shared) : this.values[place.own];
  }

  /** false: #GP(0). */
  write(index: number, value: bigint): boolean {
    const place = this.#places.get(index | 0);
    if (place === undefined) return false;
    if (place.holdsAddress && !isLinearAddress(this.#model, value)) return false;
    if (place.isNarrow && BigInt.asUintN(32, value) !== value) return false;
    if (index === Msr.EFER && !this.#eferAllows(value)) return false;
    if (index === Msr.PAT && !isPat(Number(value & 0xffff_ffffn), Number(value >> 32n))) return false;
    if (!this.#set.accepts(index, value, this.values)) return false;
    if (place.own === undefined) this.#block.set(place.shared, value);
    else this.values[place.own] = value;
    return true;
  }

  /** LMA is read-only to software, and root mode runs with paging, where LME cannot change. */
  #eferAllows(value: bigint): boolean {
    const fixed = EFER_LMA | (1n << 8n);
    return (
      (value & ~(this.#model.eferAllowed | EFER_LMA)) === 0n && (value & fixed) === ((this.values[Root.efer] as bigint) & fixed)
    );
  }
}
