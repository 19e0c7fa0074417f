import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { withExample, workedExample } from "./worked-example.ts";

const path = fileURLToPath(new URL("../../../docs/how-the-engine-works.md", import.meta.url));

test("the engine's document shows what the engine does: `pnpm engine-example` renews it", async () => {
  const example = await workedExample();
  expect(example.largest).toBe(example.expected);
  expect(example.operations.split("\n")).toHaveLength(5);
  await expect(withExample(readFileSync(path, "utf8"), example)).toMatchFileSnapshot(path);
  expect(() => withExample("a document without marks", example)).toThrow("no mark <!-- code -->");
});
