/** One guest on a machine of either vendor, for fuzzers: put into any state, entered, and what came of it told in words to compare. */
import { crc32 } from "node:zlib";
import { hpa } from "../../src/addresses.ts";
import { state } from "../../src/engine/cpu-state.ts";
import { Engine } from "../../src/engine/engine.ts";
import type { TranslateMode } from "../../src/engine/translator/translator.ts";
import type { LogicalCpuCore } from "../../src/logical-cpu-core.ts";
import { createMachine } from "../../src/machine.ts";
import {
  Control,
  ExitCode,
  exitCodeName,
  Intercept3,
  Intercept4,
  Save,
  TlbControl,
  VInterrupt,
  VIRTUAL_LBR,
} from "../../src/svm/vmcb.ts";
import { EntryControl, ExitReason, exitReasonName, Primary, Secondary } from "../../src/vmx/controls.ts";
import { VmcsField, type VmcsFieldName } from "../../src/vmx/fields.ts";
import type { Random } from "../random.ts";
import { SvmHarness } from "../svm-harness.ts";
import { BANK, GUEST_BYTES, VmxHarness } from "../vmx-harness.ts";
import { APIC_AT } from "./guest-code.ts";
import { GDT, type GuestSetup, IDT } from "./guest-image.ts";

export interface EngineChoice {
  translate: TranslateMode;
  hotEntries?: number;
  sweepBytes?: number;
  /** Of the host, and so of nested paging. */
  pagingLevels?: 4 | 5;
}

/** Registers that no VMCS and no VMCB holds. */
const SHARED: readonly (readonly [number, number])[] = [
  [state.gpr, 128],
  [state.cr2, 8],
  [state.cr8, 8],
  [state.xcr0, 8],
  [state.xss, 8],
  [state.pkru, 8],
  [state.dr, 64],
  [state.star, 56],
  [state.xmm, 256],
  [state.ymmHigh, 256],
  [state.mxcsr, 4],
  [state.fpr, 128],
  [state.fpuControl, 8],
  [state.fpuIp, 20],
];

export interface GuestMachine {
  readonly cpu: LogicalCpuCore;
  readonly log: string[];
  /** Guest physical memory. */
  readonly memory: Uint8Array;
  begin(setup: GuestSetup): void;
  /** Enters the guest, for so many instructions at most; what came of it. `isOver`: time was up, or the VM is dead. */
  enter(instructions: number): { what: string; isOver: boolean };
  /** Goes on behind the instruction, or somewhere else, perhaps with an event. */
  react(random: Random): void;
  /** All registers, to compare. */
  describe(): string;
}

/** Says of every page that it was written, as a device does not: what a case has left in the caches of code is not for the next one. */
function dropCode(engine: Engine | undefined, first: number): void {
  if (engine === undefined) return;
  for (let page = first; page < first + GUEST_BYTES; page += PAGE_BYTES)
    if (engine.holdsCode(page)) engine.codeWritten(page, PAGE_BYTES);
}

function reset(cpu: LogicalCpuCore, setup: GuestSetup, memory: Uint8Array): void {
  for (const [at, length] of SHARED) cpu.block.u8.fill(0, at, at + length);
  cpu.block.set(state.dr + 48, 0xffff_0ff0n);
  cpu.xcr0 = 7n;
  cpu.block.u32[state.mxcsr >>> 2] = 0x1f80;
  const fpu = new Uint8Array(512);
  fpu[0] = 0x7f;
  fpu[1] = 3;
  fpu[24] = 0x80;
  fpu[25] = 0x1f;
  cpu.fxrstor(fpu);
  setup.registers.forEach((value, i) => {
    cpu.setGpr(i, value);
  });
  const { extras } = setup;
  cpu.block.u32[state.pkru >>> 2] = extras.pkru;
  extras.breakpoints.forEach((address, i) => {
    cpu.block.set(state.dr + i * 8, address);
  });
  memory.fill(0);
  memory.set(setup.image);
}

function describeShared(cpu: LogicalCpuCore): string {
  return SHARED.map(
    ([at, length]) => `CPU ${at.toString(16)} ${Buffer.from(cpu.block.u8.subarray(at, at + length)).toString("hex")}`,
  ).join("\n");
}

