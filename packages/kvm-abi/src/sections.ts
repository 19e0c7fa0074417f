/**
 * The portable VM state: every section that a VM may send, in its canonical layout. Times are CLOCK_MONOTONIC nanoseconds of the
 * host, absolute, since a move stays on one host; NO_DEADLINE where there is none. Sections of a vCPU have its id as instance.
 */
import { array, bytes, i64, nested, struct, structs, u8, u32, u64 } from "./layout.ts";
import { type SectionLayout, section, sectionList } from "./section-codec.ts";
import type { SectionSupport } from "./transfer.ts";
import { KvmCpuidEntry2 } from "./uapi/cpuid.ts";
import { KVM_IOAPIC_NUM_PINS, KvmIrqRoutingEntry, KvmPicState, KvmPitChannelState } from "./uapi/interrupts.ts";
import { KvmUserspaceMemoryRegion } from "./uapi/memory.ts";
import { KvmMsrEntry } from "./uapi/msrs.ts";
import { KvmDebugregs, KvmRegs, KvmSregs2 } from "./uapi/registers.ts";
import { KvmVcpuEvents } from "./uapi/vcpu.ts";

/** What both sides of a move must understand of this file as a whole. */
export const ABI_FEATURE_LEVEL = 2;
/** The level of a VM whose vCPUs' FPU state fits vcpu.fpu version 1, for receivers that know no other. */
export const ABI_FEATURE_LEVEL_FXSAVE = 1;
export const NO_DEADLINE = -1n;

/** Flags of vm.shape. */
export const ShapeFlag = { kernelIrqchip: 1, splitIrqchip: 2, pit: 4, exceptionPayload: 8, tripleFaultEvent: 16 } as const;

/** What a VM is, apart from its memory: what decides how a receiver builds it. */
export const VmShape = section("vm.shape", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vm_shape", 72, {
    abi_feature_level: u32(0),
    flags: u32(4), // ShapeFlag
    vcpu_count: u32(8),
    boot_cpu_id: u32(12),
    tss_address: u64(16), // 0: not set
    identity_map_address: u64(24),
    tsc_khz: u32(32), // default for new vCPUs
    pit_config_flags: u32(36),
    disabled_exits: u32(40), // DisableExits
    disabled_quirks: u32(44), // Quirk
    x2apic_api_flags: u32(48),
    msr_exit_reasons: u32(52), // MsrExitReason that go to user space
    hypercall_exits: u64(56),
    mmu_pages: u32(64),
    reserved: u32(68),
  }),
});

/** Ascending slot numbers; slots of size 0 do not exist. */
export const VmMemorySlots = sectionList("vm.memory-slots", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vm_memory_slots", 8, { generation: u64(0) }),
  entry: KvmUserspaceMemoryRegion,
});

/** One section for each slot with KVM_MEM_LOG_DIRTY_PAGES; the instance is the slot. Entries are words of the bitmap. */
export const VmDirtyLog = sectionList("vm.dirty-log", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vm_dirty_log", 8, { page_count: u64(0) }),
  entry: struct("mkvm_dirty_word", 8, { bits: u64(0) }),
});

/** Both PICs and the IOAPIC. `*_lines` hold, for each input, which sources (IrqSource) drive it. */
export const VmIrqchip = section("vm.irqchip", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vm_irqchip", 416, {
    pic_master: nested(0, KvmPicState),
    pic_slave: nested(16, KvmPicState),
    pic_lines: array(32, u32, 16),
    ioapic_base_address: u64(96),
    ioapic_ioregsel: u32(104),
    ioapic_id: u32(108),
    ioapic_irr: u32(112),
    ioapic_irr_delivered: u32(116),
    ioapic_redirtbl: array(120, u64, KVM_IOAPIC_NUM_PINS), // with remote IRR
    ioapic_lines: array(312, u32, KVM_IOAPIC_NUM_PINS),
    reserved: u64(408),
  }),
});

