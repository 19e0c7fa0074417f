/**
 * Layouts of structures in memory. Every field has an explicit offset; `struct` refuses gaps, overlaps and a wrong total at import,
 * so padding is a named field. Names that begin with "_" are padding that the C structure does not name. All little-endian.
 */
import { bytesOfSlab } from "./slab.ts";

/** One field: `offset` in bytes from the start of its structure. Values are copies, never views. */
export interface Field<T> {
  readonly offset: number;
  readonly sizeBytes: number;
  /** C spelling of the type, for messages. */
  readonly type: string;
  read(view: DataView, base: number): T;
  write(view: DataView, base: number, value: T): void;
  /** Structure at this place, where the field is one or an array of them. */
  readonly struct?: Struct<Fields>;
  /** Elements of an array field. */
  readonly count?: number;
  /** Members of a union, each a field at the union's offset. */
  readonly members?: Fields;
  /** A union without a name in C: its members are named from the outer structure. */
  readonly anonymous?: boolean;
}
export type Fields = Readonly<Record<string, Field<unknown>>>;
export type FieldValue<F> = F extends Field<infer T> ? T : never;
export type StructValue<F extends Fields> = { -readonly [K in keyof F]: FieldValue<F[K]> };
/** What `write` and `encode` take: named fields only, nested ones in full or in part. */
export type StructInput<F extends Fields> = { readonly [K in keyof F]?: FieldValue<F[K]> };

/** Array of structures or numbers behind the fixed part: C's flexible array member. */
export interface Tail {
  readonly name: string;
  /** Bytes from one element to the next. */
  readonly strideBytes: number;
}

export interface Struct<F extends Fields> {
  readonly name: string;
  readonly sizeBytes: number;
  readonly fields: F;
  /** Offset of each field in bytes, for hot paths. */
  readonly offsets: { readonly [K in keyof F]: number };
  readonly tail?: Tail;
  /** What tells each side how large the other's structure is, where something does: such a structure may grow at its end. */
  readonly sizeNegotiatedBy?: string;
  /** All fields of the structure at `offset` of `bytes`. RangeError when it does not fit. */
  read(bytes: Uint8Array | DataView, offset?: number): StructValue<F>;
  /** Writes the fields given, leaves the others. */
  write(bytes: Uint8Array | DataView, value: StructInput<F>, offset?: number): void;
  /** New bytes with the fields given; all others are zero. */
  encode(value: StructInput<F>): Uint8Array;
  get<K extends keyof F>(bytes: Uint8Array | DataView, key: K, offset?: number): FieldValue<F[K]>;
  set<K extends keyof F>(bytes: Uint8Array | DataView, key: K, value: FieldValue<F[K]>, offset?: number): void;
  /** Offset of element `index` of the flexible array. */
  tailOffset(index: number): number;
}

