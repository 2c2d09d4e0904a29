import { fork, type ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { MigrationEvent } from 'towline';
import type { FromHost, HostRequest, ToHost } from './protocol.js';

interface Waiting {
  resolve: (value: unknown) => void;
  reject: (error: Error) => void;
}

/** A host process, as the demo sees it. */
export class HostProcess {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, Waiting>();
  #next = 1;
  /** Called for every progress event of the host's migration. */
  onEvent: (event: MigrationEvent) => void = () => {};
  /** Called between the source's stop and the destination's start. */
  onHold: () => Promise<void> = async () => {};

  constructor(name: string, memoryFd: number, logFd: number) {
    // stdin is not inherited: a host that reads the terminal would hold it.
    this.#child = fork(fileURLToPath(new URL('./host.js', import.meta.url)), [name], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc', memoryFd, logFd],
    });
    this.#child.on('message', (message) => this.#take(message as FromHost));
    this.#child.on('exit', (code, signal) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`host ${name} ended (${signal ?? code})`));
      this.#waiting.clear();
    });
  }

  /** Asks the host to do something and waits for its answer. */
  call<T>(request: HostRequest): Promise<T> {
    const id = this.#next++;
    return new Promise<T>((resolve, reject) => {
      this.#waiting.set(id, { resolve: (value) => resolve(value as T), reject });
      this.#send({ type: 'request', id, request });
    });
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  #send(message: ToHost): void {
    if (this.#child.connected) this.#child.send(message);
  }

  #take(message: FromHost): void {
    switch (message.type) {
      case 'event':
        this.onEvent(message.event);
        return;
      case 'hold':
        this.onHold().then(
          () => this.#send({ type: 'held', id: message.id }),
          (error: unknown) => this.#send({ type: 'held', id: message.id, error: String(error) }),
        );
        return;
      case 'answer': {
        const waiting = this.#waiting.get(message.id);
        this.#waiting.delete(message.id);
        if (message.error)
          waiting?.reject(Object.assign(new Error(message.error.message), { code: message.error.code }));
        else waiting?.resolve(message.value);
      }
    }
  }
}
