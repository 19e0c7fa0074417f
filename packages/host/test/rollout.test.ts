/** Rollouts against a host that is a table of VMs, on a clock that the tests turn. */
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { MoveReport, ProcessInfo } from "../src/control/types.ts";
import { HostError } from "../src/errors.ts";
import { checkPlan, parsePlan, readPlanFile } from "../src/rollout/plan.ts";
import { Rollouts } from "../src/rollout/rollouts.ts";
import { type RolloutState, rolloutFile } from "../src/rollout/state.ts";
import type { RolloutClock, RolloutTarget } from "../src/rollout/target.ts";
import { wavesOf } from "../src/rollout/waves.ts";

interface Vm {
  pid: number;
  module: string;
  previous: string[];
  exitsPerS: Record<string, number>;
  instructionsPerS: Record<string, number>;
  fails?: string;
  stuck?: boolean;
  fault?: string;
  /** Its CPU does not answer. */
  unheard?: true;
  ended?: { status: number; reason: "exited" | "crashed" };
  beats?: boolean;
  /** Bucket of its interrupts' latency, by module. */
  latency?: Record<string, number>;
}

/** Time passes when the rollout waits; `at` has things happen meanwhile. */
class TestClock implements RolloutClock {
  now = 0;
  readonly at: { ms: number; run: () => void }[] = [];
  held: (() => void) | undefined;
  hold = false;

  nowMs = (): number => this.now;

  async wait(durationMs: number, signal: AbortSignal): Promise<void> {
    const until = this.now + durationMs;
    for (const event of this.at.splice(0).sort((a, b) => a.ms - b.ms)) {
      if (event.ms > until) this.at.push(event);
      else {
        this.now = event.ms;
        event.run();
      }
    }
    if (this.hold && !signal.aborted) {
      await new Promise<void>((resolve) => {
        signal.addEventListener("abort", () => resolve());
        this.held?.();
      });
    }
    if (!signal.aborted) this.now = until;
  }
}

class TestHost implements RolloutTarget {
  instance = "first";
  readonly calls: string[] = [];
  readonly finalised: number[] = [];
  silent: number[] = [];
  readonly vms: Vm[];
  readonly #clock: TestClock;
  constructor(clock: TestClock, count: number) {
    this.#clock = clock;
    this.vms = Array.from({ length: count }, (_, index) => ({
      pid: index + 1,
      module: "kvm1",
      previous: [],
      exitsPerS: { kvm1: 1000, kvm2: 1100 },
      instructionsPerS: { kvm1: 1e6, kvm2: 1e6 },
    }));
  }
  vm(pid: number): Vm {
    const vm = this.vms.find((each) => each.pid === pid && !each.ended);
    if (!vm) throw new HostError("ESRCH", `no process ${pid}`);
    if (vm.unheard) throw new HostError("ETIMEDOUT", "cpu1 did not answer within 20000 ms");
    return vm;
  }
  async processes(): Promise<ProcessInfo[]> {
    return this.vms
      .filter((vm) => !vm.ended && !vm.unheard)
      .map(({ pid, module, fault }) => ({ pid, name: "vmm", vms: 1, modules: [module], fault }) as unknown as ProcessInfo);
  }
  async blocker(pid: number): Promise<string | null> {
    return pid === 99 ? "it is too old" : null;
  }
  async upgrade(pid: number, to: string): Promise<MoveReport> {
    const vm = this.vm(pid);
    this.calls.push(`upgrade ${pid}`);
    const reason = vm.fails;
    if (!reason) {
      vm.previous.push(vm.module);
      vm.module = to;
    }
    return {
      pid,
      moved: !reason,
      blackoutUs: 2000,
      ...(reason && { failed: { step: "verify", reason } }),
    } as MoveReport;
  }
  async rollback(pid: number): Promise<MoveReport> {
    const vm = this.vm(pid);
    this.calls.push(`rollback ${pid}`);
    if (vm.stuck) return { pid, moved: false, failed: { step: "save", reason: "save threw" } } as MoveReport;
    vm.module = vm.previous.pop()!;
    return { pid, moved: true } as MoveReport;
  }
  async finalize(pid: number): Promise<void> {
    this.finalised.push(pid);
  }
  async counts(pid: number) {
    const vm = this.vm(pid);
    const seconds = this.#clock.now / 1000;
    // Rates of the module that it is on: what was counted before cancels out
    return {
      exits: seconds * vm.exitsPerS[vm.module]!,
      instructions: seconds * vm.instructionsPerS[vm.module]!,
      interruptLatency: Array.from({ length: 20 }, (_, bucket) => (bucket === vm.latency?.[vm.module] ? seconds * 100 : 0)),
    };
  }
  async silentCpus() {
    return this.silent;
  }
  async ended(pid: number) {
    return this.vms.find((vm) => vm.pid === pid)?.ended;
  }
  watchConsole(pid: number) {
    return { seen: () => this.vm(pid).beats ?? false, stop() {} };
  }
  on(module: string): number[] {
    return this.vms.filter((vm) => vm.module === module).map(({ pid }) => pid);
  }
}

