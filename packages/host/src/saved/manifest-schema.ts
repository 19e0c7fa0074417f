/**
 * What a manifest has to be, to be read. Apart from the rest, and imported when a file is read: the library that checks it costs a
 * thread more time to load than all else of the kernel.
 */
import { CPU_MODELS } from "@mkvm/hw-x86";
import { z } from "zod";
import { HostError } from "../errors.ts";

const count = z.number().int().nonnegative();
const role = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("system") }),
  z.object({ kind: z.literal("vm") }),
  z.object({ kind: z.literal("vcpu"), id: count }),
  z.object({ kind: z.literal("vm-statistics") }),
  z.object({ kind: z.literal("vcpu-statistics"), id: count }),
]);

const manifest = z.object({
  /** Package of the program, and its version. */
  program: z.object({ package: z.string(), version: z.string() }),
  /** Package of the module that the VMs were on. */
  savedBy: z.object({ module: z.string(), package: z.string(), version: z.string() }),
  name: z.string(),
  args: z.array(z.string()),
  machine: z.object({
    vendor: z.enum(["intel", "amd"]),
    /** Files of before machines could have less name none. */
    cpuModel: z.enum(CPU_MODELS).default("max"),
    tscKhz: count,
  }),
  clock: z.object({ tsc: z.number(), monotonicNs: z.number() }),
  retired: count,
  bankBytes: count,
  memory: z.array(z.object({ address: count, lengthBytes: count })),
  systemFiles: z.array(z.object({ fd: count, path: z.string() })),
  vms: z.array(z.object({ files: z.array(z.object({ fd: count, name: z.string(), role })) })).min(1),
  /** Files of before there were any have none. */
  eventfds: z
    .array(
      z.object({
        id: count,
        count: z.string().regex(/^\d{1,20}$/),
        isSemaphore: z.boolean(),
        descriptors: z.array(z.object({ fd: count, isNonblocking: z.boolean() })),
      }),
    )
    .default([]),
  undelivered: z.array(z.object({ fd: count, request: count, result: z.number().int() })),
  /** Files of before it was kept have none, and older readers pass it by: their vCPUs take their turns anew. */
  turns: z
    .array(
      z.object({
        fd: count.optional(),
        thread: z.string().optional(),
        slice: z.object({ start: z.number(), end: z.number() }).optional(),
      }),
    )
    .default([]),
  inputEnded: z.boolean(),
});

export type Manifest = z.infer<typeof manifest>;

/** @throws HostError that names the key */
export function parseManifest(bytes: Uint8Array, file: string): Manifest {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new HostError("EINVAL", `${file}: section manifest[0] is no JSON`);
  }
  const parsed = manifest.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new HostError("EINVAL", `${file}: section manifest[0]: ${issue!.path.join(".")}: ${issue!.message}`);
}
