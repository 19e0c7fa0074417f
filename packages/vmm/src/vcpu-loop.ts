import {
  Errno,
  ExitReason,
  errnoName,
  exitReasonName,
  InternalError,
  Ioctl,
  IoDirection,
  KvmRegs,
  KvmRun,
  KvmSregs,
  type SystemCalls,
} from "@mkvm/kvm-abi";
import type { ConsoleOutput } from "./console.ts";
import type { MemoryBus } from "./devices/memory-bus.ts";
import type { PortBus } from "./devices/port-bus.ts";
import type { KvmCalls } from "./kvm-calls.ts";
import { ExitStatus } from "./vmm-error.ts";

/** How a vCPU's run ended: with a status for the process, and for other ends than the guest's own wish a line that says where. */
export interface VcpuEnd {
  status: number;
  message?: string;
}

export interface VcpuLoop {
  sys: SystemCalls;
  kvm: KvmCalls;
  vcpuFd: number;
  vcpuId: number;
  /** Address of the kvm_run page. */
  run: number;
  ports: PortBus;
  memory: MemoryBus;
  /** What a device has asked of KVM and the guest must not run before: undefined when all is done. */
  settling: () => Promise<unknown> | undefined;
  console: ConsoleOutput;
  /** Set when a device or another vCPU ended the VM. */
  ended: () => VcpuEnd | undefined;
}

const exits = KvmRun.fields.exit.members;
const IO = exits.io.offset,
  MMIO = exits.mmio.offset,
  FAIL_ENTRY = exits.fail_entry.offset,
  INTERNAL = exits.internal.offset;
const EXIT_REASON = KvmRun.offsets.exit_reason;

/** Runs one vCPU until the VM ends. */
export async function runVcpu(loop: VcpuLoop): Promise<VcpuEnd> {
  const { sys, vcpuFd, run } = loop;
  const view = sys.memory.view;
  for (;;) {
    const pending = sys.ioctl(vcpuFd, Ioctl.KVM_RUN, 0);
    const result = typeof pending === "number" ? pending : await pending;
    const end = loop.ended();
    if (end) return end;
    if (result < 0 && result !== -Errno.EINTR && result !== -Errno.EAGAIN) {
      return {
        status: ExitStatus.systemCall,
        message: `vCPU ${loop.vcpuId}: KVM_RUN failed: ${errnoName(-result)}; see mkvm dmesg`,
      };
    }
    if (result < 0) continue;
    const reason = view.getUint32(run + EXIT_REASON, true);
    switch (reason) {
      case ExitReason.KVM_EXIT_IO:
        portAccess(loop, view);
        break;
      case ExitReason.KVM_EXIT_MMIO:
        memoryAccess(loop, view);
        break;
      case ExitReason.KVM_EXIT_INTR:
      case ExitReason.KVM_EXIT_IRQ_WINDOW_OPEN:
        break;
      case ExitReason.KVM_EXIT_SHUTDOWN:
        return { status: ExitStatus.tripleFault, message: `vCPU ${loop.vcpuId}: triple fault at ${await whereIs(loop)}` };
      case ExitReason.KVM_EXIT_FAIL_ENTRY: {
        const hardware = view.getBigUint64(run + FAIL_ENTRY, true).toString(16);
        return {
          status: ExitStatus.failedEntry,
          message: `vCPU ${loop.vcpuId}: VM entry failed with hardware reason 0x${hardware} at ${await whereIs(loop)}`,
        };
      }
      case ExitReason.KVM_EXIT_INTERNAL_ERROR: {
        const what = internalErrorName(view.getUint32(run + INTERNAL, true));
        return {
          status: ExitStatus.internalError,
          message: `vCPU ${loop.vcpuId}: KVM internal error (${what}) at ${await whereIs(loop)}; see mkvm dmesg`,
        };
      }
      default:
        return {
          status: ExitStatus.internalError,
          message: `vCPU ${loop.vcpuId}: this VMM does not know ${exitReasonName(reason)}, at ${await whereIs(loop)}`,
        };
    }
    const settling = loop.settling();
    if (settling !== undefined) await settling;
    const ended = loop.ended();
    if (ended) return ended;
  }
}

/** KVM_EXIT_MMIO: up to 8 bytes. */
function memoryAccess(loop: VcpuLoop, view: DataView): void {
  const mmio = loop.run + MMIO;
  const address = Number(view.getBigUint64(mmio, true));
  const data = loop.sys.memory.u8.subarray(mmio + 8, mmio + 8 + Math.min(8, view.getUint32(mmio + 16, true)));
  if (view.getUint8(mmio + 20) === 0) loop.memory.read(address, data);
  else loop.memory.write(address, data);
}

/** KVM_EXIT_IO: `count` items of `size` bytes at `data_offset` of kvm_run. */
function portAccess(loop: VcpuLoop, view: DataView): void {
  const io = loop.run + IO;
  const size = view.getUint8(io + 1);
  const port = view.getUint16(io + 2, true);
  const count = view.getUint32(io + 4, true);
  const isIn = view.getUint8(io) === IoDirection.KVM_EXIT_IO_IN;
  let at = loop.run + Number(view.getBigUint64(io + 8, true));
  for (let item = 0; item < count; item++, at += size) {
    if (isIn) setItem(view, at, size, loop.ports.read(port, size));
    else loop.ports.write(port, size, getItem(view, at, size));
  }
}

function getItem(view: DataView, at: number, size: number): number {
  return size === 1 ? view.getUint8(at) : size === 2 ? view.getUint16(at, true) : view.getUint32(at, true);
}

function setItem(view: DataView, at: number, size: number, value: number): void {
  if (size === 1) view.setUint8(at, value);
  else if (size === 2) view.setUint16(at, value, true);
  else view.setUint32(at, value, true);
}

function internalErrorName(suberror: number): string {
  const found = Object.entries(InternalError).find(([, value]) => value === suberror);
  return found ? found[0].replace("KVM_INTERNAL_ERROR_", "").toLowerCase() : `suberror ${suberror}`;
}

/** "cs:rip" and the paging state, for messages. */
async function whereIs(loop: VcpuLoop): Promise<string> {
  try {
    const regs = await loop.kvm.get(loop.vcpuFd, Ioctl.KVM_GET_REGS, KvmRegs);
    const sregs = await loop.kvm.get(loop.vcpuFd, Ioctl.KVM_GET_SREGS, KvmSregs);
    const hex = (value: number | bigint) => `0x${value.toString(16)}`;
    return `cs:rip ${hex(sregs.cs.selector)}:${hex(regs.rip)}, rsp ${hex(regs.rsp)}, cr0 ${hex(sregs.cr0)}, cr2 ${hex(sregs.cr2)}, cr3 ${hex(sregs.cr3)}`;
  } catch {
    return "an unknown place (its registers cannot be read)";
  }
}
