/**
 * Guests that do all sorts of things with their local APIC, under both versions and with version 2's virtualization of it off: memory,
 * registers, the APIC's own state and the TSC must agree, since a VM moves from one to the other and back.
 */
import { Ioctl, KvmLapicState } from "@mkvm/kvm-abi";
import { VcpuStat } from "@mkvm/kvm-core";
import { describe, expect, test } from "vitest";
import { chooseSeed, type Random, seededRandom } from "../../hw-x86/test/random.ts";
import v2 from "../../kvm-v2/src/index.ts";
import type { Vcpu } from "../../kvm-v2/src/vcpu.ts";
import v1 from "../src/index.ts";
import { InThreadKernel } from "./in-thread-kernel.ts";
import { TestVm } from "./test-vm.ts";

const IDT = 0x5000;
const LOG = 0x10_0000;
const HANDLERS = 0x2_0000;
const VECTORS = [0x21, 0x2f, 0x30, 0x41, 0x4e, 0x66, 0x83, 0xa0, 0xc5, 0xef, 0xfe];
const APIC = 0xfee0_0000;
const IOAPIC = 0xfec0_0000;

const little = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
const setEax = (value: number): number[] => [0xb8, ...little(value)];
/** mov ebx, address; mov [rbx], eax */
const storeAt = (address: number): number[] => [0xbb, ...little(address), 0x89, 0x03];
/** mov ebx, address; mov eax, [rbx] */
const loadAt = (address: number): number[] => [0xbb, ...little(address), 0x8b, 0x03];
/** mov ecx, index; xor edx, edx; wrmsr */
const writeMsr = (index: number): number[] => [0xb9, ...little(index), 0x31, 0xd2, 0x0f, 0x30];
const readMsr = (index: number): number[] => [0xb9, ...little(index), 0x0f, 0x32];
/** mov [rdi], eax; add rdi, 4 */
const KEEP = [0x89, 0x07, 0x48, 0x83, 0xc7, 4];
/** Behind four pushes of a handler: where it was called. */
const KEEP_RIP = [0x8b, 0x44, 0x24, 0x20, ...KEEP];
const KEEP_TSC = [0x0f, 0x31, ...KEEP];
const STI = 0xfb;
const CLI = 0xfa;
const NOP = 0x90;
const END = [0xe6, 0x10];

class Program {
  readonly isX2apic: boolean;
  constructor(isX2apic: boolean) {
    this.isX2apic = isX2apic;
  }
  write(register: number, value: number): number[] {
    return [...setEax(value), ...(this.isX2apic ? writeMsr(0x800 + (register >>> 4)) : storeAt(APIC + register))];
  }
  read(register: number): number[] {
    return [...(this.isX2apic ? readMsr(0x800 + (register >>> 4)) : loadAt(APIC + register)), ...KEEP];
  }
  selfIpi(vector: number): number[] {
    return this.isX2apic ? this.write(0x3f0, vector) : this.write(0x300, 0x4_4000 | vector);
  }
  /** Keeps vector and time; every second one lets others in before its EOI. */
  handler(vector: number): number[] {
    const nests = vector % 2 === 0 ? [STI, NOP, NOP, CLI] : [];
    const saved = [0x50, 0x53, 0x51, 0x52];
    const restored = [0x5a, 0x59, 0x5b, 0x58];
    return [
      ...saved,
      ...setEax(vector),
      ...KEEP,
      ...KEEP_RIP,
      ...KEEP_TSC,
      ...nests,
      ...this.write(0xb0, 0),
      ...restored,
      0x48,
      0xcf,
    ];
  }
  start(): number[] {
    const enable = this.isX2apic ? [...readMsr(0x1b), 0x0d, ...little(0x400), 0x0f, 0x30] : [];
    return [...enable, ...this.write(0xf0, 0x1ff), ...this.write(0x80, 0)];
  }
  step({ pick, below }: Random): number[] {
    const vector = pick(VECTORS);
    const readable = [
      0x20, 0x30, 0x80, 0xa0, 0xd0, 0xf0, 0x100, 0x120, 0x140, 0x1a0, 0x200, 0x210, 0x220, 0x280, 0x320, 0x350, 0x380, 0x390,
    ];
    switch (below(16)) {
      case 0:
      case 1:
      case 2:
        return this.selfIpi(vector);
      case 3:
        return this.write(0x80, pick([0, 0x1f, 0x20, 0x35, 0x80, 0xf0]));
      case 4: // mov cr8, rax; mov rax, cr8
        return [...setEax(pick([0, 2, 4, 9, 15])), 0x44, 0x0f, 0x22, 0xc0, 0x44, 0x0f, 0x20, 0xc0, ...KEEP];
      case 5:
        return [STI, NOP];
      case 6:
        return [CLI];
      case 7:
      case 8:
        return this.read(pick(readable));
      case 9:
        return KEEP_TSC;
      case 10:
        return this.write(pick([0x330, 0x340, 0x350, 0x370]), 0x1_0000 | vector);
      case 11:
        return this.write(0xb0, 0);
      case 12:
        return this.write(0x280, 0);
      case 13: // a one-shot timer, which may well fire
        return [...this.write(0x320, vector), ...this.write(0x3e0, 0xb), ...this.write(0x380, pick([0, 50, 3000]))];
      case 14: // to all, self included
        return this.isX2apic ? [NOP] : this.write(0x300, 0x8_4000 | vector);
      default: // a pin of the I/O APIC whose EOI matters
        return [...setEax(0x10 + 2 * 3), ...storeAt(IOAPIC), ...setEax(0x1_8000 | vector), ...storeAt(IOAPIC + 0x10)];
    }
  }
}

