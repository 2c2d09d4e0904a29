// The processes of nvme-server.ts, and QEMU's device for what they serve.
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { rm } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

import type { ServerAnswer, ServerDescription, ServerRequest } from './nvme-server.js';

/** A subsystem in another process. */
export class Server {
  readonly #description: ServerDescription;
  #child: ChildProcess | undefined;
  #number = 0;
  /** Its sockets and the controllers behind them. */
  cntlids: Record<string, number> = {};

  constructor(description: ServerDescription) {
    this.#description = description;
  }

  /** Starts it, also once more after it was killed. */
  async start(): Promise<void> {
    const { controlling, functions } = this.#description;
    for (const { socket } of controlling === undefined ? functions : [controlling, ...functions])
      await rm(socket, { force: true });
    const file = fileURLToPath(new URL('nvme-server.js', import.meta.url));
    this.#child = fork(file, [JSON.stringify(this.#description)], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    const { cntlids } = await this.#next(() => true);
    this.cntlids = cntlids ?? {};
  }

  /** Ends it as a power failure would. */
  async kill(): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  }

  /** Serves a further controller on a socket. */
  async expose(cntlid: number, socket: string): Promise<void> {
    this.#number += 1;
    const request: ServerRequest = { id: this.#number, cntlid, socket };
    this.#child?.send(request);
    const { error } = await this.#next(({ id }) => id === request.id);
    if (error !== undefined) throw new Error(error);
  }

  #next(fits: (answer: ServerAnswer) => boolean): Promise<ServerAnswer> {
    const child = this.#child;
    return new Promise((resolve, reject) => {
      const heard = (message: unknown): void => {
        if (!fits(message as ServerAnswer)) return;
        child?.off('message', heard);
        resolve(message as ServerAnswer);
      };
      child?.on('message', heard);
      child?.once('exit', (code, signal) => reject(new Error(`the server ended with ${code ?? signal}`)));
    });
  }
}

/** QEMU's device for a vfio-user socket, as device_add takes it: behind one of its ports. */
export const vfioUser = (id: string, socket: string, bus: string): Record<string, unknown> => ({
  driver: 'vfio-user-pci',
  id,
  bus,
  socket: { type: 'unix', path: socket },
});
