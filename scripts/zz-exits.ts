import { exitLatency } from "./bench/exit-latency.ts";

const kinds = process.argv[3]?.split(",") ?? ["cpuid", "out", "in"];
for (const kind of kinds) {
  const s = await exitLatency(process.argv[2] ?? "@mkvm/kvm-v2", kind as any, +(process.argv[4] ?? 7), 100000);
  console.log(kind, s.map((x) => (x.cpuNs / 1000).toFixed(2)).join(" "));
}
