/** The interpreter's module: what it asks of V8. */
import { expect, it } from "vitest";
import { base64 } from "../src/generated/interpreter.ts";

it("asks for its main function to be optimised before it has run", async () => {
  const module = await WebAssembly.compile(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)));
  const [section] = WebAssembly.Module.customSections(module, "metadata.code.compilation_priority");
  const bytes = [...new Uint8Array(section as ArrayBuffer)];
  // One function; its number; of the whole function, two numbers: priorities of its compilation and of its optimisation
  expect(bytes[0]).toBe(1);
  expect(bytes.slice(-4)).toEqual([0, 2, 0, 0]);
  const [low, high] = [bytes[1] as number, bytes[2] as number];
  expect(bytes).toHaveLength(7);
  const { run } = new WebAssembly.Instance(module, importsOf(module)).exports as { run: () => void };
  // V8 names an exported function by its number
  expect(Number(run.name)).toBe((low & 127) | (high << 7));
});

function importsOf(module: WebAssembly.Module): WebAssembly.Imports {
  const imports: Record<string, Record<string, WebAssembly.ImportValue>> = {};
  for (const { module: from, name, kind } of WebAssembly.Module.imports(module)) {
    imports[from] ??= {};
    (imports[from] as Record<string, WebAssembly.ImportValue>)[name] =
      kind === "memory" ? new WebAssembly.Memory({ initial: 1, maximum: 65536, shared: true }) : () => 0;
  }
  return imports;
}
