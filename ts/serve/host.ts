/**
 * What a serving process holds: its controlling functions, their functions, the guest memory of each, and the journal.
 */
import { dirname, join, resolve } from 'node:path';
import { EmbeddedControllingFunction, EmbeddedDriver, type EmbeddedOptions } from '../drivers/embedded.js';
import type { ControllingFunction } from '../drivers/driver.js';
import { TowlineError } from '../errors.js';
import { provisionFunction } from '../function/lifecycle.js';
import type {
  ControlledFunction,
  ExplainOptions,
  ExposeOptions,
  ExposureName,
  FunctionSpec,
  Reason,
} from '../function/types.js';
import { withUndo } from '../function/undo.js';
import type { WaitOptions } from '../abort.js';
import { inDoubtReason } from '../migration/doubt.js';
import { Journal } from '../migration/journal.js';
import { GuestMemory } from '../migration/memory.js';
import { parseRates } from '../rehearsal/rule.js';
import { controllingName } from './drivers.js';
import type { ControllingInfo, FunctionInfo, RehearsalInfo } from './protocol.js';
import { checkSocketDirectory } from './paths.js';
import { Rehearsal } from './rehearsal.js';

/** Options of {@link Host.open}. */
export interface HostOptions {
  /** Subsystems that are started in this process. */
  embedded: readonly EmbeddedOptions[];
  /** Directory of the journal; one process owns it at a time. */
  journal: string;
  /** Anonymous guest memory for each function, or for all of one guest, in bytes, a multiple of 4096. 0: none. */
  memoryBytes: bigint;
  /** Opens further controlling functions; they are closed with the host. */
  controlling?: (() => Promise<readonly ControllingFunction[]>) | undefined;
}

/** Options of {@link Host.provision}. */
export interface HostProvisionOptions extends WaitOptions {
  /** Functions of one guest have one memory, and can be migrated together. Left out: a guest of its own. */
  guest?: string | undefined;
  /** See `ExposeOptions`. */
  socketPath?: string | undefined;
}

/**
 * A function on a socket has the memory of the VMM that connects there. This process sees what the function writes and nothing of what vCPUs
 * write, so that a migration from here would lose that.
 */
function memoryElsewhere(fn: ControlledFunction): Reason | undefined {
  if (fn.exposure !== 'vfio-user') return undefined;
  return {
    code: 'no-guest-memory',
    message: `the guest memory of ${fn.name} is that of the VMM on its vfio-user socket, and is not moved from here`,
    mend: 'migrate it in the process of the VMM that has the memory (MigrationSession), or hide it (expose none)',
  };
}

/** A function, where it came from, and its memory. */
export interface HeldFunction {
  readonly fn: ControlledFunction;
  readonly controlling: ControllingFunction;
  readonly memory: GuestMemory | undefined;
}

/** See the file's comment. */
export class Host {
  readonly controlling: readonly ControllingFunction[];
  readonly journal: Journal;
  readonly #memoryBytes: bigint;
  readonly #memories = new Map<ControlledFunction, GuestMemory>();
  readonly #guests = new Map<string, GuestMemory>();
  readonly #busy = new Set<ControlledFunction>();
  /** Where sockets are made that nobody named. */
  readonly #socketDirectory: string;
  readonly #sockets = new Map<ControlledFunction, string>();
  readonly #rehearsals = new Map<ControllingFunction, Rehearsal>();
  #closing: Promise<void> | undefined;

  private constructor(controlling: readonly ControllingFunction[], journal: Journal, options: HostOptions) {
    this.controlling = controlling;
    this.journal = journal;
    this.#memoryBytes = options.memoryBytes;
    this.#socketDirectory = join(dirname(resolve(options.journal)), 'vfio-user');
    for (const c of controlling)
      if (c instanceof EmbeddedControllingFunction) this.#rehearsals.set(c, new Rehearsal(c));
  }

  /** Opens the journal, then starts every subsystem; where one fails, the others are closed again. */
  static async open(options: HostOptions): Promise<Host> {
    const journal = new Journal(options.journal);
    const opened: ControllingFunction[] = [];
    try {
      const driver = new EmbeddedDriver(options.embedded);
      for (const { address } of await driver.discover()) opened.push(await driver.open(address));
      opened.push(...((await options.controlling?.()) ?? []));
      return new Host(opened, journal, options);
    } catch (error) {
      for (const controlling of opened.reverse()) await controlling.close();
      journal.close();
      throw error;
    }
  }

