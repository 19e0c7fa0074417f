/**
 * A ROM for bare PCs that asks the processor what faults, and how: it goes from the reset vector to 32- or 64-bit code, runs case after
 * case, and prints a line for each: every word of the exception frame, the segment registers and general registers of that moment,
 * CR2, DR6, and what changed in descriptor tables, task state segments and page tables. Two machines are alike where their transcripts
 * are equal. It needs a processor, RAM, and a port that prints.
 */
import { Assembler } from "../../assembler/assembler.ts";
import { bytes32, CaseWriter, type SystemCase } from "./case-writer.ts";
import { BOOT, IMAGE_IN_ROM, memoryImage, ORIGIN, RESET_STATE, ROM_BYTES, Slot, STACK } from "./layout.ts";
import { bootCode, RESET_WORDS } from "./reset-state.ts";
import { SystemRuntime } from "./runtime.ts";

/** What ends the machine: Bochs by this word, @mkvm/vmm by a number. */
const BOCHS_SHUTDOWN_PORT = 0x8900;
const BOCHS_SHUTDOWN_WORD = "Shutdown";
const DEBUG_EXIT_PORT = 0xf4;

/** A transcript that is whole ends with it. */
export const LAST_LINE = "@end";

/** The first line, numbered 0, is the state after reset; that of case n is numbered n + 1. */
export function systemGuest(bits: 32 | 64, cases: readonly SystemCase[]): Uint8Array {
  const a = new Assembler(bits, ORIGIN);
  const m = new CaseWriter(a, bits);
  const runtime = new SystemRuntime(a, m);
  runtime.loadTables();
  m.bytes(0xbc, ...bytes32(STACK[0])).poke(Slot.index, 0); // mov esp
  runtime.printWords(RESET_STATE, RESET_WORDS.length);
  runtime.restore();
  for (const [i, each] of cases.entries()) emitCase(m, runtime, each, i + 1);
  const last = m.label("last line");
  for (const port of [0xe9, 0x402])
    m.loadLabel("esi", last)
      .load("ecx", LAST_LINE.length + 1)
      .load("edx", port)
      .bytes(0xf3, 0x6e);
  m.load("edx", BOCHS_SHUTDOWN_PORT);
  for (const character of BOCHS_SHUTDOWN_WORD) m.bytes(0xb0, character.charCodeAt(0), 0xee);
  m.bytes(0xb0, 0, 0xe6, DEBUG_EXIT_PORT, 0xf4, 0xeb, 0xfd);
  runtime.emit();
  a.place(last);
  a.text(`${LAST_LINE}\n`);
  const code = a.assemble();
  if (code.length > IMAGE_IN_ROM - ORIGIN)
    throw new Error(`the system guest's code has ${code.length} bytes, ${IMAGE_IN_ROM - ORIGIN} are there for it`);
  const rom = new Uint8Array(ROM_BYTES).fill(0xf4);
  rom.set(code);
  rom.set(
    memoryImage(
      bits,
      runtime.handlers.map((handler) => Number(a.address(handler))),
    ),
    IMAGE_IN_ROM - ORIGIN,
  );
  rom.set(bootCode(bits), BOOT - ORIGIN);
  return rom;
}

function emitCase(m: CaseWriter, runtime: SystemRuntime, each: SystemCase, index: number): void {
  const next = m.label(`next ${index}`);
  const { ring = 0, flags = 0, paging: wanted, registers = {} } = each;
  m.begin = m.label(`begin ${index}`);
  m.poke(Slot.index, index).pokeLabel(Slot.begin, m.begin).pokeLabel(Slot.next, next);
  each.setup?.(m);
  const mode = wanted?.mode ?? "off";
  if (mode !== "off") m.call(runtime.pagingMode(mode, wanted?.cr0 ?? 0, wanted?.cr4 ?? 0, wanted?.efer ?? 0));
  for (const [name, value] of Object.entries(registers)) m.load(name as keyof typeof registers, value);
  if (ring === 0) m.bytes(0x68, ...bytes32(flags | 2), 0x9d); // push; popf
  if (ring !== 0) m.call(runtime.entry(ring, flags, ring === 3 && (mode !== "off" || m.bits === 64)));
  m.place(m.begin);
  if (typeof each.action === "function") each.action(m);
  else m.bytes(...each.action);
  m.bytes(0xcd, 0x81).place(next);
}
