/**
 * Rate limits of NVMe functions. NVMe has no command for them: none of the features of Base 2.1 limits what one controller of a subsystem may
 * do. The embedded subsystem has a vendor specific one (crates/nvme `limit`), also where it is reached over `/dev/nvmeN`.
 */
import { TowlineError } from '../../errors.js';
import type { RateLimit } from '../driver.js';
import type { NvmeAdmin } from './admin.js';
import type { NvmeFunction } from './function.js';

/** The most commands a second that can be said. */
const MOST_OPERATIONS = 0xffff_ffff;
const MOST_BYTES = (1n << 64n) - 1n;

/** Why functions of this controlling function can't be limited; `undefined` where they can. */
export async function whyNoRateLimit(admin: NvmeAdmin): Promise<string | undefined> {
  if (admin.setRateLimit !== undefined && (await admin.hasRateLimit?.()) === true) return undefined;
  return 'NVMe has no rate limit for a controller; only the embedded subsystem has one, as a vendor specific feature';
}

/** A limit as the device takes it: 0 for none. */
export function checkRateLimit(limit: RateLimit | null): { bytesPerSecond: bigint; operationsPerSecond: number } {
  if (limit === null) return { bytesPerSecond: 0n, operationsPerSecond: 0 };
  const { bytesPerSecond: bytes, operationsPerSecond: operations } = limit;
  const soundBytes = bytes === undefined || (bytes >= 1n && bytes <= MOST_BYTES);
  const soundOperations =
    operations === undefined || (Number.isInteger(operations) && operations >= 1 && operations <= MOST_OPERATIONS);
  if ((bytes === undefined && operations === undefined) || !soundBytes || !soundOperations) {
    throw new TowlineError(
      'ERR_TOWLINE_INVALID_ARGUMENT',
      'a rate limit says bytesPerSecond, 1 to 2^64 - 1, or operationsPerSecond, 1 to 2^32 - 1; null lifts it',
    );
  }
  return { bytesPerSecond: bytes ?? 0n, operationsPerSecond: operations ?? 0 };
}

/** Limits what a function does, or lifts that. */
export async function limitRate(admin: NvmeAdmin, fn: NvmeFunction, limit: RateLimit | null): Promise<void> {
  const { bytesPerSecond, operationsPerSecond } = checkRateLimit(limit);
  const why = await whyNoRateLimit(admin);
  if (why !== undefined || admin.setRateLimit === undefined) {
    throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', `${fn.name} can't be limited: ${why}`, { function: fn.uuid });
  }
  await admin.setRateLimit(fn.cntlid, bytesPerSecond, operationsPerSecond);
}
