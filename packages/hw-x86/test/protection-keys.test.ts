/** Protection keys: every combination of key rights, page rights, CR0.WP and privilege, from tables in memory and from cached translations. */
import { describe, expect, it } from "vitest";
import { RAX, RBX, RCX, RDX, RSP, state } from "../src/engine/cpu-state.ts";
import { CR0_WP, mapLong, mapNarrow, mapPae } from "./page-tables.ts";
import { CODE, createSystemMachine, imm32, KERNEL_STACK, type SystemMachine } from "./system-machine.ts";

const PAGE = 0x4000_0000n;
const FRAME = 0x6000n;
const KEY = 5;
const PKE = 0x40_0000n;
const [UD, GP, PF] = [6, 13, 14];
const RDPKRU = [0x0f, 0x01, 0xee];
const WRPKRU = [0x0f, 0x01, 0xef];
const LOAD = [0x8b, 0x13]; // mov edx, [rbx]
const STORE = [0x89, 0x13];
const HLT = 0xf4;
/** #PF error code: protection, write, user, protection key. */
const ERROR = { present: 1, write: 2, user: 4, key: 0x20 } as const;

function machine(options: { writable: boolean; userPage?: boolean; wp?: boolean; key?: number }): SystemMachine {
  const m = createSystemMachine(64);
  const rights =
    1n | (options.writable ? 2n : 0n) | ((options.userPage ?? true) ? 4n : 0n) | (BigInt(options.key ?? KEY) << 59n);
  mapLong(m, PAGE, FRAME, rights);
  m.engine.set64(state.cr4, m.engine.get64(state.cr4) | PKE);
  m.engine.set64(state.cr0, (m.engine.get64(state.cr0) & ~CR0_WP) | (options.wp ? CR0_WP : 0n));
  m.engine.updateTags();
  return m;
}

/** Vector of the handler, -1 for HLT in the code; then the error code. */
function run(m: SystemMachine, user: boolean, ...code: number[]): { vector: number; error: number } {
  m.code(...code, HLT);
  if (user) m.enterUser();
  m.engine.setReg(RBX, PAGE);
  m.engine.setReg(RCX, 0n);
  const vector = m.runToHandler();
  // HLT is not the user's: it ends in #GP
  const isEnd = vector === -1 || (user && vector === GP);
  return { vector: isEnd ? -1 : vector, error: isEnd ? 0 : Number(m.stacked(0)) };
}

const flags = [false, true];
const CASES = flags.flatMap((user) =>
  flags.flatMap((write) =>
    flags.flatMap((wp) => flags.flatMap((writable) => [0, 1, 2, 3].map((rights) => ({ user, write, wp, writable, rights })))),
  ),
);

