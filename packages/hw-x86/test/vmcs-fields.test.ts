/** The tables of VMCS fields, which every VM entry and exit reads from. */
import { execFileSync } from "node:child_process";
import { expect, it } from "vitest";

it("are objects that the JavaScript engine reads without a call", () => {
  const fields = new URL("../src/vmx/fields.ts", import.meta.url).href;
  const program = `import { slot, VmcsField } from "${fields}"; console.log(%HasFastProperties(slot), %HasFastProperties(VmcsField));`;
  const said = execFileSync(process.execPath, ["--allow-natives-syntax", "--input-type=module", "--eval", program], {
    encoding: "utf8",
  });
  expect(said.trim()).toBe("true true");
});
