/**
 * A kernel small enough for tests of the hardware: one CPU with SVM on, one bank, one guest with nested paging, and its VMCB set up so
 * that VMRUN takes it as it is. Guest physical memory starts at 0 and is backed by 4 KiB pages of the bank.
 */
import { type Hpa, hpa, offsetOf } from "../src/addresses.ts";
import { AmdCpu } from "../src/amd-cpu.ts";
import { createAmdModel } from "../src/engine/system/cpuid-amd.ts";
import { SvmStatus } from "../src/logical-cpu.ts";
import type { EngineFactory } from "../src/logical-cpu-core.ts";
import { createMachine } from "../src/machine.ts";
import type { MemoryBank } from "../src/physical-memory.ts";
import { Control, Intercept3, Intercept4, Save } from "../src/svm/vmcb.ts";

export const BANK = 3;
export const GUEST_BYTES = 0x40_0000;
/** Where `load` puts code unless told otherwise. */
export const CODE = 0x8000;
/** Guest page tables of 64-bit guests: 1 GiB mapped one to one. */
const GUEST_TABLES = 0x1000;
/** Present, writable, user. */
const NPT_RWU = 7;

export interface HarnessOptions {
  mode: "real" | "long";
  clock?: "wall" | "icount";
  /** Of the host's paging, and so of the nested tables. Default: 4. */
  pagingLevels?: 4 | 5;
  engine: EngineFactory;
}

export interface Exit {
  code: number;
  info1: bigint;
  info2: bigint;
  rip: number;
}

export class SvmHarness {
  readonly cpu: AmdCpu;
  readonly bank: MemoryBank;
  readonly vmcb: Hpa;
  readonly log: string[] = [];
  readonly nptRoot: number;
  readonly iopm: number;
  readonly msrpm: number;
  /** Bank offset of guest physical 0. */
  readonly guestMemory: number;
  readonly #levels: 4 | 5;
  #nextPage: number;

