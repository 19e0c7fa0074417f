/** The part of the interpreter's emitter that deals with vector and MMX operands. */
import { state } from "../cpu-state.ts";
import type { Vec } from "../emitter.ts";
import type { FormOperand } from "../instruction.ts";
import { asInt, asVec, constant32, integerSize, nodeOf } from "../node-values.ts";
import { InterpreterMemory } from "./interpreter-memory.ts";
import { makeResult, NOTHING, type Node, OTHER, VECTOR } from "./schedule.ts";

/** From a register's lower half to its upper one, in bytes. */
const UPPER_HALF = state.ymmHigh - state.xmm;
const ZEROS: readonly number[] = Array<number>(16).fill(0);

export abstract class InterpreterVectors extends InterpreterMemory {
  protected readVector(operand: FormOperand): Vec {
    const access = this.access(operand);
    switch (access.kind) {
      case "xmm":
        return asVec(this.value("v128", [this.fieldOf(access)], (c) => c.memory("v128.load", 0), VECTOR));
      case "mm":
        return asVec(this.value("v128", [this.fieldOf(access)], (c) => c.memory("v128.load64_zero", 0), OTHER));
      case "memory": {
        const load = ({ 32: "v128.load32_zero", 64: "v128.load64_zero", 128: "v128.load" } as Record<number, string>)[
          access.size
        ];
        if (load === undefined) return this.fail(`no vector of ${access.size} bits`);
        const linear = this.linear(operand, access.size / 8);
        const { common } = this.target;
        const place = makeResult("i32");
        if (this.target.main !== undefined)
          this.effect([linear], NOTHING, (c, scope) => this.probe(c, scope, false, access.size / 8), place);
        else this.effect([this.pc, linear, constant32(access.size / 8)], NOTHING, (c) => c.call(common.readProbe), place);
        const value = makeResult("v128");
        this.effect([place], NOTHING, (c) => c.memory(load, 0), value);
        return asVec(value);
      }
      default:
        return this.fail(`${operand.text} is no vector`);
    }
  }
  protected readPair(operand: FormOperand): readonly [Vec, Vec] {
    const access = this.access(operand);
    let place: Node;
    let upper = 16;
    let reads = NOTHING;
    if (access.kind === "xmm") {
      place = this.fieldOf(access);
      upper = UPPER_HALF;
      reads = VECTOR;
    } else {
      place = makeResult("i32");
      const { common } = this.target;
      this.effect([this.pc, this.linear(operand, 32), constant32(32)], NOTHING, (c) => c.call(common.readProbe), place);
    }
    const part = (offset: number): Vec => {
      if (reads !== NOTHING) return asVec(this.value("v128", [place], (c) => c.memory("v128.load", offset), reads));
      const value = makeResult("v128");
      this.effect([place], NOTHING, (c) => c.memory("v128.load", offset), value);
      return asVec(value);
    };
    return [part(0), part(upper)];
  }
  writeHalves(operand: FormOperand, low: Vec, high: Vec): void {
    const access = this.access(operand);
    if (access.kind === "xmm") {
      const place = this.fieldOf(access);
      this.effect([place, nodeOf(high)], VECTOR, (c) => c.memory("v128.store", UPPER_HALF));
      this.effect([place, nodeOf(low)], VECTOR, (c) => c.memory("v128.store", 0));
      return;
    }
    const linear = this.linear(operand, 32, true);
    const { common } = this.target;
    this.effect([this.pc, linear, nodeOf(low), nodeOf(high)], NOTHING, (c) => c.call(common.writePair));
  }
  zeroVectors(which: "upper" | "all"): void {
    const zero = (first: number): void => {
      for (const file of which === "all" ? [state.xmm, state.ymmHigh] : [state.ymmHigh]) {
        this.effect([], VECTOR, (c) => {
          for (let i = first; i < first + 8; i++)
            c.i32(0)
              .v128(ZEROS)
              .memory("v128.store", file + i * 16);
        });
      }
    };
    zero(0);
    this.if(this.eq(this.state(state.codeSize, 32), this.int(64)), () => zero(8));
  }
  protected writeVector(operand: FormOperand, value: Vec): void {
    const access = this.access(operand);
    switch (access.kind) {
      case "xmm":
        this.effect([this.fieldOf(access), nodeOf(value)], VECTOR, (c) => c.memory("v128.store", 0));
        return;
      case "mm":
        this.effect(
          [this.fieldOf(access), this.value("i64", [nodeOf(value)], (c) => c.lane("i64x2.extract_lane", 0))],
          OTHER,
          (c) => c.memory("i64.store", 0),
        );
        this.markMmx(access);
        return;
      case "memory": {
        const linear = this.linear(operand, access.size / 8, true);
        const { common } = this.target;
        if (access.size === 128) {
          this.effect([this.pc, linear, nodeOf(value)], NOTHING, (c) => c.call(common.write[4] as number));
        } else {
          const lane = this.value("i64", [nodeOf(value)], (c) => c.lane("i64x2.extract_lane", 0));
          this.storeGuest(linear, integerSize(access.size), lane);
        }
        return;
      }
      default:
        this.fail(`${operand.text} is no vector`);
    }
  }
  protected checkAlignment(operand: FormOperand, bytes: number): void {
    const offset = this.operation("i64.add", [nodeOf(this.address(operand)), this.segmentBase()]);
    this.raiseIf(this.ne(asInt(this.mask(offset, BigInt(bytes - 1))), this.int(0)), "#GP", 0);
  }
}
