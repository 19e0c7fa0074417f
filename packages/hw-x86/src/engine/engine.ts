/**
 * The engine of one bank: runs guest code with the generated interpreter, and is the CPU that helpers and system code see.
 * Generated code leaves by returning, when the budget does not cover the next block, or by an exception that a call out of it
 * threw: a guest fault, which is delivered here, or a VM exit.
 */
import type { Gpa, Gva } from "../addresses.ts";
import { Blocks } from "./blocks.ts";
import type { Cpu, CpuModel } from "./cpu.ts";
import { CPU_STATE, CPU_STATE_BYTES, gprOffset, SEG_READ_END, SEG_WRITE_END, state } from "./cpu-state.ts";
import { createDecodedOperation, variants } from "./decoder/decoder.ts";
import { decoderOfLevel } from "./decoder/level-decoder.ts";
import { engineImports, helperImports } from "./engine-imports.ts";
import { type EngineCounts, EXIT_REASONS } from "./engine-statistics.ts";
import { readFlags, writeFlags } from "./flags.ts";
import { GUEST_FAULT, type GuestMode, VM_EXIT } from "./guest-mode.ts";
import { type InterpreterInstance, instantiateInterpreter, interpreterTables } from "./interpreter/instance.ts";
import { InterruptShadow } from "./interrupt-shadow.ts";
import { block, op } from "./operation.ts";
import { RecordedFault } from "./recorded-fault.ts";
import { RegionAccess } from "./region-access.ts";
import { RunControl } from "./run-control.ts";
import { SingleSteps } from "./single-steps.ts";
import { Cr0, Flag } from "./system/bits.ts";
import { Breakpoints } from "./system/breakpoints.ts";
import * as events from "./system/events.ts";
import * as memory from "./system/memory-access.ts";
import * as paging from "./system/paging.ts";
import * as segmentation from "./system/segmentation.ts";
import { switchTags } from "./system/translation-caches.ts";
import type { EngineControl, GuestEvent, StopReason } from "./system-interface.ts";
import type { RegionThread } from "./translator/region-thread.ts";
import { type TranslateMode, Translator } from "./translator/translator.ts";
import { behaviourOf } from "./vendor-behaviour.ts";

const BUDGET = state.budget >>> 2;
const OPERATION = state.operation >>> 2;
const BLOCK_START = state.blockStart >>> 2;
const SYSTEM_FLAGS = state.systemFlags >>> 2;
const ACTIVITY = state.activity >>> 2;

export interface EngineOptions {
  /** The bank: shared, at least as large as what lies below BANK_FIRST_FREE. */
  memory: WebAssembly.Memory;
  model: CpuModel;
  guest: GuestMode;
  log: (line: string) => void;
  /** What is translated; "hot" unless given. */
  translate?: TranslateMode | undefined;
  /** Entries of a block after which "hot" translates it; HOT_ENTRIES unless given. Tests, whose programs are short, take fewer. */
  hotEntries?: number | undefined;
  /** Bytes of decoded code above which blocks that hardly ran are dropped. */
  sweepBytes?: number | undefined;
  /** Translates what is hot; without it the thread that the engine runs on does. */
  regionThread?: RegionThread | undefined;
}

export class Engine implements Cpu, EngineControl {
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  readonly i32: Int32Array;
  readonly u64: BigUint64Array;
  readonly view: DataView;
  readonly bankBytes: number;
  readonly model: CpuModel;
  guest: GuestMode;
  readonly exitCounts = new Float64Array(EXIT_REASONS);
  readonly breakpoints = new Breakpoints();
  holdsTraps = false;
  #isStepping = false;
  privilegeChanges: (() => void) | undefined;
  deliveries = 0;
  readonly #control: RunControl;
  readonly #shadow: InterruptShadow;
  readonly #fault: RecordedFault;
  readonly #steps: SingleSteps;
  readonly #blocks: Blocks;
  readonly #interpreter: InterpreterInstance;
  readonly #translator: Translator;

