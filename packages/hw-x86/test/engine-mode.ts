import type { TranslateMode } from "../src/engine/translator/translator.ts";

const MODES: readonly string[] = ["off", "hot", "always"];

/** What the tests' engines translate: MKVM_ENGINE (off, hot or always), else what engines do by themselves. */
export function engineMode(): TranslateMode | undefined {
  const mode = process.env.MKVM_ENGINE;
  if (mode !== undefined && !MODES.includes(mode)) throw new Error(`MKVM_ENGINE is ${mode}, not one of ${MODES.join(", ")}`);
  return mode as TranslateMode | undefined;
}

/** `hotEntries` of the tests' engines: few, so that programs that run for milliseconds come to be translated while they run. */
export const HOT_ENTRIES_IN_TESTS = 2000;
