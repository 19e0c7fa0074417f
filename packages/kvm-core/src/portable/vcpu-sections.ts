/** A vCPU in the sections of the portable state, and back. How a version keeps what they say is hidden behind VcpuParts. */
import {
  PendingExitFlag,
  PendingExitKind,
  type Section,
  VCPU_MMAP_SIZE_BYTES,
  VcpuCpuid,
  VcpuDebug,
  VcpuEvents,
  VcpuFpu,
  VcpuFpuFxsave,
  VcpuLapic,
  VcpuMpState,
  VcpuMsrs,
  VcpuPendingExit,
  VcpuPv,
  VcpuRegisters,
  VcpuRunPage,
  VcpuStatistics,
  VcpuTsc,
} from "@mkvm/kvm-abi";
import { Msr } from "../arch/msr-index.ts";
import { allowedXcr0 } from "../guest/control-registers.ts";
import { checkedXsave, fxsaveFromXsave, xsaveFromFxsave } from "../guest/fpu-state.ts";
import { HARDWARE_MSRS } from "../guest/msr-access.ts";
import {
  eventsFromSection,
  eventsToSection,
  getDebugregs,
  getRegs,
  getSregs2,
  setDebugregs,
  setRegs,
  setSregs2,
} from "../guest/register-state.ts";
import type { VcpuParts } from "../guest/vcpu-parts.ts";
import { KeptLists, readList, writeList } from "./section-lists.ts";

/** Sections of every vCPU, in the order in which they travel. vcpu.lapic goes only where the VM has an in-kernel APIC. */
export const VCPU_SECTIONS = [
  VcpuRunPage,
  VcpuCpuid,
  VcpuTsc,
  VcpuRegisters,
  VcpuFpuFxsave,
  VcpuFpu,
  VcpuMsrs,
  VcpuLapic,
  VcpuEvents,
  VcpuDebug,
  VcpuMpState,
  VcpuPv,
  VcpuPendingExit,
  VcpuStatistics,
] as const;

/** Breakpoint-enabled bit of the pending debug exceptions included: they lie below bit 17. */
const PENDING_DEBUG_MASK = 0x1_ffffn;
const { index: MSR_INDEX, data: MSR_DATA } = VcpuMsrs.entry.offsets;
const CPUID_LISTS = new KeptLists(VcpuCpuid);
const HARDWARE: ReadonlySet<number> = new Set(HARDWARE_MSRS);
/** x87 and SSE. */
const LEGACY_COMPONENTS = 3n;

/** vcpu.fpu in the version that a receiver takes, if the state fits that: where the guest has x87 and SSE, and can have no more. */
function saveFpu(vcpu: VcpuParts, takesXsave: boolean): Section {
  const xsave = vcpu.xsave();
  const { xcr0 } = vcpu;
  if (!takesXsave && ((xcr0 | allowedXcr0(vcpu)) & ~LEGACY_COMPONENTS) === 0n) {
    const fxsave = fxsaveFromXsave(xsave);
    if (fxsave !== undefined) return VcpuFpuFxsave.encode(vcpu.id, { fxsave, xcr0 });
  }
  return VcpuFpu.encode(vcpu.id, { xsave, xcr0, xss: vcpu.msrs.read(Msr.IA32_XSS) ?? 0n });
}

/** The FPU state of a section of either version; a sentence when this module cannot take it. */
function decodeFpu(vcpu: VcpuParts, sections: readonly Section[]): { xsave: Uint8Array; xcr0: bigint } | string {
  const isLegacy = sections.some(
    ({ name, instance, version }) => name === VcpuFpu.name && instance === vcpu.id && version === VcpuFpuFxsave.version,
  );
  if (isLegacy) {
    const legacy = VcpuFpuFxsave.find(sections, vcpu.id);
    return typeof legacy === "string" ? legacy : { xsave: xsaveFromFxsave(legacy.fixed.fxsave), xcr0: legacy.fixed.xcr0 };
  }
  const section = VcpuFpu.find(sections, vcpu.id);
  if (typeof section === "string") return section;
  const { xsave, xcr0 } = section.fixed;
  const { supportedXcr0 } = vcpu.vm;
  if ((xcr0 & ~(supportedXcr0 | LEGACY_COMPONENTS)) !== 0n || checkedXsave(xsave, supportedXcr0) === undefined)
    return `vcpu ${vcpu.id} has state components (XCR0 0x${xcr0.toString(16)}) that this processor has not`;
  return { xsave, xcr0 };
}

interface MsrValue {
  readonly index: number;
  readonly data: bigint;
}

function decodeMsrs(vcpu: number, sections: readonly Section[]): MsrValue[] | string {
  const section = sections.find(({ name, instance }) => name === VcpuMsrs.name && instance === vcpu);
  if (section === undefined) return `section ${VcpuMsrs.name}[${vcpu}] is missing`;
  const list = readList(VcpuMsrs, section);
  if (typeof list === "string") return list;
  const { view, at, count } = list;
  const msrs: MsrValue[] = [];
  for (let index = 0; index < count; index++) {
    const entry = at + index * VcpuMsrs.entry.sizeBytes;
    msrs.push({ index: view.getUint32(entry + MSR_INDEX, true), data: view.getBigUint64(entry + MSR_DATA, true) });
  }
  return msrs;
}

