/**
 * The server on the UNIX socket. Node can't ask for the peer's credentials (SO_PEERCRED), so what is checked is: the socket has
 * mode 0600 from its first moment, its directory can't be written by others, and thus only this user and root can connect.
 */
import { chmod, rm } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { abortError } from '../abort.js';
import { TowlineError, unwrapFault } from '../errors.js';
import type { Host } from './host.js';
import { LineReader, parseMessage } from './lines.js';
import { callMethod } from './methods.js';
import { checkSocketDirectory, checkSocketPath } from './paths.js';
import { MAX_CONNECTIONS, MAX_LINE_BYTES, MAX_REQUESTS, type ServerMessage } from './protocol.js';

/** A server that answers. */
export interface RunningServer {
  /** Where. */
  readonly socketPath: string;
  /** Settles once it was closed, by {@link RunningServer.close} or by a client; rejects where something could not be closed. */
  readonly closed: Promise<void>;
  /**
   * Takes no more requests, cancels those under way and waits for their ends, answers them, ends every connection, then closes the
   * host. A migration that is past its commit is waited for: it can't be cancelled. Idempotent.
   */
  close(): Promise<void>;
}

/** The requests under way, of every connection: they outlive their connections, but not the host that they work on. */
class Requests {
  readonly #running = new Map<AbortController, Promise<void>>();
  #ending = false;

  /** @throws TowlineError `ERR_TOWLINE_CLOSED` once {@link Requests.end} was called. */
  start(work: (controller: AbortController) => Promise<void>): void {
    if (this.#ending) throw new TowlineError('ERR_TOWLINE_CLOSED', 'this process is about to end');
    const controller = new AbortController();
    const done = work(controller).finally(() => this.#running.delete(controller));
    this.#running.set(controller, done);
  }

  /** Cancels all and waits for their ends. */
  async end(): Promise<void> {
    this.#ending = true;
    const why = new TowlineError('ERR_TOWLINE_ABORTED', 'the serving process ends');
    for (const controller of this.#running.keys()) controller.abort(why);
    await Promise.allSettled(this.#running.values());
  }
}

/** Whether somebody answers on the socket, or may. */
function isAlive(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    // Nobody listens. Anything else, a full queue say, is no sign that it may be removed.
    probe.once('error', (error: NodeJS.ErrnoException) =>
      resolve(!['ECONNREFUSED', 'ENOENT'].includes(error.code ?? '')),
    );
  });
}

async function listen(server: Server, path: string): Promise<void> {
  if (await checkSocketPath(path)) {
    if (await isAlive(path)) throw new TowlineError('ERR_TOWLINE_BUSY', `another process serves on ${path}`);
    // It is this user's socket, of a process that ended, and nobody else can exchange it (checkSocketDirectory).
    await rm(path, { force: true });
  }
  const umask = process.umask(0o177);
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(path, () => {
        server.off('error', reject);
        resolve();
      });
    });
  } finally {
    process.umask(umask);
  }
  await chmod(path, 0o600);
}

/** Serves `host` on `socketPath`. */
export async function startServer(host: Host, socketPath: string): Promise<RunningServer> {
  await checkSocketDirectory(socketPath);
  const sockets = new Set<Socket>();
  const requests = new Requests();
  let close: () => Promise<void> = async () => undefined;
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    new Connection(host, socket, requests, () => void close().catch(() => undefined));
  });
  server.maxConnections = MAX_CONNECTIONS;
  try {
    await listen(server, socketPath);
  } catch (error) {
    throw unwrapFault(error);
  }
  let settle: (end: Promise<void>) => void = () => undefined;
  const closed = new Promise<void>((resolve) => (settle = resolve));
  // Whoever waits for it hears of a failure; nobody has to.
  closed.catch(() => undefined);
  let closing: Promise<void> | undefined;
  close = () => {
    closing ??= (async () => {
      const ended = new Promise<void>((resolve) => server.close(() => resolve()));
      // Nothing may go on under what is closed below.
      await requests.end();
      // The answer to whoever asked for the end is still on its way.
      for (const socket of sockets) socket.end();
      const late = setTimeout(() => sockets.forEach((s) => s.destroy()), 1000);
      await ended;
      clearTimeout(late);
      await host.close();
    })();
    settle(closing);
    return closing;
  };
  return { socketPath, closed, close };
}

