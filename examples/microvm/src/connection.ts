/** Mode 2: one connection of the VMM's own, on which RAM, the VMM's words and towline's bytes share frames. */
import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import type { GuestMemory, Link, MemoryRange } from 'towline';

/** Kinds of frames: a byte, then 64 bits of guest address, then 32 bits of length. */
const TOWLINE = 1;
const PAGES = 2;
const WORD = 3;
const HEADER_BYTES = 13;
/** The most of one frame; longer ones are no frames. */
const MOST_BYTES = 16 << 20;

/** What came and waits, or who waits for it. */
class Inbox<T> {
  readonly #items: T[] = [];
  readonly #takers: ((item: T | undefined) => void)[] = [];
  #ended = false;

  put(item: T): void {
    const taker = this.#takers.shift();
    if (taker) taker(item);
    else this.#items.push(item);
  }

  end(): void {
    this.#ended = true;
    for (const taker of this.#takers.splice(0)) taker(undefined);
  }

  async take(): Promise<T | undefined> {
    const item = this.#items.shift();
    if (item !== undefined || this.#ended) return item;
    return new Promise((resolve) => this.#takers.push(resolve));
  }
}

/** One end of it. */
export class Connection {
  readonly #towline = new Inbox<Uint8Array>();
  readonly #words = new Inbox<string>();
  #rest: Uint8Array = new Uint8Array();
  #chunks: Buffer[] = [];
  #pendingBytes = 0;
  /** Bytes of all frames that were sent. */
  sentBytes = 0;
  /** Bytes of RAM that were sent. */
  sentMemoryBytes = 0;

  constructor(
    private readonly socket: Duplex,
    private readonly memory: GuestMemory,
  ) {
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.on('error', () => undefined);
    for (const end of ['end', 'close'])
      socket.on(end, () => {
        this.#towline.end();
        this.#words.end();
      });
  }

  /** Carries towline's bytes. */
  readonly link: Link = {
    send: (data) => this.#send(TOWLINE, 0n, data),
    receive: async (maxBytes) => {
      if (this.#rest.length === 0) this.#rest = (await this.#towline.take()) ?? new Uint8Array();
      const piece = this.#rest.subarray(0, maxBytes);
      this.#rest = this.#rest.subarray(piece.length);
      return piece.slice();
    },
    close: () => undefined,
  };

  /** Reads runs out of RAM and sends them. A run is read after it was handed out, or what is written meanwhile is lost. */
  async sendRuns(runs: readonly MemoryRange[]): Promise<void> {
    for (const { gpa, len } of runs) {
      this.sentMemoryBytes += Number(len);
      await this.#send(PAGES, gpa, this.memory.read(gpa, Number(len)));
    }
  }

  say(word: string): Promise<void> {
    return this.#send(WORD, 0n, Buffer.from(word));
  }

  /** The next word; frames are taken in order, so RAM that was sent before it is in place. */
  async hear(): Promise<string> {
    const word = await this.#words.take();
    if (word === undefined) throw new Error('the other VMM has hung up');
    return word;
  }

  /** Ends it after what was sent. */
  end(): void {
    this.socket.end();
  }

  async #send(kind: number, gpa: bigint, data: Uint8Array): Promise<void> {
    if (!this.socket.writable) throw new Error('the connection has ended');
    const header = Buffer.alloc(HEADER_BYTES);
    header.writeUInt8(kind, 0);
    header.writeBigUInt64LE(gpa, 1);
    header.writeUInt32LE(data.length, 9);
    this.sentBytes += HEADER_BYTES + data.length;
    this.socket.write(header);
    if (this.socket.write(data)) return;
    const heard = new AbortController();
    const { signal } = heard;
    await Promise.race([once(this.socket, 'drain', { signal }), once(this.socket, 'close', { signal })]);
    // Or the other listener would stay, one for each time that the socket was full.
    heard.abort();
  }

  #take(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#pendingBytes += chunk.length;
    for (;;) {
      const header = this.#peek(HEADER_BYTES);
      if (header === undefined) return;
      const length = header.readUInt32LE(9);
      if (length > MOST_BYTES) {
        this.socket.destroy(new Error(`a frame of ${length} bytes`));
        return;
      }
      if (this.#pendingBytes < HEADER_BYTES + length) return;
      const frame = this.#peek(HEADER_BYTES + length);
      if (frame === undefined) return;
      const rest = this.#chunks[0]?.subarray(frame.length);
      this.#chunks.splice(0, 1, ...(rest === undefined || rest.length === 0 ? [] : [rest]));
      this.#pendingBytes -= frame.length;
      this.#deliver(frame.readUInt8(0), frame.readBigUInt64LE(1), frame.subarray(HEADER_BYTES));
    }
  }

  /** The first `bytes` in one piece, once they are there. */
  #peek(bytes: number): Buffer | undefined {
    if (this.#pendingBytes < bytes) return undefined;
    if ((this.#chunks[0]?.length ?? 0) < bytes) this.#chunks = [Buffer.concat(this.#chunks)];
    return this.#chunks[0]?.subarray(0, bytes);
  }

  #deliver(kind: number, gpa: bigint, data: Buffer): void {
    if (kind === TOWLINE) this.#towline.put(Uint8Array.from(data));
    else if (kind === PAGES) this.memory.write(gpa, data);
    else this.#words.put(data.toString());
  }
}
