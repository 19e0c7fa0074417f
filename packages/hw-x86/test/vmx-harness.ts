/**
 * A kernel small enough for tests of the hardware: one CPU in VMX operation, one bank, one guest with EPT, and its VMCS set up so
 * that it can be launched as it is. Guest physical memory starts at 0 and is backed by 4 KiB pages of the bank.
 */
import { type Hpa, hpa } from "../src/addresses.ts";
import { createIntelModel } from "../src/engine/system/cpuid.ts";
import { IntelCpu } from "../src/intel-cpu.ts";
import { VmxStatus } from "../src/logical-cpu.ts";
import type { EngineFactory } from "../src/logical-cpu-core.ts";
import { createMachine } from "../src/machine.ts";
import type { MemoryBank } from "../src/physical-memory.ts";
import { EntryControl, ExitControl, Primary, Secondary } from "../src/vmx/controls.ts";
import { VmcsField as F, type VmcsFieldName } from "../src/vmx/fields.ts";

export const BANK = 3;
export const GUEST_BYTES = 0x40_0000;
/** Where `load` puts code unless told otherwise. */
export const CODE = 0x8000;
/** Guest page tables of 64-bit guests: 1 GiB mapped one to one. */
const GUEST_TABLES = 0x1000;
const EPT_RWX_WB = 0x37;

export interface HarnessOptions {
  mode: "real" | "long";
  clock?: "wall" | "icount";
  engine: EngineFactory;
}

export interface Exit {
  reason: number;
  qualification: number;
  instructionLength: number;
  rip: number;
}

export class VmxHarness {
  readonly cpu: IntelCpu;
  readonly bank: MemoryBank;
  readonly vmcs: Hpa;
  readonly log: string[] = [];
  readonly eptRoot: number;
  /** Bank offset of guest physical 0. */
  readonly guestMemory: number;
  #nextPage: number;
  #launched = false;

  constructor(options: HarnessOptions) {
    const machine = createMachine({ clock: options.clock ?? "icount" });
    this.cpu = new IntelCpu(machine, 0, createIntelModel(), options.engine, (line) => this.log.push(line));
    this.bank = this.cpu.memory.createBank(BANK, 0x200_0000);
    this.guestMemory = this.bank.sizeBytes - GUEST_BYTES;
    this.#nextPage = this.bank.firstFreeOffset;
    const vmxonRegion = this.page();
    this.vmcs = hpa(BANK, this.page());
    const revision = Number((this.cpu.rdmsr(0x480) ?? 0n) & 0x7fff_ffffn);
    this.bank.u32[vmxonRegion >>> 2] = revision;
    this.bank.u32[(this.vmcs % 0x1_0000_0000) >>> 2] = revision;
    this.cpu.cr4 |= 1n << 13n;
    this.expect(this.cpu.vmx.vmxon(hpa(BANK, vmxonRegion)), "VMXON");
    this.expect(this.cpu.vmx.vmclear(this.vmcs), "VMCLEAR");
    this.expect(this.cpu.vmx.vmptrld(this.vmcs), "VMPTRLD");
    this.eptRoot = this.page();
    for (let gpa = 0; gpa < GUEST_BYTES; gpa += 4096) this.map(gpa, this.guestMemory + gpa, EPT_RWX_WB);
    this.#setControls(options.mode);
    this.#setHost();
    if (options.mode === "real") this.#setRealMode();
    else this.#setLongMode();
  }

