/** Guest registers in the VMCS, with the masks and shadows that hide from the guest what VMX wants of CR0 and CR4. */
import type { LogicalCpu, VmxInstructions } from "@mkvm/hw-x86";
import {
  CR0_GUEST_OWNED,
  CR4_GUEST_OWNED,
  Cr0,
  type DescriptorTableState,
  Efer,
  EntryControl,
  Interruptibility,
  Msr,
  type SegmentState,
  SystemSegment,
  VmcsField as Vmcs,
  type VmxCapabilities,
} from "@mkvm/kvm-core";

const ALL_ONES = 0xffff_ffff_ffff_ffffn;
/** Segment fields in encoding order are 2 apart in each group. */
const SEGMENT_FIELD_STRIDE = 2;
const BUSY_64_BIT_TSS = 0xb;
const TRAP_FLAG = 0x100;
/** DR6.BS, as pending debug exceptions have it. */
const SINGLE_STEP = 1n << 14n;

const VMCS_MSRS: ReadonlyMap<number, number> = new Map<number, number>([
  [Msr.IA32_SYSENTER_CS, Vmcs.GUEST_IA32_SYSENTER_CS],
  [Msr.IA32_SYSENTER_ESP, Vmcs.GUEST_IA32_SYSENTER_ESP],
  [Msr.IA32_SYSENTER_EIP, Vmcs.GUEST_IA32_SYSENTER_EIP],
  [Msr.IA32_FS_BASE, Vmcs.GUEST_FS_BASE],
  [Msr.IA32_GS_BASE, Vmcs.GUEST_GS_BASE],
  [Msr.IA32_PAT, Vmcs.GUEST_IA32_PAT],
  [Msr.IA32_DEBUGCTL, Vmcs.GUEST_IA32_DEBUGCTL],
]);

/** Acts on the current VMCS. */
export class VmxRegisters {
  readonly #vmx: VmxInstructions;
  readonly #capabilities: VmxCapabilities;

  constructor(cpu: LogicalCpu, capabilities: VmxCapabilities) {
    this.#vmx = cpu.vmx;
    this.#capabilities = capabilities;
  }

