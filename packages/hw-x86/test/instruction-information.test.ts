/** Exits that tell of an instruction's operands: the VM-exit instruction-information field and the displacement. */
import { describe, expect, it } from "vitest";
import { Engine } from "../src/engine/engine.ts";
import { ExitReason, Secondary } from "../src/vmx/controls.ts";
import { engineMode, HOT_ENTRIES_IN_TESTS } from "./engine-mode.ts";
import { CODE, VmxHarness } from "./vmx-harness.ts";

const NO_INDEX = 1 << 22;
const NO_BASE = 1 << 27;
const AS_64 = 2 << 7;
const AS_32 = 1 << 7;
const DS = 3 << 15;
const SS = 2 << 15;
const FS = 4 << 15;
const base = (register: number): number => register << 23;
const index = (register: number, scale: number): number => (register << 18) | scale;
const kind = (number: number): number => number << 28;
const OPERAND_32 = 1 << 11;
const REGISTER = 1 << 10;

function run(code: readonly number[], secondary = 0): { h: VmxHarness; reason: number; qualification: number; field: number } {
  const h = new VmxHarness({
    mode: "long",
    engine: (options) => new Engine({ ...options, translate: engineMode(), hotEntries: HOT_ENTRIES_IN_TESTS }),
  });
  h.load(code);
  h.setControl("SECONDARY_CONTROLS", secondary);
  const { reason, instructionLength, rip } = h.run();
  expect([instructionLength, rip]).toEqual([code.length, CODE]);
  const qualification = Number(BigInt.asIntN(64, h.cpu.vmx.vmread(0x6400)));
  return { h, reason, qualification, field: h.read("EXIT_INSTRUCTION_INFO") };
}
type Case = readonly [string, readonly number[], number, number, number, number?];

const TABLES = Secondary.descriptorTableExiting;
const GDTR = ExitReason.gdtrIdtr;
const LDTR = ExitReason.ldtrTr;
const cases: readonly Case[] = [
  ["SGDT [rbx]", [0x0f, 0x01, 0x03], GDTR, AS_64 | DS | NO_INDEX | base(3) | OPERAND_32 | kind(0), 0, TABLES],
  ["SIDT [rbp - 8]", [0x0f, 0x01, 0x4d, 0xf8], GDTR, AS_64 | SS | NO_INDEX | base(5) | OPERAND_32 | kind(1), -8, TABLES],
  [
    "LGDT fs:[r9 + r14 * 4 + 0x1000]",
    [0x64, 0x43, 0x0f, 0x01, 0x94, 0xb1, 0, 0x10, 0, 0],
    GDTR,
    AS_64 | FS | index(14, 2) | base(9) | OPERAND_32 | kind(2),
    0x1000,
    TABLES,
  ],
  [
    "LIDT [rip + 0x10]",
    [0x0f, 0x01, 0x1d, 0x10, 0, 0, 0],
    GDTR,
    AS_64 | DS | NO_INDEX | NO_BASE | OPERAND_32 | kind(3),
    CODE + 7 + 0x10,
    TABLES,
  ],
  ["SLDT eax", [0x0f, 0x00, 0xc0], LDTR, REGISTER | kind(0), 0, TABLES],
  ["STR r9w", [0x66, 0x41, 0x0f, 0x00, 0xc9], LDTR, REGISTER | (9 << 3) | kind(1), 0, TABLES],
  ["LLDT [ecx]", [0x67, 0x0f, 0x00, 0x11], LDTR, AS_32 | DS | NO_INDEX | base(1) | kind(2), 0, TABLES],
  ["LTR dx", [0x0f, 0x00, 0xda], LDTR, REGISTER | (2 << 3) | kind(3), 0, TABLES],
  ["VMREAD [rax], rdx", [0x0f, 0x78, 0x10], ExitReason.vmread, (AS_64 | DS | NO_INDEX | base(0) | kind(2)) >>> 0, 0],
  ["VMWRITE rdi, rsi", [0x0f, 0x79, 0xfe], ExitReason.vmwrite, (REGISTER | (6 << 3) | kind(7)) >>> 0, 0],
  ["VMPTRLD [rsp + 8]", [0x0f, 0xc7, 0x74, 0x24, 8], ExitReason.vmptrld, AS_64 | SS | NO_INDEX | base(4), 8],
  [
    "INVVPID r15, [rax + rcx * 8]",
    [0x66, 0x44, 0x0f, 0x38, 0x81, 0x3c, 0xc8],
    ExitReason.invvpid,
    (AS_64 | DS | index(1, 3) | base(0) | kind(15)) >>> 0,
    0,
  ],
  ["RDRAND r10", [0x49, 0x0f, 0xc7, 0xf2], ExitReason.rdrand, (10 << 3) | (2 << 11), 0, Secondary.rdrandExiting],
  ["RDSEED cx", [0x66, 0x0f, 0xc7, 0xf9], ExitReason.rdseed, 1 << 3, 0, Secondary.rdseedExiting],
];

