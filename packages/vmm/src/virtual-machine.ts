import {
  Capability,
  Errno,
  errnoName,
  Ioctl,
  KVM_API_VERSION,
  KvmIrqLevel,
  KvmPitConfig,
  KvmUserspaceMemoryRegion,
  MemoryFlag,
  PitConfigFlag,
  type ProgramState,
  type Section,
  type SystemCalls,
} from "@mkvm/kvm-abi";
import type { VmmArguments } from "./arguments.ts";
import { setBootRegisters } from "./boot/boot-registers.ts";
import { ConsoleOutput } from "./console.ts";
import { setCpuid } from "./cpuid.ts";
import { DEBUG_EXIT_PORT, DebugExit } from "./devices/debug-exit.ts";
import { FirmwareBoard } from "./devices/firmware-board.ts";
import { FIRMWARE_LOG_PORT, FirmwareLog } from "./devices/firmware-log.ts";
import { Flash } from "./devices/flash.ts";
import { KEYBOARD_COMMAND_PORT, KEYBOARD_DATA_PORT, KeyboardController } from "./devices/keyboard-controller.ts";
import { MemoryBus } from "./devices/memory-bus.ts";
import { PortBus } from "./devices/port-bus.ts";
import { AcpiPower, PM1_EVENT_PORT } from "./devices/power.ts";
import { RealTimeClock, RTC_INDEX_PORT } from "./devices/real-time-clock.ts";
import { Serial16550 } from "./devices/serial-16550.ts";
import { GuestMemory } from "./guest-memory.ts";
import { ImageFile } from "./image-file.ts";
import { KvmCallError, KvmCalls } from "./kvm-calls.ts";
import { loadFlash } from "./loaders/firmware.ts";
import type { EntryPoint } from "./loaders/guest-image.ts";
import { loadImage } from "./loaders/load-image.ts";
import { FOUR_GIB, TSS_ADDRESS } from "./memory-layout.ts";
import { readMachine, saveMachine } from "./saved-machine.ts";
import { stateDigest } from "./state-digest.ts";
import { VariablesFile } from "./variables-file.ts";
import { runVcpu, type VcpuEnd } from "./vcpu-loop.ts";
import { ExitStatus, VmmError } from "./vmm-error.ts";

const SERIAL_PORT = 0x3f8,
  SERIAL_PORTS = 8,
  SERIAL_INTERRUPT = 4;
const INPUT_BYTES = 256;
const HEAD_BYTES = 1 << 16;
/** Memory slots; RAM has the first two. */
const ROM_SLOT = 2,
  FLASH_SLOT = 3;

/**
 * UEFI firmware maps all that the processor could address, in large pages: with KVM's 52 bits the tables alone would not fit in the VM.
 * QEMU's processors have 40 for the same reason.
 */
const UEFI_PHYSICAL_ADDRESS_BITS = 40;

interface Vcpu {
  id: number;
  fd: number;
  run: number;
}

/** One VM: its descriptors, memory, devices and vCPUs. */
export class VirtualMachine {
  readonly #sys: SystemCalls;
  readonly #kvm: KvmCalls;
  /** Calls of the devices, which come in the middle of others and so need arguments of their own. */
  readonly #deviceCalls: KvmCalls;
  readonly #systemFd: number;
  readonly #vmFd: number;
  readonly #memory: GuestMemory;
  readonly #ports = new PortBus();
  readonly #memoryBus = new MemoryBus();
  /** Where there is UEFI firmware. */
  #board: FirmwareBoard | undefined;
  /** Calls that show and hide the flash chip. */
  #flashCalls: KvmCalls | undefined;
  #settling: Promise<unknown> | undefined;
  readonly #console: ConsoleOutput;
  readonly #serial: Serial16550;
  readonly #clock: RealTimeClock;
  readonly #keyboard: KeyboardController;
  readonly #power: AcpiPower;
  readonly #vcpus: Vcpu[] = [];
  #end: VcpuEnd | undefined;

