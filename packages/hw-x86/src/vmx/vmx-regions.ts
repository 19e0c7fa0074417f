/**
 * Regions of memory that VMX operation holds on one CPU: the VMXON region, and VMCSs that are active, which is what the processor may keep
 * to itself. Source: Intel SDM Vol. 3C, VMXON Region; Software Use of the VMCS and Related Structures. The hardware sanitizer is told of
 * regions that go away, or to others, under the processor's feet: silicon keeps count of none.
 */
import { bankOf, type Hpa, offsetOf } from "../addresses.ts";
import type { MemoryBank } from "../physical-memory.ts";
import type { RootCpu } from "../root-interface.ts";
import { activateRegion, VMCS_REVISION, VMCS_REVISION_WORD } from "./vmcs.ts";

const NONE = -1;
const PAGE_BYTES = 4096;

export class VmxRegions {
  readonly #cpu: RootCpu;
  /** Address of the VMXON region; NONE outside VMX operation. */
  #vmxon = NONE;
  /** VMCSs that were loaded and not cleared since. */
  readonly #active = new Set<number>();
  #isReported = false;

  constructor(cpu: RootCpu) {
    this.#cpu = cpu;
  }

  get isInOperation(): boolean {
    return this.#vmxon !== NONE;
  }
  isVmxon(address: Hpa): boolean {
    return address === this.#vmxon;
  }

  /** Aligned and within the address width. */
  isAddress(address: Hpa): boolean {
    return (
      Number.isInteger(address) &&
      address >= 0 &&
      address % PAGE_BYTES === 0 &&
      address < 2 ** this.#cpu.model.physicalAddressBits
    );
  }
  bank(address: Hpa): MemoryBank | undefined {
    return this.#cpu.memory.holding(address, PAGE_BYTES);
  }
  /** Where no memory answers the bus gives ones, which is no revision. */
  hasRevision(address: Hpa): boolean {
    return this.bank(address)?.u32[(offsetOf(address) >>> 2) + VMCS_REVISION_WORD] === VMCS_REVISION;
  }

  // VMX operation

  enter(region: Hpa): void {
    this.#vmxon = region;
  }
  /** VMXON in VMX operation. */
  reportSecond(region: Hpa): void {
    if (region === this.#vmxon) return;
    const [second, first] = [region.toString(16), this.#vmxon.toString(16)];
    this.#cpu.log(`sanitizer: VMXON with region ${second} on CPU ${this.#cpu.id}, in VMX operation with region ${first}`);
  }
  /** What the CPU holds of active VMCSs is nowhere afterwards: whoever they belong to had to clear them before. */
  leave(how: string): void {
    if (this.#active.size > 0) {
      const which = [...this.#active].map((address) => address.toString(16)).join(", ");
      this.#cpu.log(`sanitizer: ${how} CPU ${this.#cpu.id} under the feet of VMCS ${which}, active there and not cleared`);
      this.#active.clear();
    }
    this.#vmxon = NONE;
  }
  /** The processor alone may write there in VMX operation: a second owner of VMX that sets up its own region writes this one. */
  checkVmxon(): void {
    const region = this.#vmxon as Hpa;
    if (this.#isReported || this.bank(region) === undefined || this.hasRevision(region)) return;
    this.#isReported = true;
    const where = region.toString(16);
    this.#cpu.log(`sanitizer: VMXON region ${where} was written to, with CPU ${this.#cpu.id} in VMX operation`);
  }

  // VMCSs

  activate(address: Hpa, bank: MemoryBank): void {
    const elsewhere = activateRegion(bank, offsetOf(address), this.#cpu.id);
    if (elsewhere !== -1)
      this.#cpu.log(
        `sanitizer: VMCS ${address.toString(16)} made current on CPU ${this.#cpu.id} while active on CPU ${elsewhere}`,
      );
    this.#active.add(address);
  }
  deactivate(address: Hpa): void {
    this.#active.delete(address);
  }

  // Memory

  /** What the processor itself may write at any time must not be freed at all. */
  pagesFreed(bank: MemoryBank, offset: number, count: number): void {
    const isIn = (address: number): boolean =>
      bankOf(address as Hpa) === bank.id &&
      offsetOf(address as Hpa) >= offset &&
      offsetOf(address as Hpa) < offset + count * PAGE_BYTES;
    const { id } = this.#cpu;
    if (this.isInOperation && isIn(this.#vmxon))
      this.#cpu.log(`sanitizer: VMXON region ${this.#vmxon.toString(16)} freed, with CPU ${id} in VMX operation`);
    for (const address of this.#active)
      if (isIn(address)) this.#cpu.log(`sanitizer: VMCS ${address.toString(16)} freed while active on CPU ${id}, not cleared`);
  }
  bankReleased(id: number): void {
    for (const address of this.#active) if (bankOf(address as Hpa) === id) this.#active.delete(address);
  }
}