describe("protection keys", () => {
  it.each(CASES)("user $user, write $write, CR0.WP $wp, page writable $writable, key rights $rights", (c) => {
    const m = machine({ writable: c.writable, wp: c.wp });
    // Other keys forbid nothing, so it is this one that counts
    m.engine.set32(state.pkru, c.rights << (2 * KEY));
    m.engine.updateTags();
    const byKey = (c.rights & 1) !== 0 || ((c.rights & 2) !== 0 && c.write && (c.user || c.wp));
    const byPage = c.write && !c.writable && (c.user || c.wp);
    const error = ERROR.present | (c.write ? ERROR.write : 0) | (c.user ? ERROR.user : 0) | (byKey ? ERROR.key : 0);
    const expected = byKey || byPage ? { vector: PF, error } : { vector: -1, error: 0 };
    const access = c.write ? STORE : LOAD;
    expect(run(m, c.user, ...access)).toEqual(expected);
    if (expected.vector === PF) expect(m.engine.get64(state.cr2)).toBe(PAGE);
  });

  it.each([true, false])("change what cached translations allow, by WRPKRU and back (user: %s)", (user) => {
    const m = machine({ writable: true, wp: true });
    const set = (rights: number): number[] => [0xb8, ...imm32(rights << (2 * KEY)), 0x31, 0xd2, ...WRPKRU];
    // Allowed, forbidden to write and read all the same, allowed again
    const first = run(m, user, ...STORE, ...set(2), ...LOAD, ...set(0), ...STORE, ...set(2), ...STORE);
    expect(first).toEqual({ vector: PF, error: ERROR.present | ERROR.write | ERROR.key | (user ? ERROR.user : 0) });
  });

  it("hold in loops that are translated", () => {
    const m = machine({ writable: true });
    // mov [rbx], edx; dec edi; jnz; then with the key closed
    m.engine.setReg(7, 20_000n);
    m.code(
      ...STORE,
      0xff,
      0xcf,
      0x75,
      0xfa,
      0xb8,
      ...imm32(1 << (2 * KEY)),
      0x31,
      0xd2,
      0x31,
      0xc9,
      ...WRPKRU,
      0xbf,
      ...imm32(5),
      0xeb,
      0xe7,
    );
    m.engine.setReg(RBX, PAGE);
    expect(m.runToHandler(200_000)).toBe(PF);
    expect(Number(m.stacked(0))).toBe(ERROR.present | ERROR.write | ERROR.key);
    expect(m.engine.get32(state.gpr + 7 * 8)).toBe(5);
  });

  it("are nothing to pages of the supervisor, to fetches, and with CR4.PKE clear", () => {
    const supervisor = machine({ writable: true, userPage: false });
    supervisor.engine.set32(state.pkru, -1);
    supervisor.engine.updateTags();
    expect(run(supervisor, false, ...STORE).vector).toBe(-1);
    const m = machine({ writable: true });
    m.engine.set32(state.pkru, 3 << (2 * KEY));
    m.engine.updateTags();
    m.ram[Number(FRAME)] = HLT;
    m.code(0xff, 0xe3); // jmp rbx
    m.engine.setReg(RBX, PAGE);
    expect(m.runToHandler()).toBe(-1);
    m.engine.set64(state.cr4, m.engine.get64(state.cr4) & ~PKE);
    m.engine.updateTags();
    expect(run(m, false, ...STORE).vector).toBe(-1);
  });

  it("are nothing outside long mode, key 0 included", () => {
    const page = 0x4000_0000;
    for (const map of [mapNarrow, mapPae] as const) {
      const m = createSystemMachine(32);
      if (map === mapNarrow) mapNarrow(m, page, Number(FRAME), 7);
      else mapPae(m, page, Number(FRAME));
      m.engine.set64(state.cr4, m.engine.get64(state.cr4) | PKE);
      m.engine.set32(state.pkru, -1);
      m.engine.updateTags();
      m.engine.setReg(RBX, BigInt(page));
      m.code(...STORE, HLT);
      expect(m.runToHandler()).toBe(-1);
    }
  });

  it("are read and written by RDPKRU and WRPKRU, at any privilege", () => {
    const m = machine({ writable: true });
    m.engine.setReg(RAX, 0x5555_5550n);
    m.engine.setReg(RDX, 0n);
    expect(run(m, true, ...WRPKRU, 0xb8, ...imm32(-1), 0xba, ...imm32(-1), ...RDPKRU).vector).toBe(-1);
    expect([m.engine.reg(RAX), m.engine.reg(RDX)]).toEqual([0x5555_5550n, 0n]);
    m.engine.setReg(RSP, BigInt(KERNEL_STACK));
  });

  it.each([
    ["RDPKRU with ECX 1", RDPKRU, 1n, 0n, true, GP],
    ["WRPKRU with ECX 1", WRPKRU, 1n, 0n, true, GP],
    ["WRPKRU with EDX 1", WRPKRU, 0n, 1n, true, GP],
    ["RDPKRU without CR4.PKE", RDPKRU, 0n, 0n, false, UD],
    ["WRPKRU without CR4.PKE", WRPKRU, 0n, 0n, false, UD],
  ] as const)("faults of %s", (_, code, ecx, edx, on, vector) => {
    const m = machine({ writable: true });
    if (!on) m.engine.set64(state.cr4, m.engine.get64(state.cr4) & ~PKE);
    m.code(...code);
    m.engine.setReg(RCX, ecx);
    m.engine.setReg(RDX, edx);
    expect(m.runToHandler()).toBe(vector);
    expect(m.rip).not.toBe(CODE);
  });
});
