import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { linuxGuest, tinyGuest } from "./running-guest.ts";

type Engine = "off" | "hot" | "always";

/** Console of a run under icount, with digests of memory and registers at its end. */
async function run(args: string[], engine: Engine): Promise<string> {
  const host = await createHost({ directory: import.meta.dirname, clock: "icount", engine });
  try {
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm2", "/dev/kvm");
    const process = await host.run({ args: [...args, "--digest"] });
    const decoder = new TextDecoder();
    let console = "";
    for await (const chunk of process.output) console += decoder.decode(chunk, { stream: true });
    expect(await process.exited).toMatchObject({ status: 0 });
    const { retiredInstructions } = (await host.ps()).find(({ pid }) => pid === process.pid) ?? {};
    return `${console}\n${retiredInstructions ?? ""}`;
  } finally {
    await host.close();
  }
}

test("the tiny guest ends the same, whatever is translated", { timeout: 300_000 }, async () => {
  const interpreted = await run(tinyGuest(50), "off");
  expect(interpreted).toContain("mkvm-digest");
  expect(await run(tinyGuest(50), "hot")).toBe(interpreted);
  expect(await run(tinyGuest(50), "always")).toBe(interpreted);
});

test("Linux boots to the same state, interpreted and with hot code translated", { timeout: 600_000 }, async () => {
  const args = await linuxGuest("poweroff", "128M");
  if (!args) return console.log("no Linux here: run on Debian, or fill the cache folder");
  const interpreted = await run(args, "off");
  expect(interpreted).toContain("mkvm-guest: user space reached");
  expect(interpreted).toContain("mkvm-digest");
  expect(await run(args, "hot")).toBe(interpreted);
});
