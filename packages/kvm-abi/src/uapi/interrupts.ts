/** In-kernel interrupt controllers and timers: state, lines, routes. */
import { array, bytes, i64, nested, struct, structs, u8, u16, u32, u64, union } from "../layout.ts";

/** One 8259. */
export const KvmPicState = struct("kvm_pic_state", 16, {
  last_irr: u8(0), // edge detection
  irr: u8(1),
  imr: u8(2),
  isr: u8(3),
  priority_add: u8(4), // line of highest priority
  irq_base: u8(5),
  read_reg_select: u8(6),
  poll: u8(7),
  special_mask: u8(8),
  init_state: u8(9),
  auto_eoi: u8(10),
  rotate_on_auto_eoi: u8(11),
  special_fully_nested_mode: u8(12),
  init4: u8(13), // ICW4 is expected
  elcr: u8(14), // 1: level triggered
  elcr_mask: u8(15),
});

export const KVM_IOAPIC_NUM_PINS = 24;
export const KvmIoapicState = struct("kvm_ioapic_state", 216, {
  base_address: u64(0),
  ioregsel: u32(8),
  id: u32(12),
  irr: u32(16),
  pad: u32(20),
  redirtbl: array(24, u64, KVM_IOAPIC_NUM_PINS), // RedirectionBit
});

export const KVM_APIC_REG_SIZE = 0x400;
/** KVM_GET_LAPIC, KVM_SET_LAPIC: the registers as the APIC page has them, one in 16 bytes. */
export const KvmLapicState = struct("kvm_lapic_state", KVM_APIC_REG_SIZE, { regs: bytes(0, KVM_APIC_REG_SIZE) });

export const KvmIrqchip = struct("kvm_irqchip", 520, {
  chip_id: u32(0), // IrqchipId
  pad: u32(4),
  chip: union(8, 512, { dummy: bytes(8, 512), pic: nested(8, KvmPicState), ioapic: nested(8, KvmIoapicState) }),
});
export const IrqchipId = {
  KVM_IRQCHIP_PIC_MASTER: 0,
  KVM_IRQCHIP_PIC_SLAVE: 1,
  KVM_IRQCHIP_IOAPIC: 2,
  KVM_NR_IRQCHIPS: 3,
} as const;

/** KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS. KVM_IRQ_LINE_STATUS answers in `status`, at the place of `irq`. */
export const KvmIrqLevel = struct("kvm_irq_level", 8, { irq: u32(0), level: u32(4) });

export const KvmPitChannelState = struct("kvm_pit_channel_state", 24, {
  count: u32(0), // 1 to 65536
  latched_count: u16(4),
  count_latched: u8(6),
  status_latched: u8(7),
  status: u8(8),
  read_state: u8(9),
  write_state: u8(10),
  write_latch: u8(11),
  rw_mode: u8(12),
  mode: u8(13),
  bcd: u8(14),
  gate: u8(15),
  count_load_time: i64(16), // monotonic ns
});
export const KvmPitState = struct("kvm_pit_state", 72, { channels: structs(0, KvmPitChannelState, 3) });
export const KvmPitState2 = struct("kvm_pit_state2", 112, {
  channels: structs(0, KvmPitChannelState, 3),
  flags: u32(72), // PitFlag
  reserved: array(76, u32, 9),
});
export const PitFlag = { KVM_PIT_FLAGS_HPET_LEGACY: 1, KVM_PIT_FLAGS_SPEAKER_DATA_ON: 2 } as const;
export const KvmPitConfig = struct("kvm_pit_config", 64, { flags: u32(0), pad: array(4, u32, 15) });
export const PitConfigFlag = { KVM_PIT_SPEAKER_DUMMY: 1 } as const;
export const KvmReinjectControl = struct("kvm_reinject_control", 32, { pit_reinject: u8(0), reserved: bytes(1, 31) });

export const KvmMsi = struct("kvm_msi", 32, {
  address_lo: u32(0),
  address_hi: u32(4),
  data: u32(8),
  flags: u32(12),
  devid: u32(16),
  pad: bytes(20, 12),
});
export const MsiFlag = { KVM_MSI_VALID_DEVID: 1 } as const;

export const KvmIrqRoutingIrqchip = struct("kvm_irq_routing_irqchip", 8, { irqchip: u32(0), pin: u32(4) });
export const KvmIrqRoutingMsi = struct("kvm_irq_routing_msi", 16, {
  address_lo: u32(0),
  address_hi: u32(4),
  data: u32(8),
  _1: union(12, 4, { pad: u32(12), devid: u32(12) }, { anonymous: true }),
});
export const KvmIrqRoutingEntry = struct("kvm_irq_routing_entry", 48, {
  gsi: u32(0),
  type: u32(4), // IrqRoutingType
  flags: u32(8),
  pad: u32(12),
  u: union(16, 32, { irqchip: nested(16, KvmIrqRoutingIrqchip), msi: nested(16, KvmIrqRoutingMsi), pad: array(16, u32, 8) }),
});
export const KvmIrqRouting = struct("kvm_irq_routing", 8, { nr: u32(0), flags: u32(4) }, { name: "entries", strideBytes: 48 });
export const IrqRoutingType = {
  KVM_IRQ_ROUTING_IRQCHIP: 1,
  KVM_IRQ_ROUTING_MSI: 2,
  KVM_IRQ_ROUTING_S390_ADAPTER: 3,
  KVM_IRQ_ROUTING_HV_SINT: 4,
  KVM_IRQ_ROUTING_XEN_EVTCHN: 5,
} as const;

/** KVM_INTERRUPT: `irq` is a vector. */
export const KvmInterrupt = struct("kvm_interrupt", 4, { irq: u32(0) });

export const KvmTprAccessCtl = struct("kvm_tpr_access_ctl", 40, { enabled: u32(0), flags: u32(4), reserved: array(8, u32, 8) });
export const KvmVapicAddr = struct("kvm_vapic_addr", 8, { vapic_addr: u64(0) });

export const X2apicApiFlag = { KVM_X2APIC_API_USE_32BIT_IDS: 1, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK: 2 } as const;
