/** ioctls of a VM descriptor that concern interrupts, timers and the clock: the same in every version. */
import {
  ClockFlag,
  Errno,
  type Hva,
  Ioctl,
  IrqchipId,
  IrqSource,
  KvmClockData,
  KvmIrqchip,
  KvmIrqLevel,
  KvmIrqRouting,
  KvmIrqRoutingEntry,
  KvmMsi,
  KvmPitConfig,
  KvmPitState,
  KvmPitState2,
  KvmReinjectControl,
  PitConfigFlag,
} from "@mkvm/kvm-abi";
import type { InterruptFabric } from "../guest/interrupt-fabric.ts";
import { guestTimeNs, setGuestTime } from "../guest/kvmclock-msrs.ts";
import type { VmParts } from "../guest/vcpu-parts.ts";
import { enableCap } from "./enable-cap.ts";
import { ioeventfd, irqfd } from "./eventfd-ioctls.ts";
import { setMsrFilter } from "./msr-filter-ioctl.ts";
import { readUser, readUserU64, writeUser } from "./user-copy.ts";
import { checkTscKhz } from "./vcpu-ioctls.ts";

/** KVM_MAX_IRQ_ROUTES */
const MAX_IRQ_ROUTES = 4096;

export interface VmUnderControl extends VmParts {
  readonly fabric: InterruptFabric;
  /** Brings what the processor is told of MSRs in step with the settings. */
  msrFilterChanged(): void;
}
type Handler = (vm: VmUnderControl, argument: Hva) => number;

/** -ENOTTY for ioctls that are not here. */
export function vmStateIoctl(vm: VmUnderControl, request: number, argument: Hva): number {
  return HANDLERS.get(request)?.(vm, argument) ?? -Errno.ENOTTY;
}

