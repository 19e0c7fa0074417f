/** `struct kvm_sregs` of KVM_GET_SREGS, KVM_SET_SREGS and KVM_CAP_SYNC_REGS: without PDPTEs, with the interrupt that waits as a bitmap. */
import type { KvmSregs, StructValue } from "@mkvm/kvm-abi";
import { getSregs2, setSregs2 } from "./register-state.ts";
import type { VcpuParts } from "./vcpu-parts.ts";

export type SregsValue = StructValue<(typeof KvmSregs)["fields"]>;

const WORD_BITS = 64;

export function getSregs(vcpu: VcpuParts): SregsValue {
  const { flags: _flags, pdptrs: _pdptrs, ...sregs } = getSregs2(vcpu);
  const bitmap = [0n, 0n, 0n, 0n];
  const { interrupt } = vcpu.events();
  if (interrupt !== undefined && !interrupt.software) bitmap[interrupt.vector >> 6] = 1n << BigInt(interrupt.vector & 63);
  return { ...sregs, interrupt_bitmap: bitmap };
}

/** False: no processor could hold these, and nothing has changed. */
export function setSregs(vcpu: VcpuParts, { interrupt_bitmap, ...sregs }: SregsValue): boolean {
  if (!setSregs2(vcpu, { ...sregs, flags: 0n, pdptrs: [0n, 0n, 0n, 0n] })) return false;
  const word = interrupt_bitmap.findIndex((bits) => bits !== 0n);
  if (word < 0) return true;
  const bits = interrupt_bitmap[word]!;
  let bit = 0;
  while (((bits >> BigInt(bit)) & 1n) === 0n) bit++;
  vcpu.setEvents({ ...vcpu.events(), interrupt: { vector: word * WORD_BITS + bit, software: false } });
  return true;
}
