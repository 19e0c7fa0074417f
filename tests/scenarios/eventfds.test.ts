/** Eventfds of a process go where its VM goes: to another module, another CPU, and through a file. */
import { mkdir, mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { ConsoleLines } from "./console-lines.ts";

const program = join(import.meta.dirname, "eventfd-program");

test.each(["intel", "amd"] as const)("modules, CPUs and a file find the same eventfds (%s)", async (vendor) => {
  const folder = await mkdtemp(join(tmpdir(), "mkvm-eventfds-"));
  const host = await createHost({ directory: import.meta.dirname, vendor, cpus: 2 });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const process = await host.run({ program, args: [], cpu: 0 });
    const { pid } = process;
    const console = new ConsoleLines(process);
    expect(await console.next()).toBe("as they were");
    expect((await host.upgrade({ pid, to: "kvm2" })).map(({ moved, failed }) => failed?.reason ?? moved)).toEqual([true]);
    process.write("\n");
    expect(await console.next()).toBe("still so");
    expect(await host.migrate({ pid, cpu: 1 })).toMatchObject({ moved: true });
    expect(await console.next()).toBe("as they were");
    const path = join(folder, "saved");
    await host.save({ pid, path, stop: true });
    // The program's package is looked for by name
    const packages = join(folder, "node_modules", "@mkvm");
    await mkdir(packages, { recursive: true });
    await symlink(program, join(packages, "eventfd-program"));
    const again = await host.restore({ path, module: "kvm1", directory: folder });
    expect(await new ConsoleLines(again).next()).toBe("as they were");
    again.endInput();
    expect(await again.exited).toMatchObject({ status: 0 });
  } finally {
    await host.close();
    await rm(folder, { recursive: true, force: true });
  }
});