/** `takesXsave`: the receiver takes version 2 of vcpu.fpu. */
export function saveVcpu(vcpu: VcpuParts, runPageAddress: number, takesXsave: boolean): Section[] {
  const { id, lapic } = vcpu;
  const msrs = [...vcpu.msrs.save(), ...HARDWARE_MSRS.map((index) => ({ index, data: vcpu.hardwareMsr(index) ?? 0n }))].sort(
    (a, b) => a.index - b.index,
  );
  const sections = [
    VcpuRunPage.encode(id, {
      address: BigInt(runPageAddress),
      size_bytes: VCPU_MMAP_SIZE_BYTES,
      has_signal_mask: vcpu.signalMask.set === undefined ? 0 : 1,
      signal_mask: vcpu.signalMask.set ?? 0n,
    }),
    CPUID_LISTS.encode(id, vcpu.cpuid),
    VcpuTsc.encode(id, { offset: vcpu.tscOffset, khz: vcpu.vm.tscKhz, adjust: vcpu.tscAdjust }),
    VcpuRegisters.encode(id, { regs: getRegs(vcpu), sregs: getSregs2(vcpu) }),
    saveFpu(vcpu, takesXsave),
    writeList(VcpuMsrs, id, msrs.length, (view, at, index) => {
      const { index: msr, data } = msrs[index]!;
      view.setUint32(at + MSR_INDEX, msr, true);
      view.setBigUint64(at + MSR_DATA, data, true);
    }),
  ];
  if (lapic !== undefined) sections.push(VcpuLapic.encode(id, lapic.save()));
  sections.push(
    VcpuEvents.encode(id, eventsToSection(vcpu)),
    VcpuDebug.encode(id, {
      registers: getDebugregs(vcpu),
      guest_debug_control: vcpu.debug.control,
      pending_debug: Number(vcpu.pendingDebug & PENDING_DEBUG_MASK),
      guest_debug_registers: [...vcpu.debug.registers],
    }),
    VcpuMpState.encode(id, { mp_state: vcpu.mpState }),
    VcpuPv.encode(id, {
      system_time: vcpu.pv.systemTime,
      wall_clock: vcpu.pv.wallClock,
      pvclock_flags: vcpu.pv.flags,
      legacy_msrs: vcpu.pv.legacy ? 1 : 0,
      update_pending: vcpu.clockUpdateRequested ? 1 : 0,
    }),
    savePendingExit(vcpu),
    vcpu.statistics.save(VcpuStatistics, id),
  );
  return sections;
}

function savePendingExit(vcpu: VcpuParts): Section {
  const { pendingPort, pendingMsr } = vcpu;
  if (pendingMsr !== undefined) {
    return VcpuPendingExit.encode(vcpu.id, {
      kind: pendingMsr.isWrite ? PendingExitKind.wrmsr : PendingExitKind.rdmsr,
      msr: pendingMsr.index,
      instruction_length: pendingMsr.instructionLength,
    });
  }
  if (pendingPort === undefined) {
    return vcpu.emulator.save(vcpu.id) ?? VcpuPendingExit.encode(vcpu.id, { kind: PendingExitKind.none });
  }
  const { string } = pendingPort;
  return VcpuPendingExit.encode(vcpu.id, {
    kind: PendingExitKind.port,
    flags:
      (pendingPort.isIn ? 0 : PendingExitFlag.write) |
      (string === undefined ? 0 : PendingExitFlag.string) |
      (string?.rep ? PendingExitFlag.rep : 0),
    port: pendingPort.port,
    size: pendingPort.size,
    count: pendingPort.count,
    rip: pendingPort.rip,
    instruction_length: pendingPort.instructionLength,
    address_size: string?.addressSize ?? 0,
    segment: string?.segment ?? 0,
  });
}

/**
 * What CPUID tells the guest, from its section: once while the VM still runs, when it is 50 leaves to take in, and once when it
 * stands still, when it is nothing unless the VMM has changed it.
 */
export function restoreCpuid(vcpu: VcpuParts, sections: readonly Section[]): string | undefined {
  const section = sections.find(({ name, instance }) => name === VcpuCpuid.name && instance === vcpu.id);
  if (section === undefined) return `section ${VcpuCpuid.name}[${vcpu.id}] is missing`;
  if (!CPUID_LISTS.says(section, vcpu.cpuid)) {
    const cpuid = VcpuCpuid.decode(section);
    if (typeof cpuid === "string") return cpuid;
    vcpu.cpuid = cpuid.entries;
    CPUID_LISTS.keep(section, cpuid.entries);
  }
  // In any case: the vCPU may have got its local APIC meanwhile
  vcpu.cpuidChanged();
  return undefined;
}