function setUp(count = 20) {
  const clock = new TestClock();
  const host = new TestHost(clock, count);
  const path = join(mkdtempSync(join(tmpdir(), "mkvm-rollout-")), "rollout.json");
  const log: string[] = [];
  const controller = () => new Rollouts({ target: host, store: rolloutFile(path), clock, log: (text) => log.push(text) });
  return { clock, host, path, log, controller, rollouts: controller() };
}

const plan = { from: "kvm1", to: "kvm2", waves: ["1", "10%", "100%"], soak: "10s", baseline: "5s" };

async function ended(rollouts: Rollouts): Promise<RolloutState> {
  await rollouts.settled();
  return rollouts.status();
}

describe("waves", () => {
  it("are numbers and shares of all, rounded up, without those that add nobody", () => {
    const vms = Array.from({ length: 20 }, (_, index) => index);
    expect(wavesOf(vms, [1, "10%", "100%"]).map((wave) => wave.length)).toEqual([1, 1, 18]);
    expect(wavesOf([1, 2], ["1", "10%", "100%"])).toEqual([[1], [2]]);
    expect(wavesOf([1, 2, 3], ["50%"])).toEqual([[1, 2]]);
    expect(wavesOf([], ["100%"])).toEqual([]);
  });
});

describe("a plan", () => {
  it("is YAML or JSON, and its mistakes are named with their place", () => {
    expect(checkPlan(parsePlan("from: kvm1\nto: kvm2\nsoak: 1.5s\n", "r.yaml"))).toMatchObject({
      soakMs: 1500,
      baselineMs: 5000,
      waves: [1, "10%", "100%"],
      health: { exits: 3, progress: 0.3 },
    });
    expect(() => parsePlan("from: kvm1\nto: kvm2\nsoak: soon\n", "r.yaml")).toThrow(/r\.yaml:3:7: soak: write a duration/);
    expect(() => parsePlan('{"from":"kvm1","too":"kvm2"}', "r.json")).toThrow(/r\.json:1:22: too: no such key here/);
    expect(() => parsePlan("from: [", "r.yaml")).toThrow(/r\.yaml:1:\d+: no YAML or JSON/);
    expect(() => parsePlan("from: kvm1\nto: kvm2\nwaves: [0]\n", "r.yaml")).toThrow("waves: give a list of waves");
    expect(() => parsePlan("from: kvm1\nto: kvm2\nhealth: {heartbeat: '('}\n", "r.yaml")).toThrow(
      "health.heartbeat: give a regular expression",
    );
    expect(() => checkPlan({ from: "kvm1", to: "kvm1" })).toThrow("from and to are both kvm1");
    expect(() => readPlanFile("/nowhere.yaml")).toThrow("rollout /nowhere.yaml cannot be read");
  });
});

