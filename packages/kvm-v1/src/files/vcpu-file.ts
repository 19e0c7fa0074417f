/** Descriptor of a vCPU. */
import { Errno, type FileOperations, Ioctl, VCPU_MMAP_SIZE_BYTES } from "@mkvm/kvm-abi";
import { vcpuStateIoctl } from "@mkvm/kvm-core";
import type { Module } from "../main.ts";
import { runVcpu } from "../run-loop.ts";
import type { Vcpu } from "../vcpu.ts";
import { closeFile } from "./vm-file.ts";

export function vcpuFileOperations(module: Module): FileOperations {
  return {
    owner: module.kernel.moduleName,
    ioctl(file, request, argument, task) {
      const vcpu = file.privateData as Vcpu;
      if (request === Ioctl.KVM_RUN) return argument === 0 ? runVcpu(vcpu, task) : -Errno.EINVAL;
      return vcpuStateIoctl(vcpu, request, argument);
    },
    mmap(file, lengthBytes, offsetBytes) {
      const vcpu = file.privateData as Vcpu;
      if (offsetBytes !== 0 || lengthBytes > VCPU_MMAP_SIZE_BYTES) return -Errno.EINVAL;
      return vcpu.runAddress;
    },
    release: (file) => closeFile((file.privateData as Vcpu).vm),
  };
}
