/** How long something may take, in milliseconds of real time, and what becomes of it then. */

/** Calls `late` after `limitMs`, unless what is returned is called before. */
export function alarm(limitMs: number, late: () => void): () => void {
  const timer = setTimeout(late, limitMs);
  return () => clearTimeout(timer);
}

/** What `answer` comes to, or what `late` comes to after `limitMs`: nobody hears of the answer then. */
export function within<Answer, Late>(answer: Promise<Answer>, limitMs: number, late: () => Late): Promise<Answer | Late> {
  return new Promise((resolve, reject) => {
    const off = alarm(limitMs, () => {
      try {
        resolve(late());
      } catch (thrown) {
        reject(thrown);
      }
    });
    answer.then(resolve, reject).finally(off);
  });
}
