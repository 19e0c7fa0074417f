/**
 * The code of a region's function: (first operation) -> 0 with `state.rip` set, or the next operation; or it goes on in the next region by a
 * tail call.
 */
import { emitUnlessInPage } from "../block-tables.ts";
import { gprOffset, state } from "../cpu-state.ts";
import type { RegionSupport } from "../interpreter/region-support.ts";
import { type Statement, schedule } from "../interpreter/schedule.ts";
import { maskOf } from "../node-values.ts";
import { block, OP_BYTES } from "../operation.ts";
import { Code, type Label } from "../wasm/code.ts";
import type { FunctionBuilder } from "../wasm/module-builder.ts";
import { planBudgetChecks } from "./budget-checks.ts";
import { returnUnlessInRange } from "./code-range.ts";
import { returnUnlessAvx, returnUnlessSse, returnUnlessStack } from "./entry-checks.ts";
import {
  emitSettle,
  emitTransition,
  type FlagState,
  isSameState,
  meetFlags,
  mixedFlags,
  SETTLED,
  UNKNOWN_FLAGS,
  WORDS,
} from "./flag-state.ts";
import type { Flow } from "./flow.ts";
import { NO_PAGE } from "./place-cache.ts";
import { type Ending, pageOf, type Region, type RegionBlock, type RegionFrame, Untranslatable } from "./region.ts";
import { type EmittedOperation, RegionEmitter } from "./region-emitter.ts";
import { createFrame } from "./region-frame.ts";
import type { RegionLayout } from "./region-layout.ts";

/** `next` after a miss that returned 0. */
const RESUME = -1;

/** What a block's operations came to, before any code is emitted. */
interface BuiltBlock {
  readonly operations: readonly EmittedOperation[];
  /** Operation at which the interpreter goes on, 0 when the block is translated to its end. */
  readonly stopped: number;
  /** Where the flags are at its start and behind it. */
  readonly flagsBefore: FlagState;
  readonly flagsBehind: FlagState;
}

export class RegionFunction {
  readonly #region: Region;
  readonly #flow: Flow;
  readonly #frame: RegionFrame;
  readonly #code: Code;
  readonly #labels = new Map<RegionBlock, Label>();
  readonly #byOffset: ReadonlyMap<number, RegionBlock>;
  readonly #built = new Map<RegionBlock, BuiltBlock>();
  readonly #returnSites: readonly RegionBlock[];
  /** Locals for the comparison of a page that is gone to. */
  readonly #crossing: { readonly found: number; readonly rest: number; readonly entry: number };
  /** Pages known to lie where the region expects them, by bit, see `#pageBit`. */
  readonly #pagesMet: number;
  /** Of each block, by operation, less the flags that nobody reads. */
  readonly #statements = new Map<RegionBlock, readonly (readonly Statement[])[]>();
  /** Blocks that are entered with flags which nobody looks at any more. */
  readonly #flagsDead = new Set<RegionBlock>();
  /** Distances of pages from the head's; the index is the bit. */
  readonly #pageDistances: number[] = [];
  readonly #checks: ReadonlyMap<RegionBlock, number>;

  constructor(region: Region, flow: Flow, fn: FunctionBuilder, support: RegionSupport, layout: RegionLayout) {
    this.#region = region;
    this.#flow = flow;
    this.#frame = createFrame(region, fn, support, layout);
    this.#code = fn.code;
    this.#crossing = { found: fn.allocate("i64"), rest: fn.allocate("i64"), entry: fn.allocate("i32") };
    this.#pagesMet = fn.allocate("i32");
    this.#returnSites = region.returnSites;
    this.#checks = planBudgetChecks(flow);
    this.#byOffset = new Map(region.blocks.map((block) => [block.offset, block]));
  }

