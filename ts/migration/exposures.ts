/**
 * The sections of exposures in a migration: what an exposure keeps of a function travels with it, under a name that no caller can use.
 */
import { TowlineError } from '../errors.js';
import type { ExposureState, MigratableFunction } from '../function/types.js';
import type { Mismatch } from './offer.js';
import type { Sections } from './options.js';
import type { OutgoingSections } from './sections.js';

/** Names that begin so are towline's own. */
const OWN = 'towline:';
const EXPOSURE = `${OWN}exposure:`;
/** The most bytes of one section. */
const MAX_BYTES = 1 << 20;

/** The section of the exposure of the function with this UUID. */
export const exposureSection = (uuid: string): string => `${EXPOSURE}${uuid}`;

const nameOf = (fn: MigratableFunction): string => exposureSection(fn.uuid);

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

  constructor(functions: readonly MigratableFunction[]) {
    const states = functions.flatMap((fn) => {
      const { exposureState } = fn;
      return exposureState === undefined ? [] : [[fn, exposureState] as const];
    });
    this.#functions = functions;
    this.#states = new Map(states);
  }

  /** Their names, in the order in which they are sent. */
  get names(): readonly string[] {
    return [...this.#states.keys()].map(nameOf);
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
      const section = await state.save();
      if (section.length > MAX_BYTES) {
        throw new TowlineError('ERR_TOWLINE_LIMIT', `the exposure of ${fn.name} keeps ${section.length} bytes`, {
          function: fn.uuid,
        });
      }
      this.#saved.push([nameOf(fn), section]);
    }
  }

  /** Adds what was taken. */
  addTo(sections: OutgoingSections): void {
    for (const [name, bytes] of this.#saved) sections.add(name, bytes);
  }
}

/** The sections that a destination puts in place. */
export class DestinationExposures {
  readonly #functions: readonly MigratableFunction[];
  #received = new Map<MigratableFunction, Uint8Array>();
  #restored: ExposureState[] = [];

  constructor(functions: readonly MigratableFunction[]) {
    this.#functions = functions;
  }

  #find(name: string): MigratableFunction | undefined {
    return this.#functions.find((fn) => nameOf(fn) === name);
  }

  /** What of the offered sections could not be put in place here. */
  mismatches(names: readonly string[]): Mismatch[] {
    return names
      .filter((name) => isOwnSection(name) && this.#find(name)?.exposureState === undefined)
      .map((name) => ({
        code: 'sections',
        message: `section ${name} has no place here`,
        mend: name.startsWith(EXPOSURE)
          ? 'expose the function here as it is at the source, before the migration'
          : 'migrate to a version of towline that knows it',
      }));
  }

  /** Keeps what is towline's own, and gives back what is the caller's. */
  take(sections: Sections): Sections {
    const callers: Record<string, Uint8Array> = {};
    this.#received = new Map();
    for (const [name, data] of Object.entries(sections)) {
      const fn = this.#find(name);
      if (!isOwnSection(name)) callers[name] = data;
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
      await exposureState.restore(section);
    }
  }

  /** Undoes it; what can't be undone is no reason to keep the others. Idempotent. */
  async forget(): Promise<void> {
    for (const state of this.#restored.splice(0).reverse()) await state.forget().catch(() => undefined);
  }
}
