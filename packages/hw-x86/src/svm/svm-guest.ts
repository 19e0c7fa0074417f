/**
 * SVM guest mode as instructions meet it: which of them exit, and what the exit tells. Source: AMD64 APM Vol. 2, Intercept Operation;
 * Instruction Intercepts; IOIO Intercepts; MSR Intercepts; Exception Intercepts. Intercepts are copied out of the VMCB by
 * `useControls`, since some of these methods run for every translation.
 */
import type { Gpa, Gva } from "../addresses.ts";
import { state } from "../engine/cpu-state.ts";
import type { CounterAccess, GuestMode, OptionalInstruction, SecondLevelPage } from "../engine/guest-mode.ts";
import { op } from "../engine/operation.ts";
import { Cr0 } from "../engine/system/bits.ts";
import { TscReading } from "../engine/tsc-reading.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import { Root } from "../root-msrs.ts";
import type { DeliveredEvent } from "../vectoring-event.ts";
import { Avic, type AvicGuest } from "./avic.ts";
import { GuestExits } from "./guest-exits.ts";
import { GuestMemory, type MemoryGuest } from "./guest-memory.ts";
import { HiddenStateMoves } from "./hidden-state-moves.ts";
import type { Npt } from "./npt.ts";
import { PauseFilter } from "./pause-filter.ts";
import { PermissionMaps } from "./permission-maps.ts";
import { type InterceptedGuest, RegisterIntercepts } from "./register-intercepts.ts";
import { VirtualInterrupts } from "./virtual-interrupts.ts";
import { Control, ExitCode, Intercept3, Intercept4, Intercept5, VIRTUAL_LBR, VIRTUAL_VMLOAD_VMSAVE } from "./vmcb.ts";
import type { Vmcb } from "./vmcb-access.ts";

const PF = 14;
const MF = 16;
const DB = 1;
/** Bit of a page fault's error code. */
const FETCH_FAULT = 16;
const DR6_CAUSES = 0xe00f;
const DR6_FIXED = 0xffff_0ff0;

/** MSR C000_0104 where time goes as on the host: 8 bits before the point, 32 behind it. */
const TSC_RATIO_ONE = 1n << 32n;

/** High half of EXITINFO2 of a task switch. */
const TaskSwitch = { iret: 1 << 4, jump: 1 << 6, hasErrorCode: 1 << 12, rf: 1 << 16 } as const;

const SVM_INSTRUCTIONS: Readonly<Record<string, readonly [number, number]>> = {
  VMRUN: [Intercept4.vmrun, ExitCode.vmrun],
  VMMCALL: [Intercept4.vmmcall, ExitCode.vmmcall],
  VMLOAD: [Intercept4.vmload, ExitCode.vmload],
  VMSAVE: [Intercept4.vmsave, ExitCode.vmsave],
  STGI: [Intercept4.stgi, ExitCode.stgi],
  CLGI: [Intercept4.clgi, ExitCode.clgi],
  SKINIT: [Intercept4.skinit, ExitCode.skinit],
};
const TABLES: Readonly<Record<string, readonly [number, number]>> = {
  SIDT: [Intercept3.idtrRead, ExitCode.idtrRead],
  SGDT: [Intercept3.gdtrRead, ExitCode.gdtrRead],
  SLDT: [Intercept3.ldtrRead, ExitCode.ldtrRead],
  STR: [Intercept3.trRead, ExitCode.trRead],
  LIDT: [Intercept3.idtrWrite, ExitCode.idtrWrite],
  LGDT: [Intercept3.gdtrWrite, ExitCode.gdtrWrite],
  LLDT: [Intercept3.ldtrWrite, ExitCode.ldtrWrite],
  LTR: [Intercept3.trWrite, ExitCode.trWrite],
};

export class SvmGuest implements GuestMode, AvicGuest, MemoryGuest, InterceptedGuest {
  translationTag = 0;
  readonly exits = new GuestExits(this);
  readonly exit = this.exits.information;
  readonly npt: Npt;
  readonly apic: Avic;
  readonly interrupts: VirtualInterrupts;
  readonly counters: CounterAccess;
  readonly #memory: GuestMemory;
  readonly #registers: RegisterIntercepts;
  readonly #maps = new PermissionMaps();
  readonly #hiddenState: HiddenStateMoves;
  readonly #pauseFilter: PauseFilter;
  #engine: GuestEngine | undefined;
  readonly #cpu: RootCpu;
  readonly #vmcb: Vmcb;

  // Intercepts of the VMCB in use
  #exceptions = 0;
  #word3 = 0;
  #word4 = 0;
  #word5 = 0;
  bank = 0;
  readonly #tsc = new TscReading();
  #tscRatio = TSC_RATIO_ONE;
  #tscOffsetLow = 0;
  #tscOffsetHigh = 0;
  virtualizesBranchRecords = false;
  #virtualizesVmload = false;

