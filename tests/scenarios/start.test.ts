import { spawn } from "node:child_process";
import { join } from "node:path";
import { expect, test } from "vitest";

const root = join(import.meta.dirname, "..", "..");

/** Runs the demo; `onOutput` sees all that it said so far. */
function demo(args: string[], onOutput: (said: string, kill: (signal: NodeJS.Signals) => void) => void = () => {}) {
  return new Promise<{ status: number | null; said: string }>((resolve) => {
    const child = spawn(process.execPath, [join(root, "scripts", "start.ts"), ...args], {
      cwd: root,
      stdio: ["ignore", "pipe", "pipe"],
    });
    let said = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => {
        said += text;
        onOutput(said, (signal) => child.kill(signal));
      });
    }
    child.on("close", (status) => resolve({ status, said }));
  });
}

test("the demo moves the tiny guest, which notices nothing", async () => {
  const { status, said } = await demo(["--tiny", "--memory", "16M"]);
  expect(said).toContain("What the guest noticed: nothing.");
  expect(said).toContain("Move it to kvm2 again, and finalise");
  expect(status).toBe(0);
});

test("Ctrl-C in the middle ends the demo cleanly", async () => {
  const { status, said } = await demo(["--tiny", "--memory", "16M"], (soFar, kill) => {
    if (soFar.includes("mkvm-check n=")) kill("SIGINT");
  });
  expect(said).toContain("interrupted: the guest was killed, the modules are unloaded");
  expect(status).toBe(130);
});

test("the demo fails, and says why, when its kernel is none", async () => {
  const { status, said } = await demo(["--kernel", join(root, "README.md"), "--initrd", join(root, "README.md")]);
  expect(said).toContain("is not a kernel image");
  expect(status).toBe(1);
});
