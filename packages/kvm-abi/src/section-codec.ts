/** Encoding of sections of the portable VM state: a fixed structure, then `count` entries. Equal values give equal bytes. */
import { type Fields, type Struct, type StructInput, type StructValue, struct, u32 } from "./layout.ts";
import { bytesOfSlab } from "./slab.ts";
import type { Section, SectionSupport, VmDescription } from "./transfer.ts";

/** Head of every section's bytes. */
export const SectionHead = struct("mkvm_section_head", 8, {
  fixed_size: u32(0), // bytes of the fixed structure
  count: u32(4), // entries behind it
});

type NoFields = Record<never, never>;

export interface Decoded<F extends Fields, E extends Fields> {
  readonly fixed: StructValue<F>;
  readonly entries: StructValue<E>[];
}

export interface SectionLayout<F extends Fields = Fields, E extends Fields = Fields> {
  readonly name: string;
  readonly version: number;
  readonly required: boolean;
  readonly fixed: Struct<F>;
  /** Layout of one entry; a structure of no bytes where the section has none. */
  readonly entry: Struct<E>;
  /** `instance`: number of the vCPU, 0 for the VM. Fields that are not given are zero. */
  encode(instance: number, fixed: StructInput<F>, entries?: readonly StructInput<E>[]): Section;
  /** The values, or a sentence that says why the section cannot be taken. */
  decode(section: Section): Decoded<F, E> | string;
  /** The section of that instance among `sections`, decoded. */
  find(sections: readonly Section[], instance?: number): Decoded<F, E> | string;
}

const NoEntry = struct("mkvm_no_entry", 0, {});

/** Defines a section without entries. */
export function section<F extends Fields>(
  name: string,
  options: { version: number; required: boolean; fixed: Struct<F> },
): SectionLayout<F, NoFields> {
  return sectionList(name, { ...options, entry: NoEntry });
}

/** Defines a section with entries behind its fixed structure. */
export function sectionList<F extends Fields, E extends Fields>(
  name: string,
  options: { version: number; required: boolean; fixed: Struct<F>; entry: Struct<E> },
): SectionLayout<F, E> {
  const { version, required, fixed, entry } = options;
  const entriesAt = SectionHead.sizeBytes + fixed.sizeBytes;
  const layout: SectionLayout<F, E> = {
    name,
    version,
    required,
    fixed,
    entry,
    encode(instance, value, entries = []) {
      const bytes = bytesOfSlab(entriesAt + entries.length * entry.sizeBytes);
      // One view for all that is written: a VM stands still while its sections are made
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      view.setUint32(SectionHead.offsets.fixed_size, fixed.sizeBytes, true);
      view.setUint32(SectionHead.offsets.count, entries.length, true);
      fixed.write(view, value, SectionHead.sizeBytes);
      for (let i = 0; i < entries.length; i++) entry.write(view, entries[i], entriesAt + i * entry.sizeBytes);
      return { name, instance, version, required, bytes };
    },
    decode(from) {
      const who = `section ${from.name}[${from.instance}]`;
      if (from.name !== name) return `${who} where ${name} was expected`;
      if (from.version !== version) return `${who} has version ${from.version}; this side takes ${version}`;
      if (from.bytes.length < SectionHead.sizeBytes) return `${who} is cut short: ${from.bytes.length} bytes`;
      const view = new DataView(from.bytes.buffer, from.bytes.byteOffset, from.bytes.byteLength);
      const head = SectionHead.read(view);
      if (head.fixed_size !== fixed.sizeBytes)
        return `${who} has a fixed part of ${head.fixed_size} bytes, not ${fixed.sizeBytes}`;
      const expected = entriesAt + head.count * entry.sizeBytes;
      if (from.bytes.length !== expected)
        return `${who} has ${from.bytes.length} bytes where ${head.count} entries take ${expected}`;
      const entries: StructValue<E>[] = [];
      for (let i = 0; i < head.count; i++) entries.push(entry.read(view, entriesAt + i * entry.sizeBytes));
      return { fixed: fixed.read(view, SectionHead.sizeBytes), entries };
    },
    find(sections, instance = 0) {
      const found = sections.find((each) => each.name === name && each.instance === instance);
      return found ? layout.decode(found) : `section ${name}[${instance}] is missing`;
    },
  };
  return layout;
}

/** Why a receiver that takes `receives` must refuse the VM; undefined when it can take it. */
export function refusalOf(vm: Pick<VmDescription, "sections">, receives: readonly SectionSupport[]): string | undefined {
  for (const sent of vm.sections) {
    const support = receives.find((each) => each.name === sent.name);
    if (!support) {
      if (sent.required) return `it does not know section ${sent.name}, which the VM needs`;
    } else if (sent.required && (sent.version < support.minVersion || sent.version > support.maxVersion)) {
      return `it takes section ${sent.name} in versions ${support.minVersion} to ${support.maxVersion}, the VM sends ${sent.version}`;
    }
  }
  return undefined;
}

/** The first difference between what was restored and what the new side saves, in words; undefined when the bytes are equal. */
export function differenceOf(sent: readonly Section[], saved: readonly Section[]): string | undefined {
  if (sent.length !== saved.length) return `${sent.length} sections were sent, ${saved.length} came back`;
  for (let i = 0; i < sent.length; i++) {
    const a = sent[i];
    const b = saved[i];
    const who = `section ${a.name}[${a.instance}]`;
    if (a.name !== b.name || a.instance !== b.instance) return `${who} came back as ${b.name}[${b.instance}]`;
    if (a.version !== b.version) return `${who} came back in version ${b.version}, not ${a.version}`;
    if (a.bytes.length !== b.bytes.length) return `${who} came back with ${b.bytes.length} bytes, not ${a.bytes.length}`;
    const at = a.bytes.findIndex((byte, k) => byte !== b.bytes[k]);
    if (at >= 0) return `${who} differs at byte ${at}: ${a.bytes[at]} was sent, ${b.bytes[at]} came back`;
  }
  return undefined;
}
