import type { Hpa } from "@mkvm/hw-x86";
import { describe, expect, it } from "vitest";
import { attachVac } from "../src/attach.ts";
import { reclaimDeadCpu } from "../src/dead-cpu.ts";
import { createVacMemory, HEADER_BYTES, Header } from "../src/layout.ts";
import { VAC_LAYOUT } from "../src/layout-description.ts";
import type { OwnerId, Vac } from "../src/vac.ts";
import { fakeCpu } from "./fake-cpu.ts";

const REGION = 0x1000 as Hpa;
const VMCS_A = 0xa000 as Hpa;
const VMCS_B = 0xb000 as Hpa;

function machine(cpus = 1) {
  const shared = createVacMemory(cpus);
  const cpu = Array.from({ length: cpus }, (_, id) => fakeCpu(id));
  return { shared, cpu, vac: cpu.map((each) => attachVac(shared, each, REGION)) };
}
const owner = (vac: Vac, name: string) => vac.registerOwner(name) as OwnerId;

describe("header", () => {
  it("refuses memory of another major version, of an earlier minor, of another size, and no VAC memory", () => {
    const change = (word: number, value: number) => {
      const shared = createVacMemory(1);
      new Int32Array(shared)[word] = value;
      return () => attachVac(shared, fakeCpu(0), REGION);
    };
    expect(change(Header.major, 2)).toThrow("VAC memory has layout 2.3; this code needs 1.3 or a later 1.x");
    expect(change(Header.minor, -1)).toThrow("layout 1.-1");
    expect(change(Header.minor, 2)).toThrow("layout 1.2");
    expect(change(Header.magic, 0)).toThrow("wrong magic");
    expect(change(Header.cpuBytes, 64)).toThrow("damaged");
    expect(change(Header.minor, 7)).not.toThrow();
    expect(() => attachVac(new SharedArrayBuffer(HEADER_BYTES - 4), fakeCpu(0), REGION)).toThrow("no header");
  });
  it("takes 1 to 64 CPUs, and no CPU beyond them", () => {
    expect(() => createVacMemory(0)).toThrow(RangeError);
    expect(() => createVacMemory(65)).toThrow(RangeError);
    expect(() => attachVac(createVacMemory(64), fakeCpu(63), REGION)).not.toThrow();
    expect(() => attachVac(createVacMemory(2), fakeCpu(2), REGION)).toThrow(RangeError);
  });
});

describe("owners", () => {
  it("gives one id for a name on every CPU, refuses it twice on one, and frees it when the last CPU lets go", () => {
    const { vac } = machine(2);
    const kvm1 = owner(vac[0], "kvm1");
    expect(vac[1].registerOwner("kvm1")).toBe(kvm1);
    expect(vac[0].registerOwner("kvm1")).toBe(-17);
    expect(vac[0].registerOwner("kvm2")).not.toBe(kvm1);
    vac[0].unregisterOwner(kvm1);
    expect(vac[0].registerOwner("kvm1")).toBe(kvm1);
    vac[0].unregisterOwner(kvm1);
    vac[1].unregisterOwner(kvm1);
    expect(vac[1].registerOwner("other")).toBe(kvm1);
  });
  it("refuses names that are empty or too long, and more owners than it has room for", () => {
    const { vac } = machine();
    expect(vac[0].registerOwner("")).toBe(-22);
    expect(vac[0].registerOwner("k".repeat(48))).toBe(-22);
    expect(vac[0].registerOwner("k".repeat(47))).toBe(1);
    for (let i = 0; i < 31; i++) expect(vac[0].registerOwner(`kvm${i}`)).toBeGreaterThan(0);
    expect(vac[0].registerOwner("one more")).toBe(-28);
  });
  it("can be loaded and unloaded without end", () => {
    const { vac } = machine();
    for (let i = 0; i < 200; i++) {
      const kvm = owner(vac[0], "kvm");
      expect(kvm).toBe(1);
      expect(vac[0].enableVirtualization(kvm)).toBe(0);
      expect(vac[0].registerUserReturnMsr(kvm, 0xc000_0081)).toBe(0);
      expect(vac[0].allocateVpid(kvm)).toBeGreaterThan(0);
      vac[0].unregisterOwner(kvm);
    }
  });
  it("rejects calls of somebody who is not registered here", () => {
    const { vac } = machine(2);
    const kvm1 = owner(vac[0], "kvm1");
    expect(() => vac[1].enableVirtualization(kvm1)).toThrow("not registered on CPU 1");
    expect(() => vac[0].allocateVpid(0 as OwnerId)).toThrow("not registered");
  });
});

