export { main } from "./main.ts";
export { ExitStatus } from "./vmm-error.ts";
