/** AVIC under SVM: accesses to the backing page, delivery from it, IPIs by its tables, and what is left to software. */
import { describe, expect, it } from "vitest";
import { hpa } from "../src/addresses.ts";
import { createLogicalCpu } from "../src/create-logical-cpu.ts";
import { Engine } from "../src/engine/engine.ts";
import { createMachine } from "../src/machine.ts";
import { Control, ExitCode, Intercept3, Save } from "../src/svm/vmcb.ts";
import { APIC, readApic, writeApic } from "./apic-harness.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { BANK, CODE, SvmHarness } from "./svm-harness.ts";

const HLT = 0xf4;
const STI = 0xfb;
const CLI = 0xfa;
const NOP = 0x90;
const CPUID = [0x0f, 0xa2];
const IRET = [0x48, 0xcf];
const EOI = writeApic(0xb0, 0);
const IDT = 0x6000;
const GDT = 0x5000;
const HANDLER = 0x9000;
const LOW = 0x41;
const HIGH = 0x83;
const DOORBELL = 0xc001_011b;
const V_MASKING = 1 << 24;
const AVIC = 1 << 31;
const VALID = 0x8000_0000;
const IS_RUNNING = 0x4000_0000;
const handlerOf = (vector: number): number => HANDLER + (vector << 4) * 4;
const DONE = { code: ExitCode.hlt };

class AvicHarness extends SvmHarness {
  readonly backing: number;
  readonly physicalTable: number;
  readonly logicalTable: number;

  constructor(code: readonly number[], pending: readonly number[] = []) {
    super({
      mode: "long",
      engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
    });
    this.load(code);
    this.backing = this.page();
    this.physicalTable = this.page();
    this.logicalTable = this.page();
    this.set32(Control.V_INTERRUPT, (V_MASKING | AVIC) >>> 0);
    this.set64(Control.AVIC_BAR, APIC);
    this.set64(Control.AVIC_BACKING_PAGE, hpa(BANK, this.backing));
    this.set64(Control.AVIC_PHYSICAL_TABLE, hpa(BANK, this.physicalTable) + 7);
    this.set64(Control.AVIC_LOGICAL_TABLE, hpa(BANK, this.logicalTable));
    this.setRegister(this.backing, 0xe0, 0xffff_ffff);
    this.addId(0, this.backing, true, 0);
    for (const vector of [LOW, HIGH]) {
      const gate = (this.guestMemory + IDT + vector * 16) >>> 2;
      this.bank.u32[gate] = (0x10 << 16) | (handlerOf(vector) & 0xffff);
      this.bank.u32[gate + 1] = (handlerOf(vector) & 0xffff_0000) | 0x8e00;
      // inc dword [counter]; mov [last], vector; EOI; iretq
      this.load(
        [0xff, 0x04, 0x25, 0, 0x40, 0, 0, 0xc7, 0x04, 0x25, 4, 0x40, 0, 0, vector, 0, 0, 0, ...EOI, ...IRET],
        handlerOf(vector),
      );
    }
    this.bank.view.setBigUint64(this.guestMemory + GDT + 0x10, 0x00af_9b00_0000_ffffn, true);
    this.bank.view.setBigUint64(this.guestMemory + GDT + 0x18, 0x00cf_9300_0000_ffffn, true);
    this.setSegment(Save.IDTR, 0, 0, 0xfff, IDT);
    this.setSegment(Save.GDTR, 0, 0, 0x1f, GDT);
    this.set64(Save.RFLAGS, 0x202);
    for (const vector of pending) this.request(vector);
  }

