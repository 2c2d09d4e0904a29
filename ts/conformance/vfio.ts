/**
 * The kit against VFIO devices of this host that this process opens, whatever is behind them.
 */
import { TowlineError } from '../errors.js';
import type { HostPort, OpenVfio, VfioOptions } from '../drivers/host/port.js';
import { explainOn, type HostExplanation } from '../host/explain.js';
import { GuestMemory } from '../migration/memory.js';
import { channelChecks } from './channel.js';
import { CheckRun, NotExercised, type CheckResult } from './check.js';
import { dirtyChecks } from './dirty.js';
import { sourceView, view } from './views.js';
import type { ChannelInstance } from './subjects.js';

/** Options of {@link conformVfio}. */
export interface ConformVfioOptions extends Omit<VfioOptions, 'name'> {
  /** The checks reset the device and write its state: without this they are refused. */
  destructive: boolean;
  /** Guest memory that is mapped for its DMA, and in which its writes are tracked, in bytes. Default: 4 MiB. */
  memoryBytes?: bigint | undefined;
  /** How long one check may take, in milliseconds; after one that takes longer the rest is not exercised. Default: 30000. */
  checkTimeoutMs?: number | undefined;
}

/** Says no before anything is opened: a device that somebody has is not ours to reset. */
function refuseUnfit({ function: fn, reasons }: HostExplanation): void {
  const used = reasons.find((r) => r.code === 'in-use');
  if (used !== undefined) throw new TowlineError('ERR_TOWLINE_BUSY', used.message, { function: fn.address });
  if (fn.exposure === 'vfio') return;
  const [first] = reasons;
  throw new TowlineError(
    'ERR_TOWLINE_UNSUPPORTED',
    first === undefined ? `${fn.address} is not bound to a VFIO driver` : `${first.message}: ${first.mend}`,
    { function: fn.address, details: { reasons } },
  );
}

/**
 * Runs the checks of a state channel and of a dirty source against one VFIO device, or two that are alike: some checks need a second
 * one. The devices are opened as long as it takes, and reset.
 *
 * @param names - PCI addresses or UUIDs of mediated devices, one or two.
 * @throws TowlineError `ERR_TOWLINE_REFUSED` without `destructive`, `ERR_TOWLINE_BUSY` where a process has one open,
 * `ERR_TOWLINE_UNSUPPORTED` where it is not on VFIO or does not migrate, `ERR_TOWLINE_NOT_FOUND`.
 */
export async function* conformVfio(
  host: HostPort,
  names: readonly string[],
  options: ConformVfioOptions,
): AsyncGenerator<CheckResult, void, void> {
  const { destructive, memoryBytes = 4n << 20n, checkTimeoutMs, ...opening } = options;
  if (!destructive) {
    throw new TowlineError(
      'ERR_TOWLINE_REFUSED',
      'the checks reset the device and overwrite its state: say so by destructive (--destructive)',
    );
  }
  if (names.length < 1 || names.length > 2) {
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${names.length} devices; it takes one or two`);
  }
  const addresses: string[] = [];
  for (const name of names) {
    const explanation = await explainOn(name, { reader: host });
    refuseUnfit(explanation);
    addresses.push(explanation.function.address);
  }
  if (new Set(addresses).size !== addresses.length) {
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${addresses[0] ?? ''} is named twice`);
  }
  const open: OpenVfio[] = [];
  const memory = GuestMemory.anonymous('conformance', memoryBytes);
  const run = new CheckRun(checkTimeoutMs);
  try {
    for (const name of addresses) {
      const device = await host.openVfio({ ...opening, name }, null);
      open.push(device);
      if ((device.info.migration & 1) === 0) {
        throw new TowlineError(
          'ERR_TOWLINE_UNSUPPORTED',
          `${name} does not migrate: it has no VFIO_DEVICE_FEATURE_MIGRATION`,
          { function: name },
        );
      }
      await device.mapMemory(memory);
    }
    yield* channelChecks({ open: opener(open) }, run);
    const [first] = open;
    if (run.hung === undefined) await first?.channel.reset();
    const source = first?.source ?? null;
    if (source === null) {
      const why = 'nobody tells which pages the device writes: neither itself nor the IOMMU';
      yield { check: 'dirty/source', outcome: 'not-exercised', why };
    } else {
      const fresh = async () => {
        const instance = sourceView(source);
        return { source: instance, ranges: memory.ranges(), pageSizeBytes: 4096, close: () => instance.close() };
      };
      yield* dirtyChecks({ open: fresh }, run);
    }
    // The state of a device may outlive its owner: none is left where a check had it.
    if (run.hung === undefined) for (const device of open) await device.channel.reset();
  } finally {
    for (const device of open.reverse()) {
      const closed = device.close();
      // A device that hangs may hang in this as well: then it is closed whenever it answers.
      if (run.hung === undefined) await closed;
      else closed.catch(() => undefined);
    }
    memory.close();
  }
}

/** Hands the devices out one after another, each reset. */
function opener(devices: readonly OpenVfio[]): () => Promise<ChannelInstance> {
  const free = [...devices];
  return async () => {
    const device = free.shift();
    if (device === undefined) {
      throw new NotExercised(
        devices.length === 1 ? 'it takes a second device like it (--second)' : 'it takes more than two devices',
      );
    }
    await device.channel.reset();
    const channel = view(device.channel);
    let closed = false;
    return {
      channel,
      close: async () => {
        if (closed) return;
        closed = true;
        await channel.close();
        // The one that was used last comes last, so that checks with one instance at a time meet both.
        free.push(device);
      },
    };
  };
}
