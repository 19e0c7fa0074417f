import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { linuxGuest, RunningGuest } from "./running-guest.ts";

test.each(["@mkvm/kvm-v1", "@mkvm/kvm-v2"])(
  "Linux boots to user space on %s and powers off",
  { timeout: 300_000 },
  async (module) => {
    const args = await linuxGuest("poweroff");
    if (!args) return console.log("no Linux here: run on Debian, or fill the cache folder");
    const host = await createHost({ directory: import.meta.dirname });
    try {
      const { name } = await host.insmod(module);
      await host.ln(`/dev/${name}`, "/dev/kvm");
      const guest = await RunningGuest.start(host, args);
      await guest.until("user space", () => guest.transcript.includes("mkvm-guest: user space reached"));
      expect(await guest.process.exited).toMatchObject({ status: 0 });
      expect(guest.transcript).not.toMatch(/(BUG|Oops|WARNING|Call Trace|unable to handle)/);
    } finally {
      await host.close();
    }
  },
);
