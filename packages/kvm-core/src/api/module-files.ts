/** The descriptors of a KVM module: /dev/kvmN, VMs, vCPUs, their statistics. What is behind them is each version's own. */
import {
  Errno,
  type FileOperations,
  type Hva,
  Ioctl,
  KvmDirtyLog,
  KvmUserspaceMemoryRegion,
  KvmUserspaceMemoryRegion2,
  type PhysicalAddress,
  type Process,
  type Task,
  VCPU_MMAP_SIZE_BYTES,
} from "@mkvm/kvm-abi";
import type { VcpuParts } from "../guest/vcpu-parts.ts";
import { checkExtension, MAX_VCPU_ID } from "./capabilities.ts";
import type { RawMemoryRegion } from "./memory-region.ts";
import { type SystemContext, systemIoctl } from "./system-ioctls.ts";
import { readUser, writeUserBytes } from "./user-copy.ts";
import { vcpuStateIoctl } from "./vcpu-ioctls.ts";
import { type VmUnderControl, vmStateIoctl } from "./vm-state-ioctls.ts";

/** A vCPU as its descriptor needs it. */
export interface ManagedVcpu extends VcpuParts {
  readonly vm: ManagedVm;
  /** Host physical address of the pages that the descriptor maps. */
  readonly runAddress: PhysicalAddress;
  /** KVM_RUN; a promise only when it has to wait or gives way. */
  runLoop(task: Task): number | Promise<number>;
}

/** A VM as its descriptor needs it. */
export interface ManagedVm extends VmUnderControl {
  /** Open files of the VM, its vCPUs and their statistics: the last one to close ends it. */
  openFiles: number;
  vcpus(): readonly ManagedVcpu[];
  /** `runAddress`: pages that exist already, of a vCPU that moves here. */
  createVcpu(id: number, runAddress?: PhysicalAddress): ManagedVcpu | number;
  /** Takes back a vCPU that nobody has seen yet. */
  removeVcpu(vcpu: ManagedVcpu): void;
  setMemoryRegion(region: RawMemoryRegion): number;
  /** Bytes of a slot's dirty bitmap; -ENOENT when there is no slot or no log. */
  dirtyLogBytes(slot: number): number;
  /** The bitmap, which starts anew. */
  takeDirtyLog(slot: number): Uint8Array;
  /** Detaches and frees. `moved`: the run pages belong to another module now. */
  destroy(moved: boolean): void;
  /** Ends what happens by itself: timers, eventfds, notices of changes to memory. The VM runs no more, and is to be freed. */
  detach(): void;
  /** Frees what a detached VM holds. `moved`: as for `destroy`. */
  free(moved: boolean): void;
}

/** Behind a descriptor of KVM_GET_STATS_FD. */
export interface StatisticsFile {
  readonly vm: ManagedVm;
  /** undefined: the VM's own statistics. */
  readonly vcpu: ManagedVcpu | undefined;
}

export class ModuleFiles {
  readonly systemOperations: FileOperations;
  readonly vmOperations: FileOperations;
  readonly vcpuOperations: FileOperations;
  /** What KVM_GET_STATS_FD gives: a file that keeps its VM alive. */
  readonly statisticsOperations: FileOperations;
  readonly #system: SystemContext;
  readonly #createVm: (process: Process) => ManagedVm | number;

