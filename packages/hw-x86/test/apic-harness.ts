/** A VMX guest with a virtual-APIC page; its APIC-access page is at guest physical APIC. */
import { Engine } from "../src/engine/engine.ts";
import { Primary, Secondary } from "../src/vmx/controls.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { BANK, VmxHarness } from "./vmx-harness.ts";

export const APIC = 0x20_0000;
const IDT = 0x6000;
const GDT = 0x5000;

export class ApicHarness extends VmxHarness {
  readonly virtualApic: number;
  readonly accessPage: number;

  constructor(
    code: readonly number[],
    secondary: number,
    primary: number = Primary.useTprShadow,
    clock: "icount" | "wall" = "icount",
  ) {
    super({
      mode: "long",
      clock,
      engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
    });
    this.load(code);
    this.virtualApic = this.page();
    this.accessPage = this.page();
    this.map(APIC, this.accessPage, 0x37);
    this.write("VIRTUAL_APIC_ADDRESS", this.address(this.virtualApic));
    this.write("APIC_ACCESS_ADDRESS", this.address(this.accessPage));
    this.setControl("PRIMARY_CONTROLS", primary);
    this.setControl("SECONDARY_CONTROLS", secondary);
  }

  address(offset: number): bigint {
    return (BigInt(BANK) << 32n) | BigInt(offset);
  }
  register(offset: number): number {
    return this.bank.u32[(this.virtualApic + offset) >>> 2] as number;
  }
  setRegister(offset: number, value: number): void {
    this.bank.u32[(this.virtualApic + offset) >>> 2] = value;
  }
  /** ISR (0x100) or IRR (0x200). */
  has(block: number, vector: number): boolean {
    return ((this.register(block + (vector >>> 5) * 16) >>> (vector & 31)) & 1) !== 0;
  }
  request(vector: number): void {
    const at = 0x200 + (vector >>> 5) * 16;
    this.setRegister(at, (this.register(at) | (1 << (vector & 31))) >>> 0);
  }
  /** RVI and SVI. */
  get status(): { requesting: number; servicing: number } {
    const status = this.read("GUEST_INTERRUPT_STATUS");
    return { requesting: status & 0xff, servicing: status >>> 8 };
  }
  setStatus(requesting: number, servicing = 0): void {
    this.write("GUEST_INTERRUPT_STATUS", requesting | (servicing << 8));
  }
  at(rip: number): this {
    this.write("GUEST_RIP", rip);
    return this;
  }
  interruptible(): this {
    this.write("GUEST_RFLAGS", 0x202);
    return this;
  }

  /** A 64-bit interrupt gate for `vector`. */
  gate(vector: number, handler: number): void {
    const gate = (this.guestMemory + IDT + vector * 16) >>> 2;
    this.bank.u32[gate] = (0x10 << 16) | (handler & 0xffff);
    this.bank.u32[gate + 1] = (handler & 0xffff_0000) | 0x8e00;
    this.write("GUEST_IDTR_BASE", IDT);
    this.write("GUEST_IDTR_LIMIT", 0xfff);
    this.bank.view.setBigUint64(this.guestMemory + GDT + 0x10, 0x00af_9b00_0000_ffffn, true);
    this.bank.view.setBigUint64(this.guestMemory + GDT + 0x18, 0x00cf_9300_0000_ffffn, true);
    this.write("GUEST_GDTR_BASE", GDT);
    this.write("GUEST_GDTR_LIMIT", 0x1f);
  }
}

export const ALL_APICV =
  Secondary.virtualizeApicAccesses | Secondary.apicRegisterVirtualization | Secondary.virtualInterruptDelivery;

const little = (value: number): number[] => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
/** mov dword [APIC + offset], value */
export const writeApic = (offset: number, value: number): number[] => [
  0xc7,
  0x04,
  0x25,
  ...little(APIC + offset),
  ...little(value),
];
/** mov eax, [APIC + offset] */
export const readApic = (offset: number): number[] => [0x8b, 0x04, 0x25, ...little(APIC + offset)];
/** mov ecx, index; mov eax, value; xor edx, edx; wrmsr */
export const writeMsr = (index: number, value: number): number[] => [
  0xb9,
  ...little(index),
  0xb8,
  ...little(value),
  0x31,
  0xd2,
  0x0f,
  0x30,
];
/** mov ecx, index; rdmsr */
export const readMsr = (index: number): number[] => [0xb9, ...little(index), 0x0f, 0x32];
