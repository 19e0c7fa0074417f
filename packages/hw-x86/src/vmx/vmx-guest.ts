/**
 * VMX non-root operation as instructions meet it: which of them exit, and what the exit tells. Source: Intel SDM Vol. 3C, VMX
 * Non-Root Operation. Controls are copied out of the VMCS by `useControls`, since some of these methods run for every translation.
 */
import type { Gpa, Gva } from "../addresses.ts";
import { state } from "../engine/cpu-state.ts";
import {
  type CounterAccess,
  GUEST_FAULT,
  type GuestMode,
  type OptionalInstruction,
  type SecondLevelPage,
  VM_EXIT,
} from "../engine/guest-mode.ts";
import { op } from "../engine/operation.ts";
import { Dr6 } from "../engine/system/breakpoints.ts";
import type { MemoryBanks } from "../memory-banks.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import { CR0_FIXED0, CR4_FIXED0 } from "./capabilities.ts";
import { Blocking, ExitReason, Interruption, Pin, Primary, Secondary } from "./controls.ts";
import { Ept, EptResult } from "./ept.ts";
import { ExitInformation } from "./exit-information.ts";
import { slot } from "./fields.ts";
import { instructionInformation } from "./instruction-information.ts";
import { ModificationLog } from "./modification-log.ts";
import { PauseLoop } from "./pause-loop.ts";
import { type ApicGuest, VirtualApic } from "./virtual-apic.ts";
import type { Vmcs } from "./vmcs.ts";

const GP = 13;
const UD = 6;
const FETCH = 4;
const RFLAGS_IF = 0x200;
/** "NMI unblocking due to IRET" in interruption information and in the qualification of EPT violations and full logs. */
const NMI_UNBLOCKING = 1 << 12;
const RFLAGS_RF = 0x1_0000;

/** Access types in the qualification of APIC-access exits. */
const ApicAccessType = { read: 0, write: 1, fetch: 2, delivery: 3, physicalInDelivery: 10, physical: 15 } as const;

const ENABLED_BY: Readonly<Record<OptionalInstruction, number>> = {
  RDTSCP: Secondary.enableRdtscp,
  RDPID: Secondary.enableRdtscp,
  INVPCID: Secondary.enableInvpcid,
  XSAVES: Secondary.enableXsaves,
};

const VMX_INSTRUCTIONS: Readonly<Record<string, number>> = {
  VMCALL: ExitReason.vmcall,
  VMCLEAR: ExitReason.vmclear,
  VMLAUNCH: ExitReason.vmlaunch,
  VMPTRLD: ExitReason.vmptrld,
  VMPTRST: ExitReason.vmptrst,
  VMREAD: ExitReason.vmread,
  VMRESUME: ExitReason.vmresume,
  VMWRITE: ExitReason.vmwrite,
  VMXOFF: ExitReason.vmxoff,
  VMXON: ExitReason.vmxon,
  INVEPT: ExitReason.invept,
  INVVPID: ExitReason.invvpid,
};

/** A page-sized bitmap in physical memory; reads as all ones where there is no memory. */
class Bitmap {
  #u8: Uint8Array | undefined;
  #offset = 0;

  point(address: number, memory: MemoryBanks): void {
    this.#u8 = memory.holding(address, 4096)?.u8;
    this.#offset = address % 0x1_0000_0000;
  }

  test(bit: number): boolean {
    return this.#u8 === undefined || (((this.#u8[this.#offset + (bit >>> 3)] as number) >>> (bit & 7)) & 1) !== 0;
  }
}

interface VectoringEvent {
  vector: number;
  type: number;
  errorCode: number | undefined;
  instructionLength: number;
}

export class VmxGuest implements GuestMode, ApicGuest {
  translationTag = 0;
  readonly exit = new ExitInformation();
  readonly ept: Ept;
  readonly pauseLoop: PauseLoop;
  readonly apic: VirtualApic;
  readonly counters: CounterAccess;
  readonly #log: ModificationLog;
  usesEpt = false;
  #engine: GuestEngine | undefined;
  readonly #cpu: RootCpu;
  readonly #vmcs: Vmcs;
  /** The event whose delivery is under way; `isVectoring` says whether there is one. */
  readonly #event: VectoringEvent = { vector: 0, type: 0, errorCode: undefined, instructionLength: 0 };
  #isVectoring = false;
  /** The IRET at hand has lifted the blocking of NMIs; undone by the first of its end and a fault of it. */
  #isUnblocking = false;
  readonly #ioA = new Bitmap();
  readonly #ioB = new Bitmap();
  readonly #msrBitmap = new Bitmap();

