/**
 * The code of docs/guides/convergence.md; test/docs/convergence.test.ts sees to it that it is this, and that it works.
 */
// guide: migrate
import { isTowlineError, migrate, type ForecastNeeds, type MigratableFunction, type MigrateOptions } from 'towline';

/** What the VMM can do about its vCPUs. */
export interface Vcpus {
  /** Takes so many percent of their time from them, 0 to 99. */
  throttle(percent: number): Promise<void>;
  pause(): Promise<void>;
  resume(): Promise<void>;
}

/** Migrates within 300 ms of downtime, or tells what it would take. */
export async function migrateOrTell(
  nic: MigratableFunction,
  vcpus: Vcpus,
  way: Pick<MigrateOptions, 'to' | 'memory' | 'fence'>,
  log: (line: string) => void,
): Promise<ForecastNeeds | undefined> {
  const migration = migrate(nic, {
    ...way,
    pause: () => vcpus.pause(),
    resume: () => vcpus.resume(),
    throttle: (percent) => vcpus.throttle(percent),
    policy: {
      bandwidthBytesPerSecond: 4 << 20,
      maxDowntimeMs: 300,
      maxRounds: 20,
      converge: {
        means: ['throttle', 'device-limit'],
        throttle: { fromPercent: 20, stepPercent: 10, maxPercent: 90 },
        deviceLimit: { leastBytesPerSecond: 256 << 10 },
      },
    },
  });
  for await (const event of migration) {
    if (event.type !== 'converge') continue;
    if (event.action === 'throttle') log(`throttled by ${event.percent} %: ${event.why}`);
    if (event.action === 'rate-limit') log(`limited to ${event.bytesPerSecond ?? 'nothing'}: ${event.why}`);
  }
  try {
    const { converge } = await migration.result;
    for (const step of converge?.steps ?? []) log(`${step.means}: ${JSON.stringify([step.before, step.after])}`);
    return undefined;
  } catch (error) {
    const cause = isTowlineError(error, 'ERR_TOWLINE_ROLLED_BACK') ? error.cause : error;
    if (!isTowlineError(cause, 'ERR_TOWLINE_NOT_CONVERGING')) throw error;
    return (cause.details as { needs: ForecastNeeds }).needs;
  }
}
// guide: end

// guide: session
import type { MeansState, SourceSession } from 'towline';

/** One turn of a VMM's own loop: whether it is time to stop. `inForce` is what the turns before have put in force. */
export async function turn(
  session: SourceSession,
  nic: MigratableFunction,
  vcpus: Vcpus,
  inForce: { -readonly [K in keyof MeansState]: MeansState[K] },
): Promise<boolean> {
  await session.harvest();
  await session.sampleDirty();
  const advice = session.advice(
    { bandwidthBytesPerSecond: 4 << 20, maxDowntimeMs: 300 },
    { means: ['throttle', 'device-limit'], inForce },
  );
  if (advice.action === 'give-up') throw new Error(`${advice.why}: ${JSON.stringify(advice.forecast.needs)}`);
  if (advice.action === 'slow-down') {
    if (advice.throttlePercent !== undefined) {
      await vcpus.throttle(advice.throttlePercent);
      inForce.throttlePercent = advice.throttlePercent;
    }
    if (advice.deviceBytesPerSecond !== undefined) {
      await nic.rateLimit?.({ bytesPerSecond: BigInt(advice.deviceBytesPerSecond) });
      inForce.deviceBytesPerSecond = advice.deviceBytesPerSecond;
    }
  }
  return advice.action === 'stop';
}
// guide: end
