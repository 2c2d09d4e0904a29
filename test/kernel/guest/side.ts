// One side of a migration between two kernels: a `towline serve` with its journal, and what can be seen of its devices besides.
import { fork, execFile, type ChildProcess } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { readdir, readFile, readlink } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isTowlineError, type JournalSession, type MigrationReport, type Recovered } from '#towline/index.js';
import { stateFromNumber } from '#towline/function/state.js';
import { binding } from '#towline/native/api.js';
import { ServeClient } from '#towline/serve/client.js';
import type { FunctionInfo, MethodName, Methods } from '#towline/serve/protocol.js';
import type { Arms, FromInside, ToInside } from './inside-serve.js';
import { cli, insideServe } from './paths.js';
import { create, exists, hasDebugfs, kernelState, remove, type Register } from './mtty.js';

const main = fileURLToPath(cli);
const preload = insideServe.href;

/** Nobody waits longer for one who wanted to come. */
const ACCEPT_MS = 60_000;

/** How a migration ended at one side. */
export interface Ended {
  outcome: string;
  code: string | null;
  why: string | null;
  session: string;
  downtimeMs: number | null;
}

/** Options of {@link Side.migrate}. */
export interface MoveOptions {
  linkTimeoutMs?: number;
  /** Of {@link Side.migrate}: no faster than that. */
  bytesPerSecond?: number;
}

type Omitted<T> = T extends { id: number } ? Omit<T, 'id'> : never;

/** What has a name on the wire between the two guests, see `agent.ts`. */
export class Side {
  readonly #name: string;
  readonly #address: string;
  readonly #directory: string;
  #child: ChildProcess | undefined;
  #gone: Promise<string> = Promise.resolve('never started');
  #client: ServeClient | undefined;
  #receiving: { ended: Promise<Ended>; hangUp: AbortController } | undefined;
  #nextId = 1;
  readonly #asked = new Map<number, (answer: FromInside) => void>();

  /** @param address - Where the other side reaches this one. */
  constructor(name: string, address: string) {
    this.#name = name;
    this.#address = address;
    this.#directory = `/tmp/side-${name}`;
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
  }

