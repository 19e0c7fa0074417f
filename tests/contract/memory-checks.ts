/** Memory of a program that is a guest's. */
import assert from "node:assert/strict";
import { Ioctl, KvmSregs } from "@mkvm/kvm-abi";
import { BenchVm, fails, ok, RAM_BYTES, setSlot } from "./bench-vm.ts";
import type { Check } from "./suite.ts";

const BYTES = 0x1_0000;
const AT = 0x10;

export const memoryChecks: readonly Check[] = [
  {
    name: "memory that the program gives up is the guest's no longer, until something is mapped there again",
    async run(calls) {
      const vm = await BenchVm.create(calls);
      const { sys } = calls;
      const more = ok(sys.mmap(BYTES, -1, 0));
      const slot = { slot: 1, guest_phys_addr: BigInt(RAM_BYTES), memory_size: BigInt(BYTES), userspace_addr: BigInt(more) };
      ok(await setSlot(calls, vm.vmFd, slot));
      const sregs = await calls.get(vm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
      sregs.ds.base = BigInt(RAM_BYTES);
      ok(await calls.set(vm.vcpuFd, Ioctl.KVM_SET_SREGS, KvmSregs, sregs));
      vm.code(0xa0, AT, 0x00, 0xe6, 0x10, 0xeb, 0xf9); // mov al, [AT]; out 0x10, al; and again
      const { u8 } = sys.memory;
      const read = async (): Promise<number> => {
        await vm.exit("KVM_EXIT_IO");
        return Number((await vm.regs()).rax & 0xffn);
      };
      u8[more + AT] = 0x41;
      assert.equal(await read(), 0x41);
      assert.equal(sys.munmap(more, BYTES), 0);
      fails(await calls.call(vm.vcpuFd, Ioctl.KVM_RUN), "EFAULT");
      // Nobody else has mapped anything meanwhile
      assert.equal(sys.mmap(BYTES, -1, 0), more);
      u8[more + AT] = 0x42;
      assert.equal(await read(), 0x42);
      // A part of it is enough
      assert.equal(sys.munmap(more, 4096), 0);
      fails(await calls.call(vm.vcpuFd, Ioctl.KVM_RUN), "EFAULT");
    },
  },
];
