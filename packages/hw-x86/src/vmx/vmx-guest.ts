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
import { TscReading } from "../engine/tsc-reading.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import type { DeliveredEvent } from "../vectoring-event.ts";
import { Blocking, ExitReason, Interruption, Pin, Primary, Secondary } from "./controls.ts";
import type { Ept } from "./ept.ts";
import { slot } from "./fields.ts";
import { GuestExits } from "./guest-exits.ts";
import { GuestMemory, type MemoryGuest } from "./guest-memory.ts";
import { PauseLoop } from "./pause-loop.ts";
import { PermissionBitmaps } from "./permission-bitmaps.ts";
import { type InterceptedGuest, RegisterIntercepts } from "./register-intercepts.ts";
import { type ApicGuest, VirtualApic } from "./virtual-apic.ts";
import type { Vmcs } from "./vmcs.ts";

const UD = 6;
const RFLAGS_IF = 0x200;
const RFLAGS_RF = 0x1_0000;

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

export class VmxGuest implements GuestMode, ApicGuest, MemoryGuest, InterceptedGuest {
  translationTag = 0;
  readonly exits = new GuestExits(this);
  readonly exit = this.exits.information;
  readonly ept: Ept;
  readonly apic: VirtualApic;
  readonly pauseLoop: PauseLoop;
  readonly counters: CounterAccess;
  readonly #memory: GuestMemory;
  readonly #registers: RegisterIntercepts;
  readonly #bitmaps = new PermissionBitmaps();
  readonly #tsc = new TscReading();
  #engine: GuestEngine | undefined;
  readonly #cpu: RootCpu;
  readonly #vmcs: Vmcs;

  // Controls of the current VMCS
  pin = 0;
  primary = 0;
  secondary = 0;
  #exceptions = 0;
  #pageFaultMask = 0;
  #pageFaultMatch = 0;

  constructor(cpu: RootCpu, vmcs: Vmcs) {
    this.#cpu = cpu;
    this.counters = cpu.counters;
    this.#vmcs = vmcs;
    this.pauseLoop = new PauseLoop(cpu, vmcs);
    this.apic = new VirtualApic(cpu, vmcs, this);
    this.#memory = new GuestMemory(cpu, vmcs, this);
    this.ept = this.#memory.ept;
    this.#registers = new RegisterIntercepts(vmcs, this);
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

  get usesEpt(): boolean {
    return this.#memory.usesEpt;
  }

  /** Copies what decides about exits from the current VMCS; call when its control fields may have changed. */
  useControls(): void {
    const vmcs = this.#vmcs;
    this.pin = vmcs.low(slot.PIN_CONTROLS);
    this.primary = vmcs.low(slot.PRIMARY_CONTROLS) | 0;
    this.secondary = (this.primary & Primary.activateSecondary) !== 0 ? vmcs.low(slot.SECONDARY_CONTROLS) : 0;
    this.#exceptions = vmcs.low(slot.EXCEPTION_BITMAP);
    this.#pageFaultMask = vmcs.low(slot.PAGE_FAULT_MASK);
    this.#pageFaultMatch = vmcs.low(slot.PAGE_FAULT_MATCH);
    this.#registers.useControls();
    this.#bitmaps.useControls(vmcs, this.primary, this.#cpu.memory);
    this.#memory.useControls(this.secondary);
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
    this.exits.noteVectoring();
  }

  #exitIfPrimary(control: number, reason: number): boolean {
    return (this.primary & control) !== 0 && this.exits.afterInstruction(reason);
  }

  // Memory

  translate(gpa: Gpa, access: number, linear: Gva | undefined, walk: boolean): SecondLevelPage {
    return this.#memory.translate(gpa, access, linear, walk);
  }
  leaveForApicAccess(offset: number, isWrite: boolean): never {
    return this.#memory.leaveForApicAccess(offset, isWrite);
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
    exit.interruptionInfo = (vector | (type << 8) | Interruption.valid | this.exits.unblocking) >>> 0;
    if (errorCode !== undefined) {
      exit.interruptionInfo = (exit.interruptionInfo | Interruption.errorCodeValid) >>> 0;
      exit.errorCode = errorCode;
    }
    if (vector === 14 || vector === 1) exit.setQualification(payload);
    const isFault = type === 3 && (vector !== 1 || (Number(payload & 0xffffn) & Dr6.BD) !== 0);
    if (isFault) exit.resume = 1;
    // INT1, INT3 and INTO have one byte; the instruction is no longer at hand when its exception is delivered
    if (type >= 5) exit.instructionLength = 1;
    this.exits.leave();
  }

  tripleFault(): void {
    this.exit.reset(ExitReason.tripleFault);
    this.exits.leave();
  }

  vectoring(event: DeliveredEvent | undefined): void {
    this.exits.vectoring.note(event);
    this.exits.isUnblocking = false;
  }

