// A guest with an NVMe driver, on a vfio-user client: one admin queue, one I/O queue, single blocks of 4096 bytes. What it knows of its queues goes
// along when its memory does, as a vCPU's state would.
import { createHash } from 'node:crypto';
import type { GuestMemory } from '#towline/migration/memory.js';
import type { VfioUserClient } from './vfio-user-client.js';

const BAR0 = 0;
const CONFIG = 7;
const ENTRIES = 32;
const DATA = 0x10_0000;
const BLOCK = 4096;
/** How many blocks of the disk it uses. */
export const BLOCKS = 64;

interface Queue {
  readonly id: number;
  readonly sq: number;
  readonly cq: number;
  tail: number;
  head: number;
  phase: number;
}

interface Command {
  readonly block: number;
  readonly version: number;
  readonly write: boolean;
}

function queue(id: number, sq: number, cq: number): Queue {
  return { id, sq, cq, tail: 0, head: 0, phase: 1 };
}

function content(block: number, version: number): Buffer {
  const seed = createHash('sha256').update(`${block} ${version}`).digest();
  return Buffer.alloc(BLOCK, seed);
}

export class NvmeGuest {
  #client: VfioUserClient;
  #memory: GuestMemory;
  readonly #admin = queue(0, 0x1_0000, 0x2_0000);
  readonly #io = queue(1, 0x3_0000, 0x4_0000);
  /** What was submitted and not completed, by command identifier; each has a page of its own. */
  readonly #pending = new Map<number, Command>();
  /** The version of each block that was acknowledged last. */
  readonly #versions = new Map<number, number>();
  #next = 0;
  #running = false;
  #loop: Promise<void> = Promise.resolve();
  completed = 0;
  /** Everything that is not as it has to be. */
  readonly faults: string[] = [];

  constructor(client: VfioUserClient, memory: GuestMemory) {
    this.#client = client;
    this.#memory = memory;
  }

  /** The VMM has put the guest's memory and its state behind another client. */
  move(client: VfioUserClient, memory: GuestMemory): void {
    this.#client = client;
    this.#memory = memory;
  }

  get pending(): number {
    return this.#pending.size;
  }

  /** Brings the controller up. */
  async boot(): Promise<void> {
    const client = this.#client;
    await client.write32(CONFIG, 4, 6);
    await client.write32(CONFIG, 0x10, 0xfe00_0000);
    await client.write32(CONFIG, 0xb0, 0x8000_0000);
    await client.write32(BAR0, 0x24, ((ENTRIES - 1) << 16) | (ENTRIES - 1));
    await client.write32(BAR0, 0x28, this.#admin.sq);
    await client.write32(BAR0, 0x30, this.#admin.cq);
    await client.write32(BAR0, 0x14, 0x46_0001);
    while (((await client.read32(BAR0, 0x1c)) & 1) === 0) await pause();
    // Create I/O Completion Queue 1 on vector 1, with interrupts; Create I/O Submission Queue 1.
    const entries = ((ENTRIES - 1) << 16) | 1;
    await this.#command(0x05, this.#io.cq, entries, (1 << 16) | 3);
    await this.#command(0x01, this.#io.sq, entries, (1 << 16) | 1);
  }

  /** One admin command. */
  async #command(opcode: number, prp1: number, cdw10: number, cdw11: number): Promise<void> {
    this.#submit(this.#admin, opcode, 0, 0, prp1, [cdw10, cdw11, 0]);
    for (;;) {
      const entry = this.#take(this.#admin);
      if (entry === undefined) await pause();
      else if (entry.status === 0) return;
      else throw new Error(`status ${entry.status} of admin command ${opcode}`);
    }
  }

  #submit(q: Queue, opcode: number, id: number, nsid: number, prp1: number, cdws: readonly number[]): void {
    const entry = Buffer.alloc(64);
    entry.writeUInt32LE((opcode | (id << 16)) >>> 0, 0);
    entry.writeUInt32LE(nsid, 4);
    entry.writeBigUInt64LE(BigInt(prp1), 24);
    cdws.forEach((cdw, i) => entry.writeUInt32LE(cdw >>> 0, 40 + 4 * i));
    this.#memory.write(BigInt(q.sq + 64 * q.tail), entry);
    q.tail = (q.tail + 1) % ENTRIES;
    this.#client.post32(BAR0, 0x1000 + 8 * q.id, q.tail);
  }

  #take(q: Queue): { id: number; status: number } | undefined {
    const entry = Buffer.from(this.#memory.read(BigInt(q.cq + 16 * q.head), 16));
    const word = entry.readUInt16LE(14);
    if ((word & 1) !== q.phase) return undefined;
    q.head += 1;
    if (q.head === ENTRIES) [q.head, q.phase] = [0, 1 - q.phase];
    this.#client.post32(BAR0, 0x1000 + 8 * q.id + 4, q.head);
    return { id: entry.readUInt16LE(12), status: word >> 1 };
  }

  #page(id: number): number {
    return DATA + id * BLOCK;
  }

  /** A write of the next version of a block, or a read of what was acknowledged last. */
  #start(): void {
    const id = [...Array(ENTRIES - 2).keys()].find((n) => !this.#pending.has(n));
    if (id === undefined) return;
    const block = this.#next++ % BLOCKS;
    if ([...this.#pending.values()].some((c) => c.block === block)) return;
    const last = this.#versions.get(block);
    const write = last === undefined || this.#next % 3 !== 0;
    const version = write ? (last ?? 0) + 1 : last;
    this.#memory.write(BigInt(this.#page(id)), write ? content(block, version) : Buffer.alloc(BLOCK));
    this.#pending.set(id, { block, version, write });
    // The disk has blocks of 4096 bytes; 0's-based count.
    this.#submit(this.#io, write ? 0x01 : 0x02, id, 1, this.#page(id), [block, 0, 0]);
  }

  #finish(): boolean {
    const entry = this.#take(this.#io);
    if (entry === undefined) return false;
    const command = this.#pending.get(entry.id);
    if (command === undefined) this.faults.push(`command ${entry.id} was completed and not asked for`);
    else if (entry.status !== 0) this.faults.push(`status ${entry.status} of command ${entry.id}`);
    else if (command.write) this.#versions.set(command.block, command.version);
    else {
      const found = this.#memory.read(BigInt(this.#page(entry.id)), BLOCK);
      if (!content(command.block, command.version).equals(found)) this.faults.push(`block ${command.block} is another`);
    }
    this.#pending.delete(entry.id);
    this.completed += 1;
    return true;
  }

  /** Its vCPU runs. */
  run(): void {
    this.#running = true;
    this.#loop = (async () => {
      while (this.#running) {
        for (let n = 0; n < 4 && this.#pending.size < 16; n++) this.#start();
        while (this.#finish());
        await pause();
      }
    })();
  }

  /** Its vCPU stops, with commands under way and doorbells that nobody has answered. */
  async stop(): Promise<void> {
    this.#running = false;
    await this.#loop;
    this.#start();
  }

  /** Waits until so many more commands are completed. */
  async work(commands: number): Promise<void> {
    const until = this.completed + commands;
    while (this.completed < until && this.faults.length === 0) await pause();
  }

  /** Lets everything that is under way end, without new commands. */
  async drain(): Promise<void> {
    await this.stop();
    while (this.#pending.size > 0 && this.faults.length === 0) {
      if (!this.#finish()) await pause();
    }
  }
}

const pause = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 1));
