/** KVM_RUN of version 1: enters the guest again and again until user space, a signal or the kernel wants the vCPU. */
import { Errno, ExitReason, MpState, type Task } from "@mkvm/kvm-abi";
import {
  acceptApicEvents,
  completeUserExit,
  hasInterrupt,
  Rflags,
  storeValidRegs,
  takeDirtyRegs,
  takeInterrupt,
  updateClockPage,
  VcpuStat,
  Vector,
  yieldsOnPause,
} from "@mkvm/kvm-core";
import type { Vcpu } from "./vcpu.ts";

/** A result for user space, or what to wait for before the loop goes on. */
type Pause = number | "yield" | "wait";

/** Result of the ioctl; a promise only when the vCPU has to wait or gives way. */
export function runVcpu(vcpu: Vcpu, task: Task): number | Promise<number> {
  if (vcpu.running) return -Errno.EBUSY;
  const refused = takeDirtyRegs(vcpu);
  if (refused !== 0) return refused;
  vcpu.running = true;
  const pause = begin(vcpu, task);
  if (typeof pause === "number") return end(vcpu, pause);
  return waitAndGoOn(vcpu, task, pause);
}

function begin(vcpu: Vcpu, task: Task): Pause {
  if (vcpu.lapic === undefined) vcpu.userCr8 = Number(vcpu.run.cr8 & 15n);
  vcpu.debug.begin(vcpu);
  const outcome = completeUserExit(vcpu);
  if (outcome === "exit") return 0;
  if (typeof outcome === "number") return outcome;
  if (vcpu.run.immediateExit) {
    vcpu.run.exitReason = ExitReason.KVM_EXIT_INTR;
    return -Errno.EINTR;
  }
  return loop(vcpu, task);
}

async function waitAndGoOn(vcpu: Vcpu, task: Task, first: "yield" | "wait"): Promise<number> {
  const { scheduler } = vcpu.vm.kernel;
  let pause: Pause = first;
  while (typeof pause !== "number") {
    // Other tasks run meanwhile, this module's and others'
    vcpu.vm.vendor.put(vcpu);
    if (pause === "yield") await scheduler.yield();
    else {
      const since = vcpu.statistics.blocked();
      const halted = vcpu.mpState === MpState.KVM_MP_STATE_HALTED;
      await vcpu.waiters.wait(task);
      vcpu.statistics.unblocked(since, halted);
    }
    pause = loop(vcpu, task);
  }
  return end(vcpu, pause);
}

function end(vcpu: Vcpu, result: number): number {
  const { lapic, run } = vcpu;
  const interruptFlag = (vcpu.rflags & Rflags.IF) !== 0n;
  run.setStatus({
    readyForInterrupt:
      lapic !== undefined || (interruptFlag && vcpu.interruptShadow === 0 && vcpu.queue.interrupt === undefined),
    interruptFlag,
    cr8: lapic?.cr8 ?? vcpu.userCr8,
    apicBase: lapic?.apicBase ?? vcpu.userApicBase,
  });
  vcpu.debug.end(vcpu);
  storeValidRegs(vcpu);
  vcpu.vm.vendor.put(vcpu);
  vcpu.running = false;
  return result;
}

function loop(vcpu: Vcpu, task: Task): Pause {
  const { scheduler } = vcpu.vm.kernel;
  const { vendor } = vcpu.vm;
  const { statistics } = vcpu;
  for (;;) {
    if (task.signalPending()) {
      statistics.words[VcpuStat.signal_exits]!++;
      vcpu.run.exitReason = ExitReason.KVM_EXIT_INTR;
      return -Errno.EINTR;
    }
    if (task.workPending()) return -Errno.ERESTARTSYS;
    if (scheduler.needResched()) {
      if (vcpu.mpState === MpState.KVM_MP_STATE_RUNNABLE) statistics.preempted();
      return "yield";
    }
    if (vcpu.debug.takePendingTrap(vcpu)) return 0;
    acceptApicEvents(vcpu);
    if (vcpu.mpState === MpState.KVM_MP_STATE_HALTED && hasWakeEvent(vcpu)) vcpu.mpState = MpState.KVM_MP_STATE_RUNNABLE;
    if (vcpu.mpState !== MpState.KVM_MP_STATE_RUNNABLE) return "wait";
    if (vcpu.queue.tripleFault) {
      vcpu.queue.tripleFault = false;
      vcpu.run.exitReason = ExitReason.KVM_EXIT_SHUTDOWN;
      return 0;
    }
    if (wantsInterruptWindow(vcpu)) {
      statistics.words[VcpuStat.request_irq_exits]!++;
      vcpu.run.exitReason = ExitReason.KVM_EXIT_IRQ_WINDOW_OPEN;
      return 0;
    }

    vendor.load(vcpu);
    if (vcpu.clockUpdateRequested) {
      vcpu.clockUpdateRequested = false;
      updateClockPage(vcpu);
    }
    if (vcpu.tlbFlushRequested) {
      vcpu.tlbFlushRequested = false;
      vendor.flushGuestTlb(vcpu);
    }
    injectEvents(vcpu);
    statistics.entering();
    vendor.enter(vcpu);
    const outcome = vendor.handleExit(vcpu);
    if (outcome === "resume") continue;
    if (outcome === "exit") return 0;
    if (typeof outcome === "number") return outcome;
    if (outcome === "pause") {
      if (yieldsOnPause(scheduler, statistics)) return "yield";
      continue;
    }
    if (vcpu.lapic === undefined) {
      vcpu.run.exitReason = ExitReason.KVM_EXIT_HLT;
      return 0;
    }
    vcpu.mpState = MpState.KVM_MP_STATE_HALTED;
  }
}

