/**
 * Reasons why an NVMe function can't be migrated. The codes are stable.
 */
import type { Reason } from '../../function/types.js';
import type { NvmeIdentify, NvmeNamespace, NvmeSecondary, NvmeStateFormats } from './admin.js';
import type { NvmeControllerInfo } from './backend.js';

/** What the controlling function lacks. */
export function explainController(identify: NvmeIdentify, formats: NvmeStateFormats): Reason[] {
  const reasons: Reason[] = [];
  if (!identify.hmlms) {
    reasons.push({
      code: 'controlling-function-cannot-migrate',
      message: 'the controlling function does not support host managed live migration (OACS bit 11 is clear)',
      mend: 'use a controller with host managed live migration (NVMe 2.1), or its VFIO variant driver',
    });
  }
  if (!identify.trackMemory) {
    reasons.push({
      code: 'no-dirty-tracking',
      message:
        'the controlling function does not track what its functions write to guest memory (TRATTR bit 0 is clear)',
      mend: 'let an IOMMU with dirty tracking tell it, or stop the function before memory is copied',
    });
  }
  if (identify.hmlms && formats.versions.length === 0 && formats.uuids.length === 0) {
    reasons.push({
      code: 'no-state-format',
      message: 'the controlling function names no format of controller state (CNS 20h is empty)',
      mend: 'update the firmware of the device',
    });
  }
  return reasons;
}

/** What is wrong with the function itself. */
export function explainNvme(
  name: string,
  info: NvmeControllerInfo | undefined,
  secondary: NvmeSecondary | undefined,
): Reason[] {
  if (info === undefined) {
    return [
      {
        code: 'function-lost',
        message: `the controller of ${name} does not exist any more`,
        mend: 'release it and provision another',
      },
    ];
  }
  if (info.controlling) {
    return [
      {
        code: 'function-is-controlling',
        message: `${name} is the controlling function, which is never migrated itself`,
        mend: 'migrate the functions that it controls',
      },
    ];
  }
  if (secondary !== undefined && !secondary.online) {
    return [
      {
        code: 'function-offline',
        message: `${name} is offline: a reset of the controlling function takes every secondary controller offline`,
        mend: 'configure it again',
      },
    ];
  }
  if (info.fatal) {
    return [{ code: 'function-failed', message: `${name} reports a fatal status (CSTS.CFS)`, mend: 'reset it' }];
  }
  return [];
}

const zero = /^[0-]*$/;

/** Disks that would not be there at the destination, or could not be recognised. */
export function explainNamespaces(cntlid: number, namespaces: readonly NvmeNamespace[]): Reason[] {
  const reasons: Reason[] = [];
  for (const n of namespaces) {
    if (!n.attached.includes(cntlid)) continue;
    if (zero.test(n.nguid) && zero.test(n.uuid)) {
      reasons.push({
        code: 'namespace-without-identity',
        message: `namespace ${n.nsid} has neither NGUID nor UUID, so no destination can tell that it is the same disk`,
        mend: 'give it an NGUID or a UUID, or detach it',
      });
    }
    if (!n.shared) {
      reasons.push({
        code: 'namespace-not-shared',
        message: `namespace ${n.nsid} is private to one controller (NMIC bit 0 is clear)`,
        mend: 'make it shared, or detach it and let the guest use another disk',
      });
    }
  }
  return reasons;
}

/** Disks that the copy and the function that was copied would both write. */
export function explainCopiedNamespaces(cntlid: number, namespaces: readonly NvmeNamespace[]): Reason[] {
  const reasons: Reason[] = [];
  for (const n of namespaces) {
    if (!n.attached.includes(cntlid)) continue;
    const others = n.attached.length - 1;
    if (!n.shared && others === 0) continue;
    const how =
      others === 0
        ? 'can be attached to several controllers (NMIC bit 0 is set)'
        : `is attached to ${others} more controllers`;
    reasons.push({
      code: 'namespace-shared',
      message: `namespace ${n.nsid} ${how}: a copy would write the disk that the function goes on to write`,
      mend: 'checkpoint it as a move, or detach the namespace and give the guest a private one, which you copy yourself while it is paused',
    });
  }
  return reasons;
}
