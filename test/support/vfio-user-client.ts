// The least of a vfio-user client, written from the specification: asks and hears answers. Its memory, if it has one, is reached by messages.
import { connect, type Socket } from 'node:net';
import type { GuestMemory } from '#towline/migration/memory.js';

export const VERSION = 1;
export const DMA_MAP = 2;
export const GET_INFO = 4;
export const REGION_READ = 9;
export const REGION_WRITE = 10;
export const DMA_READ = 11;
export const DMA_WRITE = 12;
export const RESET = 13;
/** The answer is not wanted. */
const NO_REPLY = 0x10;

/** What the other side said: the body of its answer, or the errno. */
export type Answer = { body: Buffer; errno?: undefined } | { body?: undefined; errno: number };

export class VfioUserClient {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, (answer: Answer | undefined) => void>();
  /** Resolves once the connection has ended, whoever ended it. */
  readonly gone: Promise<void>;
  #bytes = Buffer.alloc(0);
  #id = 0;
  #memory: GuestMemory | undefined;
  /** DMA messages so far. */
  dmaMessages = 0;

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

  static async connect(path: string, memory?: GuestMemory): Promise<VfioUserClient> {
    const socket = connect(path);
    await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject));
    const client = new VfioUserClient(socket);
    // Proposes 0.1, which is answered by 0.0: DMA messages as the specification lays them out.
    const answer = await client.ask(VERSION, Buffer.from([0, 0, 1, 0]));
    if (answer.body?.readUInt32LE() !== 0) throw new Error('it does not speak version 0.0');
    client.#memory = memory;
    for (const { gpa, len } of memory?.ranges() ?? []) await client.map(gpa, len);
    return client;
  }

  #take(data: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, data]);
    while (this.#bytes.length >= 16) {
      const size = this.#bytes.readUInt32LE(4);
      if (this.#bytes.length < size) return;
      const message = this.#bytes.subarray(0, size);
      this.#bytes = this.#bytes.subarray(size);
      if ((message.readUInt32LE(8) & 15) === 0) {
        this.#serve(message);
        continue;
      }
      const failed = (message.readUInt32LE(8) & 0x20) !== 0;
      const id = message.readUInt16LE(0);
      this.#waiting.get(id)?.(failed ? { errno: message.readUInt32LE(12) } : { body: message.subarray(16) });
      this.#waiting.delete(id);
    }
  }

  /** A request of the function: it reads or writes our memory. */
  #serve(message: Buffer): void {
    this.dmaMessages += 1;
    const [id, command] = [message.readUInt16LE(0), message.readUInt16LE(2)];
    const [gpa, count] = [message.readBigUInt64LE(16), Number(message.readBigUInt64LE(24))];
    let answer: Buffer | undefined;
    try {
      const request = message.subarray(16, 32);
      if (command === DMA_READ && this.#memory) answer = Buffer.concat([request, this.#memory.read(gpa, count)]);
      if (command === DMA_WRITE && this.#memory) {
        this.#memory.write(gpa, message.subarray(32, 32 + count));
        answer = request;
      }
    } catch {
      // Told as a bad address.
    }
    const header = Buffer.alloc(16);
    header.writeUInt16LE(id, 0);
    header.writeUInt16LE(command, 2);
    header.writeUInt32LE(16 + (answer?.length ?? 0), 4);
    header.writeUInt32LE(answer === undefined ? 0x21 : 1, 8);
    header.writeUInt32LE(answer === undefined ? 14 : 0, 12);
    if (!this.#socket.destroyed) this.#socket.write(Buffer.concat([header, answer ?? Buffer.alloc(0)]));
  }

  /** Gives a range of memory without a file. */
  async map(gpa: bigint, len: bigint): Promise<void> {
    const body = Buffer.alloc(32);
    body.writeUInt32LE(32, 0);
    body.writeUInt32LE(3, 4);
    body.writeBigUInt64LE(gpa, 16);
    body.writeBigUInt64LE(len, 24);
    const answer = await this.ask(DMA_MAP, body);
    if (answer.errno !== undefined) throw new Error(`errno ${answer.errno}`);
  }

  #send(command: number, flags: number, body: Buffer): number {
    const header = Buffer.alloc(16);
    const id = (this.#id = (this.#id + 1) & 0xffff);
    header.writeUInt16LE(id, 0);
    header.writeUInt16LE(command, 2);
    header.writeUInt32LE(16 + body.length, 4);
    header.writeUInt32LE(flags, 8);
    this.#socket.write(Buffer.concat([header, body]));
    return id;
  }

  async ask(command: number, body: Buffer = Buffer.alloc(0)): Promise<Answer> {
    const id = this.#send(command, 0, body);
    const answer = new Promise<Answer | undefined>((resolve) => this.#waiting.set(id, resolve));
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

  /** As a vCPU writes: it waits for no answer. */
  post32(region: number, offset: number, value: number): void {
    const body = Buffer.alloc(20);
    body.writeBigUInt64LE(BigInt(offset), 0);
    body.writeUInt32LE(region, 8);
    body.writeUInt32LE(4, 12);
    body.writeUInt32LE(value >>> 0, 16);
    this.#send(REGION_WRITE, NO_REPLY, body);
  }

  /** Ends the connection. */
  async close(): Promise<void> {
    this.#socket.destroy();
    await this.gone;
  }
}
