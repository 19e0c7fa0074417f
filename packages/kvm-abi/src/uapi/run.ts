/** `struct kvm_run`, the page that a vCPU and its VMM share. Members of the exit union are at `KvmRun.fields.exit.members`. */
import { array, bytes, nested, struct, u8, u16, u32, u64, union } from "../layout.ts";
import { KvmRegs, KvmSregs } from "./registers.ts";
import { KvmVcpuEvents } from "./vcpu.ts";

const EXIT = 32;

const Hw = struct("kvm_run.hw", 8, { hardware_exit_reason: u64(0) });
const FailEntry = struct("kvm_run.fail_entry", 16, { hardware_entry_failure_reason: u64(0), cpu: u32(8), _pad: u32(12) });
const Ex = struct("kvm_run.ex", 8, { exception: u32(0), error_code: u32(4) });
const Io = struct("kvm_run.io", 16, {
  direction: u8(0), // IoDirection
  size: u8(1), // bytes of one item
  port: u16(2),
  count: u32(4), // items
  data_offset: u64(8), // from the start of kvm_run
});
export const KvmDebugExitArch = struct("kvm_debug_exit_arch", 32, {
  exception: u32(0),
  pad: u32(4),
  pc: u64(8),
  dr6: u64(16),
  dr7: u64(24),
});
const Debug = struct("kvm_run.debug", 32, { arch: nested(0, KvmDebugExitArch) });
const Mmio = struct("kvm_run.mmio", 24, {
  phys_addr: u64(0),
  data: bytes(8, 8),
  len: u32(16), // bytes, at most 8
  is_write: u8(20),
  _pad: bytes(21, 3),
});
const Hypercall = struct("kvm_run.hypercall", 72, {
  nr: u64(0),
  args: array(8, u64, 6),
  ret: u64(56),
  longmode: u32(64),
  pad: u32(68),
});
const TprAccess = struct("kvm_run.tpr_access", 16, { rip: u64(0), is_write: u32(8), pad: u32(12) });
const Internal = struct("kvm_run.internal", 136, { suberror: u32(0), ndata: u32(4), data: array(8, u64, 16) });
const EmulationFailure = struct("kvm_run.emulation_failure", 32, {
  suberror: u32(0),
  ndata: u32(4),
  flags: u64(8),
  insn_size: u8(16),
  insn_bytes: bytes(17, 15),
});
const SystemEventExit = struct("kvm_run.system_event", 136, { type: u32(0), ndata: u32(4), data: array(8, u64, 16) });
const Eoi = struct("kvm_run.eoi", 1, { vector: u8(0) });
const Msr = struct("kvm_run.msr", 24, { error: u8(0), pad: bytes(1, 7), reason: u32(8), index: u32(12), data: u64(16) });
const Notify = struct("kvm_run.notify", 4, { flags: u32(0) });
export const KvmSyncRegs = struct("kvm_sync_regs", 520, {
  regs: nested(0, KvmRegs),
  sregs: nested(144, KvmSregs),
  events: nested(456, KvmVcpuEvents),
});

export const KvmRun = struct(
  "kvm_run",
  2352,
  {
    request_interrupt_window: u8(0),
    immediate_exit: u8(1),
    padding1: bytes(2, 6),
    exit_reason: u32(8), // ExitReason
    ready_for_interrupt_injection: u8(12),
    if_flag: u8(13),
    flags: u16(14), // RunFlag
    cr8: u64(16),
    apic_base: u64(24),
    exit: union(
      EXIT,
      256,
      {
        hw: nested(EXIT, Hw),
        fail_entry: nested(EXIT, FailEntry),
        ex: nested(EXIT, Ex),
        io: nested(EXIT, Io),
        debug: nested(EXIT, Debug),
        mmio: nested(EXIT, Mmio),
        hypercall: nested(EXIT, Hypercall),
        tpr_access: nested(EXIT, TprAccess),
        internal: nested(EXIT, Internal),
        emulation_failure: nested(EXIT, EmulationFailure),
        system_event: nested(EXIT, SystemEventExit),
        eoi: nested(EXIT, Eoi),
        msr: nested(EXIT, Msr),
        notify: nested(EXIT, Notify),
        padding: bytes(EXIT, 256),
      },
      { anonymous: true },
    ),
    kvm_valid_regs: u64(288),
    kvm_dirty_regs: u64(296),
    s: union(304, 2048, { regs: nested(304, KvmSyncRegs), padding: bytes(304, 2048) }),
  },
  undefined,
  { sizeNegotiatedBy: "KVM_GET_VCPU_MMAP_SIZE" },
);

export const RunFlag = { KVM_RUN_X86_SMM: 1, KVM_RUN_X86_BUS_LOCK: 2 } as const;
export const IoDirection = { KVM_EXIT_IO_IN: 0, KVM_EXIT_IO_OUT: 1 } as const;
export const SyncRegsFlag = { KVM_SYNC_X86_REGS: 1, KVM_SYNC_X86_SREGS: 2, KVM_SYNC_X86_EVENTS: 4 } as const;
/** What KVM_GET_VCPU_MMAP_SIZE answers on x86: kvm_run, the PIO data page, the coalesced MMIO ring. */
export const VCPU_MMAP_SIZE_BYTES = 3 * 4096;
