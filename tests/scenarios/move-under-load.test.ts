import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { linuxGuest, RunningGuest, tinyGuest } from "./running-guest.ts";

type Vendor = "intel" | "amd";
const vendors: readonly Vendor[] = ["intel", "amd"];

async function moveThereAndBack(vendor: Vendor, args: string[], rounds: number): Promise<void> {
  const host = await createHost({ directory: import.meta.dirname, vendor });
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

test.each(vendors)("the tiny guest moves there and back under load and notices nothing (%s)", (vendor) =>
  moveThereAndBack(vendor, tinyGuest(), 20),
);

test.each(vendors)("Linux moves there and back under load and notices nothing (%s)", { timeout: 400_000 }, async (vendor) => {
  const args = await linuxGuest("check", "512M");
  if (!args) return console.log("no Linux here: run on Debian, or fill the cache folder");
  await moveThereAndBack(vendor, args, 10);
});
