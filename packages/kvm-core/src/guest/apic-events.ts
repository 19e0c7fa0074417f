/** INIT and SIPI (SDM 3A, "Multiple-Processor (MP) Initialization"). */
import { LapicEvent, MpState } from "@mkvm/kvm-abi";
import { SegmentRegister } from "../arch/registers.ts";
import type { VcpuParts } from "./vcpu-parts.ts";

/** INIT resets the vCPU and makes an application processor wait for SIPI, which gives it a start address. */
export function acceptApicEvents(vcpu: VcpuParts): void {
  const { lapic } = vcpu;
  if (lapic === undefined || lapic.pendingEvents === 0) return;
  if ((lapic.pendingEvents & LapicEvent.init) !== 0) {
    lapic.clearEvents(LapicEvent.init);
    vcpu.reset("init");
    const isBootCpu = vcpu.id === vcpu.vm.settings.bootCpuId;
    vcpu.mpState = isBootCpu ? MpState.KVM_MP_STATE_RUNNABLE : MpState.KVM_MP_STATE_INIT_RECEIVED;
  }
  if ((lapic.pendingEvents & LapicEvent.sipi) !== 0) {
    const vector = lapic.sipiVector;
    lapic.clearEvents(LapicEvent.sipi);
    if (vcpu.mpState !== MpState.KVM_MP_STATE_INIT_RECEIVED) return;
    vcpu.setSegment(SegmentRegister.CS, { selector: vector << 8, base: BigInt(vector) << 12n, limit: 0xffff, access: 0x9b });
    vcpu.rip = 0n;
    vcpu.mpState = MpState.KVM_MP_STATE_RUNNABLE;
  }
}
