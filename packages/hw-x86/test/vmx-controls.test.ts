/** VMX controls of registers, entries, lists and second-level tables, each by what a guest makes of it; both sides of every limit. */
import { describe, expect, it } from "vitest";
import { hpa } from "../src/addresses.ts";
import { VmxStatus } from "../src/logical-cpu.ts";
import { EntryControl, ExitControl, ExitReason, Primary, Secondary, VmxError } from "../src/vmx/controls.ts";
import { CPUID, DATA, enterAt, guest, HANDLER, HLT } from "./halting-guest.ts";
import { BANK, CODE, type VmxHarness } from "./vmx-harness.ts";

describe("CR3-target values", () => {
  it("are as many as the count says, four at most, and compared whole", () => {
    // mov cr3, rax
    const h = guest([0x0f, 0x22, 0xd8, HLT]);
    h.setControl("PRIMARY_CONTROLS", Primary.cr3LoadExiting);
    h.cpu.setGpr(0, 0x1000n);
    const targets = ["CR3_TARGET0", "CR3_TARGET1", "CR3_TARGET2", "CR3_TARGET3"] as const;
    for (const name of targets) h.write(name, 0x1008);
    targets.forEach((name, index) => {
      h.write(name, 0x1000);
      for (const [count, reason] of [
        [index, ExitReason.controlRegister],
        [index + 1, ExitReason.hlt],
      ] as const) {
        h.write("CR3_TARGET_COUNT", count);
        h.write("GUEST_RIP", CODE);
        expect(h.run().reason, `${name} with ${count}`).toBe(reason);
      }
      h.write(name, 0x1008);
    });
    h.write("CR3_TARGET_COUNT", 5);
    expect(h.cpu.vmx.vmresume()).toBe(VmxStatus.failValid);
  });
});

describe("CR0 and CR4 masks and shadows", () => {
  const qualification = (access: number, memory: boolean, source = 0): number =>
    ((access << 4) | (memory ? 0x40 : 0) | (source << 16)) >>> 0;

  it("LMSW exits with its source, from a register and from memory", () => {
    const h = guest([0x0f, 0x01, 0xf0, HLT]);
    h.write("CR0_MASK", 0xe);
    h.write("CR0_SHADOW", 0);
    h.cpu.setGpr(0, 0xabc3n);
    expect(h.run()).toMatchObject({
      reason: ExitReason.controlRegister,
      qualification: qualification(3, false, 0xabc3),
      instructionLength: 3,
    });
    // lmsw [DATA]
    enterAt(h, [0x0f, 0x01, 0x34, 0x25, 0, 0, 0x30, 0], 1);
    h.bank.view.setUint16(h.guestMemory + DATA, 0x1235, true);
    expect(h.run()).toMatchObject({
      reason: ExitReason.controlRegister,
      qualification: qualification(3, true, 0x1235),
      instructionLength: 8,
    });
    expect(h.read("GUEST_LINEAR_ADDRESS")).toBe(DATA);
  });

  it("LMSW that agrees with the shadow writes what is the guest's, and never clears PE", () => {
    // xor eax, eax; lmsw ax; mov rbx, cr0
    const h = guest([0x31, 0xc0, 0x0f, 0x01, 0xf0, 0x0f, 0x20, 0xc3, HLT]);
    h.write("GUEST_CR0", 0x8000_003f);
    h.write("CR0_MASK", 8);
    h.write("CR0_SHADOW", 0);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.read("GUEST_CR0")).toBe(0x8000_0039);
    expect(h.cpu.gpr(3)).toBe(0x8000_0031n);
    // PE may be set, and exits where the host has it clear in the shadow
    h.write("CR0_MASK", 1);
    enterAt(h, [0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xf0], 2);
    expect(h.run()).toMatchObject({ reason: ExitReason.controlRegister, qualification: qualification(3, false, 1) });
  });

  it("CLTS exits where the host shows TS set, does nothing where it shows it clear, and clears a TS of the guest's", () => {
    const h = guest([0x0f, 0x06, HLT]);
    h.write("GUEST_CR0", 0x8000_0039);
    h.write("CR0_MASK", 8);
    h.write("CR0_SHADOW", 8);
    expect(h.run()).toMatchObject({
      reason: ExitReason.controlRegister,
      qualification: qualification(2, false),
      instructionLength: 2,
    });
    h.write("CR0_SHADOW", 0);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.read("GUEST_CR0")).toBe(0x8000_0039);
    h.write("CR0_MASK", 0);
    h.write("GUEST_RIP", CODE);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect(h.read("GUEST_CR0")).toBe(0x8000_0031);
  });

  it("SMSW and MOV read through the shadow", () => {
    // smsw eax; mov rbx, cr4
    const h = guest([0x0f, 0x01, 0xe0, 0x0f, 0x20, 0xe3, HLT]);
    h.write("CR0_MASK", 0x8000_0008);
    h.write("CR0_SHADOW", 8);
    h.write("CR4_MASK", 0x2020);
    h.write("CR4_SHADOW", 0x2000);
    expect(h.run().reason).toBe(ExitReason.hlt);
    expect([h.cpu.gpr(0), h.cpu.gpr(3)]).toEqual([0x39n, 0x2000n]);
  });

  it("MOV to CR4 exits for a bit of the host's and writes the others", () => {
    // mov rax, cr4; or al, 4; mov cr4, rax; xor al, 0x80; mov cr4, rax
    const h = guest([0x0f, 0x20, 0xe0, 0x0c, 4, 0x0f, 0x22, 0xe0, 0x34, 0x80, 0x0f, 0x22, 0xe0, HLT]);
    h.write("CR4_MASK", 0x2080);
    h.write("CR4_SHADOW", 0);
    expect(h.run()).toMatchObject({ reason: ExitReason.controlRegister, qualification: 4, rip: CODE + 10 });
    expect(h.read("GUEST_CR4")).toBe(0x2024);
  });
});

