/**
 * From the statements that an instruction's semantics produced to WebAssembly code. Values are expression nodes. A node that is
 * used once is evaluated where it is used, unless something in between writes what it reads; a node that is used more often, or
 * whose use comes too late, goes into a local. What has effects keeps the order of the calls.
 */
import type { Code } from "../wasm/code.ts";
import type { FunctionBuilder } from "../wasm/module-builder.ts";
import type { ValueType } from "../wasm/opcodes.ts";

/** What a node reads and a statement writes: groups of the CPU state, so that unrelated accesses may pass each other. */
export const NOTHING = 0,
  GENERAL = 1,
  FLAGS = 2,
  VECTOR = 4,
  OTHER = 8,
  VARIABLES = 16,
  EVERYTHING = 31;

/** A value. As a statement: the place where it is computed, if nothing keeps it from being computed later. */
export interface Node {
  readonly kind: "value";
  readonly type: ValueType;
  readonly args: readonly Node[];
  /** Emits the instruction itself; the arguments are on the stack. Undefined: it is the one that `name` names. */
  readonly emit: ((code: Code) => void) | undefined;
  readonly reads: number;
  /** i64 nodes: bits above this one are zero. */
  readonly bits: number;
  readonly constant: bigint | undefined;
  /** Name of the WebAssembly instruction, where the node is one without immediates. */
  readonly name: string | undefined;
  uses: number;
  remaining: number;
  local: number;
  loop: number;
  /** It was put off to its only use. */
  isPending: boolean;
  /** What its tree reads while it is pending. */
  pendingReads: number;
  /** Number of the last flush that the statement which caused it consumes this node in. */
  sparedBy: number;
}

export type Statement =
  | Node
  | {
      kind: "effect";
      args: readonly Node[];
      writes: number;
      result: Node | undefined;
      emit: (code: Code, scope: Scope) => void;
    }
  | { kind: "if"; condition: Node; whenTrue: Statement[]; whenFalse: Statement[]; isSeldom?: boolean }
  | { kind: "loop"; body: Statement[]; condition: Node }
  | { kind: "declare"; variable: VariableSlot; initial: Node }
  | { kind: "assign"; variable: VariableSlot; value: Node };

export interface VariableSlot {
  readonly type: ValueType;
  local: number;
}

/** Temporaries for code that a statement emits by itself. */
export interface Scope {
  temporary(type: ValueType): number;
  release(type: ValueType, local: number): void;
}

export function makeNode(
  type: ValueType,
  args: readonly Node[],
  emit: ((code: Code) => void) | undefined,
  reads = NOTHING,
  bits = 64,
  constant?: bigint,
  name?: string,
): Node {
  return {
    kind: "value",
    type,
    args,
    emit,
    reads,
    bits,
    constant,
    name,
    uses: 0,
    remaining: 0,
    local: -1,
    loop: 0,
    isPending: false,
    pendingReads: NOTHING,
    sparedBy: 0,
  };
}
/** A value that an effect leaves. */
export function makeResult(type: ValueType, bits = 64): Node {
  return makeNode(type, NO_ARGUMENTS, nothing, NOTHING, bits);
}
export const NO_ARGUMENTS: readonly Node[] = [];
const nothing = (): void => undefined;

/** Emits all statements of one handler. */
export function schedule(statements: readonly Statement[], target: FunctionBuilder): void {
  new Scheduler(target).run(statements);
}

class Scheduler implements Scope {
  readonly #target: FunctionBuilder;
  readonly #code: Code;
  /** Nodes whose evaluation was put off to their only use, in order of creation; and some that no longer are. */
  readonly #pending: Node[] = [];
  readonly #variables: VariableSlot[] = [];
  readonly #late: Node[] = [];
  #loop = 0;
  #loops = 0;

  constructor(target: FunctionBuilder) {
    this.#target = target;
    this.#code = target.code;
  }

  run(statements: readonly Statement[]): void {
    this.#count(statements);
    this.#emitAll(statements);
    for (const variable of this.#variables) this.#target.release(variable.type, variable.local);
    for (const node of this.#late) this.#target.release(node.type, node.local);
  }

  temporary(type: ValueType): number {
    return this.#target.allocate(type);
  }
  release(type: ValueType, local: number): void {
    this.#target.release(type, local);
  }

  #count(statements: readonly Statement[]): void {
    for (const statement of statements) {
      switch (statement.kind) {
        case "value":
          break;
        case "effect":
          for (const node of statement.args) this.#use(node);
          break;
        case "if":
          this.#use(statement.condition);
          this.#count(statement.whenTrue);
          this.#count(statement.whenFalse);
          break;
        case "loop":
          this.#count(statement.body);
          this.#use(statement.condition);
          break;
        case "declare":
          this.#use(statement.initial);
          break;
        case "assign":
          this.#use(statement.value);
          break;
      }
    }
  }
  #use(node: Node): void {
    node.uses++;
    node.remaining++;
    if (node.uses === 1) for (const argument of node.args) this.#use(argument);
  }

