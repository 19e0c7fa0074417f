/** The first section of a saved file, as JSON: what a reader must know before it looks at any state. */
import type { Manifest } from "./manifest-schema.ts";
import type { ProcessImage } from "./process-image.ts";

export type { Manifest };
export type SavedPackages = Pick<Manifest, "program" | "savedBy">;

export function manifestOf(image: ProcessImage, packages: SavedPackages): Manifest {
  const { name, args, machine, clock, retired, bankBytes, memory, systemFiles, eventfds, input } = image;
  const vms = image.vms.map(({ files }) => ({ files: [...files] }));
  return {
    ...packages,
    name,
    args: [...args],
    machine,
    clock,
    retired,
    bankBytes,
    memory: [...memory],
    systemFiles: [...systemFiles],
    vms,
    eventfds: eventfds.map((each) => ({ ...each, descriptors: [...each.descriptors] })),
    undelivered: [...image.undelivered],
    turns: [...image.turns],
    inputEnded: input.ended,
  };
}
