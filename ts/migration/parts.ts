import { nativeSync } from '../errors.js';
import { nativeDirtySource, nativeStateChannel } from '../function/bridge.js';
import type { DirtySource } from '../function/channel.js';
import type { MigratableFunction } from '../function/types.js';
import type { NativeFence, NativeLink, NativeSessionParts } from '../native/binding.js';
import type { GuestMemory } from './memory.js';
import { bridgeFence, type Fence } from './fence.js';
import { Journal } from './journal.js';

/** What a session is made of, on either side. */
export interface SessionInput {
  functions: readonly MigratableFunction[];
  memory: GuestMemory | undefined;
  extraDirty: readonly DirtySource[];
  /** Whether the functions' dirty sources are wanted: memory that is passed is not tracked. Default true. */
  tracked?: boolean;
  fence: Fence | Journal;
  /** `null` where the session makes its own. */
  link: NativeLink | null;
  onProgress: (json: string) => void;
}

/** The native parts of a session, and how to let go of what was made for it. */
export class SessionParts {
  readonly parts: NativeSessionParts;
  readonly #closers: (() => void)[] = [];

  constructor(input: SessionInput) {
    const keep = <T extends { close(): void }>(part: T): T => {
      this.#closers.push(() => part.close());
      return part;
    };
    const dirty = (source: DirtySource) => keep(nativeDirtySource(source)).native;
    this.parts = {
      link: input.link,
      fence: this.#fence(input.fence),
      memory: input.memory ? input.memory.native() : null,
      functions: input.functions.map((f) => ({
        uuid: f.uuid,
        name: f.name,
        channel: keep(nativeStateChannel(f.channel())).native,
        dirty: input.memory && input.tracked !== false ? f.dirtySources().map(dirty) : [],
      })),
      extraDirty: input.extraDirty.map(dirty),
      progress: input.onProgress,
    };
  }

  #fence(fence: Fence | Journal): NativeFence {
    if (fence instanceof Journal) {
      const own = nativeSync(() => fence.native().fence());
      // Until it is let go of, the journal can't be opened by another process, nor again by this one.
      this.#closers.push(() => own.close());
      return own;
    }
    const bridged = bridgeFence(fence);
    this.#closers.push(() => bridged.close());
    return bridged.native;
  }

  /** Idempotent. */
  close(): void {
    for (const closer of this.#closers.splice(0)) closer();
  }
}
