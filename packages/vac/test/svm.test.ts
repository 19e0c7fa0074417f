import type { Hpa } from "@mkvm/hw-x86";
import { describe, expect, it } from "vitest";
import { attachVac } from "../src/attach.ts";
import { createVacMemory } from "../src/layout.ts";
import type { AsidTag, OwnerId, Vac } from "../src/vac.ts";
import { EFER, fakeSvmCpu, TSC_RATIO, VM_CR, VM_HSAVE_PA } from "./fake-svm-cpu.ts";

const REGION = 0x1000 as Hpa;
const SAVE_AREA = 0x2000 as Hpa;
const SVME = 0x1000n;
const newTag = (): AsidTag => ({ asid: 0, generation: 0 });
const owner = (vac: Vac, name: string) => vac.registerOwner(name) as OwnerId;

function machine(asids = 8, cpus = 1) {
  const shared = createVacMemory(cpus);
  const cpu = Array.from({ length: cpus }, (_, id) => fakeSvmCpu(id, asids));
  const vac = cpu.map((each) => attachVac(shared, each, REGION, SAVE_AREA));
  return { shared, cpu, vac, kvm: owner(vac[0], "kvm") };
}
/** As a module does before each VMRUN. */
function enter(vac: Vac, kvm: OwnerId, tag: AsidTag): string {
  const flush = vac.assignAsid(kvm, tag);
  if (flush) vac.asidsFlushed(kvm);
  return `${tag.asid}${flush ? " flushes" : ""}`;
}

describe("SVM", () => {
  it("goes on with the first get and off with the last put, whoever they are of", () => {
    const { vac, cpu, kvm } = machine();
    const other = owner(vac[0], "kvm2");
    expect(vac[0].enableVirtualization(kvm)).toBe(0);
    expect(cpu[0].log).toEqual(["wrmsr 0xc0000080 0x1d01", "wrmsr 0xc0010117 0x2000"]);
    expect(vac[0].enableVirtualization(other)).toBe(0);
    expect(vac[0].virtualizationUsers()).toEqual([kvm, other]);
    vac[0].disableVirtualization(kvm);
    expect(cpu[0].log).toHaveLength(2);
    vac[0].unregisterOwner(other);
    expect(cpu[0].log.slice(2)).toEqual(["stgi", "wrmsr 0xc0010117 0x0", "wrmsr 0xc0000080 0xd01"]);
    expect(() => vac[0].disableVirtualization(kvm)).toThrow("puts SVM on CPU 0 without a get");
  });
  it("is refused without the feature, when firmware disabled it, and when others use it", () => {
    const { vac, cpu, kvm } = machine();
    cpu[0].msrs.set(VM_CR, 0x10n);
    expect(vac[0].enableVirtualization(kvm)).toBe(-95);
    cpu[0].msrs.set(VM_CR, 0n);
    cpu[0].msrs.set(EFER, 0xd01n | SVME);
    expect(vac[0].enableVirtualization(kvm)).toBe(-16);
    cpu[0].msrs.set(EFER, 0xd01n);
    cpu[0].leaves.delete(0x8000_0001);
    expect(vac[0].enableVirtualization(kvm)).toBe(-95);
    expect(cpu[0].log).toEqual([]);
  });
  it("leaves EFER as it was when the host save area is refused", () => {
    const { vac, cpu, kvm } = machine();
    cpu[0].msrs.delete(VM_HSAVE_PA);
    expect(vac[0].enableVirtualization(kvm)).toBe(-5);
    expect(cpu[0].msrs.get(EFER)).toBe(0xd01n);
    expect(vac[0].virtualizationUsers()).toEqual([]);
  });
  it("keeps the first save area at a second attachment", () => {
    const { shared, cpu, kvm } = machine();
    const again = attachVac(shared, cpu[0], REGION, 0x9000 as Hpa);
    again.enableVirtualization(kvm);
    expect(cpu[0].msrs.get(VM_HSAVE_PA)).toBe(0x2000n);
  });
  it("in an emergency calls the modules first, with SVM still on, and goes off once", () => {
    const { vac, cpu, kvm } = machine();
    const other = owner(vac[0], "kvm2");
    const gone = owner(vac[0], "kvm3");
    for (const each of [kvm, other, gone])
      vac[0].onEmergency(each, () => cpu[0].log.push(`${each} ${(cpu[0].msrs.get(EFER)! & SVME) !== 0n}`));
    vac[0].unregisterOwner(gone);
    vac[0].enableVirtualization(kvm);
    cpu[0].log.length = 0;
    vac[0].emergencyDisable();
    vac[0].emergencyDisable();
    expect(cpu[0].log).toEqual([`${kvm} true`, `${other} true`, "stgi", "wrmsr 0xc0010117 0x0", "wrmsr 0xc0000080 0xd01"]);
    expect(vac[0].enableVirtualization(kvm)).toBe(-5);
  });
});

