/** KVM_CAP_SYNC_REGS: registers that cross with KVM_RUN. */
import assert from "node:assert/strict";
import { Ioctl, KvmRegs, KvmRun, KvmSregs, KvmSyncRegs, KvmVcpuEvents, SyncRegsFlag } from "@mkvm/kvm-abi";
import { BenchVm, CODE, fails } from "./bench-vm.ts";
import type { Check } from "./suite.ts";

const HLT = 0xf4;
const { KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, KVM_SYNC_X86_EVENTS } = SyncRegsFlag;
const ALL = BigInt(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS);
const { kvm_valid_regs, kvm_dirty_regs, s } = KvmRun.offsets;

export const syncRegsChecks: readonly Check[] = [
  {
    name: "registers in the run page: what was asked for, what was changed, and what is none",
    async run(calls) {
      const vm = await BenchVm.create(calls);
      assert.equal(await vm.has("KVM_CAP_SYNC_REGS"), Number(ALL));
      const { view, u8 } = calls.sys.memory;
      const mark = (valid: bigint, dirty: bigint): void => {
        view.setBigUint64(vm.run + kvm_valid_regs, valid, true);
        view.setBigUint64(vm.run + kvm_dirty_regs, dirty, true);
      };
      const shared = () => KvmSyncRegs.read(view, vm.run + s);
      vm.code(0x40, 0xe6, 0x10, 0xe6, 0x11, HLT); // inc ax; out 0x10, al; out 0x11, al; hlt

      for (const unknown of [8n, 1n << 63n]) {
        mark(unknown, 0n);
        fails(await calls.call(vm.vcpuFd, Ioctl.KVM_RUN), "EINVAL");
        mark(0n, unknown);
        fails(await calls.call(vm.vcpuFd, Ioctl.KVM_RUN), "EINVAL");
      }
      // Nothing is stored that was not asked for
      u8.fill(0xaa, vm.run + s, vm.run + s + KvmSyncRegs.sizeBytes);
      mark(0n, 0n);
      await vm.exit("KVM_EXIT_IO");
      assert(u8.subarray(vm.run + s, vm.run + s + KvmSyncRegs.sizeBytes).every((byte) => byte === 0xaa));
      mark(BigInt(KVM_SYNC_X86_REGS), 0n);
      await vm.exit("KVM_EXIT_IO");
      assert.deepEqual(shared().regs, await vm.regs());
      assert.equal(shared().sregs.cr0, 0xaaaa_aaaa_aaaa_aaaan);
      mark(ALL, 0n);
      await vm.exit("KVM_EXIT_HLT");
      assert.deepEqual(shared().regs, await vm.regs());
      assert.deepEqual(shared().sregs, await calls.get(vm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs));
      assert.deepEqual(shared().events, await calls.get(vm.vcpuFd, Ioctl.KVM_GET_VCPU_EVENTS, KvmVcpuEvents));

      // What is dirty is taken, once
      const { regs, sregs } = shared();
      KvmRegs.write(view, { ...regs, rax: 0x41n, rip: BigInt(CODE) }, vm.run + s);
      KvmSregs.write(view, { ...sregs, gdt: { ...sregs.gdt, base: 0x4_5000n } }, vm.run + s + KvmSyncRegs.offsets.sregs);
      mark(ALL, BigInt(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS));
      await vm.exit("KVM_EXIT_IO");
      assert.equal(shared().regs.rax, 0x42n);
      assert.equal((await calls.get(vm.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs)).gdt.base, 0x4_5000n);
      assert.equal(view.getBigUint64(vm.run + kvm_dirty_regs, true), 0n);
      // What is not dirty is not looked at
      KvmRegs.write(view, { ...shared().regs, rip: 0x9_9999n }, vm.run + s);
      await vm.exit("KVM_EXIT_IO");
      // Special registers that no processor could hold are refused
      KvmSregs.write(view, { ...shared().sregs, cr0: 0x8000_0000n }, vm.run + s + KvmSyncRegs.offsets.sregs);
      mark(0n, BigInt(KVM_SYNC_X86_SREGS));
      fails(await calls.call(vm.vcpuFd, Ioctl.KVM_RUN), "EINVAL");
      mark(0n, 0n);
      await vm.exit("KVM_EXIT_HLT");
    },
  },
];
