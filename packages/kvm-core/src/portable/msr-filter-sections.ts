/** The MSR filter of a VM in the sections of the portable state, and back. */
import { type Section, VmMsrFilter, VmMsrFilterBitmap } from "@mkvm/kvm-abi";
import { MsrFilter, type MsrFilterRange } from "../guest/msr-filter.ts";

/** None where there is no filter. */
export function saveMsrFilter(filter: MsrFilter | undefined): Section[] {
  if (filter === undefined) return [];
  const ranges = filter.ranges.map(({ flags, base, count }) => ({ flags, base, nmsrs: count }));
  return [
    VmMsrFilter.encode(0, { default_deny: filter.defaultAllow ? 0 : 1 }, ranges),
    ...filter.ranges.map(({ bitmap }, range) => {
      const words = new BigUint64Array(bitmap.slice().buffer);
      return VmMsrFilterBitmap.encode(
        range,
        {},
        Array.from(words, (bits) => ({ bits })),
      );
    }),
  ];
}

/** The filter, undefined where none was sent, or a sentence. */
export function decodeMsrFilter(sections: readonly Section[]): MsrFilter | undefined | string {
  if (!sections.some(({ name }) => name === VmMsrFilter.name)) return undefined;
  const filter = VmMsrFilter.find(sections);
  if (typeof filter === "string") return filter;
  const ranges: MsrFilterRange[] = [];
  for (const [index, { flags, base, nmsrs }] of filter.entries.entries()) {
    const words = VmMsrFilterBitmap.find(sections, index);
    if (typeof words === "string") return words;
    if (words.entries.length !== Math.ceil(nmsrs / 64)) {
      return `section ${VmMsrFilterBitmap.name}[${index}] has ${words.entries.length} words for ${nmsrs} MSRs`;
    }
    const bitmap = new Uint8Array(BigUint64Array.from(words.entries, ({ bits }) => bits).buffer);
    ranges.push({ flags, base, count: nmsrs, bitmap });
  }
  return new MsrFilter(filter.fixed.default_deny === 0, ranges);
}