  constructor(cpu: RootCpu, vmcb: Vmcb) {
    this.#cpu = cpu;
    this.counters = cpu.counters;
    this.#vmcb = vmcb;
    this.interrupts = new VirtualInterrupts(cpu);
    this.#pauseFilter = new PauseFilter(cpu);
    this.apic = new Avic(cpu, this);
    this.#memory = new GuestMemory(cpu, this);
    this.npt = this.#memory.npt;
    this.#registers = new RegisterIntercepts(this);
    this.#hiddenState = new HiddenStateMoves(cpu, this, this.#memory);
  }

  /** The engine that runs the guest from now on. */
  useEngine(engine: GuestEngine): void {
    this.#engine = engine;
    engine.guest = this;
    this.interrupts.engine = engine;
  }
  get engine(): GuestEngine {
    if (this.#engine === undefined) throw new Error("no engine: guest mode was never entered");
    return this.#engine;
  }

  get usesNpt(): boolean {
    return this.#memory.usesNpt;
  }

  /** Copies what decides about exits from the VMCB. */
  useControls(): void {
    const vmcb = this.#vmcb;
    const { memory, msrs } = this.#cpu;
    this.#exceptions = vmcb.low(Control.INTERCEPT_EXCEPTIONS);
    this.#word3 = vmcb.low(Control.INTERCEPT_3) | 0;
    this.#word4 = vmcb.low(Control.INTERCEPT_4) | 0;
    this.#word5 = vmcb.low(Control.INTERCEPT_5) | 0;
    this.#registers.useControls(vmcb, this.#word3, this.#word4);
    this.#maps.useControls(vmcb, this.#word3, memory);
    this.#memory.useControls(vmcb);
    this.#tscOffsetLow = vmcb.low(Control.TSC_OFFSET);
    this.#tscOffsetHigh = vmcb.high(Control.TSC_OFFSET);
    this.#tscRatio = msrs.values[Root.tscRatio] as bigint;
    this.#pauseFilter.load(vmcb);
    this.interrupts.load(vmcb, this.#word3);
    this.apic.useControls(vmcb);
    this.virtualizesBranchRecords = (vmcb.low(Control.VIRTUAL_EXTENSIONS) & VIRTUAL_LBR) !== 0;
    this.#virtualizesVmload = (vmcb.low(Control.VIRTUAL_EXTENSIONS) & VIRTUAL_VMLOAD_VMSAVE) !== 0;
  }

  /** Instructions whose rows ask before they are helpers' business: whether any of them is intercepted. */
  get interceptsFlagAccess(): boolean {
    return (this.#word3 & Intercept3.pushf) !== 0;
  }

  // Exits

  #exitIf3(intercept: number, code: number): boolean {
    return (this.#word3 & intercept) !== 0 && this.exits.afterInstruction(code);
  }
  #exitIf4(intercept: number, code: number): boolean {
    return (this.#word4 & intercept) !== 0 && this.exits.afterInstruction(code);
  }

  // Memory

  translate(gpa: Gpa, access: number, _linear: Gva | undefined, walk: boolean): SecondLevelPage {
    return this.#memory.translate(gpa, access, walk);
  }
  instructionOffset(): number | undefined {
    return this.#memory.instructionOffset();
  }

  // The local APIC

  leaveForAccess(offset: number, isWrite: boolean): never {
    this.exit.reset(ExitCode.avicNoAcceleration);
    this.exit.info1Low = offset;
    this.exit.info1High = isWrite ? 1 : 0;
    return this.exits.leave();
  }
  trapAccess(offset: number, vector: number): void {
    this.exit.reset(ExitCode.avicNoAcceleration);
    this.exit.info1Low = offset;
    this.exit.info1High = 1;
    this.exit.info2Low = vector;
    this.exits.trap();
  }
  trapIpi(high: number, low: number, failure: number, index: number): void {
    this.exit.reset(ExitCode.avicIncompleteIpi);
    this.exit.info1Low = low >>> 0;
    this.exit.info1High = high >>> 0;
    this.exit.info2Low = index;
    this.exit.info2High = failure;
    this.exits.trap();
  }
  stopAfterInstruction(): void {
    this.engine.requestStop();
  }
  acceptsInterrupts(): boolean {
    return this.interrupts.acceptsInterrupts();
  }

  // Events

  exception(vector: number, type: number, errorCode: number | undefined, payload: bigint): void {
    const isIcebp = type === 5;
    if (isIcebp && (this.#word4 & Intercept4.icebp) !== 0) {
      this.exit.reset(ExitCode.icebp);
      this.exit.nextRip = this.exits.ripAfter(1);
      this.exits.leave();
    }
    if (vector === MF && (this.#word3 & Intercept3.ferrFreeze) !== 0 && !this.#reportsNumericErrors()) {
      this.exit.reset(ExitCode.ferrFreeze);
      this.exits.leave();
    }
    if (((this.#exceptions >>> vector) & 1) === 0) return;
    const { exit, engine } = this;
    exit.reset(ExitCode.exception + vector);
    if (errorCode !== undefined) exit.info1Low = errorCode;
    if (vector === PF) {
      exit.setInfo2(payload);
      exit.hasBytes = ((errorCode ?? 0) & FETCH_FAULT) === 0;
    }
    if (vector === DB && !isIcebp) {
      const dr6 = engine.u32[(state.dr + 48) >>> 2] as number;
      engine.u32[(state.dr + 48) >>> 2] = dr6 | DR6_FIXED | (Number(payload & 0xffffn) & DR6_CAUSES);
    }
    // INT3 and INTO are at RIP still
    if (type >= 5) exit.nextRip = this.exits.ripAfter(1);
    this.exits.leave();
  }
  /** CR0.NE; without it numeric errors go the way of the FERR# pin. */
  #reportsNumericErrors(): boolean {
    return ((this.engine.u32[state.cr0 >>> 2] as number) & Cr0.NE) !== 0;
  }

  softwareInterrupt(vector: number): boolean {
    return (
      (this.#word3 & Intercept3.softwareInterrupt) !== 0 && this.exits.afterInstruction(ExitCode.softwareInterrupt, vector)
    );
  }

  tripleFault(): void {
    if ((this.#word3 & Intercept3.shutdown) === 0) return;
    this.exit.reset(ExitCode.shutdown);
    this.exits.leave();
  }

  vectoring(event: DeliveredEvent | undefined): void {
    this.exits.vectoring.note(event);
  }

  windowOpened(): boolean {
    return this.interrupts.isDue() || this.apic.isDeliverable();
  }

  // Instructions

  cpuid(): boolean {
    return this.#exitIf3(Intercept3.cpuid, ExitCode.cpuid);
  }
  hlt(): boolean {
    return this.#exitIf3(Intercept3.hlt, ExitCode.hlt);
  }
  pause(): boolean {
    return (
      (this.#word3 & Intercept3.pause) !== 0 && this.#pauseFilter.isExhausted() && this.exits.afterInstruction(ExitCode.pause)
    );
  }
  rdtsc(): boolean {
    return this.#exitIf3(Intercept3.rdtsc, ExitCode.rdtsc);
  }
  /** SVM takes nothing away: what is not to be had is intercepted. */
  requireEnabled(_instruction: OptionalInstruction): void {}
  rdtscp(): boolean {
    return this.#exitIf4(Intercept4.rdtscp, ExitCode.rdtscp);
  }
  rdpmc(): boolean {
    return this.#exitIf3(Intercept3.rdpmc, ExitCode.rdpmc);
  }
  invd(): boolean {
    return this.#exitIf3(Intercept3.invd, ExitCode.invd);
  }
  wbinvd(): boolean {
    return this.#exitIf4(Intercept4.wbinvd, ExitCode.wbinvd);
  }
  invlpg(linear: Gva): void {
    if ((this.#word3 & Intercept3.invlpg) === 0) return;
    this.exit.reset(ExitCode.invlpg);
    this.exit.setInfo1(linear);
    this.exit.nextRip = this.engine.nextRip();
    this.exits.leave();
  }
  invpcid(type: bigint, descriptor: Gva): void {
    if ((this.#word5 & Intercept5.invpcid) === 0) return;
    this.exit.reset(ExitCode.invpcid);
    this.exit.setInfo1(descriptor);
    this.exit.setInfo2(type);
    this.exit.nextRip = this.engine.nextRip();
    this.exits.leave();
  }
  monitor(): boolean {
    return this.#exitIf4(Intercept4.monitor, ExitCode.monitor);
  }
  /** What MONITOR arms is never triggered here, so that MWAIT always finds it armed. */
  mwait(): boolean {
    return this.#exitIf4(Intercept4.mwaitArmed, ExitCode.mwaitArmed) || this.#exitIf4(Intercept4.mwait, ExitCode.mwait);
  }
  rdrand(_isSeed: boolean): void {}
  xsetbv(): boolean {
    return this.#exitIf4(Intercept4.xsetbv, ExitCode.xsetbv);
  }
  xsaves(_restores: boolean, _components: bigint): void {}
  /** Of the other vendor: undefined opcodes. */
  vmxInstruction(_mnemonic: string): boolean {
    return false;
  }
  svmInstruction(mnemonic: string): "exit" | "done" | "undefined" {
    if (mnemonic === "INVLPGA") return this.#exitIf3(Intercept3.invlpga, ExitCode.invlpga) ? "exit" : "undefined";
    const row = SVM_INSTRUCTIONS[mnemonic];
    if (row !== undefined && this.#exitIf4(row[0], row[1])) return "exit";
    if (this.#virtualizesVmload && (mnemonic === "VMLOAD" || mnemonic === "VMSAVE")) return this.#hiddenState.move(mnemonic);
    return this.interrupts.setVirtualGif(mnemonic) ? "done" : "undefined";
  }
  descriptorTable(mnemonic: string): void {
    const row = TABLES[mnemonic];
    if (row !== undefined && (this.#word3 & row[0]) !== 0) this.exits.byInstruction(row[1]);
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
  registerWritten(register: "efer" | number, value: bigint): void {
    this.#registers.registerWritten(register, value);
  }

  taskSwitch(selector: number, source: "call" | "iret" | "jmp" | "interrupt", flags: number): void {
    if ((this.#word3 & Intercept3.taskSwitch) === 0) return;
    const { exit, engine } = this;
    const event = this.exits.vectoring;
    exit.reset(ExitCode.taskSwitch);
    exit.info1Low = selector;
    let kind = source === "iret" ? TaskSwitch.iret : source === "jmp" ? TaskSwitch.jump : 0;
    if (source === "interrupt" && event.errorCode !== undefined) {
      kind |= TaskSwitch.hasErrorCode;
      exit.info2Low = event.errorCode;
    }
    if ((flags & 0x1_0000) !== 0) kind |= TaskSwitch.rf;
    exit.info2High = kind;
    if (source !== "interrupt") exit.nextRip = engine.nextRip();
    else if (event.type >= 4) exit.nextRip = this.exits.ripAfter(event.instructionLength);
    this.exits.leave();
  }

  pushf(): void {
    if ((this.#word3 & Intercept3.pushf) !== 0) this.exits.byInstruction(ExitCode.pushf);
  }
  popf(): void {
    if ((this.#word3 & Intercept3.popf) !== 0) this.exits.byInstruction(ExitCode.popf);
  }
  iret(): boolean {
    if (this.#exitIf3(Intercept3.iret, ExitCode.iret)) return true;
    // It ends the blocking of NMIs, one of which may wait
    if (this.#cpu.lines.isNmiRaised()) this.engine.requestStop();
    return false;
  }
  rsm(): boolean {
    return this.#exitIf3(Intercept3.rsm, ExitCode.rsm);
  }

  // I/O and MSRs

  io(port: number, bytes: number, isIn: boolean, _immediate: boolean, string?: { linear: Gva; rep: boolean }): boolean {
    if (!this.#maps.isPortIntercepted(port, bytes)) return false;
    const { exit, engine } = this;
    const { operation } = engine;
    const addressSize = operation === 0 ? 64 : (engine.u8[operation + op.addressSize] as number);
    let info = (isIn ? 1 : 0) | (bytes << 4) | ((addressSize >>> 4) << 7) | (port << 16);
    if (string !== undefined) {
      const segment = ((engine.view.getUint16(operation + op.segment, true) - state.segments) >>> 6) & 7;
      info |= 4 | (string.rep ? 8 : 0) | ((isIn ? 0 : segment) << 10);
    }
    exit.reset(ExitCode.io);
    exit.info1Low = info >>> 0;
    exit.nextRip = engine.nextRip();
    exit.setInfo2(exit.nextRip);
    if (string !== undefined) this.exits.leave();
    engine.leave();
    return true;
  }

  rdmsr(index: number): boolean {
    return this.#maps.isMsrIntercepted(index >>> 0, false) && this.exits.afterInstruction(ExitCode.msr, 0);
  }
  wrmsr(index: number): boolean {
    return this.#maps.isMsrIntercepted(index >>> 0, true) && this.exits.afterInstruction(ExitCode.msr, 1);
  }

  guestTsc(): TscReading {
    const tsc = this.#tsc;
    tsc.set(this.#cpu.rdtsc());
    if (this.#tscRatio !== TSC_RATIO_ONE) tsc.setBig((tsc.big * this.#tscRatio) >> 32n);
    tsc.add(this.#tscOffsetLow, this.#tscOffsetHigh);
    return tsc;
  }

  get interceptsInterrupts(): boolean {
    return (this.#word3 & Intercept3.intr) !== 0;
  }
  get interceptsNmi(): boolean {
    return (this.#word3 & Intercept3.nmi) !== 0;
  }
  get interceptsVirtualInterrupts(): boolean {
    return (this.#word3 & Intercept3.vintr) !== 0;
  }
}