/** Something that ends HLT. */
function hasWakeEvent(vcpu: Vcpu): boolean {
  const { queue, lapic } = vcpu;
  if (queue.exception !== undefined || queue.nmiInjected || queue.interrupt !== undefined || queue.tripleFault) return true;
  if (queue.nmiPending > 0 && vcpu.vm.vendor.nmiAllowed(vcpu)) return true;
  return lapic !== undefined && vcpu.vm.vendor.interruptAllowed(vcpu) && hasInterrupt(lapic, vcpu.vm.irqchip);
}

/** User space has the interrupt controller, wants to inject, and now could. */
function wantsInterruptWindow(vcpu: Vcpu): boolean {
  return (
    vcpu.lapic === undefined &&
    vcpu.run.interruptWindowRequested &&
    vcpu.queue.interrupt === undefined &&
    vcpu.vm.vendor.interruptAllowed(vcpu)
  );
}

/** Events in their order: what was cut short, new exceptions, NMIs, interrupts (as Linux's kvm_check_and_inject_events). */
function injectEvents(vcpu: Vcpu): void {
  const { queue, lapic } = vcpu;
  const { vendor } = vcpu.vm;
  let taken = true;
  if (queue.exception?.injected) vendor.injectException(vcpu, queue.exception);
  else if (queue.exception !== undefined) taken = false;
  else if (queue.nmiInjected) vendor.injectNmi(vcpu);
  else if (queue.interrupt !== undefined && (queue.interrupt.software || lapic !== undefined)) {
    vendor.injectInterrupt(vcpu, queue.interrupt.vector, queue.interrupt.software);
  } else taken = false;

  if (!taken && queue.exception !== undefined) {
    deliverPayload(vcpu);
    queue.exception.injected = true;
    vendor.injectException(vcpu, queue.exception);
    taken = true;
  }
  if (vcpu.debug.blocksInterrupts) return;
  if (queue.nmiPending > 0) {
    // A processor holds one NMI behind the one that it handles
    if (queue.nmiPending > 1 && (vcpu.nmiMasked || queue.nmiInjected)) queue.nmiPending = 1;
    if (!taken && vendor.nmiAllowed(vcpu)) {
      queue.nmiPending--;
      queue.nmiInjected = true;
      vendor.injectNmi(vcpu);
      taken = true;
    }
    if (queue.nmiPending > 0) vendor.openNmiWindow(vcpu);
  }
  if (lapic === undefined) {
    injectFromUser(vcpu, taken);
    return;
  }
  if (!hasInterrupt(lapic, vcpu.vm.irqchip)) return;
  if (!taken && vendor.interruptAllowed(vcpu)) {
    const vector = takeInterrupt(lapic, vcpu.vm.irqchip, vcpu.statistics);
    if (vector >= 0) {
      queue.interrupt = { vector, software: false };
      vendor.injectInterrupt(vcpu, vector, false);
    }
    if (!hasInterrupt(lapic, vcpu.vm.irqchip)) return;
  }
  vendor.openInterruptWindow(vcpu);
}

/** KVM_INTERRUPT's vector goes in when the guest can take it; it stays queued until then. */
function injectFromUser(vcpu: Vcpu, taken: boolean): void {
  const { queue } = vcpu;
  const { vendor } = vcpu.vm;
  if (queue.interrupt !== undefined) {
    if (!taken && vendor.interruptAllowed(vcpu)) vendor.injectInterrupt(vcpu, queue.interrupt.vector, false);
    else {
      queue.interruptHeld = true;
      vendor.openInterruptWindow(vcpu);
    }
  } else if (vcpu.run.interruptWindowRequested) vendor.openInterruptWindow(vcpu);
}

/** What an exception leaves in CR2, DR6 and RFLAGS before its handler runs. */
function deliverPayload(vcpu: Vcpu): void {
  const exception = vcpu.queue.exception!;
  if (exception.vector === Vector.PF && exception.payload !== undefined) vcpu.cr2 = exception.payload;
  if (exception.vector === Vector.DB) {
    if (exception.payload !== undefined) vcpu.setDebugRegister(6, (vcpu.debugRegister(6) & ~0xfn) | exception.payload);
    vcpu.setDebugRegister(7, vcpu.debugRegister(7) & ~0x2000n);
  } else if (exception.vector !== Vector.BP && exception.vector !== Vector.OF) {
    // A fault: the instruction restarts, past its own instruction breakpoint
    vcpu.rflags = vcpu.rflags | Rflags.RF;
  }
  exception.payload = undefined;
}