  register(page: number, offset: number): number {
    return this.bank.u32[(page + offset) >>> 2] as number;
  }
  setRegister(page: number, offset: number, value: number): void {
    this.bank.u32[(page + offset) >>> 2] = value;
  }
  has(block: number, vector: number, page = this.backing): boolean {
    return ((this.register(page, block + (vector >>> 5) * 16) >>> (vector & 31)) & 1) !== 0;
  }
  mark(block: number, vector: number): void {
    const at = block + (vector >>> 5) * 16;
    this.setRegister(this.backing, at, (this.register(this.backing, at) | (1 << (vector & 31))) >>> 0);
  }
  request(vector: number): void {
    this.mark(0x200, vector);
  }
  /** An entry of the physical table. */
  addId(id: number, page: number, isRunning: boolean, host: number): void {
    this.bank.u32[(this.physicalTable >>> 2) + 2 * id] = page | host;
    this.bank.u32[(this.physicalTable >>> 2) + 2 * id + 1] = (VALID | (isRunning ? IS_RUNNING : 0) | BANK) >>> 0;
  }
  addLogical(index: number, id: number): void {
    this.bank.u32[(this.logicalTable >>> 2) + index] = (VALID | id) >>> 0;
  }
  at(rip: number): this {
    this.set64(Save.RIP, rip);
    return this;
  }
  get served(): { count: number; last: number } {
    return { count: this.guestU32(0x4000), last: this.guestU32(0x4004) };
  }
}

describe("registers of the local APIC", () => {
  const noAcceleration = (offset: number, isWrite: boolean, vector = 0): object => ({
    code: ExitCode.avicNoAcceleration,
    info1: BigInt(offset) | (isWrite ? 1n << 32n : 0n),
    info2: BigInt(vector),
  });
  const readable = [
    0x20, 0x30, 0x80, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0, 0x100, 0x170, 0x180, 0x1f0, 0x270, 0x280, 0x300, 0x310, 0x320, 0x370,
    0x380, 0x3e0,
  ];
  const hidden = [0x00, 0x90, 0x290, 0x2f0, 0x390, 0x3f0, 0x400];
  const trapped = [0x20, 0xc0, 0xd0, 0xe0, 0xf0, 0x280, 0x320, 0x330, 0x350, 0x370, 0x380, 0x3e0];
  const unwritable = [...hidden, 0x30, 0xa0, 0x100, 0x180, 0x200, 0x270];

  it("are read from the backing page, but for those that exit before the access", () => {
    const h = new AvicHarness([HLT]);
    for (const offset of readable) {
      if (offset !== 0xa0 && offset < 0x100) h.setRegister(h.backing, offset, 0x100 + offset);
      const expected = offset === 0xa0 ? undefined : h.register(h.backing, offset);
      h.load([...readApic(offset), HLT]);
      expect(h.at(CODE).run(), `0x${offset.toString(16)}`).toMatchObject(DONE);
      if (expected !== undefined) expect(h.get64(Save.RAX)).toBe(BigInt(expected));
      if (offset !== 0xe0) h.setRegister(h.backing, offset, 0);
    }
    for (const offset of hidden) {
      h.load([...readApic(offset), HLT]);
      expect(h.at(CODE).run(), `0x${offset.toString(16)}`).toMatchObject({ ...noAcceleration(offset, false), rip: CODE });
    }
  });

  it("are written there, with an exit behind those that do something, and before those that cannot", () => {
    const h = new AvicHarness([HLT]);
    for (const offset of trapped) {
      const code = writeApic(offset, 0x1234);
      h.load([...code, HLT]);
      expect(h.at(CODE).run()).toMatchObject({ ...noAcceleration(offset, true), rip: CODE + code.length });
      expect(h.register(h.backing, offset)).toBe(0x1234);
    }
    for (const offset of unwritable) {
      const before = h.register(h.backing, offset);
      h.load([...writeApic(offset, 0x1234), HLT]);
      expect(h.at(CODE).run()).toMatchObject({ ...noAcceleration(offset, true), rip: CODE });
      expect(h.register(h.backing, offset)).toBe(before);
    }
    h.load([...writeApic(0x310, 0x0500_0000), HLT]);
    expect(h.at(CODE).run()).toMatchObject(DONE);
    expect(h.register(h.backing, 0x310)).toBe(0x0500_0000);
  });

  it("want whole, aligned words", () => {
    // mov al, [APIC + 0x80]; mov eax, [APIC + 0x82]; mov rax, [APIC + 0x80]
    for (const code of [
      [0x8a, 0x04, 0x25, 0x80, 0, 0x20, 0],
      [0x8b, 0x04, 0x25, 0x82, 0, 0x20, 0],
      [0x48, 0x8b, 0x04, 0x25, 0x80, 0, 0x20, 0],
    ])
      expect(new AvicHarness(code).run()).toMatchObject({ code: ExitCode.avicNoAcceleration, rip: CODE });
  });

  it("are where the VMCB says, in pages that nested paging maps, and nowhere with AVIC off", () => {
    const h = new AvicHarness([...readApic(0x30), HLT]);
    h.setRegister(h.backing, 0x30, 0x1_0014);
    h.bank.u32[(h.guestMemory + APIC + 0x30) >>> 2] = 7;
    h.run();
    expect(h.get64(Save.RAX)).toBe(0x1_0014n);
    h.set32(Control.V_INTERRUPT, V_MASKING);
    h.at(CODE).run();
    expect(h.get64(Save.RAX)).toBe(7n);
    h.set32(Control.V_INTERRUPT, (V_MASKING | AVIC) >>> 0);
    h.setEntry(h.nptEntry(APIC), 0);
    h.set8(Control.TLB_CONTROL, 3);
    expect(h.at(CODE).run()).toMatchObject({ code: ExitCode.nestedPageFault, info2: BigInt(APIC + 0x30) });
  });

  it("do not move the TSC under icount when they are virtualized", () => {
    const h = new AvicHarness([...writeApic(0x80, 0x20), ...readApic(0x80), NOP, HLT]);
    expect(h.run()).toMatchObject(DONE);
    expect([h.cpu.retiredInstructions(), h.cpu.rdtsc()]).toEqual([3, 20]);
  });
});

