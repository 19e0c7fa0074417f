/**
 * A NOR flash chip with the command set of Intel's (CFI command set 1), eight bits wide, in blocks of 4 KiB: where UEFI firmware keeps its
 * variables. While it reads as memory, it is memory, which KVM gives to the guest without asking; a write is a command, which comes here,
 * and whatever the chip answers with then, until it is told to read as memory again, comes from here too. Source: Common Flash
 * Interface (JESD68.01); Intel StrataFlash Memory, Device Operations.
 *
 * As with QEMU's chip, which firmware for virtual machines knows it by, the status is 0 after it was cleared, though the chip is ready.
 */
import { type Section, section, struct, u32 } from "@mkvm/kvm-abi";
import type { MemoryDevice } from "./memory-bus.ts";

export const FLASH_BLOCK_BYTES = 4096;
const BUFFER_BYTES = 256;
const ERASED = 0xff;

const Command = {
  READ_ARRAY: 0xff,
  READ_STATUS: 0x70,
  CLEAR_STATUS: 0x50,
  READ_ID: 0x90,
  QUERY: 0x98,
  PROGRAM: 0x40,
  PROGRAM_ALTERNATE: 0x10,
  BUFFERED_PROGRAM: 0xe8,
  ERASE: 0x20,
  LOCK: 0x60,
  CONFIRM: 0xd0,
} as const;
const Status = { ready: 0x80, sequenceError: 0x30 } as const;
const MANUFACTURER = 0x89;
const DEVICE = 0x18;

/** What a read answers, or what the next write is. */
const Mode = { array: 0, status: 1, id: 2, query: 3, program: 4, erase: 5, lock: 6, count: 7, buffer: 8, confirm: 9 } as const;
type Mode = (typeof Mode)[keyof typeof Mode];

const MODE_OF_COMMAND: ReadonlyMap<number, Mode> = new Map<number, Mode>([
  [Command.READ_STATUS, Mode.status],
  [Command.READ_ID, Mode.id],
  [Command.QUERY, Mode.query],
  [Command.PROGRAM, Mode.program],
  [Command.PROGRAM_ALTERNATE, Mode.program],
  [Command.BUFFERED_PROGRAM, Mode.count],
  [Command.ERASE, Mode.erase],
  [Command.LOCK, Mode.lock],
]);

const FlashState = section("vmm.flash", {
  version: 1,
  required: true,
  fixed: struct("vmm_flash", 24, {
    mode: u32(0),
    status: u32(4),
    left: u32(8),
    at: u32(12),
    bytes: u32(16),
    reserved: u32(20),
  }),
});

export interface FlashChip {
  /** Guest physical address. */
  readonly start: number;
  /** What is in it: a view of the VMM's memory, which the guest sees while it reads as memory. */
  readonly contents: Uint8Array;
  /** The guest is to see the contents themselves, or every access is to come here. */
  show(asMemory: boolean): void;
  /** These bytes of the contents are no longer what they were, and are to last. */
  keep(first: number, end: number): void;
}

export class Flash implements MemoryDevice {
  readonly #chip: FlashChip;
  #mode: Mode = Mode.array;
  #status: number = Status.ready;
  /** Of a buffered program: bytes that are still to come, and where the first of them went. */
  #left = 0;
  #at = 0;
  /** Bytes that were changed and not kept yet: from the first one to behind the last one. */
  #changed = { first: Number.POSITIVE_INFINITY, end: 0 };

  constructor(chip: FlashChip) {
    this.#chip = chip;
  }

  get start(): number {
    return this.#chip.start;
  }
  get bytes(): number {
    return this.#chip.contents.length;
  }

  /** Has what was changed kept: when a sequence of commands is over, or nothing more may come of it. */
  flush(): void {
    const { first, end } = this.#changed;
    if (first >= end) return;
    this.#changed = { first: Number.POSITIVE_INFINITY, end: 0 };
    this.#chip.keep(first, end);
  }

