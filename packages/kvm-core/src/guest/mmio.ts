/** Accesses to guest-physical addresses without memory: the instruction is emulated; what no in-kernel device has goes to user space. */
import { ExitReason, InternalError } from "@mkvm/kvm-abi";
import { Rflags } from "../arch/registers.ts";
import type { Emulation } from "../instruction-emulator/emulated-cpu.ts";
import { VcpuStat } from "../statistics/vcpu-statistics.ts";
import { emulatedGuest } from "./emulated-guest.ts";
import type { ExitOutcome, VcpuParts } from "./vcpu-parts.ts";

export function handleMmio(vcpu: VcpuParts): ExitOutcome {
  vcpu.statistics.words[VcpuStat.insn_emulation]!++;
  return settle(vcpu, vcpu.emulator.emulate(emulatedGuest(vcpu)));
}

/** KVM_RUN after KVM_EXIT_MMIO. */
export function completeMmio(vcpu: VcpuParts): ExitOutcome {
  const { run, emulator } = vcpu;
  return settle(vcpu, emulator.complete(emulatedGuest(vcpu), run.mmioData(Math.min(run.mmioLength, 8))));
}

function settle(vcpu: VcpuParts, result: Emulation): ExitOutcome {
  switch (result.kind) {
    case "done":
      retire(vcpu);
      return "resume";
    case "fault":
      vcpu.queueException(result.fault.vector, result.fault.errorCode, result.fault.cr2);
      return "resume";
    case "mmio":
      vcpu.statistics.words[VcpuStat.mmio_exits]!++;
      vcpu.run.exitReason = ExitReason.KVM_EXIT_MMIO;
      vcpu.run.setMmio(result.gpa, result.data, result.length, result.isWrite);
      return "exit";
    case "unsupported": {
      vcpu.statistics.words[VcpuStat.insn_emulation_fail]!++;
      const bytes = [...result.bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
      vcpu.vm.log("err", `vcpu ${vcpu.id}: cannot emulate the instruction at 0x${vcpu.rip.toString(16)}: ${bytes}`);
      vcpu.run.exitReason = ExitReason.KVM_EXIT_INTERNAL_ERROR;
      if (result.bytes.length > 0) vcpu.run.setEmulationFailure(result.bytes);
      else vcpu.run.setInternalError(InternalError.KVM_INTERNAL_ERROR_EMULATION, []);
      return "exit";
    }
  }
}

/** An instruction has retired outside guest mode: RIP has moved already. */
function retire(vcpu: VcpuParts): void {
  vcpu.interruptShadow = 0;
  if ((vcpu.rflags & Rflags.TF) !== 0n) vcpu.pendingDebug |= 1n << 14n;
}