  constructor(owner: string, system: SystemContext, createVm: (process: Process) => ManagedVm | number) {
    this.#system = system;
    this.#createVm = createVm;
    this.systemOperations = {
      owner,
      open: () => 0,
      ioctl: (file, request, argument) =>
        request === Ioctl.KVM_CREATE_VM
          ? this.#installVm(file.process, argument)
          : systemIoctl(system, file.process, request, argument),
    };
    this.vmOperations = {
      owner,
      ioctl: (file, request, argument) => {
        const vm = file.privateData as ManagedVm;
        return request === Ioctl.KVM_GET_STATS_FD
          ? this.#installStatistics(file.process, "kvm-vm-stats", { vm, vcpu: undefined })
          : this.#vmIoctl(vm, request, argument);
      },
      release: (file) => {
        const vm = file.privateData as ManagedVm;
        vm.fabric.irqfds.clear();
        closeFile(vm);
      },
    };
    this.vcpuOperations = {
      owner,
      ioctl: (file, request, argument, task) => {
        const vcpu = file.privateData as ManagedVcpu;
        if (request === Ioctl.KVM_RUN) return argument === 0 ? vcpu.runLoop(task) : -Errno.EINVAL;
        if (request === Ioctl.KVM_GET_STATS_FD) {
          return this.#installStatistics(file.process, `kvm-vcpu-stats:${vcpu.id}`, { vm: vcpu.vm, vcpu });
        }
        return vcpuStateIoctl(vcpu, request, argument);
      },
      mmap(file, lengthBytes, offsetBytes) {
        if (offsetBytes !== 0 || lengthBytes > VCPU_MMAP_SIZE_BYTES) return -Errno.EINVAL;
        return (file.privateData as ManagedVcpu).runAddress;
      },
      release: (file) => closeFile((file.privateData as ManagedVcpu).vm),
    };
    this.statisticsOperations = {
      owner,
      read: (file, into, offsetBytes) => {
        const { vm, vcpu } = file.privateData as StatisticsFile;
        return (vcpu ?? vm).statistics.read(into, offsetBytes);
      },
      release: (file) => closeFile((file.privateData as StatisticsFile).vm),
    };
  }

  #installStatistics(process: Process, name: string, file: StatisticsFile): number {
    const fd = process.installFile({ name, operations: this.statisticsOperations, privateData: file });
    if (fd >= 0) file.vm.openFiles++;
    return fd;
  }

  #installVm(process: Process, type: number): number {
    // KVM_X86_DEFAULT_VM is the only type
    if (type !== 0) return -Errno.EINVAL;
    const vm = this.#createVm(process);
    if (typeof vm === "number") return vm;
    const fd = process.installFile({ name: "kvm-vm", operations: this.vmOperations, privateData: vm });
    if (fd < 0) vm.destroy(false);
    else vm.openFiles++;
    return fd;
  }

  #vmIoctl(vm: ManagedVm, request: number, argument: Hva): number {
    const { process } = vm;
    switch (request) {
      case Ioctl.KVM_CHECK_EXTENSION:
        return checkExtension(argument, this.#system);
      case Ioctl.KVM_CREATE_VCPU:
        return this.#installVcpu(vm, argument);
      case Ioctl.KVM_SET_USER_MEMORY_REGION: {
        const region = readUser(process, argument, KvmUserspaceMemoryRegion);
        return typeof region === "number" ? region : setRegion(vm, region);
      }
      case Ioctl.KVM_SET_USER_MEMORY_REGION2: {
        const region = readUser(process, argument, KvmUserspaceMemoryRegion2);
        return typeof region === "number" ? region : setRegion(vm, region);
      }
      case Ioctl.KVM_GET_DIRTY_LOG:
        return getDirtyLog(vm, argument);
      default:
        return vmStateIoctl(vm, request, argument);
    }
  }

  #installVcpu(vm: ManagedVm, id: number): number {
    if (id >= MAX_VCPU_ID) return -Errno.EINVAL;
    const vcpu = vm.createVcpu(id);
    if (typeof vcpu === "number") return vcpu;
    const fd = vm.process.installFile({ name: `kvm-vcpu:${id}`, operations: this.vcpuOperations, privateData: vcpu });
    if (fd < 0) vm.removeVcpu(vcpu);
    else vm.openFiles++;
    return fd;
  }
}

function closeFile(vm: ManagedVm): void {
  vm.openFiles--;
  if (vm.openFiles === 0) vm.destroy(false);
}

function setRegion(
  vm: ManagedVm,
  region: { slot: number; flags: number; guest_phys_addr: bigint; memory_size: bigint; userspace_addr: bigint },
): number {
  return vm.setMemoryRegion({
    slot: region.slot,
    flags: region.flags,
    guestPhysicalAddress: region.guest_phys_addr,
    memorySize: region.memory_size,
    userspaceAddress: region.userspace_addr,
  });
}

function getDirtyLog(vm: ManagedVm, argument: Hva): number {
  const request = readUser(vm.process, argument, KvmDirtyLog);
  if (typeof request === "number") return request;
  const length = vm.dirtyLogBytes(request.slot);
  if (length < 0) return length;
  const target = Number(request.dirty_bitmap);
  // Checked first: a failed call must not lose what the bitmap says
  if (!vm.process.memory.isMapped(target, length)) return -Errno.EFAULT;
  return writeUserBytes(vm.process, target, vm.takeDirtyLog(request.slot));
}
