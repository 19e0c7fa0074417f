import { expect, test } from "vitest";
import { movesOf, randomSchedule, shrink } from "./move-schedule.ts";

test("the same seed gives the same schedule, ascending and below the limit", () => {
  const schedule = randomSchedule(7, 100, 5000);
  expect(randomSchedule(7, 100, 5000)).toEqual(schedule);
  expect(randomSchedule(8, 100, 5000)).not.toEqual(schedule);
  expect([...schedule].sort((a, b) => a - b)).toEqual(schedule);
  expect(Math.max(...schedule)).toBeLessThan(5000);
});

test("moves go to and fro", () => {
  expect(movesOf([3, 5, 9]).map((move) => move.to)).toEqual(["kvm2", "kvm1", "kvm2"]);
});

test("shrinking leaves the moves that it takes to fail, and no other", async () => {
  const schedule = Array.from({ length: 100 }, (_, index) => index);
  const needs = (places: number[]) => async (candidate: readonly number[]) =>
    places.every((place) => candidate.includes(place));
  expect(await shrink(schedule, needs([42]))).toEqual([42]);
  expect(await shrink(schedule, needs([0, 57, 99]))).toEqual([0, 57, 99]);
  expect(await shrink(schedule, async (candidate) => candidate.length >= 2)).toHaveLength(2);
  expect(await shrink(schedule, async () => true)).toEqual([]);
});
