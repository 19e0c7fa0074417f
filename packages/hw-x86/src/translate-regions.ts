/** What the thread that translates does. */
import { variants } from "./engine/decoder/decoder.ts";
import { answerTo, type RegionAnswer, type RegionRequest } from "./engine/translator/region-thread.ts";

/** Translates a region that a CPU asked for. The thread needs no machine: `request` has all that there is to know. */
export function translateRegion(request: RegionRequest): RegionAnswer {
  return answerTo(request, variants);
}
