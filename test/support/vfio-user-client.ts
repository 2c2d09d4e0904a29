// The least of a vfio-user client, written from the specification: asks and hears answers. It maps no memory.
import { connect, type Socket } from 'node:net';

export const VERSION = 1;
export const GET_INFO = 4;
export const REGION_READ = 9;
export const REGION_WRITE = 10;
export const RESET = 13;

/** What the other side said: the body of its answer, or the errno. */
export type Answer = { body: Buffer; errno?: undefined } | { body?: undefined; errno: number };

export class VfioUserClient {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, (answer: Answer | undefined) => void>();
  /** Resolves once the connection has ended, whoever ended it. */
  readonly gone: Promise<void>;
  #bytes = Buffer.alloc(0);
  #id = 0;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (data) => this.#take(data));
    // The end of it is told by `close`.
    socket.on('error', () => undefined);
    this.gone = new Promise((resolve) => {
      socket.on('close', () => {
        for (const reply of this.#waiting.values()) reply(undefined);
        resolve();
      });
    });
  }

  static async connect(path: string): Promise<VfioUserClient> {
    const socket = connect(path);
    await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject));
    const client = new VfioUserClient(socket);
    const answer = await client.ask(VERSION, Buffer.from([0, 0, 0, 0]));
    if (answer.body?.readUInt32LE() !== 0) throw new Error('it does not speak version 0.0');
    return client;
  }

  #take(data: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, data]);
    while (this.#bytes.length >= 16) {
      const size = this.#bytes.readUInt32LE(4);
      if (this.#bytes.length < size) return;
      const message = this.#bytes.subarray(0, size);
      this.#bytes = this.#bytes.subarray(size);
      const failed = (message.readUInt32LE(8) & 0x20) !== 0;
      const id = message.readUInt16LE(0);
      this.#waiting.get(id)?.(failed ? { errno: message.readUInt32LE(12) } : { body: message.subarray(16) });
      this.#waiting.delete(id);
    }
  }

  async ask(command: number, body: Buffer = Buffer.alloc(0)): Promise<Answer> {
    const header = Buffer.alloc(16);
    const id = (this.#id += 1);
    header.writeUInt16LE(id, 0);
    header.writeUInt16LE(command, 2);
    header.writeUInt32LE(16 + body.length, 4);
    const answer = new Promise<Answer | undefined>((resolve) => this.#waiting.set(id, resolve));
    this.#socket.write(Buffer.concat([header, body]));
    const heard = await answer;
    if (heard === undefined) throw new Error('the server has closed the connection');
    return heard;
  }

  async #access(command: number, region: number, offset: number, count: number, data: Buffer): Promise<Buffer> {
    const body = Buffer.alloc(16);
    body.writeBigUInt64LE(BigInt(offset), 0);
    body.writeUInt32LE(region, 8);
    body.writeUInt32LE(count, 12);
    const answer = await this.ask(command, Buffer.concat([body, data]));
    if (answer.body === undefined) throw new Error(`errno ${answer.errno}`);
    return answer.body.subarray(16);
  }

  async read32(region: number, offset: number): Promise<number> {
    return (await this.#access(REGION_READ, region, offset, 4, Buffer.alloc(0))).readUInt32LE();
  }

  async write32(region: number, offset: number, value: number): Promise<void> {
    const data = Buffer.alloc(4);
    data.writeUInt32LE(value);
    await this.#access(REGION_WRITE, region, offset, 4, data);
  }

  /** Ends the connection. */
  async close(): Promise<void> {
    this.#socket.destroy();
    await this.gone;
  }
}