describe("a failed entry", () => {
  it("leaves host state, what the entry was to inject, and nothing of the guest", () => {
    const h = guest([...CPUID, HLT]);
    h.write("HOST_SYSENTER_EIP", 0x1234);
    h.write("HOST_FS_BASE", 0x5678);
    h.write("GUEST_SYSENTER_EIP", 0x9999);
    h.write("ENTRY_INTERRUPTION_INFO", 0x8000_0030);
    h.cpu.wrmsr(0x176, 1n);
    // RFLAGS.IF is clear: the interrupt cannot be injected
    expect(h.run()).toMatchObject({ reason: 0x8000_0021, qualification: 0, rip: CODE });
    expect(h.read("ENTRY_INTERRUPTION_INFO")).toBe(0x8000_0030);
    expect([h.cpu.rdmsr(0x176), h.cpu.rdmsr(0xc000_0100)]).toEqual([0x1234n, 0x5678n]);
    expect(h.read("GUEST_SYSENTER_EIP")).toBe(0x9999);
    h.write("GUEST_RFLAGS", 0x202);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: HANDLER });
  });

  it("keeps root mode's EFER where the exit does not load one", () => {
    const h = guest([...CPUID]);
    h.clearControl("EXIT_CONTROLS", ExitControl.loadEfer);
    h.write("GUEST_RFLAGS", 0);
    expect(h.run().reason).toBe(0x8000_0021);
    expect(h.cpu.rdmsr(0xc000_0080)).toBe(0xd01n);
  });

  it("loads MSRs of the exit's list, and stores none", () => {
    const h = guest([...CPUID]);
    const [load, store] = [h.page(), h.page()];
    h.bank.u32[load >>> 2] = 0xc000_0082;
    h.bank.u32[(load >>> 2) + 2] = 0x4321;
    h.bank.u32[store >>> 2] = 0xc000_0082;
    h.write("EXIT_MSR_LOAD_ADDRESS", hpa(BANK, load));
    h.write("EXIT_MSR_LOAD_COUNT", 1);
    h.write("EXIT_MSR_STORE_ADDRESS", hpa(BANK, store));
    h.write("EXIT_MSR_STORE_COUNT", 1);
    h.write("GUEST_RFLAGS", 0);
    expect(h.run().reason).toBe(0x8000_0021);
    expect(h.cpu.rdmsr(0xc000_0082)).toBe(0x4321n);
    expect(h.bank.u32[(store >>> 2) + 2]).toBe(0);
  });
});

