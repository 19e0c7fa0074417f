/** KVM_RUN of version 2. */
import { Errno, ExitReason, MpState, type Task } from "@mkvm/kvm-abi";
import {
  acceptApicEvents,
  completeUserExit,
  hasInterrupt,
  hasPicInterrupt,
  Rflags,
  storeValidRegs,
  takeDirtyRegs,
  takeInterrupt,
  updateClockPage,
  VcpuStat,
  Vector,
  yieldsOnPause,
} from "@mkvm/kvm-core";
import { EventFlag } from "./pending-events.ts";
import { Request, type Vcpu } from "./vcpu.ts";

/** What `slice` came to: a result for user space, or a reason to leave the CPU to others. */
type Stop = { result: number } | { wait: "cpu" | "event" };
const GIVE_WAY: Stop = { wait: "cpu" };
const BLOCK: Stop = { wait: "event" };
const TO_USER: Stop = { result: 0 };

/** DR7.GD: cleared on entry to the debug handler. */
const GENERAL_DETECT = 0x2000n;

export class RunLoop {
  readonly #vcpu: Vcpu;
  #busy = false;

  constructor(vcpu: Vcpu) {
    this.#vcpu = vcpu;
  }

  /** Result of the ioctl; a promise only when the vCPU has to wait or gives way. */
  run(task: Task): number | Promise<number> {
    if (this.#busy) return -Errno.EBUSY;
    const refused = takeDirtyRegs(this.#vcpu);
    if (refused !== 0) return refused;
    this.#busy = true;
    const stop = this.#start(task);
    return "result" in stop ? this.#finish(stop.result) : this.#alternate(task, stop.wait);
  }

  #start(task: Task): Stop {
    const vcpu = this.#vcpu;
    if (vcpu.lapic === undefined) vcpu.userCr8 = Number(vcpu.run.cr8 & 15n);
    vcpu.debug.begin(vcpu);
    const outcome = completeUserExit(vcpu);
    if (outcome === "exit") return TO_USER;
    if (typeof outcome === "number") return { result: outcome };
    if (vcpu.run.immediateExit) return this.#interrupted();
    return this.#slice(task);
  }

  /** Runs slices with waits between them, off the CPU. */
  async #alternate(task: Task, first: "cpu" | "event"): Promise<number> {
    const vcpu = this.#vcpu;
    const { scheduler } = vcpu.vm.kernel;
    let wait = first;
    for (;;) {
      vcpu.vm.vendor.leaveCpu(vcpu);
      if (wait === "cpu") await scheduler.yield();
      else await this.#waitForEvent(task);
      const stop = this.#slice(task);
      if ("result" in stop) return this.#finish(stop.result);
      wait = stop.wait;
    }
  }

