/**
 * What two owners of one machine do to each other, and to the kernel: each test commits the very mistake, and its pair does not. Among
 * them are those of the public prototype of VAC that hardware can see; the others are tests of @mkvm/vac.
 */
import { describe, expect, it } from "vitest";
import { hpa } from "../src/addresses.ts";
import { Engine } from "../src/engine/engine.ts";
import { createIntelModel } from "../src/engine/system/cpuid.ts";
import { IntelCpu } from "../src/intel-cpu.ts";
import { VmxStatus } from "../src/logical-cpu.ts";
import { createMachine } from "../src/machine.ts";
import { Msr } from "../src/msr.ts";
import { engineMode } from "./engine-mode.ts";
import { SvmHarness } from "./svm-harness.ts";
import { BANK, VmxHarness } from "./vmx-harness.ts";

const engine = (options: ConstructorParameters<typeof Engine>[0]) => new Engine({ ...options, translate: engineMode() });
const intel = (): VmxHarness => new VmxHarness({ mode: "long", engine });
const amd = (): SvmHarness => new SvmHarness({ mode: "long", engine });
const findings = (log: readonly string[]): string[] => log.filter((line) => line.includes("sanitizer"));
const revisionOf = (h: VmxHarness): number => Number((h.cpu.rdmsr(Msr.VMX_BASIC) ?? 0n) & 0x7fff_ffffn);

describe("a VMCS", () => {
  /** CPU 1 of a machine whose CPU 0 is the harness's, in VMX operation. */
  function second(h: VmxHarness, log: string[]): IntelCpu {
    const cpu = new IntelCpu(createMachine({ cpus: 2, clock: "icount" }), 1, createIntelModel(), engine, (line) =>
      log.push(line),
    );
    cpu.memory.attachBank(BANK, h.bank.memory);
    const region = h.page();
    h.bank.u32[region >>> 2] = revisionOf(h);
    cpu.cr4 |= 1n << 13n;
    expect(cpu.vmx.vmxon(hpa(BANK, region))).toBe(VmxStatus.succeed);
    return cpu;
  }
  it("is told of when it is made current on a second CPU while active on the first", () => {
    const h = intel();
    const log: string[] = [];
    const cpu = second(h, log);
    expect(cpu.vmx.vmptrld(h.vmcs)).toBe(VmxStatus.succeed);
    expect(findings(log)).toEqual([`cpu1: sanitizer: VMCS ${h.vmcs.toString(16)} made current on CPU 1 while active on CPU 0`]);
  });
  it("goes from CPU to CPU in silence by way of VMCLEAR", () => {
    const h = intel();
    const log: string[] = [];
    const cpu = second(h, log);
    h.expect(h.cpu.vmx.vmclear(h.vmcs), "VMCLEAR");
    expect(cpu.vmx.vmptrld(h.vmcs)).toBe(VmxStatus.succeed);
    expect(findings(log)).toEqual([]);
  });
});

describe("a second load that takes VMX for its own", () => {
  it("is told of when it enters VMX operation once more, with a region of its own", () => {
    const h = intel();
    const region = h.page();
    h.bank.u32[region >>> 2] = revisionOf(h);
    expect(h.cpu.vmx.vmxon(hpa(BANK, region))).toBe(VmxStatus.failValid);
    const first = hpa(BANK, h.bank.firstFreeOffset).toString(16);
    expect(findings(h.log)).toEqual([
      `cpu0: sanitizer: VMXON with region ${hpa(BANK, region).toString(16)} on CPU 0, in VMX operation with region ${first}`,
    ]);
  });
  it("is told of when it sets up the first one's region anew", () => {
    const h = intel();
    h.bank.u8.fill(0, h.bank.firstFreeOffset, h.bank.firstFreeOffset + 4096);
    h.expect(h.cpu.vmx.vmptrld(h.vmcs), "VMPTRLD");
    h.expect(h.cpu.vmx.vmclear(h.vmcs), "VMCLEAR");
    h.expect(h.cpu.vmx.vmxoff(), "VMXOFF");
    expect(findings(h.log)).toEqual([
      `cpu0: sanitizer: VMXON region ${hpa(BANK, h.bank.firstFreeOffset).toString(16)} was written to, with CPU 0 in VMX operation`,
    ]);
  });
  it("is told of when the first one's region is freed under its feet, not when it has left VMX operation", () => {
    const h = intel();
    const region = hpa(BANK, h.bank.firstFreeOffset);
    h.cpu.sanitizer.pagesFreed(region, 1);
    expect(findings(h.log)).toEqual([
      `cpu0: sanitizer: VMXON region ${region.toString(16)} freed, with CPU 0 in VMX operation`,
    ]);
    h.expect(h.cpu.vmx.vmclear(h.vmcs), "VMCLEAR");
    h.expect(h.cpu.vmx.vmxoff(), "VMXOFF");
    h.cpu.sanitizer.pagesFreed(region, 1);
    expect(findings(h.log)).toHaveLength(1);
  });
  it("is told of on AMD when it moves the host save area, and not when SVM goes off between", () => {
    const move = (withSvmOff: boolean): string[] => {
      const h = amd();
      const efer = h.cpu.rdmsr(Msr.EFER) as bigint;
      if (withSvmOff) h.cpu.wrmsr(Msr.EFER, efer & ~0x1000n);
      expect(h.cpu.wrmsr(Msr.VM_HSAVE_PA, BigInt(hpa(BANK, h.page())))).toBe(true);
      if (withSvmOff) h.cpu.wrmsr(Msr.EFER, efer);
      return findings(h.log);
    };
    expect(move(false)).toEqual([
      expect.stringMatching(/^cpu0: sanitizer: host save area 3\w+ set at CPU 0, with SVM on and 3\w+ in use$/),
    ]);
    expect(move(true)).toEqual([]);
  });
});

