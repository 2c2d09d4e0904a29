// The processes of nvme-server.ts, and QEMU's device for what they serve.
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readlink, rm } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import type { Qmp } from './qmp.js';
import type { ServerAnswer, ServerDescription, ServerRequest, SocketStatus } from './nvme-server.js';

/** How many descriptors a server has open, by what they are of. */
export interface Descriptors {
  socket: number;
  memory: number;
  eventfd: number;
}

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

  /** How many descriptors it has open, by what they are of: connections, guest memory, interrupts. */
  async descriptors(): Promise<Descriptors> {
    const folder = `/proc/${this.#child?.pid}/fd`;
    const counts = { socket: 0, memory: 0, eventfd: 0 };
    for (const fd of await readdir(folder)) {
      const target = await readlink(`${folder}/${fd}`).catch(() => '');
      if (target.startsWith('socket:')) counts.socket += 1;
      else if (target.startsWith('/memfd:')) counts.memory += 1;
      else if (target === 'anon_inode:[eventfd]') counts.eventfd += 1;
    }
    return counts;
  }

  /** Ends it as a power failure would. */
  async kill(): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  }

  /** Serves a controller on a socket. */
  async expose(cntlid: number, socket: string): Promise<void> {
    await this.#ask({ cntlid, socket });
  }

  /** Takes a socket away, whoever is connected to it. */
  async hide(socket: string): Promise<void> {
    await this.#ask({ socket });
  }

  /** What a socket's server says of its client. */
  async status(socket: string): Promise<SocketStatus> {
    const { status } = await this.#ask({ socket, status: true });
    if (status === undefined) throw new Error('the server did not say');
    return status;
  }

  async #ask(what: Omit<ServerRequest, 'id'>): Promise<ServerAnswer> {
    this.#number += 1;
    const request: ServerRequest = { ...what, id: this.#number };
    const answered = this.#next(({ id }) => id === request.id);
    this.#child?.send(request);
    const answer = await answered;
    if (answer.error !== undefined) throw new Error(answer.error);
    return answer;
  }

  #next(fits: (answer: ServerAnswer) => boolean): Promise<ServerAnswer> {
    const child = this.#child;
    return new Promise((resolve, reject) => {
      const ended = (code: number | null, signal: string | null): void =>
        reject(new Error(`the server ended with ${code ?? signal}`));
      const heard = (message: unknown): void => {
        if (!fits(message as ServerAnswer)) return;
        child?.off('message', heard).off('exit', ended);
        resolve(message as ServerAnswer);
      };
      child?.on('message', heard).once('exit', ended);
    });
  }
}

/**
 * Plugs functions behind vfio-user sockets, and unplugs them. QEMU 11.1 aborts when it frees such a device that has MSI-X (its
 * `vfio_user_instance_finalize` takes apart what the object's end has taken apart already). So each is kept from being freed:
 * a console of the guest's display, which nobody looks at, refers to it. Its connection stays too; the server has to end it.
 */
export class Plugs {
  readonly #qmp: Qmp;
  #consoles = 0;

  constructor(qmp: Qmp) {
    this.#qmp = qmp;
  }

  /** Before a device is unplugged that was there when QEMU started. */
  async hold(id: string): Promise<void> {
    const path = `/backend/console[${this.#consoles}]`;
    this.#consoles += 1;
    await this.#qmp.execute('qom-set', { path, property: 'device', value: `/machine/peripheral/${id}` });
  }

  /** Plugs what is on the socket /towline/run/ID.sock behind the port rp-PORT. */
  async plug(id: string, port: string): Promise<void> {
    const socket = { type: 'unix', path: `/towline/run/${id}.sock` };
    await this.#qmp.execute('device_add', { driver: 'vfio-user-pci', id, bus: `rp-${port}`, socket });
    await this.hold(id);
  }

  /** Asks the guest to let go of a device, and waits until it has. There is no DEVICE_DELETED of a device that is not freed. */
  async unplug(id: string): Promise<void> {
    await this.#qmp.execute('device_del', { id });
    for (let waited = 0; waited < 60_000; waited += 100) {
      const there = (await this.#qmp.execute('qom-list', { path: '/machine/peripheral' })) as { name: string }[];
      if (!there.some(({ name }) => name === id)) return;
      await sleep(100);
    }
    throw new Error(`the guest does not let go of ${id}`);
  }
}