  readSegment(register: number): SegmentState {
    const vmx = this.#vmx;
    const at = register * SEGMENT_FIELD_STRIDE;
    return {
      selector: vmx.vmread32(Vmcs.GUEST_ES_SELECTOR + at),
      base: vmx.vmread(Vmcs.GUEST_ES_BASE + at),
      limit: vmx.vmread32(Vmcs.GUEST_ES_LIMIT + at),
      access: vmx.vmread32(Vmcs.GUEST_ES_ACCESS_RIGHTS + at),
    };
  }
  writeSegment(register: number, state: SegmentState): void {
    const vmx = this.#vmx;
    const at = register * SEGMENT_FIELD_STRIDE;
    vmx.vmwrite(Vmcs.GUEST_ES_SELECTOR + at, state.selector);
    vmx.vmwrite(Vmcs.GUEST_ES_BASE + at, state.base);
    vmx.vmwrite(Vmcs.GUEST_ES_LIMIT + at, state.limit);
    vmx.vmwrite(Vmcs.GUEST_ES_ACCESS_RIGHTS + at, state.access);
  }
  readTable(table: "gdtr" | "idtr"): DescriptorTableState {
    const at = table === "gdtr" ? 0 : SEGMENT_FIELD_STRIDE;
    return { base: this.#vmx.vmread(Vmcs.GUEST_GDTR_BASE + at), limit: this.#vmx.vmread32(Vmcs.GUEST_GDTR_LIMIT + at) };
  }
  writeTable(table: "gdtr" | "idtr", state: DescriptorTableState): void {
    const at = table === "gdtr" ? 0 : SEGMENT_FIELD_STRIDE;
    this.#vmx.vmwrite(Vmcs.GUEST_GDTR_BASE + at, state.base);
    this.#vmx.vmwrite(Vmcs.GUEST_GDTR_LIMIT + at, state.limit);
  }

  readCr0(): bigint {
    const shadow = this.#vmx.vmread(Vmcs.CR0_READ_SHADOW);
    return (shadow & ~CR0_GUEST_OWNED) | (this.#vmx.vmread(Vmcs.GUEST_CR0) & CR0_GUEST_OWNED);
  }
  /** Caching stays on whatever the guest says; NE is what VMX demands; PE and PG are free with unrestricted guest. */
  writeCr0(value: bigint): void {
    const demanded = this.#capabilities.cr0Fixed0 & ~(Cr0.PE | Cr0.PG);
    this.#vmx.vmwrite(Vmcs.GUEST_CR0, (value & ~(Cr0.CD | Cr0.NW)) | demanded);
    this.#vmx.vmwrite(Vmcs.CR0_READ_SHADOW, value);
  }
  readCr4(): bigint {
    const shadow = this.#vmx.vmread(Vmcs.CR4_READ_SHADOW);
    return (shadow & ~CR4_GUEST_OWNED) | (this.#vmx.vmread(Vmcs.GUEST_CR4) & CR4_GUEST_OWNED);
  }
  writeCr4(value: bigint): void {
    this.#vmx.vmwrite(Vmcs.GUEST_CR4, value | this.#capabilities.cr4Fixed0);
    this.#vmx.vmwrite(Vmcs.CR4_READ_SHADOW, value);
  }
  readEfer(): bigint {
    return this.#vmx.vmread(Vmcs.GUEST_IA32_EFER);
  }
  /** The entry control "IA-32e mode guest" follows LMA; so does TR, which has to hold a 64-bit TSS then. */
  writeEfer(value: bigint): void {
    this.#vmx.vmwrite(Vmcs.GUEST_IA32_EFER, value);
    const controls = this.#vmx.vmread32(Vmcs.VM_ENTRY_CONTROLS);
    const longMode = (value & Efer.LMA) !== 0n;
    const wanted = longMode ? controls | EntryControl.ia32eModeGuest : controls & ~EntryControl.ia32eModeGuest;
    if (wanted >>> 0 !== controls) this.#vmx.vmwrite(Vmcs.VM_ENTRY_CONTROLS, wanted >>> 0);
    if (longMode) {
      const field = Vmcs.GUEST_ES_ACCESS_RIGHTS + SystemSegment.TR * SEGMENT_FIELD_STRIDE;
      const access = this.#vmx.vmread32(field);
      if ((access & 0xf) !== BUSY_64_BIT_TSS) this.#vmx.vmwrite(field, (access & ~0xf) | BUSY_64_BIT_TSS);
    }
  }
  readPdptrs(): readonly bigint[] {
    return [Vmcs.GUEST_PDPTE0, Vmcs.GUEST_PDPTE1, Vmcs.GUEST_PDPTE2, Vmcs.GUEST_PDPTE3].map((field) => this.#vmx.vmread(field));
  }
  writePdptrs(values: readonly bigint[]): void {
    [Vmcs.GUEST_PDPTE0, Vmcs.GUEST_PDPTE1, Vmcs.GUEST_PDPTE2, Vmcs.GUEST_PDPTE3].forEach((field, index) => {
      this.#vmx.vmwrite(field, values[index] ?? 0n);
    });
  }

  /** undefined: the MSR is not in the VMCS. */
  readMsr(index: number): bigint | undefined {
    const field = VMCS_MSRS.get(index);
    return field === undefined ? undefined : this.#vmx.vmread(field);
  }
  writeMsr(index: number, value: bigint): boolean | undefined {
    const field = VMCS_MSRS.get(index);
    if (field === undefined) return undefined;
    this.#vmx.vmwrite(field, index === Msr.IA32_SYSENTER_CS ? value & 0xffff_ffffn : value & ALL_ONES);
    return true;
  }

  /** RIP moves by `length`, the interrupt shadow ends, and a single step that was on is due. */
  skip(length: number): void {
    const vmx = this.#vmx;
    vmx.vmwrite(Vmcs.GUEST_RIP, BigInt.asUintN(64, vmx.vmread(Vmcs.GUEST_RIP) + BigInt(length)));
    const state = vmx.vmread32(Vmcs.GUEST_INTERRUPTIBILITY_STATE);
    const shadow = Interruptibility.blockingBySti | Interruptibility.blockingByMovSs;
    if ((state & shadow) !== 0) vmx.vmwrite(Vmcs.GUEST_INTERRUPTIBILITY_STATE, state & ~shadow);
    if ((vmx.vmread32(Vmcs.GUEST_RFLAGS) & TRAP_FLAG) === 0) return;
    vmx.vmwrite(Vmcs.GUEST_PENDING_DEBUG_EXCEPTIONS, vmx.vmread(Vmcs.GUEST_PENDING_DEBUG_EXCEPTIONS) | SINGLE_STEP);
  }
  readInterruptShadow(): number {
    const state = this.#vmx.vmread32(Vmcs.GUEST_INTERRUPTIBILITY_STATE);
    // The uapi has MOV SS in bit 0 and STI in bit 1, the VMCS the other way round
    return (
      ((state & Interruptibility.blockingByMovSs) !== 0 ? 1 : 0) | ((state & Interruptibility.blockingBySti) !== 0 ? 2 : 0)
    );
  }
  writeInterruptShadow(shadow: number): void {
    const state = this.#vmx.vmread32(Vmcs.GUEST_INTERRUPTIBILITY_STATE);
    const wanted =
      (state & ~(Interruptibility.blockingByMovSs | Interruptibility.blockingBySti)) |
      ((shadow & 1) !== 0 ? Interruptibility.blockingByMovSs : (shadow & 2) !== 0 ? Interruptibility.blockingBySti : 0);
    if (wanted !== state) this.#vmx.vmwrite(Vmcs.GUEST_INTERRUPTIBILITY_STATE, wanted);
  }
  readNmiMasked(): boolean {
    return (this.#vmx.vmread32(Vmcs.GUEST_INTERRUPTIBILITY_STATE) & Interruptibility.blockingByNmi) !== 0;
  }
  writeNmiMasked(masked: boolean): void {
    const state = this.#vmx.vmread32(Vmcs.GUEST_INTERRUPTIBILITY_STATE);
    const wanted = masked ? state | Interruptibility.blockingByNmi : state & ~Interruptibility.blockingByNmi;
    if (wanted !== state) this.#vmx.vmwrite(Vmcs.GUEST_INTERRUPTIBILITY_STATE, wanted);
  }
}
