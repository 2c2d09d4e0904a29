/**
 * The phases of a migration, in their order, as progress events, reports and fault points name them.
 *
 * - `offer`: identity, capabilities and layout are compared; nothing has stopped.
 * - `pass-memory`: where memory is passed: the destination maps it, and its caller builds on it.
 * - `measure`: bandwidth and dirty rate are sampled, so that the forecast can be frozen before anything is copied.
 * - `pre-copy`: passes over memory, and device state where the function has PRE_COPY, while it runs.
 * - `pause`: the caller's `pause` hook: vCPUs stop.
 * - `stop`: the functions are quiesced and stopped. Here the downtime begins.
 * - `final-pages`: last harvest of every dirty source, after the stop, and those pages.
 * - `device-state`: device state is saved and sent.
 * - `prepare`: the destination loads device state and checks the manifests; then it has everything and runs nothing.
 * - `hold`: the caller's `verify` hook; not counted in any figure.
 * - `journal`: the source's and the destination's journal syncs.
 * - `commit`: COMMIT and its answer, without the journals.
 * - `resume`: the destination's functions start, and it says so. Here the downtime ends; its `resume` hook comes after.
 * - `sync`: a checkpoint: the file is made durable, and has its name.
 * - `release`: the source lets go, outside of the downtime.
 */
export const PHASES = [
  'offer',
  'pass-memory',
  'measure',
  'pre-copy',
  'pause',
  'stop',
  'final-pages',
  'device-state',
  'prepare',
  'hold',
  'journal',
  'commit',
  'resume',
  'sync',
  'release',
] as const;

/** See {@link PHASES}. */
export type Phase = (typeof PHASES)[number];

/** How long one phase took, in milliseconds. */
export interface PhaseTime {
  name: Phase;
  ms: number;
}

/** Measures phases. Times of the same phase add up. */
export class PhaseClock {
  readonly #times = new Map<Phase, number>();

  /** Runs `work` and books its time on `phase`, whether it succeeds or not. */
  async during<T>(phase: Phase, work: () => Promise<T>): Promise<T> {
    const start = performance.now();
    try {
      return await work();
    } finally {
      this.add(phase, performance.now() - start);
    }
  }

  /** Books `ms` milliseconds on `phase`; negative values take away what another phase was found to hold. */
  add(phase: Phase, ms: number): void {
    this.#times.set(phase, (this.#times.get(phase) ?? 0) + ms);
  }

  /** Milliseconds of `phase` so far. */
  ms(phase: Phase): number {
    return Math.max(0, this.#times.get(phase) ?? 0);
  }

  /** Every phase that took place, in order. */
  list(): PhaseTime[] {
    return PHASES.filter((name) => this.#times.has(name)).map((name) => ({ name, ms: this.ms(name) }));
  }
}
