/** The vCPU as the instruction emulator and string I/O reach it. */
import { SegmentRegister } from "../arch/registers.ts";
import type { EmulatedCpu, GuestFault } from "../instruction-emulator/emulated-cpu.ts";
import { cpl, in64BitMode } from "./guest-cpu.ts";
import { isFault, translateLinear } from "./paging.ts";
import type { VcpuParts } from "./vcpu-parts.ts";

const IOAPIC_BYTES = 0x100;

function segmentBits(vcpu: VcpuParts, register: number): 16 | 32 | 64 {
  if (in64BitMode(vcpu)) return 64;
  return (vcpu.segment(register).access & 0x4000) !== 0 ? 32 : 16;
}

export function emulatedGuest(vcpu: VcpuParts): EmulatedCpu {
  const { vm } = vcpu;
  return {
    codeBits: segmentBits(vcpu, SegmentRegister.CS),
    stackBits: segmentBits(vcpu, SegmentRegister.SS),
    cpl: cpl(vcpu),
    get rip() {
      return vcpu.rip;
    },
    set rip(value) {
      vcpu.rip = value;
    },
    get rflags() {
      return vcpu.rflags;
    },
    set rflags(value) {
      vcpu.rflags = value;
    },
    gpr: (index) => vcpu.gpr(index),
    setGpr: (index, value) => vcpu.setGpr(index, value),
    segmentBase: (register) => (in64BitMode(vcpu) && register < SegmentRegister.FS ? 0n : vcpu.segment(register).base),
    translate(linear, access): number | GuestFault {
      const result = translateLinear(vcpu, linear, access, true);
      return isFault(result) ? result : result.gpa;
    },
    readRam: (gpa, length) => vm.memory.read(gpa, length),
    writeRam: (gpa, bytes) => vm.memory.write(gpa, bytes),
    readDevice(gpa, length) {
      const page = deviceAt(vcpu, gpa);
      return page?.device.mmioRead(page.offset, length);
    },
    writeDevice(gpa, bytes) {
      const page = deviceAt(vcpu, gpa);
      page?.device.mmioWrite(page.offset, bytes);
      return page !== undefined || vm.ioeventfds.signal("mmio", gpa, bytes);
    },
  };
}

interface RegisterPage {
  mmioRead(offset: number, length: number): Uint8Array;
  mmioWrite(offset: number, data: Uint8Array): void;
}

/** The in-kernel device whose registers are at a guest-physical address. */
function deviceAt(vcpu: VcpuParts, gpa: number): { device: RegisterPage; offset: number } | undefined {
  const { lapic } = vcpu;
  const { irqchip } = vcpu.vm;
  if (lapic?.enabled && !lapic.x2apic && gpa >= lapic.pageAddress && gpa < lapic.pageAddress + 4096) {
    return { device: lapic, offset: gpa - lapic.pageAddress };
  }
  if (irqchip !== undefined) {
    const { ioapic } = irqchip;
    if (gpa >= ioapic.baseAddress && gpa < ioapic.baseAddress + IOAPIC_BYTES) {
      return { device: ioapic, offset: gpa - ioapic.baseAddress };
    }
  }
  return undefined;
}