export const memoryHash = (memory: Uint8Array): number => crc32(memory);

/** Ticks of the TSC for an instruction, under icount. */
const TICKS = createMachine().ticksPerInstruction;
const PAGE_BYTES = 4096;
const SEGMENTS = ["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"] as const;

/** Events for injection that a guest in this mode may be given. */
const INJECTED = [6, 0, 3, 5] as const;

export class VmxMachine implements GuestMachine {
  readonly cpu: LogicalCpuCore;
  readonly log: string[];
  readonly memory: Uint8Array;
  readonly harness: VmxHarness;
  #engine: Engine | undefined;
  readonly #fields: readonly (readonly [VmcsFieldName, bigint])[];
  /** Of the host's: the virtual APIC's registers, and a bit map of MSRs none of which exits. */
  readonly #virtualApic: number;
  readonly #msrBitmap: number;
  #isLaunched = false;

  constructor(choice: EngineChoice) {
    this.harness = new VmxHarness({
      mode: "real",
      engine: (options) => {
        this.#engine = new Engine({ ...options, ...choice });
        return this.#engine;
      },
    });
    this.cpu = this.harness.cpu;
    this.log = this.harness.log;
    this.memory = this.harness.bank.u8.subarray(this.harness.guestMemory, this.harness.guestMemory + GUEST_BYTES);
    this.#virtualApic = this.harness.page();
    this.#msrBitmap = this.harness.page();
    const writable = Object.entries(VmcsField).filter(([, encoding]) => ((encoding >> 10) & 3) !== 1);
    this.#fields = writable.map(([name]) => [
      name as VmcsFieldName,
      this.harness.cpu.vmx.vmread(VmcsField[name as VmcsFieldName]),
    ]);
  }

  begin(setup: GuestSetup): void {
    const h = this.harness;
    this.cpu.timerDeadline = Number.POSITIVE_INFINITY;
    h.expect(h.cpu.vmx.vmclear(h.vmcs), "VMCLEAR");
    h.expect(h.cpu.vmx.vmptrld(h.vmcs), "VMPTRLD");
    // Guest-physical mappings too: another page may be the APIC-access page now
    h.expect(h.cpu.vmx.invvpid(2, 0, 0n), "INVVPID");
    h.expect(h.cpu.vmx.invept(2, 0n), "INVEPT");
    this.#isLaunched = false;
    for (const [name, value] of this.#fields) h.write(name, value);
    dropCode(this.#engine, this.harness.guestMemory);
    reset(this.cpu, setup, this.memory);
    h.setControl("SECONDARY_CONTROLS", Secondary.enableInvpcid | Secondary.enableRdtscp);
    h.setControl("PRIMARY_CONTROLS", Primary.activateSecondary);
    if ((setup.efer & 0x400) !== 0) h.setControl("ENTRY_CONTROLS", EntryControl.ia32eModeGuest);
    setup.segments.forEach(({ selector, base, limit, access }, i) => {
      const name = SEGMENTS[i] as (typeof SEGMENTS)[number];
      h.write(`GUEST_${name}_SELECTOR`, selector);
      h.write(`GUEST_${name}_BASE`, base);
      h.write(`GUEST_${name}_LIMIT`, limit);
      h.write(`GUEST_${name}_ACCESS`, access);
    });
    h.write("GUEST_CR0", setup.cr0);
    h.write("GUEST_CR3", setup.cr3);
    h.write("GUEST_CR4", (setup.cr4 & Number(this.cpu.model.cr4Allowed)) | 0x2000);
    h.write("GUEST_EFER", setup.efer);
    h.write("GUEST_RFLAGS", setup.rflags);
    h.write("GUEST_RIP", setup.rip);
    h.write("GUEST_RSP", setup.registers[4] as bigint);
    h.write("GUEST_GDTR_BASE", GDT);
    h.write("GUEST_GDTR_LIMIT", setup.gdtLimit);
    h.write("GUEST_IDTR_BASE", setup.mode === "real" ? 0 : IDT);
    h.write("GUEST_IDTR_LIMIT", setup.idtLimit);
    h.write("GUEST_DR7", setup.extras.dr7);
    h.write("GUEST_DEBUGCTL", setup.extras.debugctl & 2);
    if (setup.extras.passesMsrs) {
      h.write("MSR_BITMAP", this.#address(this.#msrBitmap));
      h.setControl("PRIMARY_CONTROLS", Primary.useMsrBitmaps);
    }
    this.#virtualizeApic(setup.extras.apic);
    const view = new DataView(setup.image.buffer);
    if (setup.mode === "pae")
      for (const i of [0, 1, 2, 3] as const)
        h.write(`GUEST_PDPTE${i}`, view.getBigUint64(setup.cr3 + i * 8, true) & 0xf_ffff_f001n);
  }

  #address(offset: number): bigint {
    return (BigInt(BANK) << 32n) | BigInt(offset);
  }

  /** As much of the APIC's virtualization as the bits of `choice` say, in its memory or in x2APIC mode; something waits to be delivered. */
  #virtualizeApic(choice: number | undefined): void {
    const h = this.harness;
    const registers = h.bank.u32.subarray(this.#virtualApic >>> 2, (this.#virtualApic + PAGE_BYTES) >>> 2).fill(0);
    if (choice === undefined) return;
    h.write("VIRTUAL_APIC_ADDRESS", this.#address(this.#virtualApic));
    h.write("APIC_ACCESS_ADDRESS", this.#address(h.guestMemory + APIC_AT));
    h.setControl("PRIMARY_CONTROLS", Primary.useTprShadow);
    let secondary = (choice & 1) !== 0 ? Secondary.virtualizeApicAccesses : Secondary.virtualizeX2apicMode;
    if ((choice & 2) !== 0) secondary |= Secondary.apicRegisterVirtualization;
    if ((choice & 12) !== 0) secondary |= Secondary.virtualInterruptDelivery;
    h.setControl("SECONDARY_CONTROLS", secondary);
    if ((choice & 12) === 0) {
      // Above the threshold, so that it is the guest who comes below
      registers[0x80 >>> 2] = 0x40;
      h.write("TPR_THRESHOLD", (choice >>> 4) & 3);
      return;
    }
    const vector = 0x20 | ((choice >>> 8) & 0xdf);
    registers[(0x200 + (vector >>> 5) * 16) >>> 2] = 1 << (vector & 31);
    h.write("GUEST_INTERRUPT_STATUS", vector);
  }

  enter(instructions: number): { what: string; isOver: boolean } {
    const h = this.harness;
    const { vmx } = h.cpu;
    h.cpu.setTimerDeadline(h.cpu.rdtsc() + instructions * TICKS);
    const status = this.#isLaunched ? vmx.vmresume() : vmx.vmlaunch();
    if (status !== 0) return { what: `refused ${status}: ${this.log.at(-1)}`, isOver: true };
    this.#isLaunched = true;
    const reason = h.read("EXIT_REASON");
    const basic = reason & 0xffff;
    const what = `${exitReasonName(basic)}${reason > 0xffff ? ` (${this.log.at(-1)})` : ""} ${h.read("EXIT_QUALIFICATION").toString(16)} at ${h.read("GUEST_RIP").toString(16)} after ${h.cpu.retiredInstructions()}`;
    if (h.cpu.interruptPending()) h.cpu.takeInterrupt();
    return {
      what,
      isOver: reason > 0xffff || basic === ExitReason.externalInterrupt || basic === ExitReason.tripleFault,
    };
  }

  react(random: Random): void {
    const h = this.harness;
    const reason = h.read("EXIT_REASON") & 0xffff;
    const isMemory =
      reason === ExitReason.eptViolation || reason === ExitReason.eptMisconfiguration || reason === ExitReason.taskSwitch;
    const choice = random.below(8);
    if (choice < 2 || (isMemory && choice < 6)) {
      const vector = random.pick(INJECTED);
      h.write("ENTRY_INTERRUPTION_INFO", (0x8000_0300 | vector) >>> 0);
      return;
    }
    h.write("GUEST_INTERRUPTIBILITY", h.read("GUEST_INTERRUPTIBILITY") & ~3);
    h.write("GUEST_PENDING_DEBUG", 0);
    if (isMemory) h.write("GUEST_RIP", 0x8000 + random.below(0x4000));
    else if (h.read("EXIT_INSTRUCTION_LENGTH") <= 15) h.skip();
  }

  describe(): string {
    const h = this.harness;
    const fields = this.#fields
      .filter(([name]) => name.startsWith("GUEST_"))
      .map(([name]) => `${name} ${h.cpu.vmx.vmread(VmcsField[name]).toString(16)}`);
    const apic = h.bank.u8.subarray(this.#virtualApic, this.#virtualApic + PAGE_BYTES);
    return `${fields.join("\n")}\n${describeShared(this.cpu)}\napic ${memoryHash(apic)}\nmemory ${memoryHash(this.memory)}`;
  }
}

export class SvmMachine implements GuestMachine {
  readonly cpu: LogicalCpuCore;
  readonly log: string[];
  readonly memory: Uint8Array;
  readonly harness: SvmHarness;
  #engine: Engine | undefined;
  readonly #vmcb: Uint8Array;
  readonly #initial: Uint8Array;
  /** Of the host's: AVIC's backing page, its physical and its logical table, and a map of MSRs that do not exit. */
  readonly #avic: readonly [number, number, number];
  readonly #msrMap: number;

  constructor(choice: EngineChoice) {
    this.harness = new SvmHarness({
      mode: "real",
      pagingLevels: choice.pagingLevels ?? 4,
      engine: (options) => {
        this.#engine = new Engine({ ...options, ...choice });
        return this.#engine;
      },
    });
    this.cpu = this.harness.cpu;
    this.log = this.harness.log;
    this.memory = this.harness.bank.u8.subarray(this.harness.guestMemory, this.harness.guestMemory + GUEST_BYTES);
    this.#avic = [this.harness.page(), this.harness.page(), this.harness.page()];
    this.#msrMap = this.harness.page(2);
    // But for writes of EFER: who clears SVME there cannot be entered again
    this.harness.bank.u8[this.#msrMap + 0x820] = 2;
    const at = Number(this.harness.vmcb) % 0x1_0000_0000;
    this.#vmcb = this.harness.bank.u8.subarray(at, at + 4096);
    this.#initial = this.#vmcb.slice();
  }

  begin(setup: GuestSetup): void {
    const h = this.harness;
    this.cpu.timerDeadline = Number.POSITIVE_INFINITY;
    this.#vmcb.set(this.#initial);
    dropCode(this.#engine, this.harness.guestMemory);
    reset(this.cpu, setup, this.memory);
    h.set8(Control.TLB_CONTROL, TlbControl.flushAll);
    h.setBits(Control.INTERCEPT_4, Intercept4.clgi | Intercept4.stgi | Intercept4.vmload | Intercept4.vmsave);
    const places = [Save.ES, Save.CS, Save.SS, Save.DS, Save.FS, Save.GS, Save.LDTR, Save.TR];
    setup.segments.forEach(({ selector, base, limit, access }, i) => {
      const attributes = (access & 0x1_0000) !== 0 ? 0 : (access & 0xff) | ((access >>> 4) & 0xf00);
      h.setSegment(places[i] as number, selector, attributes, limit, base);
    });
    h.set64(Save.CR0, setup.cr0);
    h.set64(Save.CR3, setup.cr3);
    h.set64(Save.CR4, setup.cr4 & Number(this.cpu.model.cr4Allowed));
    h.set64(Save.EFER, setup.efer | 0x1000);
    h.set64(Save.RFLAGS, setup.rflags);
    h.set64(Save.RIP, setup.rip);
    h.set64(Save.RSP, setup.registers[4] as bigint);
    h.set64(Save.RAX, setup.registers[0] as bigint);
    h.set8(Save.CPL, setup.mode === "real" ? 0 : ((setup.segments[2]?.access ?? 0) >>> 5) & 3);
    h.setSegment(Save.GDTR, 0, 0, setup.gdtLimit, GDT);
    h.setSegment(Save.IDTR, 0, 0, setup.idtLimit, setup.mode === "real" ? 0 : IDT);
    h.set64(Save.DR7, setup.extras.dr7);
    h.set64(Save.DBGCTL, setup.extras.debugctl);
    if (setup.extras.debugctl !== 0) h.set32(Control.VIRTUAL_EXTENSIONS, VIRTUAL_LBR);
    if (setup.extras.passesMsrs) {
      h.setBits(Control.INTERCEPT_3, Intercept3.msr);
      h.set64(Control.MSRPM_BASE, hpa(BANK, this.#msrMap));
    }
    if (setup.extras.apic !== undefined) this.#virtualizeApic(setup.extras.apic);
    h.cpu.svm.vmload(h.vmcb);
  }

  /** AVIC for a guest of one processor, which runs; something waits to be delivered. */
  #virtualizeApic(choice: number): void {
    const h = this.harness;
    const [backing, physical, logical] = this.#avic;
    for (const page of this.#avic) h.bank.u32.fill(0, page >>> 2, (page + PAGE_BYTES) >>> 2);
    h.set32(Control.V_INTERRUPT, (VInterrupt.masking | VInterrupt.avicEnable) >>> 0);
    h.set64(Control.AVIC_BAR, APIC_AT);
    h.set64(Control.AVIC_BACKING_PAGE, hpa(BANK, backing));
    h.set64(Control.AVIC_PHYSICAL_TABLE, hpa(BANK, physical) + 7);
    h.set64(Control.AVIC_LOGICAL_TABLE, hpa(BANK, logical));
    h.bank.u32[(backing + 0xe0) >>> 2] = 0xffff_ffff;
    h.bank.view.setBigUint64(physical, (3n << 62n) | BigInt(hpa(BANK, backing)), true);
    const vector = 0x20 | ((choice >>> 8) & 0xdf);
    h.bank.u32[(backing + 0x200 + (vector >>> 5) * 16) >>> 2] = 1 << (vector & 31);
  }

  enter(instructions: number): { what: string; isOver: boolean } {
    const h = this.harness;
    h.cpu.setTimerDeadline(h.cpu.rdtsc() + instructions * TICKS);
    const exit = h.run();
    h.set8(Control.TLB_CONTROL, 0);
    const what = `${exitCodeName(exit.code)} ${exit.info1.toString(16)} ${exit.info2.toString(16)} at ${exit.rip.toString(16)} after ${h.cpu.retiredInstructions()}`;
    if (h.cpu.interruptPending()) h.cpu.takeInterrupt();
    return { what, isOver: exit.code === ExitCode.intr || exit.code === ExitCode.shutdown || exit.code === ExitCode.invalid };
  }

  react(random: Random): void {
    const h = this.harness;
    const code = h.get32(Control.EXIT_CODE);
    const isMemory = code === ExitCode.nestedPageFault;
    const choice = random.below(8);
    if (choice < 2 || (isMemory && choice < 6)) {
      h.set32(Control.EVENT_INJECTION, (0x8000_0300 | random.pick(INJECTED)) >>> 0);
      return;
    }
    h.set32(Control.INTERRUPT_STATE, 0);
    if (isMemory) h.set64(Save.RIP, 0x8000 + random.below(0x4000));
    else if (h.get64(Control.NEXT_RIP) !== 0n) h.skip();
    else h.set64(Save.RIP, h.get64(Save.RIP) + 1n);
  }

  describe(): string {
    this.harness.cpu.svm.vmsave(this.harness.vmcb);
    const lines: string[] = [];
    for (let at = 0x400; at < 0x6a0; at += 16)
      lines.push(`VMCB ${at.toString(16)} ${Buffer.from(this.#vmcb.subarray(at, at + 16)).toString("hex")}`);
    const apic = this.harness.bank.u8.subarray(this.#avic[0], this.#avic[0] + PAGE_BYTES);
    return `${lines.join("\n")}\n${describeShared(this.cpu)}\napic ${memoryHash(apic)}\nmemory ${memoryHash(this.memory)}`;
  }
}
