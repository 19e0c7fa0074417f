/**
 * The report of one package: what it promises, as data. Sorted and without versions or dates, so that it changes only when the
 * promise does. `schemaVersion` is raised when a field changes its meaning; readers refuse what they do not know.
 */
import { z } from "zod";
import { GateError } from "../errors.ts";

export const SCHEMA_NAME = "mkvm-abi-report";
export const SCHEMA_VERSION = 1;

/** Who makes the values of a type: what may become more is a question of who has to cope with it. */
const MadeBySchema = z.enum(["package", "users", "both"]);
export type MadeBy = z.infer<typeof MadeBySchema>;

const DeclarationSchema = z.strictObject({
  /** Name within the package's declarations. */
  name: z.string(),
  /** "interface", "function", "constant", "type", "class", "enum", "namespace"; several where declarations merge. */
  kinds: z.array(z.string()),
  madeBy: MadeBySchema,
  /** Names, of the declaration or "Name.member", that are marked @deprecated. */
  deprecated: z.array(z.string()),
  /** Declarations of that name without comments, as the compiler prints them. */
  text: z.array(z.string()),
});
export type Declaration = z.infer<typeof DeclarationSchema>;

const ExportSchema = z.strictObject({
  name: z.string(),
  /** Declaration behind it; undefined for what another package declares. */
  local: z.string().optional(),
  /** Package that a re-export comes from. */
  from: z.string().optional(),
  typeOnly: z.boolean(),
});

const TypeApiSchema = z.strictObject({
  imports: z.array(z.string()),
  exports: z.array(ExportSchema),
  declarations: z.array(DeclarationSchema),
});
export type TypeApi = z.infer<typeof TypeApiSchema>;

export interface Field {
  name: string;
  /** Bytes from the start of the structure. */
  offset: number;
  sizeBytes: number;
  /** C spelling. */
  type: string;
  /** Elements of an array. */
  count?: number | undefined;
  /** Members of a union, all at its offset. */
  members?: Field[] | undefined;
}
const FieldSchema: z.ZodType<Field> = z.lazy(() =>
  z.strictObject({
    name: z.string(),
    offset: z.number(),
    sizeBytes: z.number(),
    type: z.string(),
    count: z.number().optional(),
    members: z.array(FieldSchema).optional(),
  }),
);

const StructureSchema = z.strictObject({
  name: z.string(),
  /** Export that has it, where one has. */
  exportedAs: z.string().optional(),
  sizeBytes: z.number(),
  tail: z.strictObject({ name: z.string(), strideBytes: z.number() }).optional(),
  /** What tells the two sides its size, where something does. */
  sizeNegotiatedBy: z.string().optional(),
  fields: z.array(FieldSchema),
});
export type Structure = z.infer<typeof StructureSchema>;

const SectionSchema = z.strictObject({
  name: z.string(),
  version: z.number(),
  required: z.boolean(),
  /** Names of structures. */
  fixed: z.string(),
  entry: z.string().optional(),
});

const SharedMemorySchema = z.strictObject({
  name: z.string(),
  /** Export that has the layout's version, where one has. */
  versionExportedAs: z.string().optional(),
  magic: z.number(),
  major: z.number(),
  minor: z.number(),
  /** In the order of their places. `count` is missing where the machine decides, and `offset` of what lies behind such a block. */
  blocks: z.array(
    z.strictObject({
      name: z.string(),
      offset: z.number().optional(),
      strideBytes: z.number(),
      count: z.number().optional(),
      struct: z.string().optional(),
    }),
  ),
});
export type SharedMemory = z.infer<typeof SharedMemorySchema>;

/** Numbers as they are; bigints as decimal text with an "n". */
const ConstantSchema = z.union([z.number(), z.string()]);

const BinarySurfaceSchema = z.strictObject({
  featureLevel: z.number().optional(),
  ioctls: z.record(z.string(), z.number()),
  /** "KVM_API_VERSION", "ExitReason.KVM_EXIT_IO". */
  constants: z.record(z.string(), ConstantSchema),
  structs: z.array(StructureSchema),
  /** In the order in which they are sent. */
  sections: z.array(SectionSchema),
  sharedMemory: z.array(SharedMemorySchema),
});
export type BinarySurface = z.infer<typeof BinarySurfaceSchema>;

const PackageReportSchema = z.strictObject({
  schema: z.literal(SCHEMA_NAME),
  schemaVersion: z.literal(SCHEMA_VERSION),
  package: z.string(),
  api: TypeApiSchema,
  binary: BinarySurfaceSchema.optional(),
});
export type PackageReport = z.infer<typeof PackageReportSchema>;

/** The report in canonical text: the same promise gives the same bytes. */
export function reportText(report: PackageReport): string {
  return `${JSON.stringify(PackageReportSchema.parse(report), null, 1)}\n`;
}

/**
 * Reads a report.
 * @throws GateError naming `where` it came from and the field that is wrong
 */
export function parseReport(text: string, where: string): PackageReport {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new GateError(`the ABI report of ${where} is no JSON: write it again with 'mkvm abi report'`);
  }
  const version = (value as { schemaVersion?: unknown } | null)?.schemaVersion;
  if (typeof version === "number" && version > SCHEMA_VERSION)
    throw new GateError(
      `the ABI report of ${where} has schema version ${version}, this gate reads ${SCHEMA_VERSION}: update @mkvm/abi-gate`,
    );
  const read = PackageReportSchema.safeParse(value);
  if (read.success) return read.data;
  const issue = read.error.issues[0]!;
  throw new GateError(`the ABI report of ${where} is damaged at ${issue.path.join(".") || "its root"}: ${issue.message}`);
}
