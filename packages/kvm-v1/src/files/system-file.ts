/** /dev/kvmN. */
import { Errno, type FileOperations, Ioctl } from "@mkvm/kvm-abi";
import { systemIoctl } from "@mkvm/kvm-core";
import type { Module } from "../main.ts";
import { Vm } from "../vm.ts";
import { vmFileOperations } from "./vm-file.ts";

export function systemFileOperations(module: Module): FileOperations {
  return {
    owner: module.kernel.moduleName,
    open: () => 0,
    ioctl(file, request, argument) {
      if (request !== Ioctl.KVM_CREATE_VM) return systemIoctl(module.system, file.process, request, argument);
      // The machine type: 0, KVM_X86_DEFAULT_VM, is the only one
      if (argument !== 0) return -Errno.EINVAL;
      const vm = Vm.create(module, file.process);
      if (typeof vm === "number") return vm;
      const fd = file.process.installFile({ name: "kvm-vm", operations: vmFileOperations(module), privateData: vm });
      if (fd < 0) vm.destroy(false);
      else vm.openFiles++;
      return fd;
    },
  };
}
