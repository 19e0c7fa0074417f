/**
 * A kernel on the test's own thread: real hardware and a real VAC under it, one process with one bank, time by instruction count.
 * What the module takes it gives out and counts, so that a test can see whether all came back.
 */
import { createLogicalCpu, createMachine, type Hpa, hpa, type LogicalCpu, type MemoryBank } from "@mkvm/hw-x86";
import {
  Errno,
  type File,
  type FileOperations,
  type Kernel,
  type KernelModule,
  type ModuleInstance,
  type NewFile,
  type ParameterValues,
  type Process,
  type Task,
  type Timer,
} from "@mkvm/kvm-abi";
import { attachVac, createVacMemory, type Vac } from "@mkvm/vac";
import { EventCounter, EventfdReference } from "../../host/src/devices/eventfd.ts";

const BANK = 5;
const BANK_BYTES = 0x800_0000;
/** User addresses are offsets in the bank from here on; below lie the CPU's own and what the kernel hands out. */
const USER_BASE = 0x400_0000;
/** Descriptors of eventfds are apart from those of modules' files. */
const FIRST_EVENTFD = 1000;
const SLICE_TICKS = 4_000_000;
/** Exits in a row without a tick between them that are more than any guest has which gets anywhere. */
const STANDSTILL_EXITS = 100_000;

class TestFile implements File {
  readonly name: string;
  readonly process: Process;
  operations: FileOperations;
  privateData: unknown;

  constructor(process: Process, file: NewFile) {
    this.name = file.name;
    this.process = process;
    this.operations = file.operations;
    this.privateData = file.privateData;
  }
}

class TestTimer implements Timer {
  deadlineNs: number | undefined;
  readonly expired: () => void;
  readonly #changed: () => void;

  constructor(expired: () => void, changed: () => void) {
    this.expired = expired;
    this.#changed = changed;
  }
  arm(deadlineNs: number): void {
    this.deadlineNs = deadlineNs;
    this.#changed();
  }
  cancel(): void {
    this.deadlineNs = undefined;
    this.#changed();
  }
}

export class InThreadKernel {
  readonly cpu: LogicalCpu;
  readonly vac: Vac;
  readonly bank: MemoryBank;
  readonly log: string[] = [];
  readonly process: Process;
  readonly task: Task;
  /** Pages that modules hold. */
  pagesOut = 0;
  signal = false;
  work = false;
  /** Nobody else is runnable. */
  alone = true;
  /** Instructions the CPU may retire before the task's work is pending: for stops at chosen instructions. */
  workAt = Number.POSITIVE_INFINITY;
  /** Ticks that a call may run before it is to give way; 0: at once. */
  sliceTicks = SLICE_TICKS;
  /** Called when a task waits and no timer is armed. */
  onIdle: (() => void) | undefined;
  /** By descriptor. */
  readonly eventfds = new Map<number, EventCounter>();
  /** Less those that were released. */
  eventfdReferences = 0;
  readonly #freePages: number[] = [];
  #nextPage: number;
  #nextUser = USER_BASE;
  readonly #files = new Map<number, TestFile>();
  readonly #timers = new Set<TestTimer>();
  #waiting: (() => void)[] = [];
  #sliceEnd = SLICE_TICKS;
  #lastTicks = 0;
  #standstill = 0;

