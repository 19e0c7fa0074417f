/** SVM instructions and MSRs as software in root mode meets them: which statuses, and everything that VMRUN refuses. */
import { describe, expect, it } from "vitest";
import { hpa } from "../src/addresses.ts";
import { createLogicalCpu } from "../src/create-logical-cpu.ts";
import { Engine } from "../src/engine/engine.ts";
import { SvmStatus, VmxStatus } from "../src/logical-cpu.ts";
import { createMachine } from "../src/machine.ts";
import { Control, ExitCode, Intercept3, Intercept4, Save } from "../src/svm/vmcb.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { BANK, SvmHarness } from "./svm-harness.ts";

const EFER = 0xc000_0080;
const VM_CR = 0xc001_0114;
const VM_HSAVE_PA = 0xc001_0117;
const TSC_RATIO = 0xc000_0104;
const SVME = 0x1000n;
const HLT = [0xf4];

function harness(mode: "real" | "long" = "long"): SvmHarness {
  const h = new SvmHarness({
    mode,
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load(HLT);
  return h;
}
const amd = () => createLogicalCpu(createMachine({ vendor: "amd", clock: "icount" }), 0, () => undefined);

describe("a processor", () => {
  it("tells AMD's name and what of SVM there is", () => {
    const cpu = amd();
    const { eax, ebx, ecx, edx } = cpu.cpuid(0, 0);
    expect([eax, ebx, ecx, edx]).toEqual([13, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);
    expect(cpu.cpuid(0x8000_0001, 0).ecx & 4).toBe(4);
    expect(cpu.cpuid(1, 0).ecx & 0x20).toBe(0);
    expect(cpu.cpuid(0x8000_000a, 0)).toMatchObject({ eax: 1, ebx: 0x8000 });
    expect(cpu.cpuid(0x8000_000b, 0)).toEqual({ eax: 0, ebx: 0, ecx: 0, edx: 0 });
  });

  it("has the other vendor's instructions undefined", () => {
    const cpu = amd();
    expect(cpu.vmx.vmxon(hpa(1, 0))).toBe(VmxStatus.undefinedOpcode);
    expect(cpu.vmx.vmlaunch()).toBe(VmxStatus.undefinedOpcode);
    expect([cpu.vmx.vmread(0), cpu.vmx.vmptrst(), cpu.vmx.status]).toEqual([0n, undefined, VmxStatus.undefinedOpcode]);
    const intel = createLogicalCpu(createMachine({ clock: "icount" }), 0, () => undefined);
    expect(intel.svm.vmrun(hpa(1, 0))).toBe(SvmStatus.undefinedOpcode);
    expect(intel.svm.stgi()).toBe(SvmStatus.undefinedOpcode);
    expect(intel.svm.gif).toBe(true);
    expect(intel.wrmsr(EFER, 0x1d01n)).toBe(false);
    expect(intel.rdmsr(VM_HSAVE_PA)).toBeUndefined();
    expect(cpu.rdmsr(0x480)).toBeUndefined();
    expect(cpu.rdmsr(0x3a)).toBeUndefined();
  });
});

describe("MSRs", () => {
  it("has EFER.SVME while VM_CR lets it", () => {
    const cpu = amd();
    expect(cpu.wrmsr(VM_CR, 1n << 5n)).toBe(false);
    expect(cpu.wrmsr(VM_CR, 0x10n)).toBe(true);
    expect(cpu.wrmsr(EFER, 0xd01n | SVME)).toBe(false);
    expect(cpu.wrmsr(VM_CR, 0n)).toBe(true);
    expect(cpu.wrmsr(EFER, 0xd01n | SVME)).toBe(true);
    expect(cpu.rdmsr(EFER)).toBe(0xd01n | SVME);
    expect(cpu.wrmsr(VM_CR, 0x10n)).toBe(false);
    expect(cpu.wrmsr(EFER, 0xd01n | 0x2000n)).toBe(false);
    expect(cpu.wrmsr(EFER, 0xd01n)).toBe(true);
    expect(cpu.wrmsr(VM_CR, 0x18n)).toBe(true);
    expect(cpu.wrmsr(VM_CR, 0n)).toBe(false);
    expect(cpu.wrmsr(VM_CR, 0x1an)).toBe(true);
  });

  it("takes host save areas that are pages of physical memory", () => {
    const cpu = amd();
    expect(cpu.wrmsr(VM_HSAVE_PA, 0x1_0000_1000n)).toBe(true);
    expect(cpu.rdmsr(VM_HSAVE_PA)).toBe(0x1_0000_1000n);
    expect(cpu.wrmsr(VM_HSAVE_PA, 0x1_0000_1001n)).toBe(false);
    expect(cpu.wrmsr(VM_HSAVE_PA, (1n << 52n) - 0x1000n)).toBe(true);
    expect(cpu.wrmsr(VM_HSAVE_PA, 1n << 52n)).toBe(false);
  });

  it("has a TSC ratio of 40 bits, 1.0 after power-on", () => {
    const cpu = amd();
    expect(cpu.rdmsr(TSC_RATIO)).toBe(1n << 32n);
    expect(cpu.wrmsr(TSC_RATIO, (1n << 40n) - 1n)).toBe(true);
    expect(cpu.wrmsr(TSC_RATIO, 1n << 40n)).toBe(false);
  });
});

describe("SVM instructions", () => {
  it("are undefined without EFER.SVME", () => {
    const h = harness();
    h.cpu.wrmsr(EFER, 0xd01n);
    const { svm } = h.cpu;
    const all = [svm.vmrun(h.vmcb), svm.vmload(h.vmcb), svm.vmsave(h.vmcb), svm.stgi(), svm.clgi(), svm.invlpga(0n, 1)];
    expect(all).toEqual(all.map(() => SvmStatus.undefinedOpcode));
  });

  it("fault for addresses of no page", () => {
    const { cpu, vmcb } = harness();
    for (const address of [vmcb + 8, 2 ** 52, -4096]) {
      const operand = address as typeof vmcb;
      const all = [cpu.svm.vmrun(operand), cpu.svm.vmload(operand), cpu.svm.vmsave(operand)];
      expect(all).toEqual(all.map(() => SvmStatus.generalProtection));
    }
    expect(cpu.svm.vmsave(vmcb)).toBe(SvmStatus.succeed);
  });

  it("set and clear GIF, which an exit leaves clear", () => {
    const h = harness();
    expect(h.cpu.svm.gif).toBe(true);
    h.cpu.svm.clgi();
    expect(h.cpu.svm.gif).toBe(false);
    h.cpu.svm.stgi();
    expect(h.cpu.svm.gif).toBe(true);
    h.run();
    expect(h.cpu.svm.gif).toBe(false);
  });

  it("move hidden state with VMLOAD and VMSAVE", () => {
    const h = harness();
    const { cpu } = h;
    h.setSegment(Save.FS, 0x33, 0xcf3, 0xffff_ffff, 0x1234_5000);
    h.setSegment(Save.TR, 0x40, 0x8b, 0x67, 0x9000);
    h.setSegment(Save.LDTR, 0, 0, 0);
    const msrs: [number, number, bigint][] = [
      [Save.STAR, 0xc000_0081, 0x23_0010_0000_0000n],
      [Save.LSTAR, 0xc000_0082, 0xffff_8000_0000_1000n],
      [Save.CSTAR, 0xc000_0083, 0x2000n],
      [Save.SFMASK, 0xc000_0084, 0x47700n],
      [Save.KERNEL_GS_BASE, 0xc000_0102, 0x7000n],
      [Save.SYSENTER_CS, 0x174, 0x10n],
      [Save.SYSENTER_ESP, 0x175, 0x8000n],
      [Save.SYSENTER_EIP, 0x176, 0x9000n],
    ];
    for (const [field, , value] of msrs) h.set64(field, value);
    cpu.svm.vmload(h.vmcb);
    for (const [, msr, value] of msrs) expect(cpu.rdmsr(msr)).toBe(value);
    expect(cpu.rdmsr(0xc000_0100)).toBe(0x1234_5000n);
    const other = hpa(BANK, h.page());
    cpu.wrmsr(0xc000_0101, 0xffff_8800_0000_0000n);
    cpu.svm.vmsave(other);
    const [from, to] = [h.vmcb, other].map((address) => new Uint8Array(h.cpu.memory.bytes(address, 4096)));
    for (const [start, bytes] of [
      [Save.FS, 16],
      [Save.TR, 16],
      [Save.STAR, 0x40],
    ] as const)
      expect(to?.slice(start, start + bytes)).toEqual(from?.slice(start, start + bytes));
    expect(h.cpu.memory.bytes(other, 4096)[Save.GS + 13]).toBe(0x88);
  });

  it("make a canonical address of what VMLOAD finds", () => {
    const h = harness();
    h.set64(Save.KERNEL_GS_BASE, 0x0300_8000_0000_0000n);
    h.cpu.svm.vmload(h.vmcb);
    expect(h.cpu.rdmsr(0xc000_0102)).toBe(0xff00_8000_0000_0000n);
  });
});

/** Each broken rule beside the nearest thing that is allowed; `false`: VMRUN refuses. */
const rules: readonly [string, (h: SvmHarness) => void, boolean][] = [
  ["EFER.SVME clear", (h) => h.set64(Save.EFER, 0xd01), false],
  ["CR0.NW without CD", (h) => h.set64(Save.CR0, 0xa000_0031), false],
  ["CR0.NW with CD", (h) => h.set64(Save.CR0, 0xe000_0031), true],
  ["CR0 bit 32", (h) => h.set64(Save.CR0, 0x1_8000_0031), false],
  ["CR3 bit 52", (h) => h.set64(Save.CR3, (1n << 52n) | 0x1000n), false],
  ["CR3 without it", (h) => h.set64(Save.CR3, 0x1018), true],
  ["CR4 bit 31", (h) => h.set64(Save.CR4, 0x8000_0020), false],
  ["CR4.VMXE", (h) => h.set64(Save.CR4, 0x2020), false],
  ["CR4.TSD", (h) => h.set64(Save.CR4, 0x24), true],
  ["DR6 bit 32", (h) => h.set64(Save.DR6, 0x1_ffff_0ff0), false],
  ["DR6 bit 31", (h) => h.set64(Save.DR6, 0xffff_0ff0), true],
  ["DR7 bit 32", (h) => h.set64(Save.DR7, 0x1_0000_0400), false],
  ["DR7 bit 31", (h) => h.set64(Save.DR7, 0x8000_0400), true],
  ["EFER bit 13", (h) => h.set64(Save.EFER, 0x3d01), false],
  ["EFER bit 32", (h) => h.set64(Save.EFER, 0x1_0000_1d01), false],
  ["long mode without PAE", (h) => h.set64(Save.CR4, 0), false],
  ["long mode without PE", (h) => h.set64(Save.CR0, 0x8000_0030), false],
  ["CS.L with D", (h) => h.setSegment(Save.CS, 0x10, 0xe9b, 0xffff_ffff), false],
  ["no VMRUN intercept", (h) => h.clearBits(Control.INTERCEPT_4, Intercept4.vmrun), false],
  ["ASID 0", (h) => h.set32(Control.ASID, 0), false],
  ["the last ASID", (h) => h.set32(Control.ASID, 0x7fff), true],
  ["an ASID too many", (h) => h.set32(Control.ASID, 0x8000), false],
  ["TLB_CONTROL 1", (h) => h.set8(Control.TLB_CONTROL, 1), true],
  ["TLB_CONTROL 2", (h) => h.set8(Control.TLB_CONTROL, 2), false],
  ["TLB_CONTROL 3", (h) => h.set8(Control.TLB_CONTROL, 3), true],
  ["TLB_CONTROL 7", (h) => h.set8(Control.TLB_CONTROL, 7), true],
  ["MSRPM at the very end", (h) => h.set64(Control.MSRPM_BASE, (1n << 52n) - 0x2000n), true],
  ["MSRPM past it", (h) => h.set64(Control.MSRPM_BASE, (1n << 52n) - 0x1000n), false],
  ["IOPM at the very end", (h) => h.set64(Control.IOPM_BASE, (1n << 52n) - 0x3000n), true],
  ["IOPM past it", (h) => h.set64(Control.IOPM_BASE, (1n << 52n) - 0x2000n), false],
  [
    "IOPM that nothing uses",
    (h) => {
      h.set64(Control.IOPM_BASE, (1n << 52n) - 0x2000n);
      h.clearBits(Control.INTERCEPT_3, Intercept3.io);
    },
    true,
  ],
  ["nested CR3 bit 52", (h) => h.set64(Control.NESTED_CR3, (1n << 52n) | BigInt(h.nptRoot)), false],
  ["G_PAT of type 2", (h) => h.set64(Save.G_PAT, 0x0007_0406_0007_0402n), false],
  ["injection of type 1", (h) => h.set32(Control.EVENT_INJECTION, 0x8000_0120), false],
  ["injection of type 5", (h) => h.set32(Control.EVENT_INJECTION, 0x8000_0520), false],
  ["injection that is not valid", (h) => h.set32(Control.EVENT_INJECTION, 0x520), true],
  ["injection of exception 2", (h) => h.set32(Control.EVENT_INJECTION, 0x8000_0302), false],
  ["injection of exception 32", (h) => h.set32(Control.EVENT_INJECTION, 0x8000_0320), false],
  [
    "virtual NMIs without the intercept",
    (h) => {
      h.set32(Control.V_INTERRUPT, (1 << 24) | (1 << 26));
      h.clearBits(Control.INTERCEPT_3, Intercept3.nmi);
    },
    false,
  ],
  ["virtual NMIs with it", (h) => h.set32(Control.V_INTERRUPT, (1 << 24) | (1 << 26)), true],
];

describe("VMRUN", () => {
  it.each(rules)("%s", (_rule, change, isAllowed) => {
    const h = harness();
    change(h);
    const rax = h.get64(Save.RAX);
    expect(h.run().code).toBe(isAllowed ? ExitCode.hlt : ExitCode.invalid);
    expect(h.log.filter((line) => line.includes("VMRUN")).length).toBe(isAllowed ? 0 : 1);
    if (!isAllowed) expect([h.get64(Save.RAX), h.get64(Save.RIP)]).toEqual([rax, 0x8000n]);
  });

  it("reads all ones where there is no memory, and says so", () => {
    const h = harness();
    expect(h.cpu.svm.vmrun(hpa(77, 0x2000))).toBe(SvmStatus.succeed);
    expect(h.log.join()).toContain("where no memory is");
  });

  it("tells of a host save area that nobody has set up", () => {
    const h = harness();
    h.cpu.wrmsr(VM_HSAVE_PA, 0n);
    h.run();
    h.run();
    expect(h.log.filter((line) => line.includes("VM_HSAVE_PA")).length).toBe(1);
  });

  it("saves and loads every register that it switches", () => {
    const h = harness();
    h.set64(Save.RAX, 0x1111_2222_3333_4444n);
    h.set64(Save.CR2, 0xdead_b000n);
    h.set64(Save.DR6, 0xffff_0ff5n);
    h.setSegment(Save.ES, 0x1b, 0xcf3, 0x1234, 0x5000);
    h.setSegment(Save.GDTR, 0, 0, 0x77, 0x12_3000);
    const before = new Uint8Array(h.cpu.memory.bytes(h.vmcb, 4096).slice(0x400));
    expect(h.run().code).toBe(ExitCode.hlt);
    expect(new Uint8Array(h.cpu.memory.bytes(h.vmcb, 4096).slice(0x400))).toEqual(before);
    expect(h.cpu.cr2).toBe(0xdead_b000n);
  });
});