  /** Section vmm.flash; the contents are the VMM's memory. */
  save(): Section {
    this.flush();
    const mode = this.#mode;
    return FlashState.encode(0, { mode, status: this.#status, left: this.#left, at: this.#at, bytes: this.bytes });
  }
  /** Bytes of the chip that was saved; 0: there was none. */
  static bytesOf(sections: readonly Section[]): number {
    const state = FlashState.find(sections);
    return typeof state === "string" ? 0 : state.fixed.bytes;
  }
  /** A sentence: why not. */
  restore(sections: readonly Section[]): string | undefined {
    const state = FlashState.find(sections);
    if (typeof state === "string") return state;
    const { mode, status, left, at } = state.fixed;
    this.#mode = mode as Mode;
    this.#status = status;
    this.#left = left;
    this.#at = at;
    this.#chip.show(this.#mode === Mode.array);
    return undefined;
  }

  read(offset: number): number {
    switch (this.#mode) {
      case Mode.array:
        return this.#chip.contents[offset] as number;
      case Mode.id:
        return (offset & 0xff) === 0 ? MANUFACTURER : (offset & 0xff) === 1 ? DEVICE : 0;
      case Mode.query:
        return queryTable(this.bytes)[offset & 0xff] ?? 0;
      default:
        return this.#status;
    }
  }

  write(offset: number, value: number): void {
    switch (this.#mode) {
      case Mode.program:
        this.#program(offset, value);
        this.#status |= Status.ready;
        this.#turnTo(Mode.status);
        return;
      case Mode.erase:
        if (value === Command.CONFIRM) {
          const first = offset - (offset % FLASH_BLOCK_BYTES);
          this.#chip.contents.fill(ERASED, first, first + FLASH_BLOCK_BYTES);
          this.#note(first, first + FLASH_BLOCK_BYTES);
          this.#status |= Status.ready;
          this.#turnTo(Mode.status);
        } else this.#refuse(value);
        return;
      case Mode.lock:
        // No block is ever locked
        this.#turnTo(Mode.status);
        return;
      case Mode.count:
        this.#left = value + 1;
        this.#at = offset;
        this.#turnTo(value < BUFFER_BYTES ? Mode.buffer : Mode.status);
        return;
      case Mode.buffer:
        this.#program(offset, value);
        if (--this.#left === 0) this.#turnTo(Mode.confirm);
        return;
      case Mode.confirm:
        if (value === Command.CONFIRM) {
          this.#status |= Status.ready;
          this.#turnTo(Mode.status);
        } else this.#refuse(value);
        return;
      default:
        this.#command(value);
    }
  }

  /** Makes ones zeros; only erasing makes ones. */
  #program(offset: number, value: number): void {
    const { contents } = this.#chip;
    contents[offset] = (contents[offset] as number) & value;
    this.#note(offset, offset + 1);
  }

  #note(first: number, end: number): void {
    this.#changed = { first: Math.min(this.#changed.first, first), end: Math.max(this.#changed.end, end) };
  }

  #command(value: number): void {
    if (value === Command.CLEAR_STATUS) this.#status = 0;
    else if (value === Command.BUFFERED_PROGRAM) this.#status |= Status.ready;
    this.#turnTo(MODE_OF_COMMAND.get(value) ?? Mode.array);
  }

  /** A sequence that was not ended as it must be: said in the status, unless it is given up. */
  #refuse(value: number): void {
    if (value !== Command.READ_ARRAY) this.#status |= Status.sequenceError;
    this.#turnTo(value === Command.READ_ARRAY ? Mode.array : Mode.status);
  }

  #turnTo(mode: Mode): void {
    const was = this.#mode;
    this.#mode = mode;
    if (mode === Mode.array) this.flush();
    if ((was === Mode.array) !== (mode === Mode.array)) this.#chip.show(mode === Mode.array);
  }
}

/** What the chip says of itself: command set, voltages, times as powers of two, size, blocks. */
function queryTable(bytes: number): Uint8Array {
  const table = new Uint8Array(0x60);
  const blocks = bytes / FLASH_BLOCK_BYTES - 1;
  table.set([0x51, 0x52, 0x59, 1, 0, 0x31, 0], 0x10); // "QRY", command set 1, its own table
  table.set([0x45, 0x55, 0, 0, 7, 7, 10, 0, 4, 4, 4, 0], 0x1b);
  table[0x27] = Math.ceil(Math.log2(bytes));
  table.set([0, 0, Math.log2(BUFFER_BYTES), 0, 1], 0x28); // 8 bits wide, one region
  table.set([blocks & 0xff, blocks >>> 8, FLASH_BLOCK_BYTES >>> 8, 0], 0x2d);
  table.set([0x50, 0x52, 0x49, 0x31, 0x30], 0x31); // "PRI", 1.0
  return table;
}
