/** IN, OUT, INS, OUTS: in-kernel devices, or KVM_EXIT_IO and its completion. */
import { ExitReason } from "@mkvm/kvm-abi";
import { Gpr } from "../arch/registers.ts";
import type { GuestFault } from "../instruction-emulator/emulated-cpu.ts";
import { type StringIo, stringIoCount, stringIoFinished, stringIoIn, stringIoOut } from "../string-io.ts";
import { emulatedGuest } from "./emulated-guest.ts";
import type { ExitOutcome, PendingPort, VcpuParts } from "./vcpu-parts.ts";

const PORT_PAGE_BYTES = 4096;

export interface PortExit {
  readonly isIn: boolean;
  /** Bytes of one item: 1, 2, 4. */
  readonly size: number;
  readonly port: number;
  readonly string: { readonly rep: boolean; readonly addressSize: number; readonly segment: number } | undefined;
  readonly instructionLength: number;
}

interface PortDevice {
  read(port: number): number;
  write(port: number, value: number): void;
}

function deviceAt(vcpu: VcpuParts, port: number): PortDevice | undefined {
  const { irqchip, pit } = vcpu.vm;
  if (irqchip?.pic.ownsPort(port)) return irqchip.pic;
  if (pit?.ownsPort(port)) return pit;
  return undefined;
}

/** The devices are 8 bits wide: wider accesses go to the ports one after the other. */
function readDevice(device: PortDevice, port: number, size: number): number {
  let value = 0;
  for (let byte = 0; byte < size; byte++) value |= device.read(port + byte) << (8 * byte);
  return value >>> 0;
}
function writeDevice(device: PortDevice, port: number, size: number, value: number): void {
  for (let byte = 0; byte < size; byte++) device.write(port + byte, (value >>> (8 * byte)) & 0xff);
}

/** AL, AX or EAX takes what was read; a 32-bit read clears the upper half of RAX. */
function storeIn(vcpu: VcpuParts, size: number, value: number): void {
  if (size === 4) {
    vcpu.setGpr32(Gpr.RAX, value >>> 0);
    return;
  }
  const mask = size === 1 ? 0xff : 0xffff;
  vcpu.setGpr(Gpr.RAX, (vcpu.gpr(Gpr.RAX) & ~BigInt(mask)) | BigInt(value & mask));
}
/** What OUT writes. */
function outValue(vcpu: VcpuParts, size: number): number {
  const value = vcpu.gpr32(Gpr.RAX);
  return size === 4 ? value : value & (size === 1 ? 0xff : 0xffff);
}

function little(bytes: Uint8Array, offset: number, size: number): number {
  let value = 0;
  for (let byte = 0; byte < size; byte++) value += bytes[offset + byte]! * 2 ** (8 * byte);
  return value;
}

export function handlePortExit(vcpu: VcpuParts, exit: PortExit): ExitOutcome {
  return exit.string === undefined ? handleSingle(vcpu, exit) : handleString(vcpu, exit, exit.string);
}

function handleSingle(vcpu: VcpuParts, exit: PortExit): ExitOutcome {
  const { isIn, size, port } = exit;
  const device = deviceAt(vcpu, port);
  if (device !== undefined) {
    if (isIn) storeIn(vcpu, size, readDevice(device, port, size));
    else writeDevice(device, port, size, outValue(vcpu, size));
    vcpu.skip(exit.instructionLength);
    return "resume";
  }
  vcpu.run.setPortItem(size, isIn ? 0 : outValue(vcpu, size));
  const { ioeventfds } = vcpu.vm;
  if (!isIn && !ioeventfds.isEmpty && ioeventfds.signal("pio", port, vcpu.run.portData(size))) {
    vcpu.skip(exit.instructionLength);
    return "resume";
  }
  return toUser(vcpu, exit, 1, exit.instructionLength);
}

function toUser(vcpu: VcpuParts, exit: PortExit, count: number, instructionLength: number): ExitOutcome {
  vcpu.run.exitReason = ExitReason.KVM_EXIT_IO;
  vcpu.run.setIo(exit.isIn, exit.size, exit.port, count);
  vcpu.pendingPort = {
    isIn: exit.isIn,
    size: exit.size,
    port: exit.port,
    count,
    string: exit.string === undefined ? undefined : { ...exit.string },
    rip: vcpu.rip,
    instructionLength,
  };
  return "exit";
}

