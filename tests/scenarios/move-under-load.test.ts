import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { linuxGuest, RunningGuest, tinyGuest } from "./running-guest.ts";

async function moveThereAndBack(args: string[], rounds: number): Promise<void> {
  const host = await createHost({ directory: import.meta.dirname });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const guest = await RunningGuest.start(host, args);
    await guest.rounds(rounds);
    guest.send("mark");
    await guest.until("the mark", () => guest.report.marked);
    for (const to of ["kvm2", "kvm1", "kvm2", "kvm1"]) {
      const [report] = await host.upgrade({ pid: guest.pid, to });
      expect(report).toMatchObject({ moved: true, to });
      expect(report.steps.map((step) => step.step)).toEqual([
        "check",
        "prepare",
        "freeze",
        "save",
        "restore",
        "verify",
        "commit",
        "thaw",
      ]);
      await guest.rounds(rounds);
    }
    await host.upgrade({ pid: guest.pid, to: "kvm2", finalize: true });
    await expect(host.rollback(guest.pid)).rejects.toThrow(/finali[sz]ed/);
    await host.rmmod("kvm1");
    await guest.rounds(rounds);
    expect(await guest.stop()).toBe(0);
    expect(guest.report).toMatchObject({ problems: [], ended: true });
  } finally {
    await host.close();
  }
}

test("the tiny guest moves there and back under load and notices nothing", () => moveThereAndBack(tinyGuest(), 20));

test("Linux moves there and back under load and notices nothing", { timeout: 400_000 }, async () => {
  const args = await linuxGuest("check", "512M");
  if (!args) return console.log("no Linux here: run on Debian, or fill the cache folder");
  await moveThereAndBack(args, 10);
});
