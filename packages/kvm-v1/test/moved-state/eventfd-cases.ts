/** Eventfds that a VM has, on the move. */
import assert from "node:assert/strict";
import { Ioctl, IoeventfdFlag, IrqchipId, IrqfdFlag, KvmIoeventfd, KvmIrqchip, KvmIrqfd } from "@mkvm/kvm-abi";
import type { MoveCase } from "./move-case.ts";
import type { MovingVm } from "./moving-vm.ts";

const OUT = [0xe6, 0xe9];
const { KVM_IOEVENTFD_FLAG_DATAMATCH, KVM_IOEVENTFD_FLAG_PIO } = IoeventfdFlag;

const chip = (vm: MovingVm, id: number): Uint8Array => {
  const bytes = KvmIrqchip.encode({ chip_id: id });
  vm.call(vm.fd, Ioctl.KVM_GET_IRQCHIP, bytes);
  return bytes;
};
const requests = (vm: MovingVm): number =>
  KvmIrqchip.fields.chip.members.pic.read(new DataView(chip(vm, IrqchipId.KVM_IRQCHIP_PIC_MASTER).buffer), 0).irr;

export const eventfdCases: readonly MoveCase[] = [
  {
    name: "writes of the guest that signal eventfds",
    moves: ["address", "datamatch", "length", "flags", "eventfd"].map((field) => `vm.ioeventfds[].${field}`),
    async run(vm) {
      const { kernel } = vm;
      const [port, memory] = [kernel.eventfd(), kernel.eventfd()];
      const flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH;
      vm.set(vm.fd, Ioctl.KVM_IOEVENTFD, KvmIoeventfd, { addr: 0x10n, len: 1, datamatch: 0x5an, fd: port, flags });
      vm.set(vm.fd, Ioctl.KVM_IOEVENTFD, KvmIoeventfd, { addr: 0x100_0000n, len: 0, fd: memory, flags: 0 });
      const [portCounter, memoryCounter] = [port, memory].map((fd) => kernel.eventfds.get(fd)!);
      vm.load([0xe6, 0x10, 0x88, 0x03, ...OUT]); // out 0x10, al; mov [rbx], al; out
      await vm.roundTrip(async () => {
        vm.startLong({ rax: 0x5an, rbx: 0x100_0000n });
        assert.equal(await vm.enter(), "KVM_EXIT_IO");
        assert.equal(vm.io.port, 0xe9);
        assert.deepEqual([portCounter!.take(), memoryCounter!.take()], [1n, 1n]);
      });
      assert.equal(kernel.eventfdReferences, 2, "the sides that are gone hold none");
    },
  },
  {
    name: "eventfds that raise interrupts, by edge and by level",
    moves: ["gsi", "eventfd", "resample_eventfd"].map((field) => `vm.irqfds[].${field}`),
    async run(vm) {
      const { kernel } = vm;
      const [edge, level, resample] = [kernel.eventfd(), kernel.eventfd(), kernel.eventfd()];
      vm.set(vm.fd, Ioctl.KVM_IRQFD, KvmIrqfd, { fd: edge, gsi: 3 });
      const flags = IrqfdFlag.KVM_IRQFD_FLAG_RESAMPLE;
      vm.set(vm.fd, Ioctl.KVM_IRQFD, KvmIrqfd, { fd: level, gsi: 5, flags, resamplefd: resample });
      // Line 5 by level
      const bytes = chip(vm, IrqchipId.KVM_IRQCHIP_PIC_MASTER);
      const pic = KvmIrqchip.fields.chip.members.pic;
      const view = new DataView(bytes.buffer);
      const quiet = () => {
        pic.write(view, 0, { ...pic.read(view, 0), elcr: 0x20, irr: 0, isr: 0, last_irr: 0, irq_base: 0x20, imr: 0 });
        vm.call(vm.fd, Ioctl.KVM_SET_IRQCHIP, bytes);
      };
      // The guest ends the interrupt of line 5: mov al, 0x65; out 0x20, al
      vm.load([0xb0, 0x65, 0xe6, 0x20, ...OUT]);
      await vm.roundTrip(async () => {
        quiet();
        kernel.eventfds.get(edge)!.signal();
        assert.equal(requests(vm) & 0x28, 0x08, "one edge, from one side");
        kernel.eventfds.get(level)!.signal();
        assert.equal(requests(vm) & 0x28, 0x28);
        vm.startReal();
        assert.equal(await vm.enter(), "KVM_EXIT_IO");
        assert.equal(requests(vm) & 0x20, 0);
        assert.equal(kernel.eventfds.get(resample)!.take(), 1n);
      });
      assert.equal(kernel.eventfdReferences, 3);
    },
  },
];