function viewOf(bytes: Uint8Array | DataView): DataView {
  return bytes instanceof DataView ? bytes : new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function scalar<T>(
  type: string,
  offset: number,
  sizeBytes: number,
  read: (view: DataView, at: number) => T,
  write: (view: DataView, at: number, value: T) => void,
): Field<T> {
  return {
    offset,
    sizeBytes,
    type,
    read: (view, base) => read(view, base + offset),
    write: (view, base, value) => write(view, base + offset, value),
  };
}

export const u8 = (offset: number): Field<number> =>
  scalar(
    "__u8",
    offset,
    1,
    (v, at) => v.getUint8(at),
    (v, at, x) => v.setUint8(at, x),
  );
export const u16 = (offset: number): Field<number> =>
  scalar(
    "__u16",
    offset,
    2,
    (v, at) => v.getUint16(at, true),
    (v, at, x) => v.setUint16(at, x, true),
  );
export const i16 = (offset: number): Field<number> =>
  scalar(
    "__s16",
    offset,
    2,
    (v, at) => v.getInt16(at, true),
    (v, at, x) => v.setInt16(at, x, true),
  );
export const u32 = (offset: number): Field<number> =>
  scalar(
    "__u32",
    offset,
    4,
    (v, at) => v.getUint32(at, true),
    (v, at, x) => v.setUint32(at, x, true),
  );
export const i32 = (offset: number): Field<number> =>
  scalar(
    "__s32",
    offset,
    4,
    (v, at) => v.getInt32(at, true),
    (v, at, x) => v.setInt32(at, x, true),
  );
export const u64 = (offset: number): Field<bigint> =>
  scalar(
    "__u64",
    offset,
    8,
    (v, at) => v.getBigUint64(at, true),
    (v, at, x) => v.setBigUint64(at, x, true),
  );
export const i64 = (offset: number): Field<bigint> =>
  scalar(
    "__s64",
    offset,
    8,
    (v, at) => v.getBigInt64(at, true),
    (v, at, x) => v.setBigInt64(at, x, true),
  );

/** Up to here a loop is faster than a view for each field. */
const shortBytes = 64;

/** `length` raw bytes. A shorter value leaves the rest as it is; a longer one is a RangeError. */
export const bytes = (offset: number, length: number): Field<Uint8Array> =>
  scalar(
    "__u8[]",
    offset,
    length,
    (v, at) => {
      if (length > shortBytes) {
        const copy = bytesOfSlab(length);
        copy.set(new Uint8Array(v.buffer, v.byteOffset + at, length));
        return copy;
      }
      const copy = new Uint8Array(length);
      for (let i = 0; i < length; i++) copy[i] = v.getUint8(at + i);
      return copy;
    },
    (v, at, x) => {
      if (x.length > length) throw new RangeError(`${x.length} bytes for a field of ${length}`);
      if (length > shortBytes) new Uint8Array(v.buffer, v.byteOffset + at, length).set(x);
      else for (let i = 0; i < x.length; i++) v.setUint8(at + i, x[i]);
    },
  );

/** `count` elements of a scalar type: `array(8, u64, 4)`. */
export function array<T>(offset: number, element: (offset: number) => Field<T>, count: number): Field<T[]> {
  const at0 = element(0);
  return {
    offset,
    sizeBytes: at0.sizeBytes * count,
    type: `${at0.type}[${count}]`,
    count,
    read(view, base) {
      const values: T[] = [];
      for (let i = 0; i < count; i++) values.push(at0.read(view, base + offset + i * at0.sizeBytes));
      return values;
    },
    write(view, base, values) {
      if (values.length > count) throw new RangeError(`${values.length} elements for an array of ${count}`);
      for (let i = 0; i < values.length; i++) at0.write(view, base + offset + i * at0.sizeBytes, values[i]);
    },
  };
}

/** A structure within a structure. `offsets` are from the outer structure's start. */
export interface NestedField<F extends Fields> extends Field<StructValue<F>> {
  readonly offsets: { readonly [K in keyof F]: number };
  readonly struct: Struct<F>;
}
export function nested<F extends Fields>(offset: number, inner: Struct<F>): NestedField<F> {
  return {
    offset,
    sizeBytes: inner.sizeBytes,
    type: `struct ${inner.name}`,
    struct: inner,
    offsets: Object.fromEntries(Object.entries(inner.fields).map(([name, field]) => [name, offset + field.offset])) as {
      [K in keyof F]: number;
    },
    read: (view, base) => inner.read(view, base + offset),
    write: (view, base, value) => inner.write(view, value, base + offset),
  };
}

/** `count` structures, one after the other. */
export function structs<F extends Fields>(
  offset: number,
  inner: Struct<F>,
  count: number,
): Field<StructValue<F>[]> & { readonly struct: Struct<F> } {
  const each = array(offset, (at) => nested(at, inner), count);
  return { ...each, struct: inner, count };
}

/** Members that share one place. The value is its raw bytes; read one member through `members`. */
export interface UnionField<M extends Fields> extends Field<Uint8Array> {
  readonly members: M;
}
export function union<M extends Fields>(
  offset: number,
  sizeBytes: number,
  members: M,
  options: { anonymous?: boolean } = {},
): UnionField<M> {
  for (const [name, member] of Object.entries(members)) {
    if (member.offset !== offset) throw new RangeError(`union member ${name} is at ${member.offset}, the union at ${offset}`);
    if (member.sizeBytes > sizeBytes)
      throw new RangeError(`union member ${name} is larger than the union's ${sizeBytes} bytes`);
  }
  return { ...bytes(offset, sizeBytes), type: "union", members, anonymous: options.anonymous ?? false };
}

/** Checks the layout and throws RangeError where a byte belongs to no field or to two. */
export function struct<F extends Fields>(
  name: string,
  sizeBytes: number,
  fields: F,
  tail?: Tail,
  options: { sizeNegotiatedBy?: string } = {},
): Struct<F> {
  const inOrder = Object.entries(fields).sort(([, a], [, b]) => a.offset - b.offset);
  let end = 0;
  for (const [fieldName, field] of inOrder) {
    if (field.offset < end)
      throw new RangeError(`${name}.${fieldName} at ${field.offset} overlaps the field before it, which ends at ${end}`);
    if (field.offset > end) throw new RangeError(`${name} has a gap of ${field.offset - end} bytes before ${fieldName}`);
    end = field.offset + field.sizeBytes;
  }
  if (end !== sizeBytes) throw new RangeError(`the fields of ${name} end at ${end}, not at ${sizeBytes}`);
  const entries = Object.entries(fields);
  const keys = entries.map(([key]) => key);
  const inGivenOrder = entries.map(([, field]) => field);
  const blank = Object.fromEntries(keys.map((key) => [key, undefined]));
  const layout: Struct<F> = {
    name,
    sizeBytes,
    fields,
    offsets: Object.fromEntries(entries.map(([key, field]) => [key, field.offset])) as { [K in keyof F]: number },
    ...(tail ? { tail } : {}),
    ...(options.sizeNegotiatedBy === undefined ? {} : { sizeNegotiatedBy: options.sizeNegotiatedBy }),
    read(from, offset = 0) {
      const view = viewOf(from);
      // A copy of one with all keys: reading is what a VM that moves stands still for, and adding keys one by one is slow
      const value: Record<string, unknown> = { ...blank };
      for (let i = 0; i < keys.length; i++) value[keys[i]] = inGivenOrder[i].read(view, offset);
      return value as StructValue<F>;
    },
    write(to, value, offset = 0) {
      const view = viewOf(to);
      let written = 0;
      for (let i = 0; i < keys.length; i++) {
        const given = value[keys[i]];
        if (given === undefined) continue;
        written++;
        inGivenOrder[i].write(view, offset, given);
      }
      // Nothing is left over of a value that has all fields: there is no time to look at those of a VM that stands still
      if (written === keys.length) return;
      let given = 0;
      for (const _ in value) given++;
      if (given === written) return;
      for (const key of Object.keys(value)) if (!fields[key]) throw new RangeError(`${name} has no field ${key}`);
    },
    encode(value) {
      const out = new Uint8Array(sizeBytes);
      layout.write(out, value);
      return out;
    },
    get(from, key, offset = 0) {
      return fields[key].read(viewOf(from), offset) as FieldValue<F[typeof key]>;
    },
    set(to, key, value, offset = 0) {
      fields[key].write(viewOf(to), offset, value);
    },
    tailOffset(index) {
      if (!tail) throw new RangeError(`${name} has no flexible array`);
      return sizeBytes + index * tail.strideBytes;
    },
  };
  return layout;
}
