/** What the demo's processes say to each other over Node's own IPC. */
import type { Sabotage } from './sabotage.js';

export type Kind = 'pf' | 'vf' | 'siov';
export const KINDS: readonly Kind[] = ['pf', 'vf', 'siov'];

/** File descriptors that a host inherits. */
export const MEMORY_FD = 4;
export const LOG_FD = 5;

/** How big the demo is. */
export interface Scale {
  memoryMiB: number;
  namespaceMiB: number;
  /** Milliseconds of I/O before and after the move. */
  runMs: number;
  iops: number;
  /** CPU writes over the working set, bytes per second. */
  cpuDirtyBytesPerSecond: number;
  workingSetPages: number;
}

export interface NamespaceFile {
  path: string;
  nguid: string;
  uuid: string;
}

export type HostRequest =
  | {
      do: 'prepare';
      kind: Kind;
      uuid: string;
      hostTag: number;
      namespace: NamespaceFile;
      journal: string;
      scale: Scale;
    }
  | { do: 'boot' }
  | { do: 'receive'; sabotage: Sabotage | undefined }
  | { do: 'received' }
  | { do: 'migrate'; to: string; sabotage: Sabotage | undefined }
  | { do: 'haunt' }
  | { do: 'drain' }
  | { do: 'close' };
