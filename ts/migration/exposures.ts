/**
 * The sections of exposures in a migration: what an exposure keeps of a function travels with it, under a name that no caller can use.
 */
import { closeSync } from 'node:fs';
import { TowlineError } from '../errors.js';
import type { ExposureHandover, ExposureState, MigratableFunction } from '../function/types.js';
import type { Mismatch } from './offer.js';
import type { Sections } from './options.js';
import type { OutgoingSections, SectionFds } from './sections.js';

/** Names that begin so are towline's own. */
const OWN = 'towline:';
const EXPOSURE = `${OWN}exposure:`;
const CONNECTION = `${OWN}connection:`;
/** The most bytes of one section. */
const MAX_BYTES = 1 << 20;
/** The most descriptors of one section (`MAX_SECTION_DESCRIPTORS` of the engine). */
const MAX_FDS = 64;

/** The section of the exposure of the function with this UUID. */
export const exposureSection = (uuid: string): string => `${EXPOSURE}${uuid}`;

const nameOf = (fn: MigratableFunction): string => exposureSection(fn.uuid);
/** The section of the connection of a function's exposure, where that is passed. */
const connectionOf = (fn: MigratableFunction): string => `${CONNECTION}${fn.uuid}`;

function closeFds(handovers: Map<unknown, ExposureHandover>): void {
  for (const { fds } of handovers.values()) for (const fd of fds) closeSync(fd);
  handovers.clear();
}

/** Whether a section is towline's own, and none of the caller's. */
export function isOwnSection(name: string): boolean {
  return name.startsWith(OWN);
}

/**
 * Checks the names that a caller gives to its sections.
 * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` for one that is towline's.
 */
export function checkCallerSections(names: readonly string[]): void {
  const own = names.find(isOwnSection);
  if (own === undefined) return;
  throw new TowlineError(
    'ERR_TOWLINE_INVALID_ARGUMENT',
    `a section is called ${JSON.stringify(own.slice(0, 80))}: names that begin with ${OWN} are towline's own`,
  );
}

/** The sections that a source sends, before the caller's own. */
export class SourceExposures {
  readonly #functions: readonly MigratableFunction[];
  readonly #states: ReadonlyMap<MigratableFunction, ExposureState>;
  #saved: (readonly [name: string, bytes: Uint8Array])[] = [];
  /** Whether their connections go along. */
  readonly #pass: boolean;
  /** Those that are on their way. The descriptors are ours. */
  readonly #handovers = new Map<MigratableFunction, ExposureHandover>();
  readonly #detached = new Set<MigratableFunction>();

  /**
   * @throws TowlineError `ERR_TOWLINE_EXPOSURE` for one that awaits a connection itself, and, where connections are to go along, for one whose
   * can't, and where there is none at all.
   */
  constructor(functions: readonly MigratableFunction[], pass = false) {
    const states = functions.flatMap((fn) => {
      const { exposureState } = fn;
      return exposureState === undefined ? [] : [[fn, exposureState] as const];
    });
    const refuse = (what: string, fn?: MigratableFunction): never => {
      throw new TowlineError('ERR_TOWLINE_EXPOSURE', what, fn === undefined ? {} : { function: fn.uuid });
    };
    for (const [fn, { handover }] of states) {
      if (handover === 'awaited')
        refuse(`${fn.name} awaits the connection of another process: receive it, or hide it`, fn);
      if (pass && (handover !== 'possible' || fn.detachExposure === undefined))
        refuse(`the exposure of ${fn.name} can't be passed to another process`, fn);
    }
    if (pass && states.length === 0) refuse("exposureTransfer is 'pass', and no function has an exposure to pass");
    this.#functions = functions;
    this.#states = new Map(states);
    this.#pass = pass;
  }