  // Controls of the current VMCS
  pin = 0;
  primary = 0;
  secondary = 0;
  #exceptions = 0;
  #pageFaultMask = 0;
  #pageFaultMatch = 0;
  #cr0Mask = 0n;
  #cr4Mask = 0n;

  constructor(cpu: RootCpu, vmcs: Vmcs) {
    this.#cpu = cpu;
    this.counters = cpu.counters;
    this.#vmcs = vmcs;
    this.pauseLoop = new PauseLoop(cpu, vmcs);
    this.#log = new ModificationLog(vmcs);
    this.apic = new VirtualApic(cpu, vmcs, this);
    this.ept = new Ept(cpu.model.physicalAddressBits, (line) => cpu.log(line));
  }

  /** The engine that runs the guest from now on. */
  useEngine(engine: GuestEngine): void {
    this.#engine = engine;
    engine.guest = this;
  }

  get engine(): GuestEngine {
    if (this.#engine === undefined) throw new Error("no engine: guest mode was never entered");
    return this.#engine;
  }

  /** Copies what decides about exits from the current VMCS; call when its control fields may have changed. */
  useControls(): void {
    const vmcs = this.#vmcs;
    this.pin = vmcs.low(slot.PIN_CONTROLS);
    this.primary = vmcs.low(slot.PRIMARY_CONTROLS) | 0;
    this.secondary = (this.primary & Primary.activateSecondary) !== 0 ? vmcs.low(slot.SECONDARY_CONTROLS) : 0;
    this.usesEpt = (this.secondary & Secondary.enableEpt) !== 0;
    this.#exceptions = vmcs.low(slot.EXCEPTION_BITMAP);
    this.#pageFaultMask = vmcs.low(slot.PAGE_FAULT_MASK);
    this.#pageFaultMatch = vmcs.low(slot.PAGE_FAULT_MATCH);
    this.#cr0Mask = vmcs.big(slot.CR0_MASK);
    this.#cr4Mask = vmcs.big(slot.CR4_MASK);
    const memory = this.#cpu.memory;
    if ((this.primary & Primary.useIoBitmaps) !== 0) {
      this.#ioA.point(vmcs.number(slot.IO_BITMAP_A), memory);
      this.#ioB.point(vmcs.number(slot.IO_BITMAP_B), memory);
    }
    const logs = (this.secondary & Secondary.enablePml) !== 0;
    if (logs) this.#log.point(vmcs.number(slot.PML_ADDRESS), memory);
    this.ept.log = logs ? this.#log : undefined;
    if ((this.primary & Primary.useMsrBitmaps) !== 0) this.#msrBitmap.point(vmcs.number(slot.MSR_BITMAP), memory);
    this.apic.useControls(this.pin, this.primary, this.secondary);
  }

  // Exits

  /** RFLAGS as the exit saves them (Intel SDM Vol. 3C, Saving RIP, RSP, RFLAGS, and SSP). */
  savedFlags(): number {
    const flags = this.engine.readFlags();
    const { resume } = this.exit;
    if (resume === 0) return flags;
    return resume > 0 ? flags | RFLAGS_RF : flags & ~RFLAGS_RF;
  }

  /** Fills the exit information of an event between instructions; the caller leaves guest mode. */
  noteExit(reason: number): void {
    this.exit.reason = reason;
    this.#noteVectoring();
  }

  #noteVectoring(): void {
    if (!this.#isVectoring) return;
    this.#isVectoring = false;
    const { exit } = this;
    const isDoubleFault = exit.reason === ExitReason.exceptionOrNmi && (exit.interruptionInfo & 0xff) === 8;
    if (exit.reason === ExitReason.tripleFault || isDoubleFault) return;
    const event = this.#event;
    exit.vectoringInfo = (event.vector | (event.type << 8) | Interruption.valid) >>> 0;
    if (event.errorCode !== undefined) {
      exit.vectoringInfo = (exit.vectoringInfo | Interruption.errorCodeValid) >>> 0;
      exit.vectoringError = event.errorCode;
    }
    if (event.type >= 4) exit.instructionLength = event.instructionLength;
  }

  #leave(): never {
    this.#noteVectoring();
    this.#isUnblocking = false;
    throw VM_EXIT;
  }