/** Undefined: restored. A sentence: why not; the vCPU is then to be thrown away. */
export function restoreVcpu(vcpu: VcpuParts, sections: readonly Section[]): string | undefined {
  const { id } = vcpu;
  const tsc = VcpuTsc.find(sections, id);
  const registers = VcpuRegisters.find(sections, id);
  const fpu = decodeFpu(vcpu, sections);
  const msrs = decodeMsrs(id, sections);
  const events = VcpuEvents.find(sections, id);
  const debug = VcpuDebug.find(sections, id);
  const mpState = VcpuMpState.find(sections, id);
  const pv = VcpuPv.find(sections, id);
  const run = VcpuRunPage.find(sections, id);
  if (typeof tsc === "string") return tsc;
  if (typeof registers === "string") return registers;
  if (typeof fpu === "string") return fpu;
  if (typeof msrs === "string") return msrs;
  if (typeof events === "string") return events;
  if (typeof debug === "string") return debug;
  if (typeof mpState === "string") return mpState;
  if (typeof pv === "string") return pv;
  if (typeof run === "string") return run;

  if (tsc.fixed.khz !== vcpu.vm.tscKhz) return `vcpu ${id} runs at ${tsc.fixed.khz} kHz, this CPU at ${vcpu.vm.tscKhz} kHz`;
  if (pv.fixed.system_time !== 0n && !vcpu.vm.kvmclock)
    return `vcpu ${id} uses kvmclock, which parameters of this module turn off`;
  const unknownCpuid = restoreCpuid(vcpu, sections);
  if (unknownCpuid !== undefined) return unknownCpuid;
  vcpu.tscOffset = tsc.fixed.offset;
  vcpu.tscAdjust = tsc.fixed.adjust;
  if (vcpu.lapic !== undefined) {
    const lapic = VcpuLapic.find(sections, id);
    if (typeof lapic === "string") return lapic;
    vcpu.lapic.restore(lapic.fixed);
  }
  if (!setSregs2(vcpu, registers.fixed.sregs, true)) return `vcpu ${id}: special registers were refused`;
  setRegs(vcpu, registers.fixed.regs);
  vcpu.xrstor(fpu.xsave);
  vcpu.xcr0 = fpu.xcr0;
  const stored: MsrValue[] = [];
  for (const msr of msrs) {
    const { index, data } = msr;
    if (!HARDWARE.has(index)) stored.push(msr);
    else if (!vcpu.setHardwareMsr(index, data)) return `vcpu ${id}: MSR 0x${index.toString(16)} refuses 0x${data.toString(16)}`;
  }
  const refused = vcpu.msrs.restore(stored);
  if (refused !== undefined) return `vcpu ${id}: ${refused}`;
  if (!setDebugregs(vcpu, debug.fixed.registers)) return `vcpu ${id}: debug registers were refused`;
  vcpu.mpState = mpState.fixed.mp_state;
  vcpu.pv.systemTime = pv.fixed.system_time;
  vcpu.pv.wallClock = pv.fixed.wall_clock;
  vcpu.pv.flags = pv.fixed.pvclock_flags;
  vcpu.pv.legacy = pv.fixed.legacy_msrs !== 0;
  if (pv.fixed.update_pending !== 0) vcpu.requestClockUpdate();
  vcpu.signalMask.set = run.fixed.has_signal_mask !== 0 ? run.fixed.signal_mask : undefined;
  eventsFromSection(vcpu, events.fixed);
  vcpu.debug.restore(debug.fixed.guest_debug_control, debug.fixed.guest_debug_registers);
  vcpu.pendingDebug = BigInt(debug.fixed.pending_debug);
  return restorePendingExit(vcpu, sections);
}

function restorePendingExit(vcpu: VcpuParts, sections: readonly Section[]): string | undefined {
  const section = sections.find((each) => each.name === VcpuPendingExit.name && each.instance === vcpu.id);
  if (section === undefined) return `section ${VcpuPendingExit.name}[${vcpu.id}] is missing`;
  const pending = VcpuPendingExit.decode(section);
  if (typeof pending === "string") return pending;
  const { fixed } = pending;
  switch (fixed.kind) {
    case PendingExitKind.none:
      return undefined;
    case PendingExitKind.port:
      vcpu.pendingPort = {
        isIn: (fixed.flags & PendingExitFlag.write) === 0,
        size: fixed.size,
        port: fixed.port,
        count: fixed.count,
        string:
          (fixed.flags & PendingExitFlag.string) === 0
            ? undefined
            : {
                rep: (fixed.flags & PendingExitFlag.rep) !== 0,
                addressSize: fixed.address_size,
                segment: fixed.segment,
              },
        rip: fixed.rip,
        instructionLength: fixed.instruction_length,
      };
      return undefined;
    case PendingExitKind.rdmsr:
    case PendingExitKind.wrmsr:
      vcpu.pendingMsr = {
        isWrite: fixed.kind === PendingExitKind.wrmsr,
        index: fixed.msr,
        instructionLength: fixed.instruction_length,
      };
      return undefined;
    case PendingExitKind.mmio:
      return vcpu.emulator.restore(section);
    default:
      return `vcpu ${vcpu.id}: a pending exit of kind ${fixed.kind} is not known`;
  }
}
