export { kernelModule as default } from "./main.ts";
