/**
 * A process moves from one logical CPU to another:
 *
 *   check -> prepare on the new CPU (VM runs) -> freeze, save -> restore, verify, commit -> release on the old CPU -> thaw
 *
 * Its memory is shared by the CPUs' threads and stays where it is. The program is started anew from its own state, as when a process
 * goes on from a file. Whose it is:
 *
 *   until freeze has answered    the old CPU's, and nobody else has its state: it ends when that CPU dies
 *   until release                the old CPU's, which goes on with it when anything fails; when that CPU dies the new one must
 *   once release was asked for   the new CPU's, whether the old one lets go, dies or hangs; it may only refuse what ends already
 */
import { HostError, messageOf } from "../errors.ts";
import { within } from "../patience.ts";
import type { HostedProcess } from "./process-handle.ts";
import type { LeftBehind } from "./protocol.ts";
import type { CpuClient } from "./requests.ts";
import type { MigrationReport, MigrationStep } from "./types.ts";

/** For the program to be imported on the new CPU, milliseconds. */
const importMs = 30_000;

/** For what is left of an attempt on the new CPU to be gone, before the report is given: it goes on being taken away by itself. */
const settleMs = 5000;

export interface MigrationCpu {
  readonly id: number;
  readonly client: CpuClient;
  readonly processes: Set<number>;
  /** Its thread ended. */
  readonly gone: HostError | undefined;
}

/** Console input comes to no CPU between the two. */
export interface InputHold {
  holdInput(): void;
  releaseInput(): void;
}

/**
 * `answerMs`: how long a CPU may take to answer. A new one that does not is left alone, and the VM goes on where it was; an old one that
 * does not let go is left alone as well, and the VM goes on where it has come to.
 * @throws HostError when it cannot even begin
 */
export async function migrate(
  process: HostedProcess,
  from: MigrationCpu,
  to: MigrationCpu,
  answerMs: number,
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
  let current: MigrationStep = "check";
  const step = async <Result>(name: MigrationStep, work: () => Promise<Result>): Promise<Result> => {
    current = name;
    const began = performance.now();
    try {
      return await work();
    } finally {
      report.steps.push({ step: name, durationUs: Math.round((performance.now() - began) * 1000) });
    }
  };
  const offer = await step("check", () => from.client.request("leave.offer", { pid, to: `cpu${to.id}` }));
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
  /** Before the old CPU has let go the process may end, and nobody is to wait for the new CPU then. */
  const unlessEnded = <Result>(answer: Promise<Result>): Promise<Result> => {
    answer.catch(() => {});
    return Promise.race([answer, ended.then(() => answer)]);
  };
  const patient = <Result>(answer: Promise<Result>, limitMs: number): Promise<Result> =>
    unlessEnded(
      within(answer, limitMs, () => {
        throw new HostError("ETIMEDOUT", `cpu${to.id} did not answer within ${limitMs} ms`);
      }),
    );
  let stoppedMs: number | undefined;
  let left = false;
  try {
    // A module that hangs is given up by its own CPU's kernel: this limit is for a thread that hangs altogether
    const limitMs = importMs + answerMs * offer.descriptions.length;
    await step("prepare", () => patient(to.client.request("arrive.prepare", { ...offer, program: process.entry }), limitMs));
    input.holdInput();
    const still = await step("freeze", () => from.client.request("leave.still", { pid }));
    process.outlivesCpu = true;
    stoppedMs = still.stoppedMs;
    const { image } = still;
    report.stateBytes = image.vms.reduce(
      (sum, vm) => sum + vm.sections.reduce((bytes, each) => bytes + each.bytes.length, 0),
      0,
    );
    await step("restore", () => patient(to.client.request("arrive.restore", { pid, image }), answerMs));
    const outcome = await step("release", () => release(process, from, to, answerMs));
    if (outcome.why !== undefined) report.notReleased = outcome.why;
    left = true;
    from.processes.delete(pid);
    to.processes.add(pid);
    process.cpu = to.id;
    const runsMs = await step("thaw", () => to.client.request("arrive.go", { pid, left: outcome.left }));
    input.releaseInput();
    report.moved = true;
    report.blackoutUs = Math.round((runsMs - stoppedMs) * 1000);
  } catch (thrown) {
    report.failed = { step: current, reason: messageOf(thrown) };
    const aborted = to.client.request("arrive.abort", { pid }).catch(() => {});
    if (left || (process.outlivesCpu && from.gone)) {
      // Nobody has it any more
      from.processes.delete(pid);
      to.processes.delete(pid);
      input.releaseInput();
      const why = from.gone ? `${from.gone.message}, and ${current} on cpu${to.id} failed` : `${current} failed`;
      process.end({ status: 134, reason: "crashed", message: `it was lost between CPUs: ${why}: ${messageOf(thrown)}` });
      throw new HostError("EIO", `process ${pid} was lost on its way to cpu${to.id}: ${why}: ${messageOf(thrown)}`);
    }
    process.outlivesCpu = false;
    await from.client.request("leave.stay", { pid }).catch(() => {});
    input.releaseInput();
    if (stoppedMs !== undefined)
      report.blackoutUs = Math.round((performance.timeOrigin + performance.now() - stoppedMs) * 1000);
    // Pages set aside are free when nothing on the other CPU can write to them: at once, unless something hangs there
    const freed = aborted.then(() => from.client.request("leave.free", { pid, reserved: offer.reserved })).catch(() => {});
    if (!process.ended) await within(freed, Math.min(answerMs, settleMs), () => {});
  } finally {
    process.outlivesCpu = false;
  }
  return report;
}

/** The old CPU's part ends, one way or another. @throws what it refuses with: the process is still its own then */
async function release(
  { pid }: HostedProcess,
  from: MigrationCpu,
  to: MigrationCpu,
  answerMs: number,
): Promise<{ left: LeftBehind; why?: string }> {
  const letGo = from.client.request("leave.go", { pid });
  try {
    return await within(
      letGo.then(() => ({ left: "released" as const })),
      answerMs,
      () => {
        // It hung before it heard that the process was to end: late is better than never
        letGo.catch(() => (from.gone ? null : to.client.request("process.kill", { pid }))).catch(() => {});
        return { left: "hung" as const, why: `cpu${from.id} did not answer within ${answerMs} ms` };
      },
    );
  } catch (thrown) {
    if (!from.gone) throw thrown;
    return { left: "dead", why: from.gone.message };
  }
}
