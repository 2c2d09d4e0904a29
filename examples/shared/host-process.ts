/** A process that does what it is asked by Node's own IPC, tells what happens, and can be held up: both ends of it. */
import { fork, type ChildProcess } from 'node:child_process';

type FromHost<Event> =
  | { type: 'answer'; id: number; value?: unknown; error?: { message: string; code?: string } }
  | { type: 'event'; event: Event }
  | { type: 'hold'; id: number };

type ToHost<Request> = { type: 'request'; id: number; request: Request } | { type: 'held'; id: number; error?: string };

interface Waiting {
  resolve: (value: unknown) => void;
  reject: (error: Error) => void;
}

/** A host process, as the demo sees it. */
export class HostProcess<Request, Event> {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, Waiting>();
  #next = 1;
  /** It has ended, and answers nothing any more. */
  #ended: Error | undefined;
  /** Called for every progress event of the host's migration. */
  onEvent: (event: Event) => void = () => {};
  /** Called between the source's stop and the destination's start. */
  onHold: () => Promise<unknown> = async () => {};

  /** Starts `module` with `name` as its argument; it inherits `fds` from descriptor 4 on. */
  constructor(module: string, name: string, fds: readonly number[]) {
    // stdin is not inherited: a host that reads the terminal would hold it.
    this.#child = fork(module, [name], { stdio: ['ignore', 'inherit', 'inherit', 'ipc', ...fds] });
    this.#child.on('message', (message) => this.#take(message as FromHost<Event>));
    this.#child.on('exit', (code, signal) => {
      this.#ended = new Error(`host ${name} ended (${signal ?? code})`);
      for (const { reject } of this.#waiting.values()) reject(this.#ended);
      this.#waiting.clear();
    });
  }

  /** Asks the host to do something and waits for its answer. */
  call<T>(request: Request): Promise<T> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    const id = this.#next++;
    return new Promise<T>((resolve, reject) => {
      this.#waiting.set(id, { resolve: (value) => resolve(value as T), reject });
      this.#send({ type: 'request', id, request });
    });
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  #send(message: ToHost<Request>): void {
    if (this.#child.connected) this.#child.send(message);
  }

  #take(message: FromHost<Event>): void {
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

/** The other end, inside of the host process. */
export interface HostSide<Event> {
  /** Tells what happens. */
  event(event: Event): void;
  /** Waits until whoever started the process lets it go on. */
  hold(): Promise<void>;
}

/** Answers requests until whoever started this process is gone; then the process ends. */
export function serve<Request, Event>(answer: (request: Request) => Promise<unknown>): HostSide<Event> {
  const holds = new Map<number, { resolve: () => void; reject: (error: Error) => void }>();
  let nextHold = 1;
  const send = (message: FromHost<Event>): void => {
    // Then there is nobody to tell.
    if (process.connected) process.send?.(message);
  };
  process.on('disconnect', () => process.exit(0));
  process.on('message', (message: ToHost<Request>) => {
    if (message.type === 'held') {
      const hold = holds.get(message.id);
      holds.delete(message.id);
      if (message.error === undefined) hold?.resolve();
      else hold?.reject(new Error(message.error));
      return;
    }
    answer(message.request).then(
      (value) => send({ type: 'answer', id: message.id, value }),
      (error: unknown) => {
        const e = error as { message?: string; code?: string };
        const told = { message: e.message ?? String(error), ...(e.code === undefined ? {} : { code: e.code }) };
        send({ type: 'answer', id: message.id, error: told });
      },
    );
  });
  return {
    event: (event) => send({ type: 'event', event }),
    hold: () => {
      const id = nextHold++;
      return new Promise((resolve, reject) => {
        holds.set(id, { resolve, reject });
        send({ type: 'hold', id });
      });
    },
  };
}
