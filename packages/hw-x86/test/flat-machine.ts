/**
 * A bare engine for tests: guest physical address 0 is at BANK_FIRST_FREE of a bank of its own, nothing is intercepted, ports
 * and model-specific registers are the test's to answer.
 */
import { type Gpa, type Gva, hpa } from "../src/addresses.ts";
import { absentApic } from "../src/engine/apic-access.ts";
import type { CpuModel } from "../src/engine/cpu.ts";
import {
  BANK_FIRST_FREE,
  CS,
  DS,
  ES,
  FS,
  GS,
  LDTR,
  SEG_ACCESS,
  SEG_BASE,
  SEG_LIMIT,
  SEG_SELECTOR,
  SS,
  segmentOffset,
  state,
  TR,
} from "../src/engine/cpu-state.ts";
import { Engine } from "../src/engine/engine.ts";
import { type GuestMode, type SecondLevelPage, VM_EXIT } from "../src/engine/guest-mode.ts";
import type { RegionThread } from "../src/engine/translator/region-thread.ts";
import { TscReading } from "../src/engine/tsc-reading.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";

export const FLAT_MODEL: CpuModel = {
  vendor: "intel",
  level: 4,
  cpuid: () => ({ eax: 0, ebx: 0, ecx: 0, edx: 0 }),
  cr0Allowed: 0xe005_003fn,
  cr4Allowed: 0x36_0e7fn,
  eferAllowed: 0xd01n,
  xcr0Allowed: 0x7n,
  physicalAddressBits: 40,
  linearAddressBits: 48,
};

/** Guest mode that intercepts nothing. What it cannot answer throws, with its name. */
export class FlatGuest implements GuestMode {
  readonly apic = absentApic;
  translationTag = 1;
  onOut: (port: number, bytes: number, value: number) => void = () => undefined;
  exceptions: { vector: number; type: number; errorCode: number | undefined; payload: bigint }[] = [];
  tripleFaults = 0;
  tsc = 0n;
  engine!: Engine;
  readonly #page: SecondLevelPage = { hpa: hpa(0, 0), rights: 7, pageBytes: 4096, isApic: false };
  readonly #bytes: number;

  constructor(bytes: number) {
    this.#bytes = bytes;
  }

