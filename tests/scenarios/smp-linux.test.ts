import { createHost } from "@mkvm/host";
import { expect, test } from "vitest";
import { linuxGuest, RunningGuest } from "./running-guest.ts";

/** Rescheduling and function calls by interrupts of one CPU to another: the counts of each CPU. */
function interruptsBetweenCpus(console: string): number[][] {
  return [...console.matchAll(/^(?:RES|CAL):((?: +\d+)+)/gm)].map(([, counts]) => counts!.trim().split(/ +/).map(Number));
}

test("Linux finds four CPUs, uses them, and does not notice that it moves", { timeout: 300_000 }, async () => {
  const args = await linuxGuest("shell");
  if (!args) return console.log("no Linux here: run on Debian, or fill the cache folder");
  const host = await createHost({ directory: import.meta.dirname });
  try {
    await host.insmod("@mkvm/kvm-v1");
    await host.insmod("@mkvm/kvm-v2");
    await host.ln("/dev/kvm1", "/dev/kvm");
    const guest = await RunningGuest.start(host, [...args, "--cpus", "4"]);
    await guest.until("a shell", () => guest.transcript.includes("/ # "));
    /** Runs a command; its output, when it has ended. */
    let asked = 0;
    const ask = async (command: string): Promise<string> => {
      const from = guest.transcript.length;
      const mark = `answer-${++asked}`;
      guest.send(`${command}; echo ${mark.replace("-", "'-'")}`);
      await guest.until(`the answer of ${command}`, () => guest.transcript.indexOf(mark, from) > 0);
      return guest.transcript.slice(from);
    };
    expect(await ask("busybox nproc")).toMatch(/^4\r?$/m);
    // The kernel names it only where it uses it: five levels of paging tables, on every CPU and on both versions
    expect((await ask("cat /proc/cpuinfo")).match(/ la57\b/g)?.length).toBe(4);
    expect(await ask("cat /sys/devices/system/cpu/cpu3/topology/core_id")).toMatch(/^3\r?$/m);
    const before = interruptsBetweenCpus((await ask("cat /proc/interrupts")).replaceAll("\r", ""));
    expect(before.length).toBe(2);
    for (const cpu of [0, 1, 2, 3]) expect(before.reduce((sum, counts) => sum + counts[cpu]!, 0)).toBeGreaterThan(0);
    for (const to of ["kvm2", "kvm1", "kvm2"]) {
      expect((await host.upgrade({ pid: guest.pid, to }))[0]).toMatchObject({ moved: true, to });
      // A process on each CPU, all at once
      const said = await ask("for cpu in 0 1 2 3; do busybox taskset -c $cpu busybox md5sum /init & done; wait");
      expect(said.match(/[0-9a-f]{32} +\/init/g)?.length).toBe(4);
    }
    const after = interruptsBetweenCpus((await ask("cat /proc/interrupts")).replaceAll("\r", ""));
    for (const [row, counts] of after.entries()) {
      for (const [cpu, count] of counts.entries()) expect(count).toBeGreaterThanOrEqual(before[row]![cpu]!);
    }
    expect(await ask("dmesg")).not.toMatch(/(BUG|Oops|WARNING|Call Trace|unable to handle|stall|lockup|unstable)/);
    guest.send("exit");
    expect(await guest.process.exited).toMatchObject({ status: 0 });
  } finally {
    await host.close();
  }
});
