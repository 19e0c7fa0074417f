/** Pushes, pops and stack frames. */
import { RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, SS } from "../cpu-state.ts";
import type { Int } from "../emitter.ts";
import { form, type Instruction, instruction, sdm } from "../instruction.ts";
import { pop, push, setStackPointer, slotBytes, stackPointer, wrapStack } from "./stack-access.ts";

export const PUSH = instruction("PUSH", {
  source: sdm("2B", "PUSH - Push Word, Doubleword, or Quadword Onto the Stack"),
  forms: [
    form("50+r", "rv", "default64"),
    form("68 iz", "immz", "default64"),
    form("6A ib", "imm8sx", "default64"),
    form("FF /6", "r/mv", "default64"),
  ],
  semantics(e, [source]) {
    push(e, e.read(source));
  },
});

export const POP = instruction("POP", {
  source: sdm("2B", "POP - Pop a Value From the Stack"),
  forms: [form("58+r", "rv", "default64"), form("8F /0", "r/mv", "default64")],
  semantics(e, [target]) {
    if (!e.isMemory(target)) {
      const { value, release } = pop(e);
      release();
      e.write(target, value);
      return;
    }
    // The address of the destination is computed with RSP already past the value, but a fault must find RSP as it was
    const before = e.reg(RSP, 64);
    const { value, release } = pop(e);
    release();
    const offset = e.address(target);
    const after = e.reg(RSP, 64);
    e.setReg(RSP, 64, before);
    e.storeDefault(offset, e.size, value);
    e.setReg(RSP, 64, after);
  },
});

export const PUSHA = instruction("PUSHA/PUSHAD", {
  source: sdm("2B", "PUSHA/PUSHAD - Push All General-Purpose Registers"),
  forms: [form("60", "", "sized", "invalid64")],
  semantics(e) {
    let top = stackPointer(e);
    for (const register of [RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI]) {
      top = wrapStack(e, e.sub(top, e.int(slotBytes(e)), 64));
      e.store(SS, top, e.size, e.reg(register, e.size));
    }
    setStackPointer(e, top);
  },
});

export const POPA = instruction("POPA/POPAD", {
  source: sdm("2B", "POPA/POPAD - Pop All General-Purpose Registers"),
  forms: [form("61", "", "sized", "invalid64")],
  semantics(e) {
    const bottom = stackPointer(e);
    const order = [RDI, RSI, RBP, RSP, RBX, RDX, RCX, RAX];
    const values: (Int | undefined)[] = order.map((register, i) => {
      if (register === RSP) return undefined;
      return e.load(SS, wrapStack(e, e.add(bottom, e.int(i * slotBytes(e)), 64)), e.size);
    });
    setStackPointer(e, wrapStack(e, e.add(bottom, e.int(order.length * slotBytes(e)), 64)));
    order.forEach((register, i) => {
      const value = values[i];
      if (value !== undefined) e.setReg(register, e.size, value);
    });
  },
});

export const ENTER = instruction("ENTER", {
  source: sdm("2A", "ENTER - Make Stack Frame for Procedure Parameters"),
  forms: [form("C8 iw ib", "imm16:8", "default64")],
  semantics(e, [operand]) {
    const { size } = e;
    const sizes = e.read(operand);
    const bytes = e.truncate(sizes, 16);
    const level = e.and(e.shr(sizes, e.int(16)), e.int(31));
    const step = e.int(slotBytes(e));
    const frame = wrapStack(e, e.sub(stackPointer(e), step, 64));
    e.store(SS, frame, size, e.reg(RBP, size));
    const top = e.variable("i64", frame);
    e.if(e.ne(level, e.int(0)), () => {
      const pointers = e.variable("i64", e.sub(level, e.int(1), 64));
      const source = e.variable("i64", wrapStack(e, e.reg(RBP, 64)));
      e.loopWhile(() => {
        e.if(e.ne(pointers.get(), e.int(0)), () => {
          source.set(wrapStack(e, e.sub(source.get(), step, 64)));
          top.set(wrapStack(e, e.sub(top.get(), step, 64)));
          e.store(SS, top.get(), size, e.load(SS, source.get(), size));
          pointers.set(e.sub(pointers.get(), e.int(1), 64));
        });
        return e.ne(pointers.get(), e.int(0));
      });
      top.set(wrapStack(e, e.sub(top.get(), step, 64)));
      e.store(SS, top.get(), size, e.truncate(frame, size));
    });
    const end = wrapStack(e, e.sub(top.get(), bytes, 64));
    // The manual: faults as a write at the final stack pointer would
    e.probeStore(SS, end, size);
    e.setReg(RBP, size, e.truncate(frame, size));
    setStackPointer(e, end);
  },
});

export const LEAVE = instruction("LEAVE", {
  source: sdm("2A", "LEAVE - High Level Procedure Exit"),
  forms: [form("C9", "", "default64")],
  semantics(e) {
    const frame = wrapStack(e, e.reg(RBP, 64));
    const value = e.load(SS, frame, e.size);
    setStackPointer(e, wrapStack(e, e.add(frame, e.int(slotBytes(e)), 64)));
    e.setReg(RBP, e.size, value);
  },
});

export const stack: readonly Instruction[] = [PUSH, POP, PUSHA, POPA, ENTER, LEAVE];
