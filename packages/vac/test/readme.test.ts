import type { Hpa } from "@mkvm/hw-x86";
import { expect, it } from "vitest";
import { attachVac, createVacMemory, type OwnerId } from "../src/index.ts";
import { fakeCpu } from "./fake-cpu.ts";

it("does what its README shows", () => {
  const cpu = fakeCpu(0);
  const shared = createVacMemory(2);
  const vac = attachVac(shared, cpu, 0x1000 as Hpa);
  const kvm1 = vac.registerOwner("kvm1") as OwnerId;
  expect(vac.enableVirtualization(kvm1)).toBe(0);
  expect(vac.allocateVpid(kvm1)).toBe(1);
  expect(vac.loadVmcs(kvm1, 0x5000 as Hpa)).toBe(0);
  vac.unregisterOwner(kvm1);
  expect(cpu.log.slice(-3)).toEqual(["vmptrld 0x5000", "vmclear 0x5000", "vmxoff"]);
});