describe("virtualization", () => {
  it("turns VMX on at the first get and off at the last put, whoever they are of", () => {
    const { vac, cpu } = machine();
    const [kvm1, kvm2] = [owner(vac[0], "kvm1"), owner(vac[0], "kvm2")];
    expect(vac[0].enableVirtualization(kvm1)).toBe(0);
    expect(vac[0].enableVirtualization(kvm2)).toBe(0);
    expect(vac[0].enableVirtualization(kvm2)).toBe(0);
    expect(vac[0].virtualizationUsers()).toEqual([kvm1, kvm2]);
    vac[0].disableVirtualization(kvm1);
    vac[0].disableVirtualization(kvm2);
    expect(cpu[0].log.filter((line) => line === "vmxoff")).toEqual([]);
    expect(() => vac[0].disableVirtualization(kvm1)).toThrow("without a get");
    vac[0].disableVirtualization(kvm2);
    expect(cpu[0].log.filter((line) => line.startsWith("vmx"))).toEqual(["vmxon 0x1000", "vmxoff"]);
    expect(cpu[0].cr4).toBe(0n);
    expect(vac[0].virtualizationUsers()).toEqual([]);
  });
  it("writes the revision into the region, sets CR4.VMXE and the feature control before VMXON", () => {
    const { vac, cpu } = machine();
    vac[0].enableVirtualization(owner(vac[0], "kvm"));
    expect(cpu[0].pages.get(REGION)?.[0]).toBe(0x12);
    expect(cpu[0].cr4).toBe(1n << 13n);
    expect(cpu[0].msrs.get(0x3a)).toBe(5n);
  });
  it("keeps the first VMXON region at a second attachment, and does not touch it again", () => {
    const { shared, vac, cpu } = machine();
    vac[0].enableVirtualization(owner(vac[0], "kvm1"));
    const before = cpu[0].log.length;
    const again = attachVac(shared, cpu[0], 0x9000 as Hpa);
    const kvm2 = owner(again, "kvm2");
    expect(again.enableVirtualization(kvm2)).toBe(0);
    expect(cpu[0].log.slice(before)).toEqual([]);
    expect(cpu[0].pages.has(0x9000)).toBe(false);
  });
  it("leaves CR4 as it was when VMXON fails, and says so", () => {
    const { vac, cpu } = machine();
    const kvm = owner(vac[0], "kvm");
    cpu[0].vmxonFails = true;
    expect(vac[0].enableVirtualization(kvm)).toBe(-5);
    expect(cpu[0].cr4).toBe(0n);
    expect(vac[0].virtualizationUsers()).toEqual([]);
    cpu[0].vmxonFails = false;
    expect(vac[0].enableVirtualization(kvm)).toBe(0);
  });
  it("refuses when firmware locked VMX off, and when others use VMX", () => {
    const { vac, cpu } = machine();
    const kvm = owner(vac[0], "kvm");
    cpu[0].msrs.set(0x3a, 1n);
    expect(vac[0].enableVirtualization(kvm)).toBe(-95);
    cpu[0].msrs.set(0x3a, 5n);
    cpu[0].cr4 = 1n << 13n;
    expect(vac[0].enableVirtualization(kvm)).toBe(-16);
  });
  it("in an emergency clears everybody's VMCSs before VMXOFF, once, also with two attachments", () => {
    const { shared, vac, cpu } = machine();
    const [kvm1, kvm2] = [owner(vac[0], "kvm1"), owner(vac[0], "kvm2")];
    vac[0].enableVirtualization(kvm1);
    vac[0].enableVirtualization(kvm2);
    vac[0].loadVmcs(kvm1, VMCS_A);
    vac[0].loadVmcs(kvm2, VMCS_B);
    const before = cpu[0].log.length;
    vac[0].emergencyDisable();
    attachVac(shared, cpu[0], REGION).emergencyDisable();
    expect(cpu[0].log.slice(before)).toEqual(["vmclear 0xb000", "vmclear 0xa000", "vmxoff"]);
    expect(vac[0].enableVirtualization(kvm1)).toBe(-5);
    expect(() => vac[0].disableVirtualization(kvm1)).not.toThrow();
    expect(cpu[0].log.length).toBe(before + 3);
  });
  it("does nothing in an emergency when VMX is off", () => {
    const { vac, cpu } = machine();
    vac[0].emergencyDisable();
    expect(cpu[0].log).toEqual([]);
  });
  it("goes off for a sleep with everybody's VMCSs cleared, and comes back with the gets that there were", () => {
    const { shared, vac, cpu } = machine();
    const [kvm1, kvm2] = [owner(vac[0], "kvm1"), owner(vac[0], "kvm2")];
    vac[0].enableVirtualization(kvm1);
    vac[0].enableVirtualization(kvm2);
    vac[0].loadVmcs(kvm1, VMCS_A);
    const slot = vac[0].registerUserReturnMsr(kvm2, 0xc000_0081);
    vac[0].setUserReturnMsr(kvm2, slot, 0x99n);
    cpu[0].log.length = 0;
    vac[0].suspend();
    expect(cpu[0].log).toEqual(["wrmsr 0xc0000081 0x11", "vmclear 0xa000", "vmxoff"]);
    expect(vac[0].enableVirtualization(kvm1)).toBe(-11);
    expect(vac[0].loadedVmcss()).toEqual([]);
    expect(vac[0].virtualizationUsers()).toEqual([kvm1, kvm2]);
    // An owner that leaves meanwhile has nothing to turn off
    attachVac(shared, cpu[0], REGION).unregisterOwner(kvm2);
    cpu[0].log.length = 0;
    expect(vac[0].resume()).toBe(0);
    expect(cpu[0].log.at(-1)).toBe("vmxon 0x1000");
    expect(vac[0].loadVmcs(kvm1, VMCS_B)).toBe(0);
    vac[0].disableVirtualization(kvm1);
    expect(cpu[0].log.slice(-2)).toEqual(["vmclear 0xb000", "vmxoff"]);
  });
  it("stays off over a sleep when nobody uses it, and for good when the CPU does not take it back", () => {
    const { vac, cpu } = machine();
    const kvm = owner(vac[0], "kvm");
    vac[0].suspend();
    expect(vac[0].resume()).toBe(0);
    expect(cpu[0].log).toEqual([]);
    expect(vac[0].enableVirtualization(kvm)).toBe(0);
    vac[0].suspend();
    cpu[0].vmxonFails = true;
    expect(vac[0].resume()).toBe(-5);
    expect(vac[0].enableVirtualization(kvm)).toBe(-5);
    expect(() => vac[0].disableVirtualization(kvm)).not.toThrow();
  });
});

