/** Nonmaskable interrupts of the machine: to software in root mode, and to guests that exit for them or take them. */
import { Worker } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import { AmdCpu } from "../src/amd-cpu.ts";
import { Engine } from "../src/engine/engine.ts";
import { createAmdModel } from "../src/engine/system/cpuid-amd.ts";
import { InterruptLines } from "../src/interrupt-lines.ts";
import { LocalApicRegister } from "../src/local-apic.ts";
import { createMachine } from "../src/machine.ts";
import { Control, ExitCode, Intercept3, Save } from "../src/svm/vmcb.ts";
import { ExitReason, Pin, Primary } from "../src/vmx/controls.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { guest, HANDLER, HLT, NOP } from "./halting-guest.ts";
import { SvmHarness } from "./svm-harness.ts";
import { CODE, type VmxHarness } from "./vmx-harness.ts";

const IRETQ = [0x48, 0xcf];
const NMI_EXIT = 0x8000_0202;

function nmiExit(h: VmxHarness) {
  const { reason, rip } = h.run();
  return { reason, rip, info: h.read("EXIT_INTERRUPTION_INFO") };
}

describe("an NMI under VMX", () => {
  it("exits where it is to, at once, whatever IF is", () => {
    for (const pin of [Pin.nmiExiting, Pin.nmiExiting | Pin.virtualNmis]) {
      const h = guest([NOP, HLT]);
      h.setControl("PIN_CONTROLS", pin);
      h.cpu.sendNmi(0);
      expect(nmiExit(h)).toEqual({ reason: ExitReason.exceptionOrNmi, rip: CODE, info: NMI_EXIT });
      expect(h.cpu.nmiPending()).toBe(false);
      expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: CODE + 1 });
    }
  });

  it("waits behind MOV SS, and where NMIs are blocked without virtual ones", () => {
    const shadowed = guest([NOP, HLT]);
    shadowed.setControl("PIN_CONTROLS", Pin.nmiExiting);
    shadowed.write("GUEST_INTERRUPTIBILITY", 2);
    shadowed.cpu.sendNmi(0);
    expect(nmiExit(shadowed)).toEqual({ reason: ExitReason.exceptionOrNmi, rip: CODE + 1, info: NMI_EXIT });
    const blocked = guest([NOP, HLT]);
    blocked.setControl("PIN_CONTROLS", Pin.nmiExiting);
    blocked.write("GUEST_INTERRUPTIBILITY", 8);
    blocked.cpu.sendNmi(0);
    expect(blocked.run()).toMatchObject({ reason: ExitReason.hlt, rip: CODE + 1 });
    expect(blocked.cpu.nmiPending()).toBe(true);
    const virtual = guest([NOP, HLT]);
    virtual.setControl("PIN_CONTROLS", Pin.nmiExiting | Pin.virtualNmis);
    virtual.write("GUEST_INTERRUPTIBILITY", 8);
    virtual.cpu.sendNmi(0);
    expect(nmiExit(virtual)).toEqual({ reason: ExitReason.exceptionOrNmi, rip: CODE, info: NMI_EXIT });
  });

  it("is taken by a guest that has its NMIs to itself, once until IRET", () => {
    const h = guest([NOP, NOP, HLT]);
    h.load([NOP, ...IRETQ], HANDLER);
    h.cpu.sendNmi(0);
    h.setControl("PRIMARY_CONTROLS", Primary.monitorTrapFlag);
    expect(h.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: HANDLER });
    expect(h.read("GUEST_INTERRUPTIBILITY")).toBe(8);
    h.cpu.sendNmi(0);
    expect(h.run()).toMatchObject({ reason: ExitReason.monitorTrapFlag, rip: HANDLER + 1 });
    h.clearControl("PRIMARY_CONTROLS", Primary.monitorTrapFlag);
    // IRET lifts the blocking, and the second is taken before the instruction that it returns to
    h.load([HLT], HANDLER);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: HANDLER });
    expect(h.cpu.nmiPending()).toBe(false);
  });

  it("ends HLT and shutdown", () => {
    for (const activity of [1, 2]) {
      const exits = guest([NOP]);
      exits.write("GUEST_ACTIVITY", activity);
      exits.setControl("PIN_CONTROLS", Pin.nmiExiting);
      exits.cpu.sendNmi(0);
      expect(nmiExit(exits)).toEqual({ reason: ExitReason.exceptionOrNmi, rip: CODE, info: NMI_EXIT });
      expect(exits.read("GUEST_ACTIVITY")).toBe(activity);
      const takes = guest([NOP]);
      takes.write("GUEST_ACTIVITY", activity);
      takes.cpu.sendNmi(0);
      expect(takes.run()).toMatchObject({ reason: ExitReason.hlt, rip: HANDLER });
      expect(takes.read("GUEST_ACTIVITY")).toBe(0);
    }
  });

  it("comes from a performance counter whose entry says so", () => {
    const h = guest([0xff, 0xc0, 0xeb, 0xfc]);
    h.setControl("PIN_CONTROLS", Pin.nmiExiting | Pin.virtualNmis);
    h.cpu.writeApic(LocalApicRegister.lvtPerformance, 0x400);
    h.cpu.wrmsr(0x4c1, (1n << 48n) - 501n);
    h.cpu.wrmsr(0x186, 0xc0n | (0x53n << 16n));
    expect(nmiExit(h)).toEqual({ reason: ExitReason.exceptionOrNmi, rip: CODE + 2, info: NMI_EXIT });
    expect(h.cpu.retiredInstructions()).toBe(501);
  });
});