  constructor(options: HarnessOptions) {
    this.#levels = options.pagingLevels ?? 4;
    const machine = createMachine({ vendor: "amd", clock: options.clock ?? "icount", pagingLevels: this.#levels });
    this.cpu = new AmdCpu(machine, 0, createAmdModel(), options.engine, (line) => this.log.push(line));
    this.bank = this.cpu.memory.createBank(BANK, 0x200_0000);
    this.guestMemory = this.bank.sizeBytes - GUEST_BYTES;
    this.#nextPage = this.bank.firstFreeOffset;
    this.cpu.wrmsr(0xc000_0080, (this.cpu.rdmsr(0xc000_0080) ?? 0n) | 0x1000n);
    this.cpu.wrmsr(0xc001_0117, BigInt(hpa(BANK, this.page())));
    this.vmcb = hpa(BANK, this.page());
    this.iopm = this.page(3);
    this.msrpm = this.page(2);
    this.nptRoot = this.page();
    this.bank.u8.fill(0xff, this.iopm, this.iopm + 0x3000);
    this.bank.u8.fill(0xff, this.msrpm, this.msrpm + 0x2000);
    for (let gpa = 0; gpa < GUEST_BYTES; gpa += 4096) this.map(gpa, this.guestMemory + gpa, NPT_RWU);
    this.#setControls();
    if (options.mode === "real") this.#setRealMode();
    else this.#setLongMode();
  }

  /** Zeroed pages of the bank, one after another; offset of the first. */
  page(count = 1): number {
    const offset = this.#nextPage;
    this.#nextPage += 4096 * count;
    if (this.#nextPage > this.guestMemory) throw new Error("the test uses more pages than the bank has");
    return offset;
  }

  get32(offset: number): number {
    return this.bank.view.getUint32(offsetOf(this.vmcb) + offset, true);
  }
  set32(offset: number, value: number): void {
    this.bank.view.setUint32(offsetOf(this.vmcb) + offset, value, true);
  }
  get64(offset: number): bigint {
    return this.bank.view.getBigUint64(offsetOf(this.vmcb) + offset, true);
  }
  set64(offset: number, value: bigint | number): void {
    this.bank.view.setBigUint64(offsetOf(this.vmcb) + offset, BigInt(value), true);
  }
  set8(offset: number, value: number): void {
    this.bank.u8[offsetOf(this.vmcb) + offset] = value;
  }
  get8(offset: number): number {
    return this.bank.u8[offsetOf(this.vmcb) + offset] as number;
  }
  setBits(offset: number, bits: number): void {
    this.set32(offset, (this.get32(offset) | bits) >>> 0);
  }
  clearBits(offset: number, bits: number): void {
    this.set32(offset, (this.get32(offset) & ~bits) >>> 0);
  }
  setSegment(offset: number, selector: number, attributes: number, limit: number, base = 0): void {
    this.set32(offset, selector | (attributes << 16));
    this.set32(offset + 4, limit);
    this.set64(offset + 8, base);
  }

  /** Bank offset of the nested entry that maps `gpa` at `level` (0: 4 KiB page), making the tables above it. */
  nptEntry(gpa: number, level = 0): number {
    let table = this.nptRoot;
    for (let at = this.#levels - 1; at > level; at--) {
      const entry = table + (Math.floor(gpa / 2 ** (12 + 9 * at)) % 512) * 8;
      if (this.bank.u32[entry >>> 2] === 0) this.setEntry(entry, this.page() | NPT_RWU);
      table = (this.bank.u32[entry >>> 2] as number) & 0xffff_f000;
    }
    return table + (Math.floor(gpa / 2 ** (12 + 9 * level)) % 512) * 8;
  }
  setEntry(entry: number, low: number, high = BANK): void {
    this.bank.u32[entry >>> 2] = low;
    this.bank.u32[(entry >>> 2) + 1] = low === 0 ? 0 : high;
  }
  map(gpa: number, offset: number, flags: number, level = 0): void {
    this.setEntry(this.nptEntry(gpa, level), (offset | flags) >>> 0);
  }

  /** Puts bytes at a guest physical address. */
  load(bytes: readonly number[], gpa = CODE): void {
    this.bank.u8.set(bytes, this.guestMemory + gpa);
  }
  guestU32(gpa: number): number {
    return this.bank.view.getUint32(this.guestMemory + gpa, true);
  }
  guestU64(gpa: number): bigint {
    return this.bank.view.getBigUint64(this.guestMemory + gpa, true);
  }

  /** Enters the guest, GIF set before; the exit that came of it. */
  run(): Exit {
    const { svm } = this.cpu;
    svm.stgi();
    const status = svm.vmrun(this.vmcb);
    if (status !== SvmStatus.succeed) throw new Error(`VMRUN: status ${status}\n${this.log.join("\n")}`);
    return {
      code: Number(BigInt.asIntN(64, this.get64(Control.EXIT_CODE))),
      info1: this.get64(Control.EXIT_INFO_1),
      info2: this.get64(Control.EXIT_INFO_2),
      rip: Number(this.get64(Save.RIP)),
    };
  }

  /** Moves RIP past the instruction that exited. */
  skip(): void {
    this.set64(Save.RIP, this.get64(Control.NEXT_RIP));
  }

  #setControls(): void {
    this.set32(
      Control.INTERCEPT_3,
      (Intercept3.intr |
        Intercept3.nmi |
        Intercept3.cpuid |
        Intercept3.hlt |
        Intercept3.io |
        Intercept3.msr |
        Intercept3.shutdown) >>>
        0,
    );
    this.set32(Control.INTERCEPT_4, Intercept4.vmrun | Intercept4.vmmcall);
    this.set64(Control.IOPM_BASE, hpa(BANK, this.iopm));
    this.set64(Control.MSRPM_BASE, hpa(BANK, this.msrpm));
    this.set32(Control.ASID, 1);
    this.set32(Control.V_INTERRUPT, 1 << 24);
    this.set32(Control.NESTED, 1);
    this.set64(Control.NESTED_CR3, hpa(BANK, this.nptRoot));
  }

  #setCommon(): void {
    this.set64(Save.RFLAGS, 2);
    this.set64(Save.RIP, CODE);
    this.set64(Save.RSP, 0x7000);
    this.set64(Save.DR6, 0xffff_0ff0);
    this.set64(Save.DR7, 0x400);
    this.set64(Save.G_PAT, 0x0007_0406_0007_0406n);
    this.setSegment(Save.GDTR, 0, 0, 0xffff);
    this.setSegment(Save.IDTR, 0, 0, 0xffff);
  }

  #setRealMode(): void {
    for (const at of [Save.ES, Save.SS, Save.DS]) this.setSegment(at, 0, 0x93, 0xffff);
    this.setSegment(Save.CS, 0, 0x9b, 0xffff);
    this.set64(Save.CR0, 0x10);
    this.set64(Save.EFER, 0x1000);
    this.#setCommon();
  }

  #setLongMode(): void {
    for (const at of [Save.ES, Save.SS, Save.DS]) this.setSegment(at, 0x18, 0xc93, 0xffff_ffff);
    this.setSegment(Save.CS, 0x10, 0xa9b, 0xffff_ffff);
    const tables = this.guestMemory + GUEST_TABLES;
    this.bank.u32[tables >>> 2] = (GUEST_TABLES + 0x1000) | 7;
    this.bank.u32[(tables + 0x1000) >>> 2] = (GUEST_TABLES + 0x2000) | 7;
    for (let i = 0; i < 512; i++) this.bank.u32[((tables + 0x2000) >>> 2) + 2 * i] = (i * 0x20_0000) | 0x87;
    this.set64(Save.CR0, 0x8000_0031);
    this.set64(Save.CR3, GUEST_TABLES);
    this.set64(Save.CR4, 0x20);
    this.set64(Save.EFER, 0x1d01);
    this.#setCommon();
  }
}
