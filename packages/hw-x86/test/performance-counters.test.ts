/** Architectural performance monitoring: what counters count, and where they stop the guest. */
import { describe, expect, it } from "vitest";
import { LocalApicRegister } from "../src/local-apic.ts";
import { EntryControl, ExitControl, ExitReason, Primary } from "../src/vmx/controls.ts";
import { guest, HLT, NOP, TICKS } from "./halting-guest.ts";
import { BANK, CODE, type VmxHarness } from "./vmx-harness.ts";

const Msr = {
  PMC0: 0xc1,
  PERFEVTSEL0: 0x186,
  DEBUGCTL: 0x1d9,
  FIXED_CTR0: 0x309,
  FIXED_CTR1: 0x30a,
  FIXED_CTR2: 0x30b,
  PERF_CAPABILITIES: 0x345,
  FIXED_CTR_CTRL: 0x38d,
  PERF_GLOBAL_STATUS: 0x38e,
  PERF_GLOBAL_CTRL: 0x38f,
  PERF_GLOBAL_OVF_CTRL: 0x390,
  PEBS_ENABLE: 0x3f1,
  A_PMC0: 0x4c1,
  DS_AREA: 0x600,
} as const;
const USER = 1n << 16n;
const SUPERVISOR = 1n << 17n;
const INTERRUPT = 1n << 20n;
const ENABLE = 1n << 22n;
const INVERT = 1n << 23n;
const INSTRUCTIONS = 0xc0n | SUPERVISOR | USER | ENABLE;
const CORE_CYCLES = 0x3cn | SUPERVISOR | USER | ENABLE;
const LAST = (1n << 48n) - 1n;
const VECTOR = 0x40;

const ROUNDS = 3000;
/** mov ecx, ROUNDS; dec ecx; jnz: an instruction and two for each round. */
const LOOP = [0xb9, ROUNDS & 0xff, ROUNDS >>> 8, 0, 0, 0xff, 0xc9, 0x75, 0xfc];
const LOOP_INSTRUCTIONS = 1 + 2 * ROUNDS;

function write(h: VmxHarness, index: number, value: bigint): void {
  if (!h.cpu.wrmsr(index, value)) throw new Error(`#GP: WRMSR ${index.toString(16)} of ${value.toString(16)}`);
}
const read = (h: VmxHarness, index: number): bigint | undefined => h.cpu.rdmsr(index);

/** A counter of instructions that overflows after so many, and interrupts. */
function sample(h: VmxHarness, instructions: number, event = INSTRUCTIONS): void {
  h.cpu.writeApic(LocalApicRegister.lvtPerformance, VECTOR);
  write(h, Msr.A_PMC0, LAST + 1n - BigInt(instructions));
  write(h, Msr.PERFEVTSEL0, event | INTERRUPT);
}

describe("what CPUID and MSRs tell", () => {
  const h = guest([HLT]);
  it("is version 2 with four general counters, three fixed ones, and the events that are counted", () => {
    expect(h.cpu.cpuid(0xa, 0)).toEqual({ eax: 0x0730_0402, ebx: 0b111_1000, ecx: 0, edx: 3 | (48 << 5) });
    const { ecx, edx } = h.cpu.cpuid(1, 0);
    expect([(ecx >>> 15) & 1, (ecx >>> 2) & 1, (edx >>> 21) & 1]).toEqual([1, 1, 1]);
    expect(read(h, Msr.PERF_CAPABILITIES)).toBe(0x23c0n);
    expect(read(h, 0x1a0)).toBe(0x881n);
    expect(read(h, Msr.PERF_GLOBAL_CTRL)).toBe(0xfn);
  });
  it.each([
    [Msr.PERFEVTSEL0, 0x1_0000_0000n],
    [Msr.PERFEVTSEL0, 1n << 21n],
    [Msr.FIXED_CTR_CTRL, 4n],
    [Msr.FIXED_CTR_CTRL, 0x1000n],
    [Msr.PERF_GLOBAL_CTRL, 0x10n],
    [Msr.PERF_GLOBAL_CTRL, 8n << 32n],
    [Msr.PERF_GLOBAL_STATUS, 0n],
    [Msr.PERF_CAPABILITIES, 0x23c0n],
    [Msr.PERF_GLOBAL_OVF_CTRL, 0x10n],
    [Msr.PEBS_ENABLE, 1n << 32n],
    [Msr.DS_AREA, 1n << 60n],
    [Msr.A_PMC0, 1n << 48n],
    [Msr.FIXED_CTR0, 1n << 48n],
    [Msr.PMC0 + 4, 0n],
    [Msr.PERFEVTSEL0 + 4, 0n],
  ])("refuses MSR %x with %x", (index, value) => {
    expect(h.cpu.wrmsr(index, value)).toBe(false);
  });
  it("extends the sign of what is written to the counters of old, and has no other than there are", () => {
    write(h, Msr.PMC0 + 3, 0x7_8000_0000n);
    expect([read(h, Msr.PMC0 + 3), read(h, Msr.A_PMC0 + 3), h.cpu.rdpmc(3)]).toEqual(Array(3).fill(0xffff_8000_0000n));
    write(h, Msr.FIXED_CTR2, LAST);
    expect(h.cpu.rdpmc(0x4000_0002)).toBe(LAST);
    expect([h.cpu.rdpmc(4), h.cpu.rdpmc(0x4000_0003), h.cpu.rdpmc(-1), read(h, Msr.PMC0 + 4)]).toEqual(
      Array(4).fill(undefined),
    );
  });
});

