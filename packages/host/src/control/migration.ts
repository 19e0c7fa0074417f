/**
 * A process moves from one logical CPU to another:
 *
 *   check -> prepare on the new CPU (VM runs) -> freeze, save -> restore, verify, commit -> thaw -> release on the old CPU
 *
 * Its memory is shared by the CPUs' threads and stays where it is. The program is started anew from its own state, as when a process
 * goes on from a file. Whose it is:
 *
 *   until freeze has answered    the old CPU's, and nobody else has its state: it ends when that CPU dies
 *   until thaw                   the old CPU's, which goes on with it when anything fails; when that CPU dies the new one must
 *   once thaw has begun          the new CPU's, whether the old one lets go, dies or hangs, and for better or worse
 *
 * A CPU that hangs is given up where it is asked. What undoes its part is asked for all the same, behind it: when it comes back it
 * does both, one after the other. A thaw that never begins, or answers why it cannot, leaves the VM to the old CPU, which still has all of it.
 */
import { HostError, messageOf } from "../errors.ts";
import { within } from "../patience.ts";
import type { HostedProcess } from "./process-handle.ts";
import type { LeftBehind, MigrationOffer } from "./protocol.ts";
import { type CpuClient, NoAnswer } from "./requests.ts";
import type { MigrationReport, MigrationStep } from "./types.ts";

/** For what is left of an attempt on the new CPU to be gone, before the report is given: it goes on being taken away by itself. */
const settleMs = 5000;

/** Of what is asked of a CPU that hangs as well. */
const sure = { sure: true };

export interface MigrationCpu {
  readonly id: number;
  readonly client: CpuClient;
  readonly processes: Set<number>;
  /** Its thread ended. */
  readonly gone: HostError | undefined;
  /** Ends its thread. */
  kill(): Promise<void>;
}

/** Console input comes to no CPU between the two. */
export interface InputHold {
  holdInput(): void;
  releaseInput(): void;
}

/**
 * `prepareMs`: what a module may take to prepare.
 * @throws HostError when it cannot even begin, or when the process was lost
 */
