/**
 * Builds a WebAssembly module in the binary format (WebAssembly Core Specification, Binary Format, Modules): function imports, one
 * imported shared memory, functions, one table of functions.
 */
import { Bytes } from "./bytes.ts";
import { Code } from "./code.ts";
import { VALUE_TYPE_CODES, type ValueType } from "./opcodes.ts";

const HEADER = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00];
const Section = { custom: 0, type: 1, import: 2, function: 3, table: 4, export: 7, element: 9, code: 10 } as const;
/** Kinds of imports and exports. */
const FUNCTION = 0x00,
  TABLE = 0x01,
  MEMORY = 0x02,
  GLOBAL = 0x03;
const IMMUTABLE = 0;
const FUNCTION_REFERENCE = 0x70;
const SHARED_WITH_MAXIMUM = 0x03;
const LARGEST_MEMORY_PAGES = 65536;
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
  #declarations(): Bytes {
    const groups: [ValueType, number][] = [];
    for (const type of this.#locals) {
      const last = groups.at(-1);
      if (last !== undefined && last[0] === type) last[1]++;
      else groups.push([type, 1]);
    }
    const declared = new Bytes();
    declared.unsigned(groups.length);
    for (const [type, count] of groups) {
      declared.unsigned(count);
      declared.push(VALUE_TYPE_CODES[type]);
    }
    return declared;
  }
  /** Locals and code. The last thing that is asked of it. */
  encode(): Bytes {
    const body = this.#declarations();
    body.append(this.code.bytes.written);
    body.push(0x0b);
    this.code.bytes.release();
    return body;
  }
  /** Branches that are seldom taken, in bytes from the start of the body as `encode` gives it. */
  unlikely(): number[] {
    if (this.code.unlikely.length === 0) return [];
    const declarations = this.#declarations();
    const before = declarations.length;
    declarations.release();
    return this.code.unlikely.map((at) => at + before);
  }
}

export class ModuleBuilder {
  readonly #types: Signature[] = [];
  readonly #typeKeys = new Map<string, number>();
  readonly #typeIndexes = new Map<Signature, number>();
  readonly #imports: { module: string; name: string; typeIndex: number }[] = [];
  readonly #importKeys = new Map<string, number>();
  readonly #globals: { module: string; name: string; type: ValueType }[] = [];
  readonly #functions: FunctionBuilder[] = [];
  readonly #exports: { name: string; kind: number; index: number }[] = [];
  readonly #names: { index: number; name: string }[] = [];
  readonly #urgent: number[] = [];
  #tableEntries: readonly number[] = [];

  typeIndex(type: Signature): number {
    const known = this.#typeIndexes.get(type);
    if (known !== undefined) return known;
    const key = `${type.parameters.join()}:${type.results.join()}`;
    let index = this.#typeKeys.get(key);
    if (index === undefined) {
      index = this.#types.push(type) - 1;
      this.#typeKeys.set(key, index);
    }
    this.#typeIndexes.set(type, index);
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
  /** An immutable number that is given when the module is instantiated. */
  importGlobal(module: string, name: string, type: ValueType): number {
    return this.#globals.push({ module, name, type }) - 1;
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
  /** Asks for the function's optimised code as soon as the module is compiled, before it has run. */
  optimizeAtOnce(index: number): void {
    this.#urgent.push(index);
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
    const module = new Bytes();
    module.append(HEADER);
    this.#section(module, Section.type, (section) => this.#encodeTypes(section));
    this.#section(module, Section.import, (section) => this.#encodeImports(section));
    this.#section(module, Section.function, (section) => {
      list(section, this.#functions, (made) => section.unsigned(made.typeIndex));
    });
    if (this.#tableEntries.length > 0) {
      this.#section(module, Section.table, (section) => {
        section.append([1, FUNCTION_REFERENCE, 0]);
        section.unsigned(this.#tableEntries.length);
      });
    }
    this.#section(module, Section.export, (section) => {
      list(section, this.#exports, ({ name, kind, index }) => {
        section.text(name);
        section.push(kind);
        section.unsigned(index);
      });
    });
    if (this.#tableEntries.length > 0) {
      this.#section(module, Section.element, (section) => {
        section.append([1, 0x00, 0x41, 0x00, 0x0b]);
        list(section, this.#tableEntries, (entry) => section.unsigned(entry));
      });
    }
    const hinted = this.#functions.map((made, index) => ({ index, at: made.unlikely() })).filter(({ at }) => at.length > 0);
    if (hinted.length > 0) this.#section(module, Section.custom, (section) => this.#encodeHints(section, hinted));
    if (this.#urgent.length > 0) this.#section(module, Section.custom, (section) => this.#encodePriorities(section));
    this.#section(module, Section.code, (section) => {
      list(section, this.#functions, (made) => {
        const body = made.encode();
        section.vector(body);
        body.release();
      });
    });
    if (this.#names.length > 0) this.#section(module, Section.custom, (section) => this.#encodeNames(section));
    const encoded = module.written.slice();
    module.release();
    return encoded;
  }

  #section(module: Bytes, id: number, write: (section: Bytes) => void): void {
    const section = new Bytes();
    write(section);
    module.push(id);
    module.vector(section);
    section.release();
  }
  #encodeTypes(section: Bytes): void {
    list(section, this.#types, (type) => {
      section.push(0x60);
      for (const values of [type.parameters, type.results])
        list(section, values, (value) => section.push(VALUE_TYPE_CODES[value]));
    });
  }
  #encodeImports(section: Bytes): void {
    section.unsigned(this.#imports.length + this.#globals.length + 1);
    for (const { module, name, typeIndex } of this.#imports) {
      section.text(module);
      section.text(name);
      section.push(FUNCTION);
      section.unsigned(typeIndex);
    }
    for (const { module, name, type } of this.#globals) {
      section.text(module);
      section.text(name);
      section.append([GLOBAL, VALUE_TYPE_CODES[type], IMMUTABLE]);
    }
    section.text("bank");
    section.text("memory");
    section.append([MEMORY, SHARED_WITH_MAXIMUM]);
    section.unsigned(1);
    section.unsigned(LARGEST_MEMORY_PAGES);
  }
  /** Source: WebAssembly Branch Hinting proposal. */
  #encodeHints(section: Bytes, hinted: readonly { index: number; at: readonly number[] }[]): void {
    section.text("metadata.code.branch_hint");
    list(section, hinted, ({ index, at }) => {
      section.unsigned(this.#imports.length + index);
      list(section, at, (offset) => {
        section.unsigned(offset);
        // One byte follows: 0 is unlikely
        section.append([1, 0]);
      });
    });
  }
  /** Source: WebAssembly Compilation Hints proposal. */
  #encodePriorities(section: Bytes): void {
    section.text("metadata.code.compilation_priority");
    list(section, this.#urgent, (index) => {
      section.unsigned(index);
      // Of the whole function, two bytes: first to be compiled, first to be optimised
      section.append([0, 2, 0, 0]);
    });
  }
  #encodeNames(section: Bytes): void {
    section.text("name");
    section.push(FUNCTION_NAMES);
    const names = new Bytes();
    list(names, this.#names, ({ index, name }) => {
      names.unsigned(index);
      names.text(name);
    });
    section.vector(names);
    names.release();
  }
}

function list<T>(into: Bytes, items: readonly T[], write: (item: T) => void): void {
  into.unsigned(items.length);
  for (const item of items) write(item);
}
