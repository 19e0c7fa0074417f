/** Pages that are given back while the processor may still use them: each test commits the very mistake, and its pair does not. */
import { describe, expect, it } from "vitest";
import { hpa } from "../src/addresses.ts";
import { Engine } from "../src/engine/engine.ts";
import { Control, Save } from "../src/svm/vmcb.ts";
import { Primary, Secondary } from "../src/vmx/controls.ts";
import { engineMode } from "./engine-mode.ts";
import { SvmHarness } from "./svm-harness.ts";
import { BANK, CODE, VmxHarness } from "./vmx-harness.ts";

const HLT = 0xf4;
const engine = (options: ConstructorParameters<typeof Engine>[0]) => new Engine({ ...options, translate: engineMode() });
/** A page with data of the guest's, mapped by a table of its own. */
const DATA = 0x20_0000;
/** mov al, [DATA]; hlt; mov al, [DATA]; hlt */
const READ_TWICE = [0x8a, 0x04, 0x25, 0, 0, 0x20, 0, HLT, 0x8a, 0x04, 0x25, 0, 0, 0x20, 0, HLT];

/** One guest on either vendor, with what the tests do to it. */
interface Machine {
  readonly log: string[];
  readonly h: VmxHarness | SvmHarness;
  /** "300012000" */
  readonly structure: string;
  readonly tables: string;
  run(): void;
  /** Bank offset of the entry for DATA at a level. */
  entry(level: number): number;
  flush(): void;
  free(offset: number, count?: number): void;
}

function intel(): Machine {
  const h = new VmxHarness({ mode: "long", engine });
  h.load(READ_TWICE);
  return {
    log: h.log,
    h,
    structure: `VMCS ${h.vmcs.toString(16)}`,
    tables: "EPT",
    run() {
      h.run();
      h.skip();
    },
    entry: (level) => h.eptEntry(DATA, level),
    flush: () => h.expect(h.cpu.vmx.invept(1, (BigInt(BANK) << 32n) | BigInt(h.eptRoot) | 0x1en), "INVEPT"),
    free: (offset, count = 1) => h.cpu.sanitizer.pagesFreed(hpa(BANK, offset), count),
  };
}
function amd(): Machine {
  const h = new SvmHarness({ mode: "long", engine });
  h.load(READ_TWICE);
  return {
    log: h.log,
    h,
    structure: `VMCB ${h.vmcb.toString(16)}`,
    tables: "nested page tables",
    run() {
      h.run();
      h.skip();
      h.set8(Control.TLB_CONTROL, 0);
    },
    entry: (level) => h.nptEntry(DATA, level),
    flush: () => h.set8(Control.TLB_CONTROL, 3),
    free: (offset, count = 1) => h.cpu.sanitizer.pagesFreed(hpa(BANK, offset), count),
  };
}
const findings = ({ log }: Machine): string[] => log.filter((line) => line.includes("sanitizer"));
const hex = (offset: number): string => hpa(BANK, offset).toString(16);
const tableOf = (machine: Machine, entry: number): number => (machine.h.bank.u32[entry >>> 2] as number) & 0xffff_f000;
/** A second table that maps what the one behind `entry` maps. */
function copyOf(machine: Machine, entry: number): number {
  const copy = machine.h.page();
  const table = tableOf(machine, entry);
  machine.h.bank.u8.copyWithin(copy, table, table + 4096);
  return copy;
}

