import { MessageChannel, type MessagePort } from "node:worker_threads";
import type { RegionAnswer, RegionRequest } from "@mkvm/hw-x86";
import { afterEach, expect, it } from "vitest";
import { RegionPort, type RegionQuestion, type RegionReply } from "../src/worker/region-port.ts";

/** A region of nothing: the thread answers that there is no code for it. */
const region: RegionRequest = {
  blocks: [
    { header: 0, offset: 0, page: 0, count: 0, operations: [], ending: { kind: "interpreter", at: 64 }, successors: [] },
  ],
  entries: [0],
  returnSites: [],
  mode: { codeSize: 64, stackMask: 0n },
  range: undefined,
};

let far: MessagePort;
let sent: SharedArrayBuffer;
function connect(): RegionPort {
  const { port1, port2 } = new MessageChannel();
  far = port1;
  sent = new SharedArrayBuffer(4);
  return new RegionPort({ port: port2, sent });
}
afterEach(() => far?.close());

it("hands over answers when it is polled, to who asked", async () => {
  const port = connect();
  const answers: [string, RegionAnswer][] = [];
  port.request(region, (code) => answers.push(["first", code]));
  port.request(region, (code) => answers.push(["second", code]));
  const questions = await new Promise<RegionQuestion[]>((resolve) => {
    const all: RegionQuestion[] = [];
    far.on("message", (question: RegionQuestion) => {
      if (all.push(question) === 2) resolve(all);
    });
  });
  port.poll();
  expect(answers).toEqual([]);
  for (const { id } of questions.reverse()) {
    far.postMessage({ id, code: undefined } satisfies RegionReply);
    Atomics.add(new Int32Array(sent), 0, 1);
  }
  port.poll();
  port.poll();
  expect(answers).toEqual([
    ["second", undefined],
    ["first", undefined],
  ]);
});

it("translates itself what waits when the thread ends, and what comes later", async () => {
  const port = connect();
  const answers: string[] = [];
  await new Promise<void>((resolve) => {
    port.request(region, () => {
      answers.push("waiting");
      resolve();
    });
    far.close();
  });
  port.request(region, () => answers.push("later"));
  expect(answers).toEqual(["waiting", "later"]);
});
