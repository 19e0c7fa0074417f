/**
 * The worked example of docs/how-the-engine-works.md: a small loop, run by the engine, with what became of it on the way. What the
 * document shows between its marks is this text, so that it is what the engine does.
 */
import { Decoder, DecoderOptions, Formatter, FormatterSyntax } from "iced-x86";
import initWabt from "wabt";
import { gprOffset, OP_ARENA, RCX, RSI, state, TLB } from "../src/engine/cpu-state.ts";
import { variants } from "../src/engine/decoder/decoder.ts";
import { interpreterTables } from "../src/engine/interpreter/instance.ts";
import { Synthetic } from "../src/engine/interpreter/synthetic.ts";
import { block, OP_BYTES, op } from "../src/engine/operation.ts";
import { captureModules } from "./captured-modules.ts";
import { createFlatMachine } from "./flat-machine.ts";

/** The largest of RAX and of RCX quadwords at RSI, into RAX. */
const CODE = [
  [0x48, 0x8b, 0x16],
  [0x48, 0x83, 0xc6, 0x08],
  [0x48, 0x39, 0xc2],
  [0x76, 0x03],
  [0x48, 0x89, 0xd0],
  [0x48, 0xff, 0xc9],
  [0x75, 0xec],
  [0xf4],
].flat();
const AT = 0x1000;
const ARRAY = 0x8000;
/** Even, and more rounds than the translator waits for. */
const COUNT = 5000;

const REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split(" ");
const FLAG_LOCALS = ["flagKind", "flagFirst", "flagSecond", "flagResult", "flagCarry", "flagOverflow"];

export interface WorkedExample {
  /** Address, bytes and instruction. */
  code: string;
  /** The operations of the loop's block, as they lie in the arena. */
  operations: string;
  /** The function of the region in the WebAssembly text format. */
  region: string;
  /** RAX at the end, and what it must be. */
  largest: bigint;
  expected: bigint;
}

export async function workedExample(): Promise<WorkedExample> {
  const machine = createFlatMachine(64, 4 << 20, "hot");
  const { engine, ram } = machine;
  ram.set(CODE, AT);
  const array = new BigUint64Array(ram.buffer, ram.byteOffset + ARRAY, COUNT);
  array.forEach((_, i) => {
    // Every second one is larger than all before, so that neither way of the branch is rare
    array[i] = i % 2 === 1 ? BigInt(i) : 0n;
  });
  engine.set64(state.rip, BigInt(AT));
  engine.setReg(RSI, BigInt(ARRAY));
  engine.setReg(RCX, BigInt(COUNT));
  const modules = captureModules(() => engine.run(100_000));
  const [region] = modules;
  if (region === undefined) throw new Error("nothing was translated");
  return {
    code: disassemble(),
    operations: operations(engine),
    region: await regionText(region),
    largest: engine.u64[gprOffset(0) >>> 3] as bigint,
    expected: BigInt(COUNT - 1),
  };
}

function disassemble(): string {
  const decoder = new Decoder(64, Uint8Array.from(CODE), DecoderOptions.None);
  decoder.ip = BigInt(AT);
  const formatter = new Formatter(FormatterSyntax.Intel);
  const lines: string[] = [];
  while (decoder.canDecode) {
    const at = decoder.position;
    const instruction = decoder.decode();
    const bytes = CODE.slice(at, decoder.position).map((byte) => byte.toString(16).padStart(2, "0"));
    lines.push(`${(AT + at).toString(16)}  ${bytes.join(" ").padEnd(12)} ${formatter.format(instruction)}`);
  }
  return lines.join("\n");
}

type Engine = ReturnType<typeof createFlatMachine>["engine"];

/** The first block of the arena, which is the first that the engine met. */
function operations({ u8, u16, u32, i32, u64 }: Engine): string {
  const tables = interpreterTables();
  const names = new Map<number, string>();
  for (const [suffix, numbers] of [
    ["", tables.general],
    [", flat segment", tables.flat],
    [", flat segment, no index", tables.flatNoIndex],
  ] as const) {
    for (const { number, instruction, form } of variants)
      names.set(numbers[number] as number, `${instruction.mnemonic} ${form.operands}${suffix}`);
  }
  names.set(Synthetic.end, "(end of block)");
  const header = OP_ARENA;
  const registerAt = (offset: number): string => {
    const index = (offset - state.gpr) >>> 3;
    return index >= 0 && index < 16 ? (REGISTERS[index] as string) : offset === state.zero ? "none" : `${offset}`;
  };
  const count = u32[(header + block.count) >>> 2] as number;
  const lines = [`header  instructions ${count}  bytes ${u32[(header + block.bytes) >>> 2]}`];
  for (let i = 1; i <= count; i++) {
    const at = header + i * OP_BYTES;
    lines.push(
      [
        `+${u16[(at + op.ripOffset) >>> 1]}`.padEnd(4),
        (names.get(u16[(at + op.handler) >>> 1] as number) ?? "?").padEnd(48),
        `length ${u8[at + op.length]}`,
        `a ${registerAt(u16[(at + op.a) >>> 1] as number)}`.padEnd(6),
        `base ${registerAt(u16[(at + op.base) >>> 1] as number)}`.padEnd(9),
        `displacement ${i32[(at + op.displacement) >>> 2]}`,
        `immediate ${BigInt.asIntN(64, u64[(at + op.immediate) >>> 3] as bigint)}`,
      ].join("  "),
    );
  }
  return lines.join("\n");
}

