/**
 * The portable state of a VM on another clock, in another bank. Sections say times as the host's monotonic nanoseconds and TSC:
 * those of another host begin elsewhere. The guest's own time goes on from where it stood still, by every clock that it has.
 */
import { hpa } from "@mkvm/hw-x86";
import { NO_DEADLINE, type Section, type StructValue, VcpuLapic, VcpuRunPage, VcpuTsc, VmClock, VmPit } from "@mkvm/kvm-abi";
import type { SavedClock } from "./process-image.ts";

export interface Rebase {
  readonly from: SavedClock;
  readonly to: SavedClock;
  readonly bank: number;
  /** Offset of a vCPU's pages in the bank. */
  runPage(vcpu: number): number;
}

const deadline = (at: bigint, later: bigint): bigint => (at === NO_DEADLINE ? at : at + later);

/** A sentence when a section cannot be read. */
export function rebaseSections(sections: readonly Section[], rebase: Rebase): Section[] | string {
  const laterNs = BigInt(rebase.to.monotonicNs - rebase.from.monotonicNs);
  const laterTicks = BigInt(rebase.to.tsc - rebase.from.tsc);
  const changed: Section[] = [];
  for (const section of sections) {
    const next = rebaseSection(section, rebase, laterNs, laterTicks);
    if (typeof next === "string") return next;
    changed.push(next);
  }
  return changed;
}

function rebaseSection(section: Section, rebase: Rebase, laterNs: bigint, laterTicks: bigint): Section | string {
  switch (section.name) {
    case VmClock.name:
      return change(VmClock, section, (fixed) => {
        fixed.kvmclock_offset -= laterNs;
        fixed.master_monotonic_ns = BigInt.asUintN(64, fixed.master_monotonic_ns + laterNs);
        fixed.master_tsc = BigInt.asUintN(64, fixed.master_tsc + laterTicks);
      });
    case VmPit.name:
      return change(VmPit, section, (fixed) => {
        fixed.next_tick = deadline(fixed.next_tick, laterNs);
        for (const channel of fixed.channels) channel.count_load_time += laterNs;
      });
    case VcpuLapic.name:
      return change(VcpuLapic, section, (fixed) => {
        fixed.deadline = deadline(fixed.deadline, laterNs);
      });
    case VcpuTsc.name:
      return change(VcpuTsc, section, (fixed) => {
        fixed.offset = BigInt.asUintN(64, fixed.offset - laterTicks);
      });
    case VcpuRunPage.name:
      return change(VcpuRunPage, section, (fixed) => {
        fixed.address = BigInt(hpa(rebase.bank, rebase.runPage(section.instance)));
      });
    default:
      return section;
  }
}

type Layout = typeof VmClock | typeof VmPit | typeof VcpuLapic | typeof VcpuTsc | typeof VcpuRunPage;

function change<L extends Layout>(
  layout: L,
  section: Section,
  edit: (fixed: StructValue<L["fixed"]["fields"]>) => void,
): Section | string {
  const decoded = layout.decode(section);
  if (typeof decoded === "string") return decoded;
  edit(decoded.fixed as StructValue<L["fixed"]["fields"]>);
  return (layout.encode as (instance: number, fixed: unknown) => Section)(section.instance, decoded.fixed);
}