describe("a rollout", () => {
  it("moves wave after wave, and ends with all on the new module", async () => {
    const { host, rollouts, log, clock } = setUp();
    await rollouts.start({ ...plan, finalize: true });
    const state = await ended(rollouts);
    expect(state).toMatchObject({ status: "done", wave: 3 });
    expect(state.vms.every((vm) => vm.state === "healthy")).toBe(true);
    expect(state.vms[0]!.before).toMatchObject({ exitsPerS: 1000 });
    expect(host.on("kvm1")).toEqual([]);
    expect(host.finalised.length).toBe(20);
    expect(clock.now).toBe(3 * 15_000);
    expect(log.at(-1)).toBe("rollout: done: 20 VMs on kvm2");
  });

  it.each([
    [
      "exits",
      (vm: Vm) => {
        vm.exitsPerS.kvm2 = 9000;
      },
      {},
      /process 2: .* exits per second, 1000 before: more than 3/,
    ],
    [
      "progress",
      (vm: Vm) => {
        vm.instructionsPerS.kvm2 = 0;
      },
      {},
      /process 2: .* guest instructions per second/,
    ],
    [
      "a failed move",
      (vm: Vm) => {
        vm.fails = "bytes differ";
      },
      {},
      /process 2 did not move: verify: bytes differ/,
    ],
    [
      "interrupt latency",
      (vm: Vm) => {
        vm.latency = { kvm1: 10, kvm2: 14 };
      },
      { interruptLatency: 4 },
      /process 2: interrupt latency of 16384 ns \(99th percentile\), 1024 ns before: more than 4 times/,
    ],
    ["blackout", () => {}, { blackout: "1ms" }, /process 1: blackout of 2000 us, more than 1 ms/],
    ["heartbeat", () => {}, { heartbeat: "^tick" }, /process 1: no heartbeat/],
  ])("rolls a wave back for %s, and stops there", async (_, harm, health, reason) => {
    const { host, rollouts } = setUp();
    harm(host.vms[1]!);
    await rollouts.start({ ...plan, health });
    const state = await ended(rollouts);
    expect(state.status).toBe("failed");
    expect(state.events.at(-1)!.text).toMatch(reason);
    const moved = state.vms.filter((vm) => vm.state === "healthy").map(({ pid }) => pid);
    expect(host.on("kvm2")).toEqual(moved);
    expect(moved).toEqual(state.wave === 0 ? [] : [1]);
    expect(state.vms.filter((vm) => vm.state === "waiting").length).toBeGreaterThanOrEqual(18);
  });

  it("takes a VM that crashes while its wave soaks for what it is, and one that ends well for nothing", async () => {
    for (const [exit, status] of [
      [{ status: 134, reason: "crashed" }, "failed"],
      [{ status: 0, reason: "exited" }, "done"],
    ] as const) {
      const { host, rollouts, clock } = setUp(3);
      clock.at.push({
        ms: 7000,
        run: () => {
          host.vms[0]!.ended = { ...exit };
        },
      });
      await rollouts.start(plan);
      const state = await ended(rollouts);
      expect(state.status).toBe(status);
      expect(state.vms[0]!.state).toBe("gone");
    }
  });

  it("does not begin while a CPU does not answer, whose VMs nobody knows", async () => {
    const { host, rollouts } = setUp(3);
    host.silent = [1];
    await expect(rollouts.start(plan)).rejects.toThrow("cpu1 does not answer, and its VMs are not known: 'mkvm cpu kill 1'");
    expect(host.calls).toEqual([]);
  });

  it.each([
    [2000, "process 1: cpu1 did not answer within 20000 ms", "waiting"],
    [7000, "process 1: its CPU does not answer", "stuck"],
  ])("fails when a CPU hangs at %i ms under a VM of the wave: %s", async (ms, reason, expected) => {
    const { host, rollouts, clock } = setUp(3);
    clock.at.push({
      ms,
      run: () => {
        host.vms[0]!.unheard = true;
      },
    });
    await rollouts.start(plan);
    const state = await ended(rollouts);
    expect(state.status).toBe("failed");
    expect(state.events.at(-1)!.text).toContain(reason);
    expect(state.vms.map((vm) => vm.state)).toEqual([expected, "waiting", "waiting"]);
  });

  it("goes on with VMs whose CPU did not answer when it was asked to", async () => {
    const { host, rollouts, clock } = setUp(3);
    clock.hold = true;
    await rollouts.start(plan);
    await rollouts.pause();
    clock.hold = false;
    host.vms[0]!.unheard = true;
    await rollouts.resume();
    expect(rollouts.status().vms[0]!.state).toBe("waiting");
    expect(await ended(rollouts)).toMatchObject({ status: "failed" });
  });

  it("names internal errors, and VMs that cannot be taken back", async () => {
    const { host, rollouts, clock } = setUp(3);
    host.vms[0]!.stuck = true;
    clock.at.push({
      ms: 7000,
      run: () => {
        host.vms[0]!.fault = "a fault while running";
      },
    });
    await rollouts.start(plan);
    const state = await ended(rollouts);
    expect(state.vms[0]).toMatchObject({ state: "stuck", reason: "save: save threw" });
    expect(state.events.at(-1)!.text).toMatch(/internal error: a fault while running; could not be rolled back: process 1/);
  });

  it("pauses, goes on, and aborts: the wave, or all of them", async () => {
    const { clock, host, rollouts } = setUp(4);
    const soaking = new Promise<void>((resolve) => {
      clock.at.push({
        ms: 21_000,
        run: () => {
          clock.hold = true;
        },
      });
      clock.held = resolve;
    });
    await rollouts.start({ ...plan, waves: [1, 2, 4] });
    await soaking;
    expect(rollouts.status()).toMatchObject({ status: "running", phase: "soaking", wave: 1 });
    await expect(rollouts.start(plan)).rejects.toThrow("a rollout is running");
    expect((await rollouts.pause()).status).toBe("paused");
    await expect(rollouts.pause()).rejects.toThrow("the rollout is paused: there is nothing to pause");
    expect(host.on("kvm2")).toEqual([1, 2]);
    const again = new Promise<void>((resolve) => {
      clock.held = resolve;
    });
    await rollouts.resume();
    await again;
    expect(host.calls.filter((call) => call === "upgrade 2").length).toBe(1);
    expect((await rollouts.abort()).status).toBe("aborted");
    expect(host.on("kvm2")).toEqual([1]);
    await expect(rollouts.abort()).rejects.toThrow("the rollout is aborted");
    expect(rollouts.status().events.at(-1)!.text).toContain("aborted by the operator");
  });

  it("takes all waves back when asked, also after the end", async () => {
    const { host, rollouts } = setUp(4);
    await rollouts.start(plan);
    await ended(rollouts);
    expect(host.on("kvm2").length).toBe(4);
    expect((await rollouts.abort(true)).status).toBe("aborted");
    expect(host.on("kvm2")).toEqual([]);
  });

  it("is gone on with by another control side, from where the VMs are", async () => {
    const { clock, host, rollouts, controller } = setUp(4);
    const soaking = new Promise<void>((resolve) => {
      clock.at.push({
        ms: 6000,
        run: () => {
          clock.hold = true;
        },
      });
      clock.held = resolve;
    });
    await rollouts.start(plan);
    await soaking;
    // The control side dies here: nothing of it goes on, its file stays
    const second = controller();
    expect(second.status()).toMatchObject({ status: "interrupted", phase: "soaking", wave: 0 });
    clock.hold = false;
    await second.resume();
    expect((await ended(second)).status).toBe("done");
    expect(host.on("kvm2")).toEqual([1, 2, 3, 4]);
    expect(host.calls.filter((call) => call === "upgrade 1").length).toBe(1);
  });

  it("plans anew on another host, whose pids mean other VMs", async () => {
    const { clock, host, rollouts, controller } = setUp(4);
    const soaking = new Promise<void>((resolve) => {
      clock.at.push({
        ms: 6000,
        run: () => {
          clock.hold = true;
        },
      });
      clock.held = resolve;
    });
    await rollouts.start(plan);
    await soaking;
    for (const vm of host.vms) vm.module = "kvm1";
    host.instance = "second";
    clock.hold = false;
    const second = controller();
    expect(second.status().vms.map((vm) => vm.state)).toEqual(["gone", "gone", "gone", "gone"]);
    await second.resume();
    expect((await ended(second)).vms.map((vm) => vm.state)).toEqual(["healthy", "healthy", "healthy", "healthy"]);
  });

  it("shows what would move, and begins nothing that is blocked", async () => {
    const { host, rollouts } = setUp(3);
    host.vms[2]!.pid = 99;
    const preview = await rollouts.preview({ ...plan, waves: [1, "100%"] });
    expect(preview.waves.map((wave) => wave.map(({ pid, blocker }) => [pid, blocker]))).toEqual([
      [[1, null]],
      [
        [2, null],
        [99, "it is too old"],
      ],
    ]);
    await expect(rollouts.start(plan)).rejects.toThrow("process 99: it is too old");
    await expect(rollouts.start({ ...plan, from: "kvm7" })).rejects.toThrow("no VM is on kvm7");
    expect(host.calls).toEqual([]);
    expect(() => rollouts.status()).toThrow("there was no rollout");
  });

  it("refuses a state that is damaged or of another format", () => {
    const { path, controller } = setUp();
    writeFileSync(path, "{");
    expect(controller).toThrow("is damaged");
    writeFileSync(path, '{"format": 2}');
    expect(controller).toThrow("has format 2, of another mkvm");
  });
});
