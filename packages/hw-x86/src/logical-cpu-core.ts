/** What logical CPUs of both vendors have: banks and engines, root-mode registers, MSRs, time and interrupts around the vendor's unit. */
import { Clock } from "./clock.ts";
import type { Cpu, CpuModel } from "./engine/cpu.ts";
import { state } from "./engine/cpu-state.ts";
import type { EngineStatistics } from "./engine/engine-statistics.ts";
import { fxrstor, fxsave } from "./engine/fpu/fxsave.ts";
import { Xstate } from "./engine/fpu/xsave-layout.ts";
import { xrstorAll, xsaveAll } from "./engine/fpu/xsave-state.ts";
import type { GuestMode } from "./engine/guest-mode.ts";
import { Cr4 } from "./engine/system/bits.ts";
import type { EngineControl } from "./engine/system-interface.ts";
import { IPI_VECTOR, TIMER_VECTOR } from "./guest-slices.ts";
import { HostBus } from "./host-bus.ts";
import { InterruptLines } from "./interrupt-lines.ts";
import { LocalApic } from "./local-apic.ts";
import type { HardwareSanitizer, LogicalCpu, SvmInstructions, VmxInstructions } from "./logical-cpu.ts";
import type { MachineDescription } from "./machine.ts";
import { MemoryBanks } from "./memory-banks.ts";
import { Msr } from "./msr.ts";
import type { CounterUnit } from "./performance/counter-unit.ts";
import type { MemoryBank } from "./physical-memory.ts";
import type { BankEngine, RootCpu } from "./root-interface.ts";
import { Root, type RootMsrs } from "./root-msrs.ts";
import { FreedPages } from "./sanitizer/freed-pages.ts";
import { StateBlock } from "./state-block.ts";
import { TagSource, TranslationTags } from "./translation-tags.ts";

/** Makes the engine of a bank. */
export type EngineFactory = (options: {
  memory: WebAssembly.Memory;
  model: CpuModel;
  guest: GuestMode;
  log: (line: string) => void;
}) => Cpu & EngineControl;

export abstract class LogicalCpuCore implements LogicalCpu, RootCpu {
  readonly id: number;
  abstract readonly vendor: "intel" | "amd";
  readonly model: CpuModel;
  readonly memory: MemoryBanks;
  readonly clock: Clock;
  readonly lines: InterruptLines;
  abstract readonly msrs: RootMsrs;
  abstract readonly vmx: VmxInstructions;
  abstract readonly svm: SvmInstructions;
  abstract readonly sanitizer: HardwareSanitizer;
  readonly freedPages = new FreedPages();
  readonly tscKhz: number;
  readonly apic: LocalApic;
  readonly devices: HostBus;
  abstract readonly counters: CounterUnit;
  nmiHandler: (() => void) | undefined;
  atGuestEntry: (() => void) | undefined;
  timerDeadline = Number.POSITIVE_INFINITY;
  readonly #block = new StateBlock();
  readonly #makeEngine: EngineFactory;
  readonly #tags = new TagSource();
  readonly #engines = new Map<number, BankEngine>();
  #current: BankEngine | undefined;
  /** Instructions retired by engines other than the current one. */
  #retiredElsewhere = 0;
  readonly #log: (line: string) => void;

  protected constructor(
    machine: MachineDescription,
    id: number,
    model: CpuModel,
    makeEngine: EngineFactory,
    log: (line: string) => void,
  ) {
    if (!Number.isInteger(id) || id < 0 || id >= machine.cpus) throw new RangeError(`the machine has no CPU ${id}`);
    this.id = id;
    this.model = model;
    this.#makeEngine = makeEngine;
    this.#log = log;
    this.memory = new MemoryBanks(
      (bank) => this.#bankReleased(bank),
      (bank) => this.#bankLeft(bank),
      (bank) => void this.#engineOf(bank),
    );
    this.clock = new Clock(machine);
    this.tscKhz = machine.tscKhz;
    this.lines = new InterruptLines(machine.shared, id);
    this.apic = new LocalApic(this.lines, id, (line) => this.log(line));
    this.devices = new HostBus(machine.devices, this);
  }

  /** For engines to be made with. */
  protected abstract get guestMode(): GuestMode;
  /** The vendor's unit loses what it holds. */
  protected abstract extensionLosesPower(): void;
  /** A bank goes away with whatever lies in it. */
  protected abstract bankGoesAway(id: number): void;
  /** The CPU's registers go out of their bank. */
  protected abstract registersMove(): void;
  /** Software in root mode is about to write a register that exits from guest mode load. */
  protected abstract hostRegisterWritten(): void;
  /** False: #GP, and CR4 stays as it is. */
  protected abstract mayWriteCr4(value: bigint): boolean;
  protected abstract exitName(counter: number): string;

