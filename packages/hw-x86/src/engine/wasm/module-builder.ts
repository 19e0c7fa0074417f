/**
 * Builds a WebAssembly module in the binary format (WebAssembly Core Specification, Binary Format, Modules): function imports, one
 * imported shared memory, functions, one table of functions.
 */
import { Code, pushUnsigned } from "./code.ts";
import { VALUE_TYPE_CODES, type ValueType } from "./opcodes.ts";

/** Kinds of exports. */
const FUNCTION = 0x00,
  TABLE = 0x01;
/** Subsection of the custom section "name". */
const FUNCTION_NAMES = 0x01;

export interface Signature {
  readonly parameters: readonly ValueType[];
  readonly results: readonly ValueType[];
}

export function signature(parameters: readonly ValueType[], results: readonly ValueType[] = []): Signature {
  return { parameters, results };
}

/** A function under construction: its code, and locals that are reused once they are free. */
export class FunctionBuilder {
  readonly code = new Code();
  readonly typeIndex: number;
  readonly #parameters: number;
  readonly #locals: ValueType[] = [];
  readonly #free = new Map<ValueType, number[]>();

  constructor(typeIndex: number, parameters: number) {
    this.typeIndex = typeIndex;
    this.#parameters = parameters;
  }

  /** Number of a local of that type, a free one when there is one. Its value is what was left there. */
  allocate(type: ValueType): number {
    const free = this.#free.get(type)?.pop();
    if (free !== undefined) return free;
    this.#locals.push(type);
    return this.#parameters + this.#locals.length - 1;
  }
  release(type: ValueType, local: number): void {
    const free = this.#free.get(type);
    if (free === undefined) this.#free.set(type, [local]);
    else if (free.includes(local)) throw new Error(`local ${local} released twice`);
    else free.push(local);
  }
  get localCount(): number {
    return this.#locals.length;
  }

  /** Declarations of locals, as they precede the code in the binary format. */
  #declarations(): number[] {
    const body: number[] = [];
    const groups: [ValueType, number][] = [];
    for (const type of this.#locals) {
      const last = groups.at(-1);
      if (last !== undefined && last[0] === type) last[1]++;
      else groups.push([type, 1]);
    }
    pushUnsigned(body, groups.length);
    for (const [type, count] of groups) {
      pushUnsigned(body, count);
      body.push(VALUE_TYPE_CODES[type]);
    }
    return body;
  }
  encode(): number[] {
    const body = this.#declarations();
    for (const byte of this.code.bytes) body.push(byte);
    body.push(0x0b);
    return body;
  }
  /** Branches that are seldom taken, in bytes from the start of the body as `encode` gives it. */
  unlikely(): number[] {
    const before = this.#declarations().length;
    return this.code.unlikely.map((at) => at + before);
  }
}

export class ModuleBuilder {
  readonly #types: Signature[] = [];
  readonly #typeKeys = new Map<string, number>();
  readonly #imports: { module: string; name: string; typeIndex: number }[] = [];
  readonly #importKeys = new Map<string, number>();
  readonly #functions: FunctionBuilder[] = [];
  readonly #exports: { name: string; kind: number; index: number }[] = [];
  readonly #names: { index: number; name: string }[] = [];
  #tableEntries: readonly number[] = [];

