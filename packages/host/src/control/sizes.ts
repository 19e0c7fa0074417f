import { HostError } from "../errors.ts";

/** Bytes of "256M": a number with an optional K, M or G (powers of 1024). */
export function parseSize(text: string): number {
  const match = /^(\d+)([KMG]?)(i?B)?$/i.exec(text.trim());
  if (!match) throw new HostError("EINVAL", `'${text}' is no size: write a number with K, M or G, as in 256M`);
  const shift = { "": 0, K: 10, M: 20, G: 30 }[match[2]!.toUpperCase() as "" | "K" | "M" | "G"];
  return Number(match[1]) * 2 ** shift;
}

export function formatSize(bytes: number): string {
  for (const [unit, size] of [
    ["G", 2 ** 30],
    ["M", 2 ** 20],
    ["K", 2 ** 10],
  ] as const) {
    if (bytes >= size) return `${Math.round((bytes / size) * 10) / 10}${unit}`;
  }
  return `${bytes}`;
}