  get block(): StateBlock {
    return this.#block;
  }

  log(line: string): void {
    this.#log(`cpu${this.id}: ${line}`);
  }

  // Banks and engines

  engines(): Iterable<BankEngine> {
    return this.#engines.values();
  }

  turnTo(bank: MemoryBank): BankEngine {
    const before = this.#current;
    if (before?.bank === bank) return before;
    const next = this.#engineOf(bank);
    next.engine.adoptState(this.#block.bytes());
    this.#block.moveTo(bank.memory.buffer);
    this.#retiredElsewhere += (before?.engine.retired() ?? 0) - next.engine.retired();
    this.#current = next;
    return next;
  }

  /**
   * Made when a guest of the bank is entered first; of one that is attached, at once: its guest runs elsewhere, and is not to wait for that
   * when it comes. What making one writes to the bank is the same on every CPU of the machine.
   */
  #engineOf(bank: MemoryBank): BankEngine {
    const there = this.#engines.get(bank.id);
    if (there !== undefined) return there;
    const engine = this.#makeEngine({
      memory: bank.memory,
      model: this.model,
      guest: this.guestMode,
      log: (line) => this.log(line),
    });
    const made = { bank, engine, tags: new TranslationTags(this.#tags) };
    this.#engines.set(bank.id, made);
    return made;
  }

  #bankReleased(id: number): void {
    const gone = this.#engines.get(id);
    this.bankGoesAway(id);
    this.freedPages.forget(id);
    if (gone === undefined) return;
    if (this.#current === gone) this.#turnAway();
    this.#engines.delete(id);
  }

  #bankLeft(id: number): void {
    if (this.#current?.bank.id !== id) return;
    this.registersMove();
    this.#turnAway();
  }

  /** From the current bank, to none. */
  #turnAway(): void {
    this.#retiredElsewhere += this.#current?.engine.retired() ?? 0;
    this.#block.moveOut();
    this.#current = undefined;
  }

  losePower(): void {
    this.extensionLosesPower();
    this.counters.losePower();
    this.apic.losePower();
    // The machine sleeps with its devices
    if (this.id === 0) this.devices.pci.powerOn();
    this.#turnAway();
    this.#block.losePower();
    this.msrs.powerOn();
    for (const { tags } of this.#engines.values()) tags.retireAll();
    this.timerDeadline = Number.POSITIVE_INFINITY;
    this.lines.lower();
  }

  // Identification and MSRs

  cpuid(leaf: number, subleaf: number): { eax: number; ebx: number; ecx: number; edx: number } {
    return this.model.cpuid(leaf, subleaf);
  }

  rdmsr(index: number): bigint | undefined {
    if (index === Msr.TSC) return BigInt(this.rdtsc());
    return this.msrs.read(index >>> 0) ?? this.counters.readMsr(index >>> 0);
  }

  wrmsr(index: number, value: bigint): boolean {
    if (BigInt.asUintN(64, value) !== value) throw new RangeError(`MSR value ${value} is not an unsigned 64-bit number`);
    if (this.msrs.isSwitched(index >>> 0)) this.hostRegisterWritten();
    return this.msrs.write(index >>> 0, value) || this.counters.writeMsr(index >>> 0, value) === true;
  }
  rdpmc(counter: number): bigint | undefined {
    return this.counters.readCounter(counter >>> 0);
  }

  get cr4(): bigint {
    return this.msrs.values[Root.cr4] as bigint;
  }
  set cr4(value: bigint) {
    if (!this.mayWriteCr4(value)) return;
    if (((value ^ this.cr4) & BigInt(Cr4.LA57)) !== 0n) {
      this.log("#GP: CR4.LA57 cannot change in IA-32e mode; CR4 left as it is");
      return;
    }
    this.hostRegisterWritten();
    this.msrs.values[Root.cr4] = value;
  }

  // Registers that guest and root mode share

  loadGprs(from: BigUint64Array): void {
    const to = this.#block.u64;
    const first = state.gpr >>> 3;
    for (let i = 0; i < 16; i++) if (i !== 4) to[first + i] = from[i] as bigint;
  }
  saveGprs(to: BigUint64Array): void {
    const from = this.#block.u64;
    const first = state.gpr >>> 3;
    for (let i = 0; i < 16; i++) if (i !== 4) to[i] = from[first + i] as bigint;
  }
  gpr(index: number): bigint {
    return this.#block.u64[(state.gpr >>> 3) + index] as bigint;
  }
  setGpr(index: number, value: bigint): void {
    this.#block.u64[(state.gpr >>> 3) + index] = value;
  }
  gpr32(index: number): number {
    return this.#block.u32[(state.gpr >>> 2) + 2 * index] as number;
  }
  setGpr32(index: number, value: number): void {
    const { u32 } = this.#block;
    u32[(state.gpr >>> 2) + 2 * index] = value;
    u32[(state.gpr >>> 2) + 2 * index + 1] = 0;
  }
  get cr2(): bigint {
    return this.#block.get(state.cr2);
  }
  set cr2(value: bigint) {
    this.#block.set(state.cr2, value);
  }
  get xcr0(): bigint {
    return this.#block.get(state.xcr0);
  }
  set xcr0(value: bigint) {
    this.#block.set(state.xcr0, value);
  }
  readDr(index: number): bigint {
    return this.#block.get(state.dr + index * 8);
  }
  writeDr(index: number, value: bigint): void {
    this.#block.set(state.dr + index * 8, value);
  }
  fxsave(to: Uint8Array): void {
    fxsave(this.#block, to);
  }
  fxrstor(from: Uint8Array): void {
    fxrstor(this.#block, from);
  }
  /** Without XSAVE there are still those that FXSAVE has. */
  get #components(): number {
    return Number(this.model.xcr0Allowed) | Xstate.x87 | Xstate.sse;
  }
  xsave(to: Uint8Array): void {
    xsaveAll(this.#block, to, this.#components);
  }
  xrstor(from: Uint8Array): void {
    const rights = this.#block.get(state.pkru);
    xrstorAll(this.#block, from, this.#components);
    // What is cached of translations goes by PKRU: the next VM entry has to look
    if (this.#block.get(state.pkru) !== rights) this.hostRegisterWritten();
  }

  // Time and interrupts

  rdtsc(): number {
    return this.clock.now(this.clock.isWall ? 0 : this.retiredInstructions());
  }
  setTimerDeadline(tsc: number): void {
    this.timerDeadline = tsc;
  }
  interruptPending(): boolean {
    // A counter of cycles may have overflowed in root mode
    this.counters.settle();
    return this.lines.isRaised() || this.rdtsc() >= this.timerDeadline;
  }
  acknowledgeInterrupt(): void {
    this.lines.lower();
  }
  waitingInterrupt(now: number): number {
    const timer = now >= this.timerDeadline ? TIMER_VECTOR : -1;
    return this.lines.isRaised() ? Math.max(this.lines.highest(), timer) : timer;
  }
  takeInterrupt(): number {
    const vector = this.waitingInterrupt(this.rdtsc());
    if (vector === TIMER_VECTOR) this.timerDeadline = Number.POSITIVE_INFINITY;
    if (vector >= 0) this.lines.take(vector);
    return vector;
  }
  sendIpi(cpu: number, vector: number = IPI_VECTOR): void {
    if (!Number.isInteger(vector) || vector < 16 || vector > 255)
      throw new RangeError(`IPI with vector ${vector}: a vector is 16 to 255`);
    this.lines.raise(cpu, vector);
  }
  sendNmi(cpu: number): void {
    if (!Number.isInteger(cpu) || cpu < 0 || cpu >= this.lines.count)
      throw new RangeError(`NMI to CPU ${cpu}, which is not there`);
    this.lines.raiseNmi(cpu);
  }
  nmiPending(): boolean {
    this.counters.settle();
    return this.lines.isNmiRaised();
  }
  takeNmi(): boolean {
    if (!this.lines.takeNmi()) return false;
    if (this.nmiHandler !== undefined) this.nmiHandler();
    else this.log("NMI in root mode, which has no handler for it");
    return true;
  }
  readApic(register: number): number {
    return this.apic.read(register);
  }
  writeApic(register: number, value: number): void {
    this.apic.write(register, value);
  }
  idle(): void {
    this.counters.halt();
    if (!this.lines.isRaised()) this.clock.skipTo(this.timerDeadline, this.retiredInstructions());
    this.counters.awake();
  }
  retiredInstructions(): number {
    return this.#retiredElsewhere + (this.#current?.engine.retired() ?? 0);
  }
  engineStatistics(bank: number): EngineStatistics | undefined {
    const engine = this.#engines.get(bank)?.engine;
    if (engine === undefined) return undefined;
    const exits = [...engine.exitCounts].map((count, reason) => ({ reason: this.exitName(reason), count }));
    return {
      ...engine.counts(),
      exits: exits.filter(({ count }) => count > 0).sort((a, b) => b.count - a.count),
    };
  }
}
