import type { ExecutionContext } from 'ava';

/** Cases at a time: each is several processes. */
const AT_ONCE = 2;

let free = AT_ONCE;
const waiting: (() => void)[] = [];

/** Runs `work` once fewer than that many others run. Its time begins when it does, not while it waits. */
export async function limited<T>(t: ExecutionContext, work: () => Promise<T>): Promise<T> {
  // A place is handed on: it is never free in between.
  if (free > 0) free--;
  else await new Promise<void>((resolve) => waiting.push(resolve));
  t.timeout(120_000);
  try {
    return await work();
  } finally {
    const next = waiting.shift();
    if (next) next();
    else free++;
  }
}
