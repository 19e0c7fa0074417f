/** ioctls of a vCPU descriptor that read or set its state: all but KVM_RUN, which is each version's own. */
import {
  CpuidFlag,
  Errno,
  type Hva,
  Ioctl,
  KVM_MAX_XCRS,
  KvmDebugregs,
  KvmEnableCap,
  KvmFpu,
  KvmGuestDebug,
  KvmInterrupt,
  KvmLapicState,
  KvmMpState,
  KvmRegs,
  KvmSignalMask,
  KvmSregs,
  KvmSregs2,
  KvmTranslation,
  KvmVapicAddr,
  KvmVcpuEvents,
  KvmXcrs,
  KvmXsave,
  LapicEvent,
  MpState,
} from "@mkvm/kvm-abi";
import type { CpuidEntry } from "../cpuid-table.ts";
import { acceptApicEvents } from "../guest/apic-events.ts";
import { setXcr } from "../guest/control-registers.ts";
import { checkedXsave, fpuFromXsave, fpuIntoXsave } from "../guest/fpu-state.ts";
import { getSregs, setSregs } from "../guest/legacy-sregs.ts";
import { isFault, translateLinear } from "../guest/paging.ts";
import { getDebugregs, getEvents, getRegs, getSregs2, setDebugregs, setEvents, setSregs2 } from "../guest/register-state.ts";
import { replaceRegs } from "../guest/sync-regs.ts";
import type { VcpuParts } from "../guest/vcpu-parts.ts";
import { PvclockFlag } from "../kvmclock.ts";
import { copyCpuid2In, copyCpuidIn, copyCpuidOut } from "./cpuid-ioctls.ts";
import { getVcpuMsrs, setVcpuMsrs } from "./msr-ioctls.ts";
import { readUser, readUserU32, readUserU64, writeUser, writeUserBytes } from "./user-copy.ts";

const SIGSET_BYTES = 8;

type Handler = (vcpu: VcpuParts, argument: Hva) => number;

/** Result of an ioctl other than KVM_RUN; -ENOTTY for unknown ones. */
export function vcpuStateIoctl(vcpu: VcpuParts, request: number, argument: Hva): number {
  return HANDLERS.get(request)?.(vcpu, argument) ?? -Errno.ENOTTY;
}

