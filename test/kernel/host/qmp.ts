// QEMU's monitor (docs/interop/qmp-spec.rst of QEMU): JSON objects, one a line.
import { type Socket, connect } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

interface Message {
  QMP?: unknown;
  return?: unknown;
  error?: { class: string; desc: string };
  event?: string;
}

/** A monitor. One command at a time. */
export class Qmp {
  readonly #socket: Socket;
  readonly #answers: ((message: Message) => void)[] = [];

  private constructor(socket: Socket) {
    this.#socket = socket;
    createInterface({ input: socket }).on('line', (line) => {
      const message = JSON.parse(line) as Message;
      if (message.event === undefined && message.QMP === undefined) this.#answers.shift()?.(message);
    });
    socket.on('close', () => {
      for (const answer of this.#answers.splice(0)) answer({ error: { class: 'Closed', desc: 'the monitor is gone' } });
    });
    socket.on('error', () => socket.destroy());
  }

  /** Connects to a guest's monitor as soon as there is one. */
  static async connect(path: string, signal?: AbortSignal): Promise<Qmp> {
    for (;;) {
      signal?.throwIfAborted();
      const socket = await new Promise<Socket | undefined>((resolve) => {
        const attempt = connect(path, () => resolve(attempt));
        attempt.on('error', () => resolve(undefined));
      });
      if (socket === undefined) {
        await sleep(50);
        continue;
      }
      const qmp = new Qmp(socket);
      await qmp.execute('qmp_capabilities');
      return qmp;
    }
  }

  /** Lets QEMU do something. Throws where it says that it can't. */
  async execute(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    const answer = await new Promise<Message>((resolve) => {
      this.#answers.push(resolve);
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args })}\n`);
    });
    if (answer.error !== undefined) throw new Error(`${command}: ${answer.error.desc}`);
    return answer.return;
  }

  close(): void {
    this.#socket.destroy();
  }
}
