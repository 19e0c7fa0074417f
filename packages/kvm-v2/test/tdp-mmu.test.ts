import { describe, expect, test } from "vitest";
import { InThreadKernel } from "../../kvm-v1/test/in-thread-kernel.ts";
import { TestVm } from "../../kvm-v1/test/test-vm.ts";
import v2 from "../src/index.ts";
import { EPT } from "../src/mmu/ept-entry.ts";
import { TdpIterator } from "../src/mmu/tdp-iterator.ts";
import { Vm } from "../src/vm.ts";

const LARGE = 1 << 7;
const WRITE = 2;

/** Leaves of a VM's tables: first frame, level, rights to write. */
function leaves(vm: TestVm): { gfn: number; level: number; writable: boolean }[] {
  const state = vm.kernel.file(vm.fd).privateData as Vm;
  expect(state).toBeInstanceOf(Vm);
  const root = Number(state.mmu.rootPointer & 0xffff_ffff_f000n);
  const found: { gfn: number; level: number; writable: boolean }[] = [];
  for (const at = new TdpIterator(vm.kernel.bank.u32, state.vendor.format, root, 0, 2 ** 20); !at.done; at.advance()) {
    if (at.leaf) found.push({ gfn: at.gfn, level: at.level, writable: (at.low & WRITE) !== 0 });
  }
  return found;
}

function start(parameters: Record<string, boolean | number> = {}): TestVm {
  const kernel = new InThreadKernel();
  return new TestVm(kernel, kernel.load("kvm2", v2, parameters));
}

describe("the MMU of v2", () => {
  test("maps aligned memory with large pages, and with small ones where it is told to", async () => {
    const large = start();
    large.load([0xe6, 0xe9]);
    large.startReal();
    await large.enter();
    expect(leaves(large)).toEqual([{ gfn: 0, level: 2, writable: true }]);
    const small = start({ huge_pages: false });
    small.load([0xe6, 0xe9]);
    small.startReal();
    await small.enter();
    expect(leaves(small)).toEqual([{ gfn: 8, level: 1, writable: true }]);
  });

  test("splits large pages when a slot begins to be logged, and maps large again afterwards", async () => {
    const vm = start({ pml: false });
    vm.load([0xa2, 0x00, 0x05, 0xe6, 0xe9, 0xa2, 0x00, 0x05, 0xe6, 0xe9]); // mov [0x500], al; out; twice
    vm.startReal();
    await vm.enter();
    const region = { memory_size: 0x40_0000n };
    expect(vm.setRegion({ ...region, flags: 1 })).toBe(0);
    expect(leaves(vm)).toHaveLength(512);
    expect(leaves(vm).some((leaf) => leaf.writable)).toBe(false);
    await vm.enter();
    expect(leaves(vm).filter((leaf) => leaf.writable)).toEqual([{ gfn: 0, level: 1, writable: true }]);
    expect(vm.setRegion({ ...region, flags: 0 })).toBe(0);
    expect(leaves(vm)).toEqual([]);
    vm.load([0xe6, 0xe9], 0x8000);
    vm.startReal();
    await vm.enter();
    expect(leaves(vm)).toEqual([{ gfn: 0, level: 2, writable: true }]);
    vm.close();
    expect(vm.kernel.pagesOut).toBe(0);
  });

  test("builds all tables before a VM arrives, and gives freed tables back", async () => {
    const vm = start();
    const instance = vm.kernel.load("other", v2);
    const description = {
      sections: [],
      // Without vCPUs, which need pages of their own
      early: vm.kernel
        .load("third", v2)
        .transfer.describe(vm.kernel.file(vm.fd), [])
        .early.filter(({ name }) => name.startsWith("vm.")),
    };
    const before = vm.kernel.pagesOut;
    const incoming = await instance.transfer.prepare(vm.kernel.process, description);
    expect(typeof incoming).toBe("object");
    // Root, three levels down to one table of large pages
    expect(vm.kernel.pagesOut - before).toBe(3);
    if (typeof incoming === "object") incoming.abort();
    expect(vm.kernel.pagesOut).toBe(before);
  });
});

test("the iterator visits the entries of a range in order, tables before what they hold", () => {
  const words = new Uint32Array(0x8000 / 4);
  const set = (table: number, index: number, low: number): void => {
    words[(table + index * 8) / 4] = low;
  };
  set(0x1000, 0, 0x2007);
  set(0x2000, 0, 0x3007);
  set(0x3000, 0, 0x20_0007 | LARGE);
  set(0x3000, 1, 0x4007);
  set(0x4000, 511, 0x5007);
  const seen: string[] = [];
  for (const at = new TdpIterator(words, EPT, 0x1000, 510, 1026); !at.done; at.advance()) {
    if (at.present) seen.push(`${at.level}:${at.gfn}`);
  }
  expect(seen).toEqual(["4:0", "3:0", "2:0", "2:512", "1:1023"]);
});
