import { KEYBOARD_COMMAND_PORT } from "../devices/keyboard-controller.ts";
import { PM1_CONTROL_PORT, PM1_EVENT_PORT, SLEEP_TYPE_S5 } from "../devices/power.ts";
import type { GuestMemory } from "../guest-memory.ts";
import { ACPI_TABLES } from "../memory-layout.ts";

/**
 * The ACPI tables of the VM: RSDP, XSDT, FADT, FACS, DSDT, MADT. They tell of the interrupt controllers, the vCPUs, and how to
 * power off and reset. Source: ACPI specification, ACPI System Description Tables.
 */
const HEADER_BYTES = 36;
const LOCAL_APIC_ADDRESS = 0xfee0_0000;
const IO_APIC_ADDRESS = 0xfec0_0000;
const SCI_INTERRUPT = 9;

const encoder = new TextEncoder();

/** Writes all tables and returns the address of the RSDP. */
export function writeAcpiTables(memory: GuestMemory, cpus: number): number {
  let next = ACPI_TABLES + 64;
  const place = (table: Uint8Array): number => {
    const address = next;
    memory.write(address, table);
    next = (address + table.length + 63) & ~63;
    return address;
  };
  const facs = place(facsTable());
  const dsdt = place(table("DSDT", 2, softOffAml()));
  const fadt = place(fadtTable(facs, dsdt));
  const madt = place(table("APIC", 3, madtBody(cpus)));
  const xsdt = place(table("XSDT", 1, u64s(fadt, madt)));
  memory.write(ACPI_TABLES, rootPointer(xsdt));
  return ACPI_TABLES;
}

/** A table with the standard header, checksum filled in. */
function table(signature: string, revision: number, body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + body.length);
  const view = new DataView(bytes.buffer);
  bytes.set(encoder.encode(signature));
  view.setUint32(4, bytes.length, true);
  bytes[8] = revision;
  bytes.set(encoder.encode("MKVM  MKVM VM "), 10);
  view.setUint32(24, 1, true);
  bytes.set(encoder.encode("MKVM"), 28);
  view.setUint32(32, 1, true);
  bytes.set(body, HEADER_BYTES);
  bytes[9] = checksum(bytes);
  return bytes;
}

/** The byte that makes the sum of all bytes zero. */
function checksum(bytes: Uint8Array): number {
  let sum = 0;
  for (const byte of bytes) sum += byte;
  return -sum & 0xff;
}

function u64s(...values: number[]): Uint8Array {
  const bytes = new Uint8Array(values.length * 8);
  const view = new DataView(bytes.buffer);
  for (const [index, value] of values.entries()) view.setBigUint64(index * 8, BigInt(value), true);
  return bytes;
}

function rootPointer(xsdt: number): Uint8Array {
  const bytes = new Uint8Array(36);
  const view = new DataView(bytes.buffer);
  bytes.set(encoder.encode("RSD PTR "));
  bytes.set(encoder.encode("MKVM  "), 9);
  bytes[15] = 2;
  view.setUint32(20, bytes.length, true);
  view.setBigUint64(24, BigInt(xsdt), true);
  bytes[8] = checksum(bytes.subarray(0, 20));
  bytes[32] = checksum(bytes);
  return bytes;
}

function facsTable(): Uint8Array {
  const bytes = new Uint8Array(64);
  bytes.set(encoder.encode("FACS"));
  new DataView(bytes.buffer).setUint32(4, bytes.length, true);
  bytes[32] = 2;
  return bytes;
}

/** Name (\_S5_, Package (4) { S5, S5, 0, 0 }) in AML. */
function softOffAml(): Uint8Array {
  const NAME = 0x08,
    PACKAGE = 0x12,
    BYTE = 0x0a,
    ZERO = 0x00;
  return Uint8Array.of(NAME, ...encoder.encode("_S5_"), PACKAGE, 8, 4, BYTE, SLEEP_TYPE_S5, BYTE, SLEEP_TYPE_S5, ZERO, ZERO);
}

function fadtTable(facs: number, dsdt: number): Uint8Array {
  const body = new Uint8Array(244 - HEADER_BYTES);
  const view = new DataView(body.buffer);
  // Offsets below are those of the specification, which count from the start of the table.
  const at = (offset: number) => offset - HEADER_BYTES;
  view.setUint32(at(36), facs, true);
  view.setUint32(at(40), dsdt, true);
  view.setUint16(at(46), SCI_INTERRUPT, true);
  view.setUint32(at(56), PM1_EVENT_PORT, true);
  view.setUint32(at(64), PM1_CONTROL_PORT, true);
  body[at(88)] = 4;
  body[at(89)] = 2;
  view.setUint16(at(96), 0xffff, true); // C2 latency above 100: not supported
  view.setUint16(at(98), 0xffff, true); // C3 latency above 1000: not supported
  body[at(108)] = 0x32; // century register of the real-time clock
  const LEGACY_DEVICES = 1,
    NO_VGA = 4;
  view.setUint16(at(109), LEGACY_DEVICES | NO_VGA, true);
  const WBINVD = 1,
    PROC_C1 = 4,
    NO_POWER_BUTTON = 16,
    NO_SLEEP_BUTTON = 32,
    RESET_REGISTER = 1 << 10;
  view.setUint32(at(112), WBINVD | PROC_C1 | NO_POWER_BUTTON | NO_SLEEP_BUTTON | RESET_REGISTER, true);
  genericAddress(view, at(116), 8, KEYBOARD_COMMAND_PORT);
  body[at(128)] = 0xfe; // value that resets
  body[at(131)] = 0; // minor version
  view.setBigUint64(at(132), BigInt(facs), true);
  view.setBigUint64(at(140), BigInt(dsdt), true);
  genericAddress(view, at(148), 32, PM1_EVENT_PORT);
  genericAddress(view, at(172), 16, PM1_CONTROL_PORT);
  return table("FACP", 4, body);
}

/** A generic address structure for an I/O port register of `bits`. */
function genericAddress(view: DataView, offset: number, bits: number, port: number): void {
  view.setUint8(offset, 1);
  view.setUint8(offset + 1, bits);
  view.setUint8(offset + 3, bits === 8 ? 1 : bits === 16 ? 2 : 3);
  view.setBigUint64(offset + 4, BigInt(port), true);
}

function madtBody(cpus: number): Uint8Array {
  const bytes: number[] = [];
  const u32 = (value: number) => bytes.push(value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24);
  u32(LOCAL_APIC_ADDRESS);
  u32(1); // the two 8259s are there too
  for (let cpu = 0; cpu < cpus; cpu++) bytes.push(0, 8, cpu, cpu, 1, 0, 0, 0); // local APIC, enabled
  bytes.push(1, 12, cpus, 0); // I/O APIC with pins from GSI 0
  u32(IO_APIC_ADDRESS);
  u32(0);
  // ISA IRQs are on the pins of their numbers, as KVM routes them without being told otherwise
  bytes.push(2, 10, 0, SCI_INTERRUPT); // the SCI is level, active high
  u32(SCI_INTERRUPT);
  bytes.push(0x0d, 0);
  bytes.push(4, 6, 0xff, 0, 0, 1); // NMI on LINT1 of every CPU
  return Uint8Array.from(bytes);
}
