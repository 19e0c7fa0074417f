/**
 * A process moves from one logical CPU to another:
 *
 *   check -> prepare on the new CPU (VM runs) -> freeze, save -> restore, verify, commit -> release on the old CPU -> thaw
 *
 * Its memory is shared by the CPUs' threads and stays where it is. The program is started anew from its own state, as when a process
 * goes on from a file. What fails before release leaves the process where it was.
 */
import { HostError, messageOf } from "../errors.ts";
import type { HostedProcess } from "./process-handle.ts";
import type { CpuClient } from "./requests.ts";
import type { MigrationReport, MigrationStep } from "./types.ts";

export interface MigrationCpu {
  readonly id: number;
  readonly client: CpuClient;
  readonly processes: Set<number>;
}

/** Console input comes to no CPU between the two. */
export interface InputHold {
  holdInput(): void;
  releaseInput(): void;
}

/** @throws HostError when it cannot even begin */
export async function migrate(
  process: HostedProcess,
  from: MigrationCpu,
  to: MigrationCpu,
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
  let stoppedMs: number | undefined;
  let left = false;
  try {
    await step("prepare", () => to.client.request("arrive.prepare", { ...offer, program: process.entry }));
    input.holdInput();
    const still = await step("freeze", () => from.client.request("leave.still", { pid }));
    stoppedMs = still.stoppedMs;
    const { image } = still;
    report.stateBytes = image.vms.reduce(
      (sum, vm) => sum + vm.sections.reduce((bytes, each) => bytes + each.bytes.length, 0),
      0,
    );
    await step("restore", () => to.client.request("arrive.restore", { pid, image }));
    const pages = await step("release", () => from.client.request("leave.go", { pid }));
    left = true;
    from.processes.delete(pid);
    to.processes.add(pid);
    process.cpu = to.id;
    const runsMs = await step("thaw", () => to.client.request("arrive.go", { pid, pages }));
    report.moved = true;
    report.blackoutUs = Math.round((runsMs - stoppedMs) * 1000);
  } catch (thrown) {
    report.failed = { step: current, reason: messageOf(thrown) };
    if (left) {
      // Nobody has it any more
      to.processes.delete(pid);
      process.end({ status: 134, reason: "crashed", message: `it was lost between CPUs: ${messageOf(thrown)}` });
      throw new HostError("EIO", `process ${pid} was lost on its way to cpu${to.id}: ${messageOf(thrown)}`);
    }
    await Promise.all([
      to.client.request("arrive.abort", { pid }).catch(() => {}),
      from.client.request("leave.stay", { pid }).catch(() => {}),
    ]);
    if (stoppedMs !== undefined)
      report.blackoutUs = Math.round((performance.timeOrigin + performance.now() - stoppedMs) * 1000);
  } finally {
    input.releaseInput();
  }
  return report;
}
