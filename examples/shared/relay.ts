import { createServer, connect, type Server, type Socket } from 'node:net';

/** Damage that the relay does to what flows from the source to the destination, so many bytes after it was told to. */
export interface RelayDamage {
  kind: 'flip-bit' | 'cut';
  afterBytes: number;
}

/** A TCP relay between the two hosts: it counts bytes, and can damage or cut what it carries. */
export class Relay {
  /** Bytes from the source to the destination, and back. */
  forwardBytes = 0;
  backwardBytes = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #damage: { kind: RelayDamage['kind']; atByte: number } | undefined;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** Listens on a loopback port of its own and forwards to `port`. */
  static async start(port: number): Promise<Relay> {
    const server = createServer({ noDelay: true });
    const relay = new Relay(server);
    server.on('connection', (source) => relay.#carry(source, port));
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(0, '127.0.0.1', resolve);
    });
    return relay;
  }

  get address(): string {
    const address = this.#server.address();
    if (address === null || typeof address === 'string') throw new Error('the relay does not listen');
    return `tcp://127.0.0.1:${address.port}`;
  }

  /** Does damage once, from here on. */
  damage(damage: RelayDamage): void {
    this.#damage = { kind: damage.kind, atByte: this.forwardBytes + damage.afterBytes };
  }

  #carry(source: Socket, port: number): void {
    const destination = connect({ port, host: '127.0.0.1', noDelay: true });
    for (const [socket, other] of [
      [source, destination],
      [destination, source],
    ] as const) {
      this.#sockets.add(socket);
      socket.on('error', () => other.destroy());
      socket.on('close', () => {
        this.#sockets.delete(socket);
        other.end();
      });
    }
    source.on('data', (chunk) => {
      const before = this.forwardBytes;
      this.forwardBytes += chunk.length;
      const damage = this.#damage;
      if (damage && damage.atByte < this.forwardBytes) {
        this.#damage = undefined;
        const at = Math.max(0, damage.atByte - before);
        if (damage.kind === 'cut') {
          destination.end(chunk.subarray(0, at), () => destination.destroy());
          source.destroy();
          return;
        }
        chunk[at] = (chunk[at] ?? 0) ^ 0x10;
      }
      if (!destination.write(chunk)) {
        source.pause();
        destination.once('drain', () => source.resume());
      }
    });
    source.on('end', () => destination.end());
    destination.on('data', (chunk) => {
      this.backwardBytes += chunk.length;
      source.write(chunk);
    });
    destination.on('end', () => source.end());
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}