const HANDLERS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [Ioctl.KVM_GET_REGS, (vcpu, argument) => writeUser(vcpu.vm.process, argument, KvmRegs, getRegs(vcpu))],
  [
    Ioctl.KVM_SET_REGS,
    (vcpu, argument) => {
      const value = readUser(vcpu.vm.process, argument, KvmRegs);
      if (typeof value === "number") return value;
      replaceRegs(vcpu, value);
      return 0;
    },
  ],
  [Ioctl.KVM_GET_SREGS, (vcpu, argument) => writeUser(vcpu.vm.process, argument, KvmSregs, getSregs(vcpu))],
  [
    Ioctl.KVM_SET_SREGS,
    (vcpu, argument) => {
      const value = readUser(vcpu.vm.process, argument, KvmSregs);
      if (typeof value === "number") return value;
      return setSregs(vcpu, value) ? 0 : -Errno.EINVAL;
    },
  ],
  [Ioctl.KVM_GET_SREGS2, (vcpu, argument) => writeUser(vcpu.vm.process, argument, KvmSregs2, getSregs2(vcpu))],
  [
    Ioctl.KVM_SET_SREGS2,
    (vcpu, argument) => {
      const value = readUser(vcpu.vm.process, argument, KvmSregs2);
      if (typeof value === "number") return value;
      if ((value.flags & ~1n) !== 0n) return -Errno.EINVAL;
      return setSregs2(vcpu, value) ? 0 : -Errno.EINVAL;
    },
  ],
  [Ioctl.KVM_GET_FPU, (vcpu, argument) => writeUser(vcpu.vm.process, argument, KvmFpu, fpuFromXsave(vcpu.xsave()))],
  [
    Ioctl.KVM_SET_FPU,
    (vcpu, argument) => {
      const value = readUser(vcpu.vm.process, argument, KvmFpu);
      if (typeof value === "number") return value;
      const image = vcpu.xsave();
      fpuIntoXsave(image, value);
      vcpu.xrstor(image);
      return 0;
    },
  ],
  [Ioctl.KVM_GET_XSAVE, (vcpu, argument) => writeUserBytes(vcpu.vm.process, argument, vcpu.xsave())],
  [Ioctl.KVM_GET_XSAVE2, (vcpu, argument) => writeUserBytes(vcpu.vm.process, argument, vcpu.xsave())],
  [
    Ioctl.KVM_SET_XSAVE,
    (vcpu, argument) => {
      const value = readUser(vcpu.vm.process, argument, KvmXsave);
      if (typeof value === "number") return value;
      const image = checkedXsave(value.region, vcpu.vm.supportedXcr0);
      if (image === undefined) return -Errno.EINVAL;
      vcpu.xrstor(image);
      return 0;
    },
  ],
  [
    Ioctl.KVM_GET_XCRS,
    (vcpu, argument) =>
      writeUser(vcpu.vm.process, argument, KvmXcrs, {
        nr_xcrs: 1,
        flags: 0,
        xcrs: [{ xcr: 0, reserved: 0, value: vcpu.xcr0 }],
      }),
  ],
  [
    Ioctl.KVM_SET_XCRS,
    (vcpu, argument) => {
      const value = readUser(vcpu.vm.process, argument, KvmXcrs);
      if (typeof value === "number") return value;
      if (value.nr_xcrs > KVM_MAX_XCRS || value.flags !== 0) return -Errno.EINVAL;
      const xcr0 = value.xcrs.slice(0, value.nr_xcrs).find((entry) => entry.xcr === 0);
      return xcr0 === undefined || setXcr(vcpu, 0, xcr0.value) ? 0 : -Errno.EINVAL;
    },
  ],
  [Ioctl.KVM_GET_MSRS, getVcpuMsrs],
  [Ioctl.KVM_SET_MSRS, setVcpuMsrs],
  [Ioctl.KVM_SET_CPUID2, (vcpu, argument) => takeCpuid(vcpu, copyCpuid2In(vcpu.vm.process, argument))],
  [Ioctl.KVM_SET_CPUID, (vcpu, argument) => takeCpuid(vcpu, copyCpuidIn(vcpu.vm.process, argument))],
  [Ioctl.KVM_GET_CPUID2, (vcpu, argument) => copyCpuidOut(vcpu.vm.process, argument, vcpu.cpuid, true)],
  [
    Ioctl.KVM_GET_LAPIC,
    (vcpu, argument) =>
      vcpu.lapic === undefined ? -Errno.EINVAL : writeUserBytes(vcpu.vm.process, argument, vcpu.lapic.getState()),
  ],
  [
    Ioctl.KVM_SET_LAPIC,
    (vcpu, argument) => {
      if (vcpu.lapic === undefined) return -Errno.EINVAL;
      const value = readUser(vcpu.vm.process, argument, KvmLapicState);
      if (typeof value === "number") return value;
      vcpu.lapic.setState(value.regs);
      vcpu.kick();
      return 0;
    },
  ],
  [
    Ioctl.KVM_GET_MP_STATE,
    (vcpu, argument) => {
      // As Linux: INIT and SIPI that arrived while the vCPU did not run take effect first
      acceptApicEvents(vcpu);
      return writeUser(vcpu.vm.process, argument, KvmMpState, { mp_state: vcpu.mpState });
    },
  ],
  [Ioctl.KVM_SET_MP_STATE, setMpState],
  [Ioctl.KVM_GET_VCPU_EVENTS, (vcpu, argument) => writeUser(vcpu.vm.process, argument, KvmVcpuEvents, getEvents(vcpu))],
  [
    Ioctl.KVM_SET_VCPU_EVENTS,
    (vcpu, argument) => {
      const value = readUser(vcpu.vm.process, argument, KvmVcpuEvents);
      if (typeof value === "number") return value;
      return setEvents(vcpu, value) ? 0 : -Errno.EINVAL;
    },
  ],
  [Ioctl.KVM_GET_DEBUGREGS, (vcpu, argument) => writeUser(vcpu.vm.process, argument, KvmDebugregs, getDebugregs(vcpu))],
  [
    Ioctl.KVM_SET_DEBUGREGS,
    (vcpu, argument) => {
      const value = readUser(vcpu.vm.process, argument, KvmDebugregs);
      if (typeof value === "number") return value;
      return setDebugregs(vcpu, value) ? 0 : -Errno.EINVAL;
    },
  ],
  [
    Ioctl.KVM_SET_GUEST_DEBUG,
    (vcpu, argument) => {
      const value = readUser(vcpu.vm.process, argument, KvmGuestDebug);
      return typeof value === "number" ? value : vcpu.debug.set(vcpu, value.control, value.arch.debugreg);
    },
  ],
  [Ioctl.KVM_TRANSLATE, translate],
  [Ioctl.KVM_INTERRUPT, queueInterrupt],
  [
    Ioctl.KVM_NMI,
    (vcpu) => {
      const state = vcpu.events();
      vcpu.setEvents({ ...state, nmiPending: Math.min(state.nmiPending + 1, 2) });
      vcpu.kick();
      return 0;
    },
  ],
  [Ioctl.KVM_SET_SIGNAL_MASK, setSignalMask],
  [
    Ioctl.KVM_KVMCLOCK_CTRL,
    (vcpu) => {
      if ((vcpu.pv.systemTime & 1n) === 0n) return -Errno.EINVAL;
      vcpu.pv.flags |= PvclockFlag.guestStopped;
      vcpu.requestClockUpdate();
      return 0;
    },
  ],
  [Ioctl.KVM_GET_TSC_KHZ, (vcpu) => vcpu.vm.tscKhz],
  [Ioctl.KVM_SET_TSC_KHZ, (vcpu, argument) => checkTscKhz(vcpu.vm.tscKhz, argument)],
  [
    Ioctl.KVM_SET_VAPIC_ADDR,
    (vcpu, argument) => {
      // Only kernels that patch the guest's TPR accesses use the address; this one offers no KVM_CAP_VAPIC, and takes "none"
      const value = readUser(vcpu.vm.process, argument, KvmVapicAddr);
      if (typeof value === "number") return value;
      return value.vapic_addr === 0n ? 0 : -Errno.EINVAL;
    },
  ],
  [
    Ioctl.KVM_ENABLE_CAP,
    (vcpu, argument) => {
      const value = readUser(vcpu.vm.process, argument, KvmEnableCap);
      return typeof value === "number" ? value : -Errno.EINVAL;
    },
  ],
]);

