/** Instructions whose results are the machine's: random numbers, RDPID, and the bases of FS and GS. */
import { expect, test } from "vitest";
import { FS, GS, gprOffset, RAX, RBX, RCX, RDX, SEG_BASE, segmentOffset, state } from "../src/engine/cpu-state.ts";
import { createFlatMachine, type FlatMachine } from "./flat-machine.ts";

const CODE = 0x1000;
const CR4_FSGSBASE = 0x1_0000n;
const UD = 6,
  GP = 13;

function start(code: readonly number[], prepare: (machine: FlatMachine) => void = () => undefined): FlatMachine {
  const machine = createFlatMachine(64);
  machine.ram.set([...code, 0xf4], CODE);
  machine.engine.set64(state.rip, BigInt(CODE));
  machine.guest.hlt = () => machine.guest.exit();
  machine.guest.exception = (vector, type, errorCode, payload) => {
    machine.guest.exceptions.push({ vector, type, errorCode, payload });
    machine.guest.exit();
  };
  prepare(machine);
  machine.engine.run(1000);
  return machine;
}
const register = ({ engine }: FlatMachine, index: number): bigint => engine.get64(gprOffset(index));

/** RDRAND RAX; RDRAND EBX; RDSEED CX; RDSEED RDX. */
const NUMBERS = [0x48, 0x0f, 0xc7, 0xf0, 0x0f, 0xc7, 0xf3, 0x66, 0x0f, 0xc7, 0xf9, 0x48, 0x0f, 0xc7, 0xfa];
const numbers = (machine: FlatMachine): bigint[] => [RAX, RBX, RCX, RDX].map((index) => register(machine, index));

test("random numbers set CF alone and are of the operand's size", () => {
  const machine = start(NUMBERS, ({ engine }) => {
    engine.setFlags(0x8d7);
    for (const index of [RAX, RBX, RCX, RDX]) engine.set64(gprOffset(index), 0xffff_ffff_ffff_0000n);
  });
  expect(machine.engine.readFlags()).toBe(3);
  const [rax, rbx, rcx, rdx] = numbers(machine);
  expect(new Set([rax, rbx, rcx, rdx]).size).toBe(4);
  expect(rbx >> 32n).toBe(0n);
  expect(rcx >> 16n).toBe(0xffff_ffff_ffffn);
});

test("random numbers are a function of the guest's state, its time and the machine's entropy", () => {
  const first = numbers(start(NUMBERS));
  expect(numbers(start(NUMBERS))).toEqual(first);
  const later = start(NUMBERS, ({ guest }) => {
    guest.tsc = 1n;
  });
  expect(numbers(later)).not.toEqual(first);
  const other = start(NUMBERS, ({ guest }) => Object.assign(guest, { entropy: () => 1n }));
  expect(numbers(other)).not.toEqual(first);
});

test("RDPID reads the low half of IA32_TSC_AUX", () => {
  const machine = start([0xf3, 0x0f, 0xc7, 0xf8], ({ engine }) => {
    engine.set64(state.tscAux, 0x1234_5678n);
    engine.set64(gprOffset(RAX), ~0n);
  });
  expect(register(machine, RAX)).toBe(0x1234_5678n);
});

const enable = ({ engine }: FlatMachine): void => engine.set64(state.cr4, engine.get64(state.cr4) | CR4_FSGSBASE);

test("WRFSBASE and WRGSBASE write what RDFSBASE and RDGSBASE read and addresses count from", () => {
  // WRFSBASE RBX; WRGSBASE ECX; RDFSBASE RAX; MOV RDX, GS:[0]; RDGSBASE EBX
  const code = [
    0xf3, 0x48, 0x0f, 0xae, 0xd3, 0xf3, 0x0f, 0xae, 0xd9, 0xf3, 0x48, 0x0f, 0xae, 0xc0, 0x65, 0x48, 0x8b, 0x14, 0x25, 0, 0, 0,
    0, 0xf3, 0x0f, 0xae, 0xcb,
  ];
  const machine = start(code, (made) => {
    enable(made);
    made.engine.set64(gprOffset(RBX), 0xffff_8000_0000_0000n);
    made.engine.set64(gprOffset(RCX), 0xdead_0000_0000_2000n);
    made.ram.set([1, 2, 3, 4, 5, 6, 7, 8], 0x2000);
  });
  expect(machine.guest.exceptions).toEqual([]);
  expect(machine.engine.get64(segmentOffset(FS) + SEG_BASE)).toBe(0xffff_8000_0000_0000n);
  expect(machine.engine.get64(segmentOffset(GS) + SEG_BASE)).toBe(0x2000n);
  expect(register(machine, RAX)).toBe(0xffff_8000_0000_0000n);
  expect(register(machine, RDX)).toBe(0x0807_0605_0403_0201n);
  expect(register(machine, RBX)).toBe(0x2000n);
});

test.for([0, 1, 2, 3])("instruction %i of FSGSBASE is undefined without CR4.FSGSBASE", (digit) => {
  const machine = start([0xf3, 0x48, 0x0f, 0xae, 0xc0 | (digit << 3)]);
  expect(machine.guest.exceptions.map(({ vector }) => vector)).toEqual([UD]);
});

test.for([2, 3])("instruction %i of FSGSBASE refuses a base that is not canonical", (digit) => {
  for (const [base, isRefused] of [
    [0x8000_0000_0000n, true],
    [0x7fff_ffff_ffffn, false],
    [0xffff_7fff_ffff_ffffn, true],
    [0xffff_8000_0000_0000n, false],
  ] as const) {
    const machine = start([0xf3, 0x48, 0x0f, 0xae, 0xc0 | (digit << 3)], (made) => {
      enable(made);
      made.engine.set64(gprOffset(RAX), base);
    });
    expect(machine.guest.exceptions.map(({ vector, errorCode }) => [vector, errorCode])).toEqual(isRefused ? [[GP, 0]] : []);
  }
});