  /** Opens the device, makes the VM and loads the image. Throws VmmError; nothing runs yet. */
  static async create(sys: SystemCalls, args: VmmArguments): Promise<VirtualMachine> {
    const kvm = new KvmCalls(sys);
    const systemFd = sys.open(args.device);
    if (systemFd < 0) {
      const cure = systemFd === -Errno.ENOENT ? "load a module with mkvm insmod, and link it with mkvm ln" : "see mkvm dmesg";
      throw new VmmError(`cannot open ${args.device}: ${errnoName(-systemFd)}; ${cure}`);
    }
    const version = await kvm.number(systemFd, Ioctl.KVM_GET_API_VERSION);
    if (version !== KVM_API_VERSION)
      throw new VmmError(`${args.device} speaks KVM API ${version}; this VMM speaks ${KVM_API_VERSION}`);
    for (const name of ["KVM_CAP_IRQCHIP", "KVM_CAP_PIT2", "KVM_CAP_USER_MEMORY", "KVM_CAP_EXT_CPUID"] as const) {
      if (!(await kvm.has(systemFd, Capability[name])))
        throw new VmmError(`${args.device} lacks ${name}, which this VMM needs; link another module`);
    }
    const allocate = (bytes: number): number => {
      const address = sys.mmap(bytes, -1, 0);
      if (address >= 0) return address;
      throw new VmmError(`cannot get ${bytes >> 20} MiB of guest memory: ${errnoName(-address)}; lower --memory`);
    };
    const memory = new GuestMemory(sys.memory, allocate, args.memoryBytes);
    const entry = loadGuest(sys, memory, args);
    const vmFd = await kvm.number(systemFd, Ioctl.KVM_CREATE_VM);
    const vm = new VirtualMachine(sys, kvm, systemFd, vmFd, memory);
    if (args.flash) {
      const { variables } = args.flash;
      vm.#addBoard(args.cpus, variables === undefined ? undefined : VariablesFile.open(sys, variables));
    }
    await vm.#build(args, entry);
    return vm;
  }

  /**
   * Takes up a VM that was saved: its descriptors and memory are there. `variables`: the file that keeps those of its firmware. Throws
   * VmmError; nothing runs yet.
   */
  static async restore(sys: SystemCalls, sections: readonly Section[], variables: string | undefined): Promise<VirtualMachine> {
    const saved = readMachine(sections);
    if (typeof saved === "string") throw new VmmError(`the saved VM cannot be taken up: ${saved}`);
    const kvm = new KvmCalls(sys);
    const memory = new GuestMemory(sys.memory, () => saved.memory.address, saved.memory.bytes);
    memory.rom = saved.rom && { ...saved.rom, flashBytes: Flash.bytesOf(sections) };
    const vm = new VirtualMachine(sys, kvm, saved.systemFd, saved.vmFd, memory);
    const runBytes = await kvm.number(saved.systemFd, Ioctl.KVM_GET_VCPU_MMAP_SIZE);
    for (const { id, fd } of saved.vcpus) vm.#vcpus.push({ id, fd, run: vm.#mapRun(id, fd, runBytes) });
    if (FirmwareBoard.isIn(sections))
      vm.#addBoard(saved.vcpus.length, variables === undefined ? undefined : new VariablesFile(sys, variables));
    for (const device of [vm.#serial, vm.#clock, vm.#power, vm.#board]) {
      const refused = device?.restore(sections);
      if (refused !== undefined) throw new VmmError(`the saved VM cannot be taken up: ${refused}`);
    }
    await vm.#settling;
    vm.#console.restore(sections);
    return vm;
  }

  /** All that another instance of this program needs to go on. */
  #save(): ProgramState {
    if (this.#end) throw new VmmError("the VM has ended, and its process is about to");
    const machine = saveMachine({
      memory: this.#memory,
      rom: this.#memory.rom,
      systemFd: this.#systemFd,
      vmFd: this.#vmFd,
      vcpus: this.#vcpus,
    });
    const sections = [machine, this.#serial.save(), this.#clock.save(), this.#power.save(), this.#console.save()];
    if (this.#board) sections.push(...this.#board.save());
    return { sections, memory: this.#memory.blocks() };
  }

  private constructor(sys: SystemCalls, kvm: KvmCalls, systemFd: number, vmFd: number, memory: GuestMemory) {
    this.#sys = sys;
    this.#kvm = kvm;
    this.#deviceCalls = new KvmCalls(sys);
    this.#systemFd = systemFd;
    this.#vmFd = vmFd;
    this.#memory = memory;
    this.#console = new ConsoleOutput(sys);
    this.#serial = new Serial16550(SERIAL_PORT, {
      transmit: (byte) => this.#console.put(byte),
      interrupt: (level) => this.#setInterrupt(SERIAL_INTERRUPT, level),
    });
    const end = (status: number, message?: string) => this.#finish(message === undefined ? { status } : { status, message });
    this.#ports.attach(this.#serial, SERIAL_PORT, SERIAL_PORTS);
    this.#keyboard = new KeyboardController(() => end(ExitStatus.reset, "the guest asked for a reset"));
    this.#ports.attach(this.#keyboard, KEYBOARD_DATA_PORT, 1);
    this.#ports.attach(this.#keyboard, KEYBOARD_COMMAND_PORT, 1);
    this.#clock = new RealTimeClock(() => sys.clockRealtimeNs(), memory);
    this.#ports.attach(this.#clock, RTC_INDEX_PORT, 2);
    this.#ports.attach(new FirmwareLog((byte) => this.#console.put(byte)), FIRMWARE_LOG_PORT, 1);
    this.#ports.attach(new DebugExit((status) => end(status)), DEBUG_EXIT_PORT, 4);
    this.#power = new AcpiPower(() => end(ExitStatus.powerOff));
    this.#ports.attach(this.#power, PM1_EVENT_PORT, 8);
  }

  #addBoard(cpus: number, file: VariablesFile | undefined): void {
    const end = (status: number, message?: string) => this.#finish(message === undefined ? { status } : { status, message });
    const contents = this.#memory.flash();
    if (contents) this.#flashCalls = new KvmCalls(this.#sys);
    const { rom } = this.#memory;
    this.#keyboard.isHidden = true;
    this.#board = new FirmwareBoard(
      {
        ports: this.#ports,
        memory: this.#memoryBus,
        ramBytes: this.#memory.bytes,
        cpus,
        nowNs: () => this.#sys.clockMonotonicNs(),
        reset: () => end(ExitStatus.reset, "the guest asked for a reset"),
        powerOff: () => end(ExitStatus.powerOff),
      },
      contents &&
        rom && {
          start: FOUR_GIB - rom.bytes,
          contents,
          show: (asMemory) => this.#showFlash(asMemory),
          keep: (first, end) => file?.write(rom.address + first, end - first, first),
        },
    );
  }

