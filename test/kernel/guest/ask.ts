// The guest's end of ../host/mailbox.ts.
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

const run = '/towline/run';
let number = 0;

/** Lets the host program do something, and gives what it answers. Throws what it says went wrong. */
export async function ask(name: string, ...args: unknown[]): Promise<unknown> {
  number += 1;
  // Of this guest and process, so that several may ask.
  const file = `${process.env['TOWLINE_ROLE'] ?? ''}-${String(process.pid).padStart(6, '0')}-${String(number).padStart(4, '0')}.json`;
  await mkdir(`${run}/requests`, { recursive: true });
  await writeFile(`${run}/requests/${file}.part`, JSON.stringify({ name, args }));
  await rename(`${run}/requests/${file}.part`, `${run}/requests/${file}`);
  for (let waited = 0; waited < 120_000; waited += 50) {
    const text = await readFile(`${run}/answers/${file}`, 'utf8').catch(() => undefined);
    if (text !== undefined) {
      const answer = JSON.parse(text) as { value?: unknown; error?: string };
      if (answer.error !== undefined) throw new Error(`the host, asked for ${name}: ${answer.error}`);
      return answer.value;
    }
    await sleep(50);
  }
  throw new Error(`the host did not answer to ${name}`);
}