describe("MSR lists", () => {
  function list(h: VmxHarness, entries: readonly (readonly [number, bigint, number?])[]): bigint {
    const at = h.page();
    entries.forEach(([index, value, reserved = 0], i) => {
      h.bank.u32[(at >>> 2) + 4 * i] = index;
      h.bank.u32[(at >>> 2) + 4 * i + 1] = reserved;
      h.bank.view.setBigUint64(at + 16 * i + 8, value, true);
    });
    return BigInt(hpa(BANK, at));
  }
  const LSTAR = 0xc000_0082;

  it.each([
    ["FS_BASE", 0xc000_0100, 0n, 0],
    ["GS_BASE", 0xc000_0101, 0n, 0],
    ["an x2APIC register", 0x808, 0n, 0],
    ["reserved bits", LSTAR, 0n, 1],
    ["an address that is not canonical", LSTAR, 0x0100_0000_0000_0000n, 0],
    ["a memory type that does not exist", 0x277, 2n, 0],
    ["EFER without LME under paging", 0xc000_0080, 0xc01n, 0],
    ["an MSR that does not exist", 0x1234_5678, 0n, 0],
  ] as const)("an entry with %s fails it, by its number", (_name, index, value, reserved) => {
    const h = guest([...CPUID]);
    h.write(
      "ENTRY_MSR_LOAD_ADDRESS",
      list(h, [
        [LSTAR, 0x1000n],
        [index, value, reserved],
      ]),
    );
    h.write("ENTRY_MSR_LOAD_COUNT", 2);
    expect(h.run()).toMatchObject({ reason: 0x8000_0022, qualification: 2, rip: CODE });
    expect(h.cpu.vmx.vmresume()).toBe(VmxStatus.failValid);
    expect(h.cpu.rdmsr(0xc000_0080)).toBe(0xd01n);
    h.write("ENTRY_MSR_LOAD_COUNT", 1);
    expect(h.run().reason).toBe(ExitReason.cpuid);
  });

  it("stores the guest's and the time, and loads the host's", () => {
    // mov ecx, LSTAR; mov eax, 0x777; xor edx, edx; wrmsr
    const h = guest([0xb9, 0x82, 0, 0, 0xc0, 0xb8, 0x77, 7, 0, 0, 0x31, 0xd2, 0x0f, 0x30, ...CPUID]);
    const bitmap = h.page();
    h.setControl("PRIMARY_CONTROLS", Primary.useMsrBitmaps);
    h.write("MSR_BITMAP", hpa(BANK, bitmap));
    const stored = list(h, [
      [LSTAR, 0n],
      [0x10, 0n],
    ]);
    h.write("EXIT_MSR_STORE_ADDRESS", stored);
    h.write("EXIT_MSR_STORE_COUNT", 2);
    h.write("EXIT_MSR_LOAD_ADDRESS", list(h, [[LSTAR, 0x555n]]));
    h.write("EXIT_MSR_LOAD_COUNT", 1);
    expect(h.run().reason).toBe(ExitReason.cpuid);
    const at = Number(stored % 0x1_0000_0000n);
    expect([h.bank.view.getBigUint64(at + 8, true), h.bank.view.getBigUint64(at + 24, true)]).toEqual([0x777n, 80n]);
    expect(h.cpu.rdmsr(LSTAR)).toBe(0x555n);
  });

  it("of the exit that cannot be stored or loaded abort VMX, with their indicator in the region", () => {
    for (const [address, count, indicator] of [
      ["EXIT_MSR_STORE_ADDRESS", "EXIT_MSR_STORE_COUNT", 1],
      ["EXIT_MSR_LOAD_ADDRESS", "EXIT_MSR_LOAD_COUNT", 4],
    ] as const) {
      const h = guest([...CPUID]);
      h.write(address, list(h, [[0x1234_5678, 0n]]));
      h.write(count, 1);
      expect(() => h.run()).toThrow(`VMX abort ${indicator}`);
      expect(h.bank.u32[((h.vmcs % 0x1_0000_0000) >>> 2) + 1]).toBe(indicator);
    }
  });
});

