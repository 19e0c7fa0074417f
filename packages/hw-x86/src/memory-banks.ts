/** Physical memory of one thread: the banks that it made or was given. */
import { bankOf, type Hpa, offsetOf } from "./addresses.ts";
import { BANK_FIRST_FREE, OP_ARENA } from "./engine/cpu-state.ts";
import type { MemoryBank, PhysicalMemory } from "./physical-memory.ts";

const WASM_PAGE = 0x1_0000;
const MAXIMUM_BYTES = 0x1_0000_0000;
/** Bank numbers are the bits 51:32 of a physical address. */
const MAXIMUM_BANK = 0xf_ffff;

/**
 * Below BANK_FIRST_FREE and beside what cpu-state.ts puts there: what an access to physical addresses without memory behind
 * them meets. Reads come from one page of all ones, writes go to another page and are lost.
 */
export const BUS_READ_PAGE = 0x6000;
export const BUS_WRITE_PAGE = 0x7000;

function makeBank(id: number, memory: WebAssembly.Memory): MemoryBank {
  const buffer = memory.buffer;
  return {
    id,
    sizeBytes: buffer.byteLength,
    firstFreeOffset: BANK_FIRST_FREE,
    memory,
    u8: new Uint8Array(buffer),
    u32: new Uint32Array(buffer),
    u64: new BigUint64Array(buffer),
    view: new DataView(buffer),
  };
}

export class MemoryBanks implements PhysicalMemory {
  readonly #banks = new Map<number, MemoryBank>();
  readonly #released: (id: number) => void;
  readonly #left: (id: number) => void;
  readonly #attached: (bank: MemoryBank) => void;

  /** `released` is told before a bank is forgotten, `left` when another CPU may have it, `attached` of one that another CPU has made. */
  constructor(released: (id: number) => void, left: (id: number) => void, attached: (bank: MemoryBank) => void) {
    this.#released = released;
    this.#left = left;
    this.#attached = attached;
  }

  createBank(id: number, sizeBytes: number): MemoryBank {
    if (sizeBytes % WASM_PAGE !== 0 || sizeBytes <= BANK_FIRST_FREE || sizeBytes > MAXIMUM_BYTES)
      throw new RangeError(
        `a bank of ${sizeBytes} bytes: must be a multiple of 64 KiB, above ${BANK_FIRST_FREE} and at most 4 GiB`,
      );
    const pages = sizeBytes / WASM_PAGE;
    // Initial and maximum are equal: a bank never grows, so views over it stay valid
    return this.#add(id, new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true }));
  }

  attachBank(id: number, memory: WebAssembly.Memory): MemoryBank {
    const bank = this.#add(id, memory);
    try {
      this.#attached(bank);
    } catch (thrown) {
      this.#banks.delete(id);
      throw thrown;
    }
    return bank;
  }

  #add(id: number, memory: WebAssembly.Memory): MemoryBank {
    if (!Number.isInteger(id) || id < 0 || id > MAXIMUM_BANK)
      throw new RangeError(`bank number ${id} is not in 0..${MAXIMUM_BANK}`);
    if (this.#banks.has(id)) throw new Error(`bank ${id} exists already`);
    const bank = makeBank(id, memory);
    bank.u8.fill(0xff, BUS_READ_PAGE, BUS_READ_PAGE + 0x1000);
    this.#banks.set(id, bank);
    return bank;
  }

  releaseBank(id: number): void {
    if (!this.#banks.has(id)) return;
    this.#released(id);
    this.#banks.delete(id);
  }

  leaveBank(id: number): void {
    this.#left(id);
  }

  takeOverBank(id: number): void {
    const bank = this.bank(id);
    // Decoded operations themselves need not go: nothing leads to them any more
    bank.u8.fill(0, 0, OP_ARENA);
    bank.u8.fill(0xff, BUS_READ_PAGE, BUS_READ_PAGE + 0x1000);
  }

  bank(id: number): MemoryBank {
    const bank = this.#banks.get(id);
    if (bank === undefined) throw new Error(`no bank ${id} on this CPU`);
    return bank;
  }

  /** The bank, or undefined where no memory answers. */
  find(id: number): MemoryBank | undefined {
    return this.#banks.get(id);
  }

  bytes(address: Hpa, length: number): Uint8Array {
    const bank = this.bank(bankOf(address));
    const offset = offsetOf(address);
    if (offset + length > bank.sizeBytes) throw new RangeError(`${length} bytes at ${offset} pass the end of bank ${bank.id}`);
    return bank.u8.subarray(offset, offset + length);
  }

  /** The bank that holds all of [address, address + length), or undefined. */
  holding(address: number, length: number): MemoryBank | undefined {
    const bank = this.#banks.get(Math.floor(address / MAXIMUM_BYTES));
    return bank !== undefined && (address % MAXIMUM_BYTES) + length <= bank.sizeBytes ? bank : undefined;
  }
}
