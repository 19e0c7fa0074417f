/** Calls that a program has made, and whose results it has not got yet, when it moves to another CPU or to a file. */
import { mkdir, mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { ConsoleLines } from "./console-lines.ts";

const program = join(import.meta.dirname, "interrupt-line-program");

test("a result that nobody has got yet is not taken for that of a later call: KVM is told of every level of a line", async () => {
  const folder = await mkdtemp(join(tmpdir(), "mkvm-calls-"));
  const host = await createHost({ directory: import.meta.dirname, cpus: 2 });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const process = await host.run({ program, args: [], cpu: 0 });
    const { pid } = process;
    const console = new ConsoleLines(process);
    expect(await console.next()).toBe("KVM was told");
    expect(await host.migrate({ pid, cpu: 1 })).toMatchObject({ moved: true });
    expect(await console.next()).toBe("KVM was told");
    const path = join(folder, "saved");
    await host.save({ pid, path, stop: true });
    // The program's package is looked for by name
    const packages = join(folder, "node_modules", "@mkvm");
    await mkdir(packages, { recursive: true });
    await symlink(program, join(packages, "interrupt-line-program"));
    const again = await host.restore({ path, module: "kvm1", directory: folder });
    expect(await new ConsoleLines(again).next()).toBe("KVM was told");
    await host.kill(again.pid);
  } finally {
    await host.close();
    await rm(folder, { recursive: true, force: true });
  }
});
