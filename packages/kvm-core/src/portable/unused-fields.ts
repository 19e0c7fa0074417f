/**
 * Fields of the portable state that have nothing behind them in these modules, since no call and no guest can set what they stand
 * for. A sender that sets one knows more: its VM is refused, by the field's name, rather than moved without that state.
 */
import {
  type Fields,
  type Section,
  SectionHead,
  type SectionLayout,
  VcpuDebug,
  VcpuEvents,
  VcpuFpu,
  VcpuLapic,
  VcpuMpState,
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
] as unknown as readonly SectionLayout[];

/** Where in a section's bytes a field is that must be zero, or of one value. */
interface Place {
  readonly offset: number;
  readonly sizeBytes: number;
  readonly inEntries: boolean;
  readonly path: string;
  /** What is wrong when the bytes are others. */
  readonly why: string;
  readonly value: number;
}

/** Places by section name: looked up for every section of a VM that stands still. No two layouts are versions of one section. */
const PLACES: ReadonlyMap<string, { layout: SectionLayout; places: readonly Place[] }> = new Map(
  LAYOUTS.map((layout) => [layout.name, { layout, places: placesOf(layout) }]),
);

function placesOf(layout: SectionLayout): Place[] {
  const zeros = UNUSED_FIELDS.filter((field) => field.layout.name === layout.name).map(({ path, inEntries, missing }) => ({
    ...place(inEntries ? layout.entry.fields : layout.fixed.fields, path),
    inEntries,
    path,
    why: `has ${path} set, and this module has no ${missing}`,
    value: 0,
  }));
  const constants = CONSTANT_FIELDS.filter((field) => field.layout.name === layout.name).map(({ path, value }) => ({
    ...place(layout.fixed.fields, path),
    inEntries: false,
    path,
    why: `has another ${path} than ${value}`,
    value,
  }));
  return [...zeros, ...constants];
}

function place(fields: Fields, path: string): { offset: number; sizeBytes: number } {
  let within: Fields | undefined = fields;
  let offset = 0;
  let sizeBytes = 0;
  for (const key of path.split(".")) {
    const field: Fields[string] | undefined = within?.[key];
    if (field === undefined) throw new Error(`no field ${path} in a section that has one unused`);
    offset += field.offset;
    sizeBytes = field.sizeBytes;
    within = field.struct?.fields;
  }
  return { offset, sizeBytes };
}

/** Why a VM with these sections cannot be taken; undefined when nothing of that kind is set. */
export function unknownState(sections: readonly Section[]): string | undefined {
  for (const section of sections) {
    const known = PLACES.get(section.name);
    if (known === undefined || known.layout.version !== section.version) continue;
    const { fixed, entry } = known.layout;
    const entriesAt = SectionHead.sizeBytes + fixed.sizeBytes;
    const count = (section.bytes.length - entriesAt) / (entry.sizeBytes || 1);
    // A section that is cut short is told of by its own name
    if (count < 0 || !Number.isInteger(count)) return known.layout.decode(section) as string;
    for (const each of known.places) {
      const first = each.inEntries ? entriesAt : SectionHead.sizeBytes;
      for (let index = 0; index < (each.inEntries ? count : 1); index++) {
        const at = first + index * entry.sizeBytes + each.offset;
        if (!holds(section.bytes, at, each)) return `section ${section.name}[${section.instance}] ${each.why}`;
      }
    }
  }
  return undefined;
}

/** Values are below 256, so that all bytes but the first are zero. */
function holds(bytes: Uint8Array, at: number, { sizeBytes, value }: Place): boolean {
  for (let index = 0; index < sizeBytes; index++) if (bytes[at + index] !== (index === 0 ? value : 0)) return false;
  return true;
}
