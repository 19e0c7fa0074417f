/** XSAVE state of a guest: KVM_GET/SET_XSAVE and XCRS, what the guest makes of it, and moves between versions. */
import { differenceOf, Ioctl, KvmXcrs, type ModuleInstance, type SectionSupport } from "@mkvm/kvm-abi";
import { beforeEach, describe, expect, test } from "vitest";
import v2 from "../../kvm-v2/src/index.ts";
import v1 from "../src/index.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { TestVm } from "./test-vm.ts";

const EINVAL = -22;
const XSTATE_BV = 512;
const AREA = 0x20_0000;
const OUT = [0xe6, 0xe9];
/** mov rax, cr4; or eax, OSXSAVE; mov cr4, rax; xor ecx, ecx; xor edx, edx; mov eax, 7; xsetbv */
const ENABLE = [
  ...[0x0f, 0x20, 0xe0, 0x0d, 0, 0, 4, 0, 0x0f, 0x22, 0xe0],
  ...[0x31, 0xc9, 0x31, 0xd2, 0xb8, 7, 0, 0, 0, 0x0f, 0x01, 0xd1],
];
/** OSXSAVE and PKE, XCR0 of x87, SSE, AVX and PKRU. */
const ENABLE_KEYS = [
  ...[0x0f, 0x20, 0xe0, 0x0d, 0, 0, 0x44, 0, 0x0f, 0x22, 0xe0],
  ...[0x31, 0xc9, 0x31, 0xd2, 0xb8, 7, 2, 0, 0, 0x0f, 0x01, 0xd1],
];
/** mov eax, RIGHTS; xor edx, edx; xor ecx, ecx; wrpkru */
const RIGHTS = 0x5555_5550;
const WRITE_RIGHTS = [0xb8, 0x50, 0x55, 0x55, 0x55, 0x31, 0xd2, 0x31, 0xc9, 0x0f, 0x01, 0xef];
/** xor ecx, ecx; rdpkru; mov [rbx], eax */
const READ_RIGHTS = [0x31, 0xc9, 0x0f, 0x01, 0xee, 0x89, 0x03];
const PKRU_AT = 2688;
const PKRU_BIT = 0x200;
const XSAVE_AT_RBX = [0xb8, 7, 0, 0, 0, 0x31, 0xd2, 0x48, 0x0f, 0xae, 0x23];
const XRSTOR_AT_RBX = [0xb8, 7, 0, 0, 0, 0x31, 0xd2, 0x48, 0x0f, 0xae, 0x2b];

let kernel: InThreadKernel;
let kvm1: ModuleInstance;
let kvm2: ModuleInstance;

beforeEach(() => {
  kernel = new InThreadKernel();
  kvm1 = kernel.load("kvm1", v1);
  kvm2 = kernel.load("kvm2", v2);
});

const getXsave = (vm: TestVm): Uint8Array => {
  const image = new Uint8Array(4096);
  expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_GET_XSAVE, image)).toBe(0);
  return image;
};
const setXsave = (vm: TestVm, image: Uint8Array): number => kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_XSAVE, image);
const setXcr0 = (vm: TestVm, value: bigint): number =>
  kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_XCRS, KvmXcrs.encode({ nr_xcrs: 1, xcrs: [{ xcr: 0, reserved: 0, value }] }));
const xcr0 = (vm: TestVm): bigint => {
  const bytes = new Uint8Array(KvmXcrs.sizeBytes);
  expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_GET_XCRS, bytes)).toBe(0);
  return KvmXcrs.read(bytes).xcrs[0]!.value;
};
const xstateBv = (image: Uint8Array): number => new DataView(image.buffer).getUint32(XSTATE_BV, true);

/** An image with the numbers 1, 2, ... in the upper halves of YMM. */
function withYmm(image: Uint8Array): Uint8Array {
  const changed = image.slice();
  for (let at = 576; at < 832; at++) changed[at] = at & 0xff;
  changed[XSTATE_BV]! |= 4;
  return changed;
}

async function move(vm: TestVm, from: ModuleInstance, to: ModuleInstance, receives = to.transfer.receives): Promise<number> {
  const file = kernel.file(vm.fd);
  const incoming = await to.transfer.prepare(kernel.process, from.transfer.describe(file, receives));
  if (typeof incoming === "string") throw new Error(incoming);
  const sections = from.transfer.save(file, receives);
  expect(incoming.restore(sections)).toBeUndefined();
  expect(differenceOf(sections, incoming.save())).toBeUndefined();
  const changed = [...from.transfer.filesOf(file), kernel.file(vm.system)].map((each) => ({
    each: kernel.file([vm.fd, vm.vcpu, vm.system].find((fd) => kernel.file(fd) === each)!),
    ...incoming.commit(from.transfer.roleOf(each)),
  }));
  from.transfer.releaseMoved(file)?.();
  for (const { each, operations, privateData } of changed) Object.assign(each, { operations, privateData });
  return sections.find(({ name }) => name === "vcpu.fpu")!.version;
}

