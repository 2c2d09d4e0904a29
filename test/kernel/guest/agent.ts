// The two guests of a pair talk over TCP, a line of JSON a message: one has the test, the other a {@link Side} that does what it is told.
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Side } from './side.js';

const PORT = 7001;

interface Request {
  id: number;
  name: string;
  args: unknown[];
}
interface Answer {
  id: number;
  value?: unknown;
  error?: string;
}

const say = (socket: Socket, message: Request | Answer): void => void socket.write(`${JSON.stringify(message)}\n`);

/** Does what the other guest says, until that goes. */
export async function obey(side: Side, address: string): Promise<void> {
  const server = createServer().listen(PORT, address);
  const [socket] = (await once(server, 'connection')) as [Socket];
  socket.on('error', () => undefined);
  createInterface({ input: socket, crlfDelay: Infinity }).on('line', (line) => {
    const { id, name, args } = JSON.parse(line) as Request;
    const call = Promise.resolve().then(() =>
      (side[name as keyof Side] as (...args: unknown[]) => Promise<unknown>).apply(side, args),
    );
    call.then(
      (value) => say(socket, { id, value }),
      (error: unknown) => say(socket, { id, error: error instanceof Error ? error.message : String(error) }),
    );
  });
  await once(socket, 'close');
  server.close();
}

/** The other guest's side; `close` lets it go. */
export async function command(address: string): Promise<Side & { close(): void }> {
  let socket: Socket | undefined;
  for (let tries = 0; socket === undefined; tries++) {
    try {
      const attempt = connect(PORT, address);
      await once(attempt, 'connect');
      socket = attempt;
    } catch (error) {
      if (tries > 600) throw error;
      await sleep(100);
    }
  }
  const link = socket;
  const waiting = new Map<number, (answer: Answer) => void>();
  createInterface({ input: link, crlfDelay: Infinity }).on('line', (line) => {
    const answer = JSON.parse(line) as Answer;
    waiting.get(answer.id)?.(answer);
    waiting.delete(answer.id);
  });
  link.on('close', () => {
    for (const [id, hear] of waiting) hear({ id, error: 'the other guest has gone' });
  });
  let next = 1;
  const call =
    (name: string) =>
    (...args: unknown[]): Promise<unknown> =>
      new Promise((resolve, reject) => {
        const id = next++;
        waiting.set(id, ({ value, error }) => (error === undefined ? resolve(value) : reject(new Error(error))));
        say(link, { id, name, args });
      });
  return new Proxy({} as Side & { close(): void }, {
    // A promise asks for `then` of what it is given.
    get: (_, name) => (name === 'close' ? () => link.destroy() : name === 'then' ? undefined : call(String(name))),
  });
}