  constructor(vendor: "intel" | "amd" = "intel", pagingLevels: 4 | 5 = 4) {
    const machine = createMachine({ clock: "icount", vendor, pagingLevels });
    this.cpu = createLogicalCpu(machine, 0, (line) => this.log.push(line));
    this.cpu.sanitizer.keepHostRegisters();
    this.bank = this.cpu.memory.createBank(BANK, BANK_BYTES);
    this.#nextPage = this.bank.firstFreeOffset;
    const vmxonRegion = hpa(BANK, this.#nextPage);
    const saveArea = hpa(BANK, this.#nextPage + 4096);
    this.#nextPage += 2 * 4096;
    this.vac = attachVac(createVacMemory(1), this.cpu, vmxonRegion, saveArea);
    this.process = {
      pid: 1,
      name: "test",
      bank: BANK,
      memory: {
        read: (address, length) => (this.#mapped(address, length) ? this.bank.u8.slice(address, address + length) : undefined),
        write: (address, bytes) => {
          if (!this.#mapped(address, bytes.length)) return false;
          this.bank.u8.set(bytes, address);
          return true;
        },
        translate: (address) => (this.#mapped(address, 1) ? hpa(BANK, address) : -Errno.EFAULT),
        isMapped: (address, length) => this.#mapped(address, length),
        // What this process maps it keeps
        watchUnmapped: () => () => undefined,
      },
      installFile: (file) => this.#install(file),
      file: (fd) => this.#files.get(fd),
      eventfd: (fd) => this.#reference(this.eventfds.get(fd)) ?? (this.#files.has(fd) ? -Errno.EINVAL : -Errno.EBADF),
      eventfdById: (id) => this.#reference([...this.eventfds.values()].find((each) => each.id === id)),
    };
    this.task = {
      tid: 1,
      process: this.process,
      signalPending: () => this.signal,
      workPending: () => this.work || this.cpu.retiredInstructions() >= this.workAt,
    };
  }

  /** Loads a module under a name; throws what `init` refuses with. */
  load(name: string, module: KernelModule<Vac, LogicalCpu>, parameters: ParameterValues = {}): ModuleInstance {
    const defaults = Object.fromEntries(Object.entries(module.parameters).map(([key, spec]) => [key, spec.default]));
    const instance = module.init(this.#kernelFor(name, { ...defaults, ...parameters }));
    if (typeof instance === "number") throw new Error(`init of ${name}: errno ${-instance}\n${this.log.join("\n")}`);
    return instance;
  }

  /** A descriptor of a module's device. */
  open(instance: ModuleInstance): number {
    return this.#install({ name: "/dev/kvm", operations: instance.devices[0]!.operations, privateData: undefined });
  }
  close(fd: number): void {
    const file = this.file(fd);
    this.#files.delete(fd);
    file.operations.release?.(file);
  }
  file(fd: number): TestFile {
    const file = this.#files.get(fd);
    if (file === undefined) throw new Error(`no descriptor ${fd}`);
    return file;
  }
  /** eventfd(2): a descriptor. */
  eventfd(): number {
    const fd = FIRST_EVENTFD + this.eventfds.size;
    this.eventfds.set(fd, new EventCounter(this.eventfds.size + 1, 0n, false));
    return fd;
  }
  #reference(counter: EventCounter | undefined): EventfdReference | undefined {
    if (counter === undefined) return undefined;
    this.eventfdReferences++;
    return new EventfdReference(counter, () => {
      this.eventfdReferences--;
    });
  }
  /** Anonymous user memory, zeroed; 2 MiB aligned from 2 MiB on. */
  mmap(bytes: number): number {
    const align = bytes >= 0x20_0000 ? 0x20_0000 : 4096;
    const address = Math.ceil(this.#nextUser / align) * align;
    this.#nextUser = address + Math.ceil(bytes / 4096) * 4096;
    if (this.#nextUser > BANK_BYTES) throw new Error("the test process is out of memory");
    return address;
  }
  /** The mapping of a vCPU descriptor, as bytes. */
  mapRun(fd: number): Uint8Array {
    const file = this.file(fd);
    const address = file.operations.mmap!(file, 12288, 0);
    if (address < 0) throw new Error(`mmap: errno ${-address}`);
    return this.cpu.memory.bytes(address as Hpa, 12288);
  }

  /** An ioctl that does not wait. A byte array is copied to user memory and, afterwards, back. */
  ioctl(fd: number, request: number, argument: number | Uint8Array = 0): number {
    const file = this.file(fd);
    this.vac.returnToUser();
    let address = argument;
    if (typeof address !== "number") {
      address = this.#argumentPage();
      this.bank.u8.set(argument as Uint8Array, address);
    }
    const result = file.operations.ioctl!(file, request, address, this.task);
    if (typeof result !== "number") throw new Error("the ioctl waits");
    this.#returnToUser();
    if (typeof argument !== "number") argument.set(this.bank.u8.subarray(address, address + argument.length));
    return result;
  }
  /** An ioctl that may wait: time passes, timers run, until it is done. */
  async run(fd: number, request: number): Promise<number> {
    const file = this.file(fd);
    this.vac.returnToUser();
    this.#sliceEnd = this.cpu.rdtsc() + this.sliceTicks;
    const result = file.operations.ioctl!(file, request, 0, this.task);
    if (typeof result === "number") {
      this.#returnToUser();
      return result;
    }
    let settled: number | undefined;
    let failed: unknown;
    result.then(
      (value) => {
        settled = value;
      },
      (error) => {
        failed = error ?? new Error("rejected");
      },
    );
    for (let turn = 0; turn < 1_000_000; turn++) {
      for (let i = 0; i < 8; i++) await Promise.resolve();
      if (failed !== undefined) throw failed;
      if (settled !== undefined) {
        this.#returnToUser();
        return settled;
      }
      if (this.task.signalPending() || this.task.workPending()) this.#wakeAll();
      else if (this.#waiting.length > 0) {
        // Idle: the TSC jumps to the next timer; where there is none, `onIdle` has to do something
        this.#sliceEnd = Number.POSITIVE_INFINITY;
        this.#programTimer();
        const armed = [...this.#timers].some((timer) => timer.deadlineNs !== undefined);
        if (!armed) {
          if (this.onIdle === undefined) throw new Error("the guest waits for ever");
          this.onIdle();
        } else this.cpu.idle();
        this.#handleInterrupts();
        this.#sliceEnd = this.cpu.rdtsc() + SLICE_TICKS;
      }
    }
    throw new Error("KVM_RUN does not end");
  }

  #returnToUser(): void {
    this.vac.returnToUser();
    this.cpu.sanitizer.returnsToUser();
  }

  #argument = 0;
  #argumentPage(): number {
    if (this.#argument === 0) this.#argument = this.mmap(0x4000);
    return this.#argument;
  }
  #mapped(address: number, length: number): boolean {
    return address >= USER_BASE && address + length <= this.#nextUser;
  }
  #install(file: NewFile): number {
    let fd = 3;
    while (this.#files.has(fd)) fd++;
    this.#files.set(fd, new TestFile(this.process, file));
    return fd;
  }

  #kernelFor(moduleName: string, parameters: ParameterValues): Kernel<Vac, LogicalCpu> {
    return {
      moduleName,
      parameters,
      vac: this.vac,
      cpu: this.cpu,
      clock: {
        monotonicNs: () => this.#now(),
        realtimeNs: () => 1_700_000_000_000_000_000n + BigInt(this.#now()),
        createTimer: (expired) => {
          const timer = new TestTimer(expired, () => this.#programTimer());
          this.#timers.add(timer);
          return timer;
        },
      },
      memory: {
        allocatePages: (_process, count, align = 1) => this.#allocate(count, align),
        freePages: (address, count) => {
          for (let index = 0; index < count; index++) this.#freePages.push((address % 0x1_0000_0000) + index * 4096);
          this.cpu.sanitizer.pagesFreed(address as Hpa, count);
          this.pagesOut -= count;
        },
        bytes: (address, length) => this.cpu.memory.bytes(address as Hpa, length),
        allocateCpuPages: (count) => this.#allocate(count, 1),
      },
      scheduler: {
        handleInterrupts: () => this.#handleInterrupts(),
        needResched: () => {
          this.#noteProgress();
          return this.cpu.rdtsc() >= this.#sliceEnd;
        },
        singleTaskRunning: () => this.alone,
        yield: async () => {
          this.#handleInterrupts();
          this.#sliceEnd = this.cpu.rdtsc() + SLICE_TICKS;
          this.#programTimer();
        },
        createWaitQueue: () => {
          const waiting: (() => void)[] = [];
          return {
            wake: () => {
              for (const resume of waiting.splice(0)) resume();
            },
            wait: () =>
              new Promise<void>((resolve) => {
                const resume = (): void => {
                  this.#waiting = this.#waiting.filter((each) => each !== resume);
                  resolve();
                };
                waiting.push(resume);
                this.#waiting.push(resume);
              }),
          };
        },
      },
      log: (level, message) => this.log.push(`${level}: ${message}`),
    };
  }

  /** Each exit of a guest comes here. One that faults for ever retires nothing, so that no slice of time would end its call. */
  #noteProgress(): void {
    const ticks = this.cpu.rdtsc();
    this.#standstill = ticks === this.#lastTicks ? this.#standstill + 1 : 0;
    this.#lastTicks = ticks;
    if (this.#standstill > STANDSTILL_EXITS)
      throw new Error("the guest exits for ever without an instruction that retires: see what the module makes of its exits");
  }

  #now(): number {
    return Math.floor((this.cpu.rdtsc() * 1e6) / this.cpu.tscKhz);
  }
  #wakeAll(): void {
    for (const resume of [...this.#waiting]) resume();
  }
  #handleInterrupts(): void {
    const now = this.#now();
    for (const timer of [...this.#timers]) {
      if (timer.deadlineNs === undefined || timer.deadlineNs > now) continue;
      timer.deadlineNs = undefined;
      timer.expired();
    }
    this.cpu.acknowledgeInterrupt();
    this.#programTimer();
  }
  #programTimer(): void {
    let next = this.#sliceEnd;
    for (const { deadlineNs } of this.#timers) {
      if (deadlineNs !== undefined) next = Math.min(next, Math.ceil((deadlineNs * this.cpu.tscKhz) / 1e6));
    }
    if (Number.isFinite(this.workAt)) {
      const ticks = (this.workAt - this.cpu.retiredInstructions()) * 20;
      if (ticks > 0) next = Math.min(next, this.cpu.rdtsc() + ticks);
    }
    this.cpu.setTimerDeadline(next);
  }
  /** Makes `workAt` known to the CPU's timer. */
  stopAt(instructions: number): void {
    this.workAt = instructions;
    this.#programTimer();
  }

  #allocate(count: number, align: number): number {
    if (count === 1 && align === 1 && this.#freePages.length > 0) {
      const offset = this.#freePages.pop()!;
      this.bank.u8.fill(0, offset, offset + 4096);
      this.cpu.sanitizer.pagesAllocated(hpa(BANK, offset), 1);
      this.pagesOut++;
      return hpa(BANK, offset);
    }
    const unit = align * 4096;
    const offset = Math.ceil(this.#nextPage / unit) * unit;
    if (offset + count * 4096 > USER_BASE) return -Errno.ENOMEM;
    this.#nextPage = offset + count * 4096;
    this.pagesOut += count;
    return hpa(BANK, offset);
  }
}
