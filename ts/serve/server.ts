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
import { checkSocketDirectory } from './paths.js';
import { MAX_CONNECTIONS, MAX_LINE_BYTES, MAX_REQUESTS, type ServerMessage } from './protocol.js';

/** A server that answers. */
export interface RunningServer {
  /** Where. */
  readonly socketPath: string;
  /** Settles once it was closed, by {@link RunningServer.close} or by a client. */
  readonly closed: Promise<void>;
  /** Ends every connection; migrations that they command go on. Idempotent. */
  close(): Promise<void>;
}

/** Whether somebody answers on the socket. */
function isAlive(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
}

async function listen(server: Server, path: string): Promise<void> {
  if (await isAlive(path)) throw new TowlineError('ERR_TOWLINE_BUSY', `another process serves on ${path}`);
  // What is left is the socket of a process that ended; nothing else is removed (checkSocketDirectory keeps others out).
  await rm(path, { force: true });
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
  let close: () => Promise<void> = async () => undefined;
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    new Connection(host, socket, () => void close());
  });
  server.maxConnections = MAX_CONNECTIONS;
  try {
    await listen(server, socketPath);
  } catch (error) {
    throw unwrapFault(error);
  }
  let settle: () => void = () => undefined;
  const closed = new Promise<void>((resolve) => (settle = resolve));
  let closing: Promise<void> | undefined;
  close = () => {
    closing ??= (async () => {
      const ended = new Promise<void>((resolve) => server.close(() => resolve()));
      // The answer to whoever asked for the end is still on its way.
      for (const socket of sockets) socket.end();
      const late = setTimeout(() => sockets.forEach((s) => s.destroy()), 1000);
      await ended;
      clearTimeout(late);
      await host.close();
      settle();
    })();
    return closing;
  };
  return { socketPath, closed, close };
}

/** One client. */
class Connection {
  readonly #host: Host;
  readonly #socket: Socket;
  readonly #shutdown: () => void;
  readonly #lines = new LineReader(MAX_LINE_BYTES);
  readonly #running = new Map<number, AbortController>();

  constructor(host: Host, socket: Socket, shutdown: () => void) {
    this.#host = host;
    this.#socket = socket;
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
    try {
      for (const line of this.#lines.push(bytes)) {
        if (line.trim().length > 0) this.#onMessage(parseMessage(line));
      }
    } catch (error) {
      // After a broken line nothing is known about where the next one begins.
      this.#fail(null, error);
      this.#socket.end();
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
    void this.#run(id, method, params);
  }

  async #run(id: number, method: string, params: unknown): Promise<void> {
    const controller = new AbortController();
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
