import { createHash } from "node:crypto";
import { type Fields, Ioctl, KvmDebugregs, KvmFpu, KvmRegs, KvmSregs, type Struct } from "@mkvm/kvm-abi";
import type { GuestMemory } from "./guest-memory.ts";
import type { KvmCalls } from "./kvm-calls.ts";

/** What a vCPU is asked for: all that its guest can see in registers. */
const registerCalls: readonly [number, Struct<Fields>][] = [
  [Ioctl.KVM_GET_REGS, KvmRegs as unknown as Struct<Fields>],
  [Ioctl.KVM_GET_SREGS, KvmSregs as unknown as Struct<Fields>],
  [Ioctl.KVM_GET_FPU, KvmFpu as unknown as Struct<Fields>],
  [Ioctl.KVM_GET_DEBUGREGS, KvmDebugregs as unknown as Struct<Fields>],
];

/** One line with SHA-256 of guest RAM and of the registers of all vCPUs: equal for runs that ended in the same state. */
export async function stateDigest(kvm: KvmCalls, memory: GuestMemory, vcpuFds: readonly number[]): Promise<string> {
  const registers = createHash("sha256");
  for (const fd of vcpuFds) {
    for (const [request, layout] of registerCalls)
      registers.update(await kvm.exchange(fd, request, new Uint8Array(layout.sizeBytes)));
  }
  return `mkvm-digest memory=${createHash("sha256").update(memory.contents()).digest("hex")} registers=${registers.digest("hex")}`;
}
