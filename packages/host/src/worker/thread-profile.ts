/** A sampling profile of the thread that it is made on, by V8's own profiler: nothing is counted in guest code. */
import { type Profiler, Session } from "node:inspector";
import type { TimePart } from "../control/types.ts";
import { addTimes, type ProfileSources } from "./time-parts.ts";

const sampleUs = 1000;
/** Samples are added up this often, so that a long run does not keep them all. */
const collectMs = 10_000;

export class ThreadProfile {
  readonly #session = new Session();
  readonly #sources: () => ProfileSources;
  readonly #timesUs = new Map<TimePart, number>();
  readonly #timer: NodeJS.Timeout;

  /** `sources` is asked when samples are added up. */
  constructor(sources: () => ProfileSources) {
    this.#sources = sources;
    this.#session.connect();
    this.#session.post("Profiler.enable");
    this.#session.post("Profiler.setSamplingInterval", { interval: sampleUs });
    this.#session.post("Profiler.start");
    this.#timer = setInterval(() => this.#collect(), collectMs);
    this.#timer.unref();
  }

  /** Milliseconds so far by part. */
  times(): Map<TimePart, number> {
    this.#collect();
    return new Map([...this.#timesUs].map(([part, us]) => [part, us / 1000]));
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#session.disconnect();
  }

  #collect(): void {
    let profile: Profiler.Profile | undefined;
    // A session with its own thread answers before `post` returns
    this.#session.post("Profiler.stop", (_error, result) => {
      profile = result?.profile;
    });
    this.#session.post("Profiler.start");
    if (profile) addTimes(profile, this.#sources(), this.#timesUs);
  }
}
