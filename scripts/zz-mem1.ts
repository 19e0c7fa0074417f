import { createHost } from "@mkvm/host";
import { startIdleLinux } from "./bench/idle.ts";

const host = await createHost({ directory: process.cwd() });
const { name } = await host.insmod("@mkvm/kvm-v2");
await host.ln(`/dev/${name}`, "/dev/kvm");
for (let i = 0; i < 2; i++) {
  await startIdleLinux(host, "256M");
  await new Promise((r) => setTimeout(r, 7000));
  console.log("vm", i);
}
await host.close();
