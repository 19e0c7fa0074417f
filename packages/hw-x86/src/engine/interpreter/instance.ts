/** The generated interpreter at run time: compiled once a process, instantiated once a bank. */
import { base64, endsBlock, flat, flatNoIndex, general, variantCount } from "../../generated/interpreter.ts";
import type { HandlerNumbers } from "../block-builder.ts";
import type { GranulesEqual } from "../code-pages.ts";
import type { ENGINE_IMPORTS } from "./common-functions.ts";

export type EngineImports = Readonly<Record<keyof typeof ENGINE_IMPORTS, (...values: number[]) => number | void>>;

export interface InterpreterInstance {
  /** Runs the block at that header, or at `state.rip` when 0, until the budget is short. */
  run(header: number): void;
  /** Handlers that are functions, and after them translated regions. */
  readonly handlers: WebAssembly.Table;
  readonly granulesEqual: GranulesEqual;
  /** What regions import, by name. */
  readonly exports: WebAssembly.Exports;
}

/** This thread's. V8 keeps one compiled module for equal bytes in a process, so threads share what has been optimised. */
let compiled: WebAssembly.Module | undefined;

function bytesOf(text: string): Uint8Array<ArrayBuffer> {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}
const halves = (text: string): Uint16Array => new Uint16Array(bytesOf(text).buffer);

/** Handler numbers of the variants that the interpreter was generated from. */
export function interpreterTables(): HandlerNumbers & { variantCount: number } {
  return {
    general: halves(general),
    flat: halves(flat),
    flatNoIndex: halves(flatNoIndex),
    endsBlock: bytesOf(endsBlock),
    variantCount,
  };
}

/**
 * Compiles the interpreter on V8's own threads, for CPUs of this process that start meanwhile or later. Needed by none: a CPU that
 * finds no compiled interpreter makes it.
 */
export async function prepareInterpreter(): Promise<void> {
  compiled ??= await WebAssembly.compile(bytesOf(base64));
}

export function instantiateInterpreter(
  memory: WebAssembly.Memory,
  helper: Readonly<Record<string, (a: number, b: number, c: number, d: number) => number>>,
  engine: EngineImports,
): InterpreterInstance {
  compiled ??= new WebAssembly.Module(bytesOf(base64));
  const instance = new WebAssembly.Instance(compiled, { bank: { memory }, helper, engine });
  const { exports } = instance;
  return {
    run: exports.run as (header: number) => void,
    handlers: exports.handlers as WebAssembly.Table,
    granulesEqual: exports.granulesEqual as GranulesEqual,
    exports,
  };
}
