/**
 * SVM guest mode as instructions meet it: which of them exit, and what the exit tells. Source: AMD64 APM Vol. 2, Intercept Operation;
 * Instruction Intercepts; IOIO Intercepts; MSR Intercepts; Exception Intercepts. Intercepts are copied out of the VMCB by
 * `useControls`, since some of these methods run for every translation.
 */
import { bankOf, type Gpa, type Gva, offsetOf } from "../addresses.ts";
import { CS, state } from "../engine/cpu-state.ts";
import {
  type CounterAccess,
  GUEST_FAULT,
  type GuestMode,
  type OptionalInstruction,
  type SecondLevelPage,
  VM_EXIT,
} from "../engine/guest-mode.ts";
import { op } from "../engine/operation.ts";
import { Cr0, Efer } from "../engine/system/bits.ts";
import { translateFetch } from "../engine/system/paging.ts";
import type { GuestEngine, RootCpu } from "../root-interface.ts";
import { Root } from "../root-msrs.ts";
import { MAPPED } from "../second-level-tables.ts";
import { Avic, type AvicGuest } from "./avic.ts";
import { ExitInformation } from "./exit-information.ts";
import { loadHiddenState, saveHiddenState } from "./guest-state.ts";
import { Npt } from "./npt.ts";
import { PauseFilter } from "./pause-filter.ts";
import { VirtualInterrupts } from "./virtual-interrupts.ts";
import {
  Control,
  Event,
  ExitCode,
  Intercept3,
  Intercept4,
  Intercept5,
  NESTED_PAGING,
  VIRTUAL_LBR,
  VIRTUAL_VMLOAD_VMSAVE,
} from "./vmcb.ts";
import { PermissionMap, Vmcb } from "./vmcb-access.ts";

const PAGE = 4096;
const GP = 13;
const READ = 1;
const WRITE = 2;
const FETCH = 4;
const PF = 14;
const MF = 16;
const DB = 1;
const IOPM_BYTES = 0x3000;
const MSRPM_BYTES = 0x2000;
/** Bit of a page fault's error code. */
const FETCH_FAULT = 16;
const DR6_CAUSES = 0xe00f;
const DR6_FIXED = 0xffff_0ff0;

/** High half of EXITINFO1 of a nested page fault: the access was to the page itself, or to a guest page table. */
const FINAL_ACCESS = 1;
const TABLE_WALK = 2;
/** High half of EXITINFO1 of a CR access by MOV. */
const IS_MOV = 0x8000_0000;
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

interface VectoringEvent {
  vector: number;
  type: number;
  errorCode: number | undefined;
  instructionLength: number;
}

export class SvmGuest implements GuestMode, AvicGuest {
  readonly apic: Avic;
  readonly counters: CounterAccess;
  translationTag = 0;
  readonly exit = new ExitInformation();
  readonly npt: Npt;
  readonly interrupts: VirtualInterrupts;
  usesNpt = false;
  #isProbing = false;
  /** The exit after the instruction at hand is decided. */
  trapDue = false;
  readonly #cpu: RootCpu;
  readonly #vmcb: Vmcb;
  readonly #pauseFilter: PauseFilter;
  #engine: GuestEngine | undefined;
  /** The event whose delivery is under way; `#isVectoring` says whether there is one. */
  readonly #event: VectoringEvent = { vector: 0, type: 0, errorCode: undefined, instructionLength: 0 };
  #isVectoring = false;
  readonly #iopm = new PermissionMap();
  readonly #msrpm = new PermissionMap();

  // Intercepts of the VMCB in use
  #cr = 0;
  #dr = 0;
  #exceptions = 0;
  #word3 = 0;
  #word4 = 0;
  #word5 = 0;
  /** Bank of the VMCB, where a guest without nested paging lives. */
  bank = 0;
  #tscRatio = 1n << 32n;
  #tscOffset = 0n;
  virtualizesBranchRecords = false;
  #virtualizesVmload = false;
  /** Of a guest's own VMLOAD and VMSAVE. */
  readonly #nested = new Vmcb();

