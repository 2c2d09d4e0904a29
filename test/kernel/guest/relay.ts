// Between a source and its destination: lets the frames of one connection through, up to where it cuts it. It reads the frames' headers by
// itself (docs/guides/streams.md), so that a cut is where it is meant to be however the two take turns.
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

const STREAM_HEADER_BYTES = 40;
const FRAME_HEADER_BYTES = 24;
const DIALOGUE = 7;
const NAMES: Readonly<Record<number, string>> = {
  1: 'section-begin',
  2: 'state-chunk',
  3: 'pages',
  4: 'section-data',
  5: 'round-end',
  6: 'manifest',
  8: 'stream-end',
  0x7f01: 'filler',
};

/** `there` is from the source to the destination. */
export type Direction = 'there' | 'back';

/** A frame, by its type's name; a message by its own; the stream's header as `header`. */
export interface Frame {
  frame: string;
  bytes: number;
}

/** Where the link breaks: in the first frame of this name. */
export interface Cut {
  direction: Direction;
  frame: string;
  /** How many of its bytes still go through: none unless told, never all of them. */
  bytes?: number | 'half' | 'all-but-one';
}

/** How many bytes of `frame` go through; all of them where it is not cut there. */
export function letThrough(cut: Cut | undefined, direction: Direction, { frame, bytes }: Frame): number {
  if (cut?.direction !== direction || cut.frame !== frame) return bytes;
  const wanted = cut.bytes === 'half' ? Math.floor(bytes / 2) : cut.bytes === 'all-but-one' ? bytes - 1 : cut.bytes;
  return Math.min(wanted ?? 0, bytes - 1);
}

/** Takes one direction apart. Nothing of a frame goes through before its name is known. */
export class Splitter {
  #held: Buffer = Buffer.alloc(0);
  #begun = false;
  /** Bytes of the frame that are still to go through, and whether that is the end. */
  #left = 0;
  #ends = false;

  /**
   * @param begins is told each frame as it begins, and says how many of its bytes go through; after fewer than all, nothing does.
   * @param through takes what goes through.
   */
  constructor(
    private readonly begins: (frame: Frame) => number,
    private readonly through: (bytes: Buffer) => void,
  ) {}

  /** Takes what came; returns whether it was cut, with all before it let through. */
  take(bytes: Buffer): boolean {
    this.#held = Buffer.concat([this.#held, bytes]);
    for (;;) {
      const now = this.#held.subarray(0, this.#left);
      this.#held = this.#held.subarray(now.length);
      this.#left -= now.length;
      if (now.length > 0) this.through(now);
      if (this.#left > 0) return false;
      if (this.#ends) return true;
      const next = this.#next();
      if (next === undefined) return false;
      this.#left = this.begins(next);
      this.#ends = this.#left < next.bytes;
    }
  }

  #next(): Frame | undefined {
    const held = this.#held;
    if (held.length === 0) return undefined;
    if (!this.#begun) {
      this.#begun = true;
      return { frame: 'header', bytes: STREAM_HEADER_BYTES };
    }
    if (held.length < FRAME_HEADER_BYTES) return undefined;
    const type = held.readUInt16LE(0);
    const bytes = FRAME_HEADER_BYTES + held.readUInt32LE(12);
    if (type !== DIALOGUE) return { frame: NAMES[type] ?? `type ${type}`, bytes };
    if (held.length < bytes) return undefined;
    const message = JSON.parse(held.toString('utf8', FRAME_HEADER_BYTES, bytes)) as { type: string };
    return { frame: message.type, bytes };
  }
}

/** See the file's comment. */
export class Relay {
  /** Every frame that began, in the order in which they came here, the one that was cut included. */
  readonly frames: (Frame & { direction: Direction })[] = [];
  /** Whether it was cut. */
  isCut = false;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #cut: Cut | undefined;

  private constructor(server: Server, cut: Cut | undefined) {
    this.#server = server;
    this.#cut = cut;
  }

  /** Listens for one that wants to go to `to`, `tcp://host:port`. */
  static async start(to: string, cut?: Cut): Promise<Relay> {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const relay = new Relay(server, cut);
    const { hostname, port } = new URL(to);
    server.on('connection', (source) => relay.#join(source, connect(Number(port), hostname)));
    return relay;
  }

  get address(): string {
    return `tcp://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #join(source: Socket, destination: Socket): void {
    this.#pass(source, destination, 'there');
    this.#pass(destination, source, 'back');
  }

  #pass(from: Socket, to: Socket, direction: Direction): void {
    this.#sockets.add(from);
    from.setNoDelay(true);
    from.on('error', () => undefined);
    from.on('close', () => {
      this.#sockets.delete(from);
      to.destroy();
    });
    const splitter = new Splitter(
      (frame) => {
        this.frames.push({ direction, ...frame });
        return letThrough(this.#cut, direction, frame);
      },
      (bytes) => to.write(bytes),
    );
    from.on('data', (bytes) => {
      if (this.isCut || !splitter.take(bytes)) return;
      this.isCut = true;
      // What was let through arrives before the end.
      to.end(() => {
        for (const socket of this.#sockets) socket.destroy();
      });
    });
  }
}