  /** Exit caused by the instruction at hand, from anywhere in it. */
  #exitByInstruction(reason: number, qualification = 0): never {
    this.exit.reset(reason);
    this.exit.resume = -1;
    this.exit.qualificationLow = qualification;
    this.exit.instructionLength = this.engine.instructionLength();
    return this.#leave();
  }

  /** The same where the exit tells of the instruction's operands. */
  #exitByOperands(reason: number, mnemonic: string): never {
    this.#prepareOperands(reason, mnemonic);
    return this.#leave();
  }
  #prepareOperands(reason: number, mnemonic: string): void {
    const { exit, engine } = this;
    const information = instructionInformation(engine, mnemonic);
    exit.reset(reason);
    exit.resume = -1;
    exit.instructionLength = engine.instructionLength();
    if (information === undefined) return;
    exit.instructionInfo = information.field;
    exit.setQualification(information.displacement);
  }

  /** The same for an instruction that ends its block: the caller returns true to its helper, and generated code ends by itself. */
  #exitAfter(reason: number, qualification = 0): true {
    const { exit, engine } = this;
    exit.reset(reason);
    exit.resume = -1;
    exit.qualificationLow = qualification;
    exit.instructionLength = engine.instructionLength();
    engine.leave();
    return true;
  }

  #exitIfPrimary(control: number, reason: number): boolean {
    return (this.primary & control) !== 0 && this.#exitAfter(reason);
  }

  // Memory

  translate(gpa: Gpa, access: number, linear: Gva | undefined, walk: boolean): SecondLevelPage {
    const { ept } = this;
    if (!this.usesEpt) return this.#reached(ept.physical(this.#cpu.memory.bank(this.#vmcs.bank), gpa, access), access, walk);
    // With accessed and dirty flags on, the walk of guest paging structures counts as writing them
    const wanted = walk && ept.hasAccessedDirty ? access | 2 : access;
    const result = ept.translate(gpa, wanted);
    if (result === EptResult.mapped) return this.#reached(ept.page, access, walk);
    return this.#eptExit(result, gpa, walk && ept.hasAccessedDirty ? access | 3 : access, linear, walk);
  }

  /** The APIC-access page is told from memory. What is no read or write by linear address exits there. */
  #reached(page: SecondLevelPage, access: number, walk: boolean): SecondLevelPage {
    const { accessPage } = this.apic;
    page.isApic = accessPage >= 0 && page.hpa - (page.hpa % 4096) === accessPage;
    if (!page.isApic) return page;
    if (walk) this.#apicExit(0, this.#isVectoring ? ApicAccessType.physicalInDelivery : ApicAccessType.physical);
    if ((access & FETCH) !== 0) this.#apicExit(page.hpa % 4096, ApicAccessType.fetch);
    return page;
  }
  leaveForApicAccess(offset: number, isWrite: boolean): never {
    if (this.#isVectoring) return this.#apicExit(offset, ApicAccessType.delivery);
    return this.#apicExit(offset, isWrite ? ApicAccessType.write : ApicAccessType.read);
  }
  #apicExit(offset: number, type: number): never {
    this.exit.reset(ExitReason.apicAccess);
    this.exit.qualificationLow = offset | (type << 12);
    if (type !== ApicAccessType.fetch) this.exit.instructionLength = this.engine.instructionLength();
    return this.#leave();
  }
  stopAfterInstruction(): void {
    this.engine.requestStop();
  }
  acceptsInterrupts(): boolean {
    const { engine } = this;
    engine.settleShadow();
    const { u32 } = engine;
    const blocking = u32[state.interruptibility >>> 2] as number;
    return (
      ((u32[state.systemFlags >>> 2] as number) & RFLAGS_IF) !== 0 && (blocking & (Blocking.bySti | Blocking.byMovSs)) === 0
    );
  }

  #eptExit(result: number, gpa: number, access: number, linear: Gva | undefined, walk: boolean): never {
    const { exit } = this;
    const unblocking = this.#isUnblocking ? NMI_UNBLOCKING : 0;
    if (result === EptResult.logFull) {
      exit.reset(ExitReason.pageModificationLogFull);
      exit.qualificationLow = unblocking;
      return this.#leave();
    }
    const isViolation = result === EptResult.violation;
    exit.reset(isViolation ? ExitReason.eptViolation : ExitReason.eptMisconfiguration);
    exit.setPhysical(gpa);
    if (isViolation) {
      let qualification = access | (this.ept.violationRights << 3) | unblocking;
      if (linear !== undefined) qualification |= walk ? 0x80 : 0x180;
      exit.qualificationLow = qualification;
      if (linear !== undefined) exit.setLinear(linear);
    }
    if ((access & FETCH) === 0) exit.instructionLength = this.engine.instructionLength();
    return this.#leave();
  }

  attempt(access: () => void): boolean {
    const { exit } = this;
    const before = { ...exit };
    try {
      access();
      return true;
    } catch (thrown) {
      if (thrown !== VM_EXIT && thrown !== GUEST_FAULT) throw thrown;
      Object.assign(exit, before);
      return false;
    }
  }

  // Events

  exception(vector: number, type: number, errorCode: number | undefined, payload: bigint): void {
    let intercepted = ((this.#exceptions >>> vector) & 1) !== 0;
    if (vector === 14 && ((errorCode ?? 0) & this.#pageFaultMask) !== this.#pageFaultMatch) intercepted = !intercepted;
    if (!intercepted) return;
    const { exit } = this;
    exit.reset(ExitReason.exceptionOrNmi);
    exit.interruptionInfo = (vector | (type << 8) | Interruption.valid | (this.#isUnblocking ? NMI_UNBLOCKING : 0)) >>> 0;
    if (errorCode !== undefined) {
      exit.interruptionInfo = (exit.interruptionInfo | Interruption.errorCodeValid) >>> 0;
      exit.errorCode = errorCode;
    }
    if (vector === 14 || vector === 1) exit.setQualification(payload);
    const isFault = type === 3 && (vector !== 1 || (Number(payload & 0xffffn) & Dr6.BD) !== 0);
    if (isFault) exit.resume = 1;
    // INT1, INT3 and INTO have one byte; the instruction is no longer at hand when its exception is delivered
    if (type >= 5) exit.instructionLength = 1;
    this.#leave();
  }

  tripleFault(): void {
    this.exit.reset(ExitReason.tripleFault);
    this.#leave();
  }

  vectoring(event: VectoringEvent | undefined): void {
    this.#isVectoring = event !== undefined;
    this.#isUnblocking = false;
    if (event === undefined) return;
    this.#event.vector = event.vector;
    this.#event.type = event.type;
    this.#event.errorCode = event.errorCode;
    this.#event.instructionLength = event.instructionLength;
  }

  windowOpened(): boolean {
    const { primary } = this;
    // IRET comes here when nothing of it can fail any more
    this.#isUnblocking = false;
    if (this.apic.delivers && this.apic.isDeliverable()) return true;
    if ((primary & (Primary.interruptWindowExiting | Primary.nmiWindowExiting)) === 0) return false;
    return this.interruptWindowOpen() || this.nmiWindowOpen();
  }

  interruptWindowOpen(): boolean {
    return (this.primary & Primary.interruptWindowExiting) !== 0 && this.acceptsInterrupts();
  }

  nmiWindowOpen(): boolean {
    if ((this.primary & Primary.nmiWindowExiting) === 0) return false;
    const blocking = this.engine.u32[state.interruptibility >>> 2] as number;
    return (blocking & (Blocking.byNmi | Blocking.bySti | Blocking.byMovSs)) === 0;
  }

  // Instructions

  cpuid(): boolean {
    return this.#exitAfter(ExitReason.cpuid);
  }
  hlt(): boolean {
    return this.#exitIfPrimary(Primary.hltExiting, ExitReason.hlt);
  }
  pause(): boolean {
    if ((this.primary & Primary.pauseExiting) !== 0) return this.#exitAfter(ExitReason.pause);
    if ((this.secondary & Secondary.pauseLoopExiting) === 0 || this.engine.u32[state.cpl >>> 2] !== 0) return false;
    return this.pauseLoop.isTooLong() && this.#exitAfter(ExitReason.pause);
  }
  rdtsc(): boolean {
    return this.#exitIfPrimary(Primary.rdtscExiting, ExitReason.rdtsc);
  }
  requireEnabled(instruction: OptionalInstruction): void {
    if ((this.secondary & ENABLED_BY[instruction]) === 0) this.engine.raise(UD);
  }
  rdtscp(): boolean {
    return this.#exitIfPrimary(Primary.rdtscExiting, ExitReason.rdtscp);
  }
  rdpmc(): boolean {
    return this.#exitIfPrimary(Primary.rdpmcExiting, ExitReason.rdpmc);
  }
  invd(): boolean {
    return this.#exitAfter(ExitReason.invd);
  }
  wbinvd(): boolean {
    return (this.secondary & Secondary.wbinvdExiting) !== 0 && this.#exitAfter(ExitReason.wbinvd);
  }
  invlpg(linear: Gva): void {
    if ((this.primary & Primary.invlpgExiting) === 0) return;
    this.exit.reset(ExitReason.invlpg);
    this.exit.setQualification(linear);
    this.exit.instructionLength = this.engine.instructionLength();
    this.#leave();
  }
  invpcid(): void {
    if ((this.primary & Primary.invlpgExiting) !== 0) this.#exitByOperands(ExitReason.invpcid, "INVPCID");
  }
  monitor(): boolean {
    return this.#exitIfPrimary(Primary.monitorExiting, ExitReason.monitor);
  }
  mwait(): boolean {
    return this.#exitIfPrimary(Primary.mwaitExiting, ExitReason.mwait);
  }
  rdrand(isSeed: boolean): void {
    if ((this.secondary & (isSeed ? Secondary.rdseedExiting : Secondary.rdrandExiting)) === 0) return;
    this.#exitByOperands(isSeed ? ExitReason.rdseed : ExitReason.rdrand, isSeed ? "RDSEED" : "RDRAND");
  }
  xsetbv(): boolean {
    return this.#exitAfter(ExitReason.xsetbv);
  }
  xsaves(restores: boolean, components: bigint): void {
    if ((components & this.#vmcs.big(slot.XSS_EXITING_BITMAP)) !== 0n)
      this.#exitByOperands(restores ? ExitReason.xrstors : ExitReason.xsaves, restores ? "XRSTORS" : "XSAVES");
  }
  vmxInstruction(mnemonic: string): boolean {
    const reason = VMX_INSTRUCTIONS[mnemonic];
    // VMFUNC and what else is not offered
    if (reason === undefined) return this.engine.raise(UD);
    this.#prepareOperands(reason, mnemonic);
    this.engine.leave();
    return true;
  }
  /** Of the other vendor: undefined opcodes. */
  svmInstruction(_mnemonic: string): "undefined" {
    return "undefined";
  }
  // What VMX does not intercept
  rsm(): boolean {
    return false;
  }
  softwareInterrupt(_vector: number): boolean {
    return false;
  }
  /** Blocking by NMI ends with the attempt: an IRET that faults has lifted it. */
  iret(): boolean {
    const { u32 } = this.engine;
    const at = state.interruptibility >>> 2;
    const blocking = u32[at] as number;
    if ((blocking & Blocking.byNmi) === 0) return false;
    u32[at] = blocking & ~Blocking.byNmi;
    if (this.nmiWindowOpen() || this.#cpu.lines.isNmiRaised()) this.engine.requestStop();
    this.#isUnblocking = true;
    return false;
  }
  pushf(): void {}
  popf(): void {}
  registerWritten(_register: "efer" | number, _value: bigint): void {}
  descriptorTable(mnemonic: string): void {
    if ((this.secondary & Secondary.descriptorTableExiting) === 0) return;
    this.#exitByOperands(
      mnemonic.endsWith("GDT") || mnemonic.endsWith("IDT") ? ExitReason.gdtrIdtr : ExitReason.ldtrTr,
      mnemonic,
    );
  }

  // Control and debug registers

  readCr(cr: number, gpr: number, value: bigint): bigint {
    switch (cr) {
      case 0:
        return (value & ~this.#cr0Mask) | (this.#vmcs.big(slot.CR0_SHADOW) & this.#cr0Mask);
      case 4:
        return (value & ~this.#cr4Mask) | (this.#vmcs.big(slot.CR4_SHADOW) & this.#cr4Mask);
      case 3:
        if ((this.primary & Primary.cr3StoreExiting) !== 0)
          this.#exitByInstruction(ExitReason.controlRegister, 3 | (1 << 4) | (gpr << 8));
        return value;
      case 2:
        return value;
      default:
        if ((this.primary & Primary.cr8StoreExiting) !== 0)
          this.#exitByInstruction(ExitReason.controlRegister, 8 | (1 << 4) | (gpr << 8));
        return this.apic.usesShadow ? this.apic.readCr8() : value;
    }
  }

  writeCr(cr: number, gpr: number, value: bigint): bigint {
    switch (cr) {
      case 0:
        return this.#writeMasked(0, gpr, value, this.#cr0Mask, this.#vmcs.big(slot.CR0_SHADOW), state.cr0);
      case 4:
        return this.#writeMasked(4, gpr, value, this.#cr4Mask, this.#vmcs.big(slot.CR4_SHADOW), state.cr4);
      case 3:
        if ((this.primary & Primary.cr3LoadExiting) !== 0 && !this.#isCr3Target(value))
          this.#exitByInstruction(ExitReason.controlRegister, 3 | (gpr << 8));
        return value;
      case 2:
        return value;
      default:
        if ((this.primary & Primary.cr8LoadExiting) !== 0) this.#exitByInstruction(ExitReason.controlRegister, 8 | (gpr << 8));
        if (this.apic.usesShadow) {
          if (value >> 4n !== 0n) this.engine.raise(GP, 0);
          this.apic.writeCr8(Number(value));
        }
        return value;
    }
  }

  #writeMasked(cr: number, gpr: number, value: bigint, mask: bigint, shadow: bigint, register: number): bigint {
    if (((value ^ shadow) & mask) !== 0n) this.#exitByInstruction(ExitReason.controlRegister, cr | (gpr << 8));
    const loaded = (this.engine.get64(register) & mask) | (value & ~mask);
    // Bits that VMX operation fixes: an attempt to change them faults
    const unrestricted = (this.secondary & Secondary.unrestrictedGuest) !== 0;
    const fixed = cr === 0 ? BigInt(unrestricted ? CR0_FIXED0 & 0x7fff_fffe : CR0_FIXED0) : BigInt(CR4_FIXED0);
    if ((loaded & fixed) !== fixed) this.engine.raise(GP, 0);
    return loaded;
  }

  #isCr3Target(value: bigint): boolean {
    const count = this.#vmcs.low(slot.CR3_TARGET_COUNT);
    for (let i = 0; i < count; i++) if (this.#vmcs.big(slot.CR3_TARGET0 + 2 * i) === value) return true;
    return false;
  }

  clts(): boolean {
    if ((this.#cr0Mask & 8n) === 0n) return true;
    if ((this.#vmcs.big(slot.CR0_SHADOW) & 8n) !== 0n) this.#exitByInstruction(ExitReason.controlRegister, 2 << 4);
    return false; // the host owns TS and shows it clear: nothing happens
  }

  lmsw(value: number, memory: Gva | undefined): bigint {
    const mask = Number(this.#cr0Mask & 15n);
    const shadow = this.#vmcs.low(slot.CR0_SHADOW);
    const current = this.engine.get64(state.cr0);
    const changed = (value ^ shadow) & mask & 14;
    const setsPe = (mask & value & ~shadow & 1) !== 0; // LMSW cannot clear PE
    if (changed !== 0 || setsPe) {
      this.exit.reset(ExitReason.controlRegister);
      this.exit.qualificationLow = ((3 << 4) | (memory === undefined ? 0 : 1 << 6) | ((value & 0xffff) << 16)) >>> 0;
      if (memory !== undefined) this.exit.setLinear(memory);
      this.exit.instructionLength = this.engine.instructionLength();
      this.#leave();
    }
    const writable = BigInt(~mask & 14);
    const pe = (mask & 1) === 0 ? BigInt(value & 1) : 0n;
    return (current & ~writable) | (BigInt(value) & writable) | pe;
  }

  moveDr(dr: number, gpr: number, isRead: boolean): void {
    if ((this.primary & Primary.movDrExiting) !== 0)
      this.#exitByInstruction(ExitReason.moveDr, dr | (isRead ? 1 << 4 : 0) | (gpr << 8));
  }

  taskSwitch(selector: number, source: "call" | "iret" | "jmp" | "interrupt", flags: number): void {
    const code = source === "call" ? 0 : source === "iret" ? 1 : source === "jmp" ? 2 : 3;
    this.exit.reset(ExitReason.taskSwitch);
    this.exit.qualificationLow = (selector | (code << 30)) >>> 0;
    if (code !== 3) this.exit.instructionLength = this.engine.instructionLength();
    else this.exit.resume = (flags & RFLAGS_RF) !== 0 ? 1 : 0;
    this.#leave();
  }

  // I/O and MSRs

  io(port: number, bytes: number, isIn: boolean, immediate: boolean, string?: { linear: Gva; rep: boolean }): boolean {
    if ((this.primary & Primary.useIoBitmaps) !== 0) {
      if (!this.#isPortIntercepted(port, bytes)) return false;
    } else if ((this.primary & Primary.unconditionalIoExiting) === 0) return false;
    const qualification = ((bytes - 1) | (isIn ? 8 : 0) | (immediate ? 0x40 : 0) | (port << 16)) >>> 0;
    return string === undefined ? this.#exitAfter(ExitReason.io, qualification) : this.#stringIo(qualification, isIn, string);
  }

  #stringIo(qualification: number, isIn: boolean, string: { linear: Gva; rep: boolean }): never {
    const { exit, engine } = this;
    exit.reset(ExitReason.io);
    exit.setLinear(string.linear);
    const size = engine.u8[engine.operation + op.addressSize] as number;
    const segment = ((engine.view.getUint16(engine.operation + op.segment, true) - state.segments) >>> 6) & 7;
    exit.instructionInfo = ((size >>> 5) << 7) | (isIn ? 0 : segment << 15);
    exit.qualificationLow = (qualification | 0x10 | (string.rep ? 0x20 : 0)) >>> 0;
    exit.instructionLength = engine.instructionLength();
    return this.#leave();
  }

  #isPortIntercepted(port: number, bytes: number): boolean {
    if (port + bytes > 0x1_0000) return true; // wraps around the I/O space
    for (let i = port; i < port + bytes; i++) {
      if ((i < 0x8000 ? this.#ioA : this.#ioB).test(i & 0x7fff)) return true;
    }
    return false;
  }

  #isMsrIntercepted(index: number, writes: boolean): boolean {
    if ((this.primary & Primary.useMsrBitmaps) === 0) return true;
    const isHigh = index >>> 13 === 0xc000_0000 >>> 13;
    if (index >>> 13 !== 0 && !isHigh) return true;
    return this.#msrBitmap.test((writes ? 0x4000 : 0) + (isHigh ? 0x2000 : 0) + (index & 0x1fff));
  }

  rdmsr(index: number): boolean {
    return this.#isMsrIntercepted(index >>> 0, false) && this.#exitAfter(ExitReason.rdmsr);
  }
  wrmsr(index: number): boolean {
    return this.#isMsrIntercepted(index >>> 0, true) && this.#exitAfter(ExitReason.wrmsr);
  }

  guestTsc(): bigint {
    const tsc = BigInt(this.#cpu.rdtsc());
    if ((this.primary & Primary.useTscOffsetting) === 0) return tsc;
    const scaled = (this.secondary & Secondary.tscScaling) === 0 ? tsc : (tsc * this.#vmcs.big(slot.TSC_MULTIPLIER)) >> 48n;
    return BigInt.asUintN(64, scaled + this.#vmcs.big(slot.TSC_OFFSET));
  }

  entropy(): bigint {
    return this.#cpu.clock.entropy();
  }

  get hasVirtualNmis(): boolean {
    return (this.pin & Pin.virtualNmis) !== 0;
  }
}