  windowOpened(): boolean {
    const { primary } = this;
    // IRET comes here when nothing of it can fail any more
    this.exits.isUnblocking = false;
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
    return this.exits.afterInstruction(ExitReason.cpuid);
  }
  hlt(): boolean {
    return this.#exitIfPrimary(Primary.hltExiting, ExitReason.hlt);
  }
  pause(): boolean {
    if ((this.primary & Primary.pauseExiting) !== 0) return this.exits.afterInstruction(ExitReason.pause);
    if ((this.secondary & Secondary.pauseLoopExiting) === 0 || this.engine.u32[state.cpl >>> 2] !== 0) return false;
    return this.pauseLoop.isTooLong() && this.exits.afterInstruction(ExitReason.pause);
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
    return this.exits.afterInstruction(ExitReason.invd);
  }
  wbinvd(): boolean {
    return (this.secondary & Secondary.wbinvdExiting) !== 0 && this.exits.afterInstruction(ExitReason.wbinvd);
  }
  invlpg(linear: Gva): void {
    if ((this.primary & Primary.invlpgExiting) === 0) return;
    this.exit.reset(ExitReason.invlpg);
    this.exit.setQualification(linear);
    this.exit.instructionLength = this.engine.instructionLength();
    this.exits.leave();
  }
  invpcid(): void {
    if ((this.primary & Primary.invlpgExiting) !== 0) this.exits.byOperands(ExitReason.invpcid, "INVPCID");
  }
  monitor(): boolean {
    return this.#exitIfPrimary(Primary.monitorExiting, ExitReason.monitor);
  }
  mwait(): boolean {
    return this.#exitIfPrimary(Primary.mwaitExiting, ExitReason.mwait);
  }
  rdrand(isSeed: boolean): void {
    if ((this.secondary & (isSeed ? Secondary.rdseedExiting : Secondary.rdrandExiting)) === 0) return;
    this.exits.byOperands(isSeed ? ExitReason.rdseed : ExitReason.rdrand, isSeed ? "RDSEED" : "RDRAND");
  }
  xsetbv(): boolean {
    return this.exits.afterInstruction(ExitReason.xsetbv);
  }
  xsaves(restores: boolean, components: bigint): void {
    if ((components & this.#vmcs.big(slot.XSS_EXITING_BITMAP)) !== 0n)
      this.exits.byOperands(restores ? ExitReason.xrstors : ExitReason.xsaves, restores ? "XRSTORS" : "XSAVES");
  }
  vmxInstruction(mnemonic: string): boolean {
    const reason = VMX_INSTRUCTIONS[mnemonic];
    // VMFUNC and what else is not offered
    if (reason === undefined) return this.engine.raise(UD);
    return this.exits.afterOperands(reason, mnemonic);
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
    this.exits.isUnblocking = true;
    return false;
  }
  pushf(): void {}
  popf(): void {}
  registerWritten(_register: "efer" | number, _value: bigint): void {}
  descriptorTable(mnemonic: string): void {
    if ((this.secondary & Secondary.descriptorTableExiting) === 0) return;
    this.exits.byOperands(
      mnemonic.endsWith("GDT") || mnemonic.endsWith("IDT") ? ExitReason.gdtrIdtr : ExitReason.ldtrTr,
      mnemonic,
    );
  }

  // Control and debug registers

  readCr(cr: number, gpr: number, value: bigint): bigint {
    return this.#registers.readCr(cr, gpr, value);
  }
  writeCr(cr: number, gpr: number, value: bigint): bigint {
    return this.#registers.writeCr(cr, gpr, value);
  }
  clts(): boolean {
    return this.#registers.clts();
  }
  lmsw(value: number, memory: Gva | undefined): bigint {
    return this.#registers.lmsw(value, memory);
  }
  moveDr(dr: number, gpr: number, isRead: boolean): void {
    this.#registers.moveDr(dr, gpr, isRead);
  }

  taskSwitch(selector: number, source: "call" | "iret" | "jmp" | "interrupt", flags: number): void {
    const code = source === "call" ? 0 : source === "iret" ? 1 : source === "jmp" ? 2 : 3;
    this.exit.reset(ExitReason.taskSwitch);
    this.exit.qualificationLow = (selector | (code << 30)) >>> 0;
    if (code !== 3) this.exit.instructionLength = this.engine.instructionLength();
    else this.exit.resume = (flags & RFLAGS_RF) !== 0 ? 1 : 0;
    this.exits.leave();
  }

  // I/O and MSRs

  io(port: number, bytes: number, isIn: boolean, immediate: boolean, string?: { linear: Gva; rep: boolean }): boolean {
    if (!this.#bitmaps.isPortIntercepted(port, bytes)) return false;
    const qualification = ((bytes - 1) | (isIn ? 8 : 0) | (immediate ? 0x40 : 0) | (port << 16)) >>> 0;
    return string === undefined
      ? this.exits.afterInstruction(ExitReason.io, qualification)
      : this.#stringIo(qualification, isIn, string);
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
    return this.exits.leave();
  }

  rdmsr(index: number): boolean {
    return this.#bitmaps.isMsrIntercepted(index >>> 0, false) && this.exits.afterInstruction(ExitReason.rdmsr);
  }
  wrmsr(index: number): boolean {
    return this.#bitmaps.isMsrIntercepted(index >>> 0, true) && this.exits.afterInstruction(ExitReason.wrmsr);
  }

  guestTsc(): TscReading {
    const tsc = this.#tsc;
    tsc.set(this.#cpu.rdtsc());
    if ((this.primary & Primary.useTscOffsetting) === 0) return tsc;
    const vmcs = this.#vmcs;
    if ((this.secondary & Secondary.tscScaling) !== 0) tsc.setBig((tsc.big * vmcs.big(slot.TSC_MULTIPLIER)) >> 48n);
    tsc.add(vmcs.low(slot.TSC_OFFSET), vmcs.high(slot.TSC_OFFSET));
    return tsc;
  }

  entropy(): bigint {
    return this.#cpu.clock.entropy();
  }

  get hasVirtualNmis(): boolean {
    return (this.pin & Pin.virtualNmis) !== 0;
  }
}
