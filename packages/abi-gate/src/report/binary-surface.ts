/** The binary side of a report, from what a built package exports at run time: layouts know their fields. */
import { GateError } from "../errors.ts";
import type { BinarySurface, Field, SharedMemory, Structure } from "./schema.ts";

interface LayoutField {
  offset: number;
  sizeBytes: number;
  type: string;
  count?: number;
  struct?: Layout;
  members?: Record<string, LayoutField>;
}
interface Layout {
  name: string;
  sizeBytes: number;
  fields: Record<string, LayoutField>;
  offsets: object;
  tail?: { name: string; strideBytes: number };
  sizeNegotiatedBy?: string;
}
interface SectionLayout {
  name: string;
  version: number;
  required: boolean;
  fixed: Layout;
  entry: Layout;
}
interface SharedLayout {
  name: string;
  magic: number;
  version: { major: number; minor: number };
  blocks: readonly { name: string; offset?: number; strideBytes: number; count?: number; struct?: Layout }[];
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;
const isLayout = (value: unknown): value is Layout =>
  isObject(value) && "sizeBytes" in value && "fields" in value && "offsets" in value;
const isSection = (value: unknown): value is SectionLayout =>
  isObject(value) && "version" in value && "required" in value && isLayout(value.fixed);
const isShared = (value: unknown): value is SharedLayout => isObject(value) && "magic" in value && Array.isArray(value.blocks);
const isNumber = (value: unknown): value is number | bigint => typeof value === "number" || typeof value === "bigint";

/** Everything binary among `exports`, the namespace of a package. */
export function binarySurfaceOf(exports: Readonly<Record<string, unknown>>): BinarySurface {
  const structs = new Map<string, Structure>();
  const surface: BinarySurface = { ioctls: {}, constants: {}, structs: [], sections: [], sharedMemory: [] };
  const sections = new Map<string, SectionLayout>();
  // The version of a layout goes up by rules of its own
  const versions = new Set(Object.values(exports).flatMap((value) => (isShared(value) ? [value.version] : [])));
  const exportOf = (wanted: unknown) => Object.keys(exports).find((name) => exports[name] === wanted);
  const add = (layout: Layout, exportedAs?: string): void => {
    const known = structs.get(layout.name);
    if (known) {
      if (known.sizeBytes !== layout.sizeBytes)
        throw new GateError(
          `two structures are called ${layout.name}, of ${known.sizeBytes} and ${layout.sizeBytes} bytes: name them apart`,
        );
      if (exportedAs !== undefined) known.exportedAs ??= exportedAs;
      return;
    }
    const { name, sizeBytes, tail, sizeNegotiatedBy } = layout;
    structs.set(name, {
      name,
      ...(exportedAs === undefined ? {} : { exportedAs }),
      sizeBytes,
      ...(tail ? { tail: { name: tail.name, strideBytes: tail.strideBytes } } : {}),
      ...(sizeNegotiatedBy === undefined ? {} : { sizeNegotiatedBy }),
      fields: fieldsOf(layout.fields, add),
    });
  };
  // Exported layouts first, so that one that is also within another keeps its export's name
  for (const name of Object.keys(exports).sort()) {
    const value = exports[name];
    if (isLayout(value)) add(value, name);
  }
  for (const name of Object.keys(exports).sort()) {
    const value = exports[name];
    if (name === "ABI_FEATURE_LEVEL" && typeof value === "number") surface.featureLevel = value;
    else if (isNumber(value)) surface.constants[name] = plain(value);
    else if (isLayout(value)) continue;
    else if (isSection(value)) {
      // What older modules write is read on: its layout is part of the surface, the version is that of the latest
      add(value.fixed);
      const known = sections.get(value.name);
      if (known === undefined || known.version < value.version) sections.set(value.name, value);
    } else if (isShared(value)) surface.sharedMemory.push(sharedOf(value, exportOf(value.version), add));
    else if (isObject(value) && !Array.isArray(value) && !versions.has(value as SharedLayout["version"])) {
      for (const key of Object.keys(value)) {
        const number = value[key];
        if (!isNumber(number)) continue;
        if (name === "Ioctl" && typeof number === "number") surface.ioctls[key] = number;
        else surface.constants[`${name}.${key}`] = plain(number);
      }
    }
  }
  // A list of sections says in which order they are sent
  const listed = Object.values(exports).find(
    (value): value is SectionLayout[] => Array.isArray(value) && value.length > 0 && value.every(isSection),
  );
  for (const section of new Set([...(listed ?? []), ...sections.values()])) {
    add(section.fixed);
    const hasEntries = section.entry.sizeBytes > 0;
    if (hasEntries) add(section.entry);
    const { name, version, required } = section;
    surface.sections.push({
      name,
      version,
      required,
      fixed: section.fixed.name,
      ...(hasEntries ? { entry: section.entry.name } : {}),
    });
  }
  surface.structs = [...structs.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  surface.ioctls = sorted(surface.ioctls);
  surface.constants = sorted(surface.constants);
  return surface;
}

function fieldsOf(fields: Record<string, LayoutField>, add: (layout: Layout) => void): Field[] {
  return Object.entries(fields)
    .map(([name, field]): Field => {
      if (field.struct) add(field.struct);
      return {
        name,
        offset: field.offset,
        sizeBytes: field.sizeBytes,
        type: field.type,
        ...(field.count === undefined ? {} : { count: field.count }),
        ...(field.members ? { members: fieldsOf(field.members, add) } : {}),
      };
    })
    .sort((a, b) => a.offset - b.offset || (a.name < b.name ? -1 : 1));
}

function sharedOf(shared: SharedLayout, versionExportedAs: string | undefined, add: (layout: Layout) => void): SharedMemory {
  return {
    name: shared.name,
    ...(versionExportedAs === undefined ? {} : { versionExportedAs }),
    magic: shared.magic,
    major: shared.version.major,
    minor: shared.version.minor,
    blocks: shared.blocks.map(({ name, offset, strideBytes, count, struct }) => {
      if (struct) add(struct);
      return {
        name,
        ...(offset === undefined ? {} : { offset }),
        strideBytes,
        ...(count === undefined ? {} : { count }),
        ...(struct ? { struct: struct.name } : {}),
      };
    }),
  };
}

function plain(value: number | bigint): number | string {
  return typeof value === "bigint" ? `${value}n` : value;
}

function sorted<Value>(record: Record<string, Value>): Record<string, Value> {
  return Object.fromEntries(Object.entries(record).sort(([a], [b]) => (a < b ? -1 : 1)));
}