describe("loaded VMCSs", () => {
  it("are cleared when their owner puts VMX, not the others'", () => {
    const { vac, cpu } = machine();
    const [kvm1, kvm2] = [owner(vac[0], "kvm1"), owner(vac[0], "kvm2")];
    vac[0].enableVirtualization(kvm1);
    vac[0].enableVirtualization(kvm2);
    expect(vac[0].loadVmcs(kvm1, VMCS_A)).toBe(0);
    expect(vac[0].loadVmcs(kvm2, VMCS_B)).toBe(0);
    expect(vac[0].loadVmcs(kvm1, VMCS_A)).toBe(0);
    expect(vac[0].loadedVmcss()).toEqual([
      { vmcs: VMCS_A, owner: kvm1 },
      { vmcs: VMCS_B, owner: kvm2 },
    ]);
    const before = cpu[0].log.length;
    vac[0].disableVirtualization(kvm1);
    expect(cpu[0].log.slice(before)).toEqual(["vmclear 0xa000"]);
    expect(vac[0].loadedVmcss()).toEqual([{ vmcs: VMCS_B, owner: kvm2 }]);
  });
  it("are not recorded when VMPTRLD fails", () => {
    const { vac } = machine();
    const kvm = owner(vac[0], "kvm");
    vac[0].enableVirtualization(kvm);
    expect(vac[0].loadVmcs(kvm, 0xbad000 as Hpa)).toBe(2);
    expect(vac[0].loadedVmcss()).toEqual([]);
  });
  it("belong to one owner and one CPU", () => {
    const { vac } = machine(2);
    const kvm1 = owner(vac[0], "kvm1");
    const kvm2 = owner(vac[0], "kvm2");
    owner(vac[1], "kvm1");
    vac[0].enableVirtualization(kvm1);
    vac[1].enableVirtualization(kvm1);
    vac[0].loadVmcs(kvm1, VMCS_A);
    expect(() => vac[0].loadVmcs(kvm2, VMCS_A)).toThrow(`of owner ${kvm1}`);
    expect(() => vac[0].clearVmcs(kvm2, VMCS_A)).toThrow(`of owner ${kvm1}`);
    expect(() => vac[1].loadVmcs(kvm1, VMCS_A)).toThrow("CPU 0 has it loaded");
    expect(vac[0].clearVmcs(kvm1, VMCS_A)).toBe(0);
    expect(vac[1].loadVmcs(kvm1, VMCS_A)).toBe(0);
  });
  it("are as many as there is room for", () => {
    const { vac } = machine();
    const kvm = owner(vac[0], "kvm");
    vac[0].enableVirtualization(kvm);
    for (let i = 0; i < 1024; i++) expect(vac[0].loadVmcs(kvm, (0x10_0000 + i * 0x1000) as Hpa)).toBe(0);
    expect(vac[0].loadVmcs(kvm, 0x1_0000_0000 as Hpa)).toBe(1);
  });
});