describe.each([
  ["version 1", () => kvm1],
  ["version 2", () => kvm2],
] as const)("%s", (_name, instance) => {
  test("takes an image and gives it back, in one form", () => {
    const vm = new TestVm(kernel, instance());
    const initial = getXsave(vm);
    expect(xstateBv(initial)).toBe(3);
    const image = withYmm(initial);
    image[500] = 1; // software's own
    expect(setXsave(vm, image)).toBe(0);
    image[500] = 0;
    expect(getXsave(vm)).toEqual(image);
    // Absent components are as after reset
    image[XSTATE_BV] = 0;
    expect(setXsave(vm, image)).toBe(0);
    expect(getXsave(vm)).toEqual(initial);
  });

  test("refuses components that are not there, the compacted format, and MXCSR's reserved bits", () => {
    const vm = new TestVm(kernel, instance());
    const initial = getXsave(vm);
    for (const [at, value] of [
      [XSTATE_BV, 0x0b],
      [XSTATE_BV + 7, 0x80],
      [XSTATE_BV + 15, 0x80],
      [XSTATE_BV + 20, 1],
      [26, 1],
    ] as const) {
      const image = initial.slice();
      image[at] = value;
      expect(setXsave(vm, image)).toBe(EINVAL);
    }
    expect(getXsave(vm)).toEqual(initial);
  });

  test("XCR0 follows the rules of XSETBV", () => {
    const vm = new TestVm(kernel, instance());
    expect(xcr0(vm)).toBe(1n);
    for (const good of [3n, 7n, 1n]) {
      expect(setXcr0(vm, good)).toBe(0);
      expect(xcr0(vm)).toBe(good);
    }
    for (const bad of [0n, 2n, 5n, 0x17n]) expect(setXcr0(vm, bad)).toBe(EINVAL);
    expect(xcr0(vm)).toBe(1n);
  });

  test("the guest sets XCR0, saves what user space has set, and user space sees what it restores", async () => {
    const vm = new TestVm(kernel, instance());
    vm.load([...ENABLE, ...XSAVE_AT_RBX, ...OUT, ...XRSTOR_AT_RBX, ...OUT]);
    vm.startLong({ rbx: BigInt(AREA) });
    expect(setXsave(vm, withYmm(getXsave(vm)))).toBe(0);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(xcr0(vm)).toBe(7n);
    const area = kernel.bank.u8.subarray(vm.memory + AREA, vm.memory + AREA + 4096);
    expect(area.slice(576, 832)).toEqual(withYmm(new Uint8Array(4096)).slice(576, 832));
    area[580] = 0x5a;
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(getXsave(vm)[580]).toBe(0x5a);
  });
});

describe("moves", () => {
  const onlyFxsave = (receives: readonly SectionSupport[]): SectionSupport[] =>
    receives.map((each) => (each.name === "vcpu.fpu" ? { ...each, maxVersion: 1 } : each));

  test("carry everything, there and back", async () => {
    const vm = new TestVm(kernel, kvm1);
    vm.load([...ENABLE, ...OUT, ...XSAVE_AT_RBX, ...OUT]);
    vm.startLong({ rbx: BigInt(AREA) });
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    const image = withYmm(getXsave(vm));
    expect(setXsave(vm, image)).toBe(0);
    expect(await move(vm, kvm1, kvm2)).toBe(2);
    expect(getXsave(vm)).toEqual(image);
    expect(xcr0(vm)).toBe(7n);
    expect(await move(vm, kvm2, kvm1)).toBe(2);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(kernel.bank.u8[vm.memory + AREA + 600]).toBe(600 & 0xff);
  });

  test.each([
    ["up", () => [kvm1, kvm2]],
    ["down", () => [kvm2, kvm1]],
  ] as const)("carry the rights of protection keys: %s", async (_direction, modules) => {
    const [from, to] = modules() as [ModuleInstance, ModuleInstance];
    const vm = new TestVm(kernel, from);
    vm.load([...ENABLE_KEYS, ...WRITE_RIGHTS, ...OUT, ...READ_RIGHTS, ...OUT, ...READ_RIGHTS, ...OUT]);
    vm.startLong({ rbx: BigInt(AREA) });
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(xcr0(vm)).toBe(0x207n);
    const image = getXsave(vm);
    expect(xstateBv(image) & PKRU_BIT).toBe(PKRU_BIT);
    expect(new DataView(image.buffer).getUint32(PKRU_AT, true)).toBe(RIGHTS);
    await move(vm, from, to);
    const seen = (): number => kernel.bank.view.getUint32(vm.memory + AREA, true);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(seen()).toBe(RIGHTS);
    // User space changes them as well
    new DataView(image.buffer).setUint32(PKRU_AT, 0xc, true);
    expect(setXsave(vm, image)).toBe(0);
    expect(await vm.enter()).toBe("KVM_EXIT_IO");
    expect(seen()).toBe(0xc);
  });

  test("go to a module of before as long as the guest cannot have more than SSE", async () => {
    const vm = new TestVm(kernel, kvm1);
    const receives = onlyFxsave(kvm2.transfer.receives);
    const file = kernel.file(vm.fd);
    // CPUID offers AVX: the section comes in version 2, which such a module refuses
    const offered = kvm1.transfer.describe(file, receives).sections.find(({ name }) => name === "vcpu.fpu")!;
    expect(offered.version).toBe(2);
    // A table with nothing but leaf 0
    const table = new Uint8Array(8 + 40);
    table[0] = 1;
    expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_SET_CPUID2, table)).toBe(0);
    const image = getXsave(vm);
    image.fill(7, 160, 416);
    expect(setXsave(vm, image)).toBe(0);
    const early = kvm1.transfer.describe(file, receives).early.find(({ name }) => name === "vm.shape")!;
    expect(early.bytes[8]).toBe(1);
    expect(await move(vm, kvm1, kvm2, receives)).toBe(1);
    expect(getXsave(vm)).toEqual(image);
    expect(await move(vm, kvm2, kvm1)).toBe(2);
    expect(getXsave(vm)).toEqual(image);
    // Hidden state counts, whatever XCR0 says
    expect(setXsave(vm, withYmm(image))).toBe(0);
    expect(kvm1.transfer.describe(file, receives).sections.find(({ name }) => name === "vcpu.fpu")!.version).toBe(2);
  });
});