interface Outcome {
  memory: string;
  lapic: string;
  registers: object;
  tsc: number;
  exits: number;
}

const modules = { v1, "v2 with the local APIC in software": v2, v2 } as const;

async function run(name: keyof typeof modules, isX2apic: boolean, code: readonly number[]): Promise<Outcome> {
  const kernel = new InThreadKernel("intel");
  const parameters = name === "v2" || name === "v1" ? {} : { enable_apicv: false };
  const vm = new TestVm(kernel, kernel.load("kvm", modules[name] as never, parameters), { irqchip: true });
  const program = new Program(isX2apic);
  for (const vector of VECTORS) {
    const handler = HANDLERS + vector * 256;
    vm.load(program.handler(vector), handler);
    vm.write64(IDT + vector * 16, (BigInt(handler >>> 16) << 48n) | 0x8e00_0008_0000n | BigInt(handler & 0xffff));
    vm.write64(IDT + vector * 16 + 8, 0n);
  }
  // Where CS and SS are found again at the end of a handler
  vm.write64(0x6800, 0n);
  vm.write64(0x6808, 0x00af_9b00_0000_ffffn);
  vm.write64(0x6810, 0x00cf_9300_0000_ffffn);
  vm.load(code);
  vm.startLong({ rdi: BigInt(LOG), rsp: 0x7_0000n });
  const sregs = vm.sregs();
  sregs.idt.base = BigInt(IDT);
  sregs.idt.limit = 0xfff;
  sregs.gdt.base = 0x6800n;
  sregs.gdt.limit = 0x17;
  vm.setSregs(sregs);
  expect(await vm.enter(), kernel.log.join("\n")).toBe("KVM_EXIT_IO");
  expect(vm.io.port).toBe(0x10);
  const lapic = new Uint8Array(KvmLapicState.sizeBytes);
  expect(kernel.ioctl(vm.vcpu, Ioctl.KVM_GET_LAPIC, lapic)).toBe(0);
  const memory = kernel.bank.u8.slice(vm.memory + LOG, vm.memory + LOG + 0x4000);
  const { words } = (kernel.file(vm.vcpu).privateData as Vcpu).statistics;
  return {
    memory: Buffer.from(memory).toString("hex"),
    lapic: Buffer.from(lapic).toString("hex"),
    registers: vm.regs(),
    tsc: kernel.cpu.rdtsc(),
    exits: words[VcpuStat.exits]!,
  };
}

describe.each([
  ["xAPIC", false],
  ["x2APIC", true],
] as const)("a guest in %s mode", (_mode, isX2apic) => {
  test("finds the same under both versions, in fewer exits where the processor has its APIC in hand", async () => {
    const seed = chooseSeed();
    const random = seededRandom(seed);
    for (let round = 0; round < 3; round++) {
      const program = new Program(isX2apic);
      const code = program.start();
      while (code.length < 1500) code.push(...program.step(random));
      code.push(...program.write(0x320, 0x1_0000), STI, NOP, CLI, ...END);
      const plain = await run("v1", isX2apic, code);
      const software = await run("v2 with the local APIC in software", isX2apic, code);
      const hardware = await run("v2", isX2apic, code);
      const same = ({ exits: _, ...rest }: Outcome): object => rest;
      expect(same(software), `seed ${seed}, round ${round}`).toEqual(same(plain));
      expect(same(hardware), `seed ${seed}, round ${round}`).toEqual(same(plain));
      expect(hardware.exits).toBeLessThan(software.exits);
    }
  });
});