describe("VPIDs", () => {
  it("are unique over owners and CPUs, and never 0", () => {
    const { vac } = machine(2);
    const kvm1 = owner(vac[0], "kvm1");
    const kvm2 = owner(vac[1], "kvm2");
    const seen = new Set<number>();
    for (let i = 0; i < 50; i++) {
      seen.add(vac[0].allocateVpid(kvm1));
      seen.add(vac[1].allocateVpid(kvm2));
    }
    expect(seen.size).toBe(100);
    expect(seen.has(0)).toBe(false);
  });
  it("come back only when no other is left, and only after each CPU dropped old translations", () => {
    const { vac, cpu } = machine(2);
    const kvm = owner(vac[0], "kvm");
    owner(vac[1], "kvm");
    vac[0].enableVirtualization(kvm);
    vac[1].enableVirtualization(kvm);
    const first = vac[0].allocateVpid(kvm);
    vac[0].freeVpid(kvm, first);
    let last = 0;
    for (let i = 0; i < 65534; i++) {
      last = vac[0].allocateVpid(kvm);
      if (last === first) throw new Error(`VPID ${first} came back at once`);
    }
    expect(last).toBeGreaterThan(0);
    vac[0].setRunningVcpu(kvm, 1);
    expect(cpu[0].log).not.toContain("invvpid 2");
    expect(vac[1].allocateVpid(kvm)).toBe(first);
    expect(vac[1].allocateVpid(kvm)).toBe(0);
    vac[0].setRunningVcpu(kvm, 1);
    vac[0].setRunningVcpu(kvm, 1);
    vac[1].setRunningVcpu(kvm, 2);
    expect(cpu.map(({ log }) => log.filter((line) => line === "invvpid 2").length)).toEqual([1, 1]);
  });
  it("are not freed by somebody else, nor twice", () => {
    const { vac } = machine();
    const [kvm1, kvm2] = [owner(vac[0], "kvm1"), owner(vac[0], "kvm2")];
    const vpid = vac[0].allocateVpid(kvm1);
    expect(() => vac[0].freeVpid(kvm2, vpid)).toThrow("does not hold");
    expect(() => vac[0].freeVpid(kvm1, 0)).toThrow("does not hold");
    vac[0].freeVpid(kvm1, vpid);
    expect(() => vac[0].freeVpid(kvm1, vpid)).toThrow("does not hold");
  });
});