  constructor(cpu: RootCpu, vmcb: Vmcb) {
    this.#cpu = cpu;
    this.counters = cpu.counters;
    this.#vmcb = vmcb;
    this.npt = new Npt(cpu.model.physicalAddressBits, (line) => cpu.log(line));
    this.interrupts = new VirtualInterrupts(cpu);
    this.#pauseFilter = new PauseFilter(cpu);
    this.apic = new Avic(cpu, this);
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

  /** Copies what decides about exits from the VMCB. */
  useControls(): void {
    const vmcb = this.#vmcb;
    const { memory, msrs } = this.#cpu;
    this.#cr = vmcb.low(Control.INTERCEPT_CR);
    this.#dr = vmcb.low(Control.INTERCEPT_DR);
    this.#exceptions = vmcb.low(Control.INTERCEPT_EXCEPTIONS);
    this.#word3 = vmcb.low(Control.INTERCEPT_3) | 0;
    this.#word4 = vmcb.low(Control.INTERCEPT_4) | 0;
    this.#word5 = vmcb.low(Control.INTERCEPT_5) | 0;
    this.usesNpt = (vmcb.low(Control.NESTED) & NESTED_PAGING) !== 0;
    if ((this.#word3 & Intercept3.io) !== 0) this.#iopm.point(page(vmcb.number(Control.IOPM_BASE)), IOPM_BYTES, memory);
    if ((this.#word3 & Intercept3.msr) !== 0) this.#msrpm.point(page(vmcb.number(Control.MSRPM_BASE)), MSRPM_BYTES, memory);
    this.#tscOffset = vmcb.big(Control.TSC_OFFSET);
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

  #noteVectoring(): void {
    if (!this.#isVectoring) return;
    this.#isVectoring = false;
    const { exit } = this;
    if (exit.code === ExitCode.shutdown || exit.code === ExitCode.exception + 8) return;
    const event = this.#event;
    // INT1, INT3 and INTO are exceptions here
    const type = event.type > Event.software ? Event.exception : event.type;
    exit.interruptInfo = event.vector | (type << Event.typeShift) | Event.valid;
    if (event.errorCode === undefined) return;
    exit.interruptInfo |= Event.errorValid;
    exit.interruptError = event.errorCode;
  }

  #leave(): never {
    this.#noteVectoring();
    throw VM_EXIT;
  }

  /** Exit caused by the instruction at hand, from anywhere in it. `info1` fits 32 bits. */
  #exitByInstruction(code: number, info1 = 0): never {
    this.exit.reset(code);
    this.exit.info1Low = info1;
    this.exit.nextRip = this.engine.nextRip();
    return this.#leave();
  }
  /** The same for an instruction that ends its block: the caller returns true to its helper, and generated code ends by itself. */
  #exitAfter(code: number, info1 = 0): true {
    const { exit, engine } = this;
    exit.reset(code);
    exit.info1Low = info1;
    exit.nextRip = engine.nextRip();
    engine.leave();
    return true;
  }
  #exitIf3(intercept: number, code: number): boolean {
    return (this.#word3 & intercept) !== 0 && this.#exitAfter(code);
  }
  #exitIf4(intercept: number, code: number): boolean {
    return (this.#word4 & intercept) !== 0 && this.#exitAfter(code);
  }

  // Memory

  translate(gpa: Gpa, access: number, _linear: Gva | undefined, walk: boolean): SecondLevelPage {
    const { npt } = this;
    npt.page.isApic = false;
    if (!this.usesNpt) return npt.physical(this.#cpu.memory.bank(this.bank), gpa, access);
    // Walks of guest page tables are writes, whatever they are for: they may set accessed and dirty bits
    const wanted = walk ? access | WRITE : access;
    if (npt.translate(gpa, wanted) !== MAPPED) return this.#nestedPageFault(gpa, access, walk);
    // What is no data access goes to memory
    npt.page.isApic = !walk && (access & FETCH) === 0 && this.apic.isRegisters(gpa);
    return npt.page;
  }

  // The local APIC

  leaveForAccess(offset: number, isWrite: boolean): never {
    this.exit.reset(ExitCode.avicNoAcceleration);
    this.exit.info1Low = offset;
    this.exit.info1High = isWrite ? 1 : 0;
    return this.#leave();
  }
  trapAccess(offset: number, vector: number): void {
    this.exit.reset(ExitCode.avicNoAcceleration);
    this.exit.info1Low = offset;
    this.exit.info1High = 1;
    this.exit.info2Low = vector;
    this.#trap();
  }
  trapIpi(high: number, low: number, failure: number, index: number): void {
    this.exit.reset(ExitCode.avicIncompleteIpi);
    this.exit.info1Low = low >>> 0;
    this.exit.info1High = high >>> 0;
    this.exit.info2Low = index;
    this.exit.info2High = failure;
    this.#trap();
  }
  #trap(): void {
    this.trapDue = true;
    this.engine.requestStop();
  }
  stopAfterInstruction(): void {
    this.engine.requestStop();
  }
  acceptsInterrupts(): boolean {
    return this.interrupts.acceptsInterrupts();
  }

  #nestedPageFault(gpa: number, access: number, walk: boolean): never {
    if (this.#isProbing) throw VM_EXIT;
    const { exit } = this;
    exit.reset(ExitCode.nestedPageFault);
    exit.info1Low = this.npt.error;
    exit.info1High = walk ? TABLE_WALK : FINAL_ACCESS;
    exit.setPhysical(gpa);
    exit.hasBytes = (access & FETCH) === 0;
    return this.#leave();
  }

  /**
   * Bank offset of the first byte of the instruction at RIP, which has just been fetched; undefined where its translation is gone by
   * now. Asking for it decides for nothing.
   */
  instructionOffset(): number | undefined {
    const { engine } = this;
    this.#isProbing = true;
    try {
      return translateFetch(engine, engine.linear(CS, engine.get64(state.rip), 1, false));
    } catch (thrown) {
      if (thrown !== VM_EXIT && thrown !== GUEST_FAULT) throw thrown;
      return undefined;
    } finally {
      this.#isProbing = false;
    }
  }

  // Events

  exception(vector: number, type: number, errorCode: number | undefined, payload: bigint): void {
    const isIcebp = type === 5;
    if (isIcebp && (this.#word4 & Intercept4.icebp) !== 0) {
      this.exit.reset(ExitCode.icebp);
      this.exit.nextRip = this.#ripAfter(1);
      this.#leave();
    }
    if (vector === MF && (this.#word3 & Intercept3.ferrFreeze) !== 0 && !this.#reportsNumericErrors()) {
      this.exit.reset(ExitCode.ferrFreeze);
      this.#leave();
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
    if (type >= 5) exit.nextRip = this.#ripAfter(1);
    this.#leave();
  }
  /** CR0.NE; without it numeric errors go the way of the FERR# pin. */
  #reportsNumericErrors(): boolean {
    return ((this.engine.u32[state.cr0 >>> 2] as number) & Cr0.NE) !== 0;
  }
  #ripAfter(bytes: number): bigint {
    return BigInt.asUintN(64, this.engine.get64(state.rip) + BigInt(bytes));
  }

  softwareInterrupt(vector: number): boolean {
    return (this.#word3 & Intercept3.softwareInterrupt) !== 0 && this.#exitAfter(ExitCode.softwareInterrupt, vector);
  }

  tripleFault(): void {
    if ((this.#word3 & Intercept3.shutdown) === 0) return;
    this.exit.reset(ExitCode.shutdown);
    this.#leave();
  }

  vectoring(event: VectoringEvent | undefined): void {
    this.#isVectoring = event !== undefined;
    if (event === undefined) return;
    this.#event.vector = event.vector;
    this.#event.type = event.type;
    this.#event.errorCode = event.errorCode;
    this.#event.instructionLength = event.instructionLength;
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
    return (this.#word3 & Intercept3.pause) !== 0 && this.#pauseFilter.isExhausted() && this.#exitAfter(ExitCode.pause);
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
    this.#leave();
  }
  invpcid(type: bigint, descriptor: Gva): void {
    if ((this.#word5 & Intercept5.invpcid) === 0) return;
    this.exit.reset(ExitCode.invpcid);
    this.exit.setInfo1(descriptor);
    this.exit.setInfo2(type);
    this.exit.nextRip = this.engine.nextRip();
    this.#leave();
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
    if (this.#virtualizesVmload && (mnemonic === "VMLOAD" || mnemonic === "VMSAVE")) return this.#moveHiddenState(mnemonic);
    return this.interrupts.setVirtualGif(mnemonic) ? "done" : "undefined";
  }

  /**
   * VMLOAD and VMSAVE of the guest itself, with its RAX a guest-physical address. Outside long mode they exit all the same. Source: AMD64
   * APM Vol. 2, VMLOAD and VMSAVE Virtualization.
   */
  #moveHiddenState(mnemonic: "VMLOAD" | "VMSAVE"): "exit" | "done" {
    const { engine } = this;
    if (((engine.u32[state.efer >>> 2] as number) & Efer.LMA) === 0) {
      this.#exitAfter(mnemonic === "VMLOAD" ? ExitCode.vmload : ExitCode.vmsave);
      return "exit";
    }
    const isStore = mnemonic === "VMSAVE";
    const bits = engine.u32[state.codeSize >>> 2] === 64 ? 64 : 32;
    const address = BigInt.asUintN(bits, engine.get64(state.gpr));
    if ((address & 0xfffn) !== 0n || address >> BigInt(this.#cpu.model.physicalAddressBits) !== 0n) engine.raise(GP, 0);
    const { hpa } = this.translate(Number(address) as Gpa, isStore ? WRITE : READ, undefined, false);
    const bank = this.#cpu.memory.bank(bankOf(hpa));
    this.#nested.point(bank, offsetOf(hpa));
    if (isStore) {
      saveHiddenState(engine, this.#nested);
      if (engine.holdsCode(offsetOf(hpa))) engine.codeWritten(offsetOf(hpa), PAGE);
    } else {
      loadHiddenState(engine, this.#nested);
      engine.updateSegments();
    }
    return "done";
  }
  descriptorTable(mnemonic: string): void {
    const row = TABLES[mnemonic];
    if (row !== undefined && (this.#word3 & row[0]) !== 0) this.#exitByInstruction(row[1]);
  }

  // Control and debug registers

  #exitByCr(code: number, gpr: number): never {
    this.exit.reset(code);
    if (gpr >= 0) {
      this.exit.info1Low = gpr;
      this.exit.info1High = IS_MOV;
    }
    this.exit.nextRip = this.engine.nextRip();
    return this.#leave();
  }

  readCr(cr: number, gpr: number, value: bigint): bigint {
    if (((this.#cr >>> cr) & 1) !== 0) this.#exitByCr(ExitCode.readCr + cr, gpr);
    return value;
  }

  writeCr(cr: number, gpr: number, value: bigint): bigint {
    if (((this.#cr >>> (16 + cr)) & 1) !== 0) this.#exitByCr(ExitCode.writeCr + cr, gpr);
    if (cr === 0) this.#checkSelective(Number(value & 0xffff_ffffn), gpr);
    return value;
  }
  #checkSelective(value: number, gpr: number): void {
    if ((this.#word3 & Intercept3.cr0Selective) === 0) return;
    const changed = value ^ (this.engine.u32[state.cr0 >>> 2] as number);
    if ((changed & ~(Cr0.TS | Cr0.MP)) !== 0) this.#exitByCr(ExitCode.cr0Selective, gpr);
  }

  clts(): boolean {
    if (((this.#cr >>> 16) & 1) !== 0) this.#exitByCr(ExitCode.writeCr, -1);
    return true;
  }
  lmsw(value: number, _memory: Gva | undefined): bigint {
    if (((this.#cr >>> 16) & 1) !== 0) this.#exitByCr(ExitCode.writeCr, -1);
    const current = this.engine.u32[state.cr0 >>> 2] as number;
    // LMSW cannot clear PE
    const loaded = ((current & ~14) | (value & 15)) >>> 0;
    this.#checkSelective(loaded, -1);
    return BigInt(loaded);
  }
  moveDr(dr: number, gpr: number, isRead: boolean): void {
    if (((this.#dr >>> (isRead ? dr : 16 + dr)) & 1) !== 0)
      this.#exitByInstruction((isRead ? ExitCode.readDr : ExitCode.writeDr) + dr, gpr);
  }

  /** After a write that nothing prevented. */
  registerWritten(register: "efer" | number, value: bigint): void {
    // A lower task priority may let an interrupt through behind this instruction, which may be the one that STI shadows
    if (register === 8 && this.interrupts.isRequested) this.engine.requestStop();
    if (register === 8 && this.apic.isEnabled) this.apic.taskPriorityWritten(Number(value & 15n));
    const trap = register === "efer" ? Intercept4.eferWriteTrap : 1 << (16 + register);
    if ((this.#word4 & trap) === 0) return;
    this.exit.reset(register === "efer" ? ExitCode.eferWriteTrap : ExitCode.crWriteTrap + register);
    this.exit.setInfo1(value);
    this.#trap();
  }

  taskSwitch(selector: number, source: "call" | "iret" | "jmp" | "interrupt", flags: number): void {
    if ((this.#word3 & Intercept3.taskSwitch) === 0) return;
    const { exit, engine } = this;
    exit.reset(ExitCode.taskSwitch);
    exit.info1Low = selector;
    let kind = source === "iret" ? TaskSwitch.iret : source === "jmp" ? TaskSwitch.jump : 0;
    if (source === "interrupt" && this.#event.errorCode !== undefined) {
      kind |= TaskSwitch.hasErrorCode;
      exit.info2Low = this.#event.errorCode;
    }
    if ((flags & 0x1_0000) !== 0) kind |= TaskSwitch.rf;
    exit.info2High = kind;
    if (source !== "interrupt") exit.nextRip = engine.nextRip();
    else if (this.#event.type >= 4) exit.nextRip = this.#ripAfter(this.#event.instructionLength);
    this.#leave();
  }

  pushf(): void {
    if ((this.#word3 & Intercept3.pushf) !== 0) this.#exitByInstruction(ExitCode.pushf);
  }
  popf(): void {
    if ((this.#word3 & Intercept3.popf) !== 0) this.#exitByInstruction(ExitCode.popf);
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
    if ((this.#word3 & Intercept3.io) === 0) return false;
    let isIntercepted = false;
    for (let i = port; i < port + bytes; i++) isIntercepted ||= this.#iopm.test(i);
    if (!isIntercepted) return false;
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
    if (string !== undefined) this.#leave();
    engine.leave();
    return true;
  }

  /** Two bits for each MSR of three ranges: reads, writes. The others are always intercepted. */
  #isMsrIntercepted(index: number, writes: boolean): boolean {
    if ((this.#word3 & Intercept3.msr) === 0) return false;
    const range = index >>> 13;
    let start: number;
    if (range === 0) start = 0;
    else if (range === 0xc000_0000 >>> 13) start = 0x2000;
    else if (range === 0xc001_0000 >>> 13) start = 0x4000;
    else return true;
    return this.#msrpm.test((start + (index & 0x1fff)) * 2 + (writes ? 1 : 0));
  }
  rdmsr(index: number): boolean {
    return this.#isMsrIntercepted(index >>> 0, false) && this.#exitAfter(ExitCode.msr, 0);
  }
  wrmsr(index: number): boolean {
    return this.#isMsrIntercepted(index >>> 0, true) && this.#exitAfter(ExitCode.msr, 1);
  }

  guestTsc(): bigint {
    const tsc = BigInt(this.#cpu.rdtsc());
    return BigInt.asUintN(64, ((tsc * this.#tscRatio) >> 32n) + this.#tscOffset);
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

function page(address: number): number {
  return address - (address % 4096);
}