/** The function alone, its locals called what they hold, and offsets into the bank by name. */
async function regionText(bytes: Uint8Array): Promise<string> {
  const wabt = await initWabt();
  const parsed = wabt.readWasm(bytes, { readDebugNames: true, simd: true, threads: true, tail_call: true } as never);
  parsed.generateNames();
  parsed.applyNames();
  const whole = parsed.toText({ foldExprs: true, inlineExport: false });
  parsed.destroy();
  let text = whole.slice(whole.indexOf("  (func $region"), whole.indexOf("  (export"));
  const rename = (local: string | undefined, name: string): void => {
    if (local === undefined)
      throw new Error(`no local holds ${name}: the example's reading of the region must follow the translator`);
    text = text.replaceAll(new RegExp(`\\${local}(?![\\w])`, "g"), `$${name}`);
  };
  const found = (pattern: RegExp): string[] => pattern.exec(text)?.slice(1) ?? [];
  REGISTERS.forEach((register, index) => {
    const [local] = found(new RegExp(`local\\.set (\\$l\\d+)\\s*\\(i64\\.load offset=${gprOffset(index)} `));
    if (local) rename(local, register);
  });
  const [saved] = found(/call \$support\.saveFlags((?:\s*\(local\.get \$l\d+\))+)/);
  [...(saved ?? "").matchAll(/\$l\d+/g)].forEach(([local], i) => {
    rename(local, FLAG_LOCALS[i] as string);
  });
  rename(found(new RegExp(`i32\\.store offset=${state.budget} [^$]*(\\$l\\d+)`))[0], "budget");
  rename(found(/return_call \$support\.goOn\s*\(local\.get (\$l\d+)\)/)[0], "rip");
  rename(found(new RegExp(`local\\.set (\\$l\\d+)\\s*\\(i64\\.sub\\s*\\(i64\\.load offset=${state.blockRip} `))[0], "pageRip");
  rename(found(/call \$support\.moveTo\s*\(local\.get (\$l\d+)\)/)[0], "header");
  rename(found(/local\.get (\$l\d+)\)\)\s*$/)[0], "next");
  rename("$p0", "operation");
  // Their declarations: a line of some fifty, most of which this region does not use
  text = text.replace(/\n\s*\(local [^\n]*\n/, "\n");
  const places = new Map<number, string>([
    ...REGISTERS.map((register, index): [number, string] => [gprOffset(index), register]),
    ...(["blockRip", "budget", "tlbTag", "rip"] as const).map((name): [number, string] => [state[name], name]),
    [TLB, "TLB"],
    [TLB + 16, "TLB + 16"],
    [state.places, "place: page"],
    [state.places + 8, "place: addend"],
  ]);
  text = text.replace(/offset=(\d+) align=1/g, (_, offset) => {
    const place = places.get(Number(offset));
    return place ? `offset=${offset} (; ${place} ;)` : `offset=${offset}`;
  });
  text = text.replace(/ align=1$/gm, "").replace(/\.load align=1/g, ".load");
  return text
    .split("\n")
    .map((line) => line.replace(/^ {2}/, ""))
    .join("\n")
    .trim();
}

/** Puts the example into the document, between marks like `<!-- code -->` and the fence's end. */
export function withExample(document: string, example: WorkedExample): string {
  let text = document;
  for (const part of ["code", "operations", "region"] as const) {
    const mark = `<!-- ${part} -->\n`;
    const start = text.indexOf(mark);
    if (start < 0) throw new Error(`the document has no mark ${mark.trim()}`);
    const open = text.indexOf("\n", start + mark.length) + 1;
    const close = text.indexOf("\n```", open - 1);
    text = `${text.slice(0, open)}${example[part]}${text.slice(close)}`;
  }
  return text;
}
