/**
 * What the exposure `vfio` keeps of a PCI function that this process drives itself: config space, and which vectors are wired.
 */
import { throwIfAborted } from '../../abort.js';
import { TowlineError } from '../../errors.js';
import type { ExposureState } from '../../function/types.js';
import type { OpenVfio, VfioConfig, VfioInfo } from '../host/port.js';

/** The version of the section (`ExposureSection`, crates/linux). */
const VERSION = 1;

/** Eventfds of the vectors of one index, from 0 on; -1 where there is none. */
export interface Wiring {
  readonly index: number;
  readonly eventfds: readonly number[];
}

/** What a guest has seen and can't change: sizes of regions, numbers of interrupts. */
function format({ regions, irqs }: VfioInfo): string {
  const sizes = regions.map((r) => `${r.index}=${r.sizeBytes}`).join(',');
  return `vfio:${VERSION}:regions=${sizes}:irqs=${irqs.map((i) => `${i.index}=${i.count}`).join(',')}`;
}

/** Refuses a device that has not stopped: what it does meanwhile would not be in the section. */
async function checkStopped({ channel, info }: OpenVfio): Promise<void> {
  const state = await channel.state();
  if (state === 'stop' || state === 'stop-copy') return;
  throw new TowlineError('ERR_TOWLINE_STATE', `${info.name} is in ${state}: its section belongs to a device in stop`, {
    state,
  });
}

/** See the file's comment. */
export function configState(device: OpenVfio, config: VfioConfig, wiring: () => Wiring | undefined): ExposureState {
  return {
    format: format(device.info),
    save: async ({ signal } = {}) => {
      throwIfAborted(signal);
      await checkStopped(device);
      const { index, eventfds } = wiring() ?? { index: null, eventfds: [] };
      return config.save(
        index,
        eventfds.map((fd) => fd >= 0),
      );
    },
    restore: async (section, { signal } = {}) => {
      throwIfAborted(signal);
      await checkStopped(device);
      const { index, eventfds } = wiring() ?? { index: null, eventfds: [] };
      await config.restore(section, index, eventfds);
    },
    // A function that was not taken over was reset, and its config space with it.
    forget: async () => undefined,
  };
}