describe.each([
  ["Intel", intel],
  ["AMD", amd],
] as const)("a table of second-level paging on %s", (_vendor, create) => {
  it("is told of at the next entry when it is freed while linked", () => {
    const machine = create();
    machine.run();
    const entry = machine.entry(1);
    machine.flush();
    machine.free(tableOf(machine, entry));
    machine.run();
    expect(findings(machine)).toHaveLength(1);
    expect(findings(machine)[0]).toContain(
      `sanitizer: on CPU 0 ${machine.structure} has the freed page ${hex(tableOf(machine, entry))} linked in its ${machine.tables}, by the entry at ${hex(entry)}`,
    );
  });

  it("is told of when it is freed after it was unlinked, but before a flush", () => {
    const machine = create();
    machine.run();
    const entry = machine.entry(1);
    const old = tableOf(machine, entry);
    machine.h.setEntry(entry, copyOf(machine, entry) | 7);
    machine.free(old);
    machine.run();
    expect(findings(machine)).toHaveLength(1);
    expect(findings(machine)[0]).toContain(`uses translations that went through page ${hex(old)}, freed since, without`);
  });

  it("goes in silence when it is unlinked, flushed and freed, in whatever order, before the next entry", () => {
    for (const order of ["unlink flush free", "free unlink flush", "flush free unlink"]) {
      const machine = create();
      machine.run();
      const entry = machine.entry(1);
      const old = tableOf(machine, entry);
      const copy = copyOf(machine, entry);
      for (const step of order.split(" ")) {
        if (step === "unlink") machine.h.setEntry(entry, copy | 7);
        else if (step === "flush") machine.flush();
        else machine.free(old);
      }
      machine.run();
      expect(findings(machine)).toEqual([]);
    }
  });

  it("may be a table once more when it was handed out again", () => {
    const machine = create();
    machine.run();
    const table = tableOf(machine, machine.entry(1));
    machine.flush();
    machine.free(table);
    machine.h.cpu.sanitizer.pagesAllocated(hpa(BANK, table), 1);
    machine.run();
    expect(findings(machine)).toEqual([]);
  });

  it("is told of when it is the root", () => {
    const machine = create();
    machine.run();
    machine.flush();
    const root = machine.h instanceof VmxHarness ? machine.h.eptRoot : machine.h.nptRoot;
    machine.free(root);
    machine.run();
    expect(findings(machine)[0]).toContain(`has the root of its ${machine.tables} in the freed page ${hex(root)}`);
  });

  it("may map pages that are in use, and none that is free", () => {
    const machine = create();
    machine.run();
    machine.flush();
    const data = tableOf(machine, machine.entry(0));
    machine.free(machine.h.page());
    machine.free(data);
    machine.run();
    expect(findings(machine)).toHaveLength(1);
    expect(findings(machine)[0]).toContain(`has the freed page ${hex(data)} linked`);
  });
});

/** The same guests without a second level: code and data mapped by tables of the hypervisor's, with its addresses in them. */
function shadowed(create: () => Machine): Machine {
  const machine = create();
  const { h } = machine;
  const root = h.page();
  const entry = (level: number, linear = DATA): number => {
    let table = root;
    for (let at = 3; at > level; at--) {
      const above = table + (Math.floor(linear / 2 ** (12 + 9 * at)) % 512) * 8;
      if (h.bank.u32[above >>> 2] === 0) h.setEntry(above, h.page() | 7);
      table = (h.bank.u32[above >>> 2] as number) & 0xffff_f000;
    }
    return table + (Math.floor(linear / 2 ** (12 + 9 * level)) % 512) * 8;
  };
  for (const linear of [CODE, DATA]) h.setEntry(entry(0, linear), ((h.guestMemory + linear) | 7) >>> 0);
  if (h instanceof VmxHarness) {
    h.clearControl("SECONDARY_CONTROLS", Secondary.enableEpt | Secondary.unrestrictedGuest);
    h.write("GUEST_CR3", hpa(BANK, root));
  } else {
    h.clearBits(Control.NESTED, 1);
    h.set64(Save.CR3, hpa(BANK, root));
  }
  return { ...machine, tables: "shadow page tables", entry };
}

describe.each([
  ["Intel", intel],
  ["AMD", amd],
] as const)("a table of shadow paging on %s", (_vendor, create) => {
  it.each([1, 2, 3])("is told of at the next entry when it is freed while linked at level %i", (level) => {
    const machine = shadowed(create);
    machine.run();
    const entry = machine.entry(level);
    const table = tableOf(machine, entry);
    machine.free(table);
    machine.run();
    expect(findings(machine)).toEqual([
      `cpu0: sanitizer: on CPU 0 ${machine.structure} has the freed page ${hex(table)} linked in its shadow page tables, by the entry at ${hex(entry)}`,
    ]);
  });

  it("is told of when it is the root, or a page that is mapped", () => {
    const machine = shadowed(create);
    machine.run();
    const root = machine.entry(3) & ~0xfff;
    machine.free(root);
    machine.run();
    expect(findings(machine)[0]).toContain(`has the root of its shadow page tables in the freed page ${hex(root)}`);
    const other = shadowed(create);
    other.run();
    other.free(tableOf(other, other.entry(0)));
    other.run();
    expect(findings(other)[0]).toContain(`linked in its shadow page tables, by the entry at ${hex(other.entry(0))}`);
  });

  it("goes in silence when it was unlinked before the next entry", () => {
    const machine = shadowed(create);
    machine.run();
    const entry = machine.entry(1);
    const old = tableOf(machine, entry);
    machine.free(old);
    machine.h.setEntry(entry, copyOf(machine, entry) | 7);
    machine.run();
    expect(findings(machine)).toEqual([]);
  });

  it("is the guest's own where there is a second level: its addresses are none of the host's", () => {
    const machine = shadowed(create);
    const { h } = machine;
    const entry = machine.entry(1);
    if (h instanceof VmxHarness) h.setControl("SECONDARY_CONTROLS", Secondary.enableEpt | Secondary.unrestrictedGuest);
    else h.setBits(Control.NESTED, 1);
    if (h instanceof VmxHarness) h.write("GUEST_CR3", 0x1000);
    else h.set64(Save.CR3, 0x1000);
    machine.free(tableOf(machine, entry));
    machine.run();
    expect(findings(machine)).toEqual([]);
  });
});