  /** Their names, in the order in which they are sent. */
  get names(): readonly string[] {
    return [...this.#states.keys()].flatMap((fn) => (this.#pass ? [nameOf(fn), connectionOf(fn)] : [nameOf(fn)]));
  }

  /**
   * Checks that the functions are exposed as they were when the names were taken.
   * @throws TowlineError `ERR_TOWLINE_STATE` for one that was shown or hidden meanwhile.
   */
  check(): void {
    const changed = this.#functions.find((fn) => (fn.exposureState !== undefined) !== this.#states.has(fn));
    if (changed === undefined) return;
    throw new TowlineError(
      'ERR_TOWLINE_STATE',
      `the exposure of ${changed.name} has changed since the session was made: make a new one`,
      { function: changed.uuid },
    );
  }

  /** Takes them, once the functions have stopped and before their device state is read. */
  async save(): Promise<void> {
    this.#saved = [];
    for (const [fn, state] of this.#states) {
      if (this.#pass) await this.#detach(fn);
      const section = await state.save();
      if (section.length > MAX_BYTES) {
        throw new TowlineError('ERR_TOWLINE_LIMIT', `the exposure of ${fn.name} keeps ${section.length} bytes`, {
          function: fn.uuid,
        });
      }
      this.#saved.push([nameOf(fn), section]);
    }
  }

  async #detach(fn: MigratableFunction): Promise<void> {
    const handover = await fn.detachExposure?.();
    this.#detached.add(fn);
    if (handover === undefined) return;
    this.#handovers.set(fn, handover);
    const { fds } = handover;
    if (fds.length > MAX_FDS) {
      throw new TowlineError(
        'ERR_TOWLINE_LIMIT',
        `the connection of ${fn.name} has ${fds.length} descriptors, and at most ${MAX_FDS} go along: migrate with exposureTransfer 'state'`,
        { function: fn.uuid },
      );
    }
  }

  /** Adds what was taken. */
  addTo(sections: OutgoingSections): void {
    const handovers = new Map([...this.#handovers].map(([fn, handover]) => [nameOf(fn), [fn, handover] as const]));
    for (const [name, bytes] of this.#saved) {
      sections.add(name, bytes);
      const passed = handovers.get(name);
      if (passed === undefined) continue;
      const [fn, { fds, bytes: described }] = passed;
      sections.add(connectionOf(fn), {
        bytes: described,
        fds: Object.fromEntries(fds.map((fd, n) => [`fd${n}`, fd])),
      });
    }
  }

  /** Whether the connection of a function was made ready to go, and neither resumed nor surrendered since. */
  detached(fn: MigratableFunction): boolean {
    return this.#detached.has(fn);
  }

  /** The functions run here again: their clients are served again. */
  async resume(): Promise<void> {
    await this.#each((fn) => fn.resumeExposure?.());
  }

  /** The destination has them: what of them is here goes, and their clients notice nothing. */
  async surrender(): Promise<void> {
    await this.#each((fn) => fn.surrenderExposure?.());
  }

  /** Every one of them, whatever becomes of the others; the first failure is told. */
  async #each(work: (fn: MigratableFunction) => Promise<void> | undefined): Promise<void> {
    const failures: unknown[] = [];
    for (const fn of this.#detached) {
      try {
        await work(fn);
        this.#detached.delete(fn);
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  }

  /** Closes the descriptors of what was on its way. Idempotent. */
  close(): void {
    closeFds(this.#handovers);
  }
}

/** The sections that a destination puts in place. */
export class DestinationExposures {
  readonly #functions: readonly MigratableFunction[];
  #received = new Map<MigratableFunction, Uint8Array>();
  /** Connections that came, until they are taken over. The descriptors are ours. */
  readonly #handovers = new Map<MigratableFunction, ExposureHandover>();
  readonly #adopted = new Set<MigratableFunction>();
  #restored: ExposureState[] = [];

  constructor(functions: readonly MigratableFunction[]) {
    this.#functions = functions;
  }

  #find(name: string): MigratableFunction | undefined {
    return this.#functions.find((fn) => nameOf(fn) === name || connectionOf(fn) === name);
  }

  /** What of the offered sections could not be put in place here, and what is awaited here and is not offered. */
  mismatches(names: readonly string[]): Mismatch[] {
    const code = 'sections';
    const misplaced = names
      .filter((name) => isOwnSection(name) && this.#find(name)?.exposureState === undefined)
      .map((name) => ({
        code,
        message: `section ${name} has no place here`,
        mend:
          name.startsWith(EXPOSURE) || name.startsWith(CONNECTION)
            ? 'expose the function here as it is at the source, before the migration'
            : 'migrate to a version of towline that knows it',
      }));
    const differently = this.#functions.flatMap((fn) => {
      const awaits = fn.exposureState?.handover === 'awaited';
      const comes = names.includes(connectionOf(fn));
      if (fn.exposureState === undefined || awaits === comes) return [];
      return awaits
        ? {
            code,
            message: `${fn.name} awaits the connection of its exposure here, and the source keeps it`,
            mend: "migrate with exposureTransfer: 'pass', or expose the function here on a socket of its own",
          }
        : {
            code,
            message: `the source passes the connection of ${fn.name}, and none is awaited here`,
            mend: "expose the function here with handover: 'awaited', or migrate with exposureTransfer: 'state'",
          };
    });
    return [...misplaced, ...differently];
  }

  /** Keeps what is towline's own, and gives back what is the caller's. */
  take(sections: Sections, fds: SectionFds): Sections {
    const callers: Record<string, Uint8Array> = {};
    this.#received = new Map();
    for (const [name, data] of Object.entries(sections)) {
      const fn = this.#find(name);
      if (!isOwnSection(name)) callers[name] = data;
      else if (fn !== undefined && name === connectionOf(fn))
        this.#handovers.set(fn, { fds: fds.names(name).map((fd) => fds.take(name, fd)), bytes: data });
      else if (fn !== undefined) this.#received.set(fn, data);
      else
        throw new TowlineError('ERR_TOWLINE_PROTOCOL', `section ${name} has no place here, and was taken all the same`);
    }
    return callers;
  }

  /** Puts them in place: the device state is loaded, the caller has restored what is its own. */
  async restore(): Promise<void> {
    for (const [fn, section] of this.#received) {
      const { exposureState } = fn;
      if (exposureState === undefined) {
        throw new TowlineError('ERR_TOWLINE_EXPOSURE', `${fn.name} was hidden while it was migrated here`, {
          function: fn.uuid,
        });
      }
      // One that fails halfway is undone as well.
      this.#restored.push(exposureState);
      const handover = this.#handovers.get(fn);
      if (handover !== undefined) {
        await fn.adoptExposure?.(handover);
        this.#adopted.add(fn);
      }
      await exposureState.restore(section);
    }
    closeFds(this.#handovers);
  }

  /** The functions run here: so do the connections that came. */
  async resume(): Promise<void> {
    for (const fn of this.#adopted) {
      await fn.resumeExposure?.();
      this.#adopted.delete(fn);
    }
  }

  /** Undoes it; what can't be undone is no reason to keep the others. Idempotent. */
  async forget(): Promise<void> {
    closeFds(this.#handovers);
    this.#adopted.clear();
    for (const state of this.#restored.splice(0).reverse()) await state.forget().catch(() => undefined);
  }
}