  constructor(options: EngineOptions) {
    const { buffer } = options.memory;
    this.u8 = new Uint8Array(buffer);
    this.u16 = new Uint16Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.u64 = new BigUint64Array(buffer);
    this.view = new DataView(buffer);
    this.bankBytes = buffer.byteLength;
    this.model = options.model;
    this.guest = options.guest;
    this.#setConstants();
    const numbers = interpreterTables();
    this.#blocks = new Blocks(
      this,
      decoderOfLevel(this.model.level),
      createDecodedOperation(),
      variants,
      numbers,
      options.sweepBytes,
    );
    this.#control = new RunControl(this);
    this.#shadow = new InterruptShadow(this, this.#control);
    this.#fault = new RecordedFault(this, options.log);
    const region = new RegionAccess(this, this.#control, this.#fault);
    const imports = engineImports(this, this.#blocks, this.#shadow, this.#fault, region);
    this.#interpreter = instantiateInterpreter(options.memory, helperImports(this), imports);
    this.#steps = new SingleSteps(this, this.#control, this.#shadow, this.#blocks, this.#interpreter);
    const mode = options.translate ?? "hot";
    this.#translator = new Translator(
      mode,
      this,
      options.memory,
      this.#interpreter,
      variants,
      numbers,
      options.hotEntries,
      options.regionThread,
    );
    this.#blocks.translator = this.#translator;
    this.#blocks.granulesEqual = this.#interpreter.granulesEqual;
  }

