import { parseArgs } from "node:util";
import { type CpuModelName, cpuModelNamed } from "./cpu-models.ts";
import { type NamedFormat, namedFormats } from "./loaders/load-image.ts";
import { HIGH_MEMORY } from "./memory-layout.ts";
import { VmmError } from "./vmm-error.ts";

export interface VmmArguments {
  /** Undefined: the machine starts by the firmware in `flash`. */
  kernel: string | undefined;
  /** UEFI firmware: the file with its code, and the one that keeps its variables. */
  flash: { code: string; variables: string | undefined } | undefined;
  initrd: string | undefined;
  commandLine: string;
  memoryBytes: number;
  device: string;
  cpus: number;
  /** What its CPUs can do. */
  cpuModel: CpuModelName;
  format: NamedFormat | undefined;
  /** Print digests of memory and registers at the end, to compare runs. */
  digest: boolean;
}

const MIB = 1 << 20;
const LEAST_MEMORY = 2 * MIB;
const DEFAULT_MEMORY = 256 * MIB;
const MOST_CPUS = 16;

/** Reads the VMM's own arguments. Throws VmmError for anything that is not right. */
export function parseArguments(args: readonly string[]): VmmArguments {
  const values = optionsOf(args);
  const flash = values.pflash === undefined ? undefined : flashNamed(values.pflash);
  if (!values.kernel && !flash)
    throw new VmmError("no kernel given; add --kernel IMAGE, or for UEFI firmware --pflash CODE --pflash VARIABLES");
  const beside = (["kernel", "initrd", "append", "format"] as const).find((name) => values[name] !== undefined);
  if (flash && beside) throw new VmmError(`--pflash and --${beside} do not go together: firmware finds by itself what to boot`);
  const format = values.format as NamedFormat | undefined;
  if (format && !namedFormats.includes(format))
    throw new VmmError(`unknown format ${format}; one of ${namedFormats.join(", ")}`);
  return {
    kernel: values.kernel,
    flash,
    initrd: values.initrd,
    commandLine: values.append ?? "",
    memoryBytes: values.memory === undefined ? DEFAULT_MEMORY : memoryBytes(values.memory),
    device: values.device ?? "/dev/kvm",
    cpus: values.cpus === undefined ? 1 : wholeNumber(values.cpus, "--cpus", 1, MOST_CPUS),
    cpuModel: cpuModelNamed(values.cpu ?? "max"),
    format,
    digest: values.digest,
  };
}

function optionsOf(args: readonly string[]) {
  const text = { type: "string" } as const;
  const options = {
    kernel: text,
    pflash: { type: "string", multiple: true },
    initrd: text,
    append: text,
    memory: text,
    device: text,
    cpus: text,
    cpu: text,
    format: text,
    digest: { type: "boolean", default: false },
  } as const;
  try {
    return parseArgs({ args: [...args], options, strict: true }).values;
  } catch (error) {
    throw new VmmError(`${(error as Error).message.split(". ")[0]}; see mkvm run --help`);
  }
}

function flashNamed([code, variables, ...more]: string[]): { code: string; variables: string | undefined } {
  if (!code || variables === "" || more.length > 0)
    throw new VmmError(
      "--pflash is given once or twice: the file with the firmware's code, then the one that keeps its variables",
    );
  return { code, variables };
}

/** Bytes of guest RAM: a number of bytes, or with the suffix K, M or G. A multiple of 4 KiB, at least 2 MiB. */
export function memoryBytes(text: string): number {
  const match = /^(\d+)([KMG]?)$/i.exec(text);
  if (!match) throw new VmmError(`--memory ${text} is no size; give a number with K, M or G, as 256M`);
  const unit = { "": 1, K: 1 << 10, M: MIB, G: 1 << 30 }[match[2].toUpperCase() as "" | "K" | "M" | "G"];
  const bytes = Number(match[1]) * unit;
  if (bytes % 4096 !== 0) throw new VmmError(`--memory ${text} is not a multiple of 4 KiB`);
  if (bytes < LEAST_MEMORY)
    throw new VmmError(
      `--memory ${text} is too little: a guest needs at least ${LEAST_MEMORY / MIB}M, and RAM above ${HIGH_MEMORY / MIB} MiB to load into`,
    );
  return bytes;
}

function wholeNumber(text: string, name: string, least: number, most: number): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < least || value > most)
    throw new VmmError(`${name} ${text} is out of range; give ${least} to ${most}`);
  return value;
}
