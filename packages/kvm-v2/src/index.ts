import type { KernelModule } from "@mkvm/kvm-abi";
import { kernelModule } from "./main.ts";

/** The module. What the types of VAC and of the CPU are is between it and the kernel that hands them over: users resolve neither. */
const published: KernelModule = kernelModule;

export default published;
