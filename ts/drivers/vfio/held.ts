/**
 * The VFIO device behind a controlled function: whether this process has it open, and what can be told of it while another one does.
 */
import type { ControlledFunction } from '../../function/types.js';
import { deviceStates, type DeviceState } from '../../function/state.js';
import type { HostPort } from '../host/port.js';
import { NvmeFunction } from '../nvme/function.js';
import { vfioOpeners } from './explain.js';
import { VfioFunction } from './function.js';
import type { VfioHandle } from './handle.js';

/** The VFIO device that carries the state of `fn`; `undefined` where something else does. */
export function vfioHandle(fn: ControlledFunction): VfioHandle | undefined {
  return fn instanceof VfioFunction || fn instanceof NvmeFunction ? fn.handle : undefined;
}

/** Runs `work`, which may open the VFIO device of `fn`, and closes it again where it was not open before. */
export async function withoutKeeping<T>(fn: ControlledFunction, work: () => Promise<T>): Promise<T> {
  const handle = vfioHandle(fn);
  if (handle === undefined || handle.current !== undefined) return work();
  try {
    return await work();
  } finally {
    await handle.close();
  }
}

/** A VFIO device that another process has open. */
export interface HeldElsewhere {
  readonly pids: readonly number[];
  /** As VFIO's debugfs tells it; `undefined` where that is not there, or may not be read. */
  readonly state: DeviceState | undefined;
}

/** Who else has the VFIO device `name` open; `undefined` where nobody has. Nothing is opened for it. */
export async function heldElsewhere(host: HostPort, name: string): Promise<HeldElsewhere | undefined> {
  const pci = (await host.pci(true)).find((f) => f.address === name);
  const device = pci ?? (await host.mdev()).flatMap((p) => p.devices).find((d) => d.uuid === name);
  const pids = device === undefined ? [] : await vfioOpeners(host, device);
  if (device === undefined || pids.length === 0) return undefined;
  const word = device.vfioState?.toLowerCase().replaceAll('_', '-');
  return { pids, state: deviceStates.find((s) => s === word) };
}
