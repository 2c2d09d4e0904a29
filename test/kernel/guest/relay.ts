// Between a source and its destination: lets the bytes of one connection through, up to where it cuts it.
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

/** Where the link breaks: before the first byte of the `turn`th change of direction, 1 being the source's first; or after so many bytes of it. */
export interface Cut {
  turn: number;
  bytes?: number;
}

/** What went through: the bytes of each turn, the source's first. */
export type Turns = number[];

/** See the file's comment. */
export class Relay {
  readonly turns: Turns = [];
  /** Whether it was cut. */
  isCut = false;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #cut: Cut | undefined;
  #last: 'there' | 'back' | undefined;

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

  /** Cuts it now. */
  cut(): void {
    this.isCut = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #join(source: Socket, destination: Socket): void {
    this.#pass(source, destination, 'there');
    this.#pass(destination, source, 'back');
  }

  #pass(from: Socket, to: Socket, direction: 'there' | 'back'): void {
    this.#sockets.add(from);
    from.setNoDelay(true);
    from.on('error', () => undefined);
    from.on('close', () => {
      this.#sockets.delete(from);
      to.destroy();
    });
    from.on('data', (bytes) => {
      if (this.isCut) return;
      if (direction !== this.#last) this.turns.push(0);
      this.#last = direction;
      const turn = this.turns.length;
      const before = this.turns[turn - 1] ?? 0;
      const cut = this.#cut;
      const left =
        cut === undefined || turn < cut.turn ? bytes.length : turn > cut.turn ? 0 : (cut.bytes ?? 0) - before;
      if (left < bytes.length) {
        // What was let through arrives before the end.
        this.isCut = true;
        to.end(bytes.subarray(0, Math.max(0, left)), () => this.cut());
        return;
      }
      this.turns[turn - 1] = before + bytes.length;
      to.write(bytes);
    });
  }
}
