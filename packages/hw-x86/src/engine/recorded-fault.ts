/** The exception of the instruction at hand: recorded, thrown through generated code, and told again to whoever delivers it. */
import type { Cpu } from "./cpu.ts";
import { state } from "./cpu-state.ts";
import { GUEST_FAULT } from "./guest-mode.ts";
import { block, op } from "./operation.ts";
import { Vector } from "./system/bits.ts";
import type { GuestEvent } from "./system-interface.ts";

const VECTOR = state.faultVector >>> 2;
const ERROR = state.faultError >>> 2;
const HAS_ERROR = state.faultHasError >>> 2;
const LOGGED_BYTES = 15;

export class RecordedFault {
  readonly #cpu: Cpu;
  readonly #log: (line: string) => void;
  readonly #logged = new Set<string>();
  /** 3, or 5 and 6 for INT1, INT3 and INTO. */
  #type: 3 | 5 | 6 = 3;
  #payload = 0n;

  constructor(cpu: Cpu, log: (line: string) => void) {
    this.#cpu = cpu;
    this.#log = log;
  }

  raise(vector: number, errorCode: number | undefined, payload: bigint): never {
    this.#type = 3;
    this.#record(vector, errorCode, payload);
    throw GUEST_FAULT;
  }
  /** From the row of an instruction; an error below 0 is none. */
  raiseFromRow(vector: number, error: number): never {
    this.#record(vector, error < 0 ? undefined : error, 0n);
    if (vector === Vector.DB) this.#type = 5;
    else this.#type = vector === Vector.BP || vector === Vector.OF ? 6 : 3;
    throw GUEST_FAULT;
  }
  #record(vector: number, errorCode: number | undefined, payload: bigint): void {
    const { u32 } = this.#cpu;
    u32[VECTOR] = vector;
    u32[ERROR] = errorCode ?? 0;
    u32[HAS_ERROR] = errorCode === undefined ? 0 : 1;
    this.#payload = payload;
  }

  /** What was recorded, to be delivered. */
  event(): GuestEvent {
    const { u32 } = this.#cpu;
    const type = this.#type;
    return {
      vector: u32[VECTOR],
      type,
      errorCode: u32[HAS_ERROR] !== 0 ? u32[ERROR] : undefined,
      // INT1, INT3 and INTO have one byte
      instructionLength: type === 3 ? 0 : 1,
      payload: this.#payload,
      injected: false,
    };
  }

  /** #UD for bytes that are no instruction, which are logged once. */
  undefinedInstruction(): never {
    const cpu = this.#cpu;
    const start = cpu.u32[state.blockStart >>> 2];
    const at = cpu.u32[(start + block.physical) >>> 2] + cpu.u16[(cpu.operation + op.ripOffset) >>> 1];
    const bytes = [...cpu.u8.subarray(at, at + LOGGED_BYTES)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    if (!this.#logged.has(bytes)) {
      this.#logged.add(bytes);
      this.#log(`#UD at RIP ${cpu.get64(state.rip).toString(16)}: not implemented or undefined: ${bytes}`);
    }
    return this.raise(Vector.UD, undefined, 0n);
  }
}
