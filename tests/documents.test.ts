import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { rulesPage } from "@mkvm/abi-gate";
import { expect, test } from "vitest";
import { statisticsReference, writtenStatisticsReference } from "../scripts/statistics-reference.ts";

const root = join(import.meta.dirname, "..");

test("every place that the architecture page sends a reader to exists", () => {
  const page = readFileSync(join(root, "docs", "ARCHITECTURE.md"), "utf8");
  const table = page.slice(page.indexOf("## Where to look"));
  const places = [...table.matchAll(/`([a-z0-9-]+\/src\/[^`]*)`/g)].map((match) => match[1]);
  expect(places.length).toBeGreaterThan(10);
  expect(places.filter((place) => !existsSync(join(root, "packages", place)))).toEqual([]);
});

test("the reference of statistics is what the modules' rows say: `pnpm statistics-reference` writes it", () => {
  expect(writtenStatisticsReference()).toBe(statisticsReference());
});

test("the page of ABI rules is what the gate goes by: `mkvm abi rules` prints it", () => {
  expect(readFileSync(join(root, "docs", "abi-rules.md"), "utf8")).toBe(rulesPage());
});
