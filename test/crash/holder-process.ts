import { fork, type ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { FromHolder, RequestName, Requests, ToHolder } from './protocol.js';

interface Waiting {
  resolve: (value: unknown) => void;
  reject: (error: Error) => void;
}

/** The holder is gone: an answer will not come. */
export class HolderGone extends Error {}

/** A holder, as the test sees it. */
export class HolderProcess {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, Waiting>();
  #next = 1;
  /** Settles when the process has ended, with the signal that ended it. */
  readonly gone: Promise<NodeJS.Signals | null>;
  /** Called between the source's stop and the destination's start. */
  onHold: () => Promise<unknown> = async () => {};
  /** Called when a phase of a migration begins. */
  onPhase: (phase: string) => void = () => {};

  constructor(name: string, memoryFd: number, logFd: number) {
    this.#child = fork(fileURLToPath(new URL('./holder.js', import.meta.url)), [name], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc', memoryFd, logFd],
      execArgv: ['--enable-source-maps'],
    });
    this.#child.on('message', (message) => this.#take(message as FromHolder));
    this.gone = new Promise((resolve) => {
      this.#child.on('exit', (code, signal) => {
        for (const { reject } of this.#waiting.values())
          reject(new HolderGone(`holder ${name} ended (${signal ?? code})`));
        this.#waiting.clear();
        resolve(signal);
      });
    });
  }

  get alive(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** Asks the holder to do something and waits for its answer. */
  call<N extends RequestName>(
    name: N,
    ...[params]: Requests[N]['params'] extends null ? [] : [Requests[N]['params']]
  ): Promise<Requests[N]['result']> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      if (!this.alive) {
        reject(new HolderGone('the holder ended before'));
        return;
      }
      this.#waiting.set(id, { resolve: (value) => resolve(value as Requests[N]['result']), reject });
      this.#send({ type: 'request', id, name, params: params ?? null });
    });
  }

  /** Cuts its power. Settles when it is gone. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.gone;
  }

  #send(message: ToHolder): void {
    // One that dies meanwhile is noticed by its end.
    if (this.#child.connected) this.#child.send(message, () => undefined);
  }

  #take(message: FromHolder): void {
    switch (message.type) {
      case 'phase':
        this.onPhase(message.phase);
        return;
      case 'hold':
        void this.onHold().then(() => this.#send({ type: 'held', id: message.id }));
        return;
      case 'answer': {
        const waiting = this.#waiting.get(message.id);
        this.#waiting.delete(message.id);
        const { error } = message;
        if (error) waiting?.reject(Object.assign(new Error(error.message), { code: error.code }));
        else waiting?.resolve(message.result);
      }
    }
  }
}
