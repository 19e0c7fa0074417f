/**
 * A CPU that sleeps with the machine (suspend to RAM). First every process stands still, as for a move, so that no vCPU is on the CPU;
 * then VAC lets go of what it has loaded and turns virtualization off; then the power goes, and with it all that the CPU holds. Awake,
 * the kernel's own registers and VAC's extension come back, and the processes go on. Memory keeps what is in it all the time.
 */
import { HostError, messageOf } from "../errors.ts";
import type { KernelProcess } from "../processes/process.ts";
import { standingStill } from "../processes/standing-still.ts";
import type { CpuKernel } from "./cpu-kernel.ts";

/** What the kernel itself has in MSRs: EFER, PAT, STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE, TSC_AUX, SYSENTER_CS, _ESP and _EIP. */
const keptMsrs = [
  0xc000_0080, 0x277, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102, 0xc000_0103, 0x174, 0x175, 0x176,
];

interface Registers {
  cr4: bigint;
  xcr0: bigint;
  msrs: readonly { index: number; value: bigint }[];
}

export class CpuSleep {
  readonly #kernel: CpuKernel;
  #asleep: { registers: Registers; wake: () => void } | undefined;
  /** It sleeps, or is about to: nothing new is to come to the CPU. */
  begun = false;

  constructor(kernel: CpuKernel) {
    this.#kernel = kernel;
  }

  /** @throws HostError when a process moves, or does not come out of a module: all of them run on then */
  async suspend(processes: readonly KernelProcess[]): Promise<void> {
    const { vac, cpu, scheduler } = this.#kernel;
    for (const { pid, standstill } of processes)
      if (standstill) throw new HostError("EBUSY", `process ${pid} is ${standstill.doing}: wait for that to end`);
    this.begun = true;
    const releaseIdle = scheduler.holdIdle();
    const awake = Promise.withResolvers<void>();
    const wake = () => {
      this.begun = false;
      awake.resolve();
      releaseIdle();
    };
    try {
      await Promise.all(processes.map((process) => this.#stopped(process, awake.promise)));
    } catch (thrown) {
      wake();
      throw thrown;
    }
    scheduler.pause();
    vac.suspend();
    this.#asleep = { registers: this.#registers(), wake };
    cpu.losePower();
  }

  resume(): void {
    const { vac, scheduler } = this.#kernel;
    if (!this.#asleep) return;
    const { registers, wake } = this.#asleep;
    this.#asleep = undefined;
    this.#restore(registers);
    const result = vac.resume();
    if (result < 0)
      this.#kernel.log(
        "err",
        "host",
        `virtualization did not come back on cpu${this.#kernel.id} (errno ${-result}): its VMs fail`,
      );
    wake();
    scheduler.unpause();
  }

  /** Resolves when the process stands still, which it does until `awake`. One that ends meanwhile is none that runs. */
  #stopped(process: KernelProcess, awake: Promise<void>): Promise<void> {
    return new Promise((resolve, reject) => {
      const done = standingStill(process, () => {
        resolve();
        return awake;
      });
      process.standstill = { doing: "asleep", done };
      done
        .catch((thrown) => {
          if (thrown instanceof HostError && thrown.code === "ESRCH") resolve();
          else reject(new HostError("EBUSY", `process ${process.pid} cannot be suspended: ${messageOf(thrown)}`));
        })
        .finally(() => {
          process.standstill = undefined;
          process.settle();
        });
    });
  }

  #registers(): Registers {
    const { cpu } = this.#kernel;
    const msrs = keptMsrs.flatMap((index) => {
      const value = cpu.rdmsr(index);
      return value === undefined ? [] : [{ index, value }];
    });
    return { cr4: cpu.cr4, xcr0: cpu.xcr0, msrs };
  }

  #restore({ cr4, xcr0, msrs }: Registers): void {
    const { cpu } = this.#kernel;
    cpu.cr4 = cr4;
    cpu.xcr0 = xcr0;
    for (const { index, value } of msrs) {
      if (!cpu.wrmsr(index, value)) throw new Error(`cpu${cpu.id} refuses its own value of MSR 0x${index.toString(16)}`);
    }
  }
}
