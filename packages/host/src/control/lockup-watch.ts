/**
 * Whether a CPU's thread still comes back for what it is asked. It is looked at as Linux looks for soft lockups, by something small
 * that it is to do, so that one that is busy for long, or waits for a module, is not taken for one that hangs.
 */
import { alarm } from "../patience.ts";

/** Part of the limit after which the thread is asked, when somebody still waits for it. */
const askAfter = 1 / 4;

export interface Watched {
  /** Asks the thread for a `pong`. */
  ping(): void;
  /** It did not come within the limit: the thread is silent, until it does. */
  silent(): void;
  back(): void;
}

export class LockupWatch {
  readonly #limitMs: number;
  readonly #watched: Watched;
  #off: (() => void) | undefined;
  #pinged = false;
  #silent = false;

  constructor(limitMs: number, watched: Watched) {
    this.#limitMs = limitMs;
    this.#watched = watched;
  }

  /** Somebody waits for the thread. */
  begin(): void {
    if (this.#off || this.#silent) return;
    if (this.#pinged) this.#await();
    else this.#off = alarm(this.#limitMs * askAfter, () => this.#ask());
  }

  /** Nobody does any more. */
  end(): void {
    this.#off?.();
    this.#off = undefined;
  }

  pong(): void {
    this.#pinged = false;
    if (this.#silent) {
      this.#silent = false;
      this.#watched.back();
    } else if (this.#off) {
      this.end();
      this.begin();
    }
  }

  #ask(): void {
    this.#pinged = true;
    this.#watched.ping();
    this.#await();
  }

  #await(): void {
    const off = alarm(this.#limitMs, () => {
      // What has come while this thread itself was busy is to be heard first
      setImmediate(() => {
        if (!this.#pinged || this.#off !== off) return;
        this.#off = undefined;
        this.#silent = true;
        this.#watched.silent();
      });
    });
    this.#off = off;
  }
}
