/** An engine that runs no code: each `run` calls a script, which may decide for an exit through the guest-mode interface. */
import type { CpuModel } from "../src/engine/cpu.ts";
import { CPU_STATE, state } from "../src/engine/cpu-state.ts";
import { type EngineCounts, EXIT_REASONS } from "../src/engine/engine-statistics.ts";
import { type GuestMode, VM_EXIT } from "../src/engine/guest-mode.ts";
import type { GuestEvent, StopReason } from "../src/engine/system-interface.ts";
import type { EngineFactory } from "../src/logical-cpu-core.ts";
import type { GuestEngine } from "../src/root-interface.ts";

export type Script = (engine: FakeEngine, instructions: number) => StopReason | undefined;

export class FakeEngine {
  readonly u8: Uint8Array;
  readonly u32: Uint32Array;
  readonly u64: BigUint64Array;
  readonly view: DataView;
  readonly bankBytes: number;
  readonly model: CpuModel;
  guest: GuestMode;
  readonly exitCounts = new Float64Array(EXIT_REASONS);
  operation = 0;
  length = 2;
  pendingTrap = 0;
  holdsTraps = false;
  #left = false;
  readonly delivered: GuestEvent[] = [];
  #retired = 0;
  readonly #script: Script;

  constructor(memory: WebAssembly.Memory, model: CpuModel, guest: GuestMode, script: Script) {
    this.u8 = new Uint8Array(memory.buffer);
    this.u32 = new Uint32Array(memory.buffer);
    this.u64 = new BigUint64Array(memory.buffer);
    this.view = new DataView(memory.buffer);
    this.bankBytes = memory.buffer.byteLength;
    this.model = model;
    this.guest = guest;
    this.#script = script;
  }

  step(): StopReason {
    return this.run(1);
  }
  run(instructions: number): StopReason {
    this.#left = false;
    try {
      const reason = this.#script(this, instructions);
      if (this.#left) return "exit";
      if (reason === undefined) this.#retired += instructions;
      return reason ?? "budget";
    } catch (thrown) {
      if (thrown === VM_EXIT) return "exit";
      throw thrown;
    }
  }
  leave(): void {
    this.#left = true;
  }
  retire(count: number): void {
    this.#retired += count;
  }
  retired(): number {
    return this.#retired;
  }
  settleShadow(): void {}
  adoptState(from: Uint8Array): void {
    this.u8.set(from, CPU_STATE);
  }
  deliverEvent(event: GuestEvent): void {
    this.delivered.push({ ...event });
  }
  get64(offset: number): bigint {
    return this.u64[offset >>> 3] as bigint;
  }
  set64(offset: number, value: bigint): void {
    this.u64[offset >>> 3] = value;
  }
  readFlags(): number {
    return this.u32[state.systemFlags >>> 2] as number;
  }
  setFlags(value: number): void {
    this.u32[state.systemFlags >>> 2] = value;
  }
  instructionLength(): number {
    return this.length;
  }
  updateSegments(): void {}
  updateTags(): void {}
  debugStateChanged(): void {}
  counts(): EngineCounts {
    throw new Error("the fake engine translates nothing");
  }
}

/** `engines` collects what was made. The fake has what the VMX unit uses of an engine. */
export function fakeEngines(script: Script, engines: FakeEngine[] = []): EngineFactory {
  return ({ memory, model, guest }) => {
    const engine = new FakeEngine(memory, model, guest, script);
    engines.push(engine);
    return engine as unknown as GuestEngine;
  };
}
