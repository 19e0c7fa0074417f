import { createHost, type Host } from "@mkvm/host";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { contract } from "./suite.ts";

/** The folder is a package whose main program runs one check. */
const program = import.meta.dirname;

const cases = ["@mkvm/kvm-v1", "@mkvm/kvm-v2"].flatMap((module) =>
  (["intel", "amd"] as const).map((vendor) => ({ module, vendor })),
);

describe.each(cases)("$module keeps the contract on a machine of vendor $vendor", ({ module, vendor }) => {
  let host: Host;

  beforeAll(async () => {
    host = await createHost({ directory: import.meta.dirname, vendor });
    const { name } = await host.insmod(module);
    await host.ln(`/dev/${name}`, "/dev/kvm");
  });
  afterAll(async () => {
    const findings = (await host.dmesg()).filter(({ message }) => message.includes("sanitizer"));
    await host.close();
    expect(findings, "what the hardware sanitizer found").toEqual([]);
  });

  test.each(contract.map((check) => check.name))("%s", async (name) => {
    const process = await host.run({ program, args: [name] });
    const decoder = new TextDecoder();
    let said = "";
    for await (const chunk of process.output) said += decoder.decode(chunk, { stream: true });
    const exit = await process.exited;
    expect(`${said}${exit.message ?? ""}status ${exit.status}`).toBe("status 0");
  });
});
