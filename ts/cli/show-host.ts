/**
 * How this host's tree and an explanation of one of its functions are shown to people.
 */
import type { HostExplanation } from '../host/explain.js';
import type { HostFunction, HostTree } from '../host/tree.js';
import type { Output } from './context.js';
import { showReasons } from './show.js';

const or = (...parts: (string | null | undefined | false)[]): string =>
  parts.filter((part) => typeof part === 'string' && part !== '').join(', ');

function functionLine(fn: HostFunction): string {
  const how =
    fn.exposure === 'none'
      ? 'bound to no driver'
      : `${fn.exposure === 'vfio' ? 'on VFIO' : 'on the kernel'} (${fn.driver ?? ''})`;
  return `${fn.address} ${or(
    fn.vfIndex === null ? fn.kind : `${fn.kind} ${fn.vfIndex}`,
    fn.bus === 'devlink' ? fn.description : fn.bus === 'mdev' ? `type ${fn.type}` : null,
    fn.nvme,
    fn.bus === 'devlink' ? null : how,
    fn.vfioDevice !== null && `/dev/vfio/devices/${fn.vfioDevice}`,
    fn.iommuGroup !== null && `IOMMU group ${fn.iommuGroup}`,
    fn.migrationState !== null && `migration state ${fn.migrationState}`,
    fn.port !== null && fn.bus !== 'devlink' && `port ${fn.port.address}`,
    fn.port?.hwAddress,
    fn.port?.state,
    fn.port !== null && fn.port.migratable !== null && (fn.port.migratable ? 'migratable' : 'not migratable'),
  )}`;
}

/** A tree as `lspci -t` draws it, with words. */
export function showTree(out: Output, host: HostTree): void {
  const { kernel } = host;
  const has = [
    kernel.container && 'VFIO groups',
    kernel.cdev && 'VFIO devices (cdev)',
    kernel.iommufd && 'iommufd',
    kernel.mdev && 'mediated devices',
    kernel.iommu && 'IOMMU groups',
  ].filter((part) => part !== false);
  out.line(
    `this host: kernel ${kernel.release}, ${has.length === 0 ? 'without VFIO and without an IOMMU' : `with ${has.join(', ')}`}`,
  );
  for (const c of host.controlling) {
    const details = or(
      c.driver !== null && `driver ${c.driver}`,
      c.nvme !== null && c.nvme.name,
      c.vfs !== null && `${c.vfs.enabled} of ${c.vfs.total} VFs`,
      c.types.length > 0 && c.types.map((t) => `${t.available} ${t.id} left`).join(', '),
    );
    out.line(`${c.address} ${c.description}${details === '' ? '' : `: ${details}`}`);
    if (c.controlling.length > 0) out.line(` |    --controlling ${c.controlling.join(' or ')}`);
    c.functions.forEach((fn, i) => out.line(` ${i === c.functions.length - 1 ? '\\' : '+'}--- ${functionLine(fn)}`));
  }
  for (const fn of host.others) out.line(`${functionLine(fn)}: no controlling function of it is known here`);
  if (host.controlling.length === 0 && host.others.length === 0) {
    out.line(
      'no controlling function on this host: no PF with SR-IOV, NVMe controller, mdev parent or devlink instance with functions',
    );
  }
  for (const { part, error } of host.problems) out.line(`could not read ${part}: ${error.message}`);
}

/** What can be done, why not, and what is odd. */
export function showExplanation(out: Output, e: HostExplanation): void {
  const name = e.function.address;
  out.line(`${name}: ${e.function.description}, ${functionLine(e.function).slice(name.length + 1)}`);
  if (e.can !== null) {
    const { states, dirty, by, evidence } = e.can;
    const arcs = or(states.stopCopy && 'stop-copy', states.p2p && 'p2p', states.preCopy && 'pre-copy');
    const who = {
      device: 'dirty pages by the device',
      iommu: 'dirty pages by the IOMMU',
      'controlling-function': 'dirty pages by the controlling function',
      nobody: 'dirty pages by nobody',
      unknown: 'who tells dirty pages is not known',
    }[dirty];
    out.line(
      `  by ${by === 'vfio' ? 'its VFIO driver' : 'its controlling function'}: ${arcs}; ${who} (by ${evidence})`,
    );
  }
  out.line(
    e.reasons.length === 0
      ? `${name} can be migrated, as far as can be told from outside`
      : `${name} can't be migrated now:`,
  );
  showReasons(out, e.reasons);
  if (e.limits.length > 0) out.line('to know:');
  showReasons(out, e.limits);
  for (const { name: quirk, notes, source } of e.quirks) {
    out.line(`quirk ${quirk} (${source}):`);
    for (const note of notes) out.line(`  ${note}`);
  }
}
