/** Further state of a vCPU: multiprocessing state, events, debugging, signal mask. */
import { array, bytes, nested, struct, u8, u32, u64 } from "../layout.ts";

export const KvmMpState = struct("kvm_mp_state", 4, { mp_state: u32(0) });
export const MpState = {
  KVM_MP_STATE_RUNNABLE: 0,
  KVM_MP_STATE_UNINITIALIZED: 1,
  KVM_MP_STATE_INIT_RECEIVED: 2,
  KVM_MP_STATE_HALTED: 3,
  KVM_MP_STATE_SIPI_RECEIVED: 4,
} as const;

const ExceptionEvent = struct("kvm_vcpu_events.exception", 8, {
  injected: u8(0),
  nr: u8(1),
  has_error_code: u8(2),
  pending: u8(3),
  error_code: u32(4),
});
const InterruptEvent = struct("kvm_vcpu_events.interrupt", 4, { injected: u8(0), nr: u8(1), soft: u8(2), shadow: u8(3) });
const NmiEvent = struct("kvm_vcpu_events.nmi", 4, { injected: u8(0), pending: u8(1), masked: u8(2), pad: u8(3) });
const SmiEvent = struct("kvm_vcpu_events.smi", 4, { smm: u8(0), pending: u8(1), smm_inside_nmi: u8(2), latched_init: u8(3) });
const TripleFaultEvent = struct("kvm_vcpu_events.triple_fault", 1, { pending: u8(0) });

export const KvmVcpuEvents = struct("kvm_vcpu_events", 64, {
  exception: nested(0, ExceptionEvent),
  interrupt: nested(8, InterruptEvent),
  nmi: nested(12, NmiEvent),
  sipi_vector: u32(16),
  flags: u32(20), // VcpuEventFlag
  smi: nested(24, SmiEvent),
  triple_fault: nested(28, TripleFaultEvent),
  reserved: bytes(29, 26),
  exception_has_payload: u8(55),
  exception_payload: u64(56),
});
export const VcpuEventFlag = {
  KVM_VCPUEVENT_VALID_NMI_PENDING: 0x01,
  KVM_VCPUEVENT_VALID_SIPI_VECTOR: 0x02,
  KVM_VCPUEVENT_VALID_SHADOW: 0x04,
  KVM_VCPUEVENT_VALID_SMM: 0x08,
  KVM_VCPUEVENT_VALID_PAYLOAD: 0x10,
  KVM_VCPUEVENT_VALID_TRIPLE_FAULT: 0x20,
} as const;
export const InterruptShadow = { KVM_X86_SHADOW_INT_MOV_SS: 1, KVM_X86_SHADOW_INT_STI: 2 } as const;

export const KvmGuestDebugArch = struct("kvm_guest_debug_arch", 64, { debugreg: array(0, u64, 8) });
export const KvmGuestDebug = struct("kvm_guest_debug", 72, {
  control: u32(0),
  pad: u32(4),
  arch: nested(8, KvmGuestDebugArch),
});
export const GuestDebugFlag = {
  KVM_GUESTDBG_ENABLE: 0x1,
  KVM_GUESTDBG_SINGLESTEP: 0x2,
  KVM_GUESTDBG_USE_SW_BP: 0x10000,
  KVM_GUESTDBG_USE_HW_BP: 0x20000,
  KVM_GUESTDBG_INJECT_DB: 0x40000,
  KVM_GUESTDBG_INJECT_BP: 0x80000,
  KVM_GUESTDBG_BLOCKIRQ: 0x100000,
} as const;

/** KVM_SET_SIGNAL_MASK: `len` bytes of a kernel sigset (8) follow. */
export const KvmSignalMask = struct("kvm_signal_mask", 4, { len: u32(0) }, { name: "sigset", strideBytes: 1 });

export const KvmEnableCap = struct("kvm_enable_cap", 104, {
  cap: u32(0),
  flags: u32(4),
  args: array(8, u64, 4),
  pad: bytes(40, 64),
});
export const DisableExits = {
  KVM_X86_DISABLE_EXITS_MWAIT: 1,
  KVM_X86_DISABLE_EXITS_HLT: 2,
  KVM_X86_DISABLE_EXITS_PAUSE: 4,
  KVM_X86_DISABLE_EXITS_CSTATE: 8,
} as const;
export const Quirk = {
  KVM_X86_QUIRK_LINT0_REENABLED: 1,
  KVM_X86_QUIRK_CD_NW_CLEARED: 2,
  KVM_X86_QUIRK_LAPIC_MMIO_HOLE: 4,
  KVM_X86_QUIRK_OUT_7E_INC_RIP: 8,
  KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT: 16,
  KVM_X86_QUIRK_FIX_HYPERCALL_INSN: 32,
  KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS: 64,
} as const;

/** KVM_SET_DEVICE_ATTR and its like, on system, VM, vCPU and device descriptors. */
export const KvmDeviceAttr = struct("kvm_device_attr", 24, { flags: u32(0), group: u32(4), attr: u64(8), addr: u64(16) });
export const KvmCreateDevice = struct("kvm_create_device", 12, { type: u32(0), fd: u32(4), flags: u32(8) });
export const DeviceAttrGroup = { KVM_X86_XCOMP_GUEST_SUPP: 0, KVM_VCPU_TSC_CTRL: 0, KVM_VCPU_TSC_OFFSET: 0 } as const;