describe("task priority", () => {
  it("is V_TPR, CR8 and the register at once where the guest writes it, and V_TPR where VMRUN begins", () => {
    // mov rax, cr8; then the register; then mov cr8, 3
    const h = new AvicHarness([
      0x44,
      0x0f,
      0x20,
      0xc0,
      ...CPUID,
      ...writeApic(0x80, 0x75),
      0x44,
      0x0f,
      0x20,
      0xc0,
      ...CPUID,
      0xb8,
      3,
      0,
      0,
      0,
      0x44,
      0x0f,
      0x22,
      0xc0,
      HLT,
    ]);
    h.set32(Control.V_INTERRUPT, (V_MASKING | AVIC | 9) >>> 0);
    expect(h.run()).toMatchObject({ code: ExitCode.cpuid });
    expect([h.get64(Save.RAX), h.register(h.backing, 0xa0)]).toEqual([9n, 0x90]);
    h.skip();
    h.run();
    expect([h.get64(Save.RAX), h.get32(Control.V_INTERRUPT) & 15, h.register(h.backing, 0xa0)]).toEqual([7n, 7, 0x75]);
    h.skip();
    expect(h.run()).toMatchObject(DONE);
    expect([h.register(h.backing, 0x80), h.get32(Control.V_INTERRUPT) & 15]).toEqual([0x30, 3]);
  });
});

