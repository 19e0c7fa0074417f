import type { Host, ProcessHandle } from "@mkvm/host";
import { RunningGuest } from "./running-guest.ts";

const PROMPT = "Shell> ";
/** Colours and places of the cursor. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: it is what a terminal gets
const CONTROL_SEQUENCES = /\x1b\[[0-9;=]*[A-Za-z]/g;

/** The shell of UEFI firmware, over the serial line of its VM. */
export class UefiShell {
  readonly guest: RunningGuest;

  private constructor(guest: RunningGuest) {
    this.guest = guest;
  }

  /** Starts the firmware. */
  static async start(host: Host, code: string, variables: string, more: string[] = []): Promise<UefiShell> {
    const args = ["--pflash", code, "--pflash", variables, "--memory", "128M", ...more];
    return new UefiShell(await RunningGuest.start(host, args));
  }

  /** Of a VM that was saved in its shell. */
  static of(process: ProcessHandle): UefiShell {
    return new UefiShell(new RunningGuest(process, false));
  }

  /** Waits for the first prompt. */
  async reached(): Promise<void> {
    await this.guest.until("its shell", () => this.said.includes("startup.nsh"));
    // It would wait 5 seconds for a key. Escape, which would do too, it takes for the beginning of another key's sequence at first
    this.#type("\r");
    await this.guest.until("its prompt", () => this.said.endsWith(PROMPT));
  }

  /** All that it said, without what is for the terminal. */
  get said(): string {
    return this.guest.transcript.replaceAll(CONTROL_SEQUENCES, "");
  }

  /** What it answers to a command. */
  async ask(command: string): Promise<string> {
    const before = this.said.length;
    this.#type(`${command}\r`);
    // From its echo on: a prompt before that is nobody's answer
    const answer = () => {
      const at = this.said.indexOf(command, before);
      return at < 0 ? "" : this.said.slice(at + command.length);
    };
    await this.guest.until(`the prompt after ${command}`, () => answer().includes("\n") && answer().endsWith(PROMPT));
    return answer();
  }

  /** The status that its VM ends with. */
  async turnOff(): Promise<number> {
    this.#type("reset -s\r");
    return (await this.guest.process.exited).status;
  }

  #type(text: string): void {
    this.guest.process.write(new TextEncoder().encode(text));
  }
}
