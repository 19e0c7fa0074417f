/**
 * The local APIC of a vCPU in the hands of the processor: the virtual-APIC page is where the LAPIC model has its registers, and the
 * processor delivers what is pending there, ends interrupts, and reads and writes most registers without an exit. Interrupts that
 * arrive go into IRR as ever, on the CPU that the vCPU runs on, so that an entry need only be told the highest of them: posted
 * interrupts, which are for senders elsewhere, have nobody to serve. Source: Intel SDM Vol. 3C, APIC Virtualization and Virtual
 * Interrupts.
 */
import type { Hpa, VmxInstructions } from "@mkvm/hw-x86";
import { fillMsrBitmap, type Lapic, SecondaryControl, VmcsField, X2APIC_READABLE } from "@mkvm/kvm-core";
import type { Vcpu } from "../vcpu.ts";

const ACCESS_PAGE_GFN = 0xfee00;
const ACCESS_PAGE_ADDRESS = ACCESS_PAGE_GFN * 4096;
const MODE_CONTROLS = SecondaryControl.virtualizeApicAccesses | SecondaryControl.virtualizeX2apicMode;
const EOI_BITMAPS = [
  VmcsField.EOI_EXIT_BITMAP_0,
  VmcsField.EOI_EXIT_BITMAP_1,
  VmcsField.EOI_EXIT_BITMAP_2,
  VmcsField.EOI_EXIT_BITMAP_3,
] as const;
const FIRST_MSR = 0x800;
const WRITES = 2048;
const CURRENT_COUNT = 0x390;
/** TPR, EOI and SELF_IPI. */
const WRITTEN_MSRS = [0x808, 0x80b, 0x83f] as const;
const NO_GENERATION = -1;

/** At the address where the access page is mapped, with the registers that it stands for. */
export function usesAccessPage(lapic: Lapic): boolean {
  return lapic.enabled && !lapic.x2apic && lapic.pageAddress === ACCESS_PAGE_ADDRESS;
}

export interface ApicPages {
  readonly virtualApic: Hpa;
  /** Of the VM: the page that maps to the local APIC's address. */
  readonly access: Hpa;
  /** The MSR bitmap's bytes. */
  readonly msrBitmap: Uint8Array;
}

export class ApicVirtualization {
  readonly #vmx: VmxInstructions;
  readonly #vcpu: Vcpu;
  readonly #lapic: Lapic;
  readonly #pages: ApicPages;
  #mode = 0;
  #generation = NO_GENERATION;
  readonly #eoiVectors = new Uint32Array(8);

  constructor(vmx: VmxInstructions, vcpu: Vcpu, lapic: Lapic, pages: ApicPages) {
    this.#vmx = vmx;
    this.#vcpu = vcpu;
    this.#lapic = lapic;
    this.#pages = pages;
  }

  /** Into the current VMCS, whose other controls are set up. */
  setUp(secondary: number): void {
    const vmx = this.#vmx;
    vmx.vmwrite(VmcsField.VIRTUAL_APIC_ADDRESS, this.#pages.virtualApic);
    vmx.vmwrite(VmcsField.APIC_ACCESS_ADDRESS, this.#pages.access);
    vmx.vmwrite(VmcsField.TPR_THRESHOLD, 0);
    vmx.vmwrite(
      VmcsField.SECONDARY_PROCESSOR_CONTROLS,
      secondary | SecondaryControl.apicRegisterVirtualization | SecondaryControl.virtualInterruptDelivery,
    );
  }

  /** Before each entry, with the vCPU's VMCS current. */
  enter(): void {
    const lapic = this.#lapic;
    this.#selectMode();
    this.#selectEois();
    const isHeld = !lapic.enabled || this.#vcpu.debug.blocksInterrupts;
    const requested = isHeld ? 0 : Math.max(lapic.highestRequest(), 0);
    const served = Math.max(lapic.highestInService(), 0);
    this.#vmx.vmwrite(VmcsField.GUEST_INTERRUPT_STATUS, requested | (served << 8));
  }

  /** Which of its two faces the APIC shows, if any. */
  #selectMode(): void {
    const lapic = this.#lapic;
    let mode = 0;
    if (lapic.x2apic) mode = SecondaryControl.virtualizeX2apicMode;
    else if (usesAccessPage(lapic)) mode = SecondaryControl.virtualizeApicAccesses;
    if (mode === this.#mode) return;
    if (mode !== SecondaryControl.virtualizeApicAccesses) this.#hideAccessPage();
    const isX2apic = mode === SecondaryControl.virtualizeX2apicMode;
    const wasX2apic = this.#mode === SecondaryControl.virtualizeX2apicMode;
    this.#mode = mode;
    if (isX2apic !== wasX2apic) {
      fillMsrBitmap(this.#pages.msrBitmap, this.#vcpu.vm.settings.msrFilter);
      this.passMsrs();
    }
    const field = VmcsField.SECONDARY_PROCESSOR_CONTROLS;
    this.#vmx.vmwrite(field, (this.#vmx.vmread32(field) & ~MODE_CONTROLS) | mode);
  }
  /** Memory of a vCPU that does not virtualize accesses has no APIC page in it, and second-level tables are those of all. */
  #hideAccessPage(): void {
    this.#vcpu.vm.mmu.zap(ACCESS_PAGE_GFN, ACCESS_PAGE_GFN + 1);
  }

  /**
   * Into a bitmap that has been filled: reads of the registers that are a word of the page, writes of those that the processor sees
   * to. No filter applies to them.
   */
  passMsrs(): void {
    const bitmap = this.#pages.msrBitmap;
    if (this.#mode !== SecondaryControl.virtualizeX2apicMode) return;
    for (const offset of X2APIC_READABLE) if (offset !== CURRENT_COUNT) clear(bitmap, FIRST_MSR + (offset >>> 4), 0);
    for (const index of WRITTEN_MSRS) clear(bitmap, index, WRITES);
  }

  /** EOIs that the IOAPIC waits for exit. */
  #selectEois(): void {
    const ioapic = this.#vcpu.vm.irqchip?.ioapic;
    const generation = ioapic?.generation ?? 0;
    if (generation === this.#generation) return;
    this.#generation = generation;
    this.#eoiVectors.fill(0);
    ioapic?.markVectors(this.#eoiVectors);
    EOI_BITMAPS.forEach((field, i) => {
      const low = BigInt(this.#eoiVectors[2 * i]! >>> 0);
      this.#vmx.vmwrite(field, (BigInt(this.#eoiVectors[2 * i + 1]! >>> 0) << 32n) | low);
    });
  }

  /** A violation at a guest-physical address is that of the access page, to be mapped here; undefined: it is not. */
  accessPageAt(guestPhysicalAddress: number): { gfn: number; address: Hpa } | undefined {
    const gfn = Math.floor(guestPhysicalAddress / 4096);
    const { vm } = this.#vcpu;
    if (gfn !== ACCESS_PAGE_GFN || this.#mode !== SecondaryControl.virtualizeApicAccesses) return undefined;
    if (vm.slots.find(gfn) !== undefined) return undefined;
    const isCommon = vm.vcpus().every(({ lapic }) => lapic !== undefined && usesAccessPage(lapic));
    return isCommon ? { gfn, address: this.#pages.access } : undefined;
  }
}

function clear(bitmap: Uint8Array, msr: number, base: number): void {
  bitmap[base + (msr >>> 3)]! &= ~(1 << (msr & 7));
}
