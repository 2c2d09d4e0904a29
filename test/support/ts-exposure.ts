/**
 * What an exposure keeps of a function, in plain TypeScript: one number, with a digest. `defects` break it on purpose.
 */
import { createHash } from 'node:crypto';
import { throwIfAborted } from '#towline/abort.js';
import { TowlineError } from '#towline/errors.js';
import type { ExposureState } from '#towline/function/types.js';

export type ExposureDefect =
  | 'saves-while-running'
  | 'other-format'
  | 'loses-value'
  | 'no-digest'
  | 'half-restored'
  | 'keeps-after-forget'
  | 'deaf-to-abort'
  | 'other-each-time';

export class TsExposure implements ExposureState {
  value = 1;
  forgotten = 0;
  /** What happened, in order; may be shared with others. */
  readonly log: string[];
  readonly #running: () => boolean;
  readonly #defects: readonly ExposureDefect[];
  #saves = 0;

  constructor(running: () => boolean, log: string[] = [], defects: readonly ExposureDefect[] = []) {
    this.#running = running;
    this.log = log;
    this.#defects = defects;
  }

  #has(defect: ExposureDefect): boolean {
    return this.#defects.includes(defect);
  }

  get format(): string {
    return this.#has('other-format') ? `ts:${Math.random()}` : 'ts:1';
  }

  async save({ signal }: { signal?: AbortSignal | undefined } = {}): Promise<Uint8Array> {
    if (!this.#has('deaf-to-abort')) throwIfAborted(signal);
    if (this.#running() && !this.#has('saves-while-running')) throw new TowlineError('ERR_TOWLINE_STATE', 'it runs');
    this.log.push('save');
    const section = Buffer.alloc(36);
    this.#saves += 1;
    section.writeUInt32LE(this.#has('other-each-time') ? this.#saves : this.value);
    createHash('sha256').update(section.subarray(0, 4)).digest().copy(section, 4);
    return section;
  }

  async restore(section: Uint8Array, { signal }: { signal?: AbortSignal | undefined } = {}): Promise<void> {
    if (!this.#has('deaf-to-abort')) throwIfAborted(signal);
    const bytes = Buffer.from(section);
    const value = bytes.length < 4 ? 0 : bytes.readUInt32LE();
    if (this.#has('half-restored')) this.value = value;
    const digest = createHash('sha256').update(bytes.subarray(0, 4)).digest();
    if (!this.#has('no-digest') && (bytes.length !== 36 || !digest.equals(bytes.subarray(4)))) {
      throw new TowlineError('ERR_TOWLINE_BAD_STATE', 'the section is damaged');
    }
    this.log.push('restore');
    this.value = this.#has('loses-value') ? 1 : value;
  }

  async forget(): Promise<void> {
    this.forgotten += 1;
    this.log.push('forget');
    if (!this.#has('keeps-after-forget')) this.value = 1;
  }
}