describe("a pending interrupt", () => {
  it("is delivered at VMRUN, in service while its handler runs, and gone behind its EOI", () => {
    const h = new AvicHarness([NOP, HLT], [LOW]);
    h.load([...CPUID, ...EOI, ...CPUID, ...IRET], handlerOf(LOW));
    expect(h.run()).toMatchObject({ code: ExitCode.cpuid, rip: handlerOf(LOW) });
    expect([h.has(0x100, LOW), h.has(0x200, LOW), h.register(h.backing, 0xa0)]).toEqual([true, false, 0x40]);
    h.skip();
    expect(h.run()).toMatchObject({ code: ExitCode.cpuid, rip: handlerOf(LOW) + 2 + EOI.length });
    expect([h.has(0x100, LOW), h.register(h.backing, 0xa0)]).toEqual([false, 0]);
    h.skip();
    expect(h.run()).toMatchObject({ ...DONE, rip: CODE + 1 });
  });
  it("comes by priority, the higher one first", () => {
    const h = new AvicHarness([NOP, HLT], [LOW, HIGH]);
    expect(h.run()).toMatchObject(DONE);
    expect(h.served).toEqual({ count: 2, last: LOW });
  });
  it("waits for IF and the instruction behind STI, for the task priority, and for what is in service", () => {
    const shadowed = new AvicHarness([NOP, STI, NOP, HLT], [LOW]);
    shadowed.set64(Save.RFLAGS, 2);
    shadowed.load(CPUID, handlerOf(LOW));
    shadowed.run();
    expect(shadowed.guestU64(Number(shadowed.get64(Save.RSP)))).toBe(BigInt(CODE + 3));
    const lowered = new AvicHarness([NOP, ...CPUID, ...writeApic(0x80, 0x3f), NOP, HLT], [LOW]);
    lowered.set32(Control.V_INTERRUPT, (V_MASKING | AVIC | 4) >>> 0);
    expect(lowered.run()).toMatchObject({ code: ExitCode.cpuid, rip: CODE + 1 });
    lowered.skip();
    expect(lowered.run()).toMatchObject(DONE);
    expect(lowered.served).toEqual({ count: 1, last: LOW });
    const served = new AvicHarness([NOP, ...EOI, NOP, HLT], [LOW]);
    served.mark(0x100, 0x4f);
    served.load(CPUID, handlerOf(LOW));
    expect(served.run()).toMatchObject({ code: ExitCode.cpuid });
    expect(served.guestU64(Number(served.get64(Save.RSP)))).toBe(BigInt(CODE + 1 + EOI.length));
  });
  it("comes behind CR8 that lets it through, and ends HLT", () => {
    // xor eax, eax; mov cr8, rax; nop
    const h = new AvicHarness([0x31, 0xc0, 0x44, 0x0f, 0x22, 0xc0, NOP, HLT], [LOW]);
    h.set32(Control.V_INTERRUPT, (V_MASKING | AVIC | 15) >>> 0);
    h.load(CPUID, handlerOf(LOW));
    h.run();
    expect(h.guestU64(Number(h.get64(Save.RSP)))).toBe(BigInt(CODE + 6));
    const halted = new AvicHarness([CLI, NOP, STI, HLT, ...CPUID], [LOW]);
    halted.set64(Save.RFLAGS, 2);
    // So that a guest that does not wake is no test that does not end
    halted.cpu.setTimerDeadline(1_000_000);
    halted.clearBits(Control.INTERCEPT_3, Intercept3.hlt);
    expect(halted.run()).toMatchObject({ code: ExitCode.cpuid, rip: CODE + 4 });
    expect(halted.served.count).toBe(1);
  });
  it("is no V_IRQ, which nothing reads meanwhile, and comes behind the event that VMRUN injects", () => {
    const h = new AvicHarness([NOP, HLT]);
    h.set32(Control.V_INTERRUPT, (V_MASKING | AVIC | (1 << 8) | (1 << 20)) >>> 0);
    h.set32(Control.V_VECTOR, HIGH);
    h.setBits(Control.INTERCEPT_3, Intercept3.vintr);
    expect(h.run()).toMatchObject({ ...DONE, rip: CODE + 1 });
    expect(h.served.count).toBe(0);
    h.at(CODE);
    h.request(HIGH);
    h.set32(Control.EVENT_INJECTION, (VALID | LOW) >>> 0);
    expect(h.run()).toMatchObject(DONE);
    expect(h.served).toEqual({ count: 2, last: HIGH });
  });
  it("that a delivery cut short had taken is in service, and told of in EXITINTINFO", () => {
    const h = new AvicHarness([NOP, HLT], [LOW]);
    h.set64(Save.RSP, 0x3f_f000);
    h.setEntry(h.nptEntry(0x3f_e000), 0);
    expect(h.run()).toMatchObject({ code: ExitCode.nestedPageFault });
    expect([h.get64(Control.EXIT_INTERRUPT_INFO), h.has(0x100, LOW)]).toEqual([BigInt(VALID | LOW) & 0xffff_ffffn, true]);
  });
  it("that is level-triggered leaves its EOI to software", () => {
    const h = new AvicHarness([NOP, HLT], [LOW]);
    h.mark(0x180, LOW);
    expect(h.run()).toMatchObject({
      code: ExitCode.avicNoAcceleration,
      info1: 0x1_0000_00b0n,
      info2: BigInt(LOW),
      rip: handlerOf(LOW) + 18 + EOI.length,
    });
    expect(h.has(0x100, LOW)).toBe(true);
  });
});