  /** Fields that generated code takes for granted. */
  #setConstants(): void {
    this.set64(state.zero, 0n);
    this.set64(state.fourGib, 1n << 32n);
    this.set32(state.vendorBehaviour, behaviourOf(this.model.vendor));
    this.set64(state.flatSegment + SEG_READ_END, 0xffff_ffff_ffff_ffffn);
    this.set64(state.flatSegment + SEG_WRITE_END, 0xffff_ffff_ffff_ffffn);
  }

  // ---- Running ----

  run(instructions: number, isExact = true): StopReason {
    const control = this.#control;
    control.begin(instructions, isExact);
    this.#shadow.begin();
    this.#blocks.distrust();
    this.#translator.beginRun();
    this.debugStateChanged();
    try {
      for (;;) {
        if (this.breakpoints.hits !== 0 && !this.#steps.trap()) return this.#exit();
        if (this.i32[ACTIVITY] !== 0) return this.i32[ACTIVITY] === 1 ? "halted" : "shutdown";
        if (control.isStopRequested) return "stop";
        if (this.i32[BUDGET] <= 0 || control.isSpent) return "budget";
        try {
          this.#runOnce();
        } catch (thrown) {
          control.giveBack();
          if (thrown === VM_EXIT) return this.#exit();
          if (thrown !== GUEST_FAULT) throw thrown;
          // The instruction has not been: it will meet its breakpoints when it runs again
          this.breakpoints.hits = 0;
          try {
            this.deliverEvent(this.#fault.event());
            if (this.#isStepping) control.isStopRequested = true;
          } catch (second) {
            if (second === VM_EXIT) return this.#exit();
            throw second;
          }
        }
        control.unstash();
        if (control.hasLeft) return this.#exit();
      }
    } finally {
      control.end();
      this.settleShadow();
    }
  }

  step(): StopReason {
    this.#isStepping = true;
    try {
      return this.run(1);
    } finally {
      this.#isStepping = false;
    }
  }

  #exit(): "exit" {
    this.#steps.forgetTrap();
    return "exit";
  }

  /** Runs until the budget is short, something stops or diverts, or an exception is thrown. */
  #runOnce(): void {
    const control = this.#control;
    this.#shadow.settle();
    if (this.#steps.isDue()) {
      this.#steps.step();
      return;
    }
    this.#interpreter.run(0);
    this.i32[OPERATION] = 0;
    const budget = this.i32[BUDGET];
    if (control.hasLeft) control.backToExit();
    if (control.isDiverted || budget <= 0) return;
    // The budget does not cover the next block, or the block was dropped.
    const header = this.#blocks.find();
    if (this.i32[(header + block.charge) >>> 2] <= budget) this.#interpreter.run(header);
    else if (budget <= control.enough) control.isSpent = true;
    else this.#interpreter.run(this.#blocks.truncated(budget));
    this.i32[OPERATION] = 0;
    if (control.hasLeft) control.backToExit();
  }

  leave(): void {
    this.#control.leave();
  }
  requestStop(): void {
    this.#control.requestStop();
  }
  retired(): number {
    return this.#control.retired();
  }
  instructionsRetired(): number {
    return this.#control.instructionsRetired();
  }
  shadowNextInstruction(): void {
    this.#shadow.next();
  }
  settleShadow(): void {
    this.#shadow.settle();
  }

  // ---- Faults, traps and events ----

  raise(vector: number, errorCode?: number, payload = 0n): never {
    return this.#fault.raise(vector, errorCode, payload);
  }
  deliverEvent(event: GuestEvent): void {
    this.#control.chargeStorm();
    events.deliverEvent(this, event);
    if (event.injected && events.isOfInstruction(event)) this.#control.countInjected();
  }

  trapAfterInstruction(): void {
    this.#control.endBlockEarly();
  }
  get pendingTrap(): number {
    return this.breakpoints.hits;
  }
  set pendingTrap(bits: number) {
    this.breakpoints.hits = bits;
  }
  debugStateChanged(): void {
    if (this.breakpoints.refresh(this)) this.updateTags();
  }

  counts(): EngineCounts {
    const { mode } = this.#translator;
    return { mode, translator: this.#translator.statistics(), blocks: this.#blocks.statistics() };
  }

  adoptState(from: Uint8Array): void {
    if (from.length !== CPU_STATE_BYTES) throw new RangeError("not a CPU state block");
    this.u8.set(from, CPU_STATE);
    this.#setConstants();
    this.i32[OPERATION] = 0;
    this.i32[BLOCK_START] = 0;
    this.i32[BUDGET] = 0;
    this.breakpoints.refresh(this);
    this.updateSegments();
    this.flushTlb(false);
  }

  // ---- State ----

  get32(offset: number): number {
    return this.u32[offset >>> 2];
  }
  set32(offset: number, value: number): void {
    this.u32[offset >>> 2] = value;
  }
  get64(offset: number): bigint {
    return this.u64[offset >>> 3];
  }
  set64(offset: number, value: bigint): void {
    this.u64[offset >>> 3] = value;
  }
  reg(index: number): bigint {
    return this.u64[gprOffset(index) >>> 3];
  }
  setReg(index: number, value: bigint): void {
    this.u64[gprOffset(index) >>> 3] = value;
  }
  get operation(): number {
    return this.u32[OPERATION];
  }
  instructionLength(): number {
    const { operation } = this;
    return operation === 0 ? 0 : this.u8[operation + op.length];
  }
  nextRip(): bigint {
    return BigInt.asUintN(this.u32[state.codeSize >>> 2], this.get64(state.rip) + BigInt(this.instructionLength()));
  }
  setNextRip(rip: bigint): void {
    this.set64(state.nextRip, rip);
    if (this.operation === 0) this.set64(state.rip, rip);
  }
  setNextRipHalves(low: number, high: number): void {
    this.u32[state.nextRip >>> 2] = low;
    this.u32[(state.nextRip >>> 2) + 1] = high;
    if (this.operation !== 0) return;
    this.u32[state.rip >>> 2] = low;
    this.u32[(state.rip >>> 2) + 1] = high;
  }
  readFlags(): number {
    this.#steps.settleResume();
    return readFlags(this.u32);
  }
  setFlags(value: number): void {
    const before = this.u32[SYSTEM_FLAGS];
    writeFlags(this.u32, value);
    if (((value ^ before) & Flag.AC) !== 0 && (this.u32[state.cr0 >>> 2] & Cr0.AM) !== 0) switchTags(this);
    if ((value & Flag.RF) !== 0) this.#steps.resumeNext();
    if ((value & Flag.AC) === 0) paging.closeUserPages(this);
  }

  // ---- Memory ----

  readLinear(address: Gva, bytes: 1 | 2 | 4 | 8, supervisor?: boolean): bigint {
    return memory.readLinear(this, address, bytes, supervisor);
  }
  writeLinear(address: Gva, bytes: 1 | 2 | 4 | 8, value: bigint, supervisor?: boolean): void {
    memory.writeLinear(this, address, bytes, value, supervisor);
  }
  readLinearBytes(address: Gva, target: Uint8Array, supervisor?: boolean): void {
    memory.readLinearBytes(this, address, target, supervisor);
  }
  writeLinearBytes(address: Gva, source: Uint8Array, supervisor?: boolean): void {
    memory.writeLinearBytes(this, address, source, supervisor);
  }
  probeWrite(address: Gva, bytes: number, supervisor?: boolean): void {
    memory.probeWrite(this, address, bytes, supervisor);
  }
  linear(segment: number, offset: bigint, bytes: number, isWrite: boolean): Gva {
    return segmentation.linear(this, segment, offset, bytes, isWrite);
  }
  readPhysical64(address: Gpa): bigint {
    return paging.readPhysical64(this, address);
  }
  writePhysical64(address: Gpa, value: bigint): void {
    paging.writePhysical64(this, address, value);
  }

  // ---- Consequences of changed state ----

  updateSegments(): void {
    segmentation.updateSegments(this);
  }
  flushTlb(keepGlobal: boolean): void {
    paging.flushTlb(this, keepGlobal);
  }
  flushPage(address: Gva): void {
    paging.flushPage(this, address);
  }
  updateTags(): void {
    paging.updateTags(this);
  }
  holdsCode(pageOffset: number): boolean {
    return this.#blocks.holdsCode(pageOffset);
  }
  codeWritten(offset: number, bytes: number): void {
    this.#blocks.written(offset, bytes, this.operation);
  }
}
