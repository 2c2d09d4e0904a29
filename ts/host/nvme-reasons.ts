/**
 * What the controlling function of an NVMe function tells: asked by Identify over the device of the kernel's own driver, which any number
 * of processes may have open. Nothing is changed.
 */
import { unwrapFault } from '../errors.js';
import type { PciFunction } from '../drivers/host/port.js';
import { explainController } from '../drivers/nvme/explain.js';
import type { NvmeIdentify } from '../native/binding.js';
import type { Reason } from '../function/types.js';
import type { HostFacts, HostReader } from './read.js';

/** What was found out. */
export interface NvmeWay {
  /** Whether its controlling function migrates it by commands (host managed live migration). `unknown`: it could not be asked. */
  readonly migrates: 'yes' | 'no' | 'unknown';
  /** Whether that tracks its writes. */
  readonly tracks: boolean;
  readonly reasons: readonly Reason[];
  /** What could not be asked. */
  readonly limits: readonly Reason[];
}

const FLEXIBLE = 'give it queues and interrupts and take it online: towline provision, or nvme virt-mgmt';

/** Of a VF: what its PF says of it; of a PF: what it says of itself. */
export async function nvmeWay(reader: HostReader, facts: HostFacts, fn: PciFunction): Promise<NvmeWay> {
  const pf = fn.physfn === null ? fn : facts.pci.find((f) => f.address === fn.physfn);
  const unknown = (message: string, mend: string, code: Reason['code'] = 'not-permitted'): NvmeWay => ({
    migrates: 'unknown',
    tracks: false,
    reasons: [],
    limits: [{ code, message, mend }],
  });
  if (pf?.nvme === null || pf === undefined) {
    return unknown(
      `controlling function ${pf?.address ?? fn.physfn ?? fn.address} is not on the kernel's nvme driver (${pf?.driver ?? 'no driver'}), so that it takes no commands from here`,
      'bind it to nvme, then towline serve --controlling nvme:ADDRESS can use it',
      'other',
    );
  }
  const path = `/dev/${pf.nvme.name}`;
  let identify: NvmeIdentify;
  const reasons: Reason[] = [];
  const limits: Reason[] = [];
  const failed = (what: string, error: unknown): Reason => {
    const { message, code } = unwrapFault(error);
    return {
      code: code === 'ERR_TOWLINE_PERMISSION' ? 'not-permitted' : 'other',
      message: `${path} could not be asked ${what}: ${message}`,
      mend: 'ask as root (CAP_SYS_ADMIN), while the controller is live',
    };
  };
  let admin;
  try {
    admin = await reader.openNvme(path);
  } catch (error) {
    return {
      migrates: 'unknown',
      tracks: false,
      reasons,
      limits: [failed('whether it migrates what it controls', error)],
    };
  }
  try {
    identify = await admin.identify();
    if (fn.physfn !== null) {
      try {
        const entry = (await admin.secondaries()).find((s) => s.vfNumber === (fn.vfIndex ?? -1) + 1);
        if (entry !== undefined && !entry.online) {
          reasons.push({
            code: 'function-offline',
            message: `${fn.address} (controller ${entry.cntlid}) is offline, with ${entry.vq} queues and ${entry.vi} interrupts: a reset of ${pf.nvme.name} takes every VF offline`,
            mend: FLEXIBLE,
          });
        }
      } catch (error) {
        limits.push(failed(`whether ${fn.address} is online`, error));
      }
    }
    const formats = identify.hmlms ? await admin.stateFormats() : { versions: [], uuids: [] };
    for (const reason of explainController(identify, formats)) {
      // Without migration it is of no interest that writes are not tracked.
      if (reason.code === 'no-dirty-tracking') {
        if (identify.hmlms) limits.push(reason);
      } else reasons.push(reason);
    }
    return { migrates: identify.hmlms ? 'yes' : 'no', tracks: identify.trackMemory, reasons, limits };
  } catch (error) {
    limits.push(failed('whether it migrates what it controls', error));
    return { migrates: 'unknown', tracks: false, reasons, limits };
  } finally {
    admin.close();
  }
}