  get #socket(): string {
    return `${this.#directory}/socket`;
  }

  /** Starts `towline serve` over the journal of this side. */
  async start(): Promise<void> {
    const args = ['serve', '--json', '--controlling', 'mdev:mtty', '--memory', '1M'];
    const child = fork(main, [...args, '--journal', `${this.#directory}/journal`, '--socket', this.#socket], {
      stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
      execArgv: ['--import', preload],
    });
    this.#child = child;
    this.#gone = new Promise((resolve) => {
      child.on('exit', (code, signal) => {
        for (const [id, hear] of this.#asked) hear({ id, error: `${this.#name} ended (${signal ?? code})` });
        resolve(signal ?? String(code));
      });
    });
    child.on('message', (message: FromInside) => this.#asked.get(message.id)?.(message));
    const serves = new Promise<void>((resolve) => child.stdout?.once('data', () => resolve()));
    const ended = await Promise.race([serves, this.#gone]);
    if (ended !== undefined) throw new Error(`towline serve of ${this.#name} ended with ${ended}`);
    this.#client = await ServeClient.connect(this.#socket);
  }

  /** The signal or the exit code by which it ended; waits for it. */
  async gone(withinMs: number): Promise<string> {
    const late = new Promise<string>((resolve) => void setTimeout(resolve, withinMs, 'it lives').unref());
    return Promise.race([this.#gone, late]);
  }

  /** Ends it as a service manager does. */
  async stop(): Promise<string> {
    this.#client?.close();
    this.#child?.kill('SIGTERM');
    return this.#gone;
  }

  /** Cuts its power. */
  async kill(): Promise<string> {
    this.#child?.kill('SIGKILL');
    return this.#gone;
  }

  /** Where something goes wrong in the next sessions. */
  async arm(arms: Arms): Promise<void> {
    await this.#ask({ do: 'arm', arms });
  }

  async provision(uuid: string): Promise<FunctionInfo> {
    const spec = { kind: 'siov', type: 'mtty-2', uuid, migration: true, expose: 'vfio' } as const;
    return this.#call('provision', { spec });
  }

  async release(uuid: string): Promise<FunctionInfo> {
    return this.#call('release', { function: uuid });
  }

  async functions(): Promise<FunctionInfo[]> {
    return (await this.#call('list', {})).functions;
  }

  async explain(uuid: string): Promise<string[]> {
    return (await this.#call('explain', { function: uuid })).reasons.map((reason) => reason.code);
  }

  async sessions(): Promise<JournalSession[]> {
    return this.#call('sessions', {});
  }

  /** Settles what is open; functions that outlived their holder as well. */
  async recover(peer?: string): Promise<Recovered[]> {
    return this.#call('recover', peer === undefined ? {} : { peer });
  }

  /** Waits for one migration; gives where. `received` tells how it ended. */
  async listen(uuids: readonly string[], options: Pick<MoveOptions, 'linkTimeoutMs'> = {}): Promise<string> {
    const hangUp = new AbortController();
    return new Promise((resolve, reject) => {
      const call = this.#now.call(
        'receive',
        {
          functions: [...uuids],
          from: `tcp://${this.#address}:0`,
          allowRemotePlaintext: true,
          acceptTimeoutMs: ACCEPT_MS,
          ...options,
        },
        { signal: hangUp.signal, onEvent: (event) => event.type === 'listening' && resolve(event.address) },
      );
      const ended = endOf(call);
      void ended.then(({ why }) => reject(new Error(`${this.#name} does not listen: ${why}`)));
      this.#receiving = { ended, hangUp };
    });
  }

  async received(): Promise<Ended> {
    if (this.#receiving === undefined) throw new Error(`${this.#name} receives nothing`);
    return this.#receiving.ended;
  }

  /** Ends the waiting for a migration that does not come. */
  async hangUp(): Promise<void> {
    this.#receiving?.hangUp.abort();
    await this.#receiving?.ended;
  }

  /** Migrates to where another side listens. `onPhase` can't be heard from another guest. */
  async migrate(
    uuids: readonly string[],
    to: string,
    options: MoveOptions = {},
    onPhase?: (phase: string) => void,
  ): Promise<Ended> {
    // An emulated machine takes its time for everything.
    const { linkTimeoutMs, bytesPerSecond: bandwidthBytesPerSecond } = options;
    const params = {
      functions: [...uuids],
      to,
      policy: { maxDowntimeMs: 60_000, ...(bandwidthBytesPerSecond === undefined ? {} : { bandwidthBytesPerSecond }) },
      ...(linkTimeoutMs === undefined ? {} : { linkTimeoutMs }),
    };
    const onEvent = (event: Methods['migrate']['event']): void => {
      if (event.type === 'phase') onPhase?.(event.phase);
    };
    return endOf(this.#now.call('migrate', params, { onEvent }));
  }

  /** A command of towline at this side's `serve`, as a person would give it. */
  async towline(...args: string[]): Promise<{ code: number; out: string; err: string }> {
    return new Promise((resolve) => {
      const env = { ...process.env, TOWLINE_SOCKET: this.#socket };
      execFile(process.execPath, [main, ...args], { env, maxBuffer: 16 << 20 }, (error, out, err) =>
        resolve({ code: typeof error?.code === 'number' ? error.code : error ? -1 : 0, out, err }),
      );
    });
  }

  /** Waits until somebody here listens on that port of TCP. */
  async listens(port: number): Promise<void> {
    const end = `:${port.toString(16).toUpperCase().padStart(4, '0')} 00000000:0000 0A `;
    for (let tries = 0; tries < 600; tries++) {
      if ((await readFile('/proc/net/tcp', 'utf8')).includes(end)) return;
      await sleep(100);
    }
    throw new Error(`nobody listens on ${port}`);
  }

  /** Makes a device without towline. */
  async create(uuid: string): Promise<void> {
    if (!exists(uuid)) await create(uuid);
  }

  /** Removes a device without towline. */
  async remove(uuid: string): Promise<void> {
    if (exists(uuid)) await remove(uuid);
  }

  /** The kernel's own word in debugfs; by opening the device, where this kernel has none and nobody has it open. */
  async kernelState(uuid: string): Promise<string> {
    if (!exists(uuid)) return 'absent';
    return hasDebugfs() ? kernelState(uuid) : this.reopened(uuid);
  }

  /** The state that the kernel tells who opens the device now; fails while a holder has it. */
  async reopened(uuid: string): Promise<string> {
    const device = await binding().openVfio(JSON.stringify({ name: uuid }), null);
    try {
      const channel = device.stateChannel();
      try {
        return stateFromNumber(await channel.state());
      } finally {
        channel.close();
      }
    } finally {
      device.close();
    }
  }

  /** Writes registers as the guest would: over the descriptor of the holder, or an own one where the device is not open there. */
  async write(uuid: string, writes: readonly (readonly [number, number, number])[]): Promise<void> {
    if (await this.#ask({ do: 'write', name: uuid, writes })) return;
    const device = await binding().openVfio(JSON.stringify({ name: uuid }), null);
    try {
      for (const [bar, offset, value] of writes) await device.writeRegion(bar, BigInt(offset), Uint8Array.of(value));
    } finally {
      device.close();
    }
  }

  /** Reads registers; nothing where there is no device. */
  async read(uuid: string, reads: readonly Register[]): Promise<number[] | undefined> {
    if (!exists(uuid)) return undefined;
    const values = await this.#ask({ do: 'read', name: uuid, reads });
    if (values) return values as number[];
    const device = await binding().openVfio(JSON.stringify({ name: uuid }), null);
    try {
      const own: number[] = [];
      for (const [bar, offset] of reads) own.push((await device.readRegion(bar, BigInt(offset), 1))[0] ?? -1);
      return own;
    } finally {
      device.close();
    }
  }

  /** Writes all of the youngest guest's memory here; gives how many guests there are. */
  async fill(seed: number): Promise<number> {
    return (await this.#ask({ do: 'fill', seed })) as number;
  }

  /** Digest of that memory. */
  async digest(): Promise<string> {
    return (await this.#ask({ do: 'digest' })) as string;
  }

  /** What the holder has open of VFIO and iommufd, by name. */
  async open(): Promise<string[]> {
    const directory = `/proc/${this.#child?.pid}/fd`;
    const links = await Promise.all(
      (await readdir(directory)).map((fd) => readlink(`${directory}/${fd}`).catch(() => '')),
    );
    return links.filter((link) => /vfio|iommu|mtty/.test(link)).toSorted();
  }

  get #now(): ServeClient {
    if (this.#client === undefined) throw new Error(`${this.#name} was not started`);
    return this.#client;
  }

  #call<M extends MethodName>(method: M, params: Methods[M]['params']): Promise<Methods[M]['result']> {
    return this.#now.call(method, params);
  }

  /** Asks what was loaded into the holder; nothing where there is none. */
  #ask(message: Omitted<ToInside>): Promise<unknown> {
    const child = this.#child;
    if (child === undefined || !child.connected) return Promise.resolve(undefined);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#asked.set(id, ({ value, error }) => {
        this.#asked.delete(id);
        if (error === undefined) resolve(value);
        else reject(new Error(error));
      });
      child.send({ ...message, id });
    });
  }
}

/** How it ended, also where that is an error with a report, or the end of the holder. */
async function endOf(call: Promise<MigrationReport>): Promise<Ended> {
  const of = (report: MigrationReport | undefined, code: string | null, why: string | null): Ended => ({
    outcome: report?.outcome ?? 'gone',
    code,
    why: report?.why ?? why,
    session: report?.session ?? '',
    downtimeMs: report?.downtimeMs ?? null,
  });
  try {
    return of(await call, null, null);
  } catch (error) {
    if (!isTowlineError(error)) throw error;
    return of((error.details as { report?: MigrationReport } | undefined)?.report, error.code, error.message);
  }
}