/** Who drives an interrupt line: bits of the `*_lines` fields. A line is high while any of its sources is. */
export const IrqSource = { userspace: 1, irqfdResample: 2, pit: 4 } as const;

export const VmPit = section("vm.pit", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vm_pit", 112, {
    channels: structs(0, KvmPitChannelState, 3), // count_load_time: monotonic ns
    flags: u32(72), // PitFlag
    speaker: u32(76), // bits 1:0 of port 0x61 as last written
    reinject: u32(80), // 1: ticks that were not taken are delivered later
    irq_acknowledged: u32(84), // 1: the guest took the last tick
    pending_ticks: u64(88),
    next_tick: i64(96), // monotonic ns; NO_DEADLINE
    period_ns: u64(104), // 0: one shot
  }),
});

/** kvmclock of the VM. Guest time in ns is host monotonic ns plus the offset. */
export const VmClock = section("vm.clock", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vm_clock", 32, {
    kvmclock_offset: i64(0),
    master_monotonic_ns: u64(8), // host time of the pair that all vCPUs extrapolate from
    master_tsc: u64(16), // host TSC of that pair
    use_master_clock: u32(24),
    reserved: u32(28),
  }),
});

/** In the order of KVM_SET_GSI_ROUTING. */
export const VmIrqRouting = sectionList("vm.irq-routing", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vm_irq_routing", 8, { reserved: u64(0) }),
  entry: KvmIrqRoutingEntry,
});

/** Says that there is no eventfd: numbers of eventfds begin at 1. */
export const NO_EVENTFD = 0;

/** KVM_IOEVENTFD, where the VM has any, in the order of the calls. Eventfds are the process's, by their numbers in it. */
export const VmIoeventfds = sectionList("vm.ioeventfds", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vm_ioeventfds", 8, { reserved: u64(0) }),
  entry: struct("mkvm_ioeventfd", 32, {
    address: u64(0), // port or guest physical
    datamatch: u64(8),
    length: u32(16), // 0: writes of any length
    flags: u32(20), // IoeventfdFlag
    eventfd: u32(24),
    reserved: u32(28),
  }),
});

/** KVM_IRQFD, as vm.ioeventfds. */
export const VmIrqfds = sectionList("vm.irqfds", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vm_irqfds", 8, { reserved: u64(0) }),
  entry: struct("mkvm_irqfd", 16, {
    gsi: u32(0),
    eventfd: u32(4),
    resample_eventfd: u32(8), // NO_EVENTFD: edges
    reserved: u32(12),
  }),
});

/** KVM_X86_SET_MSR_FILTER, where the VM has a filter: its ranges in their order. */
export const VmMsrFilter = sectionList("vm.msr-filter", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vm_msr_filter", 8, {
    default_deny: u32(0), // 1: MSRs in no range are denied
    reserved: u32(4),
  }),
  entry: struct("mkvm_msr_filter_range", 16, {
    flags: u32(0), // MsrFilterFlag
    base: u32(4),
    nmsrs: u32(8),
    reserved: u32(12),
  }),
});

/** The bitmap of a range of vm.msr-filter; the instance is the range. Entries are its words; 1 allows. */
export const VmMsrFilterBitmap = sectionList("vm.msr-filter-bitmap", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vm_msr_filter_bitmap", 8, { reserved: u64(0) }),
  entry: struct("mkvm_msr_filter_word", 8, { bits: u64(0) }),
});

const NoFixed = struct("mkvm_reserved", 8, { reserved: u64(0) });
/**
 * A value of a statistic that grows (cumulative, peak, a bucket of a histogram). What only says how things are at the moment does
 * not travel. Ascending by name, then by bucket; values of 0 are left out. A receiver keeps entries whose names it does not know
 * and sends them on unchanged, so that a way back over it loses nothing.
 */
const Statistic = struct("mkvm_statistic", 64, {
  name: bytes(0, 48), // padded with zeros
  bucket: u32(48), // of a histogram; else 0
  reserved: u32(52),
  value: u64(56),
});
export const VmStatistics = sectionList("vm.statistics", { version: 1, required: false, fixed: NoFixed, entry: Statistic });
export const VcpuStatistics = sectionList("vcpu.statistics", { version: 1, required: false, fixed: NoFixed, entry: Statistic });