export async function migrate(
  process: HostedProcess,
  from: MigrationCpu,
  to: MigrationCpu,
  prepareMs: number,
  input: InputHold,
): Promise<MigrationReport> {
  const { pid } = process;
  const report: MigrationReport = {
    pid,
    fromCpu: from.id,
    toCpu: to.id,
    module: "",
    moved: false,
    steps: [],
    blackoutUs: 0,
    stateBytes: 0,
  };
  let current = "check" as MigrationStep;
  const step = async <Result>(name: MigrationStep, work: () => Promise<Result>): Promise<Result> => {
    current = name;
    const began = performance.now();
    try {
      return await work();
    } finally {
      report.steps.push({ step: name, durationUs: Math.round((performance.now() - began) * 1000) });
    }
  };
  const stay = () => from.client.request("leave.stay", { pid }, sure);
  const free = ({ reserved }: MigrationOffer) => from.client.request("leave.free", { pid, reserved }, sure);
  const takeBack = (offered: Promise<MigrationOffer>) => offered.then((offer) => Promise.all([stay(), free(offer)]));
  const offer = await step("check", () => from.client.request("leave.offer", { pid, to: `cpu${to.id}` }, { late: takeBack }));
  report.module = offer.module;
  const ended = from.client.request("leave.ends", { pid }).then(
    (ends) => {
      if (ends) throw new HostError("ESRCH", `process ${pid} ended`);
    },
    (thrown) => {
      if (!process.outlivesCpu) throw thrown;
    },
  );
  ended.catch(() => {});
  /** Before the new CPU runs it the process may end, and nobody is to wait for that CPU then. */
  const unlessEnded = <Result>(answer: Promise<Result>): Promise<Result> => {
    answer.catch(() => {});
    return Promise.race([answer, ended.then(() => answer)]);
  };
  let stoppedMs: number | undefined;
  try {
    await step("prepare", async () => {
      await unlessEnded(to.client.request("arrive.prepare", { ...offer, program: process.entry }));
      await unlessEnded(to.client.request("arrive.await", { pid }));
    });
    input.holdInput();
    const still = await step("freeze", () => from.client.request("leave.still", { pid }));
    process.outlivesCpu = true;
    stoppedMs = still.stoppedMs;
    const { image } = still;
    report.stateBytes = image.vms.reduce(
      (sum, vm) => sum + vm.sections.reduce((bytes, each) => bytes + each.bytes.length, 0),
      0,
    );
    await step("restore", () => unlessEnded(to.client.request("arrive.restore", { pid, image })));
    // Whoever ends it from here on is to ask the new CPU
    from.processes.delete(pid);
    to.processes.add(pid);
    process.cpu = to.id;
    const runsMs = await step("thaw", () => to.client.request("arrive.go", { pid }));
    process.outlivesCpu = false;
    report.moved = true;
    report.blackoutUs = Math.round((runsMs - stoppedMs) * 1000);
    input.releaseInput();
    const notReleased = await step("release", () => release(pid, from, to));
    if (notReleased !== undefined) report.notReleased = notReleased;
  } catch (thrown) {
    const reason = messageOf(thrown);
    // One that answers has not: from when the process can run there nothing throws
    const hasBegun = current === "thaw" && thrown instanceof NoAnswer && thrown.begun;
    report.failed = { step: current, reason };
    if (current === "thaw") {
      to.processes.delete(pid);
      if (!process.ended) from.processes.add(pid);
      process.cpu = from.id;
    }
    if (hasBegun || (process.outlivesCpu && from.gone)) {
      // What runs it does not answer, or nobody has it any more
      from.processes.delete(pid);
      input.releaseInput();
      // One that hangs would go on with it when it comes back, and the old CPU must never
      if (hasBegun && thrown instanceof NoAnswer) await to.kill();
      to.client.request("arrive.abort", { pid }, sure).catch(() => {});
      if (hasBegun) void release(pid, from, to);
      const why = from.gone ? `${from.gone.message}, and ${current} on cpu${to.id} failed` : `${current} failed`;
      process.end({ status: 134, reason: "crashed", message: `it was lost between CPUs: ${why}: ${reason}` });
      throw new HostError("EIO", `process ${pid} was lost on its way to cpu${to.id}: ${why}: ${reason}`);
    }
    process.outlivesCpu = false;
    // Pages set aside are free when nothing on the other CPU can write to them: at once, unless something hangs there
    const freeThem = () => free(offer);
    const late = (aborted: Promise<unknown>) => aborted.then(freeThem, freeThem);
    const freed = to.client
      .request("arrive.abort", { pid }, { ...sure, late })
      .then(freeThem, () => (to.gone ? freeThem() : null))
      .catch(() => {});
    await stay().catch((why) => {
      if (why instanceof NoAnswer && why.message !== reason)
        report.failed = { step: current, reason: `${reason}; and ${why.message}` };
    });
    input.releaseInput();
    if (stoppedMs !== undefined)
      report.blackoutUs = Math.round((performance.timeOrigin + performance.now() - stoppedMs) * 1000);
    if (!process.ended) await within(freed, Math.min(prepareMs, settleMs), () => {});
  } finally {
    process.outlivesCpu = false;
  }
  return report;
}

/** The old CPU's part ends, one way or another; why it did not let go, if it did not. */
async function release(pid: number, from: MigrationCpu, to: MigrationCpu): Promise<string | undefined> {
  const left = (how: LeftBehind) => to.client.request("arrive.left", { pid, left: how }, sure);
  const released = async ({ ending }: { ending: boolean }) => {
    await left("released");
    // That was asked for before the new CPU had it
    if (ending) await to.client.request("process.kill", { pid }, sure);
  };
  const late = (letGo: Promise<{ ending: boolean }>) => letGo.then(released, () => left("dead"));
  try {
    const letGo = await from.client.request("leave.go", { pid }, { ...sure, late });
    released(letGo).catch(() => {});
    return undefined;
  } catch (thrown) {
    if (from.gone) left("dead").catch(() => {});
    return messageOf(thrown);
  }
}