describe("SVM that goes off", () => {
  it("is told of with GIF clear, where no interrupt comes through any more", () => {
    const off = (withGif: boolean): string[] => {
      const h = amd();
      if (withGif) h.cpu.svm.stgi();
      else h.cpu.svm.clgi();
      h.cpu.wrmsr(Msr.EFER, (h.cpu.rdmsr(Msr.EFER) as bigint) & ~0x1000n);
      return findings(h.log);
    };
    expect(off(false)).toEqual(["cpu0: sanitizer: SVM goes off at CPU 0 with GIF clear: no interrupt comes through any more"]);
    expect(off(true)).toEqual([]);
  });
});

describe("a host register at the return to user code", () => {
  const shared = ["STAR", "LSTAR", "CSTAR", "FMASK", "KERNEL_GS_BASE", "TSC_AUX"] as const;
  const cases = [
    ...[...shared, "FS_BASE", "GS_BASE", "SYSENTER_CS", "SYSENTER_ESP", "SYSENTER_EIP", "MISC_ENABLE"].map((name) => [
      "Intel",
      name,
    ]),
    ...[...shared, "FS_BASE", "GS_BASE", "SYSENTER_CS", "SYSENTER_ESP", "SYSENTER_EIP", "DEBUGCTL"].map((name) => [
      "AMD",
      name,
    ]),
  ] as [string, keyof typeof Msr][];

  it.each(cases)("of %s, %s, is told of when it holds another value than the kernel's, once", (vendor, name) => {
    const h = vendor === "AMD" ? amd() : intel();
    const { cpu } = h;
    const kernels = name === "DEBUGCTL" || name === "MISC_ENABLE" ? 0n : 0x11n;
    expect(cpu.wrmsr(Msr[name], kernels)).toBe(true);
    cpu.sanitizer.keepHostRegisters();
    cpu.sanitizer.returnsToUser();
    // As a module that restores what it has changed
    cpu.wrmsr(Msr[name], 1n);
    cpu.wrmsr(Msr[name], kernels);
    cpu.sanitizer.returnsToUser();
    expect(findings(h.log)).toEqual([]);
    cpu.wrmsr(Msr[name], 1n);
    cpu.sanitizer.returnsToUser();
    cpu.sanitizer.returnsToUser();
    expect(findings(h.log)).toEqual([
      expect.stringContaining(
        `CPU 0 returns to user code with 0x1 in ${name}, where the kernel has 0x${kernels.toString(16)};`,
      ),
    ]);
  });

  it("is told of when a guest left it there, with the guest's VMCS", () => {
    const h = intel();
    // mov ecx, 0xc0000102; mov eax, 0x1234; xor edx, edx; wrmsr; hlt: the MSR bitmap lets it pass
    h.load([0xb9, 2, 1, 0, 0xc0, 0xb8, 0x34, 0x12, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0xf4]);
    h.setControl("PRIMARY_CONTROLS", 1 << 28);
    h.write("MSR_BITMAP", hpa(BANK, h.page()));
    h.cpu.sanitizer.keepHostRegisters();
    expect(h.run().reason).toBe(12);
    h.cpu.sanitizer.returnsToUser();
    expect(findings(h.log)).toEqual([
      `cpu0: sanitizer: CPU 0 returns to user code with 0x1234 in KERNEL_GS_BASE, where the kernel has 0x0; VMCS ${h.vmcs.toString(16)} was used last`,
    ]);
  });

  it("is told of when a guest's XCR0 stays, or a VMCS has another host state than the kernel's", () => {
    const h = intel();
    h.load([0xf4]);
    h.write("HOST_SYSENTER_EIP", 0x5678);
    h.cpu.sanitizer.keepHostRegisters();
    h.cpu.xcr0 = 7n;
    h.run();
    h.cpu.sanitizer.returnsToUser();
    expect(findings(h.log).map((line) => / in (\w+),/.exec(line)?.[1])).toEqual(["SYSENTER_EIP", "XCR0"]);
  });

  it("is none of these: virtualization that is on, the TSC ratio, the host save area", () => {
    const h = amd();
    h.cpu.wrmsr(Msr.EFER, (h.cpu.rdmsr(Msr.EFER) as bigint) & ~0x1000n);
    h.cpu.sanitizer.keepHostRegisters();
    h.cpu.wrmsr(Msr.EFER, (h.cpu.rdmsr(Msr.EFER) as bigint) | 0x1000n);
    h.cpu.wrmsr(Msr.TSC_RATIO, 5n << 32n);
    h.cpu.wrmsr(Msr.VM_HSAVE_PA, BigInt(hpa(BANK, h.page())));
    h.cpu.sanitizer.returnsToUser();
    expect(findings(h.log).filter((line) => line.includes("returns to user"))).toEqual([]);
    const i = intel();
    i.cpu.sanitizer.returnsToUser();
    expect(findings(i.log)).toEqual([]);
  });
});
