/** Hardware task switches: by JMP, CALL, INT and IRET, to task state segments that are good and bad in every way. */
import type { CaseWriter, SystemCase } from "./case-writer.ts";
import {
  DATA,
  descriptor,
  GDT,
  gate,
  OTHER_TASK_STACK,
  OTHER_TSS,
  OTHER_TSS_16,
  PAGE,
  Selector,
  SHORT_TSS_16,
  TSS,
} from "./layout.ts";

const VECTOR = 0x60;
const NT = 0x4000;

type Way = "jmp" | "call" | "gate" | "int" | "iret";
const WAYS: readonly Way[] = ["jmp", "call", "gate", "int", "iret"];

function actionOf(way: Way, selector: number): number[] {
  switch (way) {
    case "jmp":
      return [0xea, 0, 0, 0, 0, selector & 0xff, selector >>> 8];
    case "call":
      return [0x9a, 0, 0, 0, 0, selector & 0xff, selector >>> 8];
    case "gate":
      return [0x9a, 0, 0, 0, 0, Selector.gate, 0];
    case "int":
      return [0xcd, VECTOR];
    case "iret":
      return [0xcf];
  }
}

function setupOf(way: Way, selector: number): (m: CaseWriter) => void {
  return (m) => {
    if (way === "gate") m.define(Selector.gate, gate(selector, 0, 0xe5));
    if (way === "int") m.interruptGate(VECTOR, gate(selector, 0, 0xe5));
    // The task to return to is busy
    if (way === "iret")
      m.poke(TSS, selector, 2)
        .at(GDT + (selector & ~7) + 5, 1, 0x80)
        .bytes(2);
  };
}

const cases: SystemCase[] = [];
function add(
  name: string,
  setup: (m: CaseWriter, way: Way) => void,
  options: { selector?: number; ways?: readonly Way[]; rings?: readonly (0 | 3)[]; flags?: number; isLong?: boolean } = {},
): void {
  const { selector = Selector.otherTask, ways = WAYS, rings = [0], flags = 0, isLong = false } = options;
  for (const way of ways)
    for (const ring of rings)
      cases.push({
        name: `task switch by ${way}: ${name}, privilege ${ring}`,
        bits: 32,
        ring,
        flags: way === "iret" ? flags | NT : flags,
        setup: (m) => {
          // The manual wants #TS handled by a task: the one that faults may be in no state to do it
          for (let i = 0; i < 4; i++) m.interruptGate(10 + i, gate(Selector.faultTask + i * 8, 0, 0x85));
          setupOf(way, selector)(m);
          setup(m, way);
        },
        action: actionOf(way, selector),
        isLong: isLong && way !== "jmp",
      });
}
const nothing = (): void => undefined;
const taskAccess = GDT + Selector.otherTask + 5;
/** A field of the other task. */
const field =
  (offset: number, value: number, size: 2 | 4 = 4) =>
  (m: CaseWriter) =>
    void m.poke(OTHER_TSS + offset, value, size);

add("good", nothing, { rings: [0, 3] });
add("good, flags set", nothing, { flags: 0xcd7 & ~0x300 });
add("16-bit, good", nothing, { selector: Selector.otherTask16, rings: [0, 3] });
for (const access of [0x09, 0x89, 0xe9, 0x8b, 0xeb, 0x82, 0x80, 0x84, 0x8c, 0x92, 0x9a, 0x81, 0x83, 0x85, 0x8e])
  add(`access ${access.toString(16)}`, (m) => void m.poke(taskAccess, access, 1), { rings: [0, 3] });
for (const limit of [0x66, 0x65, 0x2b, 0, 0xff])
  add(`limit ${limit.toString(16)}`, (m) => void m.poke(GDT + Selector.otherTask, limit, 2));
add("limit too small of 16 bits", (m) => void m.poke(GDT + Selector.otherTask16, 0x2a, 2), { selector: Selector.otherTask16 });
for (const selector of [0, 0x5c, 0x1f8, 0x200, 0x5b])
  add(`selector ${selector.toString(16)}`, nothing, { selector, ways: ["jmp", "gate", "int"], rings: [0, 3] });
for (const selector of [0, 0x5c, 0x1f8, 0x200])
  add(`back link ${selector.toString(16)}`, (m) => void m.poke(TSS, selector, 2), { ways: ["iret"] });

// What the new task's registers may be: LDTR, CS, SS, data segments
for (const ldt of [Selector.ldt, 4, 0x10, 0x1f8, 0x200, Selector.test])
  add(`LDT ${ldt.toString(16)}`, field(0x60, ldt), { isLong: true });
add("absent LDT", (m) => void m.define(Selector.test, descriptor(PAGE, 0x7f, 0x02, 0)).poke(OTHER_TSS + 0x60, Selector.test));
for (const cs of [0, 0x10, 0x1b, 0xb, 0x1f8, 0x200, 0xa1, Selector.test])
  add(`CS ${cs.toString(16)}`, field(0x4c, cs), { isLong: true });
