/** Segment registers, LDTR and TR, and the instructions that examine descriptors. */
import { CS, DS, ES, FS, GS, SEG_SELECTOR, SS, segmentOffset, state } from "../cpu-state.ts";
import type { Emitter, Int, Size } from "../emitter.ts";
import { type Attribute, form, type Instruction, instruction, sdm } from "../instruction.ts";
import { behaves, VendorBehaviour } from "../vendor-behaviour.ts";
import { pop, push } from "./stack-access.ts";

/** MOV SS and POP SS hold off interrupts for one instruction; LSS does not. */
const BLOCKS_EVENTS = 1;

export const MOV_TO_SEGMENT = instruction("MOV", {
  source: sdm("2B", "MOV - Move"),
  forms: [form("8E /r", "sreg, r/m16")],
  semantics(e, [register, source]) {
    const selector = e.read(source);
    e.helper("loadSegment", e.low32(e.read(register)), e.low32(selector), BLOCKS_EVENTS);
    e.endBlock();
  },
});

export const MOV_FROM_SEGMENT = instruction("MOV", {
  source: sdm("2B", "MOV - Move"),
  forms: [form("8C /r mod=3", "rv=rm, sreg"), form("8C /r mod!=3", "m16, sreg")],
  semantics(e, [target, register]) {
    e.write(target, e.fromI32(e.helper("readSegment", e.low32(e.read(register)))));
  },
});

function pushRow(name: string, segment: number, opcode: string, ...attributes: Attribute[]): Instruction {
  return instruction(`PUSH ${name}`, {
    source: sdm("2B", "PUSH - Push Word, Doubleword, or Quadword Onto the Stack"),
    forms: [form(opcode, "", ...attributes)],
    semantics(e) {
      push(e, e.state(segmentOffset(segment) + SEG_SELECTOR, 16));
    },
  });
}

function popRow(name: string, segment: number, opcode: string, ...attributes: Attribute[]): Instruction {
  return instruction(`POP ${name}`, {
    source: sdm("2B", "POP - Pop a Value From the Stack"),
    forms: [form(opcode, "", ...attributes)],
    semantics(e) {
      const { value, release } = pop(e);
      e.helper("loadSegment", segment, e.low32(e.truncate(value, 16)), BLOCKS_EVENTS);
      release();
      e.endBlock();
    },
  });
}

interface FarPointer {
  readonly offset: Int;
  readonly selector: Int;
}

function loadPointer(e: Emitter, address: Int, size: Size): FarPointer {
  const offset = e.loadDefault(address, size);
  const behind = e.and(e.add(address, e.int(size / 8), 64), e.addressMask());
  return { offset, selector: e.loadDefault(behind, 16) };
}

/** With REX.W: of 64 bits or of 32, by the vendor. */
function loadWidePointer(e: Emitter, address: Int): FarPointer {
  const offset = e.variable("i64", e.int(0));
  const selector = e.variable("i64", e.int(0));
  const load = (size: Size): void => {
    const pointer = loadPointer(e, address, size);
    offset.set(pointer.offset);
    selector.set(pointer.selector);
  };
  e.if(
    behaves(e, VendorBehaviour.farPointersHave64Bits),
    () => load(64),
    () => load(32),
  );
  return { offset: offset.get(), selector: selector.get() };
}

function loadPointerRow(mnemonic: string, segment: number, opcode: string, ...attributes: Attribute[]): Instruction {
  return instruction(mnemonic, {
    source: sdm("2A", "LDS/LES/LFS/LGS/LSS - Load Far Pointer"),
    forms: [form(opcode, "rv, m16:v", ...attributes)],
    semantics(e, [target, memory]) {
      const address = e.address(memory);
      const { offset, selector } = e.size === 64 ? loadWidePointer(e, address) : loadPointer(e, address, e.size);
      e.helper("loadSegment", segment, e.low32(selector), 0);
      e.write(target, offset);
      e.endBlock();
    },
  });
}

const SLDT_CODE = 0;
const STR_CODE = 1;
const LLDT_CODE = 2;
const LTR_CODE = 3;

function storeSelectorRow(mnemonic: string, source: string, digit: number, which: number, helper: string): Instruction {
  return instruction(mnemonic, {
    source,
    forms: [form(`0F 00 /${digit} mod=3`, "rv=rm"), form(`0F 00 /${digit} mod!=3`, "m16")],
    semantics(e, [target]) {
      e.helper("descriptorTableAccess", which);
      e.write(target, e.fromI32(e.helper(helper)));
    },
  });
}