describe("IPIs", () => {
  const SELF = 0x4_0000;
  const incomplete = (icr: number, destination: number, id: number, index: number): object => ({
    code: ExitCode.avicIncompleteIpi,
    info1: (BigInt(destination << 24) << 32n) | BigInt(icr),
    info2: (BigInt(id) << 32n) | BigInt(index),
  });
  const send = (icr: number, destination = 0): number[] => [
    ...writeApic(0x310, (destination << 24) >>> 0),
    ...writeApic(0x300, icr),
  ];

  it("to itself need no software, by shorthand or by ID", () => {
    for (const code of [send(SELF | LOW), send(LOW, 0), send(0x8_0000 | LOW)]) {
      const h = new AvicHarness([...code, NOP, HLT]);
      expect(h.run()).toMatchObject(DONE);
      expect(h.served).toEqual({ count: 1, last: LOW });
    }
    const loop = writeApic(0x300, SELF | LOW);
    // mov ebx, 3000; L: self-IPI; dec ebx; jnz L; hlt
    const h = new AvicHarness([0xbb, 0xb8, 0x0b, 0, 0, ...loop, 0xff, 0xcb, 0x75, 256 - (loop.length + 4), HLT]);
    expect(h.run()).toMatchObject(DONE);
    expect(h.served.count).toBe(3000);
  });

  it("to a target that runs ring its processor, to one that does not exit with its index", () => {
    const h = new AvicHarness([...send(HIGH, 3), HLT]);
    const other = h.page();
    h.addId(3, other, true, 0);
    expect(h.run()).toMatchObject(DONE);
    expect(h.has(0x200, HIGH, other)).toBe(true);
    h.addId(3, other, false, 0);
    h.setRegister(other, 0x240, 0);
    expect(h.at(CODE).run()).toMatchObject({ ...incomplete(HIGH, 3, 1, 3), rip: CODE + 22 });
    expect(h.has(0x200, HIGH, other)).toBe(true);
  });

  it("to many go to all that there are; those who do not run are told of first", () => {
    const h = new AvicHarness([...send(0xc_0000 | HIGH), HLT]);
    const pages = [h.page(), h.page()] as const;
    h.addId(2, pages[0], false, 0);
    h.addId(5, pages[1], true, 0);
    expect(h.run()).toMatchObject(incomplete(0xc_0000 | HIGH, 0, 1, 2));
    expect([h.has(0x200, HIGH, pages[0]), h.has(0x200, HIGH, pages[1]), h.has(0x200, HIGH)]).toEqual([true, true, false]);
    // Broadcast by destination: the sender too
    h.load([...send(LOW, 0xff), HLT]);
    expect(h.at(CODE).run().code).toBe(ExitCode.avicIncompleteIpi);
    expect([h.has(0x200, LOW), h.has(0x200, LOW, pages[1])]).toEqual([true, true]);
  });

  it("by logical destination go by the logical table, flat and in clusters", () => {
    const h = new AvicHarness([...send(0x800 | HIGH, 0b101), HLT]);
    const other = h.page();
    h.addId(6, other, true, 0);
    h.addLogical(0, 0);
    h.addLogical(2, 6);
    expect(h.run()).toMatchObject({ ...DONE });
    expect([h.served.count, h.has(0x200, HIGH, other)]).toEqual([1, true]);
    // Cluster 2, members 1 and 3: entries 9 and 11, of which one is not there
    h.setRegister(h.backing, 0xe0, 0x0fff_ffff);
    h.setRegister(other, 0x240, 0);
    h.addLogical(9, 6);
    h.load([...send(0x800 | HIGH, 0x2a), HLT]);
    expect(h.at(CODE).run()).toMatchObject(incomplete(0x800 | HIGH, 0x2a, 2, 11));
    expect(h.has(0x200, HIGH, other)).toBe(true);
  });

  it.each([
    ["another delivery mode", 0x400 | LOW, 0, 0, 0],
    ["lowest priority", 0x100 | LOW, 0, 0, 0],
    ["level-triggered", 0x8000 | LOW, 0, 0, 0],
    ["a vector below 16", 5, 0, 4, 0],
    ["an ID beyond the table", LOW, 9, 2, 9],
    ["an ID without an entry", LOW, 4, 2, 4],
    ["a logical ID without an entry", 0x800 | LOW, 1, 2, 0],
  ] as const)("are left to software: %s", (_name, icr, destination, id, index) => {
    const h = new AvicHarness([...send(icr, destination), HLT]);
    expect(h.run()).toMatchObject({ ...incomplete(icr, destination, id, index), rip: CODE + 22 });
    expect(h.register(h.backing, 0x300)).toBe(icr);
  });

  it("to a backing page that is no memory's are told of", () => {
    const h = new AvicHarness([...send(LOW, 1), HLT]);
    h.addId(1, h.bank.sizeBytes, true, 0);
    expect(h.run()).toMatchObject(incomplete(LOW, 1, 3, 1));
  });
});