describe("user-return MSRs", () => {
  it("have one slot an MSR, whoever asks, and 16 of them", () => {
    const { vac, cpu } = machine();
    const [kvm1, kvm2] = [owner(vac[0], "kvm1"), owner(vac[0], "kvm2")];
    expect(vac[0].registerUserReturnMsr(kvm1, 0xc000_0081)).toBe(0);
    expect(vac[0].registerUserReturnMsr(kvm2, 0xc000_0081)).toBe(0);
    for (let i = 0; i < 17; i++) cpu[0].msrs.set(0x5000 + i, 0n);
    for (let i = 0; i < 15; i++) expect(vac[0].registerUserReturnMsr(kvm2, 0x5000 + i)).toBe(i + 1);
    expect(vac[0].registerUserReturnMsr(kvm1, 0x500f)).toBe(-28);
    expect(vac[0].registerUserReturnMsr(kvm1, 0x5003)).toBe(4);
    expect(vac[0].registerUserReturnMsr(kvm1, 0x9999)).toBe(-5);
    vac[0].unregisterOwner(kvm2);
    expect(vac[0].registerUserReturnMsr(kvm1, 0x500f)).toBeGreaterThanOrEqual(0);
    expect(vac[0].registerUserReturnMsr(kvm1, 0xc000_0081)).toBe(0);
  });
  it("hold a guest's value until the return to user, over owners", () => {
    const { vac, cpu } = machine();
    const [kvm1, kvm2] = [owner(vac[0], "kvm1"), owner(vac[0], "kvm2")];
    const slot = vac[0].registerUserReturnMsr(kvm1, 0xc000_0082);
    vac[0].registerUserReturnMsr(kvm2, 0xc000_0082);
    expect(vac[0].setUserReturnMsr(kvm1, slot, 0x100n)).toBe(true);
    expect(vac[0].setUserReturnMsr(kvm1, slot, 0x100n)).toBe(true);
    expect(vac[0].setUserReturnMsr(kvm2, slot, 0xffff_ffff_8000_0000n)).toBe(true);
    expect(vac[0].setUserReturnMsr(kvm2, slot, 0xbadn)).toBe(false);
    expect(cpu[0].msrs.get(0xc000_0082)).toBe(0xffff_ffff_8000_0000n);
    vac[0].returnToUser();
    vac[0].returnToUser();
    expect(cpu[0].log).toEqual(["wrmsr 0xc0000082 0x100", "wrmsr 0xc0000082 0xffffffff80000000", "wrmsr 0xc0000082 0x22"]);
  });
  it("are restored when their owner goes", () => {
    const { vac, cpu } = machine();
    const kvm = owner(vac[0], "kvm");
    const slot = vac[0].registerUserReturnMsr(kvm, 0xc000_0081);
    vac[0].setUserReturnMsr(kvm, slot, 5n);
    vac[0].unregisterOwner(kvm);
    expect(cpu[0].msrs.get(0xc000_0081)).toBe(0x11n);
  });
  it("are only set by who registered them", () => {
    const { vac } = machine();
    const [kvm1, kvm2] = [owner(vac[0], "kvm1"), owner(vac[0], "kvm2")];
    const slot = vac[0].registerUserReturnMsr(kvm1, 0xc000_0081);
    expect(() => vac[0].setUserReturnMsr(kvm2, slot, 1n)).toThrow("did not register");
  });
});

