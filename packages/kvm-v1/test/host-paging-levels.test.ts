/** Both versions on hosts whose own paging has five levels: nested page tables have as many then, EPT has four whatever the host has. */
import { Ioctl, type KernelModule, KvmDirtyLog } from "@mkvm/kvm-abi";
import { describe, expect, test } from "vitest";
import v2 from "../../kvm-v2/src/index.ts";
import v1 from "../src/index.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { MovingVm } from "./moved-state/moving-vm.ts";
import { GUEST_BYTES, TestVm } from "./test-vm.ts";

const OUT = [0xe6, 0x10];
const STORE_AT = 0x20_0000;
/** mov [STORE_AT], eax */
const STORE = [0x89, 0x04, 0x25, 0, 0, 0x20, 0];
const SECOND_SLOT = 0x100_0000;
/** mov [SECOND_SLOT], eax */
const STORE_THERE = [0x89, 0x04, 0x25, 0, 0, 0, 1];

const cases = (["intel", "amd"] as const).flatMap((vendor) =>
  ([v1, v2] as KernelModule<never, never>[]).map((module, i) => ({ vendor, module, version: i + 1 })),
);

describe.each(cases)("version $version on $vendor", ({ vendor, module }) => {
  test("maps, logs and takes away a guest's memory", async () => {
    const kernel = new InThreadKernel(vendor, 5);
    const vm = new TestVm(kernel, kernel.load("kvm", module as never));
    vm.load([...STORE, ...OUT, ...STORE, ...OUT, ...STORE_THERE, ...OUT, ...STORE_THERE, ...OUT]);
    vm.startLong({ rax: 0x1234_5678n });
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.u32(STORE_AT)).toBe(0x1234_5678);
    expect(vm.setRegion({ memory_size: BigInt(GUEST_BYTES), flags: 1 })).toBe(0);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    const bitmap = kernel.mmap(4096);
    expect(kernel.ioctl(vm.fd, Ioctl.KVM_GET_DIRTY_LOG, KvmDirtyLog.encode({ slot: 0, dirty_bitmap: BigInt(bitmap) }))).toBe(0);
    expect(kernel.bank.u8[bitmap + (STORE_AT >>> 15)]).toBe(1);
    const region = {
      slot: 1,
      guest_phys_addr: BigInt(SECOND_SLOT),
      memory_size: 0x1000n,
      userspace_addr: BigInt(kernel.mmap(4096)),
    };
    expect(vm.setRegion(region)).toBe(0);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.setRegion({ ...region, memory_size: 0n })).toBe(0);
    expect(await vm.enter()).toBe("KVM_EXIT_MMIO");
    vm.close();
  });
});

test.each(["intel", "amd"] as const)("a VM moves between the versions, there and back, on %s", async (vendor) => {
  const kernel = new InThreadKernel(vendor, 5);
  const pair = { kernel, kvm1: kernel.load("kvm1", v1), kvm2: kernel.load("kvm2", v2) };
  const vm = new MovingVm(pair, vendor, {});
  vm.load([...STORE, ...OUT, ...STORE, ...OUT, ...STORE, ...OUT]);
  vm.startLong();
  let value = 0n;
  await vm.roundTrip(async () => {
    vm.setRegs({ ...vm.regs(), rax: ++value });
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(vm.u32(STORE_AT)).toBe(Number(value));
  });
  expect(value).toBe(3n);
  vm.close();
});