/** One client. */
class Connection {
  readonly #host: Host;
  readonly #socket: Socket;
  readonly #requests: Requests;
  readonly #shutdown: () => void;
  readonly #lines = new LineReader(MAX_LINE_BYTES);
  readonly #running = new Map<number, AbortController>();
  #broken = false;

  constructor(host: Host, socket: Socket, requests: Requests, shutdown: () => void) {
    this.#host = host;
    this.#socket = socket;
    this.#requests = requests;
    this.#shutdown = shutdown;
    socket.on('data', (bytes) => this.#onData(bytes));
    // A client that goes away cancels nothing: only a `cancel` does. What it would have been told is dropped.
    socket.on('error', () => socket.destroy());
  }

  #send(message: ServerMessage): void {
    if (!this.#socket.writable) return;
    const line = JSON.stringify(message);
    // A client that does not read would make this process hold everything: it loses its connection instead.
    if (this.#socket.writableLength + line.length > 8 * MAX_LINE_BYTES) this.#socket.destroy();
    else this.#socket.write(`${line}\n`);
  }

  #fail(id: number | null, error: unknown): void {
    const fault = unwrapFault(error);
    this.#send({ jsonrpc: '2.0', id, error: { code: -32_000, message: fault.message, data: fault.toJSON() } });
  }

  #onData(bytes: Uint8Array): void {
    if (this.#broken) return;
    try {
      for (const line of this.#lines.push(bytes)) {
        if (line.trim().length > 0) this.#onMessage(parseMessage(line));
      }
    } catch (error) {
      // After a broken line nothing is known about where the next one begins: nothing more is read, and once it is told, the
      // connection ends in both directions. A client that doesn't read it gets a second.
      this.#broken = true;
      this.#fail(null, error);
      const socket = this.#socket;
      const late = setTimeout(() => socket.destroy(), 1000);
      socket.once('close', () => clearTimeout(late));
      socket.end(() => socket.destroy());
    }
  }

  #onMessage(message: Record<string, unknown>): void {
    const { id, method, params } = message;
    if (method === 'cancel') {
      const target = (params as { id?: unknown } | undefined)?.id;
      if (typeof target === 'number') this.#running.get(target)?.abort(new Error('cancelled by the client'));
      return;
    }
    if (typeof id !== 'number' || !Number.isSafeInteger(id) || typeof method !== 'string') {
      throw new TowlineError('ERR_TOWLINE_PROTOCOL', 'a request has a number as id and a text as method');
    }
    if (this.#running.has(id)) throw new TowlineError('ERR_TOWLINE_PROTOCOL', `request ${id} is under way already`);
    if (this.#running.size >= MAX_REQUESTS) {
      this.#fail(id, new TowlineError('ERR_TOWLINE_LIMIT', `${MAX_REQUESTS} requests are under way already`));
      return;
    }
    try {
      this.#requests.start((controller) => this.#run(id, method, params, controller));
    } catch (error) {
      this.#fail(id, error);
    }
  }

  async #run(id: number, method: string, params: unknown, controller: AbortController): Promise<void> {
    this.#running.set(id, controller);
    const { signal } = controller;
    const emit = (event: unknown): void => this.#send({ jsonrpc: '2.0', method: 'event', params: { id, event } });
    try {
      const result = await callMethod(this.#host, method, params, { signal, emit });
      this.#send({ jsonrpc: '2.0', id, result: result ?? null });
      if (method === 'shutdown') this.#shutdown();
    } catch (error) {
      this.#fail(id, signal.aborted && unwrapFault(error).code === 'ERR_TOWLINE_INTERNAL' ? abortError(signal) : error);
    } finally {
      this.#running.delete(id);
    }
  }
}
