/** Semantics of the instructions that the emulator knows. Source: Intel SDM Vol. 2, Instruction Set Reference. */
import { Gpr, Rflags, SegmentRegister } from "../arch/registers.ts";
import { add, bitTest, conditionHolds, group1, increment, logic, maskOf, type Outcome, subtract } from "./arithmetic.ts";
import type { Decoded } from "./decoder.ts";
import type { EmulatedCpu } from "./emulated-cpu.ts";
import type { InstructionState } from "./instruction-state.ts";
import { UnsupportedSignal } from "./signals.ts";

/** True: RIP moves past the instruction. False: a repeated instruction has iterations left. */
export function execute(cpu: EmulatedCpu, decoded: Decoded, state: InstructionState): boolean {
  const { opcode, reg, operandSize, hasRex } = decoded;
  /** Opcodes come in pairs: even for bytes, odd for the operand size. */
  const size = opcode & 1 ? operandSize : 1;

  const linear = () => {
    if (!decoded.memory) throw new UnsupportedSignal();
    return state.linear(decoded.memory.segment, decoded.memory.offset);
  };
  const readRm = (bytes: number) =>
    decoded.isRegister ? state.registerOperand(decoded.rm, bytes, hasRex) : state.read(linear(), bytes);
  const writeRm = (bytes: number, value: bigint) => {
    if (decoded.isRegister) state.setRegister(decoded.rm, bytes, value, hasRex);
    else state.write(linear(), bytes, value);
  };
  const readReg = (bytes: number) => state.registerOperand(reg, bytes, hasRex);
  const writeReg = (bytes: number, value: bigint) => state.setRegister(reg, bytes, value, hasRex);
  const take = ({ value, rflags }: Outcome) => {
    state.rflags = rflags;
    return value;
  };
  const immediate = (bytes: number) => decoded.immediate & maskOf(bytes);
  const swapBytes = (value: bigint, bytes: number) => {
    let out = 0n;
    for (let i = 0; i < bytes; i++) out |= ((value >> BigInt(8 * i)) & 0xffn) << BigInt(8 * (bytes - 1 - i));
    return out;
  };

  if (opcode < 0x40 && (opcode & 7) < 4) {
    const operation = opcode >> 3;
    const toMemory = (opcode & 2) === 0;
    const a = toMemory ? readRm(size) : readReg(size);
    const b = toMemory ? readReg(size) : readRm(size);
    const value = take(group1(operation, a, b, size, state.rflags));
    if (operation !== 7) (toMemory ? writeRm : writeReg)(size, value);
    return true;
  }
  if (opcode >= 0x0f40 && opcode <= 0x0f4f) {
    const value = readRm(operandSize);
    writeReg(operandSize, conditionHolds(opcode & 15, state.rflags) ? value : readReg(operandSize));
    return true;
  }
  if (opcode >= 0x0f90 && opcode <= 0x0f9f) {
    writeRm(1, conditionHolds(opcode & 15, state.rflags) ? 1n : 0n);
    return true;
  }

  switch (opcode) {
    case 0x88:
    case 0x89:
      writeRm(size, readReg(size));
      return true;
    case 0x8a:
    case 0x8b:
      writeReg(size, readRm(size));
      return true;
    case 0xc6:
    case 0xc7:
      if (reg & 7) break;
      writeRm(size, immediate(size));
      return true;
    case 0xa0:
    case 0xa1:
      state.setRegister(Gpr.RAX, size, state.read(linear(), size), true);
      return true;
    case 0xa2:
    case 0xa3:
      state.write(linear(), size, state.registerOperand(Gpr.RAX, size, true));
      return true;
    case 0x0fb6:
    case 0x0fb7:
      writeReg(operandSize, readRm(opcode === 0x0fb6 ? 1 : 2));
      return true;
    case 0x0fbe:
    case 0x0fbf: {
      const bytes = opcode === 0x0fbe ? 1 : 2;
      writeReg(operandSize, BigInt.asUintN(64, BigInt.asIntN(bytes * 8, readRm(bytes))));
      return true;
    }
    case 0x63:
      if (cpu.codeBits !== 64) break; // ARPL
      writeReg(operandSize, BigInt.asUintN(64, BigInt.asIntN(Math.min(operandSize, 4) * 8, readRm(Math.min(operandSize, 4)))));
      return true;
    case 0x80:
    case 0x81:
    case 0x82:
    case 0x83: {
      if (opcode === 0x82 && cpu.codeBits === 64) break;
      const bytes = opcode === 0x82 ? 1 : size;
      const value = take(group1(reg & 7, readRm(bytes), immediate(bytes), bytes, state.rflags));
      if ((reg & 7) !== 7) writeRm(bytes, value);
      return true;
    }
    case 0x84:
    case 0x85:
      take(logic(readRm(size) & readReg(size), size, state.rflags));
      return true;
    case 0x86:
    case 0x87: {
      const old = readRm(size);
      writeRm(size, readReg(size));
      writeReg(size, old);
      return true;
    }
    case 0x0fb0:
    case 0x0fb1: {
      const old = readRm(size);
      take(subtract(state.registerOperand(Gpr.RAX, size, true), old, 0n, size, state.rflags));
      if (state.rflags & Rflags.ZF) writeRm(size, readReg(size));
      else state.setRegister(Gpr.RAX, size, old, true);
      return true;
    }
    case 0x0fc0:
    case 0x0fc1: {
      const old = readRm(size);
      const sum = take(add(old, readReg(size), 0n, size, state.rflags));
      writeReg(size, old);
      writeRm(size, sum);
      return true;
    }
    case 0x0fc3:
      writeRm(operandSize, readReg(operandSize));
      return true;
    case 0x0fc7:
      if ((reg & 7) !== 1 || decoded.isRegister) break;
      compareExchangePair();
      return true;
    case 0x0f38f0:
    case 0x0f38f1:
      if (decoded.repeat === 0xf2 || decoded.isRegister) break; // CRC32
      if (opcode === 0x0f38f0) writeReg(operandSize, swapBytes(readRm(operandSize), operandSize));
      else writeRm(operandSize, swapBytes(readReg(operandSize), operandSize));
      return true;
    case 0x0fa3:
    case 0x0fab:
    case 0x0fb3:
    case 0x0fbb:
      bitTestRegister(4 + ((opcode >> 3) & 3));
      return true;
    case 0x0fba: {
      if ((reg & 7) < 4) break;
      const value = take(bitTest(reg & 7, readRm(operandSize), immediate(1) & BigInt(operandSize * 8 - 1), state.rflags));
      if ((reg & 7) !== 4) writeRm(operandSize, value);
      return true;
    }
    case 0xf6:
    case 0xf7:
      switch (reg & 7) {
        case 0:
        case 1:
          take(logic(readRm(size) & immediate(size), size, state.rflags));
          return true;
        case 2:
          writeRm(size, ~readRm(size) & maskOf(size));
          return true;
        case 3:
          writeRm(size, take(subtract(0n, readRm(size), 0n, size, state.rflags)));
          return true;
        default:
          throw new UnsupportedSignal(); // multiplications and divisions
      }
    case 0xfe:
    case 0xff:
      if ((reg & 7) < 2) {
        writeRm(size, take(increment(readRm(size), reg & 1 ? -1 : 1, size, state.rflags)));
        return true;
      }
      if (opcode !== 0xff || (reg & 7) !== 6) break;
      push(readRm(stackOperandSize()));
      return true;
    case 0x8f:
      if (reg & 7) break;
      pop();
      return true;
    case 0xa4:
    case 0xa5:
    case 0xa6:
    case 0xa7:
    case 0xaa:
    case 0xab:
    case 0xac:
    case 0xad:
    case 0xae:
    case 0xaf:
      return string();
    default:
  }
  throw new UnsupportedSignal();

  function stackOperandSize(): number {
    return cpu.codeBits === 64 ? (decoded.operandPrefix ? 2 : 8) : operandSize;
  }
  function moveStack(by: bigint): bigint {
    const bytes = cpu.stackBits / 8;
    const pointer = (state.register(Gpr.RSP) + by) & maskOf(bytes);
    state.setRegister(Gpr.RSP, bytes, pointer, true);
    return pointer;
  }
  function push(value: bigint): void {
    const bytes = stackOperandSize();
    state.write(state.linear(SegmentRegister.SS, moveStack(-BigInt(bytes))), bytes, value);
  }
  function pop(): void {
    // An address that uses RSP counts from its value after the pop, which the decoder does not know
    if (!decoded.isRegister && decoded.memory?.segment === SegmentRegister.SS) throw new UnsupportedSignal();
    const bytes = stackOperandSize();
    const at = state.register(Gpr.RSP) & maskOf(cpu.stackBits / 8);
    const value = state.read(state.linear(SegmentRegister.SS, at), bytes);
    moveStack(BigInt(bytes));
    writeRm(bytes, value);
  }
  function compareExchangePair(): void {
    const half = operandSize === 8 ? 8 : 4;
    const at = linear();
    const low = state.read(at, half);
    const high = state.read(at + BigInt(half), half);
    const equal = low === state.registerOperand(Gpr.RAX, half, true) && high === state.registerOperand(Gpr.RDX, half, true);
    state.rflags = (state.rflags & ~Rflags.ZF) | (equal ? Rflags.ZF : 0n);
    if (equal) {
      state.write(at, half, state.registerOperand(Gpr.RBX, half, true));
      state.write(at + BigInt(half), half, state.registerOperand(Gpr.RCX, half, true));
    } else {
      state.setRegister(Gpr.RAX, half, low, true);
      state.setRegister(Gpr.RDX, half, high, true);
    }
  }
  /** With a register as bit number the memory operand is the start of a bit string. */
  function bitTestRegister(operation: number): void {
    const bitsPerItem = BigInt(operandSize * 8);
    const number = BigInt.asIntN(operandSize * 8, readReg(operandSize));
    if (decoded.isRegister) {
      const value = take(bitTest(operation, readRm(operandSize), number & (bitsPerItem - 1n), state.rflags));
      if (operation !== 4) writeRm(operandSize, value);
      return;
    }
    if (!decoded.memory) throw new UnsupportedSignal();
    const item = (number - (number & (bitsPerItem - 1n))) / bitsPerItem;
    const offset = (decoded.memory.offset + item * BigInt(operandSize)) & maskOf(decoded.addressSize);
    const at = state.linear(decoded.memory.segment, offset);
    const value = take(bitTest(operation, state.read(at, operandSize), number & (bitsPerItem - 1n), state.rflags));
    if (operation !== 4) state.write(at, operandSize, value);
  }

  /** One iteration. */
  function string(): boolean {
    const { addressSize, repeat } = decoded;
    const mask = maskOf(addressSize);
    const count = state.register(Gpr.RCX) & mask;
    if (repeat && count === 0n) return true;
    const step = BigInt(size) * (state.rflags & Rflags.DF ? -1n : 1n);
    const source = () => state.linear(decoded.segmentOverride ?? SegmentRegister.DS, state.register(Gpr.RSI) & mask);
    const destination = () => state.linear(SegmentRegister.ES, state.register(Gpr.RDI) & mask);
    const advance = (register: number) =>
      state.setRegister(register, addressSize, (state.register(register) + step) & mask, true);
    const accumulator = () => state.registerOperand(Gpr.RAX, size, true);
    let compares = false;
    switch (opcode & 0xfe) {
      case 0xa4:
        state.write(destination(), size, state.read(source(), size));
        advance(Gpr.RSI);
        advance(Gpr.RDI);
        break;
      case 0xa6: {
        const a = state.read(source(), size);
        take(subtract(a, state.read(destination(), size), 0n, size, state.rflags));
        advance(Gpr.RSI);
        advance(Gpr.RDI);
        compares = true;
        break;
      }
      case 0xaa:
        state.write(destination(), size, accumulator());
        advance(Gpr.RDI);
        break;
      case 0xac:
        state.setRegister(Gpr.RAX, size, state.read(source(), size), true);
        advance(Gpr.RSI);
        break;
      default:
        take(subtract(accumulator(), state.read(destination(), size), 0n, size, state.rflags));
        advance(Gpr.RDI);
        compares = true;
    }
    if (!repeat) return true;
    state.setRegister(Gpr.RCX, addressSize, (count - 1n) & mask, true);
    const zero = (state.rflags & Rflags.ZF) !== 0n;
    return count === 1n || (compares && zero !== (repeat === 0xf3));
  }
}