const HANDLERS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [
    Ioctl.KVM_SET_TSS_ADDR,
    (vm, argument) => {
      // Three pages must fit below 4 GiB
      if (argument > 0xffff_d000) return -Errno.EINVAL;
      vm.settings.tssAddress = argument;
      return 0;
    },
  ],
  [
    Ioctl.KVM_SET_IDENTITY_MAP_ADDR,
    (vm, argument) => {
      const address = readUserU64(vm.process, argument);
      if (address === undefined) return -Errno.EFAULT;
      if (vm.vcpus().length > 0) return -Errno.EINVAL;
      vm.settings.identityMapAddress = Number(address);
      return 0;
    },
  ],
  [
    Ioctl.KVM_SET_BOOT_CPU_ID,
    (vm, argument) => {
      if (vm.vcpus().length > 0) return -Errno.EBUSY;
      vm.settings.bootCpuId = argument;
      return 0;
    },
  ],
  [
    Ioctl.KVM_SET_NR_MMU_PAGES,
    (vm, argument) => {
      if (argument < 64) return -Errno.EINVAL;
      vm.settings.mmuPages = argument;
      return 0;
    },
  ],
  [Ioctl.KVM_GET_NR_MMU_PAGES, (vm) => vm.settings.mmuPages],
  [Ioctl.KVM_CREATE_IRQCHIP, createIrqchip],
  [Ioctl.KVM_GET_IRQCHIP, getIrqchip],
  [Ioctl.KVM_SET_IRQCHIP, setIrqchip],
  [Ioctl.KVM_IRQ_LINE, (vm, argument) => irqLine(vm, argument, false)],
  [Ioctl.KVM_IRQ_LINE_STATUS, (vm, argument) => irqLine(vm, argument, true)],
  [Ioctl.KVM_SIGNAL_MSI, signalMsi],
  [Ioctl.KVM_SET_GSI_ROUTING, setGsiRouting],
  [Ioctl.KVM_CREATE_PIT, (vm) => createPit(vm, 1)],
  [
    Ioctl.KVM_CREATE_PIT2,
    (vm, argument) => {
      const config = readUser(vm.process, argument, KvmPitConfig);
      return typeof config === "number" ? config : createPit(vm, config.flags);
    },
  ],
  [
    Ioctl.KVM_GET_PIT,
    (vm, argument) => {
      if (vm.pit === undefined) return -Errno.ENXIO;
      return writeUser(vm.process, argument, KvmPitState, { channels: vm.pit.getState().channels });
    },
  ],
  [
    Ioctl.KVM_SET_PIT,
    (vm, argument) => {
      const state = readUser(vm.process, argument, KvmPitState);
      if (typeof state === "number") return state;
      if (vm.pit === undefined) return -Errno.ENXIO;
      vm.pit.setState({ channels: state.channels });
      return 0;
    },
  ],
  [
    Ioctl.KVM_GET_PIT2,
    (vm, argument) => (vm.pit === undefined ? -Errno.ENXIO : writeUser(vm.process, argument, KvmPitState2, vm.pit.getState())),
  ],
  [
    Ioctl.KVM_SET_PIT2,
    (vm, argument) => {
      const state = readUser(vm.process, argument, KvmPitState2);
      if (typeof state === "number") return state;
      if (vm.pit === undefined) return -Errno.ENXIO;
      vm.pit.setState(state);
      return 0;
    },
  ],
  [
    Ioctl.KVM_REINJECT_CONTROL,
    (vm, argument) => {
      const control = readUser(vm.process, argument, KvmReinjectControl);
      if (typeof control === "number") return control;
      if (vm.pit === undefined) return -Errno.ENXIO;
      vm.pit.reinject = control.pit_reinject !== 0;
      return 0;
    },
  ],
  [Ioctl.KVM_GET_CLOCK, getClock],
  [Ioctl.KVM_SET_CLOCK, setClock],
  [Ioctl.KVM_GET_TSC_KHZ, (vm) => vm.tscKhz],
  [Ioctl.KVM_SET_TSC_KHZ, (vm, argument) => checkTscKhz(vm.tscKhz, argument)],
  [Ioctl.KVM_ENABLE_CAP, enableCap],
  [Ioctl.KVM_X86_SET_MSR_FILTER, setMsrFilter],
  [Ioctl.KVM_IOEVENTFD, ioeventfd],
  [Ioctl.KVM_IRQFD, irqfd],
]);

function createIrqchip(vm: VmUnderControl): number {
  if (vm.irqchip !== undefined || vm.settings.splitIrqchip) return -Errno.EEXIST;
  if (vm.vcpus().length > 0) return -Errno.EINVAL;
  vm.fabric.createIrqchip();
  return 0;
}

function createPit(vm: VmUnderControl, flags: number): number {
  if (vm.pit !== undefined) return -Errno.EEXIST;
  if (vm.irqchip === undefined) return -Errno.ENOENT;
  vm.settings.pitConfigFlags = flags;
  vm.fabric.createPit((flags & PitConfigFlag.KVM_PIT_SPEAKER_DUMMY) !== 0);
  return 0;
}

function getIrqchip(vm: VmUnderControl, argument: Hva): number {
  const request = readUser(vm.process, argument, KvmIrqchip);
  if (typeof request === "number") return request;
  const { irqchip } = vm;
  if (irqchip === undefined) return -Errno.ENXIO;
  const bytes = KvmIrqchip.encode({ chip_id: request.chip_id });
  const view = new DataView(bytes.buffer);
  const { pic, ioapic } = KvmIrqchip.fields.chip.members;
  switch (request.chip_id) {
    case IrqchipId.KVM_IRQCHIP_PIC_MASTER:
    case IrqchipId.KVM_IRQCHIP_PIC_SLAVE:
      pic.write(view, 0, irqchip.pic.getState(request.chip_id));
      break;
    case IrqchipId.KVM_IRQCHIP_IOAPIC:
      ioapic.write(view, 0, irqchip.ioapic.getState());
      break;
    default:
      return -Errno.EINVAL;
  }
  return vm.process.memory.write(argument, bytes) ? 0 : -Errno.EFAULT;
}