  /** Every function that exists now. */
  async functions(): Promise<HeldFunction[]> {
    const held: HeldFunction[] = [];
    for (const controlling of this.controlling) {
      for (const fn of await controlling.list()) held.push({ fn, controlling, memory: this.#memories.get(fn) });
    }
    // Those that are lost are in no list any more, and nobody can release them.
    for (const [fn, memory] of this.#memories) {
      if (fn.state !== 'lost' || this.#busy.has(fn)) continue;
      this.#sockets.delete(fn);
      for (const rehearsal of this.#rehearsals.values()) rehearsal.remove(fn);
      this.#takeMemory(fn, memory);
    }
    return held;
  }

  /** The function of that UUID, name, address on this host, or beginning of a UUID with 8 characters or more that is only one's. */
  async find(word: string): Promise<HeldFunction> {
    const all = await this.functions();
    const exact = all.filter(({ fn }) => isCalled(fn, word));
    const found =
      exact.length > 0 || word.length < 8 ? exact : all.filter(({ fn }) => fn.uuid.startsWith(word.toLowerCase()));
    const [first, ...more] = found;
    if (first === undefined) {
      throw new TowlineError(
        'ERR_TOWLINE_NOT_FOUND',
        `there is no function ${word}; there is: ${all.map(({ fn }) => fn.name).join(', ') || 'none'}`,
      );
    }
    if (more.length > 0)
      throw new TowlineError(
        'ERR_TOWLINE_INVALID_ARGUMENT',
        `${word} stands for ${found.length} functions: use the UUID`,
      );
    return first;
  }

  /** The controlling function at `address`; the only one where it is left out. */
  findControlling(address: string | undefined): ControllingFunction {
    if (address === undefined) {
      const [only, ...more] = this.controlling;
      if (only !== undefined && more.length === 0) return only;
      throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `name one of: ${this.#addresses()}`);
    }
    const exact = this.controlling.filter((c) => controllingName(c) === address);
    const [found, ...more] =
      exact.length > 0
        ? exact
        : this.controlling.filter((c) => c.address === address || c.address === `embedded:${address}`);
    if (found === undefined) {
      throw new TowlineError(
        'ERR_TOWLINE_NOT_FOUND',
        `there is no controlling function ${address}; there is: ${this.#addresses()}`,
      );
    }
    if (more.length > 0) {
      throw new TowlineError(
        'ERR_TOWLINE_INVALID_ARGUMENT',
        `${address} is held by several drivers, name one of: ${this.#addresses()}`,
      );
    }
    return found;
  }

  #addresses(): string {
    return this.controlling.map(controllingName).join(', ') || 'none';
  }

  /** Provisions a function and gives it guest memory, whole or not at all. */
  async provision(
    address: string | undefined,
    spec: FunctionSpec,
    { guest, socketPath, ...options }: HostProvisionOptions,
  ): Promise<HeldFunction> {
    const controlling = this.findControlling(address);
    const { expose = 'none', ...rest } = spec;
    return withUndo(async (steps) => {
      const fn = await steps.do(
        'provision',
        () => provisionFunction(controlling, { ...rest, expose: 'none' }, options),
        (made) => this.release({ fn: made, controlling, memory: this.#memories.get(made) }),
      );
      this.#rehearsals.get(controlling)?.add(fn);
      const memory = await this.#giveMemory(fn, controlling, guest);
      // Nobody sees it before it is complete, and memory belongs to that.
      const held = { fn, controlling, memory };
      if (expose !== 'none') await this.expose(held, expose, { ...options, socketPath });
      return held;
    });
  }

  /**
   * Makes a function visible, or hides it. On a vfio-user socket its guest memory is the client's, in place of what this process gave it;
   * afterwards it has that again. A socket that is not named is `vfio-user/UUID.sock` beside the journal.
   */
  async expose(
    { fn, controlling, memory }: HeldFunction,
    exposure: ExposureName,
    options: ExposeOptions,
  ): Promise<void> {
    const lost = exposure === 'vfio-user' || fn.exposure === 'vfio-user';
    try {
      if (exposure === 'vfio-user' && fn.exposure !== 'vfio-user') {
        const socketPath = options.socketPath ?? join(this.#socketDirectory, `${fn.uuid}.sock`);
        if (options.socketPath === undefined) await checkSocketDirectory(socketPath);
        await controlling.expose(fn, exposure, { ...options, socketPath });
        this.#sockets.set(fn, socketPath);
      } else {
        await controlling.expose(fn, exposure, options);
        if (fn.exposure !== 'vfio-user') this.#sockets.delete(fn);
      }
    } finally {
      if (lost && memory !== undefined && fn.exposure !== 'vfio-user') await controlling.attachMemory?.(fn, memory);
    }
  }

  async #giveMemory(
    fn: ControlledFunction,
    controlling: ControllingFunction,
    guest: string | undefined,
  ): Promise<GuestMemory | undefined> {
    if (this.#memoryBytes === 0n || controlling.attachMemory === undefined) return undefined;
    const shared = guest === undefined ? undefined : this.#guests.get(guest);
    const memory = shared ?? GuestMemory.anonymous(guest ?? fn.name, this.#memoryBytes);
    try {
      await controlling.attachMemory(fn, memory);
    } catch (error) {
      if (shared === undefined) memory.close();
      throw error;
    }
    this.#memories.set(fn, memory);
    if (guest !== undefined) this.#guests.set(guest, memory);
    return memory;
  }

  /** The last one of a guest closes its memory. */
  #takeMemory(fn: ControlledFunction, memory: GuestMemory | undefined): void {
    this.#memories.delete(fn);
    if (memory === undefined || [...this.#memories.values()].includes(memory)) return;
    for (const [guest, held] of this.#guests) if (held === memory) this.#guests.delete(guest);
    memory.close();
  }

  #forget(fn: ControlledFunction, controlling: ControllingFunction, memory: GuestMemory | undefined): void {
    this.#sockets.delete(fn);
    this.#rehearsals.get(controlling)?.remove(fn);
    this.#takeMemory(fn, memory);
  }

  /** Gives a function back, and its memory. */
  async release({ fn, controlling, memory }: HeldFunction): Promise<void> {
    // One that is not released keeps its memory: its device may be writing there still.
    await fn.release();
    if (memory !== undefined && controlling.detachMemory !== undefined) {
      await controlling.detachMemory(fn).catch((error: unknown) => {
        // It may have gone, and its hold on the memory with it.
        if (fn.state !== 'released' && fn.state !== 'lost') throw error;
      });
    }
    this.#forget(fn, controlling, memory);
  }

  /**
   * Sets faults and rates of an embedded subsystem; what is left out stays.
   * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` names the part that is wrong, `ERR_TOWLINE_UNSUPPORTED` for a real device.
   */
  rehearse(
    controlling: ControllingFunction,
    { faults, rates }: { faults?: readonly string[] | undefined; rates?: string | undefined },
  ): RehearsalInfo {
    const rehearsal = this.#rehearsals.get(controlling);
    if (rehearsal === undefined) {
      throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', `${controlling.address} is no embedded subsystem`);
    }
    // Both are read before one is set: whole or not at all.
    if (rates !== undefined) parseRates(rates);
    if (faults !== undefined) rehearsal.setFaults(faults);
    if (rates !== undefined) rehearsal.setRates(rates);
    return rehearsal.info();
  }

  /** A controlling function as it is shown. */
  async controllingInfo(controlling: ControllingFunction): Promise<ControllingInfo> {
    return {
      address: controllingName(controlling),
      driver: controlling.driver,
      capacity: await controlling.capacity(),
      reasons: await controlling.explain(),
      rehearsal: this.#rehearsals.get(controlling)?.info() ?? null,
    };
  }

  /**
   * The session by which a function is in doubt. The journal knows it after a restart, too, where a function that was provisioned again
   * has the UUID of one that may live elsewhere. While somebody works on the function, its session is no doubt yet.
   */
  doubtOf(fn: ControlledFunction): string | undefined {
    if (this.#busy.has(fn)) return undefined;
    return this.journal
      .sessions()
      .find((s) => s.role === 'source' && s.verdict === 'in-doubt' && s.functions.includes(fn.uuid))?.session;
  }

  /** Every reason why a function can't be migrated; the journal's as well. */
  async explain({ fn }: HeldFunction, options: ExplainOptions): Promise<readonly Reason[]> {
    const elsewhere = memoryElsewhere(fn);
    const reasons = [...(await fn.explain(options)), ...(elsewhere === undefined ? [] : [elsewhere])];
    const session = this.doubtOf(fn);
    if (session === undefined || reasons.some((r) => r.code === 'in-doubt')) return reasons;
    return [inDoubtReason(fn.name, session), ...reasons];
  }

  /**
   * Runs `work` while nobody else changes, migrates or checks these functions.
   * @throws TowlineError `ERR_TOWLINE_BUSY`; `ERR_TOWLINE_IN_DOUBT` where one is in doubt and that is not allowed; `ERR_TOWLINE_STATE` where the
   * guest memory has to be ours and is that of a VMM.
   */
  async exclusively<T>(
    functions: readonly HeldFunction[],
    options: { inDoubt: 'allowed' | 'refused'; memory?: 'ours' },
    work: () => Promise<T>,
  ): Promise<T> {
    for (const { fn } of functions) {
      if (this.#busy.has(fn))
        throw new TowlineError('ERR_TOWLINE_BUSY', `${fn.name} is being worked on already`, { function: fn.uuid });
    }
    for (const { fn } of functions) {
      const elsewhere = options.memory === 'ours' ? memoryElsewhere(fn) : undefined;
      if (elsewhere === undefined) continue;
      throw new TowlineError('ERR_TOWLINE_STATE', `${fn.name} can't be migrated: ${elsewhere.message}`, {
        function: fn.uuid,
        details: { reasons: [elsewhere] },
      });
    }
    for (const { fn } of options.inDoubt === 'refused' ? functions : []) {
      const session = this.doubtOf(fn);
      if (session === undefined) continue;
      const { message } = inDoubtReason(fn.name, session);
      throw new TowlineError('ERR_TOWLINE_IN_DOUBT', message, { function: fn.uuid, details: { session } });
    }
    for (const { fn } of functions) this.#busy.add(fn);
    try {
      return await work();
    } finally {
      for (const { fn } of functions) this.#busy.delete(fn);
    }
  }

  /** A function as it is shown. */
  info({ fn, controlling, memory }: HeldFunction): FunctionInfo {
    const bytes = memory?.ranges().reduce((sum, r) => sum + r.len, 0n) ?? 0n;
    return {
      uuid: fn.uuid,
      name: fn.name,
      kind: fn.kind,
      state: fn.state,
      exposure: fn.exposure,
      controlling: controllingName(controlling),
      location: fn.location ?? null,
      queues: fn.spec.queues ?? null,
      vectors: fn.spec.vectors ?? null,
      namespaces: [...(fn.spec.namespaces ?? [])],
      migration: fn.spec.migration ?? false,
      type: fn.spec.type ?? null,
      memoryBytes: bytes.toString(),
      socket: this.#sockets.get(fn) ?? null,
      inDoubt: this.doubtOf(fn) ?? null,
    };
  }

  /**
   * Closes everything. Functions of the embedded model end with this process; those of real devices stay as they are, and whoever comes next
   * finds them. Idempotent.
   */
  close(): Promise<void> {
    this.#closing ??= (async () => {
      const failures: unknown[] = [];
      // One that does not close keeps neither the others nor the journal open.
      for (const controlling of this.controlling) {
        await controlling.close().catch((error: unknown) => failures.push(error));
      }
      for (const memory of new Set(this.#memories.values())) memory.close();
      this.journal.close();
      if (failures.length > 0) throw failures[0];
    })();
    return this.#closing;
  }
}

/** Whether a function has that UUID, name or address on this host. */
export function isCalled(fn: ControlledFunction, word: string): boolean {
  return fn.uuid === word.toLowerCase() || fn.name === word || fn.location?.address === word.toLowerCase();
}