  translate(gpa: Gpa): SecondLevelPage {
    if (gpa >= this.#bytes) throw new RangeError(`guest physical ${gpa.toString(16)} is past the end`);
    this.#page.hpa = hpa(0, BANK_FIRST_FREE + (gpa & ~0xfff));
    return this.#page;
  }
  exception(vector: number, type: number, errorCode: number | undefined, payload: bigint): void {
    this.exceptions.push({ vector, type, errorCode, payload });
  }
  tripleFault(): void {
    this.tripleFaults++;
  }
  vectoring(): void {}
  cpuid(): boolean {
    return false;
  }
  hlt(): boolean {
    return false;
  }
  pause(): boolean {
    return false;
  }
  rdtsc(): boolean {
    return false;
  }
  requireEnabled(): void {}
  rdtscp(): boolean {
    return false;
  }
  rdpmc(): boolean {
    return false;
  }
  invd(): boolean {
    return false;
  }
  wbinvd(): boolean {
    return false;
  }
  invlpg(_linear: Gva): void {}
  invpcid(): void {}
  monitor(): boolean {
    return false;
  }
  mwait(): boolean {
    return false;
  }
  rdrand(): void {}
  xsetbv(): boolean {
    return false;
  }
  xsaves(): void {}
  vmxInstruction(mnemonic: string): boolean {
    throw new Error(`${mnemonic} in a flat guest`);
  }
  svmInstruction(_mnemonic: string): "undefined" {
    return "undefined";
  }
  rsm(): boolean {
    return false;
  }
  softwareInterrupt(_vector: number): boolean {
    return false;
  }
  iret(): boolean {
    return false;
  }
  pushf(): void {}
  popf(): void {}
  registerWritten(_register: "efer" | number, _value: bigint): void {}
  readCr(_cr: number, _gpr: number, value: bigint): bigint {
    return value;
  }
  writeCr(_cr: number, _gpr: number, value: bigint): bigint {
    return value;
  }
  clts(): boolean {
    return true;
  }
  lmsw(value: number): bigint {
    return (this.engine.get64(state.cr0) & ~0xen) | BigInt(value & 0xf);
  }
  moveDr(): void {}
  descriptorTable(): void {}
  taskSwitch(): void {}
  io(port: number, bytes: number, isIn: boolean): boolean {
    if (!isIn) this.onOut(port, bytes, Number(this.engine.reg(0) & 0xffff_ffffn));
    return false;
  }
  rdmsr(): boolean {
    return false;
  }
  wrmsr(): boolean {
    return false;
  }
  guestTsc(): TscReading {
    const reading = new TscReading();
    reading.setBig(this.tsc);
    return reading;
  }
  windowOpened(): boolean {
    return false;
  }
  /** Ends the run from a port handler. */
  exit(): never {
    throw VM_EXIT;
  }
}

export interface FlatMachine {
  engine: Engine;
  guest: FlatGuest;
  /** Guest physical memory. */
  ram: Uint8Array;
  log: string[];
}

function setSegment(engine: Engine, segment: number, selector: number, base: number, limit: number, access: number): void {
  const slot = segmentOffset(segment);
  engine.set64(slot + SEG_BASE, BigInt(base));
  engine.set32(slot + SEG_LIMIT, limit);
  engine.set32(slot + SEG_ACCESS, access);
  engine.u16[(slot + SEG_SELECTOR) >>> 1] = selector;
}

/** `mode`: 16 real mode, 32 flat protected mode without paging, 64 long mode with the first GiB mapped to itself in 2 MiB pages. */
export function createFlatMachine(
  mode: 16 | 32 | 64,
  ramBytes = 16 << 20,
  translate = engineMode(),
  model = FLAT_MODEL,
  sweepBytes?: number,
  regionThread?: RegionThread,
): FlatMachine {
  const pages = Math.ceil((BANK_FIRST_FREE + ramBytes) / 65536);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  const guest = new FlatGuest(ramBytes);
  const log: string[] = [];
  const engine = new Engine({
    memory,
    model,
    guest,
    log: (line) => log.push(line),
    translate,
    hotEntries: HOT_ENTRIES_IN_TESTS,
    sweepBytes,
    regionThread,
  });
  guest.engine = engine;
  const ram = engine.u8.subarray(BANK_FIRST_FREE, BANK_FIRST_FREE + ramBytes);
  const isProtected = mode !== 16;
  const limit = isProtected ? 0xffff_ffff : 0xffff;
  setSegment(engine, CS, isProtected ? 8 : 0, 0, limit, mode === 64 ? 0xa09b : mode === 32 ? 0xc09b : 0x9b);
  for (const segment of [ES, SS, DS, FS, GS])
    setSegment(engine, segment, isProtected ? 16 : 0, 0, limit, isProtected ? 0xc093 : 0x93);
  setSegment(engine, LDTR, 0, 0, 0, 0x1_0000);
  setSegment(engine, TR, 0, 0, 0xffff, 0x8b);
  engine.set64(state.cr0, isProtected ? 0x11n : 0x10n);
  engine.set32(state.gdtrLimit, 0xffff);
  engine.set32(state.idtrLimit, isProtected ? 0 : 0x3ff);
  engine.set32(state.mxcsr, 0x1f80);
  engine.u16[state.fpuControl >>> 1] = 0x37f;
  engine.u16[state.fpuTags >>> 1] = 0xffff;
  if (mode === 64) {
    // Page tables in the last pages of memory
    const top = ramBytes - 3 * 4096;
    const view = new DataView(ram.buffer, ram.byteOffset);
    view.setBigUint64(top, BigInt(top + 4096 + 7), true);
    view.setBigUint64(top + 4096, BigInt(top + 8192 + 7), true);
    for (let i = 0; i < 512; i++) view.setBigUint64(top + 8192 + i * 8, BigInt(i * 0x20_0000 + 0x87), true);
    engine.set64(state.cr3, BigInt(top));
    engine.set64(state.cr4, 0x620n);
    engine.set64(state.cr0, 0x8001_0033n);
    engine.set64(state.efer, 0xd01n);
  }
  engine.setFlags(2);
  engine.updateSegments();
  engine.flushTlb(false);
  return { engine, guest, ram, log };
}