describe("what counters count", () => {
  it("is every instruction that retires, none that exits, and the clock's ticks", () => {
    const h = guest([...LOOP, HLT]);
    write(h, Msr.PERFEVTSEL0, INSTRUCTIONS);
    write(h, Msr.PERFEVTSEL0 + 1, CORE_CYCLES);
    write(h, Msr.PERFEVTSEL0 + 2, CORE_CYCLES | 0x100n);
    write(h, Msr.PERFEVTSEL0 + 3, 0xc4n | SUPERVISOR | USER | ENABLE);
    write(h, Msr.FIXED_CTR_CTRL, 0x333n);
    write(h, Msr.PERF_GLOBAL_CTRL, 0x7_0000_000fn);
    expect(h.run().reason).toBe(ExitReason.hlt);
    const ticks = BigInt(LOOP_INSTRUCTIONS * TICKS);
    expect([0, 1, 2, 3].map((i) => h.cpu.rdpmc(i))).toEqual([BigInt(LOOP_INSTRUCTIONS), ticks, ticks, 0n]);
    expect([0, 1, 2].map((i) => h.cpu.rdpmc(0x4000_0000 + i))).toEqual([BigInt(LOOP_INSTRUCTIONS), ticks, ticks]);
    expect(h.cpu.retiredInstructions()).toBe(LOOP_INSTRUCTIONS);
  });

  it("is nothing while the counter, or all of them, are off", () => {
    const h = guest([...LOOP, HLT]);
    write(h, Msr.PERFEVTSEL0, INSTRUCTIONS & ~ENABLE);
    write(h, Msr.PERFEVTSEL0 + 1, INSTRUCTIONS);
    write(h, Msr.FIXED_CTR_CTRL, 3n);
    write(h, Msr.PERF_GLOBAL_CTRL, 1n);
    h.run();
    expect([h.cpu.rdpmc(0), h.cpu.rdpmc(1), h.cpu.rdpmc(0x4000_0000)]).toEqual([0n, 0n, 0n]);
  });

  it("is a repeated string instruction once, however many iterations it takes", () => {
    // std; mov ecx, 100; rep movsb; cld; mov ecx, 100; repe cmpsb; mov ecx, 5000; rep stosb; xor ecx, ecx; rep lodsb
    const code = [0xfd, 0xb9, 100, 0, 0, 0, 0xf3, 0xa4, 0xfc, 0xb9, 100, 0, 0, 0, 0xf3, 0xa6];
    code.push(0xb9, 0x88, 0x13, 0, 0, 0xf3, 0xaa, 0x31, 0xc9, 0xf3, 0xac, HLT);
    const h = guest(code);
    h.cpu.setGpr(6, 0x10_0200n);
    h.cpu.setGpr(7, 0x12_0200n);
    write(h, Msr.PERFEVTSEL0, INSTRUCTIONS);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.cpu.rdpmc(0)).toBe(10n);
    expect(h.cpu.retiredInstructions()).toBeGreaterThan(200);
  });

  it("is no instruction where handlers fault without end, whatever time that takes", () => {
    // UD2, whose handler is UD2, until the timer
    const h = guest([0x0f, 0x0b]);
    h.load([0x0f, 0x0b], 0x9000);
    h.write("GUEST_RSP", 0x20_0000);
    h.cpu.setTimerDeadline(50_000);
    write(h, Msr.PERFEVTSEL0, INSTRUCTIONS);
    write(h, Msr.PERFEVTSEL0 + 1, CORE_CYCLES);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect([h.cpu.rdpmc(0), h.cpu.rdpmc(1)]).toEqual([0n, BigInt(h.cpu.rdtsc())]);
  });

  it("is told apart by privilege", () => {
    const h = guest([...[0x48, 0x0f, 0x07]]); // sysretq
    const entered = 0x2_0000;
    const user = 0x2_1000;
    // In the kernel, after SYSCALL: three instructions and an exit
    h.load([NOP, NOP, NOP, HLT], entered);
    h.load([...LOOP, 0x0f, 0x05], user);
    write(h, 0xc000_0081, (0x20n << 48n) | (0x10n << 32n));
    write(h, 0xc000_0082, BigInt(entered));
    write(h, 0xc000_0084, 0n);
    h.cpu.setGpr(1, BigInt(user));
    h.cpu.setGpr(11, 2n);
    write(h, Msr.PERFEVTSEL0, INSTRUCTIONS & ~SUPERVISOR);
    write(h, Msr.PERFEVTSEL0 + 1, INSTRUCTIONS & ~USER);
    write(h, Msr.PERFEVTSEL0 + 2, CORE_CYCLES & ~SUPERVISOR);
    write(h, Msr.FIXED_CTR_CTRL, 0x21n);
    write(h, Msr.PERF_GLOBAL_CTRL, 0x7_0000_000fn);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: entered + 3 });
    const inUser = LOOP_INSTRUCTIONS + 1;
    expect([0, 1, 2].map((i) => Number(h.cpu.rdpmc(i)))).toEqual([inUser, 4, inUser * TICKS]);
    expect([0, 1].map((i) => Number(h.cpu.rdpmc(0x4000_0000 + i)))).toEqual([4, inUser * TICKS]);
  });

  it("goes by thresholds as a core that retires one instruction in a cycle", () => {
    const h = guest([...LOOP, HLT]);
    write(h, Msr.PERFEVTSEL0, INSTRUCTIONS | (1n << 24n));
    write(h, Msr.PERFEVTSEL0 + 1, INSTRUCTIONS | (2n << 24n));
    write(h, Msr.PERFEVTSEL0 + 2, INSTRUCTIONS | INVERT | (1n << 24n));
    write(h, Msr.PERFEVTSEL0 + 3, INSTRUCTIONS | INVERT | (16n << 24n));
    h.run();
    const ticks = LOOP_INSTRUCTIONS * TICKS;
    expect([0, 1, 2, 3].map((i) => Number(h.cpu.rdpmc(i)))).toEqual([LOOP_INSTRUCTIONS, 0, ticks - LOOP_INSTRUCTIONS, ticks]);
  });

  it("does not include the time of a halt", () => {
    const h = guest([NOP, HLT, NOP]);
    h.clearControl("PRIMARY_CONTROLS", Primary.hltExiting);
    h.cpu.setTimerDeadline(100_000);
    write(h, Msr.PERFEVTSEL0, CORE_CYCLES);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect([h.cpu.rdtsc(), Number(h.cpu.rdpmc(0))]).toEqual([100_000, 2 * TICKS]);
  });

  it("is loaded and unloaded by VM entries and exits", () => {
    const h = guest([...LOOP, HLT]);
    write(h, Msr.PERFEVTSEL0, INSTRUCTIONS);
    write(h, Msr.PERF_GLOBAL_CTRL, 0n);
    h.setControl("ENTRY_CONTROLS", EntryControl.loadPerfGlobalCtrl);
    h.setControl("EXIT_CONTROLS", ExitControl.loadPerfGlobalCtrl);
    h.write("GUEST_PERF_GLOBAL_CTRL", 1);
    h.write("HOST_PERF_GLOBAL_CTRL", 2n << 32n);
    h.run();
    expect([h.cpu.rdpmc(0), read(h, Msr.PERF_GLOBAL_CTRL)]).toEqual([BigInt(LOOP_INSTRUCTIONS), 2n << 32n]);
    h.write("GUEST_RIP", CODE);
    h.run();
    expect(h.cpu.rdpmc(0)).toBe(BigInt(2 * LOOP_INSTRUCTIONS));
    h.write("GUEST_PERF_GLOBAL_CTRL", 0x10);
    expect(h.run().reason).toBe(0x8000_0021);
    h.write("GUEST_PERF_GLOBAL_CTRL", 0);
    h.write("HOST_PERF_GLOBAL_CTRL", 8n << 32n);
    expect(() => h.run()).toThrow("error 8");
  });
});

