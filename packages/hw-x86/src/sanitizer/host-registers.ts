/**
 * For the hardware sanitizer: registers that have values of the kernel's own, which user code relies on, or which its next system call
 * goes by. A module may leave a guest's values in them only until the kernel returns to user code. They are compared as halves, without
 * an allocation, since that is done at many returns.
 */
import { state } from "../engine/cpu-state.ts";
import { Efer } from "../engine/system/bits.ts";
import { Msr } from "../msr.ts";
import { type MsrSet, Root, type RootMsrs } from "../root-msrs.ts";
import type { StateBlock } from "../state-block.ts";

/** Those that are about guests, not the kernel; and branch records, which go on by themselves. */
const NOT_THE_KERNELS = new Set<number>([
  Msr.TSC_RATIO,
  Msr.VM_HSAVE_PA,
  Msr.LAST_BRANCH_FROM,
  Msr.LAST_BRANCH_TO,
  Msr.LAST_EXCEPTION_FROM,
  Msr.LAST_EXCEPTION_TO,
]);
const MSR_NAMES = new Map<number, string>(Object.entries(Msr).map(([name, index]) => [index, name]));
/** Virtualization that is on is no clobbered register. */
const CR4_VMXE = 1 << 13;

interface Place {
  readonly name: string;
  /** In the CPU state block, or among root mode's own registers. */
  readonly isInBlock: boolean;
  /** Of the low half, in 32-bit words. */
  readonly word: number;
  /** Bits of the low half that count. */
  readonly mask: number;
}

export interface Clobbered {
  readonly name: string;
  readonly value: bigint;
  readonly kernels: bigint;
}

export class HostRegisters {
  readonly #places: readonly Place[];
  readonly #block: StateBlock;
  readonly #root: RootMsrs;
  /** Low and high half by place; undefined until the kernel has said what its values are. */
  #kernels: Uint32Array | undefined;

  constructor(set: MsrSet, root: RootMsrs, block: StateBlock) {
    this.#block = block;
    this.#root = root;
    const own = (name: string, index: number, mask = -1): Place => ({ name, isInBlock: false, word: 2 * index, mask });
    const places = [own("CR0", Root.cr0), own("CR4", Root.cr4, ~CR4_VMXE), own("DR7", Root.dr7)];
    for (const [msr, index] of set.own)
      if (!NOT_THE_KERNELS.has(msr)) places.push(own(nameOf(msr), index, msr === Msr.EFER ? ~Efer.SVME : -1));
    const shared = [...set.shared].filter(([msr]) => !NOT_THE_KERNELS.has(msr));
    for (const [msr, offset] of shared) places.push({ name: nameOf(msr), isInBlock: true, word: offset >>> 2, mask: -1 });
    places.push({ name: "XCR0", isInBlock: true, word: state.xcr0 >>> 2, mask: -1 });
    this.#places = places;
  }

  /** What the registers hold now is the kernel's own. */
  keep(): void {
    const kernels = new Uint32Array(2 * this.#places.length);
    this.#places.forEach((place, index) => {
      const words = this.#words(place);
      kernels[2 * index] = words[place.word] as number;
      kernels[2 * index + 1] = words[place.word + 1] as number;
    });
    this.#kernels = kernels;
  }

  /** The first register that does not hold the kernel's value, of those that `isKnown` does not tell of yet. */
  clobbered(isKnown: (name: string) => boolean): Clobbered | undefined {
    const kernels = this.#kernels;
    if (kernels === undefined) return undefined;
    const places = this.#places;
    for (let index = 0; index < places.length; index++) {
      const place = places[index] as Place;
      const words = this.#words(place);
      const differs = ((words[place.word] as number) ^ (kernels[2 * index] as number)) & place.mask;
      if (differs === 0 && words[place.word + 1] === kernels[2 * index + 1]) continue;
      if (isKnown(place.name)) continue;
      return {
        name: place.name,
        value: quad(words[place.word] as number, words[place.word + 1] as number),
        kernels: quad(kernels[2 * index] as number, kernels[2 * index + 1] as number),
      };
    }
    return undefined;
  }

  #words(place: Place): Uint32Array {
    return place.isInBlock ? this.#block.u32 : this.#root.halves;
  }
}

function nameOf(msr: number): string {
  return MSR_NAMES.get(msr) ?? `MSR 0x${msr.toString(16)}`;
}
function quad(low: number, high: number): bigint {
  return (BigInt(high) << 32n) | BigInt(low);
}
