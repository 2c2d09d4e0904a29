/**
 * The controlling functions that a serving process opens, by the words of its command line.
 */
import type { WaitOptions } from '../abort.js';
import { DevlinkDriver } from '../drivers/devlink.js';
import type { ControllingDriver, ControllingFunction } from '../drivers/driver.js';
import { EmbeddedDriver, type EmbeddedOptions } from '../drivers/embedded.js';
import { MdevDriver } from '../drivers/mdev.js';
import { NvmeDriver } from '../drivers/nvme.js';
import type { VfPoolOptions } from '../drivers/pool.js';
import { SriovDriver } from '../drivers/sriov.js';
import type { VfioOpenOptions } from '../drivers/vfio/handle.js';
import { TowlineError } from '../errors.js';

/** The drivers, for checking a word from outside. */
export const driverNames = ['embedded', 'nvme', 'sriov', 'mdev', 'devlink'] as const;

/** The name of a driver of this package. */
export type DriverName = (typeof driverNames)[number];

/** A controlling function by its driver and where it is. */
export interface ControllingWord {
  readonly driver: DriverName;
  readonly address: string;
}

/** `DRIVER:ADDRESS`. @throws SyntaxError, as the command line's parsers do. */
export function parseControlling(text: string): ControllingWord {
  const [name, ...rest] = text.split(':');
  const driver = driverNames.find((d) => d === name);
  const address = rest.join(':');
  if (driver === undefined || address === '') {
    throw new SyntaxError(
      `"${text}" is not DRIVER:ADDRESS, DRIVER being one of ${driverNames.join(', ')}: nvme:0000:01:00.0, mdev:mtty, devlink:pci/0000:01:00.0`,
    );
  }
  return { driver, address };
}

/** How controlling functions are opened; each driver takes what is its own. */
export interface OpenOptions extends VfPoolOptions {
  /** Of `embedded`; the name is the address. */
  readonly embedded?: Omit<EmbeddedOptions, 'name'> | undefined;
  /** How VFIO devices are opened. */
  readonly vfio?: VfioOpenOptions | undefined;
}

function driverOf({ driver, address }: ControllingWord, options: OpenOptions): ControllingDriver {
  const { vfs, force, vfio } = options;
  switch (driver) {
    case 'embedded':
      return new EmbeddedDriver([{ ...options.embedded, name: address }]);
    case 'nvme':
      return new NvmeDriver({ vfs, force, vfio });
    case 'sriov':
      return new SriovDriver({ vfs, force, vfio });
    case 'mdev':
      return new MdevDriver({ vfio });
    case 'devlink':
      return new DevlinkDriver({ vfs, force, vfio });
  }
}

/** How a controlling function is called everywhere: `DRIVER:ADDRESS`. */
export function controllingName(controlling: { readonly driver: string; readonly address: string }): string {
  const { driver, address } = controlling;
  return address.startsWith(`${driver}:`) ? address : `${driver}:${address}`;
}

/**
 * Opens them in their order; where one fails, those before are closed again.
 * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` where one is named twice.
 */
export async function openControlling(
  words: readonly ControllingWord[],
  options: OpenOptions,
  wait: WaitOptions = {},
): Promise<ControllingFunction[]> {
  const opened: ControllingFunction[] = [];
  try {
    for (const word of words) {
      const address = word.driver === 'embedded' ? controllingName(word) : word.address;
      const controlling = await driverOf(word, options).open(address, wait);
      opened.push(controlling);
      const name = controllingName(controlling);
      if (opened.filter((c) => controllingName(c) === name).length > 1)
        throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${name} is named twice`);
    }
    return opened;
  } catch (error) {
    for (const controlling of opened.reverse()) await controlling.close().catch(() => undefined);
    throw error;
  }
}