describe("a page that a control structure names", () => {
  it("is told of on Intel at the next entry", () => {
    const machine = intel();
    const h = machine.h as VmxHarness;
    const bitmap = h.page();
    h.bank.u8.fill(0xff, bitmap, bitmap + 4096);
    h.setControl("PRIMARY_CONTROLS", Primary.useMsrBitmaps);
    h.write("MSR_BITMAP", hpa(BANK, bitmap));
    machine.run();
    machine.free(bitmap);
    machine.run();
    expect(findings(machine)).toHaveLength(1);
    expect(findings(machine)[0]).toContain(`has its MSR bitmap in the freed page ${hex(bitmap)}`);
  });
  it("is no matter where its control is clear, or the VMCS names another page by then", () => {
    const machine = intel();
    const h = machine.h as VmxHarness;
    const bitmap = h.page();
    h.write("MSR_BITMAP", hpa(BANK, bitmap));
    machine.run();
    machine.free(bitmap);
    h.write("IO_BITMAP_A", hpa(BANK, bitmap));
    machine.run();
    expect(findings(machine)).toEqual([]);
  });
  it("is told of on AMD, whichever of several it is", () => {
    const machine = amd();
    const h = machine.h as SvmHarness;
    machine.run();
    machine.free(h.iopm + 0x2000);
    machine.free(h.page());
    machine.run();
    expect(findings(machine)).toEqual([
      expect.stringContaining(`has its I/O permission map in the freed page ${hex(h.iopm + 0x2000)}`),
    ]);
  });
  it("is told of on AMD when it is the VMCB itself", () => {
    const machine = amd();
    machine.run();
    machine.free((machine.h as SvmHarness).vmcb % 0x1_0000_0000);
    machine.run();
    expect(findings(machine)).toEqual([expect.stringMatching(/has its VMCB in the freed page/)]);
  });
});

describe("what the processor writes by itself", () => {
  it("is told of when it is freed: a VMCS that is active", () => {
    const machine = intel();
    const h = machine.h as VmxHarness;
    machine.run();
    machine.free(h.vmcs % 0x1_0000_0000);
    expect(findings(machine)).toEqual([
      `cpu0: sanitizer: VMCS ${h.vmcs.toString(16)} freed while active on CPU 0, not cleared`,
    ]);
  });
  it("may be freed when it was cleared", () => {
    const machine = intel();
    const h = machine.h as VmxHarness;
    machine.run();
    h.expect(h.cpu.vmx.vmclear(h.vmcs), "VMCLEAR");
    machine.free(h.vmcs % 0x1_0000_0000);
    expect(findings(machine)).toEqual([]);
  });
  it("is told of: the host save area, with SVM on and not with it off", () => {
    const machine = amd();
    const { cpu } = machine.h;
    const area = Number(cpu.rdmsr(0xc001_0117)) % 0x1_0000_0000;
    machine.free(area + 4096, 8);
    cpu.sanitizer.pagesAllocated(hpa(BANK, area + 4096), 8);
    expect(findings(machine)).toEqual([]);
    machine.free(area);
    expect(findings(machine)).toEqual([`cpu0: sanitizer: host save area ${hex(area)} freed, with SVM on at CPU 0`]);
    cpu.wrmsr(0xc000_0080, (cpu.rdmsr(0xc000_0080) as bigint) & ~0x1000n);
    machine.free(area);
    expect(findings(machine)).toHaveLength(1);
  });
});
