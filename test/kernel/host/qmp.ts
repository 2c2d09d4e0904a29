// QEMU's monitor (docs/interop/qmp-spec.rst of QEMU): JSON objects, one a line.
import { type Socket, connect } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

interface Message {
  QMP?: unknown;
  return?: unknown;
  error?: { class: string; desc: string };
  event?: string;
  data?: Record<string, unknown>;
}

/** A monitor. One command at a time. */
export class Qmp {
  readonly #socket: Socket;
  readonly #answers: ((message: Message) => void)[] = [];
  readonly #events: Message[] = [];

  private constructor(socket: Socket) {
    this.#socket = socket;
    createInterface({ input: socket }).on('line', (line) => {
      const message = JSON.parse(line) as Message;
      if (message.event !== undefined) this.#events.push(message);
      else if (message.QMP === undefined) this.#answers.shift()?.(message);
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

  /** Waits for the next event of a kind that fits, and forgets the ones before it. */
  async event(name: string, fits: (data: Record<string, unknown>) => boolean, timeoutMs = 60_000): Promise<void> {
    for (let waited = 0; waited < timeoutMs; waited += 20) {
      while (this.#events.length > 0) {
        const event = this.#events.shift();
        if (event?.event === name && fits(event.data ?? {})) return;
      }
      await sleep(20);
    }
    throw new Error(`no ${name} within ${timeoutMs} ms`);
  }

  /** Plugs a device in. */
  async plug(device: Record<string, unknown>): Promise<void> {
    await this.execute('device_add', device);
  }

  /** Asks the guest to let go of a device, and waits until it has. */
  async unplug(id: string): Promise<void> {
    await this.execute('device_del', { id });
    await this.event('DEVICE_DELETED', (data) => data['device'] === id);
  }

  close(): void {
    this.#socket.destroy();
  }
}