export const VcpuRegisters = section("vcpu.registers", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vcpu_registers", 464, { regs: nested(0, KvmRegs), sregs: nested(144, KvmSregs2) }),
});

/** Version 1 of vcpu.fpu: x87 and SSE alone. Sent to receivers that take no later one, where the vCPU has no other state. */
export const VcpuFpuFxsave = section("vcpu.fpu", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vcpu_fpu", 520, { fxsave: bytes(0, 512), xcr0: u64(512) }),
});

/** Everything that XSAVE manages, from feature level 2 on. */
export const VcpuFpu = section("vcpu.fpu", {
  version: 2,
  required: true,
  fixed: struct("mkvm_vcpu_fpu_xsave", 4112, {
    xsave: bytes(0, 4096), // standard format, 64-bit pointers; XSTATE_BV: x87 and SSE always, others where not initial
    xcr0: u64(4096),
    xss: u64(4104), // IA32_XSS
  }),
});

/** Ascending index. */
export const VcpuMsrs = sectionList("vcpu.msrs", {
  version: 1,
  required: true,
  fixed: NoFixed,
  entry: KvmMsrEntry,
});

/** Events on their way to the guest. */
export const VcpuEvents = section("vcpu.events", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vcpu_events", 80, {
    events: nested(0, KvmVcpuEvents), // flags: all that are valid
    instruction_length: u32(64), // of the instruction that raised a software event to inject
    nmi_pending_count: u32(68),
    interrupt_window_requested: u32(72),
    reserved: u32(76),
  }),
});

export const VcpuDebug = section("vcpu.debug", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vcpu_debug", 200, {
    registers: nested(0, KvmDebugregs),
    guest_debug_control: u32(128), // GuestDebugFlag
    pending_debug: u32(132), // debug exceptions that the processor owes the guest, DR6 bits; bit 12: enabled breakpoint
    guest_debug_registers: array(136, u64, 8),
  }),
});

export const VcpuMpState = section("vcpu.mp-state", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vcpu_mp_state", 8, {
    mp_state: u32(0), // MpState
    pv_unhalted: u32(4),
  }),
});

/** Timer modes as the LVT timer register numbers them. */
export const LapicTimerMode = { oneShot: 0, periodic: 1, tscDeadline: 2 } as const;

export const VcpuLapic = section("vcpu.lapic", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vcpu_lapic", 1088, {
    registers: bytes(0, 1024), // the APIC page; the current-count register is zero here, since `deadline` has it
    apic_base: u64(1024),
    timer_mode: u32(1032), // LapicTimerMode
    timer_pending: u32(1036), // expirations that are not yet in IRR
    deadline: i64(1040), // monotonic ns; NO_DEADLINE
    period_ns: u64(1048),
    tsc_deadline: u64(1056), // guest TSC; 0: not armed
    pending_events: u32(1064), // LapicEvent
    sipi_vector: u32(1068),
    divide_count: u32(1072), // bus clocks a timer tick
    reserved: array(1076, u32, 3),
  }),
});
/** INIT and SIPI that the vCPU has not acted on. */
export const LapicEvent = { init: 1, sipi: 2 } as const;

/** In the order of KVM_SET_CPUID2. */
export const VcpuCpuid = sectionList("vcpu.cpuid", { version: 1, required: true, fixed: NoFixed, entry: KvmCpuidEntry2 });

export const VcpuTsc = section("vcpu.tsc", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vcpu_tsc", 24, {
    offset: u64(0), // guest TSC minus host TSC, modulo 2^64
    khz: u32(8),
    reserved: u32(12),
    adjust: u64(16), // IA32_TSC_ADJUST
  }),
});