describe("ASIDs", () => {
  it("are not 0, stay with a tag, and differ over owners", () => {
    const { vac, kvm } = machine();
    const other = owner(vac[0], "kvm2");
    vac[0].enableVirtualization(kvm);
    const [a, b] = [newTag(), newTag()];
    expect(enter(vac[0], kvm, a)).toBe("1 flushes");
    expect(enter(vac[0], other, b)).toBe("2");
    expect(enter(vac[0], kvm, a)).toBe("1");
  });
  it("begin anew when all are used, with a flush before anybody runs", () => {
    const { vac, kvm } = machine(4);
    vac[0].enableVirtualization(kvm);
    const tags = [newTag(), newTag(), newTag(), newTag()];
    expect(tags.map((tag) => enter(vac[0], kvm, tag))).toEqual(["1 flushes", "2", "3", "1 flushes"]);
    // The others had numbers of the last generation
    expect(enter(vac[0], kvm, tags[0]!)).toBe("2");
    expect(enter(vac[0], kvm, tags[3]!)).toBe("1");
  });
  it("owe the flush until a VMRUN has done it", () => {
    const { vac, kvm } = machine();
    vac[0].enableVirtualization(kvm);
    expect(vac[0].assignAsid(kvm, newTag())).toBe(true);
    expect(vac[0].assignAsid(kvm, newTag())).toBe(true);
    vac[0].asidsFlushed(kvm);
    expect(vac[0].assignAsid(kvm, newTag())).toBe(false);
  });
  it("leave those of SEV alone", () => {
    const { vac, cpu, kvm } = machine(8);
    cpu[0].leaves.set(0x8000_001f, { eax: 2, ebx: 0, ecx: 5, edx: 1 });
    vac[0].enableVirtualization(kvm);
    expect([newTag(), newTag(), newTag()].map((tag) => enter(vac[0], kvm, tag))).toEqual(["6 flushes", "7", "6 flushes"]);
  });
  it("are of each CPU, and void once SVM was off", () => {
    const { vac, kvm } = machine(8, 2);
    vac[1].registerOwner("kvm");
    for (const each of vac) each.enableVirtualization(kvm);
    const tag = newTag();
    expect(vac.map((each) => enter(each, kvm, newTag()))).toEqual(["1 flushes", "1 flushes"]);
    expect(enter(vac[0], kvm, tag)).toBe("2");
    vac[0].disableVirtualization(kvm);
    vac[0].enableVirtualization(kvm);
    expect(enter(vac[0], kvm, tag)).toBe("1 flushes");
  });
});

describe("TSC ratio", () => {
  it("is written when it changes only, and is 1 again when its owner goes or SVM goes off", () => {
    const { vac, cpu, kvm } = machine();
    const other = owner(vac[0], "kvm2");
    vac[0].enableVirtualization(kvm);
    vac[0].enableVirtualization(other);
    cpu[0].log.length = 0;
    expect(vac[0].setTscRatio(kvm, 1n << 32n)).toBe(true);
    expect(cpu[0].log).toEqual([]);
    vac[0].setTscRatio(kvm, 3n << 31n);
    vac[0].setTscRatio(kvm, 3n << 31n);
    expect(vac[0].setTscRatio(other, 0xbadn)).toBe(false);
    expect(cpu[0].log).toEqual(["wrmsr 0xc0000104 0x180000000"]);
    vac[0].unregisterOwner(kvm);
    expect(cpu[0].msrs.get(TSC_RATIO)).toBe(1n << 32n);
    vac[0].setTscRatio(other, 1n << 31n);
    vac[0].disableVirtualization(other);
    expect(cpu[0].msrs.get(TSC_RATIO)).toBe(1n << 32n);
  });
});

describe("running vCPU", () => {
  it("needs no INVVPID here", () => {
    const { vac, kvm } = machine();
    vac[0].enableVirtualization(kvm);
    vac[0].setRunningVcpu(kvm, 7);
    expect(vac[0].runningVcpu(0)).toEqual({ owner: kvm, token: 7 });
  });
});
