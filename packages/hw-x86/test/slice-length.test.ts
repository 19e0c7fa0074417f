import { expect, test } from "vitest";
import { SliceLength } from "../src/slice-length.ts";

test("slices begin at what interpreted code does in half a millisecond", () => {
  expect(new SliceLength().until(Number.POSITIVE_INFINITY)).toBe(50_000);
});

test("slices grow by doubling while whole ones take less time, up to a limit", () => {
  const slices = new SliceLength();
  const lengths = [];
  for (let i = 0; i < 6; i++) {
    const length = slices.until(Number.POSITIVE_INFINITY);
    lengths.push(length);
    slices.learn(length, length / 5_000_000);
  }
  expect(lengths).toEqual([50_000, 100_000, 200_000, 200_000, 200_000, 200_000]);
});

test("one slow slice makes the next short, and none is shorter than for code that reads the TSC all the time", () => {
  const slices = new SliceLength();
  for (let i = 0; i < 6; i++) slices.learn(1_000_000, 0.1);
  slices.learn(1_000_000, 5);
  expect(slices.until(Number.POSITIVE_INFINITY)).toBe(100_000);
  slices.learn(50_000, 1);
  expect(slices.until(Number.POSITIVE_INFINITY)).toBe(25_000);
  slices.learn(25_000, 500);
  expect(slices.until(Number.POSITIVE_INFINITY)).toBe(10_000);
});

test("before a deadline slices are as long as the time left, at the speed learned", () => {
  const slices = new SliceLength();
  expect(slices.until(0.1)).toBe(10_000);
  slices.learn(50_000, 0.25);
  expect(slices.until(0.1)).toBe(20_000);
  expect(slices.until(0)).toBe(256);
  expect(slices.until(-1)).toBe(256);
});

test("a slice that took no time at all does not break the estimate", () => {
  const slices = new SliceLength();
  slices.learn(50_000, 0);
  expect(slices.until(Number.POSITIVE_INFINITY)).toBe(100_000);
});
