import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { cProgram, type Figures, figuresOfTables } from "./c-program.ts";

/** Figures as a C compiler gave them once. Made anew by running this test with RECORD_FIGURES=1 where gcc and the header are. */
const RECORD = new URL("./recorded-figures.json", import.meta.url);

function compileAndRun(): Figures {
  const folder = mkdtempSync(join(tmpdir(), "kvm-abi-"));
  try {
    const [source, program] = [join(folder, "figures.c"), join(folder, "figures")];
    writeFileSync(source, cProgram());
    execFileSync("gcc", ["-w", "-o", program, source]);
    const lines = execFileSync(program, { encoding: "utf8" }).trim().split("\n");
    return Object.fromEntries(lines.map((line) => line.split(" = ")).map(([name, value]) => [name, Number(value)]));
  } finally {
    rmSync(folder, { recursive: true });
  }
}
function hasCompiler(): boolean {
  if (process.arch !== "x64" || !existsSync("/usr/include/linux/kvm.h")) return false;
  try {
    execFileSync("gcc", ["--version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

describe("the uapi tables", () => {
  it.runIf(hasCompiler())("agree with <linux/kvm.h> in every size, offset and number", () => {
    const fromC = compileAndRun();
    const tables = figuresOfTables();
    if (process.env.RECORD_FIGURES) writeFileSync(RECORD, `${JSON.stringify(fromC, undefined, 2)}\n`);
    const ours = Object.fromEntries(Object.keys(fromC).map((name) => [name, tables[name]]));
    expect(ours).toEqual(fromC);
    expect(Object.keys(fromC).length).toBeGreaterThan(1000);
  });

  it("agree with the recorded figures, and say what is newer than the header they were made from", () => {
    const recorded = JSON.parse(readFileSync(RECORD, "utf8")) as Figures;
    const tables = figuresOfTables();
    const known = Object.fromEntries(Object.keys(recorded).map((name) => [name, tables[name]]));
    expect(known).toEqual(recorded);
    const newer = Object.keys(tables).filter((name) => !(name in recorded) && !name.includes("kvm_userspace_memory_region2"));
    expect(newer.sort()).toEqual([
      "KVM_CAP_COUNTER_OFFSET",
      "KVM_CAP_GUEST_MEMFD",
      "KVM_CAP_MEMORY_ATTRIBUTES",
      "KVM_CAP_MEMORY_FAULT_INFO",
      "KVM_CAP_PRE_FAULT_MEMORY",
      "KVM_CAP_USER_MEMORY2",
      "KVM_CAP_VM_TYPES",
      "KVM_CAP_X86_APIC_BUS_CYCLES_NS",
      "KVM_CAP_X86_GUEST_MODE",
      "KVM_EXIT_MEMORY_FAULT",
      "KVM_MEM_GUEST_MEMFD",
      "KVM_SET_USER_MEMORY_REGION2",
    ]);
  });
});
