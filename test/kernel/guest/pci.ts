// PCI functions of the guest as sysfs has them, without towline.
import { readdir, readFile, readlink } from 'node:fs/promises';
import { basename } from 'node:path';

import { sys } from './nvme.js';

/** A file of a PCI function in sysfs, without the line's end; `undefined` where it is not there. */
export const attribute = (address: string, name: string): Promise<string | undefined> =>
  readFile(`${sys(address)}/${name}`, 'utf8').then(
    (text) => text.trim(),
    () => undefined,
  );

/** The driver that has it. */
export const driverOf = (address: string): Promise<string | undefined> =>
  readlink(`${sys(address)}/driver`).then(
    (link) => basename(link),
    () => undefined,
  );

/** Addresses of the VFs of a PF, by its links. */
export async function vfsOf(pf: string): Promise<string[]> {
  const links = (await readdir(sys(pf))).filter((name) => /^virtfn\d+$/.test(name));
  const numbered = links.sort((a, b) => Number(a.slice(6)) - Number(b.slice(6)));
  return Promise.all(numbered.map(async (name) => basename(await readlink(`${sys(pf)}/${name}`))));
}

/** Everything about a PF and its VFs that provisioning changes. */
export async function stateOf(pf: string): Promise<unknown> {
  const vfs = [];
  for (const address of await vfsOf(pf)) {
    vfs.push({
      address,
      driver: await driverOf(address),
      override: await attribute(address, 'driver_override'),
      msix: await attribute(address, 'sriov_vf_msix_count'),
    });
  }
  return {
    driver: await driverOf(pf),
    numvfs: await attribute(pf, 'sriov_numvfs'),
    autoprobe: await attribute(pf, 'sriov_drivers_autoprobe'),
    vfs,
  };
}