describe("MSR areas of VM entries and exits", () => {
  it("switch the counters' MSRs as hypervisors do that share them", () => {
    const h = guest([...LOOP, HLT]);
    const list = (entries: readonly (readonly [number, bigint])[]): bigint => {
      const page = h.page();
      entries.forEach(([index, value], i) => {
        h.bank.u32[(page >>> 2) + i * 4] = index;
        h.bank.u64[(page >>> 3) + i * 2 + 1] = value;
      });
      return (BigInt(BANK) << 32n) | BigInt(page);
    };
    const load = list([
      [Msr.PERFEVTSEL0, INSTRUCTIONS],
      [Msr.PERF_GLOBAL_CTRL, 1n],
    ]);
    const store = list([[Msr.PMC0, 0n]]);
    const unload = list([[Msr.PERF_GLOBAL_CTRL, 2n]]);
    write(h, Msr.PERF_GLOBAL_CTRL, 0n);
    h.write("ENTRY_MSR_LOAD_ADDRESS", load);
    h.write("ENTRY_MSR_LOAD_COUNT", 2);
    h.write("EXIT_MSR_STORE_ADDRESS", store);
    h.write("EXIT_MSR_STORE_COUNT", 1);
    h.write("EXIT_MSR_LOAD_ADDRESS", unload);
    h.write("EXIT_MSR_LOAD_COUNT", 1);
    expect(h.run().reason).toBe(ExitReason.hlt);
    const stored = Number(store % 0x1_0000_0000n);
    expect([h.bank.u64[(stored >>> 3) + 1], read(h, Msr.PERF_GLOBAL_CTRL)]).toEqual([BigInt(LOOP_INSTRUCTIONS), 2n]);
    // A value with reserved bits is the second entry's, and fails the VM entry
    h.bank.u64[(Number(load % 0x1_0000_0000n) >>> 3) + 3] = 0x10n;
    expect(h.run()).toMatchObject({ reason: 0x8000_0022, qualification: 2 });
  });
});

