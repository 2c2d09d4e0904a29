/**
 * A VMM that migrates its guest by itself: one connection of its own, on which guest memory, its own words and towline's bytes share frames.
 */
import { Duplex } from 'node:stream';
import type { Link } from '#towline/migration/link.js';
import type { GuestMemory } from '#towline/migration/memory.js';
import type { MemoryRange } from '#towline/function/channel.js';

/** Kinds of frames on a VMM's connection. */
const TOWLINE = 1;
const PAGES = 2;
const WORD = 3;

const HEADER_BYTES = 13;

/** Two ends of an in-memory connection. */
export function connection(): [Duplex, Duplex] {
  const ends: Duplex[] = [];
  for (const other of [1, 0]) {
    ends.push(
      new Duplex({
        read() {},
        write(chunk, _encoding, done) {
          ends[other]?.push(chunk);
          done();
        },
        final(done) {
          ends[other]?.push(null);
          done();
        },
      }),
    );
  }
  return [ends[0] as Duplex, ends[1] as Duplex];
}

/** What waits to be taken, or who waits for it. */
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
    return new Promise((resolve) => {
      this.#takers.push(resolve);
    });
  }
}

/** One end of a VMM's own migration. */
export class Vmm {
  readonly #towline = new Inbox<Uint8Array>();
  readonly #words = new Inbox<string>();
  #rest: Uint8Array = new Uint8Array();
  #pending = Buffer.alloc(0);
  /** Frames that came, by kind. */
  readonly received = { towline: 0, pages: 0, words: 0 };
  readonly sent = { towline: 0 };

  constructor(
    readonly memory: GuestMemory,
    private readonly wire: Duplex,
  ) {
    wire.on('data', (chunk: Buffer) => this.#take(chunk));
    wire.on('end', () => {
      this.#towline.end();
      this.#words.end();
    });
  }

  /** Carries towline's bytes inside of this VMM's frames. */
  readonly link: Link = {
    send: async (data) => {
      this.sent.towline += 1;
      this.#send(TOWLINE, 0n, data);
    },
    receive: async (maxBytes) => {
      if (this.#rest.length === 0) this.#rest = (await this.#towline.take()) ?? new Uint8Array();
      const piece = this.#rest.subarray(0, maxBytes);
      this.#rest = this.#rest.subarray(piece.length);
      return piece.slice();
    },
    close: () => {},
  };

  /** Reads runs out of guest memory and sends them. */
  sendRuns(runs: readonly MemoryRange[]): void {
    for (const run of runs) this.#send(PAGES, run.gpa, this.memory.read(run.gpa, Number(run.len)));
  }

  say(word: string): void {
    this.#send(WORD, 0n, Buffer.from(word));
  }

  async hear(): Promise<string> {
    return (await this.#words.take()) ?? 'the connection ended';
  }

  /** The connection breaks, for both. */
  hangUp(): void {
    this.wire.end();
    this.#towline.end();
    this.#words.end();
  }

  #send(kind: number, gpa: bigint, data: Uint8Array): void {
    if (!this.wire.writable) throw new Error('the connection was hung up');
    const header = Buffer.alloc(HEADER_BYTES);
    header.writeUInt8(kind, 0);
    header.writeBigUInt64LE(gpa, 1);
    header.writeUInt32LE(data.length, 9);
    this.wire.write(Buffer.concat([header, data]));
  }

  #take(chunk: Buffer): void {
    this.#pending = Buffer.concat([this.#pending, chunk]);
    while (this.#pending.length >= HEADER_BYTES) {
      const end = HEADER_BYTES + this.#pending.readUInt32LE(9);
      if (this.#pending.length < end) return;
      const kind = this.#pending.readUInt8(0);
      const gpa = this.#pending.readBigUInt64LE(1);
      const data = this.#pending.subarray(HEADER_BYTES, end);
      this.#pending = this.#pending.subarray(end);
      if (kind === TOWLINE) {
        this.received.towline += 1;
        this.#towline.put(Uint8Array.from(data));
      } else if (kind === PAGES) {
        this.received.pages += 1;
        this.memory.write(gpa, data);
      } else {
        this.received.words += 1;
        this.#words.put(data.toString());
      }
    }
  }
}