  /** A zeroed page of the bank; its offset. */
  page(count = 1): number {
    const offset = this.#nextPage;
    this.#nextPage += 4096 * count;
    if (this.#nextPage > this.guestMemory) throw new Error("the test uses more pages than the bank has");
    return offset;
  }

  expect(status: VmxStatus, what: string): void {
    if (status === VmxStatus.succeed) return;
    const error = status === VmxStatus.failValid ? ` error ${this.read("INSTRUCTION_ERROR")}` : "";
    throw new Error(`${what}: status ${status}${error}\n${this.log.join("\n")}`);
  }

  write(name: VmcsFieldName, value: number | bigint): void {
    this.expect(this.cpu.vmx.vmwrite(F[name], value), `VMWRITE ${name}`);
  }
  read(name: VmcsFieldName): number {
    return this.cpu.vmx.vmreadNumber(F[name]);
  }
  setControl(
    name: "PIN_CONTROLS" | "PRIMARY_CONTROLS" | "SECONDARY_CONTROLS" | "EXIT_CONTROLS" | "ENTRY_CONTROLS",
    bits: number,
  ): void {
    this.write(name, (this.read(name) | bits) >>> 0);
  }
  clearControl(
    name: "PIN_CONTROLS" | "PRIMARY_CONTROLS" | "SECONDARY_CONTROLS" | "EXIT_CONTROLS" | "ENTRY_CONTROLS",
    bits: number,
  ): void {
    this.write(name, (this.read(name) & ~bits) >>> 0);
  }

  /** Bank offset of the EPT entry that maps `gpa` at `level` (0: 4 KiB page), making the tables above it. */
  eptEntry(gpa: number, level = 0): number {
    let table = this.eptRoot;
    for (let at = 3; at > level; at--) {
      const entry = table + (Math.floor(gpa / 2 ** (12 + 9 * at)) % 512) * 8;
      if (this.bank.u32[entry >>> 2] === 0) this.setEntry(entry, this.page() | 7);
      table = (this.bank.u32[entry >>> 2] as number) & 0xffff_f000;
    }
    return table + (Math.floor(gpa / 2 ** (12 + 9 * level)) % 512) * 8;
  }
  setEntry(entry: number, low: number, bank = BANK): void {
    this.bank.u32[entry >>> 2] = low;
    this.bank.u32[(entry >>> 2) + 1] = low === 0 ? 0 : bank;
  }
  map(gpa: number, offset: number, flags: number, level = 0): void {
    this.setEntry(this.eptEntry(gpa, level), (offset | flags) >>> 0);
  }

  /** Puts bytes at a guest physical address. */
  load(bytes: readonly number[], gpa = CODE): void {
    this.bank.u8.set(bytes, this.guestMemory + gpa);
  }
  guestU32(gpa: number): number {
    return this.bank.view.getUint32(this.guestMemory + gpa, true);
  }

  /** Enters the guest; the exit that came of it. */
  run(): Exit {
    const { vmx } = this.cpu;
    this.expect(this.#launched ? vmx.vmresume() : vmx.vmlaunch(), this.#launched ? "VMRESUME" : "VMLAUNCH");
    const reason = this.read("EXIT_REASON");
    if (reason < 0x8000_0000) this.#launched = true;
    return {
      reason,
      qualification: this.read("EXIT_QUALIFICATION"),
      instructionLength: this.read("EXIT_INSTRUCTION_LENGTH"),
      rip: this.read("GUEST_RIP"),
    };
  }

  /** Moves RIP past the instruction that exited. */
  skip(): void {
    this.write("GUEST_RIP", this.read("GUEST_RIP") + this.read("EXIT_INSTRUCTION_LENGTH"));
  }

  #setControls(mode: "real" | "long"): void {
    const required = (msr: number): number => Number((this.cpu.rdmsr(msr) ?? 0n) & 0xffff_ffffn);
    this.write("PIN_CONTROLS", required(0x48d));
    this.write(
      "PRIMARY_CONTROLS",
      (required(0x48e) | Primary.hltExiting | Primary.unconditionalIoExiting | Primary.activateSecondary) >>> 0,
    );
    this.write(
      "SECONDARY_CONTROLS",
      Secondary.enableEpt | Secondary.enableVpid | Secondary.unrestrictedGuest | Secondary.enableRdtscp,
    );
    this.write(
      "EXIT_CONTROLS",
      required(0x48f) |
        ExitControl.hostAddressSpaceSize |
        ExitControl.saveDebugControls |
        ExitControl.saveEfer |
        ExitControl.loadEfer |
        ExitControl.savePat |
        ExitControl.loadPat,
    );
    const entry = required(0x490) | EntryControl.loadDebugControls | EntryControl.loadEfer | EntryControl.loadPat;
    this.write("ENTRY_CONTROLS", mode === "long" ? entry | EntryControl.ia32eModeGuest : entry);
    this.write("VPID", 1);
    this.write("EPT_POINTER", (BigInt(BANK) << 32n) | BigInt(this.eptRoot) | 0x1en);
    this.write("VMCS_LINK_POINTER", 0xffff_ffff_ffff_ffffn);
    this.write("CR4_MASK", 0x2000);
  }

  #setHost(): void {
    this.write("HOST_CR0", 0x8005_0033);
    this.write("HOST_CR4", this.cpu.cr4);
    this.write("HOST_CS_SELECTOR", 0x10);
    this.write("HOST_SS_SELECTOR", 0x18);
    this.write("HOST_TR_SELECTOR", 0x40);
    this.write("HOST_EFER", 0xd01);
    this.write("HOST_PAT", 0x0007_0406_0007_0406n);
  }

  #setSegment(
    name: "ES" | "CS" | "SS" | "DS" | "FS" | "GS" | "LDTR" | "TR",
    selector: number,
    limit: number,
    access: number,
  ): void {
    this.write(`GUEST_${name}_SELECTOR`, selector);
    this.write(`GUEST_${name}_LIMIT`, limit);
    this.write(`GUEST_${name}_ACCESS`, access);
  }

  #setCommon(): void {
    this.write("GUEST_RFLAGS", 2);
    this.write("GUEST_RIP", CODE);
    this.write("GUEST_RSP", 0x7000);
    this.write("GUEST_DR7", 0x400);
    this.write("GUEST_PAT", 0x0007_0406_0007_0406n);
    this.write("GUEST_GDTR_LIMIT", 0xffff);
    this.write("GUEST_IDTR_LIMIT", 0xffff);
    this.#setSegment("LDTR", 0, 0, 0x1_0000);
    this.#setSegment("TR", 0, 0x67, 0x8b);
  }

  #setRealMode(): void {
    for (const name of ["ES", "SS", "DS", "FS", "GS"] as const) this.#setSegment(name, 0, 0xffff, 0x93);
    this.#setSegment("CS", 0, 0xffff, 0x9b);
    this.write("GUEST_CR0", 0x30);
    this.write("GUEST_CR4", 0x2000);
    this.#setCommon();
  }

  #setLongMode(): void {
    for (const name of ["ES", "SS", "DS", "FS", "GS"] as const) this.#setSegment(name, 0x18, 0xffff_ffff, 0xc093);
    this.#setSegment("CS", 0x10, 0xffff_ffff, 0xa09b);
    const tables = this.guestMemory + GUEST_TABLES;
    this.bank.u32[tables >>> 2] = (GUEST_TABLES + 0x1000) | 7;
    this.bank.u32[(tables + 0x1000) >>> 2] = (GUEST_TABLES + 0x2000) | 7;
    for (let i = 0; i < 512; i++) this.bank.u32[((tables + 0x2000) >>> 2) + 2 * i] = (i * 0x20_0000) | 0x87;
    this.write("GUEST_CR0", 0x8000_0031);
    this.write("GUEST_CR3", GUEST_TABLES);
    this.write("GUEST_CR4", 0x2020);
    this.write("GUEST_EFER", 0xd01);
    this.#setCommon();
  }
}
