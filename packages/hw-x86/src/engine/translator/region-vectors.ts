/** The part of the region emitter that deals with vector and MMX operands. */
import { state } from "../cpu-state.ts";
import type { Vec } from "../emitter.ts";
import type { FormOperand } from "../instruction.ts";
import { makeResult, NO_ARGUMENTS, NOTHING, type Node, OTHER, VECTOR } from "../interpreter/schedule.ts";
import { asInt, asVec, constant32, constant64, nodeOf } from "../node-values.ts";
import { NO_FACTS, type StateFact, type VectorFact, withFact } from "./facts.ts";
import { RegionMemory } from "./region-memory.ts";
import { UPPER_HALVES, VectorRegisters } from "./vector-registers.ts";

/** From a register's lower half to its upper one, in bytes. */
const UPPER_HALF = state.ymmHigh - state.xmm;
const VECTOR_LOADS: Readonly<Record<number, string>> = { 32: "v128.load32_zero", 64: "v128.load64_zero", 128: "v128.load" };

export abstract class RegionVectors extends RegionMemory {
  /** Registers that vectors were read from, and what is known of vectors. */
  #sources: Map<Node, number> | undefined;
  #vectorFacts: Map<Node, ReadonlySet<VectorFact>> | undefined;

  override knows(fact: StateFact): boolean {
    if (fact === "sse") {
      // Nothing in a region changes that
      this.frame.usesSse = true;
      return true;
    }
    if (fact === "avx") {
      this.frame.usesAvx = true;
      return true;
    }
    return this.frame.facts.knows(fact);
  }
  override learn(fact: StateFact): void {
    if (this.depth === 0) this.frame.facts.learn(fact);
  }
  override knowsOf(value: Vec, fact: VectorFact): boolean {
    return this.#vectorFacts?.get(nodeOf(value))?.has(fact) ?? false;
  }
  override learnOf(value: Vec, fact: VectorFact): void {
    if (this.depth > 0) return;
    const node = nodeOf(value);
    const facts = withFact(this.#vectorFacts?.get(node) ?? NO_FACTS, fact);
    this.#noteFacts(node, facts);
    const source = this.#sources?.get(node);
    if (source !== undefined) this.frame.facts.setVector(source, facts);
  }
  #noteFacts(value: Node, facts: ReadonlySet<VectorFact>): void {
    this.#vectorFacts ??= new Map();
    this.#vectorFacts.set(value, facts);
  }
  protected vectorPlace(access: { readonly field: "a" | "b" | "c" | "immediate" }): number {
    return Number(this.record[access.field]);
  }
  protected vectorRegister(offset: number): Node {
    const index = VectorRegisters.indexOf(offset);
    const local = this.frame.vectors.local(index, false);
    const node = this.value("v128", NO_ARGUMENTS, (c) => c.get(local), VECTOR);
    this.#sources ??= new Map();
    this.#sources.set(node, index);
    this.#noteFacts(node, this.frame.facts.ofVector(index));
    return node;
  }
  #writeRegisterVector(offset: number, value: Node): void {
    const index = VectorRegisters.indexOf(offset);
    const local = this.frame.vectors.local(index, true);
    this.hasWritten = true;
    this.effect([value], VECTOR, (c) => c.set(local));
    this.#sources = undefined;
    this.frame.facts.setVector(index, this.depth === 0 ? (this.#vectorFacts?.get(value) ?? NO_FACTS) : NO_FACTS);
  }

  protected readPair(operand: FormOperand): readonly [Vec, Vec] {
    const access = this.access(operand);
    if (access.kind === "xmm") {
      const place = this.vectorPlace(access);
      return [asVec(this.vectorRegister(place)), asVec(this.vectorRegister(place + UPPER_HALF))];
    }
    const place = this.probe(this.linear(operand, 256, false), 32, false);
    const part = (offset: number): Vec => {
      const value = makeResult("v128");
      this.effect([place], NOTHING, (c) => c.memory("v128.load", offset), value);
      return asVec(value);
    };
    return [part(0), part(16)];
  }
  writeHalves(operand: FormOperand, low: Vec, high: Vec): void {
    const access = this.access(operand);
    if (access.kind === "xmm") {
      const place = this.vectorPlace(access);
      this.#writeRegisterVector(place + UPPER_HALF, nodeOf(high));
      this.#writeRegisterVector(place, nodeOf(low));
      return;
    }
    this.storeThrough(this.linear(operand, 256, true), [nodeOf(low), nodeOf(high)], 32, "v128.store");
  }
  zeroVectors(which: "upper" | "all"): void {
    this.hasWritten = true;
    const registers = Array.from({ length: this.frame.codeSize === 64 ? 16 : 8 }, (_, i) => i);
    const halves = registers.flatMap((index) => (which === "all" ? [index, index + UPPER_HALVES] : [index + UPPER_HALVES]));
    this.effect(NO_ARGUMENTS, VECTOR, (c) => {
      for (const index of halves) this.frame.vectors.zero(c, index);
    });
    this.#sources = undefined;
    for (const index of halves) this.frame.facts.setVector(index, NO_FACTS);
  }
  fusedMultiplyAdd(bits: 32 | 64, lanes: number, a: Vec, b: Vec, c: Vec): Vec {
    const { support } = this.frame;
    const kind = [bits === 64 ? 1 : 0, lanes].map((value) => constant32(value));
    const args = [...kind, ...[a, b, c].map(nodeOf)];
    return asVec(this.value("v128", args, (code) => code.call(support.fusedMultiplyAdd), OTHER));
  }

  protected readVector(operand: FormOperand): Vec {
    const access = this.access(operand);
    switch (access.kind) {
      case "xmm":
        return asVec(this.vectorRegister(this.vectorPlace(access)));
      case "mm": {
        const offset = this.record[access.field];
        return asVec(this.value("v128", NO_ARGUMENTS, (c) => c.loadAt("v128.load64_zero", offset), OTHER));
      }
      case "memory": {
        const load = VECTOR_LOADS[access.size];
        if (load === undefined) return this.fail(`no vector of ${access.size} bits`);
        const place = this.probe(this.linear(operand, access.size, false), access.size / 8, false);
        const value = makeResult("v128");
        this.effect([place], NOTHING, (c) => c.memory(load, 0), value);
        return asVec(value);
      }
      default:
        return this.fail(`${operand.text} is no vector`);
    }
  }
  protected writeVector(operand: FormOperand, value: Vec): void {
    const access = this.access(operand);
    const lane = (): Node => this.value("i64", [nodeOf(value)], (c) => c.lane("i64x2.extract_lane", 0));
    switch (access.kind) {
      case "xmm":
        this.#writeRegisterVector(this.vectorPlace(access), nodeOf(value));
        return;
      case "mm":
        this.writeMmx(this.record[access.field], lane());
        return;
      case "memory":
        if (access.size === 128) this.storeVector(this.linear(operand, 128, true), nodeOf(value));
        else this.storeLow(this.linear(operand, access.size, true), access.size === 32 ? 32 : 64, nodeOf(value));
        return;
      default:
        this.fail(`${operand.text} is no vector`);
    }
  }
  protected checkAlignment(operand: FormOperand, bytes: number): void {
    // Whether the limit is passed makes no difference: both are the interpreter's
    const { node } = this.linear(operand, 8, false);
    this.raiseIf(this.ne(asInt(this.mask(node, BigInt(bytes - 1))), this.int(0)), "#GP", 0);
  }

  protected storeState(offset: number, store: string, value: Node): void {
    this.effect([constant32(0), value], OTHER, (c) => c.memory(store, offset));
  }
  protected writeMmx(offset: number, value: Node): void {
    this.hasWritten = true;
    this.storeState(offset, "i64.store", value);
    this.storeState(offset + 8, "i64.store16", constant64(0xffffn));
  }
}