  /** Number of instructions translated. */
  emit(): number {
    const frame = this.#frame;
    const c = this.#code;
    this.#buildAll();
    this.#dropDeadFlags();
    frame.places.choose();
    frame.exit = c.block();
    frame.bail = c.block();
    this.#tree(this.#flow.root);
    c.op("unreachable").end();
    c.i32(RESUME).set(frame.next);
    c.end();
    this.#epilogue();
    // What the body turned out to need is loaded before it
    const prologue = new Code();
    this.#prologue(prologue);
    c.prepend(prologue);
    return this.#region.blocks.reduce((sum, own) => sum + (this.#built.get(own)?.operations.length ?? 0), 0);
  }

  #prologue(c: Code): void {
    const { gpr, usedRegisters, writtenRegisters, base, budget, entry, codeSize, range } = this.#frame;
    const { usesSse, usesAvx, usesStackMask, stackMask, layout } = this.#frame;
    if (usesSse) returnUnlessSse(c);
    if (usesAvx) returnUnlessAvx(c);
    if (usesStackMask) returnUnlessStack(c, stackMask);
    gpr.forEach((local, index) => {
      if ((((usedRegisters | writtenRegisters) >>> index) & 1) !== 0) c.loadAt("i64.load", gprOffset(index)).set(local);
    });
    this.#frame.vectors.load(c);
    for (const { page } of this.#frame.places.all()) c.i32(0).i64(NO_PAGE).memory("i64.store", page);
    // The interpreter has charged for the block entered, which charges for itself
    const header = (): Code => c.get(0).i32(OP_BYTES).op("i32.sub");
    c.loadAt("i32.load", state.budget);
    header().memory("i32.load", block.count).op("i32.add").set(budget);
    c.loadAt("i64.load", state.blockRip);
    const { entries } = this.#flow;
    if (entries.length > 1) {
      header().memory("i32.load", block.entries).set(entry);
      layout.choose(
        c,
        entry,
        entries.map(({ offset }) => offset),
      );
    } else {
      c.i64(BigInt(this.#region.head.offset));
    }
    c.op("i64.sub").set(base);
    // Of several entries it is left open which page is met first
    if (entries.length === 1 && this.#pageDistances.length > 0) c.i32(this.#pageBit(this.#region.head)).set(this.#pagesMet);
    if (range !== undefined) returnUnlessInRange(c, base, codeSize, range);
  }

  #epilogue(): void {
    const c = this.#code;
    const { gpr, writtenRegisters, support, budget, next, header, rip } = this.#frame;
    const { flagKind, flagFirst, flagSecond, flagResult, flagCarry, flagOverflow } = this.#frame;
    gpr.forEach((local, index) => {
      if (((writtenRegisters >>> index) & 1) !== 0) c.i32(0).get(local).memory("i64.store", gprOffset(index));
    });
    this.#frame.vectors.store(c);
    c.get(flagKind).if();
    c.get(flagKind).get(flagFirst).get(flagSecond).get(flagResult).get(flagCarry).get(flagOverflow).call(support.saveFlags);
    c.end();
    c.i32(0).get(budget).memory("i32.store", state.budget);
    c.get(next).op("i32.eqz").if();
    c.get(rip).returnCall(support.goOn).end();
    c.get(next).i32(RESUME).op("i32.eq").if();
    c.call(support.regionResume).return().end();
    c.get(header).call(support.moveTo).get(next);
  }

  // ---- Control flow ----

  #tree(block: RegionBlock): void {
    const c = this.#code;
    const isLoop = this.#flow.loopHeaders.has(block);
    if (isLoop) {
      this.#labels.set(block, c.loop());
    }
    const merges = this.#flow.dominated.get(block) ?? [];
    for (const merge of [...merges].reverse()) this.#labels.set(merge, c.block());
    this.#block(block);
    for (const merge of merges) {
      c.end();
      this.#tree(merge);
    }
    if (isLoop) c.op("unreachable").end();
  }

  /** Goes on at a distance from the start of the head's page. */
  #edge(from: RegionBlock, offset: number): void {
    // A loop's next round may be another copy of its block
    const to = from.successors.find((next) => next.offset === offset) ?? this.#byOffset.get(offset);
    const { root, entries } = this.#flow;
    if (to !== undefined && pageOf(to) !== pageOf(from)) this.#cross(to, this.#behind(from));
    if (to !== undefined && !from.successors.includes(to) && entries.includes(to) && from.successors.includes(root)) {
      emitSettle(this.#code, this.#frame, this.#behind(from));
      this.#code
        .i32(entries.indexOf(to))
        .set(this.#frame.entry)
        .br(this.#labels.get(root) as Label);
      return;
    }
    if (to === undefined || !from.successors.includes(to)) {
      this.#pushRip(offset);
      this.#code.set(this.#frame.rip);
      this.#exit(this.#behind(from));
      return;
    }
    if (!this.#flagsDead.has(to)) {
      emitTransition(this.#code, this.#frame, this.#behind(from), (this.#built.get(to) as BuiltBlock).flagsBefore);
    }
    const isBack = (this.#flow.order.get(to) as number) <= (this.#flow.order.get(from) as number);
    if (isBack || this.#flow.merges.has(to)) this.#code.br(this.#labels.get(to) as Label);
    else this.#tree(to);
  }
  /** Goes on there if that is where `rip` leads. */
  #edgeIf(from: RegionBlock, offset: number): void {
    const c = this.#code;
    c.get(this.#frame.rip);
    this.#pushRip(offset);
    c.op("i64.eq").if();
    this.#edge(from, offset);
    c.end();
  }
  /** Bit of the page that the block lies in. */
  #pageBit(block: RegionBlock): number {
    const known = this.#pageDistances.indexOf(pageOf(block));
    return 1 << (known >= 0 ? known : this.#pageDistances.push(pageOf(block)) - 1);
  }
  /**
   * Into another page: leaves unless that is where its address leads, as a lookup would find. Inside a region neither the code TLB nor
   * decoded code changes, since what changes them leaves it first; so each page is looked at once.
   */
  #cross(to: RegionBlock, flags: FlagState): void {
    const c = this.#code;
    const { rip, layout } = this.#frame;
    this.#pushRip(to.offset);
    c.set(rip);
    const bit = this.#pageBit(to);
    c.get(this.#pagesMet).i32(bit).op("i32.and").op("i32.eqz").ifUnlikely();
    emitUnlessInPage(c, { rip, ...this.#crossing }, () => layout.page(c, to));
    this.#exit(flags);
    c.end();
    c.get(this.#pagesMet).i32(bit).op("i32.or").set(this.#pagesMet);
    c.end();
    // Misses and exits tell RIP by the distance from the running block, in memory
    c.i32(0).get(rip).memory("i64.store", state.blockRip);
    c.i32(0);
    layout.header(c, to);
    c.memory("i32.store", state.blockStart);
  }
  /** `rip` is set. */
  #exit(flags: FlagState): void {
    emitSettle(this.#code, this.#frame, flags);
    this.#code.i32(0).set(this.#frame.next).br(this.#frame.exit);
  }
  #pushRip(offset: number): void {
    const c = this.#code;
    c.get(this.#frame.base).i64(offset).op("i64.add");
    const { codeSize } = this.#frame;
    if (codeSize !== 64) c.i64(maskOf(codeSize)).op("i64.and");
  }

  // ---- Blocks ----

  /** Takes the block's instructions off the budget. Where that does not last, the interpreter runs it, to the instruction. */
  #charge(block: RegionBlock): void {
    const { budget, rip, next, header, exit, layout } = this.#frame;
    const c = this.#code;
    const need = this.#checks.get(block);
    if (need !== undefined) {
      c.get(budget).i32(need).op("i32.lt_s").ifUnlikely();
      emitSettle(c, this.#frame, (this.#built.get(block) as BuiltBlock).flagsBefore);
      if (need > block.count) {
        c.get(budget).i32(block.count).op("i32.ge_s").if();
        c.get(budget).i32(block.count).op("i32.sub").set(budget);
        layout.firstOperation(c, block);
        c.set(next);
        layout.header(c, block);
        c.set(header).br(exit).end();
      }
      this.#pushRip(block.offset);
      c.set(rip).i32(0).set(next).br(exit).end();
    }
    c.get(budget).i32(block.count).op("i32.sub").set(budget);
  }

  /**
   * Builds every block, in an order in which those that go forward to one come before it. Blocks that loops begin with are built
   * again once it is known what flags their loops leave.
   */
  #buildAll(): void {
    const { order, loopHeaders, root, entries } = this.#flow;
    const blocks = [...order.keys()];
    const predecessors = new Map<RegionBlock, RegionBlock[]>(blocks.map((block) => [block, []]));
    for (const block of blocks) for (const next of block.successors) predecessors.get(next)?.push(block);
    const isDispatched = new Set(root.ending.kind === "dispatch" ? [root, ...entries] : []);
    const { facts } = this.#frame;
    const factsBehind = new Map<RegionBlock, () => void>();
    /** Loops whose rounds turned out to leave other flags than the way in does. */
    const mixed = new Set<RegionBlock>();
    const buildFrom = (isFirst: boolean): void => {
      for (const block of blocks) {
        const before = predecessors.get(block) as RegionBlock[];
        const isLoop = loopHeaders.has(block);
        let flags = SETTLED;
        if (!isDispatched.has(block) && !(isLoop && isFirst)) {
          const arriving = before.map((from) => this.#behind(from));
          if (block === root) arriving.unshift(WORDS);
          const isBack = (from: RegionBlock): boolean => (order.get(from) as number) >= (order.get(block) as number);
          flags = meetFlags(arriving);
          if (isLoop && (flags.isMixed || mixed.has(block)))
            flags = mixedFlags(before.filter(isBack).map((from) => this.#behind(from)));
        }
        const known = this.#built.get(block);
        if (known !== undefined && isSameState(known.flagsBefore, flags)) continue;
        facts.forgetAll();
        if (!isLoop && !this.#flow.merges.has(block) && before[0] !== undefined) factsBehind.get(before[0])?.();
        this.#built.set(block, this.#build(block, flags));
        factsBehind.set(block, facts.save());
      }
    };
    buildFrom(true);
    for (let isStable = loopHeaders.size === 0; !isStable; ) {
      buildFrom(false);
      isStable = true;
      for (const header of loopHeaders) {
        const { flagsBefore } = this.#built.get(header) as BuiltBlock;
        if (flagsBefore.isMixed || flagsBefore.kind === UNKNOWN_FLAGS) continue;
        if ((predecessors.get(header) as RegionBlock[]).every((from) => isSameState(this.#behind(from), flagsBefore))) continue;
        mixed.add(header);
        isStable = false;
      }
    }
    for (const { operations } of this.#built.values()) {
      for (const { places, loopDepth } of operations) for (const key of places) this.#frame.places.note(key, loopDepth);
    }
  }
  /** From behind, so that it is known of each block whether the next one needs its flags. */
  #dropDeadFlags(): void {
    for (const block of [...this.#flow.order.keys()].reverse()) {
      const { operations } = this.#built.get(block) as BuiltBlock;
      const { statements, isLive } = withoutDeadFlags(operations, this.#leavesFlags(block));
      this.#statements.set(block, statements);
      // One that asks for the budget may be left at its start, with the flags that it found; loops begin with one that does
      if (!isLive && !this.#checks.has(block)) this.#flagsDead.add(block);
    }
  }
  /** Someone may look at the flags behind the block. */
  #leavesFlags(block: RegionBlock): boolean {
    const { ending, successors } = block;
    if ((this.#built.get(block) as BuiltBlock).stopped > 0) return true;
    const targets = targetsOf(ending);
    if (targets === undefined) return true;
    return targets.some((offset) => {
      const to = successors.find((next) => next.offset === offset);
      return to === undefined || pageOf(to) !== pageOf(block) || !this.#flagsDead.has(to);
    });
  }
  #behind(block: RegionBlock): FlagState {
    return (this.#built.get(block) as BuiltBlock).flagsBehind;
  }
  #build(block: RegionBlock, flagsBefore: FlagState): BuiltBlock {
    let flags = flagsBefore;
    const operations: EmittedOperation[] = [];
    const depth = this.#flow.depth.get(block) as number;
    for (const record of block.operations) {
      try {
        const operation = new RegionEmitter(this.#frame, record, block, depth, flags).build();
        flags = operation.flags;
        operations.push(operation);
      } catch (thrown) {
        if (!(thrown instanceof Untranslatable)) throw thrown;
        return { operations, stopped: record.at, flagsBefore, flagsBehind: flags };
      }
    }
    const stopped = block.ending.kind === "interpreter" ? block.ending.at : 0;
    return { operations, stopped, flagsBefore, flagsBehind: flags };
  }

  #block(block: RegionBlock): void {
    if (block.count > 0) this.#charge(block);
    const { stopped, flagsBehind } = this.#built.get(block) as BuiltBlock;
    for (const statements of this.#statements.get(block) ?? []) schedule(statements, this.#frame.fn);
    if (stopped > 0) {
      emitSettle(this.#code, this.#frame, flagsBehind);
      const { next, header, exit, layout } = this.#frame;
      layout.operation(this.#code, block, stopped);
      this.#code.set(next);
      layout.header(this.#code, block);
      this.#code.set(header).br(exit);
      return;
    }
    this.#ending(block);
  }

  #ending(block: RegionBlock): void {
    const c = this.#code;
    const { ending } = block;
    switch (ending.kind) {
      case "jump":
      case "call":
        this.#edge(block, ending.target);
        return;
      case "branch":
        // Both ways may be one, which is emitted once
        if (ending.taken === ending.next) {
          this.#edge(block, ending.next);
          return;
        }
        c.get(this.#frame.condition).if();
        this.#edge(block, ending.taken);
        c.else();
        this.#edge(block, ending.next);
        c.end();
        return;
      case "return":
        // Calls within the region return to it
        for (const site of this.#returnSites) this.#edgeIf(block, site.offset);
        this.#exit(this.#behind(block));
        return;
      case "indirect":
        if (ending.expected !== undefined && block.successors.length > 0) this.#edgeIf(block, ending.expected);
        this.#exit(this.#behind(block));
        return;
      case "dispatch": {
        const labels = block.successors.map((entry) => this.#labels.get(entry) as Label);
        c.get(this.#frame.entry).brTable(labels, labels[0] as Label);
        return;
      }
      case "interpreter":
        throw new Error("the interpreter's operation was not met");
    }
  }
}

/** Where a block goes by itself; undefined: elsewhere too. */
function targetsOf(ending: Ending): readonly number[] | undefined {
  if (ending.kind === "jump" || ending.kind === "call") return [ending.target];
  return ending.kind === "branch" ? [ending.taken, ending.next] : undefined;
}

const NONE: readonly Statement[] = [];
/**
 * The operations' statements, less the flags that nothing reads before they are all written again. `isLive`: behind them someone may
 * read the flags; in the answer, before them.
 */
function withoutDeadFlags(
  operations: readonly EmittedOperation[],
  isLive: boolean,
): { statements: (readonly Statement[])[]; isLive: boolean } {
  const result = operations.map(({ statements }) => statements);
  for (let i = operations.length - 1; i >= 0; i--) {
    const { statements, flagWrites, releases, writesAllFlags, readsFlags, mayLeave } = operations[i] as EmittedOperation;
    const dead = !isLive ? flagWrites : writesAllFlags ? releases : NONE;
    if (dead.length > 0) result[i] = statements.filter((statement) => !dead.includes(statement));
    if (writesAllFlags) isLive = false;
    if (readsFlags || mayLeave) isLive = true;
  }
  return { statements: result, isLive };
}
