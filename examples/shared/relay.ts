import { createServer, connect, type Server, type Socket } from 'node:net';

/** Damage that the relay does to what flows from the source to the destination, so many bytes after it was told to. */
export interface RelayDamage {
  kind: 'flip-bit' | 'cut';
  afterBytes: number;
}

/** What a link of limited bandwidth lets through at once, in milliseconds of its bandwidth: about what its buffers hold. */
const BURST_MS = 5;

/** A TCP relay between the two hosts: it counts bytes, can damage or cut what it carries, and can be as slow as a link. */
export class Relay implements Disposable {
  /** Bytes from the source to the destination, and back. */
  forwardBytes = 0;
  backwardBytes = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #bytesPerMs: number;
  #damage: { kind: RelayDamage['kind']; atByte: number } | undefined;
  /** Until then the link is busy with what it was given, in milliseconds of `performance.now()`. */
  #busyUntilMs = 0;

  private constructor(server: Server, bytesPerSecond: number) {
    this.#server = server;
    this.#bytesPerMs = bytesPerSecond / 1000;
  }

  /** Listens on a loopback port of its own and forwards to `port`, at most so many bytes a second; without end by default. */
  static async start(port: number, bytesPerSecond = Infinity): Promise<Relay> {
    const server = createServer({ noDelay: true });
    const relay = new Relay(server, bytesPerSecond);
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
      const waits = [this.#carried(chunk.length)];
      if (!destination.write(chunk)) waits.push(new Promise((resolve) => destination.once('drain', resolve)));
      const owed = waits.filter((wait) => wait !== undefined);
      if (owed.length === 0) return;
      source.pause();
      void Promise.all(owed).then(() => source.resume());
    });
    source.on('end', () => destination.end());
    destination.on('data', (chunk) => {
      this.backwardBytes += chunk.length;
      source.write(chunk);
    });
    destination.on('end', () => source.end());
  }

  /** Takes so many bytes of the link's time; a promise where it has to be waited for. */
  #carried(bytes: number): Promise<unknown> | undefined {
    if (this.#bytesPerMs === Infinity) return undefined;
    const nowMs = performance.now();
    this.#busyUntilMs = Math.max(this.#busyUntilMs, nowMs - BURST_MS) + bytes / this.#bytesPerMs;
    const owedMs = this.#busyUntilMs - nowMs;
    return owedMs > 0 ? new Promise((resolve) => setTimeout(resolve, owedMs)) : undefined;
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
