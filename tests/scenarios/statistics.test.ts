import { join } from "node:path";
import { createHost, type Host, type ProcessHandle, type Statistic, type VmStatistics } from "@mkvm/host";
import { afterEach, expect, test } from "vitest";
import { RunningGuest, tinyGuest } from "./running-guest.ts";

let host: Host;
afterEach(() => host.close());

async function hostWithBoth(): Promise<void> {
  host = await createHost({ directory: import.meta.dirname });
  await host.insmod("@mkvm/kvm-v1", { parameters: { exit_latency: true } });
  await host.insmod("@mkvm/kvm-v2", { parameters: { exit_latency: true } });
  await host.ln("/dev/kvm1", "/dev/kvm");
}

/** All values that may only grow, by name and bucket. */
function growing(vm: VmStatistics): Map<string, number> {
  const values = new Map<string, number>();
  const add = (where: string, { name, ...rest }: Statistic): void => {
    if ("buckets" in rest)
      for (const [bucket, value] of rest.buckets.entries()) values.set(`${where} ${name}[${bucket}]`, value);
    else if (rest.kind !== "instant") values.set(`${where} ${name}`, rest.value);
  };
  for (const statistic of vm.statistics) add("vm", statistic);
  for (const { id, statistics } of vm.vcpus) for (const statistic of statistics) add(`vcpu ${id}`, statistic);
  return values;
}

test("statistics go with their VM, there and back, and what they count never steps back", async () => {
  await hostWithBoth();
  const guest = await RunningGuest.start(host, tinyGuest());
  await guest.rounds(5);
  const looks: VmStatistics[] = [];
  const look = async (module: string): Promise<void> => {
    const [vm, ...others] = await host.statistics(guest.pid);
    expect(others).toEqual([]);
    expect(vm).toMatchObject({ pid: guest.pid, id: `kvm-${guest.pid}`, module, vcpus: [{ id: 0 }] });
    looks.push(vm);
  };
  await look("kvm1");
  for (const to of ["kvm2", "kvm1", "kvm2", "kvm1"]) {
    expect((await host.upgrade({ pid: guest.pid, to }))[0]).toMatchObject({ moved: true });
    await look(to);
    await guest.rounds(5);
    await look(to);
  }
  expect(await host.statistics()).toMatchObject([{ pid: guest.pid }]);
  expect(await guest.stop()).toBe(0);
  const [last] = await host.statistics(guest.pid);
  looks.push(last);
  for (let index = 1; index < looks.length; index++) {
    const before = growing(looks[index - 1]);
    const after = growing(looks[index]);
    expect([...after.keys()]).toEqual([...before.keys()]);
    const steppedBack = [...before].filter(([name, value]) => after.get(name)! < value);
    expect(steppedBack, `look ${index}`).toEqual([]);
  }
  const first = growing(looks[0]);
  const end = growing(last);
  for (const name of ["vcpu 0 exits", "vcpu 0 guest_instructions", "vcpu 0 host_state_reload", "vcpu 0 exit_io_instruction"]) {
    expect(end.get(name), name).toBeGreaterThan(first.get(name)!);
  }
  const total = (prefix: string, values: Map<string, number>): number =>
    [...values].reduce((sum, [name, value]) => (name.startsWith(prefix) ? sum + value : sum), 0);
  expect(total("vcpu 0 exit_latency_io_instruction[", end)).toBeGreaterThan(0);
  await expect(host.statistics(4711)).rejects.toThrow("no process 4711: see 'mkvm ps'");
});

test("a VMM that keeps statistics descriptors and their layout reads on through moves", async () => {
  await hostWithBoth();
  const run: ProcessHandle = await host.run({ program: join(import.meta.dirname, "statistics-program"), args: [] });
  const lines: number[][] = [];
  let rest = "";
  let wake = (): void => {};
  const followed = (async () => {
    for await (const chunk of run.output) {
      const text = (rest + new TextDecoder().decode(chunk)).split("\n");
      rest = text.pop()!;
      for (const line of text) lines.push(line.split(" ").map(Number));
      wake();
    }
  })();
  const more = async (count: number): Promise<void> => {
    const wanted = lines.length + count;
    while (lines.length < wanted) {
      await new Promise<void>((resolve) => {
        wake = resolve;
        run.exited.then(() => resolve());
      });
      if (lines.length < wanted && (await Promise.race([run.exited, undefined])) !== undefined) {
        throw new Error(`the program ended: ${JSON.stringify(await run.exited)}`);
      }
    }
  };
  await more(3);
  for (const to of ["kvm2", "kvm1", "kvm2"]) {
    expect((await host.upgrade({ pid: run.pid, to }))[0]).toMatchObject({ moved: true, to });
    await more(3);
  }
  await host.finalize(run.pid);
  await host.rmmod("kvm1");
  await more(1);
  run.endInput();
  expect(await run.exited).toMatchObject({ status: 0 });
  await followed;
  for (const [made, ioExits] of lines) expect(ioExits).toBe(made);
  for (let index = 1; index < lines.length; index++) {
    lines[index].forEach((value, column) => {
      expect(value).toBeGreaterThanOrEqual(lines[index - 1][column]);
    });
  }
  // Its descriptors, and those of the VM, are all that kept the module
  await host.rmmod("kvm2");
});
