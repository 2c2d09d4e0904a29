/** What the demo's processes say to each other over Node's own IPC. */
import type { MigrationEvent } from 'towline';
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

export type FromHost =
  | { type: 'answer'; id: number; value?: unknown; error?: { message: string; code?: string } }
  | { type: 'event'; event: MigrationEvent }
  | { type: 'hold'; id: number };

export type ToHost =
  | { type: 'request'; id: number; request: HostRequest }
  | { type: 'held'; id: number; error?: string };