/** Paravirtual interfaces: values of their MSRs. */
export const VcpuPv = section("vcpu.pv", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vcpu_pv", 72, {
    system_time: u64(0), // MSR_KVM_SYSTEM_TIME_NEW: address and enable bit
    wall_clock: u64(8), // MSR_KVM_WALL_CLOCK_NEW
    async_pf_enable: u64(16),
    async_pf_interrupt: u64(24),
    steal_time: u64(32),
    pv_eoi: u64(40),
    poll_control: u64(48),
    pvclock_flags: u32(56), // PVCLOCK_GUEST_STOPPED to be shown at the next update
    pv_eoi_pending: u32(60),
    legacy_msrs: u32(64), // 1: system_time and wall_clock came by the old numbers
    update_pending: u32(68), // 1: the time page must be written before the guest runs on
  }),
});

/** Pages that the vCPU descriptor maps (VCPU_MMAP_SIZE_BYTES). They go to the new module as they are. */
export const VcpuRunPage = section("vcpu.run-page", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vcpu_run_page", 32, {
    address: u64(0), // host physical, page aligned
    size_bytes: u32(8),
    has_signal_mask: u32(12),
    signal_mask: u64(16),
    reserved: u64(24),
  }),
});

export const PendingExitKind = { none: 0, port: 1, mmio: 2, rdmsr: 3, wrmsr: 4, hypercall: 5 } as const;
export const PendingExitFlag = { write: 1, string: 2, rep: 4 } as const;
export const FragmentState = { waiting: 0, atUserSpace: 1, complete: 2 } as const;

/**
 * An exit to user space whose completion is pending. Port data is in the run pages. MMIO reads restart the instruction: entries
 * are the reads it made so far, in order, and the one at user space. MMIO writes come after the instruction has finished: entries
 * are what is left to hand out.
 */
export const VcpuPendingExit = sectionList("vcpu.pending-exit", {
  version: 1,
  required: true,
  fixed: struct("mkvm_vcpu_pending_exit", 48, {
    kind: u32(0), // PendingExitKind
    flags: u32(4), // PendingExitFlag
    port: u32(8),
    size: u32(12), // bytes of one port item
    count: u32(16), // items
    msr: u32(20),
    rip: u64(24), // of the instruction
    instruction_length: u32(32), // RIP moves on by this at completion; 0: it restarts, or has moved already
    address_size: u32(36), // bytes, string forms
    segment: u32(40), // of the memory operand, string forms; encoding order
    reserved: u32(44),
  }),
  entry: struct("mkvm_mmio_fragment", 24, {
    address: u64(0), // guest physical
    length: u32(8), // 1 to 8 bytes, within one page
    state: u8(12), // FragmentState
    is_write: u8(13),
    reserved: array(14, u8, 2),
    data: bytes(16, 8),
  }),
});

/** Every section of this ABI. */
export const SECTIONS = [
  VmShape,
  VmMemorySlots,
  VmDirtyLog,
  VmIrqchip,
  VmPit,
  VmClock,
  VmIrqRouting,
  VmIoeventfds,
  VmIrqfds,
  VmMsrFilter,
  VmMsrFilterBitmap,
  VmStatistics,
  VcpuRegisters,
  VcpuFpu,
  VcpuMsrs,
  VcpuEvents,
  VcpuDebug,
  VcpuMpState,
  VcpuLapic,
  VcpuCpuid,
  VcpuTsc,
  VcpuPv,
  VcpuRunPage,
  VcpuPendingExit,
  VcpuStatistics,
] as const satisfies readonly Pick<SectionLayout, "name" | "version">[];

/** Support of exactly these sections, for `Transfer.receives`. Layouts of one name are versions of it without a gap. */
export function supportOf(sections: readonly Pick<SectionLayout, "name" | "version">[]): SectionSupport[] {
  const support = new Map<string, SectionSupport>();
  for (const { name, version } of sections) {
    const known = support.get(name);
    const minVersion = Math.min(known?.minVersion ?? version, version);
    const maxVersion = Math.max(known?.maxVersion ?? version, version);
    support.set(name, { name, minVersion, maxVersion });
  }
  return [...support.values()];
}
