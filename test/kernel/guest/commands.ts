// The command `towline`, many times in one process, which `host.ts` starts and tells what to run: starting Node takes an emulated machine
// longer than most commands do. Each answer says what of devices was open when the command had ended.
import { fileURLToPath } from 'node:url';

import { devicesOpenIn } from './descriptors.js';
import { cli as main } from './paths.js';

/** One command, and what became of it. `error` is set where it threw, which none does. */
export interface Asked {
  id: number;
  args: string[];
}
export interface Answered {
  id: number;
  code: number;
  out: string;
  err: string;
  open: string[];
  error?: string;
}

/** Collects what is written, as a pipe would. */
function capture(stream: NodeJS.WriteStream): () => string {
  const { write } = stream;
  let text = '';
  stream.write = (piece: string | Uint8Array, ...rest: unknown[]): boolean => {
    text += typeof piece === 'string' ? piece : Buffer.from(piece).toString();
    for (const done of rest) if (typeof done === 'function') process.nextTick(done as () => void);
    return true;
  };
  return () => {
    stream.write = write;
    return text;
  };
}

async function run({ id, args }: Asked): Promise<Answered> {
  const [out, err] = [capture(process.stdout), capture(process.stderr)];
  process.argv = [process.execPath, fileURLToPath(main), ...args];
  process.exitCode = undefined;
  let error: string | undefined;
  try {
    // With another query it is evaluated once more; everything that it imports is there already.
    await import(`${main.href}?${id}`);
  } catch (thrown) {
    error = String(thrown);
  }
  const code = Number(process.exitCode ?? 0);
  process.exitCode = undefined;
  const answer = { id, code, out: out(), err: err(), open: devicesOpenIn() };
  return error === undefined ? answer : { ...answer, error };
}

// Each command listens to its end of the pipe.
process.stdout.setMaxListeners(0);
let last: Promise<unknown> = Promise.resolve();
process.on('message', (asked: Asked) => {
  last = last.then(async () => process.send?.(await run(asked)));
});
process.on('disconnect', () => process.exit());
