import { expect, test } from "vitest";
import { Register, RegisterCache } from "../src/register-cache.ts";

/** A control structure of words, and what was asked of it. */
function cacheOf(initial: bigint): { cache: RegisterCache; log: string[] } {
  const log: string[] = [];
  const cache = new RegisterCache(
    {
      fetch(into, register) {
        log.push(`fetch ${register}`);
        into.words[register] = initial;
      },
      store(from, register) {
        log.push(`store ${register} ${from.words[register]?.toString(16)}`);
      },
    },
    0,
  );
  return { cache, log };
}

test("a register is fetched once, and stored once before the entry if it was written", () => {
  const { cache, log } = cacheOf(0x1000n);
  expect(cache.word(Register.rip)).toBe(0x1000n);
  expect(cache.low(Register.rip)).toBe(0x1000);
  cache.setWord(Register.rsp, 7n);
  cache.flush();
  cache.flush();
  expect(log).toEqual(["fetch 0", "store 1 7"]);
  cache.invalidate();
  cache.word(Register.rip);
  expect(log.at(-1)).toBe("fetch 0");
});

test.each([
  [0x1000n, 0x1002n],
  [0xffff_fffen, 0x1_0000_0000n],
  [0xffff_ffff_ffff_fffen, 0n],
  [0x1234_ffff_ffffn, 0x1235_0000_0001n],
])("advancing RIP by two bytes carries: from %x", (from, to) => {
  const { cache, log } = cacheOf(from);
  cache.advance(Register.rip, 2);
  expect(cache.word(Register.rip)).toBe(to);
  cache.flush();
  expect(log).toEqual(["fetch 0", `store 0 ${to.toString(16)}`]);
});