describe("the doorbell", () => {
  it("makes a guest look at its page anew, and is nothing to root mode", () => {
    const h = new AvicHarness([NOP, HLT]);
    expect(h.cpu.wrmsr(DOORBELL, 0n)).toBe(true);
    expect([h.cpu.interruptPending(), h.cpu.rdmsr(DOORBELL), h.cpu.wrmsr(DOORBELL, 0x100n)]).toEqual([false, undefined, false]);
    expect(h.run()).toMatchObject(DONE);
    // Out of the page of one VMCB into that of another whose guest sleeps: it wakes for what is there
    const halted = new AvicHarness([STI, HLT, ...CPUID]);
    halted.clearBits(Control.INTERCEPT_3, Intercept3.hlt);
    halted.cpu.setTimerDeadline(1000);
    expect(halted.run().code).toBe(ExitCode.intr);
  });
  it("ends the sleep of a guest that software in another place has sent something", () => {
    const h = new AvicHarness([...writeApic(0x310, 0x0100_0000), ...writeApic(0x300, LOW), HLT]);
    const other = h.page();
    h.addId(1, other, true, 0);
    expect(h.run()).toMatchObject(DONE);
    // The same processor: its next guest finds the request
    h.set64(Control.AVIC_BACKING_PAGE, hpa(BANK, other));
    h.load([NOP, HLT]);
    expect(h.at(CODE).run()).toMatchObject(DONE);
    expect(h.served).toEqual({ count: 1, last: LOW });
  });
  it("is missing on processors of the other vendor", () => {
    const intel = createLogicalCpu(createMachine({ clock: "icount" }), 0, () => undefined);
    expect(intel.wrmsr(DOORBELL, 0n)).toBe(false);
  });
});

describe("VMRUN with AVIC", () => {
  it.each([
    ["nested paging off", (h: AvicHarness) => h.set32(Control.NESTED, 0), false],
    ["a backing page beyond physical addresses", (h: AvicHarness) => h.set64(Control.AVIC_BACKING_PAGE, 1n << 52n), false],
    ["a logical table beyond them", (h: AvicHarness) => h.set64(Control.AVIC_LOGICAL_TABLE, 1n << 52n), false],
    ["a physical table beyond them", (h: AvicHarness) => h.set64(Control.AVIC_PHYSICAL_TABLE, 1n << 52n), false],
    ["254 as the last index", (h: AvicHarness) => h.set8(Control.AVIC_PHYSICAL_TABLE, 0xfe), true],
    ["255 as the last index", (h: AvicHarness) => h.set8(Control.AVIC_PHYSICAL_TABLE, 0xff), false],
  ] as const)("%s", (_name, change, isAllowed) => {
    const h = new AvicHarness([HLT]);
    change(h);
    expect(h.run().code).toBe(isAllowed ? ExitCode.hlt : ExitCode.invalid);
  });
  it("is what CPUID offers, without x2AVIC", () => {
    const { edx } = new AvicHarness([HLT]).cpu.cpuid(0x8000_000a, 0);
    expect([edx & (1 << 13), edx & (1 << 18)]).toEqual([1 << 13, 0]);
  });
});