  #emitAll(statements: readonly Statement[]): void {
    for (const statement of statements) this.#emit(statement);
  }

  #emit(statement: Statement): void {
    switch (statement.kind) {
      case "value": {
        statement.loop = this.#loop;
        if (statement.uses === 0 || statement.constant !== undefined) return;
        if (statement.uses === 1) this.#putOff(statement);
        else this.#materialise(statement);
        return;
      }
      case "effect": {
        this.#flush(statement.writes, statement.args);
        for (const node of statement.args) this.#evaluate(node);
        statement.emit(this.#code, this);
        const result = statement.result;
        if (result === undefined) return;
        result.loop = this.#loop;
        if (result.uses === 0) this.#code.op("drop");
        else this.#store(result);
        return;
      }
      case "if": {
        const writes = writesOf(statement.whenTrue) | writesOf(statement.whenFalse);
        this.#flush(writes, [statement.condition]);
        this.#evaluate(statement.condition);
        if (statement.isSeldom) this.#code.ifUnlikely();
        else this.#code.if();
        this.#emitAll(statement.whenTrue);
        if (statement.whenFalse.length > 0) {
          this.#code.else();
          this.#emitAll(statement.whenFalse);
        }
        this.#code.end();
        return;
      }
      case "loop": {
        this.#flush(EVERYTHING, [], true);
        const outer = this.#loop;
        this.#loop = ++this.#loops;
        const label = this.#code.loop();
        this.#emitAll(statement.body);
        this.#evaluate(statement.condition);
        this.#code.brIf(label);
        this.#code.end();
        this.#loop = outer;
        return;
      }
      case "declare":
        this.#evaluate(statement.initial);
        statement.variable.local = this.#target.allocate(statement.variable.type);
        this.#variables.push(statement.variable);
        this.#code.set(statement.variable.local);
        return;
      case "assign":
        this.#flush(VARIABLES, [statement.value]);
        this.#evaluate(statement.value);
        this.#code.set(statement.variable.local);
        return;
    }
  }

  #putOff(node: Node): void {
    let reads = node.reads;
    for (const argument of node.args) if (argument.isPending) reads |= argument.pendingReads;
    node.pendingReads = reads;
    node.isPending = true;
    this.#pending.push(node);
  }

  /** Evaluates pending nodes that read what is about to be written, except those that the writing statement itself consumes. */
  #flush(writes: number, consumed: readonly Node[], all = false): void {
    const pending = this.#pending;
    if (writes === NOTHING || pending.length === 0) return;
    const flush = ++flushes;
    for (const node of consumed) spare(node, flush);
    let kept = 0;
    for (const node of pending) {
      if (!node.isPending) continue;
      if (node.sparedBy !== flush && (all || (node.pendingReads & writes) !== 0)) this.#materialise(node);
      else pending[kept++] = node;
    }
    pending.length = kept;
  }

  #materialise(node: Node): void {
    node.isPending = false;
    this.#compute(node);
    this.#store(node);
  }
  #store(node: Node): void {
    node.local = this.#target.allocate(node.type);
    this.#code.set(node.local);
  }

  #evaluate(node: Node): void {
    if (node.constant !== undefined) {
      node.emit?.(this.#code);
      return;
    }
    if (node.local >= 0) {
      this.#code.get(node.local);
      node.remaining--;
      if (node.remaining > 0) return;
      // A local of an outer loop level must survive the next round of the inner loop.
      if (node.loop === this.#loop) this.#target.release(node.type, node.local);
      else this.#late.push(node);
      return;
    }
    if (!node.isPending) throw new Error("a value is used outside of the branch that computed it");
    node.isPending = false;
    this.#compute(node);
  }
  #compute(node: Node): void {
    for (const argument of node.args) this.#evaluate(argument);
    if (node.emit !== undefined) node.emit(this.#code);
    else this.#code.op(node.name as string);
  }
}

let flushes = 0;
function spare(node: Node, flush: number): void {
  if (!node.isPending) return;
  node.sparedBy = flush;
  for (const argument of node.args) spare(argument, flush);
}

function writesOf(statements: readonly Statement[]): number {
  let writes = NOTHING;
  for (const statement of statements) {
    if (statement.kind === "effect") writes |= statement.writes;
    else if (statement.kind === "if") writes |= writesOf(statement.whenTrue) | writesOf(statement.whenFalse);
    else if (statement.kind === "loop") writes |= writesOf(statement.body);
    else if (statement.kind === "assign") writes |= VARIABLES;
  }
  return writes;
}