function loadSelectorRow(mnemonic: string, source: string, digit: number, which: number, helper: string): Instruction {
  return instruction(mnemonic, {
    source,
    forms: [form(`0F 00 /${digit}`, "r/m16")],
    semantics(e, [operand]) {
      e.helper("descriptorTableAccess", which);
      e.helperThenEndBlock(helper, e.low32(e.read(operand)));
    },
  });
}

function examineRow(mnemonic: string, source: string, opcode: string, helper: string): Instruction {
  return instruction(mnemonic, {
    source,
    forms: [form(opcode, "rv, r/m16")],
    semantics(e, [target, operand]) {
      e.helper("requireProtectedMode");
      const found = e.helper(helper, e.low32(e.read(operand)));
      const value = e.truncate(e.state(state.helper, 64), e.size);
      e.setFlag("ZF", found);
      e.if(found, () => e.write(target, value));
    },
  });
}

function verifyRow(mnemonic: string, digit: number, isWrite: number): Instruction {
  return instruction(mnemonic, {
    source: sdm("2D", "VERR/VERW - Verify a Segment for Reading or Writing"),
    forms: [form(`0F 00 /${digit}`, "r/m16")],
    semantics(e, [operand]) {
      e.helper("requireProtectedMode");
      e.setFlag("ZF", e.helper("verifySegment", e.low32(e.read(operand)), isWrite));
    },
  });
}

export const ARPL = instruction("ARPL", {
  source: sdm("2A", "ARPL - Adjust RPL Field of Segment Selector"),
  forms: [form("63 /r", "r/m16, r16", "invalid64")],
  semantics(e, [target, source]) {
    e.helper("requireProtectedMode");
    const selector = e.readForWrite(target);
    const rpl = e.and(e.read(source), e.int(3));
    const isLower = e.ltu(e.and(selector, e.int(3)), rpl);
    e.write(target, e.select(isLower, e.or(e.and(selector, e.int(0xfffc)), rpl), selector));
    e.setFlag("ZF", isLower);
  },
});

export const segments: readonly Instruction[] = [
  MOV_TO_SEGMENT,
  MOV_FROM_SEGMENT,
  pushRow("ES", ES, "06", "sized", "invalid64"),
  pushRow("CS", CS, "0E", "sized", "invalid64"),
  pushRow("SS", SS, "16", "sized", "invalid64"),
  pushRow("DS", DS, "1E", "sized", "invalid64"),
  pushRow("FS", FS, "0F A0", "default64"),
  pushRow("GS", GS, "0F A8", "default64"),
  popRow("ES", ES, "07", "sized", "invalid64"),
  popRow("SS", SS, "17", "sized", "invalid64"),
  popRow("DS", DS, "1F", "sized", "invalid64"),
  popRow("FS", FS, "0F A1", "default64"),
  popRow("GS", GS, "0F A9", "default64"),
  loadPointerRow("LES", ES, "C4 /r", "invalid64"),
  loadPointerRow("LDS", DS, "C5 /r", "invalid64"),
  loadPointerRow("LSS", SS, "0F B2 /r"),
  loadPointerRow("LFS", FS, "0F B4 /r"),
  loadPointerRow("LGS", GS, "0F B5 /r"),
  storeSelectorRow("SLDT", sdm("2B", "SLDT - Store Local Descriptor Table Register"), 0, SLDT_CODE, "storeLdt"),
  storeSelectorRow("STR", sdm("2B", "STR - Store Task Register"), 1, STR_CODE, "storeTaskRegister"),
  loadSelectorRow("LLDT", sdm("2A", "LLDT - Load Local Descriptor Table Register"), 2, LLDT_CODE, "loadLdt"),
  loadSelectorRow("LTR", sdm("2A", "LTR - Load Task Register"), 3, LTR_CODE, "loadTaskRegister"),
  examineRow("LAR", sdm("2A", "LAR - Load Access Rights"), "0F 02 /r", "loadAccessRights"),
  examineRow("LSL", sdm("2A", "LSL - Load Segment Limit"), "0F 03 /r", "loadSegmentLimit"),
  verifyRow("VERR", 4, 0),
  verifyRow("VERW", 5, 1),
  ARPL,
];
