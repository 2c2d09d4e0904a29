/**
 * A VMM in a process of its own, which writes guest memory that somebody else migrates: it has the memory as file descriptor 4, watches its own
 * mapping, and answers what it is asked over the IPC channel.
 */
import { randomBytes } from 'node:crypto';
import { fork, type ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { processDirtySource } from '#towline/dirty/process.js';
import type { DirtySource, MemoryRange } from '#towline/function/channel.js';
import { GuestMemory } from '#towline/migration/memory.js';
import { mappedAt } from './mapped-at.js';

type Asked =
  | { call: 'start'; ranges: readonly MemoryRange[]; pageSizeBytes: number }
  | { call: 'harvest' | 'stop' | 'run' | 'halt' }
  | { call: 'write'; gpa: bigint; data: Uint8Array };

/** The other side: the process that migrates. */
export class Writer {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  #next = 0;

  constructor(memoryFd: number, name: string, lenBytes: bigint) {
    this.#child = fork(fileURLToPath(import.meta.url), [name, lenBytes.toString()], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc', memoryFd],
      serialization: 'advanced',
    });
    this.#child.on('message', (message) => {
      const { id, value, error } = message as { id: number; value?: unknown; error?: string };
      const waiting = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) waiting?.resolve(value);
      else waiting?.reject(new Error(error));
    });
    this.#child.on('exit', () => this.#waiting.forEach(({ reject }) => reject(new Error('the writer is gone'))));
  }

  ask(asked: Asked): Promise<unknown> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#child.send({ id, asked });
    });
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  /** Its dirty source as one in plain TypeScript: what crosses is runs of pages. */
  source(): DirtySource {
    return {
      start: async (ranges, pageSizeBytes) => (await this.ask({ call: 'start', ranges, pageSizeBytes })) as number,
      harvest: async () => (await this.ask({ call: 'harvest' })) as MemoryRange[],
      stop: async () => void (await this.ask({ call: 'stop' })),
      close: async () => undefined,
    };
  }
}

function main(name: string, len: bigint): void {
  const memory = new GuestMemory([{ gpa: 0n, len, fd: 4 }]);
  const source = processDirtySource({ ranges: [{ address: mappedAt(name), len, gpa: 0n }] });
  let runs = false;
  const write = (): void => {
    const page = BigInt(Math.floor(Math.random() * Number(len / 4096n)));
    memory.write(page * 4096n + 100n, randomBytes(64));
    if (runs) setImmediate(write);
  };
  const answer = async (asked: Asked): Promise<unknown> => {
    switch (asked.call) {
      case 'start':
        return source.start(asked.ranges, asked.pageSizeBytes);
      case 'harvest':
        return source.harvest();
      case 'stop':
        return source.stop();
      case 'write':
        return memory.write(asked.gpa, asked.data);
      case 'run':
        runs = true;
        return write();
      case 'halt':
        runs = false;
        return undefined;
    }
  };
  process.on('message', (message) => {
    const { id, asked } = message as { id: number; asked: Asked };
    answer(asked).then(
      (value) => process.send?.({ id, value }),
      (error: unknown) => process.send?.({ id, error: String(error) }),
    );
  });
  process.on('disconnect', () => process.exit());
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [name, len] = process.argv.slice(2);
  if (name === undefined || len === undefined) throw new Error('two arguments');
  main(name, BigInt(len));
}
