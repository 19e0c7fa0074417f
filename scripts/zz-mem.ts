import { vmMemory } from "./bench/memory.ts";

console.log(await vmMemory("@mkvm/kvm-v2", 3));