for (const access of [0x1a, 0x9a, 0x9e, 0xfa, 0xfe, 0x98, 0x92])
  for (const rpl of [0, 3])
    add(
      `CS of access ${access.toString(16)}, RPL ${rpl}`,
      (m) =>
        void m
          .define(Selector.test, descriptor(0, 0xf_ffff, access))
          .poke(OTHER_TSS + 0x4c, Selector.test | rpl)
          .poke(OTHER_TSS + 0x50, DATA[rpl as 0 | 3]),
      { ways: ["jmp"] },
    );
for (const ss of [0, 0x8, 0x23, 0x13, 0x1f8, 0x200]) add(`SS ${ss.toString(16)}`, field(0x50, ss), { isLong: true });
for (const access of [0x12, 0x92, 0x90, 0xf2, 0x9a])
  add(
    `SS of access ${access.toString(16)}`,
    (m) => void m.define(Selector.test, descriptor(0, 0xf_ffff, access)).poke(OTHER_TSS + 0x50, Selector.test),
    { ways: ["jmp", "int"] },
  );
for (const offset of [0x48, 0x54, 0x58, 0x5c]) {
  for (const selector of [0, 0x8, 0x23, 0x13, 0x1f8, 0x200, Selector.task])
    add(`data segment at ${offset.toString(16)}, ${selector.toString(16)}`, field(offset, selector), { ways: ["jmp"] });
  for (const access of [0x12, 0x98, 0x9a, 0xf2])
    add(
      `data segment at ${offset.toString(16)} of access ${access.toString(16)}`,
      (m) => void m.define(Selector.test, descriptor(0, 0xf_ffff, access)).poke(OTHER_TSS + offset, Selector.test),
      { ways: ["jmp"] },
    );
}
add(
  "EIP past the limit",
  (m) => void m.define(Selector.test, descriptor(PAGE, 0xf, 0x9a, 4)).poke(OTHER_TSS + 0x4c, Selector.test),
);
add("to privilege 3", (m) => {
  m.poke(OTHER_TSS + 0x4c, 0x1b)
    .poke(OTHER_TSS + 0x50, 0x23)
    .poke(OTHER_TSS + 0x48, 0x23)
    .poke(OTHER_TSS + 0x54, 0x23);
});
add("to virtual-8086 mode", (m) => {
  m.poke(OTHER_TSS + 0x24, 0x2_3002)
    .poke(OTHER_TSS + 0x4c, PAGE >>> 4)
    .poke(OTHER_TSS + 0x20, 0);
  m.poke(OTHER_TSS + 0x50, 0x3000).poke(OTHER_TSS + 0x38, 0x1000);
});
add("flags with NT, TF", field(0x24, 0x4102), { ways: ["jmp", "call"] });
add("flags with all bits", field(0x24, 0x24_0ed7), { ways: ["jmp", "call"] });
add("trap flag", (m) => void m.poke(OTHER_TSS + 0x64, 1, 2));
add("trap flag and DR7.L0", (m) => void m.writeDr(7, 0x501).poke(OTHER_TSS + 0x64, 1, 2), { ways: ["jmp"] });
add("stack pointer of the code's error", field(0x38, OTHER_TASK_STACK & 0xffff), { ways: ["int"] });

/** IRET out of a task that was called: back to the first. */
add(
  "and back by IRET",
  (m) => {
    m.poke(PAGE + 0x40, 0xcd_90_cf90 | 0)
      .poke(PAGE + 0x44, 0x81)
      .poke(OTHER_TSS + 0x20, PAGE + 0x40);
  },
  { ways: ["call", "gate", "int"], rings: [0, 3] },
);
add(
  "16-bit, and back by IRET",
  (m) => {
    m.poke(PAGE + 0x40, 0xcd_90_cf90 | 0)
      .poke(PAGE + 0x44, 0x81)
      .poke(OTHER_TSS_16 + 0xe, 0x40, 2);
  },
  { selector: Selector.otherTask16, ways: ["call", "gate", "int"] },
);
add(
  "out of a 16-bit task",
  (m) => {
    m.define(Selector.test, descriptor(SHORT_TSS_16, 0x2b, 0x81, 0))
      .load("eax", Selector.test)
      .bytes(0x0f, 0x00, 0xd8);
  },
  { ways: ["jmp", "call", "int"] },
);
// Exceptions through task gates have their error codes on the new task's stack
for (const vector of [6, 10, 11, 13])
  cases.push({
    name: `exception ${vector} through a task gate`,
    bits: 32,
    registers: { ebx: vector === 11 ? Selector.test : 0xffff_ffff },
    setup: (m) => {
      m.interruptGate(vector, gate(Selector.otherTask, 0, 0x85)).define(Selector.test, descriptor(PAGE, 0xfff, 0x12, 4));
      m.poke(OTHER_TSS + 0x20, PAGE + 0x10);
    },
    action: vector === 6 ? [0x0f, 0x0b] : vector === 11 ? [0x8e, 0xdb] : [0x0f, 0x22, 0xe3],
  });

export const taskCases: readonly SystemCase[] = cases;
