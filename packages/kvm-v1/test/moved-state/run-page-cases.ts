/** What user space has put into the run page for a KVM_RUN that has not taken it yet, on the move. */
import assert from "node:assert/strict";
import { Ioctl, KvmRegs, KvmRun, KvmSregs, KvmSyncRegs, KvmVcpuEvents, SyncRegsFlag } from "@mkvm/kvm-abi";
import { CODE } from "../test-vm.ts";
import type { MoveCase } from "./move-case.ts";
import type { MovingVm } from "./moving-vm.ts";

const { KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, KVM_SYNC_X86_EVENTS } = SyncRegsFlag;
const ALL = BigInt(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS);
const { kvm_valid_regs, kvm_dirty_regs, s } = KvmRun.offsets;

interface Marked {
  readonly rax: bigint;
  readonly gdtBase: bigint;
  readonly nmiMasked: number;
}

function stateOf(vm: MovingVm): Marked {
  const { masked } = vm.get(vm.vcpu, Ioctl.KVM_GET_VCPU_EVENTS, KvmVcpuEvents).nmi;
  return { rax: vm.regs().rax, gdtBase: vm.sregs().gdt.base, nmiMasked: masked };
}

function mark(vm: MovingVm, view: DataView, { rax, gdtBase, nmiMasked }: Marked): void {
  const at = (part: keyof typeof KvmSyncRegs.offsets) => s + KvmSyncRegs.offsets[part];
  const sregs = vm.sregs();
  const events = vm.get(vm.vcpu, Ioctl.KVM_GET_VCPU_EVENTS, KvmVcpuEvents);
  KvmRegs.write(view, { ...vm.regs(), rax, rip: BigInt(CODE) }, at("regs"));
  KvmSregs.write(view, { ...sregs, gdt: { ...sregs.gdt, base: gdtBase } }, at("sregs"));
  KvmVcpuEvents.write(view, { ...events, nmi: { ...events.nmi, masked: nmiMasked } }, at("events"));
  view.setBigUint64(kvm_valid_regs, ALL, true);
  view.setBigUint64(kvm_dirty_regs, ALL, true);
}

export const runPageCases: readonly MoveCase[] = [
  {
    name: "registers and events in the run page that no KVM_RUN has taken",
    moves: ["vcpu.run-page.address"],
    vm: {
      irqchip: true,
      pit: true,
      // Takes the pages that vCPU 0 would have got
      beforeVcpus: (kernel, vmFd) => assert(kernel.ioctl(vmFd, Ioctl.KVM_CREATE_VCPU, 9) >= 0),
    },
    async run(vm) {
      const view = new DataView(vm.run.buffer, vm.run.byteOffset, vm.run.byteLength);
      const dirty = () => view.getBigUint64(kvm_dirty_regs, true);
      vm.load([0xe6, 0xe9, 0xe6, 0xe9, 0xe6, 0xe9]); // out 0xe9, al, three times
      vm.startReal({ rax: 1n });
      const before = stateOf(vm);
      const first = { rax: 0x5an, gdtBase: 0x4_5000n, nmiMasked: 1 };
      mark(vm, view, first);
      // Moved there and back, they wait in the page as they did; the vCPU has what it had
      await vm.roundTrip(() => assert.deepEqual([dirty(), stateOf(vm)], [ALL, before]));
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.deepEqual([dirty(), vm.io.data[0], stateOf(vm)], [0n, 0x5a, first]);
      // The side that they come to takes them, and what it took stays taken behind the next move
      const second = { rax: 0x21n, gdtBase: 0x4_6000n, nmiMasked: 0 };
      mark(vm, view, second);
      await vm.move();
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.deepEqual([dirty(), vm.io.data[0], stateOf(vm)], [0n, 0x21, second]);
      await vm.move();
      assert.deepEqual([dirty(), stateOf(vm)], [0n, second]);
      assert.equal(await vm.enter(), "KVM_EXIT_IO");
      assert.equal(vm.regs().rip, BigInt(CODE + 4));
    },
  },
];