describe("EPT entries", () => {
  const READ_DATA = [0x8b, 0x04, 0x25, 0, 0, 0x30, 0, HLT];
  it("may be execute-only: fetched from, and neither read nor written", () => {
    const h = guest([...READ_DATA]);
    const code = h.eptEntry(CODE);
    h.setEntry(code, ((h.bank.u32[code >>> 2] as number) & ~7) | 4);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: CODE + 7 });
    const data = h.eptEntry(DATA);
    h.setEntry(data, ((h.bank.u32[data >>> 2] as number) & ~7) | 4);
    h.cpu.vmx.invept(2, 0n);
    h.write("GUEST_RIP", CODE);
    expect(h.run()).toMatchObject({ reason: ExitReason.eptViolation, qualification: 0x181 | (4 << 3) });
  });

  it.each([
    ["write-only", 0, (low: number) => (low & ~7) | 2],
    ["write and execute without read", 0, (low: number) => (low & ~7) | 6],
    ["memory type 2", 0, (low: number) => (low & ~0x38) | (2 << 3)],
    ["memory type 7", 0, (low: number) => (low & ~0x38) | (7 << 3)],
    ["reserved bits of a table's entry", 1, (low: number) => low | 8],
    ["a 2 MiB page that is not aligned", 1, () => 0x20_1000 | 0xb7],
    ["the page-size bit of the top table", 3, (low: number) => low | 0x80],
  ] as const)("misconfigured: %s", (_name, level, change) => {
    const h = guest([...READ_DATA]);
    const entry = h.eptEntry(DATA, level);
    h.setEntry(entry, change(h.bank.u32[entry >>> 2] as number) >>> 0);
    const exit = h.run();
    expect(exit.reason).toBe(ExitReason.eptMisconfiguration);
    // Whatever comes first through the top table; the access itself elsewhere
    if (level < 3) expect(h.read("GUEST_PHYSICAL_ADDRESS") & ~0x1f_ffff).toBe(level === 0 ? DATA & ~0x1f_ffff : 0x20_0000);
  });
});

describe("unrestricted guests", () => {
  it("may be without paging and protection, others may not, at entry and by MOV to CR0", () => {
    expect(guest([HLT], "real").run().reason).toBe(ExitReason.hlt);
    const restricted = guest([HLT], "real");
    restricted.clearControl("SECONDARY_CONTROLS", Secondary.unrestrictedGuest);
    expect(restricted.run().reason).toBe(0x8000_0021);
    // 32-bit with paging off: mov eax, cr0; and al, ~1; mov cr0, eax
    const clearsPe = [0x0f, 0x20, 0xc0, 0x25, 0xff, 0xff, 0xff, 0x7f, 0x0f, 0x22, 0xc0, HLT];
    const h = guest(clearsPe);
    h.clearControl("SECONDARY_CONTROLS", Secondary.unrestrictedGuest);
    h.write("EXCEPTION_BITMAP", 1 << 13);
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, rip: CODE + 8 });
    // In long mode with an unrestricted guest it is #GP all the same, by the rules of MOV
    const own = guest(clearsPe);
    own.write("EXCEPTION_BITMAP", 1 << 13);
    expect(own.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, rip: CODE + 8 });
  });
  it("need EPT", () => {
    const h = guest([HLT]);
    h.clearControl("SECONDARY_CONTROLS", Secondary.enableEpt);
    expect(h.cpu.vmx.vmlaunch()).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(VmxError.entryInvalidControls);
  });
});

describe("XSS-exiting", () => {
  it("exits for components that its bitmap and the instruction have in common", () => {
    // xor edx, edx; mov eax, 1 << 8; xsaves [DATA]
    const h = guest([0x31, 0xd2, 0xb8, 0, 1, 0, 0, 0x0f, 0xc7, 0x2c, 0x25, 0, 0, 0x30, 0, HLT]);
    h.write("GUEST_CR4", 0x4_2020);
    h.setControl("SECONDARY_CONTROLS", Secondary.enableXsaves);
    h.write("XSS_EXITING_BITMAP", 1n << 8n);
    const exit = h.run();
    // IA32_XSS is zero here, so that no instruction has a component in common with it
    expect(exit.reason).toBe(ExitReason.hlt);
    h.clearControl("SECONDARY_CONTROLS", Secondary.enableXsaves);
    h.write("EXCEPTION_BITMAP", 1 << 6);
    h.write("GUEST_RIP", CODE);
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi, rip: CODE + 7 });
  });
});