  typeIndex(type: Signature): number {
    const key = `${type.parameters.join()}:${type.results.join()}`;
    let index = this.#typeKeys.get(key);
    if (index === undefined) {
      index = this.#types.push(type) - 1;
      this.#typeKeys.set(key, index);
    }
    return index;
  }
  /** All imports come before the first function, since they share one index space. */
  importFunction(module: string, name: string, type: Signature): number {
    const key = `${module}.${name}`;
    const known = this.#importKeys.get(key);
    if (known !== undefined) return known;
    if (this.#functions.length > 0) throw new Error(`import ${key} after the first function`);
    const index = this.#imports.push({ module, name, typeIndex: this.typeIndex(type) }) - 1;
    this.#importKeys.set(key, index);
    return index;
  }
  /** Adds a function and returns its index. */
  add(made: FunctionBuilder): number {
    return this.#imports.length + this.#functions.push(made) - 1;
  }
  export(name: string, index: number): void {
    this.#exports.push({ name, kind: FUNCTION, index });
  }
  /** What profilers and stack traces call the function. In order of indexes. */
  name(index: number, name: string): void {
    this.#names.push({ index, name });
  }
  /** Exports the table under that name; it can grow. */
  exportTable(name: string): void {
    this.#exports.push({ name, kind: TABLE, index: 0 });
  }
  /** The functions that call_indirect reaches, by position. */
  table(entries: readonly number[]): void {
    this.#tableEntries = entries;
  }

  encode(): Uint8Array<ArrayBuffer> {
    const bytes: number[] = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00];
    const section = (id: number, content: number[]): void => {
      bytes.push(id);
      pushUnsigned(bytes, content.length);
      for (const byte of content) bytes.push(byte);
    };
    const vector = <T>(items: readonly T[], encodeItem: (into: number[], item: T) => void): number[] => {
      const content: number[] = [];
      pushUnsigned(content, items.length);
      for (const item of items) encodeItem(content, item);
      return content;
    };
    const text = (into: number[], value: string): void => {
      const encoded = new TextEncoder().encode(value);
      pushUnsigned(into, encoded.length);
      into.push(...encoded);
    };
    const memoryImport: number[] = [];
    text(memoryImport, "bank");
    text(memoryImport, "memory");
    memoryImport.push(0x02, 0x03);
    pushUnsigned(memoryImport, 1);
    pushUnsigned(memoryImport, 65536);

    section(
      1,
      vector(this.#types, (into, type) => {
        into.push(0x60);
        for (const list of [type.parameters, type.results]) {
          pushUnsigned(into, list.length);
          for (const value of list) into.push(VALUE_TYPE_CODES[value]);
        }
      }),
    );
    const imports = vector(this.#imports, (into, entry) => {
      text(into, entry.module);
      text(into, entry.name);
      into.push(0x00);
      pushUnsigned(into, entry.typeIndex);
    });
    const importContent: number[] = [];
    pushUnsigned(importContent, this.#imports.length + 1);
    for (const byte of imports.slice(unsignedLength(this.#imports.length))) importContent.push(byte);
    for (const byte of memoryImport) importContent.push(byte);
    section(2, importContent);
    section(
      3,
      vector(this.#functions, (into, entry) => pushUnsigned(into, entry.typeIndex)),
    );
    if (this.#tableEntries.length > 0) {
      const table: number[] = [1, 0x70, 0x00];
      pushUnsigned(table, this.#tableEntries.length);
      section(4, table);
    }
    section(
      7,
      vector(this.#exports, (into, entry) => {
        text(into, entry.name);
        into.push(entry.kind);
        pushUnsigned(into, entry.index);
      }),
    );
    if (this.#tableEntries.length > 0) {
      const elements: number[] = [1, 0x00, 0x41, 0x00, 0x0b];
      for (const byte of vector(this.#tableEntries, (into, entry) => pushUnsigned(into, entry))) elements.push(byte);
      section(9, elements);
    }
    const hinted = this.#functions.map((made, index) => ({ index, at: made.unlikely() })).filter(({ at }) => at.length > 0);
    if (hinted.length > 0) {
      const hints: number[] = [];
      text(hints, "metadata.code.branch_hint");
      for (const byte of vector(hinted, (into, { index, at }) => {
        pushUnsigned(into, this.#imports.length + index);
        pushUnsigned(into, at.length);
        for (const offset of at) {
          pushUnsigned(into, offset);
          // One byte follows: 0 is unlikely
          into.push(1, 0);
        }
      }))
        hints.push(byte);
      section(0, hints);
    }
    section(
      10,
      vector(this.#functions, (into, entry) => {
        const body = entry.encode();
        pushUnsigned(into, body.length);
        for (const byte of body) into.push(byte);
      }),
    );
    if (this.#names.length > 0) {
      const names = vector(this.#names, (into, entry) => {
        pushUnsigned(into, entry.index);
        text(into, entry.name);
      });
      const custom: number[] = [];
      text(custom, "name");
      custom.push(FUNCTION_NAMES);
      pushUnsigned(custom, names.length);
      for (const byte of names) custom.push(byte);
      section(0, custom);
    }
    return Uint8Array.from(bytes);
  }
}

function unsignedLength(value: number): number {
  const bytes: number[] = [];
  pushUnsigned(bytes, value);
  return bytes.length;
}