function inject(vcpu: VcpuParts, fault: GuestFault): void {
  vcpu.queueException(fault.vector, fault.errorCode, fault.cr2);
}

function handleString(vcpu: VcpuParts, exit: PortExit, string: NonNullable<PortExit["string"]>): ExitOutcome {
  const cpu = emulatedGuest(vcpu);
  const io: StringIo = {
    isIn: exit.isIn,
    rep: string.rep,
    size: exit.size,
    addressSize: string.addressSize,
    segment: string.segment,
  };
  const count = stringIoCount(cpu, io, PORT_PAGE_BYTES);
  if (count === 0) {
    vcpu.skip(exit.instructionLength);
    return "resume";
  }
  const device = deviceAt(vcpu, exit.port);
  if (exit.isIn) {
    if (device === undefined) {
      vcpu.run.portData(count * exit.size).fill(0);
      return toUser(vcpu, exit, count, exit.instructionLength);
    }
    const items = new Uint8Array(count * exit.size);
    for (let item = 0; item < count; item++) {
      const value = readDevice(device, exit.port, exit.size);
      for (let byte = 0; byte < exit.size; byte++) items[item * exit.size + byte] = (value >>> (8 * byte)) & 0xff;
    }
    const fault = stringIoIn(cpu, io, items);
    if (fault !== undefined) inject(vcpu, fault);
    else if (stringIoFinished(cpu, io)) vcpu.skip(exit.instructionLength);
    return "resume";
  }
  const items = stringIoOut(cpu, io, count);
  if (!(items instanceof Uint8Array)) {
    inject(vcpu, items);
    return "resume";
  }
  const finished = stringIoFinished(cpu, io);
  if (device === undefined) {
    if (signalItems(vcpu, exit, items)) {
      if (finished) vcpu.skip(exit.instructionLength);
      return "resume";
    }
    vcpu.run.portData(items.length).set(items);
    // RSI and RCX have moved: an unfinished REP OUTS exits again by itself
    return toUser(vcpu, exit, count, finished ? exit.instructionLength : 0);
  }
  for (let item = 0; item < count; item++)
    writeDevice(device, exit.port, exit.size, little(items, item * exit.size, exit.size));
  if (finished) vcpu.skip(exit.instructionLength);
  return "resume";
}

/** Writes to an ioeventfd. As Linux: the first item decides, and what follows the last that an eventfd takes is lost. */
function signalItems(vcpu: VcpuParts, { port, size }: PortExit, items: Uint8Array): boolean {
  const { ioeventfds } = vcpu.vm;
  for (let at = 0; at < items.length; at += size)
    if (!ioeventfds.signal("pio", port, items.subarray(at, at + size))) return at > 0;
  return true;
}

/** KVM_RUN after KVM_EXIT_IO: takes the data of an IN and moves past the instruction. */
export function completePortExit(vcpu: VcpuParts, pending: PendingPort): void {
  vcpu.pendingPort = undefined;
  if (pending.string === undefined) {
    // User space has moved the vCPU elsewhere meanwhile (a reset, say)
    if (vcpu.rip !== pending.rip) return;
    if (pending.isIn) storeIn(vcpu, pending.size, vcpu.run.portItem(pending.size));
    vcpu.skip(pending.instructionLength);
    return;
  }
  if (vcpu.rip !== pending.rip) return;
  if (!pending.isIn) {
    if (pending.instructionLength !== 0) vcpu.skip(pending.instructionLength);
    return;
  }
  const cpu = emulatedGuest(vcpu);
  const io: StringIo = { isIn: true, size: pending.size, ...pending.string };
  const fault = stringIoIn(cpu, io, vcpu.run.portData(pending.count * pending.size).slice());
  if (fault !== undefined) inject(vcpu, fault);
  else if (stringIoFinished(cpu, io)) vcpu.skip(pending.instructionLength);
}