  async #waitForEvent(task: Task): Promise<void> {
    const vcpu = this.#vcpu;
    const { clock } = vcpu.vm.kernel;
    const start = clock.monotonicNs();
    const awake = (): boolean => task.signalPending() || task.workPending() || this.#canRun();
    const halted = vcpu.mpState === MpState.KVM_MP_STATE_HALTED;
    if (!(await vcpu.halt.poll(awake)) && !awake()) {
      const since = vcpu.statistics.blocked();
      await vcpu.waiters.wait(task);
      vcpu.statistics.unblocked(since, halted);
    }
    vcpu.halt.learn(clock.monotonicNs() - start);
  }

  #finish(result: number): number {
    const vcpu = this.#vcpu;
    const { lapic, pending } = vcpu;
    vcpu.run.setStatus({
      readyForInterrupt: lapic !== undefined || (vcpu.interruptAllowed && !pending.has(EventFlag.interrupt)),
      interruptFlag: (vcpu.rflags & Rflags.IF) !== 0n,
      cr8: lapic?.cr8 ?? vcpu.userCr8,
      apicBase: lapic?.apicBase ?? vcpu.userApicBase,
    });
    vcpu.debug.end(vcpu);
    storeValidRegs(vcpu);
    vcpu.vm.vendor.leaveCpu(vcpu);
    this.#busy = false;
    return result;
  }

  #interrupted(): Stop {
    this.#vcpu.run.exitReason = ExitReason.KVM_EXIT_INTR;
    return { result: -Errno.EINTR };
  }

  /** Enters the guest until something makes it stop. */
  #slice(task: Task): Stop {
    const vcpu = this.#vcpu;
    const { vendor, kernel } = vcpu.vm;
    for (;;) {
      if (task.signalPending()) {
        vcpu.statistics.words[VcpuStat.signal_exits]!++;
        return this.#interrupted();
      }
      if (task.workPending()) return { result: -Errno.ERESTARTSYS };
      if (kernel.scheduler.needResched()) {
        if (vcpu.mpState === MpState.KVM_MP_STATE_RUNNABLE) vcpu.statistics.preempted();
        return GIVE_WAY;
      }
      if (vcpu.debug.takePendingTrap(vcpu)) return TO_USER;
      if (!this.#canRun()) return BLOCK;
      if (vcpu.pending.has(EventFlag.tripleFault)) {
        vcpu.pending.flags &= ~EventFlag.tripleFault;
        return this.#exit(ExitReason.KVM_EXIT_SHUTDOWN);
      }
      if (this.#owesInterruptWindow()) {
        vcpu.statistics.words[VcpuStat.request_irq_exits]!++;
        return this.#exit(ExitReason.KVM_EXIT_IRQ_WINDOW_OPEN);
      }

      vendor.enterCpu(vcpu);
      if (vcpu.requests !== 0) this.#serveRequests();
      vendor.watchWindows(vcpu, this.#deliver());
      vcpu.statistics.entering();
      vendor.enter(vcpu);
      const outcome = vendor.handleExit(vcpu);
      if (outcome === "resume") continue;
      if (outcome === "exit") return TO_USER;
      if (outcome === "pause") {
        if (yieldsOnPause(kernel.scheduler, vcpu.statistics)) return GIVE_WAY;
        continue;
      }
      if (outcome !== "halt") return { result: outcome };
      if (vcpu.lapic === undefined) return this.#exit(ExitReason.KVM_EXIT_HLT);
      vcpu.mpState = MpState.KVM_MP_STATE_HALTED;
    }
  }

  #exit(reason: number): Stop {
    this.#vcpu.run.exitReason = reason;
    return TO_USER;
  }

  #serveRequests(): void {
    const vcpu = this.#vcpu;
    const { requests } = vcpu;
    vcpu.requests = 0;
    if ((requests & Request.clockUpdate) !== 0) updateClockPage(vcpu);
    if ((requests & Request.tlbFlush) !== 0) vcpu.vm.vendor.flushGuestTlb(vcpu);
  }

  /** Acts on INIT and SIPI, ends a halt that has a reason to end; true when the vCPU is runnable. */
  #canRun(): boolean {
    const vcpu = this.#vcpu;
    acceptApicEvents(vcpu);
    if (vcpu.mpState === MpState.KVM_MP_STATE_HALTED && this.#wakes()) vcpu.mpState = MpState.KVM_MP_STATE_RUNNABLE;
    return vcpu.mpState === MpState.KVM_MP_STATE_RUNNABLE;
  }

  #wakes(): boolean {
    const { pending, lapic, vm } = this.#vcpu;
    if (pending.flags !== 0) return true;
    if (pending.pendingNmis > 0 && this.#vcpu.nmiAllowed) return true;
    return lapic !== undefined && hasInterrupt(lapic, vm.irqchip) && this.#vcpu.interruptAllowed;
  }

  #owesInterruptWindow(): boolean {
    const vcpu = this.#vcpu;
    if (vcpu.lapic !== undefined || !vcpu.run.interruptWindowRequested) return false;
    return !vcpu.pending.has(EventFlag.interrupt) && vcpu.interruptAllowed;
  }

  /** Hands the next entry at most one event, and says which windows those that are left need. */
  #deliver(): { interrupt: boolean; nmi: boolean } {
    const vcpu = this.#vcpu;
    const { pending, lapic, vm } = vcpu;
    let occupied = this.#repeat();
    if (!occupied && pending.has(EventFlag.exceptionPending)) {
      this.#deliverException();
      occupied = true;
    }
    // A processor holds one NMI behind the one that it handles
    if (pending.pendingNmis > 1 && (vcpu.nmiMasked || pending.has(EventFlag.nmiInjected))) pending.pendingNmis = 1;
    if (vcpu.debug.blocksInterrupts) return { interrupt: false, nmi: false };
    if (pending.pendingNmis > 0 && !occupied && vcpu.nmiAllowed) {
      pending.pendingNmis--;
      pending.flags |= EventFlag.nmiInjected;
      this.#inject("nmi", Vector.NMI);
      occupied = true;
    }
    const nmi = pending.pendingNmis > 0;
    if (lapic === undefined) return { interrupt: this.#deliverFromUser(occupied), nmi };
    // What the processor delivers needs neither injection nor window; the 8259's interrupts do
    const isWaiting = vm.vendor.deliversApicInterrupts(vcpu) ? hasPicInterrupt : hasInterrupt;
    if (!isWaiting(lapic, vm.irqchip)) return { interrupt: false, nmi };
    if (occupied || !vcpu.interruptAllowed) return { interrupt: true, nmi };
    const vector = takeInterrupt(lapic, vm.irqchip, vcpu.statistics);
    if (vector >= 0) {
      pending.requeueInterrupt(vector, false, 0);
      this.#inject("interrupt", vector);
    }
    return { interrupt: isWaiting(lapic, vm.irqchip), nmi };
  }

  /** An event whose delivery was cut short; not beside a new exception, which came of that delivery. */
  #repeat(): boolean {
    const { pending, lapic } = this.#vcpu;
    if (pending.has(EventFlag.exceptionInjected)) {
      this.#inject(pending.has(EventFlag.exceptionSoftware) ? "software-exception" : "exception", pending.exceptionVector);
      return true;
    }
    if (pending.has(EventFlag.exceptionPending)) return false;
    if (pending.has(EventFlag.nmiInjected)) {
      this.#inject("nmi", Vector.NMI);
      return true;
    }
    const software = pending.has(EventFlag.interruptSoftware);
    if (!pending.has(EventFlag.interrupt) || (lapic === undefined && !software)) return false;
    this.#inject(software ? "software-interrupt" : "interrupt", pending.interruptVector);
    return true;
  }

  /** KVM_INTERRUPT's vector; true when a window is needed for it, or for one that user space announces. */
  #deliverFromUser(occupied: boolean): boolean {
    const { pending, run } = this.#vcpu;
    if (!pending.has(EventFlag.interrupt) || pending.has(EventFlag.interruptSoftware)) return run.interruptWindowRequested;
    if (!occupied && this.#vcpu.interruptAllowed) {
      this.#inject("interrupt", pending.interruptVector);
      return run.interruptWindowRequested;
    }
    pending.flags |= EventFlag.interruptHeld;
    return true;
  }

  /** What an exception leaves in CR2, DR6, DR7 and RFLAGS before its handler runs. */
  #deliverException(): void {
    const vcpu = this.#vcpu;
    const { pending } = vcpu;
    const vector = pending.exceptionVector;
    const payload = pending.has(EventFlag.exceptionHasPayload) ? pending.payload : undefined;
    if (vector === Vector.DB) {
      if (payload !== undefined) vcpu.setDebugRegister(6, (vcpu.debugRegister(6) & ~0xfn) | payload);
      vcpu.setDebugRegister(7, vcpu.debugRegister(7) & ~GENERAL_DETECT);
    } else {
      if (vector === Vector.PF && payload !== undefined) vcpu.cr2 = payload;
      // Faults restart their instruction, past its own instruction breakpoint; #BP and #OF are traps
      if (vector !== Vector.BP && vector !== Vector.OF) vcpu.rflags |= Rflags.RF;
    }
    pending.startException();
    this.#inject("exception", vector);
  }

  #inject(kind: "exception" | "software-exception" | "interrupt" | "software-interrupt" | "nmi", vector: number): void {
    const vcpu = this.#vcpu;
    const { pending } = vcpu;
    const withError = (kind === "exception" || kind === "software-exception") && pending.has(EventFlag.exceptionHasError);
    vcpu.vm.vendor.inject(vcpu, {
      kind,
      vector,
      errorCode: withError ? pending.errorCode : undefined,
      instructionLength: pending.instructionLength,
    });
  }
}