describe("an overflow", () => {
  it("stops the guest at the instruction that makes it, in whatever loop that is", () => {
    for (const instructions of [1, 2, 777, 4321]) {
      const h = guest([...LOOP, HLT]);
      sample(h, instructions);
      expect(h.run().reason).toBe(ExitReason.externalInterrupt);
      expect(h.cpu.retiredInstructions()).toBe(instructions);
      expect(h.read("GUEST_RIP")).toBe(instructions % 2 === 1 ? CODE + 5 : CODE + 7);
      expect([read(h, Msr.PERF_GLOBAL_STATUS), h.cpu.rdpmc(0)]).toEqual([1n, 0n]);
      // The entry masks itself
      expect(h.cpu.readApic(LocalApicRegister.lvtPerformance)).toBe(VECTOR | 0x1_0000);
      expect(h.cpu.takeInterrupt()).toBe(VECTOR);
      write(h, Msr.PERF_GLOBAL_OVF_CTRL, 1n);
      expect(read(h, Msr.PERF_GLOBAL_STATUS)).toBe(0n);
      expect(h.run().reason).toBe(ExitReason.hlt);
      expect(h.cpu.rdpmc(0)).toBe(BigInt(LOOP_INSTRUCTIONS - instructions));
    }
  });

  it("of cycles does so under icount", () => {
    const h = guest([...LOOP, HLT]);
    sample(h, 1000 * TICKS, CORE_CYCLES);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(h.cpu.retiredInstructions()).toBe(1000);
  });

  it("comes under the wall clock as well, exact for instructions", () => {
    const h = guest([...LOOP, ...LOOP, HLT], "long", "wall");
    sample(h, 5000);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(h.cpu.retiredInstructions()).toBe(5000);
    const spinning = guest([0xeb, 0xfe], "long", "wall");
    sample(spinning, 1_000_000, CORE_CYCLES);
    expect(spinning.run().reason).toBe(ExitReason.externalInterrupt);
    expect(read(spinning, Msr.PERF_GLOBAL_STATUS)).toBe(1n);
  });

  it("counts user instructions alone up to the last of them", () => {
    const h = guest([0x48, 0x0f, 0x07]);
    const user = 0x2_1000;
    h.load([...LOOP, 0x0f, 0x05], user);
    write(h, 0xc000_0081, (0x20n << 48n) | (0x10n << 32n));
    h.cpu.setGpr(1, BigInt(user));
    h.cpu.setGpr(11, 2n);
    sample(h, 100, INSTRUCTIONS & ~SUPERVISOR);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(h.cpu.retiredInstructions()).toBe(101);
  });

  it("without an interrupt, or with a masked entry, is told by the status alone", () => {
    const h = guest([...LOOP, HLT]);
    write(h, Msr.A_PMC0, LAST);
    write(h, Msr.PERFEVTSEL0, INSTRUCTIONS);
    write(h, Msr.FIXED_CTR0 + 1, LAST);
    write(h, Msr.FIXED_CTR_CTRL, 0xb0n);
    write(h, Msr.PERF_GLOBAL_CTRL, 0x2_0000_0001n);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(read(h, Msr.PERF_GLOBAL_STATUS)).toBe(0x2_0000_0001n);
    expect(h.cpu.interruptPending()).toBe(false);
  });

  it("freezes the counters where IA32_DEBUGCTL says so", () => {
    const h = guest([...LOOP, HLT]);
    sample(h, 50);
    h.write("GUEST_DEBUGCTL", 0x1000);
    expect(h.run().reason).toBe(ExitReason.externalInterrupt);
    expect(read(h, Msr.PERF_GLOBAL_CTRL)).toBe(0n);
    h.cpu.takeInterrupt();
    h.run();
    expect(h.cpu.rdpmc(0)).toBe(0n);
  });
});