describe("an NMI under SVM", () => {
  function svm(code: readonly number[]): SvmHarness {
    const h = new SvmHarness({
      mode: "long",
      engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
    });
    h.load(code);
    return h;
  }

  it("exits where it is intercepted, and comes to root mode with STGI", () => {
    const h = svm([NOP, HLT]);
    let taken = 0;
    h.cpu.nmiHandler = () => {
      taken++;
    };
    h.cpu.svm.clgi();
    h.cpu.sendNmi(0);
    expect(h.cpu.svm.vmrun(h.vmcb)).toBe(0);
    expect([h.get32(Control.EXIT_CODE), h.get64(Save.RIP), taken, h.cpu.nmiPending()]).toEqual([
      ExitCode.nmi,
      BigInt(CODE),
      0,
      true,
    ]);
    h.cpu.svm.stgi();
    expect([taken, h.cpu.nmiPending()]).toEqual([1, false]);
    expect(h.run()).toMatchObject({ code: ExitCode.hlt, rip: CODE + 1 });
  });

  it("is taken by a guest without the intercept, once until IRET, exits between or not", () => {
    const idt = 0x6000;
    const h = svm([NOP, HLT]);
    h.load([0x0f, 0xa2, ...IRETQ], HANDLER); // CPUID, which exits
    const gate = (h.guestMemory + idt + 2 * 16) >>> 2;
    h.bank.u32[gate] = (0x10 << 16) | HANDLER;
    h.bank.u32[gate + 1] = 0x8e00;
    h.bank.view.setBigUint64(h.guestMemory + 0x5010, 0x00af_9b00_0000_ffffn, true);
    h.bank.view.setBigUint64(h.guestMemory + 0x5018, 0x00cf_9300_0000_ffffn, true);
    h.setSegment(Save.IDTR, 0, 0, 0xfff, idt);
    h.setSegment(Save.GDTR, 0, 0, 0x1f, 0x5000);
    h.clearBits(Control.INTERCEPT_3, Intercept3.nmi);
    h.cpu.svm.clgi();
    h.cpu.sendNmi(0);
    h.cpu.svm.vmrun(h.vmcb);
    expect([h.get32(Control.EXIT_CODE), h.get64(Save.RIP)]).toEqual([ExitCode.cpuid, BigInt(HANDLER)]);
    h.skip();
    h.cpu.sendNmi(0);
    h.cpu.svm.vmrun(h.vmcb);
    // IRET, and the second NMI in its place
    expect([h.get32(Control.EXIT_CODE), h.get64(Save.RIP), h.cpu.nmiPending()]).toEqual([
      ExitCode.cpuid,
      BigInt(HANDLER),
      false,
    ]);
  });
});

describe("NMIs between CPUs", () => {
  it("go by the interrupt command register to one, to the others, or to all", () => {
    const machine = createMachine({ vendor: "amd", cpus: 3 });
    const cpus = [0, 1, 2].map((id) => new AmdCpu(machine, id, createAmdModel(), noEngine, () => {}));
    const sent = (high: number, low: number) => {
      cpus[0]?.writeApic(LocalApicRegister.icrHigh, high);
      cpus[0]?.writeApic(LocalApicRegister.icrLow, low);
      return cpus.map((cpu) => cpu.takeNmi());
    };
    expect(sent(0x0200_0000, 0x400)).toEqual([false, false, true]);
    expect(sent(0xff00_0000, 0x400)).toEqual([true, true, true]);
    expect(sent(0, 0x4_0400)).toEqual([true, false, false]);
    expect(sent(0, 0x8_0400)).toEqual([true, true, true]);
    expect(sent(0, 0xc_0400)).toEqual([false, true, true]);
    expect(sent(0x0100_0000, 0x61)).toEqual([false, false, false]);
    expect(cpus.map((cpu) => cpu.takeInterrupt())).toEqual([-1, 0x61, -1]);
    expect(() => cpus[0]?.sendNmi(3)).toThrow("NMI to CPU 3, which is not there");
  });

  it("are told of in root mode without a handler, and lost with power", () => {
    const lines: string[] = [];
    const cpu = new AmdCpu(createMachine({ vendor: "amd" }), 0, createAmdModel(), noEngine, (line) => lines.push(line));
    cpu.sendNmi(0);
    expect([cpu.takeNmi(), cpu.takeNmi()]).toEqual([true, false]);
    expect(lines).toEqual(["cpu0: NMI in root mode, which has no handler for it"]);
    cpu.sendNmi(0);
    cpu.losePower();
    expect(cpu.nmiPending()).toBe(false);
  });

  it("wake a CPU whose guest is in the shutdown state, though an interrupt waits there", async () => {
    const shared = new SharedArrayBuffer(2 * 64);
    const lines = new InterruptLines(shared, 0);
    lines.raise(0, 0x40);
    const { seen } = lines;
    // Another thread sends the NMI once this one sleeps, or just before: either way it must not sleep on
    const sender = new Worker(
      `const { workerData } = require("node:worker_threads");
       const flag = new Int32Array(workerData);
       Atomics.or(flag, 0, 4);
       while (Atomics.notify(flag, 0) === 0 && Atomics.load(flag, 15) === 0);`,
      { eval: true, workerData: shared },
    );
    lines.wait(Number.POSITIVE_INFINITY, seen);
    new Int32Array(shared)[15] = 1;
    expect([lines.takeNmi(), lines.highest()]).toEqual([true, 0x40]);
    await sender.terminate();
  });
});

function noEngine(): never {
  throw new Error("no guest runs here");
}
