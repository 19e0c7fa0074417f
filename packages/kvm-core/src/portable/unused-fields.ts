/**
 * Fields of the portable state that have nothing behind them in these modules, since no call and no guest can set what they stand
 * for. A sender that sets one knows more: its VM is refused, by the field's name, rather than moved without that state.
 */
import {
  type Fields,
  type Section,
  type SectionLayout,
  VcpuDebug,
  VcpuEvents,
  VcpuFpu,
  VcpuLapic,
  VcpuMpState,
  VcpuPendingExit,
  VcpuPv,
  VmClock,
  VmIrqRouting,
  VmMemorySlots,
  VmShape,
} from "@mkvm/kvm-abi";

export interface UnusedField {
  readonly layout: Pick<SectionLayout, "name" | "version">;
  /** Path in the section's fixed part: "events.smi". Entries have a path of their own. */
  readonly path: string;
  readonly inEntries: boolean;
  /** What these modules do not have. */
  readonly missing: string;
}

function unused<F extends Fields, E extends Fields>(
  layout: SectionLayout<F, E>,
  missing: Readonly<Record<string, string>>,
  inEntries = false,
): UnusedField[] {
  return Object.entries(missing).map(([path, why]) => ({ layout, path, inEntries, missing: why }));
}

const NO_PV = "paravirtual interfaces beside kvmclock";
const NO_SMM = "system management mode";

export const UNUSED_FIELDS: readonly UnusedField[] = [
  ...unused(VmShape, {
    disabled_exits: "KVM_CAP_X86_DISABLE_EXITS",
    disabled_quirks: "KVM_CAP_DISABLE_QUIRKS",
    x2apic_api_flags: "KVM_CAP_X2APIC_API",
    msr_exit_reasons: "KVM_CAP_X86_USER_SPACE_MSR",
    hypercall_exits: "KVM_CAP_EXIT_HYPERCALL",
  }),
  ...unused(VmMemorySlots, { generation: "generations of memory slots" }),
  ...unused(VmIrqRouting, { flags: "flags of routes" }, true),
  ...unused(VcpuFpu, { xss: "supervisor state components" }),
  ...unused(VcpuEvents, {
    "events.sipi_vector": "SIPI vector beside the local APIC's",
    "events.smi": NO_SMM,
    interrupt_window_requested: "interrupt windows that outlast a call",
  }),
  ...unused(VcpuDebug, { "registers.flags": "flags of debug registers" }),
  ...unused(VcpuMpState, { pv_unhalted: NO_PV }),
  ...unused(VcpuLapic, { timer_pending: "timer expirations beside IRR" }),
  ...unused(VcpuPv, {
    async_pf_enable: NO_PV,
    async_pf_interrupt: NO_PV,
    steal_time: NO_PV,
    pv_eoi: NO_PV,
    poll_control: NO_PV,
    pv_eoi_pending: NO_PV,
  }),
  ...unused(VcpuPendingExit, { msr: "exits to user space for MSRs" }),
];

/** Fields that say the same for every VM: a receiver that is told otherwise does not understand its sender. */
export const CONSTANT_FIELDS: readonly { layout: Pick<SectionLayout, "name">; path: string; value: number; why: string }[] = [
  { layout: VmClock, path: "use_master_clock", value: 1, why: "all vCPUs of a VM have one TSC" },
];

const LAYOUTS: readonly SectionLayout[] = [
  VmShape,
  VmMemorySlots,
  VmIrqRouting,
  VmClock,
  VcpuFpu,
  VcpuEvents,
  VcpuDebug,
  VcpuMpState,
  VcpuLapic,
  VcpuPv,
  VcpuPendingExit,
] as unknown as readonly SectionLayout[];

/** Why a VM with these sections cannot be taken; undefined when nothing of that kind is set. */
export function unknownState(sections: readonly Section[]): string | undefined {
  for (const section of sections) {
    const layout = LAYOUTS.find(({ name, version }) => name === section.name && version === section.version);
    if (layout === undefined) continue;
    const decoded = layout.decode(section);
    if (typeof decoded === "string") return decoded;
    const who = `section ${section.name}[${section.instance}]`;
    for (const { layout: of, path, inEntries, missing } of UNUSED_FIELDS) {
      if (of.name !== section.name) continue;
      const values = inEntries ? decoded.entries : [decoded.fixed];
      if (values.some((value) => !isZero(at(value, path)))) return `${who} has ${path} set, and this module has no ${missing}`;
    }
    for (const { layout: of, path, value } of CONSTANT_FIELDS) {
      if (of.name === section.name && at(decoded.fixed, path) !== value) return `${who} has another ${path} than ${value}`;
    }
  }
  return undefined;
}

function at(value: unknown, path: string): unknown {
  return path.split(".").reduce((within, key) => (within as Record<string, unknown>)[key], value);
}

function isZero(value: unknown): boolean {
  if (typeof value === "object" && value !== null) return Object.values(value).every(isZero);
  return value === 0 || value === 0n;
}