describe("a guest that has the counters", () => {
  /** No MSR and no RDPMC exits. */
  function owner(code: readonly number[], cr4 = 0x2020): VmxHarness {
    const h = guest(code);
    h.setControl("PRIMARY_CONTROLS", Primary.useMsrBitmaps);
    h.write("MSR_BITMAP", (BigInt(BANK) << 32n) | BigInt(h.page()));
    h.write("GUEST_CR4", cr4);
    return h;
  }
  const WRMSR = [0x0f, 0x30];
  const RDMSR = [0x0f, 0x32];
  const RDPMC = [0x0f, 0x33];

  it("turns them on and reads them within a slice", () => {
    // wrmsr (ecx, edx:eax given); three instructions; xor ecx, ecx; rdpmc
    const h = owner([...WRMSR, NOP, NOP, NOP, 0x31, 0xc9, ...RDPMC, HLT]);
    h.cpu.setGpr(1, BigInt(Msr.PERFEVTSEL0));
    h.cpu.setGpr(0, INSTRUCTIONS);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect([h.cpu.gpr(0), h.cpu.gpr(2), h.cpu.rdpmc(0)]).toEqual([4n, 0n, 5n]);
    const reader = owner([...RDMSR, HLT]);
    write(reader, Msr.A_PMC0, 0x1234_5678_9abcn);
    reader.cpu.setGpr(1, BigInt(Msr.PMC0));
    reader.run();
    expect([reader.cpu.gpr(0), reader.cpu.gpr(2)]).toEqual([0x5678_9abcn, 0x1234n]);
  });

  it("faults for what there is not, and in user mode without CR4.PCE", () => {
    for (const [code, ecx] of [
      [RDPMC, 4n],
      [RDMSR, 0xc5n],
      [WRMSR, BigInt(Msr.PERF_GLOBAL_STATUS)],
    ] as const) {
      const h = owner([...code, HLT]);
      h.write("EXCEPTION_BITMAP", 1 << 13);
      h.cpu.setGpr(1, ecx);
      expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, rip: CODE });
    }
    const user = 0x2_1000;
    for (const [cr4, rip] of [
      [0x2020, user + 2],
      [0x2120, user + 4],
    ] as const) {
      // xor ecx, ecx; rdpmc; hlt, of which the last faults in user mode at any rate
      const h = owner([0x48, 0x0f, 0x07], cr4);
      h.load([0x31, 0xc9, ...RDPMC, HLT], user);
      write(h, 0xc000_0081, (0x20n << 48n) | (0x10n << 32n));
      h.cpu.setGpr(1, BigInt(user));
      h.cpu.setGpr(11, 2n);
      h.write("EXCEPTION_BITMAP", 1 << 13);
      expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, rip });
    }
  });

  it("still exits for RDPMC where its hypervisor wants that", () => {
    const h = owner([...RDPMC, HLT]);
    h.setControl("PRIMARY_CONTROLS", Primary.rdpmcExiting);
    expect(h.run()).toMatchObject({ reason: ExitReason.rdpmc, rip: CODE });
  });
});