/** Guests run at the host's rate: there is no TSC scaling. 250 parts per million are taken as equal. */
export function checkTscKhz(hostKhz: number, khz: number): number {
  return khz === 0 || Math.abs(khz - hostKhz) <= hostKhz * 250e-6 ? 0 : -Errno.EINVAL;
}

function takeCpuid(vcpu: VcpuParts, table: CpuidEntry[] | number): number {
  if (typeof table === "number") return table;
  // Stateful leaves (2, on processors of old) are taken as plain ones
  vcpu.cpuid = table.map((entry) => ({
    ...entry,
    flags: entry.flags & CpuidFlag.KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    padding: [0, 0, 0],
  }));
  vcpu.cpuidChanged();
  return 0;
}

function setMpState(vcpu: VcpuParts, argument: Hva): number {
  const value = readUser(vcpu.vm.process, argument, KvmMpState);
  if (typeof value === "number") return value;
  const state = value.mp_state;
  if (state > MpState.KVM_MP_STATE_SIPI_RECEIVED) return -Errno.EINVAL;
  // Without an in-kernel APIC there is nothing that could wake the vCPU
  if (vcpu.lapic === undefined && state !== MpState.KVM_MP_STATE_RUNNABLE) return -Errno.EINVAL;
  if (state === MpState.KVM_MP_STATE_SIPI_RECEIVED) {
    vcpu.mpState = MpState.KVM_MP_STATE_INIT_RECEIVED;
    vcpu.lapic?.noteEvents(LapicEvent.sipi);
  } else vcpu.mpState = state;
  vcpu.kick();
  return 0;
}

function translate(vcpu: VcpuParts, argument: Hva): number {
  const value = readUser(vcpu.vm.process, argument, KvmTranslation);
  if (typeof value === "number") return value;
  // As the kernel of the guest would, and without a trace in its tables
  const result = translateLinear(vcpu, value.linear_address, "read", false, 0);
  return writeUser(
    vcpu.vm.process,
    argument,
    KvmTranslation,
    isFault(result)
      ? { linear_address: value.linear_address, physical_address: 0xffff_ffff_ffff_ffffn, valid: 0, writeable: 1, usermode: 0 }
      : { linear_address: value.linear_address, physical_address: BigInt(result.gpa), valid: 1, writeable: 1, usermode: 0 },
  );
}

function queueInterrupt(vcpu: VcpuParts, argument: Hva): number {
  const value = readUser(vcpu.vm.process, argument, KvmInterrupt);
  if (typeof value === "number") return value;
  if (value.irq > 255) return -Errno.EINVAL;
  if (vcpu.vm.irqchip !== undefined || vcpu.lapic !== undefined) return -Errno.ENXIO;
  const state = vcpu.events();
  if (state.interrupt !== undefined) return -Errno.EEXIST;
  vcpu.setEvents({ ...state, interrupt: { vector: value.irq, software: false } });
  vcpu.kick();
  return 0;
}

/** Accepted and kept: signals of this kernel reach KVM_RUN whatever the mask. */
function setSignalMask(vcpu: VcpuParts, argument: Hva): number {
  if (argument === 0) {
    vcpu.signalMask.set = undefined;
    return 0;
  }
  const length = readUserU32(vcpu.vm.process, argument);
  if (length === undefined) return -Errno.EFAULT;
  if (length !== SIGSET_BYTES) return -Errno.EINVAL;
  const set = readUserU64(vcpu.vm.process, argument + KvmSignalMask.sizeBytes);
  if (set === undefined) return -Errno.EFAULT;
  vcpu.signalMask.set = set;
  return 0;
}
