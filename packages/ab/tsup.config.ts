import { defineConfig } from "tsup";

export default defineConfig({
  entry: ["src/index.ts", "src/probe.ts"],
  format: ["esm"],
  target: "es2024",
  dts: { entry: "src/index.ts", compilerOptions: { ignoreDeprecations: "6.0" } },
  clean: true,
});
