// What a guest asks of a host program: a file for each request and each answer in the folder that both see. A socket between them
// would be one of the emulator's devices, and some of the tests take these away.
import { mkdir, readFile, readdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** What a guest can ask for, by name. What a handler throws is told to the guest. */
export type Handlers = Record<string, (...args: never[]) => Promise<unknown>>;

/**
 * Answers a guest's requests one after the other until the signal.
 *
 * @param run the folder that the guest sees as /towline/run
 */
export async function serveMailbox(run: string, handlers: Handlers, signal: AbortSignal): Promise<void> {
  const requests = join(run, 'requests');
  const answers = join(run, 'answers');
  await mkdir(requests, { recursive: true });
  await mkdir(answers, { recursive: true });
  const done = new Set<string>();
  while (!signal.aborted) {
    const names = (await readdir(requests)).filter((name) => name.endsWith('.json') && !done.has(name)).toSorted();
    for (const name of names) {
      done.add(name);
      const answer = await answerTo(await readFile(join(requests, name), 'utf8'), handlers);
      await writeFile(join(answers, `${name}.part`), JSON.stringify(answer));
      await rename(join(answers, `${name}.part`), join(answers, name));
    }
    if (names.length === 0) await sleep(20);
  }
}

type Answer = { value: unknown } | { error: string };

async function answerTo(text: string, handlers: Handlers): Promise<Answer> {
  try {
    const { name, args } = JSON.parse(text) as { name: string; args: never[] };
    const handler = handlers[name];
    if (handler === undefined) throw new Error(`nothing here answers to ${name}`);
    return { value: (await handler(...args)) ?? null };
  } catch (error) {
    return { error: error instanceof Error ? (error.stack ?? error.message) : String(error) };
  }
}
