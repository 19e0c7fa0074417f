/** Descriptor of a VM. It lives until it and the descriptors of all its vCPUs are closed. */
import {
  Errno,
  type FileOperations,
  type Hva,
  Ioctl,
  KvmDirtyLog,
  KvmUserspaceMemoryRegion,
  KvmUserspaceMemoryRegion2,
} from "@mkvm/kvm-abi";
import { checkExtension, MAX_VCPU_ID, readUser, vmStateIoctl, writeUserBytes } from "@mkvm/kvm-core";
import type { Module } from "../main.ts";
import type { Vm } from "../vm.ts";
import { vcpuFileOperations } from "./vcpu-file.ts";

export function vmFileOperations(module: Module): FileOperations {
  return {
    owner: module.kernel.moduleName,
    ioctl: (file, request, argument) => vmIoctl(module, file.privateData as Vm, request, argument),
    release: (file) => closeFile(file.privateData as Vm),
  };
}

/** One descriptor less refers to a VM or one of its vCPUs; the last one ends it. */
export function closeFile(vm: Vm): void {
  vm.openFiles--;
  if (vm.openFiles === 0) vm.destroy(false);
}

function vmIoctl(module: Module, vm: Vm, request: number, argument: Hva): number {
  const { process } = vm;
  switch (request) {
    case Ioctl.KVM_CHECK_EXTENSION:
      return checkExtension(argument, module.system);
    case Ioctl.KVM_CREATE_VCPU:
      return createVcpu(module, vm, argument);
    case Ioctl.KVM_SET_USER_MEMORY_REGION: {
      const region = readUser(process, argument, KvmUserspaceMemoryRegion);
      return typeof region === "number" ? region : setRegion(vm, region);
    }
    case Ioctl.KVM_SET_USER_MEMORY_REGION2: {
      const region = readUser(process, argument, KvmUserspaceMemoryRegion2);
      return typeof region === "number" ? region : setRegion(vm, region);
    }
    case Ioctl.KVM_GET_DIRTY_LOG: {
      const log = readUser(process, argument, KvmDirtyLog);
      if (typeof log === "number") return log;
      const slot = vm.slots.byId(log.slot);
      if (slot?.dirty !== undefined && !process.memory.isMapped(Number(log.dirty_bitmap), slot.dirty.length))
        return -Errno.EFAULT;
      const bitmap = vm.takeDirtyLog(log.slot);
      return typeof bitmap === "number" ? bitmap : writeUserBytes(process, Number(log.dirty_bitmap), bitmap);
    }
    default:
      return vmStateIoctl(vm, request, argument);
  }
}

function setRegion(
  vm: Vm,
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

function createVcpu(module: Module, vm: Vm, id: number): number {
  if (id >= MAX_VCPU_ID) return -Errno.EINVAL;
  const vcpu = vm.createVcpu(id);
  if (typeof vcpu === "number") return vcpu;
  const fd = vm.process.installFile({ name: `kvm-vcpu:${id}`, operations: vcpuFileOperations(module), privateData: vcpu });
  if (fd < 0) vm.removeVcpu(vcpu);
  else vm.openFiles++;
  return fd;
}
