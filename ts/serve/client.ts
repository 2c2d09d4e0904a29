/**
 * The typed API over the socket of `towline serve`.
 */
import { connect as connectSocket, type Socket } from 'node:net';
import { abortError, throwIfAborted, type WaitOptions } from '../abort.js';
import { errorFromJson, TowlineError, unwrapFault } from '../errors.js';
import { LineReader, parseMessage } from './lines.js';
import { checkSocketOwner } from './paths.js';
import type { MethodName, Methods } from './protocol.js';

/** The longest line that a client takes: a report may be larger than a request. */
const MAX_ANSWER_BYTES = 8 << 20;

interface Waiting {
  resolve: (value: unknown) => void;
  reject: (error: unknown) => void;
  onEvent: ((event: unknown) => void) | undefined;
}

/** Options of a call. */
export interface CallOptions<M extends MethodName> extends WaitOptions {
  /** Hears the events of the call, in order. */
  onEvent?: ((event: Methods[M]['event']) => void) | undefined;
}

/** A connection to a serving process. */
export class ServeClient {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  #nextId = 1;
  #closed: TowlineError | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    const lines = new LineReader(MAX_ANSWER_BYTES);
    socket.on('data', (bytes) => {
      try {
        for (const line of lines.push(bytes)) this.#onMessage(parseMessage(line));
      } catch (error) {
        this.#end(unwrapFault(error));
      }
    });
    socket.on('error', (error) => this.#end(new TowlineError('ERR_TOWLINE_LINK', error.message, { cause: error })));
    socket.on('close', () =>
      this.#end(new TowlineError('ERR_TOWLINE_GONE', 'the serving process ended the connection')),
    );
  }

  /**
   * Connects.
   * @throws TowlineError `ERR_TOWLINE_GONE` where nobody serves there, `ERR_TOWLINE_PERMISSION` where somebody else does.
   */
  static async connect(socketPath: string): Promise<ServeClient> {
    await checkSocketOwner(socketPath);
    return new Promise((resolve, reject) => {
      const socket = connectSocket(socketPath);
      const onError = (cause: Error): void =>
        reject(
          new TowlineError('ERR_TOWLINE_GONE', `nobody serves on ${socketPath}: start one with towline serve`, {
            cause,
          }),
        );
      socket.once('error', onError);
      socket.once('connect', () => {
        socket.off('error', onError);
        resolve(new ServeClient(socket));
      });
    });
  }

  /** Calls a method. A fired signal asks the server to cancel, and the call ends as the server says. */
  async call<M extends MethodName>(
    method: M,
    params: Methods[M]['params'],
    options: CallOptions<M> = {},
  ): Promise<Methods[M]['result']> {
    const { signal, onEvent } = options;
    throwIfAborted(signal);
    if (this.#closed !== undefined) throw this.#closed;
    const id = this.#nextId++;
    const cancel = (): void => this.#write({ jsonrpc: '2.0', method: 'cancel', params: { id } });
    try {
      const answer = new Promise<unknown>((resolve, reject) => {
        this.#waiting.set(id, { resolve, reject, onEvent: onEvent as ((event: unknown) => void) | undefined });
      });
      this.#write({ jsonrpc: '2.0', id, method, params });
      signal?.addEventListener('abort', cancel, { once: true });
      return (await answer) as Methods[M]['result'];
    } catch (error) {
      if (signal?.aborted && error === this.#closed) throw abortError(signal);
      throw error;
    } finally {
      signal?.removeEventListener('abort', cancel);
      this.#waiting.delete(id);
    }
  }

  #write(message: object): void {
    if (this.#socket.writable) this.#socket.write(`${JSON.stringify(message)}\n`);
  }

  #onMessage(message: Record<string, unknown>): void {
    if (message['method'] === 'event') {
      const params = message['params'] as { id?: unknown; event?: unknown } | undefined;
      if (typeof params?.id === 'number') this.#waiting.get(params.id)?.onEvent?.(params.event);
      return;
    }
    const failure = message['error'] as { message?: unknown; data?: unknown } | undefined;
    if (typeof message['id'] !== 'number') {
      throw failure === undefined
        ? new TowlineError('ERR_TOWLINE_PROTOCOL', 'an answer without an id')
        : errorFromJson(failure.data);
    }
    const waiting = this.#waiting.get(message['id']);
    if (failure === undefined) waiting?.resolve(message['result']);
    else waiting?.reject(errorFromJson(failure.data ?? failure));
  }

  #end(error: TowlineError): void {
    this.#closed ??= error;
    for (const waiting of this.#waiting.values()) waiting.reject(this.#closed);
    this.#waiting.clear();
    this.#socket.destroy();
  }

  /** Ends the connection; what was asked goes on over there. Idempotent. */
  close(): void {
    this.#end(new TowlineError('ERR_TOWLINE_CLOSED', 'the connection was closed'));
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