  /** A memory slot of its own while it reads as memory; without one every access comes to the device. */
  #showFlash(asMemory: boolean): void {
    const { address, bytes, flashBytes } = this.#memory.rom!;
    const size = asMemory ? flashBytes : 0;
    const readOnly = MemoryFlag.KVM_MEM_READONLY;
    const shown = this.#addRegion(FLASH_SLOT, FOUR_GIB - bytes, size, address, readOnly, this.#flashCalls);
    const settling = shown
      .catch((error) => {
        // A VM that was saved may have got so far already
        if (asMemory || !(error instanceof KvmCallError) || error.errno !== Errno.EINVAL) throw error;
      })
      .finally(() => {
        if (this.#settling === settling) this.#settling = undefined;
      });
    this.#settling = settling;
  }

  async #build({ cpus, cpuModel, flash }: VmmArguments, entry: EntryPoint): Promise<void> {
    const kvm = this.#kvm;
    const physicalAddressBits = flash && UEFI_PHYSICAL_ADDRESS_BITS;
    await kvm.number(this.#vmFd, Ioctl.KVM_SET_TSS_ADDR, TSS_ADDRESS);
    await kvm.number(this.#vmFd, Ioctl.KVM_CREATE_IRQCHIP);
    // Port 0x61 too: guests measure their clocks by the gate and output of channel 2
    await kvm.set(this.#vmFd, Ioctl.KVM_CREATE_PIT2, KvmPitConfig, { flags: PitConfigFlag.KVM_PIT_SPEAKER_DUMMY });
    const low = this.#memory.lowBytes;
    await this.#addRegion(0, 0, low, this.#memory.address);
    const { highBytes, rom } = this.#memory;
    if (highBytes > 0) await this.#addRegion(1, FOUR_GIB, highBytes, this.#memory.address + low);
    if (rom) {
      const { address, bytes, flashBytes } = rom;
      const readOnly = MemoryFlag.KVM_MEM_READONLY;
      await this.#addRegion(ROM_SLOT, FOUR_GIB - bytes + flashBytes, bytes - flashBytes, address + flashBytes, readOnly);
      if (flashBytes > 0) await this.#addRegion(FLASH_SLOT, FOUR_GIB - bytes, flashBytes, address, readOnly);
    }
    const runBytes = await kvm.number(this.#systemFd, Ioctl.KVM_GET_VCPU_MMAP_SIZE);
    for (let id = 0; id < cpus; id++) {
      const fd = await kvm.number(this.#vmFd, Ioctl.KVM_CREATE_VCPU, id);
      const run = this.#mapRun(id, fd, runBytes);
      await setCpuid(kvm, this.#systemFd, fd, { apicId: id, cpus }, { model: cpuModel, physicalAddressBits });
      this.#vcpus.push({ id, fd, run });
    }
    await setBootRegisters(kvm, this.#vcpus[0].fd, this.#memory, entry);
  }

  #mapRun(id: number, fd: number, bytes: number): number {
    const run = this.#sys.mmap(bytes, fd, 0);
    if (run < 0) throw new VmmError(`cannot map kvm_run of vCPU ${id}: ${errnoName(-run)}`);
    return run;
  }

  #addRegion(slot: number, start: number, bytes: number, address: number, flags = 0, kvm = this.#kvm): Promise<number> {
    const region = {
      slot,
      flags,
      guest_phys_addr: BigInt(start),
      memory_size: BigInt(bytes),
      userspace_addr: BigInt(address),
    };
    return kvm.set(this.#vmFd, Ioctl.KVM_SET_USER_MEMORY_REGION, KvmUserspaceMemoryRegion, region);
  }

  /** A line that tells whether two runs ended in the same state. */
  digest(): Promise<string> {
    return stateDigest(
      this.#kvm,
      this.#memory,
      this.#vcpus.map((vcpu) => vcpu.fd),
    );
  }

  /** Runs to the end of the VM: every vCPU on a thread of its own, and one that feeds the serial line. */
  async run(): Promise<VcpuEnd> {
    this.#sys.onSave(() => this.#save());
    const threads = this.#vcpus.map((vcpu) =>
      this.#sys.spawnThread(`vcpu${vcpu.id}`, async (sys) => {
        const end = await runVcpu({
          sys,
          kvm: new KvmCalls(sys),
          vcpuFd: vcpu.fd,
          vcpuId: vcpu.id,
          run: vcpu.run,
          ports: this.#ports,
          memory: this.#memoryBus,
          settling: () => this.#settling,
          console: this.#console,
          ended: () => this.#end,
        });
        this.#finish(end);
        return 0;
      }),
    );
    this.#kick = () => {
      for (const thread of threads) this.#sys.signalThread(thread.tid);
    };
    const input = this.#sys.spawnThread("input", (sys) => this.#feedInput(sys));
    await Promise.all(threads.map((thread) => thread.finished));
    this.#sys.closeInput();
    this.#board?.end();
    this.#console.flush();
    await input.finished;
    return this.#end!;
  }

  #kick = (): void => {};

  #finish(end: VcpuEnd): void {
    if (this.#end) return;
    this.#end = end;
    this.#kick();
  }

  #setInterrupt(irq: number, level: boolean): void {
    const bytes = KvmIrqLevel.encode({ irq, level: level ? 1 : 0 });
    // The call does not wait, so its result is there at once; an edge that cannot be delivered is the guest's own loss.
    void this.#deviceCalls.setBytes(this.#vmFd, Ioctl.KVM_IRQ_LINE, bytes);
  }