describe("instruction information", () => {
  const named = cases.map(([text, code, reason, field, displacement, secondary]) => ({
    text,
    code,
    reason,
    field,
    displacement,
    secondary,
  }));
  it.each(named)("of $text", ({ code, reason, field, displacement, secondary }) => {
    const exit = run(code, secondary);
    expect(exit.reason).toBe(reason);
    expect(exit.field.toString(16)).toBe((field >>> 0).toString(16));
    expect(exit.qualification).toBe(displacement);
  });

  it("has the operand size, segments and register pairs of 16-bit code", () => {
    // sgdt [bp + si - 2]; o32 sgdt [bx]; a32 lidt es:[eax + ecx * 4 + 0x12345]; sgdt [0x1234]
    for (const [code, field, displacement] of [
      [[0x0f, 0x01, 0x42, 0xfe], SS | index(6, 0) | base(5) | kind(0), -2],
      [[0x66, 0x0f, 0x01, 0x07], DS | NO_INDEX | base(3) | OPERAND_32 | kind(0), 0],
      [[0x67, 0x26, 0x0f, 0x01, 0x9c, 0x88, 0x45, 0x23, 1, 0], AS_32 | index(1, 2) | base(0) | kind(3), 0x1_2345],
      [[0x0f, 0x01, 0x06, 0x34, 0x12], DS | NO_INDEX | NO_BASE | kind(0), 0x1234],
    ] as const) {
      const h = new VmxHarness({ mode: "real", engine: (options) => new Engine({ ...options, translate: engineMode() }) });
      h.load(code);
      h.setControl("SECONDARY_CONTROLS", Secondary.descriptorTableExiting);
      expect(h.run()).toMatchObject({ reason: ExitReason.gdtrIdtr, instructionLength: code.length });
      expect(h.read("EXIT_INSTRUCTION_INFO").toString(16)).toBe((field >>> 0).toString(16));
      expect(Number(BigInt.asIntN(64, h.cpu.vmx.vmread(0x6400)))).toBe(displacement);
    }
  });

  it("is of instructions whose exits are switched on, and of those only", () => {
    // sgdt [0x10_0000]; sldt eax; rdrand ecx; rdseed ecx; hlt
    const code = [0x0f, 0x01, 0x04, 0x25, 0, 0, 0x10, 0, 0x0f, 0, 0xc0, 0x0f, 0xc7, 0xf1, 0x0f, 0xc7, 0xf9];
    const h = new VmxHarness({ mode: "long", engine: (options) => new Engine({ ...options, translate: engineMode() }) });
    h.load([...code, 0xf4]);
    expect(h.run()).toMatchObject({ reason: ExitReason.hlt, rip: CODE + code.length });
    h.setControl("SECONDARY_CONTROLS", Secondary.rdseedExiting);
    h.write("GUEST_RIP", CODE);
    expect(h.run()).toMatchObject({ reason: ExitReason.rdseed, rip: CODE + 14 });
  });

  it("comes after #UD and #GP, which the instructions raise as ever", () => {
    // lgdt at CPL 3 through a guest without a handler: a triple fault, not an exit of its own
    const h = new VmxHarness({ mode: "real", engine: (options) => new Engine({ ...options, translate: engineMode() }) });
    h.load([0x0f, 0x00, 0xc0]);
    h.setControl("SECONDARY_CONTROLS", Secondary.descriptorTableExiting);
    h.write("EXCEPTION_BITMAP", 1 << 6);
    expect(h.run()).toMatchObject({ reason: ExitReason.exceptionOrNmi });
    expect(h.read("EXIT_INTERRUPTION_INFO") & 0xff).toBe(6);
  });
});