describe("INVVPID and INVEPT", () => {
  const READ_DATA = [0x8b, 0x04, 0x25, 0, 0, 0x30, 0, HLT];
  function stale(): { h: VmxHarness; read(): bigint } {
    const h = guest([...READ_DATA]);
    h.bank.u32[(h.guestMemory + DATA) >>> 2] = 1;
    const other = h.page();
    h.bank.u32[other >>> 2] = 2;
    h.run();
    h.map(DATA, other, 0x37);
    const read = (): bigint => {
      h.write("GUEST_RIP", CODE);
      expect(h.run().reason).toBe(ExitReason.hlt);
      return h.cpu.gpr(0);
    };
    expect(read()).toBe(1n);
    return { h, read };
  }
  const eptp = (h: VmxHarness): bigint => (BigInt(BANK) << 32n) | BigInt(h.eptRoot) | 0x1en;

  it("of one context and of all drop what is cached of the tables, of another context nothing", () => {
    const { h, read } = stale();
    expect(h.cpu.vmx.invept(1, eptp(h) + 0x1000n)).toBe(VmxStatus.succeed);
    expect(read()).toBe(1n);
    expect(h.cpu.vmx.invept(1, eptp(h))).toBe(VmxStatus.succeed);
    expect(read()).toBe(2n);
    const all = stale();
    expect(all.h.cpu.vmx.invept(2, 0n)).toBe(VmxStatus.succeed);
    expect(all.read()).toBe(2n);
  });

  it.each([
    ["INVEPT type 0", (h: VmxHarness) => h.cpu.vmx.invept(0, 0n)],
    ["INVEPT type 3", (h: VmxHarness) => h.cpu.vmx.invept(3, 0n)],
    ["INVEPT of a pointer with reserved bits", (h: VmxHarness) => h.cpu.vmx.invept(1, eptp(h) | 0x800n)],
    ["INVVPID type 4", (h: VmxHarness) => h.cpu.vmx.invvpid(4, 1, 0n)],
    ["INVVPID of VPID 0", (h: VmxHarness) => h.cpu.vmx.invvpid(1, 0, 0n)],
    ["INVVPID of one address of VPID 0", (h: VmxHarness) => h.cpu.vmx.invvpid(0, 0, 0n)],
    ["INVVPID but for globals of VPID 0", (h: VmxHarness) => h.cpu.vmx.invvpid(3, 0, 0n)],
    ["INVVPID of more than 16 bits", (h: VmxHarness) => h.cpu.vmx.invvpid(1, 0x1_0001, 0n)],
    ["INVVPID of an address that is not canonical", (h: VmxHarness) => h.cpu.vmx.invvpid(0, 1, 0x0100_0000_0000_0000n)],
  ] as const)("%s fails with 28", (_name, invalidate) => {
    const h = guest([HLT]);
    expect(invalidate(h)).toBe(VmxStatus.failValid);
    expect(h.read("INSTRUCTION_ERROR")).toBe(28);
  });

  it.each([
    ["one address", 0, 1, BigInt(DATA)],
    ["one context", 1, 1, 0n],
    ["all", 2, 0, 0n],
    ["one context but for globals", 3, 1, 0n],
  ] as const)("INVVPID of %s drops the guest's translations", (_name, type, vpid, linear) => {
    const h = guest([...READ_DATA]);
    h.bank.u32[(h.guestMemory + DATA) >>> 2] = 1;
    h.bank.u32[(h.guestMemory + 0x20_0000) >>> 2] = 2;
    expect(h.run().reason).toBe(ExitReason.hlt);
    // The guest's page table changes: 2 MiB at DATA & ~0x1fffff now lies where guest physical 0 is, so DATA reads 0x100000
    const entry = (h.guestMemory + 0x3000 + 8) >>> 2;
    h.bank.u32[entry] = 0x87;
    h.bank.u32[(h.guestMemory + 0x10_0000) >>> 2] = 5;
    h.write("GUEST_RIP", CODE);
    h.run();
    expect(h.cpu.gpr(0)).toBe(1n);
    expect(h.cpu.vmx.invvpid(type, vpid, linear)).toBe(VmxStatus.succeed);
    h.write("GUEST_RIP", CODE);
    h.run();
    expect(h.cpu.gpr(0)).toBe(5n);
  });
});

it("leaves IA-32e mode in the entry control as unrestricted guests need it", () => {
  const h = guest([HLT]);
  expect(h.run().reason).toBe(ExitReason.hlt);
  expect(h.read("ENTRY_CONTROLS") & EntryControl.ia32eModeGuest).not.toBe(0);
});
