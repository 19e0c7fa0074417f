import { expect, it } from "vitest";
import { Ioctl, KvmRegs, VcpuRegisters } from "../src/index.ts";

it("does what its README shows", () => {
  const regs = KvmRegs.encode({ rip: 0xfff0n, rflags: 2n });
  expect(regs).toHaveLength(144);
  expect(KvmRegs.get(regs, "rip")).toBe(0xfff0n);
  expect(KvmRegs.offsets.rip).toBe(128);
  expect(Ioctl.KVM_SET_REGS).toBe(0x4090_ae82);
  const section = VcpuRegisters.encode(0, { regs: KvmRegs.read(regs) });
  expect(VcpuRegisters.decode(section)).toMatchObject({ fixed: { regs: { rip: 0xfff0n } } });
});