describe("running vCPU", () => {
  it("is seen from every CPU, and is of one owner at a time", () => {
    const { vac } = machine(2);
    const [kvm1, kvm2] = [owner(vac[0], "kvm1"), owner(vac[0], "kvm2")];
    vac[0].setRunningVcpu(kvm1, 0xffff_fff0);
    expect(vac[1].runningVcpu(0)).toEqual({ owner: kvm1, token: 0xffff_fff0 });
    expect(vac[1].runningVcpu(1)).toBeUndefined();
    expect(vac[1].runningVcpu(2)).toBeUndefined();
    expect(() => vac[0].setRunningVcpu(kvm2, 1)).toThrow(`while owner ${kvm1} does`);
    vac[0].clearRunningVcpu(kvm2);
    expect(vac[1].runningVcpu(0)).toBeDefined();
    vac[0].clearRunningVcpu(kvm1);
    expect(vac[1].runningVcpu(0)).toBeUndefined();
  });
});

describe("a CPU whose thread died", () => {
  const held = (shared: SharedArrayBuffer) => {
    const { offset, count } = VAC_LAYOUT.blocks.find(({ name }) => name === "vpids")!;
    return new Uint8Array(shared, offset, count).filter((state) => state > 0 && state < 0xfe).length;
  };

  it("gives its VPIDs back, not those of other CPUs, whoever held the numbers before", () => {
    const { shared, vac } = machine(3);
    const [kvm1, kvm2] = [owner(vac[0], "kvm1"), owner(vac[0], "kvm2")];
    for (const other of [vac[1], vac[2]]) for (const name of ["kvm1", "kvm2"]) owner(other, name);
    for (let i = 0; i < 65_535; i++) vac[1].freeVpid(kvm1, vac[1].allocateVpid(kvm1));
    // Every number was CPU 1's once
    const mine = [vac[0].allocateVpid(kvm1), vac[0].allocateVpid(kvm2)];
    for (let i = 0; i < 20; i++) vac[1].allocateVpid(i % 2 ? kvm1 : kvm2);
    vac[2].allocateVpid(kvm2);
    expect(held(shared)).toBe(23);
    reclaimDeadCpu(shared, 1);
    expect(held(shared)).toBe(3);
    vac[0].freeVpid(kvm1, mine[0]!);
    vac[0].freeVpid(kvm2, mine[1]!);
    expect(held(shared)).toBe(1);
  });
  it("ends the claims that it was the last to hold, and no other", () => {
    const { shared, vac, cpu } = machine(2);
    const both = owner(vac[0], "both");
    owner(vac[1], "both");
    const alone = owner(vac[1], "alone");
    expect(vac[1].registerUserReturnMsr(alone, 0xc000_0081)).toBe(0);
    for (let i = 0; i < 16; i++) cpu[0].msrs.set(0x5000 + i, 0n);
    vac[1].allocateVpid(alone);
    reclaimDeadCpu(shared, 1);
    expect(held(shared)).toBe(0);
    for (let i = 0; i < 16; i++) expect(vac[0].registerUserReturnMsr(both, 0x5000 + i)).toBe(i);
    expect(vac[0].registerOwner("alone")).toBe(alone);
    vac[0].unregisterOwner(both);
    expect(vac[0].registerOwner("another")).toBe(both);
  });
  it("holds no lock, VMCS nor vCPU any more", () => {
    const { shared, vac } = machine(2);
    const kvm = owner(vac[0], "kvm");
    owner(vac[1], "kvm");
    for (const each of vac) each.enableVirtualization(kvm);
    vac[1].loadVmcs(kvm, VMCS_A);
    vac[1].setRunningVcpu(kvm, 7);
    const words = new Int32Array(shared);
    for (const lock of [Header.ownersLock, Header.vpidLock, Header.userReturnLock, Header.loadedVmcsLock]) words[lock] = 2;
    reclaimDeadCpu(shared, 1);
    expect(vac[0].runningVcpu(1)).toBeUndefined();
    expect(vac[0].loadVmcs(kvm, VMCS_A)).toBe(0);
    expect(vac[0].allocateVpid(kvm)).toBeGreaterThan(0);
    expect(vac[0].virtualizationUsers()).toEqual([kvm]);
    expect(() => reclaimDeadCpu(shared, 2)).toThrow(RangeError);
  });
});