  async #feedInput(sys: SystemCalls): Promise<number> {
    const buffer = sys.mmap(INPUT_BYTES, -1, 0);
    while (!this.#end) {
      const count = await sys.read(0, buffer, INPUT_BYTES);
      if (count <= 0) break;
      this.#serial.receive(sys.memory.u8.subarray(buffer, buffer + count));
    }
    return 0;
  }
}

function loadGuest(sys: SystemCalls, memory: GuestMemory, args: VmmArguments): EntryPoint {
  if (args.flash) return loadFirmwareFiles(sys, memory, args.flash);
  const image = ImageFile.open(sys, args.kernel!, "kernel image");
  const initrd = args.initrd ? ImageFile.open(sys, args.initrd, "initrd") : undefined;
  const head = image.read(0, HEAD_BYTES);
  const entry = loadImage({ image, head, memory, commandLine: args.commandLine, cpus: args.cpus, initrd }, args.format);
  image.close();
  initrd?.close();
  return entry;
}

function loadFirmwareFiles(sys: SystemCalls, memory: GuestMemory, files: NonNullable<VmmArguments["flash"]>): EntryPoint {
  const code = ImageFile.open(sys, files.code, "firmware");
  const variables = files.variables === undefined ? undefined : ImageFile.open(sys, files.variables, "firmware variables");
  const entry = loadFlash(memory, code, variables);
  code.close();
  variables?.close();
  return entry;
}