function setIrqchip(vm: VmUnderControl, argument: Hva): number {
  const bytes = vm.process.memory.read(argument, KvmIrqchip.sizeBytes);
  if (bytes === undefined) return -Errno.EFAULT;
  const { irqchip } = vm;
  if (irqchip === undefined) return -Errno.ENXIO;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const { pic, ioapic } = KvmIrqchip.fields.chip.members;
  const id = KvmIrqchip.get(bytes, "chip_id");
  switch (id) {
    case IrqchipId.KVM_IRQCHIP_PIC_MASTER:
    case IrqchipId.KVM_IRQCHIP_PIC_SLAVE:
      irqchip.pic.setState(id, pic.read(view, 0));
      return 0;
    case IrqchipId.KVM_IRQCHIP_IOAPIC:
      irqchip.ioapic.setState(ioapic.read(view, 0));
      return 0;
    default:
      return -Errno.EINVAL;
  }
}

function irqLine(vm: VmUnderControl, argument: Hva, status: boolean): number {
  const line = readUser(vm.process, argument, KvmIrqLevel);
  if (typeof line === "number") return line;
  if (vm.irqchip === undefined) return -Errno.ENXIO;
  const result = vm.irqchip.setGsi(line.irq, IrqSource.userspace, line.level !== 0);
  return status ? writeUser(vm.process, argument, KvmIrqLevel, { irq: result >>> 0, level: line.level }) : 0;
}

function signalMsi(vm: VmUnderControl, argument: Hva): number {
  const msi = readUser(vm.process, argument, KvmMsi);
  if (typeof msi === "number") return msi;
  if (vm.irqchip === undefined || msi.flags !== 0) return -Errno.EINVAL;
  return vm.irqchip.signalMsi(msi.address_lo, msi.address_hi, msi.data);
}

function setGsiRouting(vm: VmUnderControl, argument: Hva): number {
  const head = readUser(vm.process, argument, KvmIrqRouting);
  if (typeof head === "number") return head;
  if (vm.irqchip === undefined || head.flags !== 0 || head.nr > MAX_IRQ_ROUTES) return -Errno.EINVAL;
  const bytes = vm.process.memory.read(argument + KvmIrqRouting.sizeBytes, head.nr * KvmIrqRoutingEntry.sizeBytes);
  if (bytes === undefined) return -Errno.EFAULT;
  const routes = Array.from({ length: head.nr }, (_, index) =>
    KvmIrqRoutingEntry.read(bytes, index * KvmIrqRoutingEntry.sizeBytes),
  );
  return vm.irqchip.setRoutes(routes);
}

function getClock(vm: VmUnderControl, argument: Hva): number {
  return writeUser(vm.process, argument, KvmClockData, {
    clock: BigInt.asUintN(64, guestTimeNs(vm)),
    flags: ClockFlag.KVM_CLOCK_TSC_STABLE | ClockFlag.KVM_CLOCK_REALTIME | ClockFlag.KVM_CLOCK_HOST_TSC,
    realtime: vm.clock.realtimeNs(),
    host_tsc: BigInt(vm.hostTsc()),
  });
}

function setClock(vm: VmUnderControl, argument: Hva): number {
  const data = readUser(vm.process, argument, KvmClockData);
  if (typeof data === "number") return data;
  const known = ClockFlag.KVM_CLOCK_TSC_STABLE | ClockFlag.KVM_CLOCK_REALTIME | ClockFlag.KVM_CLOCK_HOST_TSC;
  if ((data.flags & ~known) !== 0) return -Errno.EINVAL;
  let clock = data.clock;
  if ((data.flags & ClockFlag.KVM_CLOCK_REALTIME) !== 0) {
    // Time that has passed since the value was taken, never backwards
    const passed = vm.clock.realtimeNs() - data.realtime;
    if (passed > 0n) clock += passed;
  }
  setGuestTime(vm, clock);
  return 0;
}
