import { defineConfig } from "tsup";

export default defineConfig({
  entry: ["src/index.ts", "src/cli.ts", "src/cpu-worker.ts", "src/region-worker.ts"],
  format: ["esm"],
  target: "es2024",
  dts: { compilerOptions: { ignoreDeprecations: "6.0" } },
  clean: true,
});
